"""The emotion model: a hashed n-gram model and linear heads on the vectors, fused label by label.

Promises: fusion and thresholds are fitted on predictions for texts that the parts had not seen: in the fast tier on folds of
train; in the full tier, whose branch saw all of train, on dev, and the figures on dev are then those of five folds
(`crossed`). Deterministic: no randomness but the folds, which are text hashes, so that equal texts share a fold.
Leaves out: the branch (branch.py).
"""

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize

import metrics
import ngram

FOLDS = 4
SEEN_MIN = 2
CROSS_FOLDS = 5
NGRAM_C, HEAD_C = 4.0, 60.0
ITERATIONS = 60
FUSION_PULL = 20.0


def fold_of(text, folds=FOLDS):
    return hashlib.sha256(text.encode()).digest()[0] % folds


def fit(x, y, c, iterations=ITERATIONS):
    """Logistic regression of all labels at once with L2 weight 1/c (L-BFGS); returns weights [features, labels] and bias."""
    features, labels = x.shape[1], y.shape[1]
    transposed = x.T.tocsr() if hasattr(x, "tocsr") else x.T
    prior = np.clip(y.mean(0), 1e-4, 1 - 1e-4)

    def loss_and_gradient(v):
        w, b = v[:-labels].reshape(features, labels).astype(np.float32), v[-labels:].astype(np.float32)
        z = np.asarray(x @ w) + b
        loss = np.logaddexp(0, z).sum(dtype=np.float64) - (z * y).sum(dtype=np.float64) + 0.5 / c * (w * w).sum(dtype=np.float64)
        slope = (1 / (1 + np.exp(-z)) - y).astype(np.float32)
        gradient = np.asarray(transposed @ slope) + w / np.float32(c)
        return loss, np.concatenate([gradient.ravel().astype(np.float64), slope.sum(0, dtype=np.float64)])

    start = np.concatenate([np.zeros(features * labels), np.log(prior / (1 - prior))])
    best = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "maxcor": 5, "ftol": 1e-8}).x
    return best[:-labels].reshape(features, labels).astype(np.float32), best[-labels:].astype(np.float32)


def travelled(embeddings):
    """Embeddings as they are after their trip in the turn: int8 with a scale, halves rounded away from zero."""
    scale = np.abs(embeddings).max(1, keepdims=True).astype(np.float32) / np.float32(127)
    safe = np.where(scale == 0, np.float32(1), scale)
    ratio = embeddings / safe
    return (np.sign(ratio) * np.floor(np.abs(ratio) + np.float32(0.5))).astype(np.int8), scale[:, 0]


def idf_of(frequencies):
    seen = np.bincount(frequencies.indices, minlength=ngram.BUCKETS)
    return np.where(seen >= SEEN_MIN, np.log((1 + frequencies.shape[0]) / (1 + seen)) + 1, 0).astype(np.float32)


def fit_ngram(frequencies, y, c=NGRAM_C):
    """(idf [B], weight [B, 28], bias [28])."""
    idf = idf_of(frequencies)
    known = np.flatnonzero(idf)
    w, bias = fit(ngram.weigh(frequencies, idf)[:, known], y, c)
    weight = np.zeros((ngram.BUCKETS, y.shape[1]), np.float32)
    weight[known] = w
    return idf, weight, bias


def logits(x, weight, bias):
    return np.asarray(x @ weight) + bias


def in_int8(weight):
    scale = np.abs(weight).max(0) / 127
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


def unseen_logits(texts, x, y, fitter):
    """Logits of every text by a model that was fitted on the other folds."""
    folds = np.array([fold_of(t) for t in texts])
    out = np.zeros(y.shape, np.float32)
    for k in range(FOLDS):
        out[folds == k] = fitter(x[folds != k], y[folds != k], x[folds == k])
    return out


def ngram_fitter(c=NGRAM_C):
    def run(x, y, new):
        idf, weight, bias = fit_ngram(x, y, c)
        return logits(ngram.weigh(new, idf), weight, bias)
    return run


def head_fitter(c):
    return lambda x, y, new: logits(new, *fit(x, y, c, 300))


def fuse(a, b, y, pull=FUSION_PULL):
    """[28, 3]: weights of the two logits and a bias a label; rare labels are pulled to the weights that all labels share."""
    def newton(columns, truth, centre, strength):
        v = centre.copy()
        for _ in range(30):
            p = 1 / (1 + np.exp(-(columns @ v)))
            gradient = columns.T @ (p - truth) + strength * (v - centre)
            hessian = (columns * (p * (1 - p))[:, None]).T @ columns + np.diag(strength + 1e-6)
            v = v - np.linalg.solve(hessian, gradient)
        return v
    a, b, y = a.astype(np.float64), b.astype(np.float64), y.astype(np.float64)
    labels = y.shape[1]
    pooled = np.stack([a.ravel(), b.ravel(), np.ones(a.size)], 1)
    common = newton(pooled, y.ravel(), np.array([0.5, 0.5, 0.0]), np.zeros(3))
    out = [newton(np.stack([a[:, l], b[:, l], np.ones(len(a))], 1), y[:, l], common, np.array([pull, pull, 0.01])) for l in range(labels)]
    return np.array(out, np.float32)


def mixed(fusion, a, b):
    return 1 / (1 + np.exp(-(fusion[:, 0] * a + fusion[:, 1] * b + fusion[:, 2])))


def thresholds(p, y):
    return metrics.thresholds(p, y), metrics.thresholds(metrics.ekman(p), metrics.ekman_truth(y))


def crossed(ngram_logits, head_logits, texts, y, folds=CROSS_FOLDS):
    """Probabilities of every text, and its thresholds, by a fusion and thresholds that were fitted without its fold."""
    folds = np.array([fold_of(t, folds) for t in texts])
    p, e = np.zeros(y.shape, np.float32), len(metrics.EKMAN_MEMBERS)
    threshold, ekman_threshold = np.zeros(y.shape, np.float32), np.zeros((len(y), e), np.float32)
    for k in np.unique(folds):
        known, new = folds != k, folds == k
        fusion = fuse(ngram_logits[known], head_logits[known], y[known])
        p[new] = mixed(fusion, ngram_logits[new], head_logits[new])
        threshold[new], ekman_threshold[new] = thresholds(mixed(fusion, ngram_logits[known], head_logits[known]), y[known])
    return p, threshold, ekman_threshold


class Shipped:
    """The files as the program reads them."""

    def __init__(self, folder):
        n, self.head = load_file(f"{folder}/ngram.safetensors"), load_file(f"{folder}/head.safetensors")
        self.idf, self.bias = n["idf"], n["bias"]
        self.weight = n["weight"] * n["weight_scale"]

    def ngram_logits(self, frequencies):
        return logits(ngram.weigh(frequencies, self.idf), self.weight, self.bias)

    def head_logits(self, tier, vectors):
        return vectors @ self.head[f"{tier}.weight"].T + self.head[f"{tier}.bias"]

    def probabilities(self, tier, ngram_logits, vectors):
        """[texts, 28]; `vectors` as the head reads them (see `read`)."""
        return mixed(self.head[f"{tier}.fusion"], ngram_logits, self.head_logits(tier, vectors))


def read(static):
    """What the fast tier's head reads: the static embedding after its trip."""
    q, scale = travelled(static)
    return (q * scale[:, None]).astype(np.float32)


def write_head(folder, tier, weight, bias, fusion, threshold, ekman_threshold):
    """Puts a tier into head.safetensors and leaves the other as it is."""
    path = Path(folder) / "head.safetensors"
    head = load_file(path) if path.is_file() else {}
    head |= {f"{tier}.weight": np.ascontiguousarray(weight, np.float32), f"{tier}.bias": bias.astype(np.float32), f"{tier}.fusion": fusion,
             f"{tier}.threshold": threshold, f"{tier}.ekman_threshold": ekman_threshold}
    save_file(head, path)


def train_fast(texts, frequencies, static, y, folder, say=print):
    """Fits and writes the n-gram model and the fast tier's head on train. Returns the logits of the folds."""
    unseen = {"ngram": unseen_logits(texts, frequencies, y, ngram_fitter())}
    say("n-gram folds done")
    idf, weight, bias = fit_ngram(frequencies, y)
    quantised, scale = in_int8(weight)
    save_file({"idf": idf, "weight": quantised, "weight_scale": scale, "bias": bias}, f"{folder}/ngram.safetensors")
    say("n-gram model written")
    x = read(static)
    unseen["fast"] = unseen_logits(texts, x, y, head_fitter(HEAD_C))
    w, b = fit(x, y, HEAD_C, 300)
    fusion = fuse(unseen["ngram"], unseen["fast"], y)
    write_head(folder, "fast", w.T, b, fusion, *thresholds(mixed(fusion, unseen["ngram"], unseen["fast"]), y))
    say("fast head and fusion done")
    return unseen


def train_full(ngram_logits, feelings, weight, bias, y, folder):
    """Writes the full tier's head, which was tuned with the branch on train, with fusion and thresholds fitted on dev."""
    head = feelings @ weight.T + bias
    fusion = fuse(ngram_logits, head, y)
    write_head(folder, "full", weight, bias, fusion, *thresholds(mixed(fusion, ngram_logits, head), y))
