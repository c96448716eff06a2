"""The emotion model: a hashed n-gram model and linear heads on the embeddings, fused label by label.

Promises: everything is fitted on the train split alone; fusion and thresholds on predictions for texts that the parts had
not seen (folds), so that dev only chooses between finished recipes and its figures are honest. Deterministic: no randomness
but the folds, which are text hashes, so that equal texts share a fold.
Leaves out: the encoder, which stays as it is.
"""

import hashlib

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize

import metrics
import ngram

FOLDS = 4
SEEN_MIN = 2
NGRAM_C, HEAD_C = 4.0, {"full": 60.0, "fast": 60.0}
ITERATIONS = 60
FUSION_PULL = 20.0


def fold_of(text):
    return hashlib.sha256(text.encode()).digest()[0] % FOLDS


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


class Shipped:
    """The files as the program reads them."""

    def __init__(self, folder):
        n, self.head = load_file(f"{folder}/ngram.safetensors"), load_file(f"{folder}/head.safetensors")
        self.idf, self.bias = n["idf"], n["bias"]
        self.weight = n["weight"] * n["weight_scale"]

    def ngram_logits(self, frequencies):
        return logits(ngram.weigh(frequencies, self.idf), self.weight, self.bias)

    def probabilities(self, tier, ngram_logits, embeddings):
        """[texts, 28] from embeddings before their trip."""
        q, scale = travelled(embeddings)
        head = (q * scale[:, None]) @ self.head[f"{tier}.weight"].T + self.head[f"{tier}.bias"]
        return mixed(self.head[f"{tier}.fusion"], ngram_logits, head)


def train(texts, frequencies, embeddings, y, folder, say=print):
    """Fits and writes both files. `embeddings` maps a tier to [texts, D] before the trip. Returns the logits of the folds."""
    unseen = {"ngram": unseen_logits(texts, frequencies, y, ngram_fitter())}
    say("n-gram folds done")
    idf, weight, bias = fit_ngram(frequencies, y)
    quantised, scale = in_int8(weight)
    save_file({"idf": idf, "weight": quantised, "weight_scale": scale, "bias": bias}, f"{folder}/ngram.safetensors")
    say("n-gram model written")
    head = {}
    for tier, raw in embeddings.items():
        q, s = travelled(raw)
        x = (q * s[:, None]).astype(np.float32)
        unseen[tier] = unseen_logits(texts, x, y, head_fitter(HEAD_C[tier]))
        w, b = fit(x, y, HEAD_C[tier], 300)
        fusion = fuse(unseen["ngram"], unseen[tier], y)
        threshold, ekman_threshold = thresholds(mixed(fusion, unseen["ngram"], unseen[tier]), y)
        head |= {f"{tier}.weight": np.ascontiguousarray(w.T), f"{tier}.bias": b, f"{tier}.fusion": fusion,
                 f"{tier}.threshold": threshold, f"{tier}.ekman_threshold": ekman_threshold}
        say(f"{tier} head and fusion done")
    save_file(head, f"{folder}/head.safetensors")
    return unseen
