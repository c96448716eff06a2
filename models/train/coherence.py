"""How a turn goes on from the turns before it, and whether it begins another topic; coherence/README.md says how good it is.

Promises: trained on class T dialogues alone (Synthetic-Persona-Chat, BYU chit-chat, STAR, TIAGE train, MultiDoGO train),
from the vectors as they travel; one seed, so many steps, one thread: the same processor gives the same files. Coherence is
learnt from dialogues held against the same turns in another order and against copies with a foreign turn; topics from
TIAGE's labels and from dialogues spliced together. Thresholds are set on dialogues that were not trained on. The program's
own code computes the same (processors/src/model/coherence.rs). Leaves out: DailyDialog and DialSeg711, which only measure.
"""

import json
import math
import random
import re

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

import intents

BUCKETS, BAG, ROLE, HIDDEN, SCALARS, WORDS_MAX, STEM, TERMS_MAX = 1 << 13, 32, 32, 48, 13, 24, 5, 32
DECAY, RECENT, EARLIER, LONG = 0.7, 8, 3, 3.0
SIDES, WORD_SIDES, NEAR, TURNS_MIN = (1, 2, 3, 5), (2, 4), 2, 2
SEED, STEPS, BATCH, SPLICED = 1, 1500, 20, 10
CHATS, TASKS, CUSTOMERS, HELD, HELD_TIAGE = 1500, 1500, 1200, 100, 60
CHAT_WEIGHT = 1.5
MARKED, FOLDS, PAIR_STRENGTH, PAIR_ITERATIONS = 5, 4, 0.3, 60
RATES, WEIGHT_DECAY = {"grams": 1e-2, "rest": 3e-3}, 0.3
DROP = {"vector": 0.5, "words": 0.6, "hidden": 0.4}
TOKEN = re.compile(rb"[a-z0-9]+|[?!.]")
STOP = ("a an the and or but so to of in on at for with from by as is are was were be been am i you he she it we they me him her us them my your "
        "his its our their this that these those do does did have has had can could will would shall should may might must not no yes ok okay oh "
        "well what who whom whose which where when why how there here if then than just very too also im youre theyre its thats dont didnt doesnt "
        "isnt wasnt cant wont ive youve ill youll id lets about up out some any all more like get got go going know think really s t").split()


# What is read of texts.

def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def tokens(text):
    return TOKEN.findall(text.encode().lower().replace(b"'", b"").replace("\u2019".encode(), b""))


def buckets(text):
    """Each word, each with the one before it, and the last with the end."""
    words = tokens(text)
    if len(words) > WORDS_MAX:
        words = words[:WORDS_MAX // 2] + words[-(WORDS_MAX // 2):]
    found, before = [], b"^"
    for word in words:
        found += [word, before + b" " + word]
        before = word
    if words:
        found.append(before + b" $")
    return [(fnv(gram) >> 20) % BUCKETS for gram in found]


def terms(text):
    stop = set(STOP)
    words = {t[:STEM] for t in tokens(text) if t not in (b"?", b"!", b".") and t.decode() not in stop}
    return sorted({fnv(w) & 0x7FFFFFFF for w in words})[:TERMS_MAX]


def overlap(one, other):
    both = len(one & other) if one and other else 0
    return both / math.sqrt(len(one) * len(other)) if both else 0.0


# Dialogues: lists of (speaker, text).

def dialogues(data):
    """{source: [dialogue]} of class T, drawn evenly; TIAGE's with its labels beside."""
    lines = lambda path: intents.lines(data / path)

    def drawn(rows):
        random.Random(SEED).shuffle(rows)
        return rows

    chats, tasks = drawn(lines("byu_chitchat/train.jsonl.gz")), drawn(lines("star/train.jsonl.gz"))
    said = lambda e: e.get("Text") and e["Agent"] in ("User", "Wizard") and e["Action"] in ("utter", "pick_suggestion")
    customers = {}
    for row in lines("multidogo/train.jsonl.gz"):
        customers.setdefault(row["dialogue"], []).append(("A", row["text"]))
    customers = drawn(list(customers.values()))
    persona = [[tuple(line.split(": ", 1)) for line in row["conversation"].split("\n") if ": " in line]
               for row in lines("synthetic_persona_chat/dev.jsonl")]
    found = {"persona": persona, "chat": [[(who, text) for who, _, text in row["m"]] for row in chats[:CHATS]],
             "task": [[("A" if e["Agent"] == "User" else "B", e["Text"]) for e in row["events"] if said(e)] for row in tasks[:TASKS]],
             "customer": customers[:CUSTOMERS]}
    found = {name: [d for d in all if len(d) >= 4] for name, all in found.items()}
    tiage = lines("tiage/train.jsonl")
    found["tiage"] = [[("AB"[i % 2], t["text"]) for i, t in enumerate(row["turns"])] for row in tiage]
    return found, [[t["shift"] for t in row["turns"]] for row in tiage]


class Bank:
    """What the texts have, by their number."""

    def __init__(self, texts, vectors):
        self.number = {t: i for i, t in enumerate(texts)}
        self.vectors = torch.tensor(vectors)
        grams = [buckets(t) for t in texts]
        self.counts = torch.tensor([len(g) for g in grams])
        self.starts = torch.cat([torch.zeros(1, dtype=torch.long), self.counts.cumsum(0)])
        self.grams = torch.tensor([g for gs in grams for g in gs], dtype=torch.long)
        self.terms = [frozenset(terms(t)) for t in texts]

    def turns(self, dialogue):
        """(numbers of the texts, whether the speaker spoke before)."""
        who = [w for w, _ in dialogue]
        return [self.number[t] for _, t in dialogue], [float(i > 0 and who[i] == who[i - 1]) for i in range(len(who))]


def pairs(vectors):
    """What the linear model of pairs reads: of each turn but the first, it and the one before."""
    now, last = vectors[1:], vectors[:-1]
    return np.concatenate([now, last, np.abs(now - last), now * last], 1)


def fit_pairs(bank, dialogues, shifts):
    """[FOLDS + 1, 4 * dimensions + 1]: log-odds of a labelled shift without the dialogues of each fold, and from all of them."""
    vectors, rows = bank.vectors.numpy(), []
    for number, ((texts, _), labels) in enumerate(zip(dialogues, shifts)):
        rows += [(number % FOLDS, x, y) for x, y in zip(pairs(vectors[texts]), labels[1:]) if y is not None]
    fold, x, y = np.array([f for f, _, _ in rows]), np.stack([x for _, x, _ in rows]), np.array([y for _, _, y in rows])
    found = []
    for left_out in range(FOLDS + 1):
        w, b = intents.fit(x[fold != left_out], y[fold != left_out], 2, PAIR_STRENGTH, PAIR_ITERATIONS)
        found.append(np.append(w[:, 1] - w[:, 0], b[1] - b[0]))
    return torch.tensor(np.array(found, np.float32))


def batch(bank, items):
    """Texts, speaker and words of dialogues, filled up to one length, and which turns are there."""
    length = max(len(numbers) for numbers, _ in items)
    numbers, beside, there = np.zeros((len(items), length), np.int64), np.zeros((len(items), length, 3), np.float32), np.zeros((len(items), length), np.float32)
    for row, (texts, same) in enumerate(items):
        n, words = len(texts), [bank.terms[t] for t in texts]
        numbers[row, :n], there[row, :n], beside[row, :n, 0] = texts, 1, same
        for t in range(1, n):
            beside[row, t, 1] = overlap(words[t], words[t - 1])
            beside[row, t, 2] = max((overlap(words[t], words[k]) for k in range(max(0, t - 1 - EARLIER), t - 1)), default=0.0)
    return torch.tensor(numbers), torch.tensor(beside), torch.tensor(there)


class Model(nn.Module):
    def __init__(self, bank, pair):
        super().__init__()
        self.bank, self.pair = bank, pair
        self.grams = nn.Embedding(BUCKETS, BAG)
        nn.init.normal_(self.grams.weight, std=0.1)
        self.projection = nn.Linear(bank.vectors.shape[1] + BAG, 4 * ROLE)
        self.hidden, self.out = nn.Linear(5 * ROLE + SCALARS, HIDDEN), nn.Linear(HIDDEN, 2)
        self.drop = nn.ModuleDict({name: nn.Dropout(share) for name, share in DROP.items()})

    def roles(self, numbers):
        met, place = torch.unique(numbers.reshape(-1), return_inverse=True)
        counts, bank = self.bank.counts[met], self.bank
        rows = torch.repeat_interleave(torch.arange(len(met)), counts)
        within = torch.arange(len(rows)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        grams = bank.grams[bank.starts[met][rows] + within]
        bag = torch.zeros(len(met), BAG).index_add(0, rows, self.grams(grams)) / counts.clamp(min=1).sqrt()[:, None]
        return self.projection(torch.cat([self.drop["vector"](bank.vectors[met]), self.drop["words"](bag)], -1))[place].reshape(*numbers.shape, -1)

    def paired(self, v, fold):
        """Log-odds of the linear model of pairs, without the dialogues of a fold, 0 of the first turn."""
        w, last = self.pair[fold], v[:, :-1]
        now, d = v[:, 1:], v.shape[-1]
        parts = [now, last, (now - last).abs(), now * last]
        odds = sum((part * w[:, None, i * d:(i + 1) * d]).sum(-1) for i, part in enumerate(parts)) + w[:, None, -1]
        return F.pad(odds, (1, 0))

    def scalars(self, numbers, beside, fold=None):
        n, length = numbers.shape
        v = self.bank.vectors[numbers]
        products = v @ v.transpose(1, 2)
        place = torch.arange(length)
        lag = place[:, None] - place[None, :]
        near = (lag > 0) & (lag <= RECENT)
        weight = torch.where(near, DECAY ** (lag - 1).clamp(min=0).float(), torch.zeros(()))
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-9)
        back = lambda k: F.pad(torch.diagonal(products, -k, 1, 2), (k, 0)) if length > k else torch.zeros(n, length)
        largest = torch.where(near, products, torch.full((), -2.0)).amax(-1)
        at = place.float().expand(n, length)
        columns = [back(1), back(2), back(3), (products * weight).sum(-1), (products * products * weight).sum(-1),
                   torch.where(place > 0, largest, torch.zeros(())), (at == 0).float(), (at == 1).float(),
                   torch.log1p(at).clamp(max=LONG) / LONG, beside[..., 0], beside[..., 1], beside[..., 2],
                   self.paired(v, torch.full((n,), FOLDS) if fold is None else fold)]
        return torch.stack(columns, -1)

    def forward(self, numbers, beside, fold=None):
        length = numbers.shape[1]
        now, last, before, context = self.roles(numbers).split(ROLE, -1)
        lag = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        weight = torch.where(lag > 0, DECAY ** (lag - 1).clamp(min=0).float(), torch.zeros(()))
        mean = (weight / weight.sum(1, keepdim=True).clamp(min=1e-9)) @ context
        earlier = lambda x, k: F.pad(x, (0, 0, k, 0))[:, :length]
        last = earlier(last, 1)
        inputs = [now * last, now * earlier(before, 2), now * mean, now, last, self.scalars(numbers, beside, fold)]
        return self.out(self.drop["hidden"](F.relu(self.hidden(torch.cat(inputs, -1)))))


class Drawer:
    """Dialogues as they are trained on."""

    def __init__(self, bank, found, shifts, seed=SEED):
        self.random = random.Random(seed)
        self.of = {name: [bank.turns(d) for d in all] for name, all in found.items()}
        self.shifts, self.all = shifts, [t for name, all in self.of.items() if name != "customer" for t, _ in all]

    def window(self):
        name = self.random.choices(["persona", "chat", "task", "tiage"], [4, 4, 2, 1])[0]
        texts, same = self.random.choice(self.of[name])
        length = min(len(texts), self.random.randint(4, 12))
        chance, last = self.random.random(), len(texts) - length
        begin = 0 if chance < 0.5 else last if chance < 0.65 else self.random.randint(0, last)
        return texts[begin:begin + length], [0.0, *same[begin + 1:begin + length]], texts

    def reordered(self, texts):
        other = texts[:]
        for _ in range(10):
            self.random.shuffle(other)
            if other != texts:
                break
        return other

    def replaced(self, texts, whole):
        other, at = texts[:], self.random.randrange(len(texts))
        other[at] = self.random.choice(self.random.choice(self.all)) if self.random.random() < 0.7 else self.random.choice(whole)
        return other, at

    def spliced(self):
        """Pieces of dialogues of a kind, where each begins, and the speaker: where two speak in turn they go on doing so."""
        chance = self.random.random()
        name = "task" if chance < 0.6 else "persona" if chance < 0.75 else "chat" if chance < 0.85 else "customer"
        texts, same, begins = [], [], []
        for piece in range(self.random.randint(2, 5)):
            whole, who = self.random.choice(self.of[name])
            length, n = min(len(whole), self.random.randint(3, 9)), len(whole)
            chance = self.random.random()
            begin = min(self.random.choice([0, 0, 1, 1, 2]), n - length) if chance < 0.9 else self.random.randint(0, n - length)
            places = list(range(begin, begin + length))
            if chance < 0.5 and name != "chat" and length >= 4:
                head = self.random.randint(2, length - 1)
                places = places[:head] + list(range(n - (length - head), n))
            texts += [whole[p] for p in places]
            same += [who[p] if name == "chat" else 0.0 for p in places]
            begins += [float(piece > 0) if p == places[0] else 0.0 for p in places]
        return texts, [1.0 if name == "customer" else s for s in same], begins


def train(bank, found, shifts, say, seed=SEED, steps=STEPS):
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    draw = Drawer(bank, found, shifts, seed)
    model = Model(bank, fit_pairs(bank, draw.of["tiage"], shifts))
    grams = [p for name, p in model.named_parameters() if name.startswith("grams")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("grams")]
    step_by = torch.optim.AdamW([{"params": grams, "weight_decay": 0.0}, {"params": rest, "weight_decay": WEIGHT_DECAY}])
    labelled = [(turns, labels, number % FOLDS) for number, (turns, labels) in enumerate(zip(draw.of["tiage"], shifts))]
    for step in range(steps):
        for group, rate in zip(step_by.param_groups, RATES.values()):
            group["lr"] = rate * (1 - step / steps)
        windows = [draw.window() for _ in range(BATCH)]
        foreign = [draw.replaced(texts, whole) for texts, _, whole in windows]
        same = [s for _, s, _ in windows]
        items = [t for t, _, _ in windows] + [draw.reordered(t) for t, _, _ in windows] + [t for t, _ in foreign]
        numbers, beside, there = batch(bank, list(zip(items, same * 3)))
        odds = model(numbers, beside)[..., 0]
        p = torch.sigmoid(odds)
        mean = (p * there).sum(1) / there.sum(1)
        real, order, other = mean.split(BATCH)
        loss = F.softplus(-(real - order) * 12).mean() + F.softplus(-(real - other) * 24).mean()
        judged = there.clone()
        judged[2 * BATCH:] = 0
        judged[2 * BATCH + torch.arange(BATCH), torch.tensor([at for _, at in foreign])] = 1
        truth = torch.zeros_like(odds)
        truth[:BATCH] = 1
        loss = loss + 0.5 * (F.binary_cross_entropy_with_logits(odds, truth, reduction="none") * judged).sum() / judged.sum()
        spliced = [draw.spliced() for _ in range(SPLICED)]
        marked = [draw.random.choice(labelled) for _ in range(MARKED)]
        numbers, beside, there = batch(bank, [(t, s) for t, s, _ in spliced] + [turns for turns, _, _ in marked])
        fold = torch.tensor([FOLDS] * SPLICED + [fold for _, _, fold in marked])
        odds, truth = model(numbers, beside, fold)[..., 1], torch.full(numbers.shape, -1.0)
        for row, labels in enumerate([b for _, _, b in spliced] + [[-1.0 if x is None else float(x) for x in s] for _, s, _ in marked]):
            truth[row, :len(labels)] = torch.tensor(labels)
        truth[:, 0] = -1
        weight = (truth >= 0).float() * (1 + 1.5 * (truth > 0).float())
        loss = loss + (F.binary_cross_entropy_with_logits(odds, truth.clamp(min=0), reduction="none") * weight).sum() / weight.sum()
        step_by.zero_grad()
        loss.backward()
        step_by.step()
        if step % 100 == 0:
            say(f"coherence: step {step}, loss {loss.item():.3f}")
    model.eval()
    # As the file holds them.
    scale = model.grams.weight.data.abs().amax(0) / 127
    model.grams.weight.data = torch.round(model.grams.weight.data / scale) * scale
    return model


def odds_of(model, items, size=128):
    """[turns, 2] of each dialogue: log-odds of being next, and of a shift."""
    found = []
    with torch.no_grad():
        for start in range(0, len(items), size):
            part = items[start:start + size]
            found += [row[:len(texts)].numpy() for row, (texts, _) in zip(model(*batch(model.bank, part)[:2]), part)]
    return found


# Where segments begin.

def blended(model, items, odds):
    """[turns, 4] of each dialogue: what the decision is made of."""
    with torch.no_grad():
        pair = [model.scalars(*batch(model.bank, [item])[:2])[0, :, -1].numpy() for item in items]
    return [np.stack([z[:, 1], p, z[:, 0], z[:, 1] * p], 1) for z, p in zip(odds, pair)]


def online(shift, thresholds):
    """Whether each turn begins a segment: the threshold depends on how many turns the segment has."""
    begins, turns = [False], 1
    for odds in shift[1:]:
        begins.append(bool(odds >= thresholds[min(turns, len(thresholds)) - 1]))
        turns = 1 if begins[-1] else turns + 1
    return begins


def pk(truth, said):
    """As eval segmentation computes it; both say of each turn whether it begins a segment."""
    n, segments = len(truth), 1 + sum(map(bool, truth[1:]))
    k = max(1, math.floor(n / segments / 2 + 0.5))
    one, other = np.cumsum([0, *map(int, map(bool, truth[1:]))]), np.cumsum([0, *map(int, said[1:])])
    return float(np.mean((one[k:] != one[:-k]) != (other[k:] != other[:-k]))) if n > k else 0.0


def around(bank, texts, odds):
    """What the off-line segmenter reads of each place."""
    v, n = bank.vectors.numpy()[texts], len(texts)
    shift = odds[:, 1].copy()
    shift[0] = 0
    cosine = lambda a, b: float(a @ b / max(math.sqrt((a @ a) * (b @ b)), 1e-12))
    words = lambda a, b: set().union(*(bank.terms[t] for t in texts[a:b]))
    sides = [[cosine(v[max(0, t - k):t].sum(0), v[t:t + k].sum(0)) for k in SIDES] for t in range(1, n)]
    shared = [[overlap(words(max(0, t - k), t), words(t, min(n, t + k))) for k in WORD_SIDES] for t in range(1, n)]
    best = lambda values, i: max([values[j] for j in range(max(0, i - NEAR), min(len(values), i + NEAR + 1)) if j != i], default=values[i])
    at = lambda column, t: float(column[t]) if t < n else 0.0
    depths = [row[2] for row in sides]
    return np.array([[shift[t], shift[t - 1], at(shift, t + 1), odds[t, 0], at(odds[:, 0], t + 1), *sides[t - 1], *shared[t - 1],
                      best(depths, t - 1) - depths[t - 1], shift[t] - best(shift[1:], t - 1), t == 1, t + 1 == n, shift[t] - shift.mean()]
                     for t in range(1, n)], np.float32)


def cut(odds):
    """The best places, none nearer than TURNS_MIN to another or to an end, as whether each turn begins a segment."""
    n = len(odds) + 1
    best = [(0.0, 0)] + [(-math.inf, 0)] * n
    for end in range(1, n + 1):
        for begin in range(end):
            value = best[begin][0] + (odds[begin - 1] if begin else 0.0)
            if (end - begin >= TURNS_MIN or end - begin == n) and value > best[end][0]:
                best[end] = (value, begin)
    begins, end = [False] * n, n
    while end > 0 and best[end][1] > 0:
        end = best[end][1]
        begins[end] = True
    return begins


def logistic(x, y, strength=1.0):
    """Weights and bias (last), standardised while it is fitted."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    w, b = intents.fit((x - mean) / spread, y.astype(int), 2, strength, 200)
    weight, bias = (w[:, 1] - w[:, 0]) / spread, b[1] - b[0]
    return np.append(weight, bias - weight @ mean).astype(np.float32)


def settle(model, held, held_shifts, say):
    """Thresholds, the off-line segmenter and the simple model's cosines, on dialogues that were not trained on."""
    bank = model.bank
    draw = Drawer(bank, held, held_shifts, SEED + 1)
    spliced = [draw.spliced() for _ in range(400)]
    chats = draw.of["tiage"]
    apart = [(t, s) for t, s, _ in spliced]
    z, c = odds_of(model, apart), odds_of(model, chats)
    far, near = blended(model, apart, z), blended(model, chats, c)
    def f1(said):
        pairs = [(s, y) for said, labels in zip(said, held_shifts) for s, y in zip(said, labels) if y is not None]
        return 2 * sum(s and y for s, y in pairs) / max(1, sum(s for s, _ in pairs) + sum(y for _, y in pairs))
    labelled = [(row, y) for rows, labels in zip(near, held_shifts) for row, y in zip(rows[1:], labels[1:]) if y is not None]
    joined = [(row, y) for rows, (_, _, b) in zip(far, spliced) for row, y in zip(rows[1:], b[1:])]
    labelled *= round(CHAT_WEIGHT * len(joined) / len(labelled))
    blend = logistic(np.stack([x for x, _ in labelled + joined]), np.array([y for _, y in labelled + joined]))
    far, near = [rows @ blend[:-1] + blend[-1] for rows in far], [rows @ blend[:-1] + blend[-1] for rows in near]
    def value(thresholds):
        return CHAT_WEIGHT * f1([online(x, thresholds) for x in near]) - float(np.mean([pk(b, online(x, thresholds)) for x, (_, _, b) in zip(far, spliced)]))
    tried = [(value((h + one, h + two, h)), (h + one, h + two, h)) for h in np.arange(-2, 1.01, 0.1) for one in (0.0, 0.5, 1.0) for two in (0.0, 0.5) if two <= one]
    thresholds = max(tried)[1]
    x = [around(bank, t, odds) for (t, _, _), odds in zip(spliced, z)]
    half = len(x) // 2
    fit = logistic(np.concatenate(x[:half]), np.concatenate([b[1:] for _, _, b in spliced[:half]]))
    def offline(shift):
        return float(np.mean([pk(b, cut(rows @ fit[:-1] + fit[-1] + shift)) for rows, (_, _, b) in zip(x[half:], spliced[half:])]))
    fit[-1] += min((offline(shift), shift) for shift in (-2, -1.5, -1, -0.5, 0.0, 0.5, 1.0))[1]
    cosines = lambda texts: [1.0, *(float(bank.vectors[a] @ bank.vectors[b]) for a, b in zip(texts, texts[1:]))]
    like, unlike = [cosines(t) for t, _ in chats], [cosines(t) for t, _, _ in spliced]
    limits = np.arange(0.0, 0.6, 0.02)
    simple = [max((f1([[x < limit for x in row] for row in like]), limit) for limit in limits)[1],
              min((np.mean([pk(b, [x < limit for x in row]) for row, (_, _, b) in zip(unlike, spliced)]), limit) for limit in limits)[1]]
    measured = {"tiage_held_f1": f1([online(x, thresholds) for x in near]), "spliced_pk": offline(0.0),
                "spliced_online_pk": float(np.mean([pk(b, online(x, thresholds)) for x, (_, _, b) in zip(far, spliced)]))}
    say(f"coherence: held out {measured}, thresholds {thresholds}, simple {simple}")
    return {"threshold": np.array(thresholds, np.float32), "around": fit, "blend": blend, "simple": np.array(simple, np.float32)}, measured


def tensors(model, settled):
    scale = model.grams.weight.data.abs().amax(0) / 127
    array = lambda x: np.ascontiguousarray(x.detach().numpy().astype(np.float32))
    return {"projection": array(model.projection.weight.T), "projection_bias": array(model.projection.bias),
            "grams": np.rint(array(model.grams.weight / scale)).astype(np.int8), "grams_scale": array(scale),
            "hidden": array(model.hidden.weight.T), "hidden_bias": array(model.hidden.bias),
            "out": array(model.out.weight), "out_bias": array(model.out.bias), "pair": array(model.pair[FOLDS]), **settled}


def texts_of(found):
    return sorted({t for all in found.values() for d in all for _, t in d})


def build(data, vectors_of, folder, golden, say):
    """Trains both tiers and writes the family; `vectors_of` gives {tier: vectors} of texts, as they travel."""
    found, shifts = dialogues(data)
    texts = texts_of(found)
    held = {name: all[:HELD_TIAGE if name == "tiage" else HELD] for name, all in found.items()}
    rest = {name: all[len(held[name]):] for name, all in found.items()}
    written, measured = {}, {}
    for tier, vectors in vectors_of(texts).items():
        bank = Bank(texts, vectors)
        model = train(bank, rest, shifts[HELD_TIAGE:], lambda m, tier=tier: say(f"{tier} {m}"))
        settled, measured[tier] = settle(model, held, shifts[:HELD_TIAGE], say)
        written |= {f"{tier}.{name}": tensor for name, tensor in tensors(model, settled).items()}
        if tier == "fast":
            write_golden(model, settled, held, golden)
    save_file(written, str(folder / "coherence.safetensors"))
    (folder / "stop.json").write_text(json.dumps({"stop": sorted(STOP)}, indent=1) + "\n")
    return measured


def write_golden(model, settled, held, path, count=30, turns=8):
    """Dialogues of two who speak in turn, and what the fast tier says of them."""
    asked = [d[:turns] for name in ("tiage", "task", "persona") for d in held[name][:count // 3]]
    items = [([model.bank.number[t] for _, t in d], [0.0] * len(d)) for d in asked]
    with open(path, "w", encoding="utf-8") as file:
        found = odds_of(model, items)
        for dialogue, (texts, _), odds, blend in zip(asked, items, found, blended(model, items, found)):
            boundary = around(model.bank, texts, odds) @ settled["around"][:-1] + settled["around"][-1]
            row = {"turns": [t for _, t in dialogue], "next": odds[:, 0], "shift": odds[:, 1],
                   "begins": blend @ settled["blend"][:-1] + settled["blend"][-1], "boundary": boundary}
            file.write(json.dumps({k: v if k == "turns" else [round(float(x), 5) for x in v] for k, v in row.items()}, ensure_ascii=False) + "\n")
