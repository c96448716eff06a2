"""What of a text is worth remembering, and what recall weighs how much; memory/README.md says how good it is.

Promises: fitted on class T alone. Recall: MemoryBank's probing questions, whose evidence was marked by hand (questions.json),
in conversations filled up to 500 turns with Synthetic-Persona-Chat; a softmax over all turns of a conversation, weights not
negative, with ridge. Salience: whether a turn of Synthetic-Persona-Chat states a line of its speaker's persona. Computes what
the program computes (processors/src/recall.rs, model/memory.rs). Leaves out: LoCoMo, which only measures.
"""

import collections
import datetime
import json
import math
import random
import re

import numpy as np
import snowballstemmer
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

STEMMER = snowballstemmer.stemmer("english")
STOP = ("a an the and or but so to of in on at for with from by as is are was were be been am i you he she it we they me him her us them my your "
        "his its our their this that these those do does did have has had can could will would shall should may might must not no yes ok okay oh "
        "well what who whom whose which where when why how there here if then than just very too also im youre theyre its thats dont didnt doesnt "
        "isnt wasnt cant wont ive youve ill youll id lets about up out some any all more like get got go going know think really s t").split()
TIMES = ("yesterday today tonight tomorrow last next ago week weekend month year years monday tuesday wednesday thursday friday saturday sunday "
         "january february march april may june july august september october november december recently since morning night").split()
# Words by hand beside those of WordNet (models/memory/README.md).
HAND = ("abort abortion abuse addict addiction allah allergy anemia anesthesia aneurysm anorexia antibiotic antidepressant anxiety arousal ballot bible biblical "
        "biopsy bipolar bisexual blasphemy breast bulimia catheter chemo chemotherapy christian clinic coma communion communist concussion condom congregation "
        "convent crucifix dementia democrat depression diabetes diabetic diagnose diagnosis disability disorder doctor drug eczema election epilepsy erection "
        "erotic fascist fertility gay gender genital god gospel herpes hiv homophobia horny hospital illness immigration infection infertile infertility insulin "
        "intercourse islam jesus jewish kidney kinky koran lesbian lgbt libido malaria masturbation medic medical medication medicine menopause menstrual mental "
        "migraine miscarriage mormon mosque muslim naked nude nudity nurse oncologist orgasm overdose panic paralysis parliament pastor penis pharmacy pill "
        "politics political porn pornographic pray pregnant prenatal prescribe prescription president presidential prophet prostitute psychiatric psychiatrist "
        "psychologist psychosis queer quran rabbi rape rehab religion religious repent republican rosary sabbath sacred salvation satanic savior schizophrenia "
        "schizophrenic seduce seizure senate senator sermon sex sexual sexuality sexy sick sickness sin sinner socialist sperm spiritual stroke suicide surgeon "
        "surgery symptom syndrome testosterone theology therapist therapy transgender transplant trauma traumatic trimester trump ulcer ultrasound unconscious "
        "vaccine vagina virgin virginity virus vote wheelchair worship").split()
# Senses of WordNet whose kinds (no instances) name rooms of health, sex, religion or politics, and words that these catch and that mean something else.
KINDS = ("disease.1 illness.1 mental_disorder.1 symptom.1 injury.1 pregnancy.1 medical_procedure.1 therapy.1 medicine.2 drug_of_abuse.1 medical_practitioner.1 hospital.1 "
         "hospital.2 addiction.1 patient.1 disability.1 sexual_activity.1 contraceptive.1 pornography.1 prostitute.1 sexual_desire.1 gay.1 lesbian.1 transsexual.1 "
         "religion.1 religion.2 religious_person.1 clergyman.1 place_of_worship.1 deity.1 sacred_text.1 religious_ceremony.1 prayer.1 worship.1 political_party.1 "
         "politician.1 political_orientation.1 election.1 vote.1 head_of_state.1 legislature.1").split()
WITHOUT = "alcohol.1"
NOT_MEANT = "king alex dm para ms duma tranquil dentist cigar cigarett tobacco siren aura cramp bloat frenzi vet veterinarian rick parti cold".split()
MONTHS = "january february march april may june july august september october november december".split()
BEFORE, AFTER, SATURATION, LENGTH, SPEAKING, ENOUGH = 0.5, 0.2, 0.9, 0.4, 3, 20
NAMES = ("words", "vector", "before", "after", "session_words", "session_vector", "speaker", "length", "time")
# How rooms grow: chosen on half a of models/rooms.py, in the program itself.
ROOMS = {"decay": 0.5, "words": 0.6, "stay": 0.0, "new": 0.6, "thin": 1, "room_decay": 0.9, "free": 1}
TURNS, SEEDS, RIDGE = 500, (1, 2, 3), 0.1
SELF = re.compile(r"\b(i|my|we|our|im|ive)\b")
YEAR = re.compile(r"\b(19|20)\d\d\b")
YOURS = re.compile(r"\b(did you|you (once |have )?(recommend|told|gave|given|shared|taught|suggest)\w*|have you|(advice|suggestions) did you)\b", re.I)


def terms(text):
    text = text.lower().replace("'", "").replace("\u2019", "")
    return [STEMMER.stemWord(w) for w in re.findall(r"[^\W_]+", text) if w not in STOP]


def rules(text):
    """Length, self, time: what the salience is made of."""
    low = text.lower()
    return [min(math.log1p(len(set(terms(text)))) / math.log1p(ENOUGH), 1.0), float(bool(SELF.search(low))),
            float(bool(set(re.findall(r"[^\W_]+", low)) & set(TIMES) or YEAR.search(low)))]


def fit_salience(chats):
    """Log-odds that a turn states a persona line, of held-out chats the area under the curve."""
    rows, labels = [], []
    for chat in chats:
        facts = {f"User {i}": [set(terms(line)) for line in chat[f"p{i}"].split("\n")] for i in (1, 2)}
        for line in chat["conversation"].split("\n"):
            who, _, text = line.partition(": ")
            if text and who in facts:
                said = set(terms(text))
                rows.append(rules(text))
                labels.append(max((len(said & fact) / len(fact) for fact in facts[who] if fact), default=0) >= 0.6)
    head = LogisticRegression(C=1.0).fit(np.array(rows), np.array(labels))
    length, of_self, of_time = (float(x) for x in head.coef_[0])
    return {"bias": float(head.intercept_[0]), "length": length, "enough": ENOUGH, "of_self": of_self, "of_time": of_time}


def bm25(weighted, own, k1, b):
    """A scorer over texts that are bags of weighted terms; `own` are the terms that a text has by itself."""
    count, df = len(weighted), collections.Counter(w for t in own for w in set(t))
    length = np.array([sum(t.values()) for t in weighted])
    mean = max(length.mean(), 1e-9)
    postings = collections.defaultdict(list)
    for i, bag in enumerate(weighted):
        for w, f in bag.items():
            postings[w].append((i, math.log(1 + (count - df[w] + .5) / (df[w] + .5)) * f * (k1 + 1) / (f + k1 * (1 - b + b * length[i] / mean))))

    def score(query):
        out = np.zeros(count)
        for w in set(query):
            for i, s in postings.get(w, ()):
                out[i] += s
        return out / max(out.max(), 1e-9)
    return score


def day(word):
    found = re.fullmatch(r"(\d{1,2})(st|nd|rd|th)?", word)
    return int(found[1]) if found and 1 <= int(found[1]) <= 31 else None


def asked(question):
    """Months, days and years that a question names."""
    words = re.findall(r"[^\W_]+", question.lower())
    months, days, years = [], [], []
    for i, w in enumerate(words):
        month = next((m for m, name in enumerate(MONTHS, 1) if w in (name, name[:3])), None)
        if month:
            near = [x for x in (words[i - 1] if i else None, words[i + 1] if i + 1 < len(words) else None) if x]
            if w != "may" or any(day(x) for x in near) or (i and words[i - 1] in ("in", "of", "on", "early", "late", "mid", "since")):
                months.append(month)
        if day(w):
            days.append(day(w))
        if w.isdigit() and 2000 <= int(w) < 2100:
            years.append(int(w))
    return months, days, years


def fits(when, at):
    months, days, years = when
    if not months:
        return 0.2 if at.year in years else 0.0
    if at.month not in months or (years and at.year not in years):
        return 0.3 if (at.month - 2) % 12 + 1 in months and at.day <= 10 else 0.0
    if not days:
        return 0.6
    away = [at.day - d for d in days]
    return 1.0 if min(map(abs, away)) <= 1 else 0.8 if any(0 <= d <= 7 for d in away) else 0.3


def features(talk, embed):
    """Of each question, [turns, scores] in the order of NAMES. A talk is {turns: [{s, sp, text, at}], qs: [{q, meant}]}."""
    turns = talk["turns"]
    session, count = np.array([t["s"] for t in turns]), len(turns)
    docs, weighted = [terms(t["text"]) for t in turns], []
    for i in range(count):
        bag = collections.Counter({w: 0.0 for w in ()})
        for j, weight in ((i, 1.0), (i - 1, BEFORE), (i - 2, BEFORE ** 2), (i + 1, AFTER)):
            if 0 <= j < count and session[j] == session[i]:
                for w in docs[j]:
                    bag[w] += weight
        weighted.append(bag)
    by_turn = bm25(weighted, docs, SATURATION, LENGTH)
    names = sorted(set(session))
    talked = [[w for i in np.flatnonzero(session == s) for w in docs[i]] for s in names]
    by_session = bm25([collections.Counter(t) for t in talked], talked, 1.2, 0.75)
    place = np.searchsorted(names, session)
    likeness = embed([q["q"] for q in talk["qs"]]) @ embed([t["text"] for t in turns]).T
    told = np.array([min(math.log1p(len(d)) / math.log1p(ENOUGH), 1.0) for d in docs])
    same = session[1:] == session[:-1]
    called = {STEMMER.stemWord(part) for t in turns for part in re.findall(r"[^\W_]+", t["sp"].lower())}
    out = []
    for q, cos in zip(talk["qs"], likeness):
        query = [w for w in terms(q["q"]) if w not in called]
        near = np.array([np.sort(cos[session == s])[-SPEAKING:].mean() for s in names])
        when = asked(q["q"])
        out.append(np.stack([by_turn(query), cos, np.r_[0, cos[:-1] * same], np.r_[cos[1:] * same, 0], by_session(query)[place], near[place],
                             np.array([float(t["sp"] == q["meant"]) for t in turns]), told, np.array([fits(when, t["at"]) for t in turns])], 1))
    return out


def fit_weights(talks, scores):
    """Weights, not negative, under which the evidence is likely among all turns of its conversation."""
    items = [(x, q["ev"]) for talk, xs in zip(talks, scores) for x, q in zip(xs, talk["qs"])]

    def loss(w):
        total, gradient = 0.0, np.zeros(len(w))
        for x, evidence in items:
            z = x @ w
            e = np.exp(z - z.max())
            total += z.max() + math.log(e.sum()) - z[evidence].mean()
            gradient += (e / e.sum()) @ x - x[evidence].mean(0)
        return total / len(items) + RIDGE * (w * w).sum(), gradient / len(items) + 2 * RIDGE * w
    return minimize(loss, np.zeros(len(NAMES)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(NAMES)).x


def probes(data, questions, chats, seed, fill=True):
    """MemoryBank's users with marked questions, each among foreign sessions of other days."""
    rng, out = random.Random(seed), []
    folder = data / "memorybank/eval_data/en"
    histories = {name.strip(): user["history"] for name, user in json.loads((folder / "memory_bank_en.json").read_text()).items()}
    asked_of = {}
    for line in (folder / "probing_questions_en.jsonl").read_text().splitlines():
        asked_of |= {name.strip(): qs for name, qs in json.loads(line).items()}
    for name, marked in questions.items():
        sessions, number = [], 0
        for date, exchanges in histories[name].items():
            said = [(number + i, who, text) for i, (who, text) in enumerate(x for e in exchanges for x in ((name, e["query"]), ("AI", e["response"])))]
            number += len(said)
            sessions.append((datetime.datetime.fromisoformat(date), said))
        size = number
        while fill and size < TURNS:
            lines = (line.partition(": ") for line in rng.choice(chats)["conversation"].split("\n"))
            said = [(None, name if who == "User 1" else "AI", text) for who, _, text in lines if text]
            sessions.append((datetime.datetime(2023, rng.choice([3, 4, 5, 6]), rng.randint(1, 28)), said))
            size += len(said)
        sessions.sort(key=lambda s: s[0])
        turns, place = [], {}
        for s, (date, said) in enumerate(sessions):
            for i, who, text in said:
                if i is not None:
                    place[i] = len(turns)
                turns.append({"s": s, "sp": who, "text": text, "at": date})
        qs = [{"q": q.strip('"'), "ev": [place[e] for e in evidence], "meant": "AI" if YOURS.search(q) else name}
              for q, evidence in zip(asked_of[name], marked) if evidence]
        out.append({"turns": turns, "qs": qs})
    return out


def sensitive(dict_folder):
    """Stems that name a room of health, sex, religion or politics: at least half of what SemCor counted of words with the stem, or
    where it counted none of their first senses, is of a sense of KINDS. `dict_folder` holds WordNet 3.1's files."""
    places = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
    below, order, count = collections.defaultdict(list), {}, {}
    lines = lambda name: (line for line in open(dict_folder / name, encoding="utf-8") if not line.startswith("  "))
    for name, pos in places.items():
        for line in lines(f"data.{name}"):
            fields = line.split(" | ")[0].split()
            at = 4 + 2 * int(fields[3], 16)
            for i in range(int(fields[at])):
                symbol, other, its = fields[at + 1 + 4 * i:at + 4 + 4 * i]
                if symbol == "@":
                    below[its, other].append((pos, fields[0]))
        for line in lines(f"index.{name}"):
            fields = line.split()
            order[pos, fields[0]] = fields[-int(fields[2]):]
    for line in lines("index.sense"):
        key, offset, _, times = line.split()
        lemma, rest = key.split("%")
        count["nvara"[int(rest[0]) - 1], lemma, offset] = int(times)
    sense = lambda name: ("n", order["n", name.split(".")[0]][int(name.split(".")[1]) - 1])
    found, ahead = set(), [sense(name) for name in KINDS]
    while ahead:
        here = ahead.pop()
        if here not in found and here != sense(WITHOUT):
            found.add(here)
            ahead += below[here]
    tally = collections.defaultdict(lambda: [0, 0, 0, 0])
    for (pos, lemma), offsets in order.items():
        if re.fullmatch("[a-z]+", lemma):
            of = tally[STEMMER.stemWord(lemma)]
            for rank, offset in enumerate(offsets):
                times, hit = count.get((pos, lemma, offset), 0), (pos, offset) in found
                of[0] += times * hit
                of[1] += times
                of[2] += hit and not rank
                of[3] += not rank
    stems = {s for s, (a, b, c, d) in tally.items() if (a > 0 and 2 * a >= b if b else c > 0 and 2 * c >= d)}
    return sorted((stems | {STEMMER.stemWord(word) for word in HAND}) - set(NOT_MEANT))


def build(data, embeds, questions, dict_folder, out):
    """Writes memory.json and sensitive.json: `embeds` maps a tier to texts -> vectors as they travel."""
    chats = [json.loads(line) for line in (data / "synthetic_persona_chat/dev.jsonl").read_text().splitlines()]
    rule = fit_salience(chats)
    recipe = {"stop": sorted(set(STOP)), "times": TIMES, "salience": rule}
    for tier, embed in embeds.items():
        drawn = []
        for seed in SEEDS:
            talks = probes(data, questions, chats, seed)
            drawn.append(fit_weights(talks, [features(t, embed) for t in talks]))
        recipe[tier] = dict(zip(NAMES, (round(float(w), 3) for w in np.mean(drawn, 0))))
        recipe[f"{tier}_rooms"] = ROOMS
    (out / "memory.json").write_text(json.dumps(recipe, indent=1) + "\n")
    (out / "sensitive.json").write_text(json.dumps({"stems": sensitive(dict_folder)}, indent=0) + "\n")
    return recipe


def meant(question, turns, asker):
    """Whose turns a question is about, as the program guesses it: the one speaker that it names, or who asks and says "I"."""
    words = set(re.findall(r"[^\W_]+", question.lower()))
    named = {t["sp"] for t in turns if words & set(re.findall(r"[^\W_]+", t["sp"].lower()))}
    return named.pop() if len(named) == 1 else asker if not named and words & {"i", "my", "me"} else None


def golden(data, embed, questions, out, path, texts=300, user="Lucy"):
    """Texts with their stems and salience; a user's whole history with the fast tier's score of each turn for each question."""
    chats = [json.loads(line) for line in (data / "synthetic_persona_chat/dev.jsonl").read_text().splitlines()]
    said = [text for chat in chats for _, _, text in (line.partition(": ") for line in chat["conversation"].split("\n")) if text]
    recipe, hidden = json.loads((out / "memory.json").read_text()), set(json.loads((out / "sensitive.json").read_text())["stems"])
    rule = recipe["salience"]
    with open(path, "w", encoding="utf-8") as file:
        for text in said[::max(1, len(said) // texts)][:texts]:
            length, of_self, of_time = rules(text)
            odds = rule["bias"] + rule["length"] * length + rule["of_self"] * of_self + rule["of_time"] * of_time
            row = {"text": text, "terms": terms(text), "salience": round(1 / (1 + math.exp(-odds)), 5), "sensitive": [w for w in terms(text) if w in hidden]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        talk = probes(data, {user: questions[user]}, chats, SEEDS[0], fill=False)[0]
        for q in talk["qs"]:
            q["meant"] = meant(q["q"], talk["turns"], user)
        weights = np.array([recipe["fast"][name] for name in NAMES])
        found = [{"question": q["q"], "scores": [round(float(s), 4) for s in x @ weights]} for q, x in zip(talk["qs"], features(talk, embed))]
        turns = [{"sender": t["sp"], "at": int(t["at"].replace(tzinfo=datetime.timezone.utc).timestamp() * 1000), "text": t["text"]} for t in talk["turns"]]
        file.write(json.dumps({"asker": user, "turns": turns, "questions": found}, ensure_ascii=False) + "\n")
