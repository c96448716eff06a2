"""Heads of stage dialogue: the intents of each shipped set, and dialogue acts; dialogue/FORMAT.md says what the files hold.

Promises: weights are fitted on the train splits alone; the threshold is where 97 % of the dev texts in scope are accepted;
what is out of scope is learnt from the other sets and from chat (and from CLINC150's own out-of-scope train split), never
from its dev split. Deterministic: k-means begins from seed 1. Leaves out: the vectors, which encoder.py and static.py make.
"""

import gzip
import json

import numpy as np
import scipy.sparse as sparse
from safetensors.numpy import save_file
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize

import ngram
from emotion import travelled

SETS = ("clinc150", "banking77", "hwu64")
# N-grams that a head of a set knows, so that it stays under 1 MB; a set with fewer labels has room for more.
GRAMS_MAX, SEEN_MIN = {"clinc150": 4000, "banking77": 10000, "hwu64": 12000}, 2
OTHER_GRAMS_MAX = 4000
STRENGTH = {"full": 20.0, "fast": 20.0}
ITERATIONS = {"full": 120, "fast": 70}
ACCEPTED = 0.97
OUTLIERS_MAX, OUTLIER_SURE = 3000, 0.6
OUT_OF_SCOPE = "oos"
# Prototypes of an intent, where they help; how many of the nearest count, how fast they weigh less with the cosine, and their share.
PROTOTYPES, NEAREST, SHARPNESS, SHARE = {("banking77", "full"): 16}, 5, 30.0, 0.5


def lines(path):
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def texts_of(data, name):
    """{split: [(text, intent)]} of a set; out-of-scope ones under `oos-train` and `oos-dev`."""
    splits = {s: [(r["text"], r["intent"]) for r in lines(data / name / f"{s}.jsonl")] for s in ("train", "dev")}
    for split in ("oos-train", "oos-dev"):
        path = data / name / f"{split}.jsonl"
        splits[split] = [(r["text"], OUT_OF_SCOPE) for r in lines(path)] if path.is_file() else []
    return splits


def chat_of(data, count):
    """Turns of real chats, spread evenly, that ask for nothing in particular."""
    found = sorted({m[2] for r in lines(data / "byu_chitchat/train.jsonl.gz") for m in r["m"] if 3 < len(m[2]) < 200})
    return found[::max(1, len(found) // count)][:count]


def fit(x, y, columns, c, iterations):
    """Multinomial logistic regression with L2 weight 1/c (L-BFGS); weights [features, columns] and bias."""
    rows, features = x.shape
    transposed = x.T.tocsr() if sparse.issparse(x) else x.T
    truth = np.zeros((rows, columns), np.float32)
    truth[np.arange(rows), y] = 1

    def loss_and_gradient(v):
        w, b = v[:-columns].reshape(features, columns).astype(np.float32), v[-columns:].astype(np.float32)
        z = np.asarray(x @ w) + b
        z -= z.max(1, keepdims=True)
        right = z[np.arange(rows), y].sum(dtype=np.float64)
        np.exp(z, out=z)
        total = z.sum(1, keepdims=True)
        loss = np.log(total).sum(dtype=np.float64) - right + 0.5 / c * (w * w).sum(dtype=np.float64)
        z /= total
        z -= truth
        gradient = np.asarray(transposed @ z) + w / np.float32(c)
        return loss, np.concatenate([gradient.ravel().astype(np.float64), z.sum(0, dtype=np.float64)])

    start = np.zeros(features * columns + columns)
    best = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 5}).x
    return best[:-columns].reshape(features, columns).astype(np.float32), best[-columns:].astype(np.float32)


def known_grams(frequencies, most=OTHER_GRAMS_MAX):
    """(buckets in rising order, their idf) of the commonest n-grams."""
    seen = np.bincount(frequencies.indices, minlength=ngram.BUCKETS)
    order = np.argsort(-seen, kind="stable")[:most]
    buckets = np.sort(order[seen[order] >= SEEN_MIN])
    return buckets, (np.log((1 + frequencies.shape[0]) / (1 + seen[buckets])) + 1).astype(np.float32)


def weighed(frequencies, buckets, idf):
    whole = np.zeros(ngram.BUCKETS, np.float32)
    whole[buckets] = idf
    return ngram.weigh(frequencies, whole)[:, buckets]


def in_int8(weight):
    scale = np.maximum(np.abs(weight).max(0, initial=0), 1e-12) / 127
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


def vectors_of(embeddings):
    q, scale = travelled(embeddings)
    return (q * scale[:, None]).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def prototypes(vectors, y, columns, most):
    """(int8 steps [P, D] of 1/127, labels [P]): so many means of each intent's vectors (k-means, seed 1), of length one."""
    found, of = [], []
    for c in range(columns):
        own = vectors[y == c]
        means = kmeans2(own, most, iter=50, minit="++", seed=1, missing="raise")[0] if len(own) > most else own
        found.append(means / np.linalg.norm(means, axis=1, keepdims=True))
        of += [c] * len(means)
    return np.rint(np.concatenate(found) * 127).astype(np.int8), np.array(of, np.int32)


class Head:
    """A head as the program reads it; `grams` may be empty, and so may `near`, the prototypes and their labels."""

    def __init__(self, weight, bias, buckets, idf, gram_weight, threshold=0.0, near=None):
        self.weight, self.bias, self.buckets, self.idf, self.threshold, self.near = weight, bias, buckets, idf, threshold, near
        self.steps, self.scale = in_int8(gram_weight)

    def probabilities(self, vectors, frequencies):
        grams = weighed(frequencies, self.buckets, self.idf) @ (self.steps * self.scale) if len(self.buckets) else 0
        p = softmax(vectors @ self.weight + self.bias + grams)
        return p if self.near is None else self.blended(p, vectors)

    def blended(self, p, vectors):
        """What is not out of scope goes by SHARE to the labels of the nearest prototypes."""
        steps, of = self.near
        cosines = vectors @ steps.T.astype(np.float32) / 127
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
        near = np.zeros((len(p), of.max() + 1), np.float32)
        for row, best in enumerate(nearest):
            np.add.at(near[row], of[best], np.exp(SHARPNESS * (cosines[row, best] - 1)))
        near /= near.sum(1, keepdims=True)
        labels = near.shape[1]
        inside = 1 - p[:, labels:].sum(1, keepdims=True)
        return np.hstack([(1 - SHARE) * p[:, :labels] + SHARE * inside * near, p[:, labels:]])

    def write(self, path):
        near = {} if self.near is None else {"prototype": self.near[0], "prototype_label": self.near[1]}
        save_file({"weight": self.weight, "bias": self.bias, "threshold": np.array([self.threshold], np.float32), **near,
                   **grams_file(self.buckets, self.idf, self.steps, self.scale)}, path)


def grams_file(buckets, idf, steps, scale):
    return {"bucket": buckets.astype(np.int32), "idf": idf, "gram_weight": np.ascontiguousarray(steps), "gram_scale": scale}


def fit_head(vectors, frequencies, y, columns, tier, grams=OTHER_GRAMS_MAX):
    """A head on vectors and so many n-grams together."""
    buckets, idf = known_grams(frequencies, grams) if grams else (np.zeros(0, np.int64), np.zeros(0, np.float32))
    x = vectors
    if grams:
        x = sparse.hstack([sparse.csr_matrix(vectors), weighed(frequencies, buckets, idf)]).tocsr()
    weight, bias = fit(x, y, columns, STRENGTH[tier], ITERATIONS[tier])
    d = vectors.shape[1]
    return Head(np.ascontiguousarray(weight[:d]), bias, buckets, idf, weight[d:])


def centroids(frequencies, y, columns):
    """The simple model beside a set: (buckets, idf, steps, scale) of TF-IDF centroids of length one."""
    buckets, idf = known_grams(frequencies)
    x = weighed(frequencies, buckets, idf)
    mean = np.stack([np.asarray(x[y == c].mean(0)).ravel() for c in range(columns)], 1)
    mean /= np.maximum(np.linalg.norm(mean, axis=0), 1e-12)
    return buckets, idf, *in_int8(mean.astype(np.float32))


def figures(p, y, labels, threshold):
    """What EVALUATION calls them; y is -1 out of scope."""
    best, sure = p[:, :labels].argmax(1), p[:, :labels].max(1)
    inside, outside = y >= 0, y < 0
    right = best == y
    out = {"accuracy": right[inside].mean(), "in_scope_accuracy_at_threshold": (right & (sure >= threshold))[inside].mean()}
    if outside.any():
        order = np.argsort(np.concatenate([sure[outside], sure[inside]]), kind="stable")
        ranks = np.empty(len(order))
        ranks[order] = np.arange(1, len(order) + 1)
        n, m = outside.sum(), inside.sum()
        out |= {"oos_recall": (sure < threshold)[outside].mean(), "oos_auroc": 1 - (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)}
    return {k: round(float(v), 4) for k, v in out.items()}


class Bank:
    """Vectors of both tiers and n-gram counts of texts, each computed once."""

    def __init__(self, texts, full, fast, counter):
        self.place = {t: i for i, t in enumerate(texts)}
        self.vectors = {"full": vectors_of(full), "fast": vectors_of(fast)}
        self.frequencies = counter.matrix(texts)

    def of(self, texts, tier):
        at = [self.place[t] for t in texts]
        return self.vectors[tier][at], self.frequencies[at]


def train_set(name, sets, chat, bank, folder, say=print):
    """Fits and writes the heads of one set for both tiers; returns the figures on dev."""
    train, dev = sets[name]["train"], sets[name]["dev"]
    labels = sorted({intent for _, intent in train})
    index = {label: i for i, label in enumerate(labels)}
    texts, y = [t for t, _ in train], np.array([index[i] for _, i in train])
    others = [t for other in SETS if other != name for t, _ in sets[other]["train"]]
    others = others[::max(1, len(others) // (2 * OUTLIERS_MAX))] + chat
    own = [t for t, _ in sets[name]["oos-train"]]
    check = dev + sets[name]["oos-dev"]
    truth = np.array([index.get(i, -1) for _, i in check])
    measured = {}
    for tier in ("full", "fast"):
        x, f = bank.of(texts, tier)
        ox, of = bank.of(others, tier)
        first = fit_head(x, f, y, len(labels), tier, grams=0)
        # What looks like one of the set's own intents is none of its outliers.
        far = np.flatnonzero(first.probabilities(ox, of).max(1) < OUTLIER_SURE)[:OUTLIERS_MAX]
        wx, wf = bank.of(own, tier) if own else (ox[:0], of[:0])
        near = prototypes(x, y, len(labels), PROTOTYPES[name, tier]) if (name, tier) in PROTOTYPES else None
        x, f = np.concatenate([x, ox[far], wx]), sparse.vstack([f, of[far], wf]).tocsr()
        head = fit_head(x, f, np.concatenate([y, np.full(len(far) + len(own), len(labels))]), len(labels) + 1, tier, GRAMS_MAX[name])
        head.near = near
        p = head.probabilities(*bank.of([t for t, _ in check], tier))
        head.threshold = float(np.sort(p[truth >= 0, :len(labels)].max(1))[int((truth >= 0).sum() * (1 - ACCEPTED))])
        head.write(f"{folder}/{name}.{tier}.safetensors")
        measured[tier] = figures(p, truth, len(labels), head.threshold) | {"outliers": len(far) + len(own)}
        say(f"{name} {tier}: {json.dumps(measured[tier])}")
    buckets, idf, steps, scale = centroids(bank.of(texts, "fast")[1], y, len(labels))
    save_file(grams_file(buckets, idf, steps, scale), f"{folder}/{name}.centroid.safetensors")
    found = (weighed(bank.of([t for t, _ in check], "fast")[1], buckets, idf) @ (steps * scale)).argmax(1)
    measured["centroids"] = {"accuracy": round(float((found == truth)[truth >= 0].mean()), 4)}
    with open(f"{folder}/{name}.json", "w") as file:
        json.dump({"labels": labels}, file)
        file.write("\n")
    return measured


def golden(texts, sets, bank, folder, out, adjusted):
    """A line a text: for each tier and head the best label and its probability, as the shipped files give them; those of some
    heads are `adjusted`, {name: function of probabilities and texts}."""
    from safetensors.numpy import load_file

    rows = [{"text": t, "full": {}, "fast": {}} for t in texts]
    for name, labels in sets.items():
        for tier in ("full", "fast"):
            t = load_file(f"{folder}/{name}.{tier}.safetensors")
            head = Head(t["weight"], t["bias"], t["bucket"].astype(np.int64), t["idf"], np.zeros((0, len(t["bias"]))) if not len(t["bucket"]) else t["gram_weight"] * t["gram_scale"],
                        near=(t["prototype"], t["prototype_label"]) if "prototype" in t else None)
            p = head.probabilities(*bank.of(texts, tier))[:, :len(labels)]
            p = adjusted[name](p, texts) if name in adjusted else p
            for row, best in zip(rows, p.argmax(1)):
                row[tier][name] = [labels[best], 0.0]
            for row, sure in zip(rows, p.max(1)):
                row[tier][name][1] = round(float(sure), 6)
    with open(out, "w") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


START, END = "<!-- figures: written by build.py -->", "<!-- end of figures -->"
SHOWN = ("accuracy", "in_scope_accuracy_at_threshold", "oos_recall", "oos_auroc")


def write_table(path, measured):
    """The figures of all sets into the model card for people."""
    out = [START, "", "| | " + " | ".join(SHOWN) + " |", "|---|" + "---|" * len(SHOWN)]
    for name, rows in measured.items():
        for row, figures_of in rows.items():
            shown = [f"{figures_of[m]:.3f}" if m in figures_of else "" for m in SHOWN]
            out.append(f"| {name}, {'TF-IDF ' + row if row == 'centroids' else row + ' tier'} | " + " | ".join(shown) + " |")
    before, after = path.read_text().split(START)[0], path.read_text().split(END)[1]
    path.write_text(before + "\n".join(out) + "\n\n" + END + after)
