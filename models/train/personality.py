"""What writing says of its writer: word categories weighted by published correlations, and the style of replies.

Promises: nothing is trained on essays, and no table that came from essays is used. The weight of a category for a trait is
its correlation in Yarkoni (2010), "Personality in 100,000 words", 694 bloggers; the word lists are this project's own. How
much categories vary between people, and how much a person varies from turn to turn, is measured on BYU chit-chat. Formality
and warmth are fitted on the replies of Microsoft's personality chat. Deterministic. The program's own code computes the same
(processors/src/model/personality.rs).
"""

import hashlib
import json
import re

import numpy as np
from safetensors.numpy import save_file

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
PERSONAS = ("friendly", "humorous", "professional")
SURFACE, LONG_LETTERS, VERBOSITY_WORDS, PACE_WORDS = 4, 7, 20, 10
# People of the reference: senders of a chat with this many words.
REFERENCE_WORDS = 400
HELD = 4
# Ridge weight of the style's logistic regressions.
STYLE_C = 1.0

_I = "i i'm i've i'd i'll me my mine myself im ive"
_WE = "we we're we've we'd we'll us our ours ourselves let's lets"
_YOU = "you you're you've you'd you'll your yours yourself u ur"
_OTHERS = "he she they him her them his hers their theirs he's she's they're himself herself themselves"
_POSITIVE = ("love* happy happi* joy* glad great good nice wonderful awesome amazing fun enjoy* excit* beautiful best better laugh* "
             "smile* sweet thank* hope* hopeful* proud cool fantastic perfect lucky delight* pleas* blessed bless cheer* comfort* "
             "grateful relax* fine win winning")
_ANGER = ("hate* angry anger* annoy* mad furious rage* irritat* frustrat* stupid kill* fight* idiot* rude jerk* pissed disgust* "
          "argue* blame* resent* hostile yell* scream* cruel")
_ANXIETY = ("worr* anxious anxiet* nervous* afraid scared scar* fear* stress* panic* tense tension overwhelm* uneasy pressure* "
            "dread* insecur* paranoi* embarrass* shy doubt* uncertain* terrif* upset* confus*")
_SAD = ("sad sadd* depress* cry cries cried crying lonely lonel* alone miss missed missing hurt* lost lose loss grief griev* "
        "hopeless* unhappy tears miserabl* fail* regret* disappoint* sorry guilt* heartbr* homesick")
_NEGATIVE = f"{_ANGER} {_ANXIETY} {_SAD} " + (
    "bad worse worst awful terrible horrible sick* ugly wrong problem* trouble* weird damn* fuck* shit* boring bored lazy tired "
    "difficult* hard weak*")

# A star stands for any ending.
WORDS = {
    "achieve": "achiev* work* success* goal* effort* finish* accomplish* earn* plan* improve* better best win* try* tried complete* "
               "ambition* study* studi* organiz* practice* prepar* homework",
    "affect": f"{_POSITIVE} {_NEGATIVE}",
    "anger": _ANGER,
    "anxiety": _ANXIETY,
    "article": "a an the",
    "assent": "yes yeah yea yep ok okay alright uh-huh cool sure",
    "body": "body eat* ate food* sleep* slept tired sick* pain* head* hand* eye* heart* skin* hungry stomach* hair headache*",
    "causation": "because cause* since why hence reason* therefore thus effect* result* make makes made",
    "certain": "always never absolutely definitely certain* sure totally completely every everything must truly obvious* clear* fact forever",
    "cognitive": "think* thought* know* knew believe* understand* realiz* reason* because cause* wonder* consider* idea* mean* meaning "
                 "sense perhaps question* decid* decision* analy*",
    "death": "dead death* die dies died dying kill* funeral* grave* murder* suicid* war",
    "discrepancy": "should would could ought wish* want* need* must if hope* expect* lack* regret*",
    "exclusive": "but without except exclud* unless whether rather instead either versus just only however although though",
    "family": "family families mom mother* mommy dad father* daddy parent* sister* brother* aunt* uncle* cousin* grand* son daughter* "
              "wife husband* kid kids baby",
    "feel": "feel* felt touch* warm* cold hot soft hard hold* held hand* rough smooth cool itch* pain*",
    "friend": "friend* buddy buddies pal pals roommate* neighbor* neighbour* boyfriend* girlfriend* lover* date",
    "hear": "hear* heard listen* sound* loud* noise* noisy music* talk* said say says voice* song* quiet* ring* call*",
    "home": "home house* room* bed kitchen* bathroom* apartment* dorm* door* clean* laundry family rent furniture couch",
    "humans": "people person man men woman women boy* girl* guy guys kid kids child children adult* baby babies human* lady ladies "
              "someone everyone",
    "i": _I,
    "inclusive": "and with together both also include* plus we each",
    "ingest": "eat* ate food* lunch dinner breakfast hungry drink* drank beer coffee pizza cook* meal* restaurant* tea cake chocolate "
              "chicken cheese snack* dessert*",
    "leisure": "music* movie* tv television* game* play* band* song* sing* danc* watch* book* read* sport* football* guitar* concert* "
               "vacation* travel* party parties shop* beach run* gym* bike* swim*",
    "money": "money* cash pay* paid dollar* buy* bought cost* price* rent* bill bills bank* rich poor job* salary",
    "motion": "go goes going went come* came walk* run* drive* drove move* moved travel* fly trip* arrive* leave* left",
    "negation": "no not never none nobody nothing neither nor cannot can't cant don't dont didn't didnt doesn't doesnt isn't isnt wasn't "
                "wasnt won't wont wouldn't wouldnt couldn't couldnt shouldn't aren't weren't haven't havent hasn't hadn't ain't nope",
    "negative": _NEGATIVE,
    "number": "one two three four five six seven eight nine ten hundred* thousand* million* first second third half twenty thirty dozen*",
    "past": "was were had did went came said got thought knew felt saw made took been used told left found gave",
    "positive": _POSITIVE,
    "preposition": "about above across after against along among around at before behind below beneath beside between beyond by despite "
                   "during except for from in inside into near of off on onto out outside over past since through throughout to toward "
                   "towards under until up upon with within without",
    "present": "is am are do does have has go get want need feel see know think like say make come i'm it's that's",
    "pronoun": f"{_I} {_WE} {_YOU} {_OTHERS} it it's its itself this that that's these those something someone anyone anything everything "
               "everybody nobody who which what",
    "religion": "god church* pray* jesus christ* bible* faith* religio* spirit* heaven* lord bless*",
    "sad": _SAD,
    "see": "see sees seen seeing saw look* watch* view* eye* stare* bright* dark* light* color* colour* picture* show*",
    "sexual": "sex* kiss* lust* naked horny sexy love lover* gay",
    "social": "talk* friend* people person party parties call* phone everyone everybody together meet* met roommate* group* guy* guys girl* "
              "boyfriend* girlfriend* date* dating visit* hang chat* social* join* invite* tell* told said say share* team*",
    "space": "in on around over up down above under outside inside here there where place* near far big* large* wide high low",
    "swear": "fuck* shit* damn* hell ass asshole* bitch* crap* bastard* piss* suck sucks sucked dick* whore* bullshit goddamn*",
    "tentative": "maybe perhaps might possibl* probab* guess* seem* kind sort somewhat almost unsure depend* hopefully apparent* supposed",
    "time": "time today tomorrow yesterday now later soon week* day days month* year* hour* minute* morning* night* when until before after "
            "while clock schedule* early late weekend* ago",
    "we": _WE,
    "work": "work* job* boss* office* career* busy project* class* school* study* studi* homework exam* test tests college* grade* paper "
            "papers assign* business* employ* meeting*",
    "you": _YOU,
}
CATEGORIES = tuple(sorted(WORDS))
# Yarkoni 2010, word categories and the Big Five of 694 bloggers, correlations with p < .05, times 100.
CORRELATIONS = {
    "openness": {"pronoun": -21, "i": -16, "we": -10, "you": -12, "negation": -13, "assent": -11, "article": 20, "affect": -12, "positive": -15,
                 "discrepancy": -12, "hear": -8, "social": -14, "family": -17, "time": -22, "space": -11, "motion": -22, "leisure": -17,
                 "home": -20, "death": 15, "ingest": -15, "preposition": 17, "cognitive": -9, "past": -16, "present": -16, "humans": -9,
                 "inclusive": -11},
    "conscientiousness": {"negation": -17, "negative": -18, "anger": -19, "sad": -11, "causation": -12, "discrepancy": -13, "tentative": -10,
                          "certain": -10, "hear": -12, "time": 9, "achieve": 14, "death": -12, "swear": -14, "cognitive": -11, "humans": -12,
                          "exclusive": -16},
    "extraversion": {"we": 11, "you": 16, "number": -12, "positive": 10, "causation": -9, "tentative": -11, "certain": 10, "hear": 12,
                     "social": 15, "friend": 15, "family": 9, "work": -8, "achieve": -9, "leisure": 8, "religion": 11, "body": 10,
                     "sexual": 17, "humans": 13, "inclusive": 9},
    "agreeableness": {"pronoun": 11, "we": 18, "number": 11, "positive": 18, "negative": -15, "anger": -23, "causation": -11, "see": 9,
                      "feel": 10, "social": 13, "friend": 11, "family": 19, "time": 12, "space": 16, "motion": 14, "leisure": 15, "home": 19,
                      "money": -11, "death": -13, "body": 9, "sexual": 8, "swear": -21, "past": 10, "inclusive": 18},
    "neuroticism": {"i": 12, "you": -15, "negation": 11, "article": -11, "negative": 16, "anxiety": 17, "anger": 13, "sad": 10, "causation": 11,
                    "discrepancy": 13, "tentative": 12, "certain": 13, "feel": 10, "friend": -8, "space": -9, "swear": 11, "cognitive": 13,
                    "exclusive": 10},
}
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def write_words(path):
    """The lists as the program reads them."""
    lists = [{"name": name, "words": WORDS[name].split()} for name in CATEGORIES]
    path.write_text(json.dumps(lists, indent=1) + "\n")


class Lists:
    def __init__(self):
        self.whole, self.beginnings, self.known = {}, {}, {}
        for place, name in enumerate(CATEGORIES):
            for word in WORDS[name].split():
                (self.beginnings if word.endswith("*") else self.whole).setdefault(word.rstrip("*"), set()).add(place)

    def of(self, word):
        if word not in self.known:
            found = set(self.whole.get(word, ()))
            for n in range(3, len(word) + 1):
                found |= self.beginnings.get(word[:n], set())
            self.known[word] = sorted(found)
        return self.known[word]

    def counts(self, text):
        """(words, counts of the categories and of the surface, sentences)."""
        words, counts = _WORD.findall(text.lower().replace("\u2019", "'")), np.zeros(len(CATEGORIES) + SURFACE, np.float32)
        for word in words:
            for place in self.of(word):
                counts[place] += 1
        surface = [sum(len(w) >= LONG_LETTERS for w in words), sum("'" in w for w in words), text.count("!"), text.count("?")]
        counts[len(CATEGORIES):] = surface
        sentences = sum(bool(s.strip()) for s in re.split(r"[.!?\n]", text))
        return len(words), counts, max(sentences, 1)


def inputs_of(lists, texts, vectors):
    """(words, what a head reads, sentences) of texts."""
    counted = [lists.counts(t) for t in texts]
    words = np.array([c[0] for c in counted])
    rates = np.array([c[1] for c in counted]) / np.maximum(words, 1)[:, None]
    return words, np.concatenate([rates, vectors], 1), np.array([c[2] for c in counted])


def directions(items, vectors, pull=1.0):
    """For each trait a direction in the encoder's space: ridge regression of the keys of the IPIP-NEO-120 items on their vectors."""
    centred, out = vectors - vectors.mean(0), []
    for domain in "OCEAN":
        key = np.array([(1.0 if i["keyed"] == "plus" else -1.0) if i["domain"] == domain else 0.0 for i in items])
        out.append(np.linalg.solve(centred.T @ centred + pull * np.eye(vectors.shape[1]), centred.T @ key))
    return np.array(out)


def item_texts(items):
    """Items as somebody would say them."""
    return [f"I {i['text'][0].lower()}{i['text'][1:]}." for i in items]


def people(rows, most):
    """The messages of the first senders with enough words, a list each."""
    out = []
    for row in rows:
        for sender in ("A", "B"):
            said = [m[2] for m in row["m"] if m[0] == sender and m[2].strip()]
            if sum(len(m.split()) for m in said) >= REFERENCE_WORDS and len(out) < most:
                out.append(said)
    return out


def means(scores, words, owner, count):
    out, total = np.zeros((count, scores.shape[1])), np.zeros(count)
    np.add.at(out, owner, scores * words[:, None])
    np.add.at(total, owner, words)
    return out / np.maximum(total, 1)[:, None]


# How much the items' directions weigh beside the words, chosen on dev from 0, 0.25, 0.5 and 1.
ITEMS_SHARE = 0.5


def fit_traits(inputs, words, owner, count, item_directions):
    """(weight [5, inputs], bias [5]): words by their correlations and vectors by the items, each scaled to the people of the
    reference, so that their estimates have mean 0 and standard deviation 1."""
    average, width = means(inputs, words, owner, count), inputs.shape[1]
    spread = average.std(0) + 1e-6
    by_words, by_items = np.zeros((2, len(TRAITS), width))
    for t, trait in enumerate(TRAITS):
        for name, r in CORRELATIONS[trait].items():
            place = CATEGORIES.index(name)
            by_words[t, place] = r / spread[place]
    by_items[:, width - item_directions.shape[1]:] = item_directions
    weight = sum(share * (w / (average @ w.T).std(0)[:, None]) for share, w in ((1.0, by_words), (ITEMS_SHARE, by_items)))
    said = average @ weight.T
    weight /= said.std(0)[:, None]
    return weight, -(average @ weight.T).mean(0)


def spreads(scores, words, owner, count, turns_of_prior=10.0, quantile=1.2815516):
    """(spread, drift) of each trait: the variance of a person's turns, and by how much halves of the same person differ more
    than that says, so that 80 % of the people have their second half within the interval of the first."""
    at = np.array([np.flatnonzero(owner == p) for p in range(count)], dtype=object)
    sums = lambda rows: (np.sum(words[rows]), words[rows] @ scores[rows], words[rows] @ scores[rows] ** 2, np.sum(words[rows] ** 2.0), np.sum(words[rows] > 0))
    within = lambda s: np.maximum(s[2] / s[0] - (s[1] / s[0]) ** 2, 0)
    spread = np.mean([within(sums(rows)) for rows in at], 0)
    steps = []
    for rows in at:
        middle = np.searchsorted(np.cumsum(words[rows]), words[rows].sum() / 2)
        first, second = sums(rows[:middle]), sums(rows[middle:])
        if first[0] and second[0]:
            own = (within(first) * first[4] + spread * turns_of_prior) / (first[4] + turns_of_prior)
            expected = np.sqrt(2 * own * first[3] / first[0] ** 2)
            steps.append(np.abs(first[1] / first[0] - second[1] / second[0]) / expected)
    return spread, (np.quantile(np.array(steps), 0.8, axis=0) / quantile) ** 2


def replies_of(folder):
    """[(scenario, persona, reply)] of the published tables, in their order."""
    out = []
    for place, persona in enumerate(PERSONAS):
        path = folder / f"CSharp/Datasets/Scenario_Responses_{persona.capitalize()}.tsv"
        for line in path.read_text(encoding="utf-8-sig").splitlines()[1:]:
            scenario, reply = line.split("\t")[:2]
            out.append((scenario, place, reply.strip()))
    return out


def is_held(scenario):
    """Whether a scenario, with all its prompts, is kept for measuring."""
    return int.from_bytes(hashlib.sha256(scenario.encode()).digest()[:4], "big") % HELD == 0


def logistic(x, y, c=STYLE_C, rounds=25):
    """Weights and bias of a logistic regression with ridge weight 1/c on standardised inputs, classes of equal weight (Newton)."""
    mean, spread = x.mean(0), x.std(0) + 1e-3
    z = np.concatenate([(x - mean) / spread / np.sqrt(x.shape[1]), np.ones((len(x), 1))], 1)
    balance = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    w, ridge = np.zeros(z.shape[1]), np.append(np.full(x.shape[1], 1 / c), 1e-6)
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-z @ w))
        gradient = z.T @ (balance * (p - y)) + ridge * w
        hessian = (z * (balance * p * (1 - p))[:, None]).T @ z + np.diag(ridge)
        w -= np.linalg.solve(hessian, gradient)
    weight = w[:-1] / spread / np.sqrt(x.shape[1])
    return weight, w[-1] - weight @ mean


def measures(x, words, sentences, heads):
    """[texts, 4]: formality, warmth, verbosity, pace, as the program measures them."""
    learnt = [1 / (1 + np.exp(-(x @ w + b))) for w, b in heads]
    words = np.asarray(words, float)
    return np.stack([*learnt, 1 - np.exp(-words / VERBOSITY_WORDS), PACE_WORDS / (PACE_WORDS + words / sentences)], 1)


def style_heads(x, persona):
    """Formality sets the professional replies apart, warmth the friendly ones."""
    return [logistic(x, (persona == PERSONAS.index(name)).astype(float)) for name in ("professional", "friendly")]


def fit_style(x, words, sentences, scenarios, persona, folds=5):
    """(heads, personas [3, 2, 4]): mean and spread of each persona's replies, measured by heads that did not see them."""
    fold = np.array([hashlib.sha256(f"fold {s}".encode()).digest()[0] % folds for s in scenarios])
    unseen = np.zeros((len(x), 4))
    for f in range(folds):
        heads = style_heads(x[fold != f], persona[fold != f])
        unseen[fold == f] = measures(x[fold == f], words[fold == f], sentences[fold == f], heads)
    of = [unseen[persona == p] for p in range(len(PERSONAS))]
    return style_heads(x, persona), np.array([[m.mean(0), m.std(0) + 0.02] for m in of])


def build(texts, bank, items, said, replies, folder):
    """Fits and writes everything; `bank` maps a tier to the vectors of `texts`. Returns figures of the reference."""
    lists, place, measured = Lists(), {t: i for i, t in enumerate(texts)}, {}
    owner = np.concatenate([np.full(len(messages), p) for p, messages in enumerate(said)])
    at = np.array([place[m] for messages in said for m in messages])
    item_at = [place[t] for t in item_texts(items)]
    train = [(scenario, persona, reply) for scenario, persona, reply in replies if not is_held(scenario)]
    reply_at, persona = [place[r] for _, _, r in train], np.array([p for _, p, _ in train])
    tensors = {}
    for tier, vectors in bank.items():
        words, x, sentences = inputs_of(lists, texts, vectors)
        weight, bias = fit_traits(x[at], words[at], owner, len(said), directions(items, vectors[item_at]))
        spread, drift = spreads(x[at] @ weight.T + bias, words[at], owner, len(said))
        heads, personas = fit_style(x[reply_at], words[reply_at], sentences[reply_at], [s for s, _, _ in train], persona)
        values = {"weight": np.concatenate([weight, [w for w, _ in heads]]), "bias": np.concatenate([bias, [b for _, b in heads]]),
                  "spread": spread, "drift": drift, "personas": personas}
        tensors |= {f"{tier}.{name}": np.ascontiguousarray(value, np.float32) for name, value in values.items()}
        measured[tier] = {"drift": [round(float(d), 2) for d in drift]}
    write_words(folder / "words.json")
    save_file(tensors, f"{folder}/personality.safetensors")
    return {"people": len(said), "replies": len(train)} | measured


def golden(texts, vectors, folder, out):
    """A line a text: the words that are read, and the scores of the fast tier as the shipped file gives them."""
    from safetensors.numpy import load_file

    tensors = load_file(f"{folder}/personality.safetensors")
    words, x, sentences = inputs_of(Lists(), texts, vectors)
    linear = x @ tensors["fast.weight"].T + tensors["fast.bias"]
    heads = list(zip(tensors["fast.weight"][len(TRAITS):], tensors["fast.bias"][len(TRAITS):]))
    scores = np.concatenate([linear[:, :len(TRAITS)], measures(x, words, sentences, heads)], 1)
    with open(out, "w") as file:
        for text, n, row in zip(texts, words, scores):
            file.write(json.dumps({"text": text, "words": int(n), "scores": [round(float(s), 5) for s in row]}, ensure_ascii=False) + "\n")
