"""Values that the words of a customer give: a linear-chain conditional random field over hashed features of words.

Promises: fitted on MultiDoGO's train split alone, the texts of a domain only with the names of that domain; the reference
`Tagger` reads the shipped files and computes what the program computes (dialogue/FORMAT.md says it in words). Rows whose
tags were torn apart by quotation marks in the source are left out of the fit, never out of a figure. Leaves out: the
agent's side, which the data set's customer turns do not have.
"""

import json
import re
from collections import Counter, defaultdict

import numpy as np
from safetensors.numpy import load_file, save_file

import intents
import ngram

PIECES_MAX, WHOLE_MAX, DIGITS_MAX, LETTERS_MAX, LENGTH_MAX, GIVEN_MAX = 256, 6, 12, 3, 8, 16
OUTSIDE, FORBIDDEN = "O", -1e4
LABEL_SEEN_MIN, FEATURE_SEEN_MIN = 10, 2
NAME = re.compile("[a-z_]+")
EPOCHS, RATE, CHAIN_RATE, TOKENS, TEXTS = 2, 0.15, 0.02, 1500, 256
PRUNED_BELOW = 0.1
DICTIONARY_SEEN_MIN = 2


def pieces(text):
    """[(piece, word it begins in)]: runs of letters or digits in lower case; other signs are dropped, spaces part."""
    found, open_, word, blank = [], False, -1, True
    for character in text:
        what = ngram.kind(character)
        if what == "space":
            open_, blank = False, True
            continue
        if blank:
            word, blank = word + 1, False
        if what != "word" or character == "'":
            continue
        number = character in "0123456789"
        if not open_ or found[-1][2] != number:
            if len(found) == PIECES_MAX:
                break
            found.append(["", word, number])
            open_ = True
        found[-1][0] += character.lower()
    return [tuple(f) for f in found]


def features(domain, found, given):
    """The features of each piece; `given`: names of values that were given before, the newest last."""
    words = [w for w, _, _ in found]
    count = len(words)
    shapes = [f"d{min(len(w), DIGITS_MAX)}" if number else f"a{min(len(w), LETTERS_MAX)}" for w, _, number in found]
    whole = " ".join(shapes) if count <= WHOLE_MAX else "n"
    near = lambda texts, i: "^" if i < 0 else "$" if i >= count else texts[i]
    newest, everything = given[-1] if given else "-", " ".join(sorted(given))
    for i, (w, s) in enumerate(zip(words, shapes)):
        at = lambda step: near(words, i + step)
        of = ["a", "A" + w, "B" + s, "C" + whole, "E" + at(-1) + " " + s, "F" + s + " " + at(1), f"G{min(count, LENGTH_MAX)}",
              "H" + "f" * (i == 0) + "l" * (i == count - 1), "L" + newest + " " + s, "M" + newest + " " + whole, "N" + newest,
              *("P" + g + " " + s for g in given), "Q" + everything + " " + s]
        yield ["0" + w, "1" + at(-1), "2" + at(1), "3" + at(-2), "4" + at(2), "5" + at(-1) + " " + w, "6" + w + " " + at(1),
               "p" + w[:1], "q" + w[:2], "r" + w[:3], "s" + w[-1:], "t" + w[-2:], "u" + w[-3:], "v" + w[-4:],
               "h" + near(shapes, i - 1) + " " + s + " " + near(shapes, i + 1), "i" + s, "j" + at(-2) + " " + at(-1), "k" + at(1) + " " + at(2),
               *("D" + domain + x for x in of)]


def spans(tags):
    """[(first, behind the last, name)] of the runs of a tag."""
    found, start = [], 0
    for i in range(1, len(tags) + 1):
        if i == len(tags) or tags[i] != tags[start]:
            if tags[start] != OUTSIDE:
                found.append((start, i, tags[start]))
            start = i
    return found


def give(given, names):
    """What was given after these too: a name given again is the newest."""
    for name in names:
        given = [g for g in given if g != name] + [name]
    return given[-GIVEN_MAX:]


def rows_of(data, split):
    return intents.lines(data / f"multidogo/{split}.jsonl.gz")


def names_of(rows):
    """{domain: names of its values} that stand there often enough."""
    seen = Counter((r["domain"], name) for r in rows if len(r["slots"].split()) == len(r["text"].split()) for _, _, name in spans(r["slots"].split()))
    return {d: sorted(n for (of, n), c in seen.items() if of == d and c >= LABEL_SEEN_MIN and NAME.fullmatch(n)) for d in sorted({d for d, _ in seen})}


class Hashes:
    """Buckets of features, each computed once."""

    def __init__(self):
        self.known = {}

    def __call__(self, feature):
        found = self.known.get(feature)
        if found is None:
            found = self.known[feature] = ngram.bucket(feature)
        return found


def training(rows, names):
    """[(domain, pieces, tags of the pieces, given)] of the rows that can be trusted, dialogue by dialogue."""
    out, given = [], defaultdict(list)
    for row in rows:
        tags, found = row["slots"].split(), pieces(row["text"])
        if len(tags) != len(row["text"].split()) or not all(t == OUTSIDE or t in names[row["domain"]] for t in tags):
            continue
        before = given[row["dialogue"]]
        if found:
            out.append((row["domain"], found, [tags[word] for _, word, _ in found], before))
        given[row["dialogue"]] = give(before, [name for _, _, name in spans(tags)])
    return out


def train(data, folder, say=print):
    """Fits and writes slots.json, slots.safetensors and slots.dictionary.json."""
    import torch  # noqa: PLC0415, the fit alone needs it
    from torch.nn import EmbeddingBag, Parameter  # noqa: PLC0415

    rows = rows_of(data, "train")
    names = names_of(rows)
    labels = [OUTSIDE, *sorted({n for of in names.values() for n in of})]
    place = {l: i for i, l in enumerate(labels)}
    chosen, hashes = training(rows, names), Hashes()
    met = [[[hashes(f) for f in fs] for fs in features(domain, found, given)] for domain, found, _, given in chosen]
    seen = Counter(b for text in met for piece in text for b in piece)
    buckets = sorted(b for b, c in seen.items() if c >= FEATURE_SEEN_MIN)
    row_of = {b: i for i, b in enumerate(buckets)}
    met = [[np.array([row_of[b] for b in piece if b in row_of]) for piece in text] for text in met]
    dictionary = {d: values(rows, d, names[d]) for d in names}
    (folder / "slots.dictionary.json").write_text(json.dumps(dictionary, ensure_ascii=False, separators=(",", ":")) + "\n")
    say(f"slots: {len(chosen)} texts, {len(buckets)} features, {len(labels) - 1} names")
    torch.manual_seed(1)
    weight = EmbeddingBag(len(buckets), len(labels), mode="sum", sparse=True)
    torch.nn.init.zeros_(weight.weight)
    chain, first, last = (Parameter(torch.zeros(*shape)) for shape in ((len(labels),) * 2, (len(labels),), (len(labels),)))
    optimisers = torch.optim.Adagrad(weight.parameters(), RATE, initial_accumulator_value=0.05), torch.optim.Adam([chain, first, last], CHAIN_RATE)
    allowed = {d: torch.tensor([0.0 if l == OUTSIDE or l in of else FORBIDDEN for l in labels]) for d, of in names.items()}
    truth = [torch.tensor([place[t] for t in tags]) for _, _, tags, _ in chosen]
    by_length = defaultdict(list)
    for i, text in enumerate(met):
        by_length[len(text)].append(i)

    def loss(batch):
        flat = [piece for i in batch for piece in met[i]]
        offsets = np.cumsum([0, *map(len, flat[:-1])])
        said = weight(torch.from_numpy(np.concatenate(flat)), torch.from_numpy(offsets)).view(len(batch), -1, len(labels))
        said = said + torch.stack([allowed[chosen[i][0]] for i in batch])[:, None]
        y = torch.stack([truth[i] for i in batch])
        paths, right = first + said[:, 0], first[y[:, 0]] + said[:, 0].gather(1, y[:, :1])[:, 0]
        for t in range(1, said.shape[1]):
            paths = torch.logsumexp(paths[:, :, None] + chain, 1) + said[:, t]
            right = right + chain[y[:, t - 1], y[:, t]] + said[:, t].gather(1, y[:, t:t + 1])[:, 0]
        return (torch.logsumexp(paths + last, 1) - right - last[y[:, -1]]).sum()

    for epoch in range(EPOCHS):
        drawn, batches, total = np.random.default_rng(epoch), [], 0.0
        for length, texts in by_length.items():
            texts, size = drawn.permutation(texts), max(1, min(TEXTS, TOKENS // length))
            batches += [texts[i:i + size] for i in range(0, len(texts), size)]
        for i in drawn.permutation(len(batches)):
            value = loss(batches[i])
            for optimiser in optimisers:
                optimiser.zero_grad()
            (value / len(batches[i]) * 4).backward()
            for optimiser in optimisers:
                optimiser.step()
            total += value.item()
        say(f"slots: epoch {epoch + 1} of {EPOCHS}, loss {total / len(chosen):.4f}")
        write(folder, labels, names, buckets, *(p.detach().numpy() for p in (weight.weight, chain, first, last)))


def write(folder, labels, names, buckets, weight, chain, first, last):
    """Small weights are dropped, and rows without any; what is left is int8, one scale a name."""
    scale = np.maximum(np.abs(weight).max(0), 1e-12) / 127
    steps = np.where(np.abs(weight) >= PRUNED_BELOW, np.rint(weight / scale), 0).astype(np.int8)
    kept = np.flatnonzero(steps.any(1))
    at, label = np.nonzero(steps[kept])
    start = np.searchsorted(at, np.arange(len(kept) + 1))
    save_file({"bucket": np.array(buckets, np.int32)[kept], "start": start.astype(np.int32), "label": label.astype(np.int8),
               "step": steps[kept][at, label], "scale": scale.astype(np.float32), "transition": chain, "first": first, "last": last},
              folder / "slots.safetensors")
    (folder / "slots.json").write_text(json.dumps({"labels": labels, "domains": names}) + "\n")


def key_of(found):
    return " ".join("0" * len(w) if number else w for w, _, number in found)


def values(rows, domain, names):
    """{value: name} for the dictionary: what is that value more often than not where it stands."""
    named, stands = defaultdict(Counter), Counter()
    for _, found, tags, _ in training([r for r in rows if r["domain"] == domain], {domain: names}):
        for a, b, name in spans(tags):
            named[key_of(found[a:b])][name] += 1
        for a in range(len(found)):
            for b in range(a + 1, min(len(found), a + WHOLE_MAX) + 1):
                stands[key_of(found[a:b])] += 1
    best = {key: counts.most_common(1)[0] for key, counts in named.items()}
    return {key: name for key, (name, n) in sorted(best.items()) if n >= DICTIONARY_SEEN_MIN and 2 * n > stands[key]}


class Tagger:
    """The shipped files, read and run as the program does."""

    def __init__(self, folder):
        t, about = load_file(folder / "slots.safetensors"), json.loads((folder / "slots.json").read_text())
        self.labels, self.domains = about["labels"], about["domains"]
        self.rows = {int(b): slice(*t["start"][i:i + 2]) for i, b in enumerate(t["bucket"])}
        self.t, self.hashes = t, Hashes()
        self.dictionary = json.loads((folder / "slots.dictionary.json").read_text())

    def tag(self, domain, found, given):
        """(name of each piece on the best path, its probability by itself)."""
        known = [0, *(self.labels.index(n) for n in self.domains[domain])]
        said = np.zeros((len(found), len(self.labels)))
        for i, fs in enumerate(features(domain, found, given)):
            for row in filter(None, (self.rows.get(self.hashes(f)) for f in fs)):
                said[i, self.t["label"][row]] += self.t["step"][row]
        said = (said * self.t["scale"])[:, known]
        chain, first, last = self.t["transition"][np.ix_(known, known)].astype(float), self.t["first"][known], self.t["last"][known]
        score, back = first + said[0], []
        for x in said[1:]:
            paths = score[:, None] + chain
            back.append(paths.argmax(0))
            score = paths.max(0) + x
        path = [int((score + last).argmax())]
        for came in reversed(back):
            path.append(int(came[path[-1]]))
        path.reverse()
        add = lambda x, axis: x.max(axis) + np.log(np.exp(x - x.max(axis, keepdims=True)).sum(axis))
        forward, ends = [first + said[0]], [np.asarray(last, float)]
        for x in said[1:]:
            forward.append(add(forward[-1][:, None] + chain, 0) + x)
        for x in said[:0:-1]:
            ends.append(add(chain + (ends[-1] + x)[None], 1))
        p = np.exp(np.array(forward) + np.array(ends[::-1]) - add(forward[-1] + last, 0))
        return [self.labels[known[s]] for s in path], [float(p[i, s]) for i, s in enumerate(path)]

    def find(self, domain, text, given):
        """[(first piece, behind the last, name, probability)]"""
        found = pieces(text)
        if not found:
            return [], found
        tags, p = self.tag(domain, found, given)
        return [(a, b, name, min(p[a:b])) for a, b, name in spans(tags)], found

    def look_up(self, domain, text):
        """The simple model beside: the longest values of the dictionary, from left to right."""
        found, out, a = pieces(text), [], 0
        while a < len(found):
            ends = (b for b in range(min(len(found), a + WHOLE_MAX), a, -1) if key_of(found[a:b]) in self.dictionary[domain])
            b = next(ends, None)
            if b:
                out.append((a, b, self.dictionary[domain][key_of(found[a:b])], 1.0))
            a = b or a + 1
        return out, found


def f1(right, said, present):
    return 2 * right / max(said + present, 1)


def measure(data, folder):
    """Span F1 on dev of the shipped files and of the dictionary, all and by domain."""
    tagger, given = Tagger(folder), defaultdict(list)
    counts = defaultdict(lambda: [0, 0, 0])
    for row in rows_of(data, "dev"):
        domain = row["domain"]
        truth = set(spans(row["slots"].split()))
        for model, (said, found) in (("model", tagger.find(domain, row["text"], given[row["dialogue"]])), ("dictionary", tagger.look_up(domain, row["text"]))):
            words = {(found[a][1], found[b - 1][1] + 1, name) for a, b, name, _ in said}
            for key in ((model, domain), (model, "all")):
                counts[key] = [x + y for x, y in zip(counts[key], (len(words & truth), len(said), len(truth)))]
            if model == "model":
                given[row["dialogue"]] = give(given[row["dialogue"]], [name for _, _, name, _ in said])
    return {model: {of: round(f1(*c), 4) for (m, of), c in counts.items() if m == model} for model in ("model", "dictionary")}


GOLDEN = 400
NASTY = [("airline", "My e-mail is Nivika45@Gmail.com, thanks!", []), ("finance", "", []), ("finance", "4453", ["name"]), ("finance", "4453", []),
         ("media", "\u00dcber\u00adall I\u2019m in S\u00e3o Paulo 12345-678", []), ("fastfood", "two \U0001f355 pizzas \u2022 1 coke", ["size", "food_item"]), ("software", "word " * 300, [])]


def golden(data, folder, out):
    """A line a text: domain, what was given, and what is found with its probability."""
    tagger, rows, given = Tagger(folder), rows_of(data, "dev"), defaultdict(list)
    asked = list(NASTY)
    for i, row in enumerate(rows):
        if i % (len(rows) // GOLDEN) == 0:
            asked.append((row["domain"], row["text"], given[row["dialogue"]]))
        given[row["dialogue"]] = give(given[row["dialogue"]], [n for _, _, n in spans(row["slots"].split()) if NAME.fullmatch(n)])
    with open(out, "w") as file:
        for domain, text, before in asked:
            said, found = tagger.find(domain, text, before)
            said = [[name, " ".join(w for w, _, _ in found[a:b]), round(p, 6)] for a, b, name, p in said]
            file.write(json.dumps({"domain": domain, "text": text, "given": before, "slots": said}, ensure_ascii=False, separators=(",", ":")) + "\n")
