"""Next action of a bot that carries out a task: small networks over embeddings, dialogue/FORMAT.md says what they compute.

Promises: the `known` network tells apart the labels that it was trained with; the `transfer` network reads labels as words
and serves tasks that no training saw. Both see the same state; weights are fitted on STAR's train split alone. Leaves out:
the vectors of the texts, which encoder.py and static.py make.
"""

import gzip
import json
import re
from collections import Counter, defaultdict

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

from intents import vectors_of

HISTORY_MAX, AGES, AGE_DECAY, WORD_DECAY = 32, 4, 0.7, 0.8
EVENTS = ("start", "bot_action", "user", "query", "returned", "bot_words")
# Words of labels and of what a knowledge base says that mean the same to a bot.
CANONICAL = {
    "arrival": "end", "booked": "booking", "book": "booking", "bye": "goodbye", "cannot": "not", "changes": "change", "completed": "success",
    "confirmed": "success", "date": "day", "declined": "failed", "denied": "failed", "departure": "start", "description": "details",
    "destination": "end", "fail": "failed", "from": "start", "hotel": "place", "apartment": "place", "location": "place", "more": "else",
    "no": "not", "optional": "criteria", "provide": "inform", "query": "ask", "request": "ask", "reservation": "booking", "reserve": "booking",
    "reserved": "success", "restaurant": "place", "result": "details", "results": "details", "scheduled": "success", "starting": "start",
    "submitted": "success", "succeeded": "success", "successful": "success", "successfully": "success", "thank": "goodbye", "to": "end",
    "unable": "not", "until": "end", "venue": "place",
}
KNOWLEDGE = ("available", "unavailable", "success", "failed", "booking", "not", "nothing", "found", "confirm", "change", "none", "error", "must", "either")
KNOWLEDGE_WORDS_MAX = 20
NUMBERS = len(EVENTS) + AGES + 7 + len(KNOWLEDGE) + 2
PAIRS, TEMPLATE_PAIRS, SIDE, DEEP = 10, 3, 24, 48
# What each network is given and how it is fitted; found on tasks left out of training, and on dev.
KINDS = {
    "known": {"texts": 3, "hidden": 256, "out": 128, "epochs": 8, "drop": 0.2, "text_drop": 0.1, "without": 0.0, "decay": 0.01, "balance": 0.0},
    "transfer": {"texts": 2, "hidden": 64, "out": 32, "epochs": 4, "drop": 0.3, "text_drop": 0.2, "without": 0.3, "decay": 0.1, "balance": 0.5},
}
BATCH, RATE = 256, 2e-3


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def label_words(label, tasks):
    """Words of a label, without the number at its end and the name of its task's domain before it."""
    words = [w for w in re.split(r"[^a-z0-9]+", label.lower()) if w]
    if len(words) > 1 and words[-1].isdigit():
        words.pop()
    return words[1:] if len(words) > 1 and words[0] in {task.split("_")[0] for task in tasks} else words


def canonical(words):
    words = [CANONICAL.get(w, w) for w in words]
    seen = {w for w in words if w not in ("not", "available")}
    if "available" in words:
        seen.add("unavailable" if "not" in words else "available")
    elif "not" in words and "unavailable" not in words:
        seen.add("not")
    return seen


def knowledge_numbers(message):
    """What a knowledge base said, as numbers; zeros where it has said nothing."""
    if message is None:
        return [0.0] * (len(KNOWLEDGE) + 2)
    words = re.findall(r"[a-z]+", message.lower())
    found = canonical(words)
    return [float(w in found) for w in KNOWLEDGE] + [float(not words), min(len(words), KNOWLEDGE_WORDS_MAX) / KNOWLEDGE_WORDS_MAX]


def items_of(dialogues):
    """One state for each labelled pick of the wizard; the text of the pick itself is hidden."""
    for d in dialogues:
        history, said, message, event, age, called, returned = [], [], None, 0, AGES - 1, False, False
        for e in d["events"]:
            item = e.get("PrimaryItem")
            if item and returned:
                message, age = str(item["Message"]) if item.get("Message") else None, 0
                called = True
            if e["Action"] == "pick_suggestion" and e.get("ActionLabel"):
                yield {"tasks": d["tasks"], "multitask": d["multitask"], "label": e["ActionLabel"], "history": history[-HISTORY_MAX:], "said": said[-2:][::-1],
                       "message": message, "event": event, "age": min(age, AGES - 1), "called": called}
                history = history + [e["ActionLabel"]]
                event, age = 1, age + 1
            elif e["Action"] == "utter":
                if e["Agent"] == "User":
                    said, event = said + [e.get("Text") or ""], 2
                else:
                    event = 5
            elif e["Action"] == "query":
                event = 3
            elif e["Action"] == "return_item":
                event, age, returned = 4, 0, True
            if item:
                message, called = str(item["Message"]) if item.get("Message") else None, True
            if e["Action"] == "pick_suggestion" or e["Action"] == "utter" and e["Agent"] == "Wizard":
                returned = False


def tasks_of(dialogues):
    """({task: its labels, from dialogues about it alone}, {label: what the wizard says most often})."""
    labels, texts = defaultdict(set), defaultdict(Counter)
    for d in dialogues:
        for e in d["events"]:
            if e["Action"] == "pick_suggestion" and e.get("ActionLabel"):
                texts[e["ActionLabel"]][e["Text"]] += 1
                if len(d["tasks"]) == 1:
                    labels[d["tasks"][0]].add(e["ActionLabel"])
    return {t: sorted(labels[t]) for t in sorted(labels)}, {l: texts[l].most_common(1)[0][0] for l in sorted(texts)}


class Vectors:
    """Embeddings of texts in one tier, as they travel; the empty text has none."""

    def __init__(self, texts, rows):
        self.rows = np.concatenate([vectors_of(rows), np.zeros((1, rows.shape[1]), np.float32)])
        self.index = {t: i for i, t in enumerate(texts)} | {"": len(texts), None: len(texts)}

    def of(self, text):
        return self.index[text]


def texts_of(data):
    """Every text whose vector is needed."""
    star = Star(data)
    found = set(star.templates.values()) | {" ".join(label_words(l, star.tasks)) for l in star.templates}
    for item in star.items:
        found |= {*item["said"], item["message"] or ""}
    return sorted(found - {""})


class Space:
    """Labels and their words, as networks see them that were trained with some of the tasks."""

    def __init__(self, tasks, templates, trained, vectors):
        self.tasks, self.labels = tasks, sorted(templates)
        self.index = {l: i for i, l in enumerate(self.labels)}
        domains = defaultdict(set)
        for t in trained:
            for l in tasks[t]:
                domains[l].add(t.split("_")[0])
        spread = defaultdict(set)
        for l, found in domains.items():
            for w in canonical(label_words(l, tasks)):
                spread[w] |= found
        self.words = sorted(w for w in spread if len(spread[w]) > 1)
        self.own = {"known": sorted(domains), "transfer": sorted(l for l in domains if len(domains[l]) > 1)}
        self.bags = np.array([self.bag(l) for l in self.labels] + [[0.0] * (len(self.words) + 2)], np.float32)
        rows = vectors.rows
        self.named = rows[[vectors.of(" ".join(label_words(l, tasks))) for l in self.labels]]
        self.said = rows[[vectors.of(templates[l]) for l in self.labels]]
        self.asks = np.array(["ask" in label_words(l, tasks) for l in self.labels])

    def bag(self, label):
        words = label_words(label, self.tasks)
        found = canonical(words)
        return [float(w in found) for w in self.words] + [len(words) / 3, len(found - set(self.words)) / 2]


class Items:
    """States and candidates as arrays."""

    def __init__(self, items, space, vectors):
        none, n = len(space.labels), len(items)
        self.items, width = items, max(len({l for t in i["tasks"] for l in space.tasks[t]}) for i in items)
        self.candidates = np.full((n, width), -1)
        self.truth, self.recent = np.full(n, -1), np.full((n, 2), none)
        self.texts = np.array([[vectors.of(t) for t in [*(i["said"] + ["", ""])[:2], i["message"]]] for i in items])
        self.history, self.words = np.zeros((n, none + 1), np.float32), np.zeros((n, space.bags.shape[1]), np.float32)
        self.numbers, self.pairs = np.zeros((n, NUMBERS), np.float32), np.zeros((n, width, PAIRS + TEMPLATE_PAIRS), np.float32)
        for k, item in enumerate(items):
            c = np.array(sorted({space.index[l] for t in item["tasks"] for l in space.tasks[t]}))
            self.candidates[k, :len(c)] = c
            h = [space.index[l] for l in reversed(item["history"]) if l in space.index]
            if item["label"] in space.index and space.index[item["label"]] in c:
                self.truth[k] = list(c).index(space.index[item["label"]])
            counts = Counter(h)
            used = np.array([counts[l] for l in c], np.float32)
            for age, l in reversed(list(enumerate(h))):
                self.history[k, l] = AGE_DECAY ** age
                self.words[k] = np.maximum(self.words[k], space.bags[l] * WORD_DECAY ** age)
            self.recent[k, :len(h[:2])] = h[:2]
            asks = space.asks[c]
            self.numbers[k, item["event"]] = self.numbers[k, len(EVENTS) + item["age"]] = 1
            rest = len(EVENTS) + AGES
            self.numbers[k, rest:rest + 7] = [not h, len(h) == 1, min(len(h), 10) / 10, item["called"], (asks & (used > 0)).sum() / max(asks.sum(), 1),
                                              (asks & (used == 0)).sum() / 10, bool(h) and space.asks[h[0]]]
            self.numbers[k, rest + 7:] = knowledge_numbers(item["message"])
            user, before, told = vectors.rows[self.texts[k]]
            named, said, p = space.named[c], space.said[c], self.pairs[k, :len(c)]
            p[:, 0], p[:, 1], p[:, 4] = used > 0, np.minimum(used, 3) / 3, self.history[k, c]
            for column, l in zip((2, 3), h):
                p[:, column] = c == l
            p[:, 5], p[:, 6], p[:, 7] = named @ user, named @ before, named @ told
            if h:
                p[:, 8], p[:, 9] = named @ space.named[h[0]], (named @ space.named[h].T).max(1)
            p[:, PAIRS], p[:, PAIRS + 1] = said @ user, said @ told
            p[:, PAIRS + 2] = p[:, PAIRS + 1] > 0.99


class Network(torch.nn.Module):
    def __init__(self, kind, space, dimensions):
        super().__init__()
        self.kind, k = kind, KINDS[kind]
        hidden, out, bag = k["hidden"], k["out"], space.bags.shape[1]
        self.word = torch.nn.Parameter(torch.randn(bag, out) * 0.1)
        self.own = torch.nn.Parameter(torch.zeros(len(space.labels) + 1, out))
        self.text = torch.nn.Linear(k["texts"] * dimensions, hidden)
        self.state = torch.nn.Linear(3 * out + bag + NUMBERS, hidden, bias=False)
        self.out = torch.nn.Linear(hidden, out)
        self.side_state, self.side_label = torch.nn.Linear(hidden, SIDE), torch.nn.Linear(out, SIDE, bias=False)
        self.side_pair, self.deep, self.last = torch.nn.Linear(PAIRS + TEMPLATE_PAIRS, DEEP), torch.nn.Linear(2 * SIDE + DEEP, DEEP), torch.nn.Linear(DEEP, 1)
        self.label_bias = torch.nn.Linear(out, 1, bias=False)
        has_own = set(space.own[kind])
        self.register_buffer("has_own", torch.tensor([[float(l in has_own)] for l in space.labels] + [[0.0]]))
        self.register_buffer("bags", torch.tensor(space.bags))

    def forward(self, i, data, rows, templates):
        k, training = KINDS[self.kind], self.training
        drop = lambda x, p: F.dropout(x, p, training)
        z = self.bags @ self.word + self.own * self.has_own
        candidates = data["candidates"][i]
        texts = rows[data["texts"][i, :k["texts"]]]
        if training and k["without"]:
            texts = texts * (torch.rand(*texts.shape[:2], 1) > k["without"])
        recent = z[data["recent"][i]].flatten(1)
        state = torch.cat([recent, data["history"][i] @ z, data["words"][i], data["numbers"][i]], 1)
        h = drop(F.relu(self.text(drop(texts, k["text_drop"]).flatten(1)) + self.state(drop(state, k["drop"] / 2))), k["drop"])
        label = z[candidates.clamp(min=0)]
        pairs = data["pairs"][i]
        pairs = torch.cat([pairs[..., :PAIRS], pairs[..., PAIRS:] * templates[candidates.clamp(min=0), None]], 2)
        side = torch.cat([self.side_state(h)[:, None].expand(-1, candidates.shape[1], -1), self.side_label(label), self.side_pair(pairs)], 2)
        deep = F.relu(self.deep(drop(F.relu(side), k["drop"] / 2)))
        score = (label @ self.out(h)[:, :, None] + self.last(deep) + self.label_bias(label))[..., 0]
        return score.masked_fill(candidates < 0, -1e9)


def tensors_of(items):
    return {n: torch.tensor(getattr(items, n)) for n in ("candidates", "truth", "texts", "recent", "history", "words", "numbers", "pairs")}


def fit(kind, space, items, rows, chosen, seed):
    """A network fitted on the items of these places."""
    k = KINDS[kind]
    torch.manual_seed(seed)
    net, data, random = Network(kind, space, rows.shape[1]), tensors_of(items), np.random.default_rng(seed)
    chosen = chosen[items.truth[chosen] >= 0]
    size = Counter(tuple(items.items[i]["tasks"]) for i in chosen)
    weight = np.array([size[tuple(items.items[i]["tasks"])] ** -k["balance"] for i in chosen])
    own = [p for n, p in net.named_parameters() if n == "own"]
    rest = [p for n, p in net.named_parameters() if n != "own"]
    step = torch.optim.AdamW([{"params": own, "weight_decay": 0.05}, {"params": rest, "weight_decay": k["decay"]}], RATE)
    total, done = k["epochs"] * -(-len(chosen) // BATCH), 0
    for _ in range(k["epochs"]):
        order = random.choice(chosen, len(chosen), p=weight / weight.sum()) if k["balance"] else random.permutation(chosen)
        for at in range(0, len(order), BATCH):
            for group in step.param_groups:
                group["lr"] = RATE * max(0.01, 1 - done / total)
            i = torch.tensor(order[at:at + BATCH])
            templates = (torch.rand(len(space.labels) + 1) > 0.5).float() * (torch.rand(1) > 0.25)
            loss = F.cross_entropy(net(i, data, rows, templates), data["truth"][i])
            step.zero_grad()
            loss.backward()
            step.step()
            done += 1
    return net.eval()


def probabilities(net, space, items, rows, chosen, templates=True):
    data, known = tensors_of(items), torch.full((len(space.labels) + 1,), float(templates))
    with torch.no_grad():
        return torch.cat([net(torch.tensor(chosen[at:at + 512]), data, rows, known).softmax(1) for at in range(0, len(chosen), 512)]).numpy()


def right(net, space, items, rows, chosen, templates=True):
    """Whether each item's most probable candidate is what the wizard did."""
    return probabilities(net, space, items, rows, chosen, templates).argmax(1) == items.truth[chosen]


class Star:
    """The data, read once."""

    def __init__(self, data):
        train, dev = read(data / "star/train.jsonl.gz"), read(data / "star/dev.jsonl.gz")
        self.tasks, self.templates = tasks_of(train)
        self.items = [*items_of(train)]
        self.trained = len(self.items)
        self.items += items_of(dev)

    def left_out(self, vectors, seed=1, folds=5, say=print):
        """Accuracy of the transfer network on tasks that it was not trained with, {task: [right, items]}, with templates and without."""
        rows, found = torch.tensor(vectors.rows), {}
        for fold in range(folds):
            hidden = set(list(self.tasks)[fold::folds])
            space = Space(self.tasks, self.templates, set(self.tasks) - hidden, vectors)
            items = Items(self.items, space, vectors)
            chosen = np.array([i for i in range(self.trained) if not hidden & set(self.items[i]["tasks"])])
            net = fit("transfer", space, items, rows, chosen, seed)
            for task in sorted(hidden):
                at = np.array([i for i, item in enumerate(self.items) if item["tasks"] == [task]])
                found[task] = [len(at), *(int(right(net, space, items, rows, at, t).sum()) for t in (True, False))]
                say(f"next: {task} left out, {found[task][1] / len(at):.3f}; without templates {found[task][2] / len(at):.3f}")
        return found


def train(data, folder, texts, rows, seeds=(1, 2, 3), say=print):
    """Writes next.json and next.TIER.KIND.safetensors; returns what was measured, by tier. `rows`: {tier: vectors of texts}."""
    star, measured = Star(data), {}
    for tier, embedded in rows.items():
        vectors = Vectors(texts, embedded)
        space = Space(star.tasks, star.templates, star.tasks, vectors)
        items, of = Items(star.items, space, vectors), torch.tensor(vectors.rows)
        dev, first = np.arange(star.trained, len(star.items)), None
        accuracies = []
        for seed in seeds:
            net = fit("known", space, items, of, np.arange(star.trained), seed)
            first = first or net
            accuracies.append(float(right(net, space, items, of, dev).mean()))
            say(f"next: {tier}, seed {seed}, known {accuracies[-1]:.4f}")
        write(first, space, folder / f"next.{tier}.known.safetensors")
        write(fit("transfer", space, items, of, np.arange(star.trained), 1), space, folder / f"next.{tier}.transfer.safetensors")
        left = star.left_out(vectors, say=say)
        n, right_, bare = (sum(row[k] for row in left.values()) for k in range(3))
        measured[tier] = {"known": accuracies, "left_out": right_ / n, "left_out_without_templates": bare / n, "left_out_by_task": {t: r[1] / r[0] for t, r in left.items()}}
    describe(star, space, folder / "next.json")
    return measured


def describe(star, space, path):
    """What the program knows beside the weights; `follows`, how often a label came after another, is its simple baseline."""
    follows = defaultdict(Counter)
    for item in star.items[:star.trained]:
        follows[item["history"][-1] if item["history"] else ""][item["label"]] += 1
    content = {"tasks": star.tasks, "templates": star.templates, "canonical": CANONICAL, "knowledge": KNOWLEDGE, "words": space.words,
               "known": space.own["known"], "transfer": space.own["transfer"], "follows": follows}
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n")


def golden(data, folder, out, embedded, texts, count=80):
    """Writes what both networks of the fast tier, as they were shipped, say of states spread over dev."""
    star = Star(data)
    vectors = Vectors(texts, embedded)
    space, chosen = Space(star.tasks, star.templates, star.tasks, vectors), star.items[star.trained:]
    chosen = chosen[::max(1, len(chosen) // count)][:count]
    items, rows = Items(chosen, space, vectors), torch.tensor(vectors.rows)
    nets = {kind: load(kind, space, rows.shape[1], folder / f"next.fast.{kind}.safetensors") for kind in KINDS}
    said = {kind: probabilities(net, space, items, rows, np.arange(len(chosen))) for kind, net in nets.items()}
    with open(out, "w", encoding="utf-8") as file:
        for k, item in enumerate(chosen):
            labels = [space.labels[c] for c in items.candidates[k] if c >= 0]
            of = {kind: {l: round(float(p), 5) for l, p in zip(labels, said[kind][k])} for kind in KINDS}
            file.write(json.dumps({n: item[n] for n in ("tasks", "history", "said", "message", "event", "age", "called")} | of, ensure_ascii=False) + "\n")


def load(kind, space, dimensions, path):
    net, tensors = Network(kind, space, dimensions), load_file(str(path))
    own = np.zeros(net.own.shape, np.float32)
    own[[space.index[l] for l in space.own[kind]]] = tensors["own"]
    state = {"word": tensors["word"], "own": own, "label_bias.weight": tensors["label_bias"][None]}
    for name in ("text", "state", "out", "side_state", "side_label", "side_pair", "deep", "last"):
        state[f"{name}.weight"] = tensors[name].T
        if f"{name}_bias" in tensors:
            state[f"{name}.bias"] = tensors[f"{name}_bias"]
    net.load_state_dict({n: torch.tensor(np.ascontiguousarray(t)) for n, t in state.items()}, strict=False)
    return net.eval()


def write(net, space, path):
    own = [space.index[l] for l in space.own[net.kind]]
    tensor = lambda t: np.ascontiguousarray(t.detach().numpy().astype(np.float32))
    out = {"word": tensor(net.word), "own": tensor(net.own)[own], "label_bias": tensor(net.label_bias.weight[0])}
    for name in ("text", "state", "out", "side_state", "side_label", "side_pair", "deep", "last"):
        layer = getattr(net, name)
        out[name] = np.ascontiguousarray(tensor(layer.weight).T)
        if layer.bias is not None:
            out[f"{name}_bias"] = tensor(layer.bias)
    save_file(out, str(path))
