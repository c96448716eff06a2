"""Dialogue acts without an annotated corpus: rules label texts of many sets, a head learns them and more than the rules say.

Promises: trained on class T texts alone. The rules are what the four acts are defined by (inform, question, directive,
commissive); the head sees words and vectors, so that it carries over to wordings that no rule has. Question marks are taken
off half of the questions, so that the words count. Leaves out: DailyDialog, which only measures.
"""

import itertools
import re

import numpy as np

import intents

ACTS = ("inform", "question", "directive", "commissive")
INFORM, QUESTION, DIRECTIVE, COMMISSIVE = range(4)
EACH_MAX = 4000
SUGGEST = re.compile(r"^(please|let'?s|let us|why don'?t (we|you)|why not|how about|what about (we|you|going)|shall we|would you (please|mind|like to)|could you|can you|will you|can i have|could i have|may i have|i'?d like (to|you to|a|an|some|the)|i would like (to|you to)|i want (to|you to|a|an)|i need (to|you to|a|an)|you should|you'?d better|you had better|don'?t (worry|forget|be|you)|never mind|help me|tell me|give me|show me|come on|wait|hold on|try|take|go|get|bring|call|look at|follow|put|turn|set|play|remind|make|add|remove|send|book|find|check|cancel|order|change|open|close|stop|start)\b", re.I)
ACCEPT = re.compile(r"^(ok(ay)?|sure|all right|alright|no problem|of course|certainly|absolutely|yes,? (please|sure|of course|i will|i can|let'?s)|i'?ll|i will|i'?d (love|be (glad|happy))|sounds (good|great)|that sounds (good|great)|great,? let'?s|good idea|deal|fine,? |you got it|will do|i promise|let me|i can do that|i'?m (afraid|sorry),? (i )?can'?t|no,? thank(s| you)|i would love to|with pleasure|my pleasure|not at all)\b", re.I)
ASK = re.compile(r"^(so |and |but |well,? |oh,? |hey,? |um,? )*(what|who|whom|whose|which|where|when|why|how|is|are|was|were|do|does|did|have|has|had|can|could|would|will|shall|should|may|might|am|isn'?t|aren'?t|don'?t you|doesn'?t|didn'?t|any)\b", re.I)

# How much a sign that speaks for a question, or against it, moves its log-odds.
SIGN = 4.0
FILLERS = frozenset("so and but well oh hey um".split())
OPENERS = frozenset("what who whom whose which where when why how is are was were do does did have has had can could would will shall should may "
                    "might am any isnt arent doesnt didnt whats".split())


def signs(text):
    """1 with a question mark at the end; without any, -1 where no word opens a question, and -2 of "what a", which exclaims; else 0."""
    if text.rstrip(" \t\r\n\"'").endswith("?"):
        return 1
    words = itertools.dropwhile(lambda word: word.rstrip(",") in FILLERS, text.lower().split())
    letters = re.match("[a-z']*", next(words, "")).group()
    if "?" in text:
        return 0
    if letters.split("'")[0] not in OPENERS and letters.replace("'", "") not in OPENERS:
        return -1
    return -2 if letters == "what" and next(words, "") in ("a", "an") else 0


def adjusted(p, texts):
    """Probabilities of the acts with what signs say."""
    p = p.astype(np.float64)
    p[:, QUESTION] *= np.exp([SIGN * signs(t) for t in texts])
    return p / p.sum(1, keepdims=True)


def rule(text):
    """The act that the wording shows, or None."""
    text = text.strip()
    marked = text.rstrip(' "\'').endswith("?")
    if SUGGEST.match(text):
        return DIRECTIVE
    if marked:
        return QUESTION
    if ACCEPT.match(text):
        return COMMISSIVE
    if ASK.match(text):
        return None
    return INFORM if len(text.split()) >= 2 else None


def texts_of(data):
    """Texts of many kinds, in an order that is always the same."""
    found = []
    for row in intents.lines(data / "star/train.jsonl.gz"):
        found += [e["Text"] for e in row["events"] if e.get("Text") and e.get("Agent") in ("User", "Wizard")]
    found += [m[2] for row in intents.lines(data / "byu_chitchat/train.jsonl.gz") for m in row["m"]]
    for row in intents.lines(data / "synthetic_persona_chat/dev.jsonl"):
        found += [line.split(": ", 1)[-1] for line in row["conversation"].split("\n")]
    for name in ("clinc150", "hwu64"):
        found += [text for text, _ in intents.texts_of(data, name)["train"]]
    return sorted({t.strip() for t in found if 2 < len(t.strip()) < 250})


def labelled(data):
    """[(text, act)]: at most EACH_MAX of each act, spread evenly over what was found."""
    by = [[] for _ in ACTS]
    for text in texts_of(data):
        act = rule(text)
        if act is not None:
            by[act].append(text)
    rows = []
    for act, texts in enumerate(by):
        chosen = texts[::max(1, len(texts) // EACH_MAX)][:EACH_MAX]
        rows += [(t.rstrip(" ?") if act == QUESTION and i % 2 else t, act) for i, t in enumerate(chosen)]
    # Requests of the intent sets are written without question marks: what begins as a question is one.
    asked = sorted({t for name in intents.SETS for t, _ in intents.texts_of(data, name)["train"] if rule(t) is None and ASK.match(t)})
    rows += [(t, QUESTION) for t in asked[::max(1, len(asked) // EACH_MAX)][:EACH_MAX]]
    return [(t, a) for t, a in rows if t]


def train(rows, bank, folder, say=print):
    texts, y = [t for t, _ in rows], np.array([a for _, a in rows])
    for tier in ("full", "fast"):
        x, f = bank.of(texts, tier)
        head = intents.fit_head(x, f, y, len(ACTS), tier)
        head.write(f"{folder}/acts.{tier}.safetensors")
        say(f"acts {tier}: {float((head.probabilities(x, f).argmax(1) == y).mean()):.3f} of its own {len(y)} texts")
