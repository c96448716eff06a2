// The page of one conversation: reads a page of history, then follows the stream from there and comes back by itself.
// Everything that people wrote goes through textContent, never through HTML.
"use strict";

const TURNS_KEPT = 200;      // turns on the page
const EMOTIONS_SHOWN = 3;    // bars a turn
const TREND_MIN = 0.05;      // a trend within this of nothing is none
const HUES = 6;              // colours of names: --who-0 and so on
const EMOTION_MIN = 0.1;     // probability below which a bar says nothing
const COMMON_ACT = "inform"; // goes without saying
const TURNING = { escalating: "tension rises", relieved: "relief" };
// Words that were found, nothing that is known of who said them.
const FLAGS = { self_harm_words: "words of self-harm lately: please look" };
// Kinds of turns that nobody said.
const FORGOTTEN = { erasure: "something said before was forgotten", forgotten: "forgotten" };
const RETRY_FIRST_MS = 250;
const RETRY_LONGEST_MS = 5000;
const LIST_EVERY_MS = 5000;
const LOCI_SHOWN = 16;       // dots a room: its newest memories

const byId = (id) => document.getElementById(id);
const [select, state, list, empty, scroller, newest] =
  [byId("conversations"), byId("state"), byId("turns"), byId("empty"), document.querySelector("main"), byId("newest")];

let turns = [];              // shown, the oldest first
let speakers = [];           // in the order of their first turn: sides of the page
let conversation = null;
let dreams = 0;              // asked for on this visit: seeds
let chosenRoom = null;       // whose turns stand out
let generation = 0;          // grows with every choice; what belongs to an older one is dropped

function say(name, text) {
  state.dataset.state = name;
  if (state.textContent !== text) state.textContent = text;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function speaker(turn) {
  const sender = turn.sender;
  if (!sender) return turn.bot ? `@${turn.bot}` : "unknown";
  return sender.name || sender.id;
}

// A name has the same colour on every page and visit (FNV-1a).
function hue(name) {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return ((hash ^ (hash >>> 16)) >>> 0) % HUES;
}

function clock(at) {
  return new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

function bars(emotion) {
  const entries = Object.entries(emotion.probabilities).filter(([, p]) => p >= EMOTION_MIN);
  entries.sort((a, b) => b[1] - a[1]);
  const box = element("dl", "emotions");
  for (const [label, p] of entries.slice(0, EMOTIONS_SHOWN)) {
    const percent = `${Math.round(p * 100)} %`;
    const bar = element("dd", "track");
    const fill = element("div", "fill");
    fill.style.width = `${Math.max(2, p * 100)}%`;
    bar.append(fill);
    bar.setAttribute("aria-hidden", "true");
    box.append(element("dt", "", label), bar, element("dd", "number", percent));
  }
  return box;
}

function bubble(turn) {
  if (turn.kind in FORGOTTEN) return element("li", "turn gone", FORGOTTEN[turn.kind]);
  const who = speaker(turn);
  if (!speakers.includes(who)) speakers.push(who);
  const item = element("li", speakers.indexOf(who) % 2 ? "turn other" : "turn");
  const head = element("div", "who");
  item.style.setProperty("--who", `var(--who-${hue(who)})`);
  const time = element("time", "", clock(turn.at));
  time.dateTime = new Date(turn.at).toISOString();
  head.append(element("strong", "", who), time);
  if (turn.consent) {
    item.append(head, element("p", "none", turn.consent.granted ? "agrees to be profiled in this conversation" : "no longer agrees to be profiled"));
    return item;
  }
  item.append(head, element("p", "text", turn.text));
  if (turn.emotion) item.append(bars(turn.emotion));
  else item.append(element("p", "none", whyNot(turn)));
  if (turn.synesthesia?.palette.length) item.append(palette(turn.synesthesia));
  const said = tags(turn);
  if (said.length) {
    const box = element("ul", "tags");
    box.append(...said.map(([text, kind]) => element("li", kind, text)));
    item.append(box);
  }
  return item;
}

// The palette of the conversation after a turn, each colour as wide as its share; what it sounds like on hovering.
function palette({ palette, sound, texture }) {
  const box = element("div", "palette");
  for (const { colour, weight } of palette) {
    const swatch = element("span");
    swatch.style.background = colour;
    swatch.style.flexGrow = weight;
    box.append(swatch);
  }
  box.title = `${Math.round(sound.tempo_bpm)} bpm, ${sound.mode}, ${sound.timbre}, ${sound.dynamics}; ${texture.name}`;
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", `palette ${palette.map((swatch) => swatch.colour).join(", ")}; ${box.title}`);
  return box;
}

function whyNot(turn) {
  const reason = (turn.skipped || []).find((skipped) => skipped.stage === "emotion")?.reason;
  return reason === "unsupported_language" ? "in a language that the models do not read" : "no emotion was read from this turn";
}

// What else was read from a turn, in a few words: where the mood turns or the topic changes, what the words do, what is wanted.
function tags(turn) {
  const said = (turn.flags || []).map((flag) => [FLAGS[flag] || flag, "flag"]);
  const turning = turn.emotion?.mood?.turning;
  if (turning) said.push([TURNING[turning] || turning, `turning ${turning}`]);
  if (turn.coherence?.shift) said.push(["new topic", "topic"]);
  const dialogue = turn.dialogue;
  if (!dialogue) return said;
  if (dialogue.act !== COMMON_ACT) said.push([dialogue.act, "act"]);
  for (const intent of dialogue.intents.filter((intent) => !intent.out_of_scope)) {
    said.push([`${intent.name.replaceAll("_", " ")} ${Math.round(intent.probability * 100)} %`, "intent"]);
  }
  return said;
}

function moodWords(mood) {
  const tone = mood.valence > 0.15 ? "pleasant" : mood.valence < -0.15 ? "unpleasant" : "even";
  const way = mood.trend > TREND_MIN ? ", rising" : mood.trend < -TREND_MIN ? ", falling" : "";
  const rounded = Math.round(mood.valence * 100) / 100;
  const sign = rounded > 0 ? "+" : rounded < 0 ? "−" : "";
  return `${tone}${way}, valence ${sign}${Math.abs(rounded).toFixed(2)}`;
}

function draw() {
  const known = turns.filter((turn) => turn.emotion);
  const x = (i) => (known.length < 2 ? 300 : (i / (known.length - 1)) * 600);
  const y = (valence) => 60 - Math.max(-1, Math.min(1, valence)) * 56;
  const moods = known.map((turn) => turn.emotion.mood);
  const points = known.map((turn, i) => moods[i] && `${x(i).toFixed(1)},${y(moods[i].valence).toFixed(1)}`);
  byId("line").setAttribute("points", points.filter(Boolean).join(" "));
  const dots = known.map((turn, i) => {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "path");
    dot.setAttribute("d", `M${x(i).toFixed(1)} ${y(turn.emotion.valence).toFixed(1)}h.01`);
    return dot;
  });
  byId("dots").replaceChildren(...dots);
  for (const [id, turn] of [["first-time", known.length > 1 ? known[0] : undefined], ["last-time", known.at(-1)]]) {
    byId(id).textContent = turn ? clock(turn.at) : "";
    if (turn) byId(id).dateTime = new Date(turn.at).toISOString();
  }
  strip(known);
  palace();
  const last = moods.filter(Boolean).at(-1);
  byId("mood-words").textContent = last ? moodWords(last) : "No turns yet";
  byId("curve-title").textContent = last
    ? `Course of the mood over ${known.length} turns, now ${moodWords(last)}` : "Course of the mood: no turns yet";
}

// How each turn hangs together with those before: the fuller the colour, the better; a line where a topic begins.
function strip(known) {
  const parts = known.map((turn) => turn.coherence);
  const width = 600 / Math.max(known.length, 1);
  const cells = parts.flatMap((part, i) => (part
    ? [shape("rect", { x: (i * width).toFixed(2), y: 0, width: width.toFixed(2), height: 10, opacity: (0.1 + 0.8 * part.score).toFixed(2) })] : []));
  const shifts = parts.flatMap((part, i) => (part?.shift ? [shape("path", { d: `M${(i * width).toFixed(2)} 0v10` })] : []));
  byId("cells").replaceChildren(...cells, ...shifts);
  const told = parts.filter(Boolean);
  byId("strip-title").textContent = told.length
    ? `Coherence of ${told.length} turns, now ${told.at(-1).score.toFixed(2)}; ${told.filter((part) => part.shift).length} of them begin a new topic` : "Coherence of the turns: no turns yet";
}

// A dream at the end of the conversation, made when it is asked for; each press asks for another one.
async function dream() {
  const [mine, button, box] = [generation, byId("dream-button"), byId("dreamt")];
  button.disabled = true;
  button.textContent = "dreaming …";
  let lines = [], told = "", colours = [];
  try {
    const response = await fetch(`/v1/conversations/${encodeURIComponent(conversation)}/dream?seed=${++dreams}`);
    const answer = await response.json();
    if (response.ok) {
      lines = answer.dream.text.split("\n");
      colours = answer.dream.palette.map((swatch) => swatch.colour);
      told = [...answer.dream.steering.map((wish) => wish.split(" ").at(-1)), ...answer.dream.about].join(" · ");
    } else {
      told = `${answer.title}: ${answer.detail}; ${answer.mend}`;
    }
  } catch (error) {
    console.warn(error);
    told = "The dream did not come; try again.";
  }
  button.disabled = false;
  button.textContent = "Dream again";
  if (mine !== generation) return;
  box.hidden = false;
  box.style.borderImage = colours.length > 1 ? `linear-gradient(${colours.join(", ")}) 1` : "";
  box.replaceChildren(...lines.map((line) => element("p", "verse", line)), element("p", "told", told));
  box.scrollIntoView({ block: "end" });
}

function forgetDream() {
  byId("dreamt").hidden = true;
  byId("dream-button").textContent = "Dream";
  byId("dream").hidden = turns.length === 0;
}

// The rooms that the turns on the page are remembered in, where the map has them; the walk of the conversation between them.
function palace() {
  const kept = turns.filter((turn) => turn.memory?.locus);
  const rooms = new Map();
  for (const turn of kept) {
    const { room, name, x, y, shown } = turn.memory.locus;
    const known = rooms.get(room) || { room, x, y, shown: true, memories: [] };
    // What a room is called moves with what is said in it; where it is private once, it stays so.
    Object.assign(known, { name, shown: known.shown && shown });
    known.memories.push(turn.memory);
    rooms.set(room, known);
  }
  byId("palace").hidden = rooms.size === 0;
  if (rooms.size === 0) return;
  const all = [...rooms.values()].sort((a, b) => b.y - a.y || a.x - b.x);
  const [left, top] = [Math.min(...all.map((room) => room.x)), Math.max(...all.map((room) => room.y))];
  const most = Math.max(...all.map((room) => room.memories.length));
  const now = rooms.get(kept.at(-1).memory.locus.room);
  if (chosenRoom !== null && !rooms.has(chosenRoom)) chosenRoom = null;
  const focused = document.activeElement?.dataset?.room;
  const doors = all.map((room) => door(room, most, room === now, room.x - left + 1, top - room.y + 1));
  byId("rooms").replaceChildren(...doors);
  if (focused) byId("rooms").querySelector(`[data-room="${focused}"]`)?.focus({ preventScroll: true });
  const memories = kept.length === 1 ? "1 memory" : `${kept.length} memories`;
  byId("palace-words").textContent = `${memories} in ${rooms.size === 1 ? "1 room" : `${rooms.size} rooms`}, now in ${called(now)}`;
  walk(kept);
  // The room where the talk is stays in sight, without moving the page.
  const [floor, here] = [byId("rooms").parentElement, byId("rooms").querySelector(".now").parentElement];
  floor.scrollTop = here.offsetTop - (floor.clientHeight - here.offsetHeight) / 2;
  floor.scrollLeft = here.offsetLeft - (floor.clientWidth - here.offsetWidth) / 2;
  list.querySelectorAll("li.turn").forEach((item, i) => {
    item.classList.toggle("faint", chosenRoom !== null && turns[i].memory?.locus?.room !== chosenRoom);
  });
}

const called = ({ room, name, shown }) => (shown && name ? name : `room ${room}`);

function door(room, most, isNow, column, row) {
  const item = element("li");
  item.style.gridArea = `${row} / ${column}`;
  const button = element("button", `room${isNow ? " now" : ""}${room.shown ? "" : " unnamed"}`);
  button.type = "button";
  button.dataset.room = room.room;
  button.style.setProperty("--full", `${Math.round(6 + (34 * room.memories.length) / most)}%`);
  button.setAttribute("aria-pressed", chosenRoom === room.room);
  button.append(element("span", "", called(room)), loci(room.memories));
  const count = room.memories.length === 1 ? "1 memory" : `${room.memories.length} memories`;
  button.setAttribute("aria-label", `${called(room)}, ${count}${isNow ? ", where the talk is" : ""}`);
  button.title = room.shown ? `${called(room)}: ${count}` : `${count}; what this room is about is not shown`;
  button.addEventListener("click", () => {
    chosenRoom = chosenRoom === room.room ? null : room.room;
    palace();
    const last = turns.findLastIndex((turn) => turn.memory?.locus?.room === room.room);
    if (chosenRoom !== null) list.querySelectorAll("li.turn")[last]?.scrollIntoView({ block: "center" });
  });
  item.append(button);
  return item;
}

// A dot a memory, in the order of their places; the more it tells, the larger.
function loci(memories) {
  const drawing = shape("svg", { class: "loci", viewBox: `0 0 ${LOCI_SHOWN * 8} 8`, preserveAspectRatio: "xMinYMid meet", "aria-hidden": "true" });
  drawing.append(...memories.slice(-LOCI_SHOWN).map(({ salience }, i) => shape("circle", { cx: i * 8 + 4, cy: 4, r: (1.2 + 2.4 * Math.sqrt(salience)).toFixed(2) })));
  return drawing;
}

function walk(kept) {
  const floor = byId("rooms");
  const [drawing, doors] = [byId("walk"), new Map([...floor.querySelectorAll(".room")].map((door) => [Number(door.dataset.room), door.parentElement]))];
  const steps = kept.map((turn) => turn.memory.locus.room).filter((room, i, rooms) => room !== rooms[i - 1]);
  const points = steps.map((room) => doors.get(room)).map((door) => `${floor.offsetLeft + door.offsetLeft + door.offsetWidth / 2},${door.offsetTop + door.offsetHeight / 2}`);
  drawing.setAttribute("width", floor.offsetLeft + floor.offsetWidth);
  drawing.setAttribute("height", floor.offsetHeight);
  drawing.firstElementChild.setAttribute("points", points.join(" "));
}

function shape(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function atEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
}

function toEnd() {
  scroller.scrollTop = scroller.scrollHeight;
  newest.hidden = true;
}

function show(turn) {
  const stay = !atEnd();
  const item = bubble(turn);
  item.classList.add("new");
  turns.push(turn);
  list.append(item);
  while (turns.length > TURNS_KEPT) {
    turns.shift();
    list.querySelector("li.turn").remove();
  }
  empty.hidden = true;
  byId("dream").hidden = false;
  draw();
  if (stay) newest.hidden = false;
  else toEnd();
}

function showPage(page) {
  turns = page;
  speakers = [];
  chosenRoom = null;
  list.replaceChildren(...turns.map(bubble));
  empty.hidden = turns.length > 0;
  forgetDream();
  draw();
  toEnd();
}

function note(text) {
  list.append(element("li", "note", text));
}

// What the path answers; `absent` if it is not there (yet).
async function read(path, absent) {
  const response = await fetch(path);
  if (response.status === 404 && absent) return absent;
  if (!response.ok) throw new Error(`${path} answers ${response.status}`);
  return response.json();
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Follows one conversation until another one is chosen.
async function follow(id) {
  const mine = ++generation;
  conversation = id;
  let wait = RETRY_FIRST_MS;
  let resume = null;
  while (mine === generation) {
    try {
      if (!resume) {
        const path = `/v1/conversations/${encodeURIComponent(id)}/turns?limit=100`;
        const page = await read(path, { turns: [], resume: null });
        if (mine !== generation) return;
        showPage(page.turns.reverse());
        resume = page.resume;
      }
      resume = await oneSocket(id, resume, mine, (ms) => { wait = ms; });
    } catch (error) {
      console.warn(error);
    }
    if (mine !== generation) return;
    say("lost", "connection lost, coming back");
    await pause(wait);
    wait = Math.min(wait * 2, RETRY_LONGEST_MS);
  }
}

// One connection from start to end; gives the newest token, or null if the page must be read anew.
function oneSocket(id, resume, mine, alive) {
  return new Promise((done) => {
    const query = new URLSearchParams({ conversation: id });
    if (resume) query.set("resume", resume);
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/v1/stream?${query}`);
    let token = resume;
    stopSocket = () => socket.close();
    socket.onmessage = ({ data }) => {
      if (mine !== generation) return socket.close();
      const message = JSON.parse(data);
      token = message.resume || token;
      // A server that goes down says when to come back, to each client another moment.
      alive(message.type === "reconnect" ? message.retry_ms : RETRY_FIRST_MS);
      if (message.type === "turn") {
        show(message.turn);
        say("live", "live");
      } else if (message.type === "following" && message.recovered === false) {
        // More was said meanwhile than could be sent again: the page of history has it.
        token = null;
        socket.close();
      } else if (message.type === "following") {
        say("live", "live");
      } else if (message.type === "gap") {
        note(`Turns ${message.after + 1} to ${message.next - 1} are missing.`);
        say("gap", "live, with a gap");
      } else if (message.type === "error") {
        console.warn(message.code, message.message);
      }
    };
    socket.onclose = () => done(token);
  });
}

let stopSocket = () => {};

function choose(id) {
  stopSocket();
  location.hash = encodeURIComponent(id);
  say("connecting", "connecting");
  follow(id);
}

// Keeps the list of conversations; follows the latest one until somebody has chosen.
async function keepList() {
  for (;;) {
    try {
      const { conversations } = await read("/v1/conversations?limit=100");
      const ids = conversations.map((entry) => entry.conversation);
      if (conversation !== null && !ids.includes(conversation)) ids.unshift(conversation);
      if (ids.length) {
        const shown = [...select.options].map((option) => option.value);
        if (ids.join("\n") !== shown.join("\n") && document.activeElement !== select) {
          select.replaceChildren(...ids.map((id) => new Option(id, id)));
          select.disabled = false;
        }
        if (conversation === null) choose(ids[0]);
        if (document.activeElement !== select) select.value = conversation;
      } else {
        say("connecting", "waiting for the first conversation");
      }
    } catch (error) {
      console.warn(error);
      if (conversation === null) say("lost", "connection lost, coming back");
    }
    await pause(conversation === null ? 1000 : LIST_EVERY_MS);
  }
}

addEventListener("resize", palace);
byId("palace").addEventListener("toggle", palace);
select.addEventListener("change", () => { select.blur(); choose(select.value); });
newest.addEventListener("click", toEnd);
byId("dream-button").addEventListener("click", dream);
scroller.addEventListener("scroll", () => {
  scroller.classList.toggle("beneath", scroller.scrollTop > 4);
  if (atEnd()) newest.hidden = true;
});

if (location.hash.length > 1) {
  try { choose(decodeURIComponent(location.hash.slice(1))); } catch (error) { console.warn(error); }
}
keepList();
