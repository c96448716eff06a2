"""Valence, arousal and dominance: ridge regressions on the vectors and probabilities, and on the n-grams, of EmoBank's sentences.

Promises: everything that EmoBank (CC BY-SA 4.0) taught is in vad.safetensors and nowhere else; inputs are those of the
program: full tier the emotion vector, the embedding after its trip, the 28 probabilities; fast tier the static embedding after
its trip and the probabilities. The n-grams answer by themselves (emotion/FORMAT.md defines them), and an axis takes the mixture of
both answers that was best on folds of train that neither had seen. Ratings from 1 to 5 become -1 to 1. Deterministic.
"""

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse.linalg import lsqr

import emotion
import ngram

AXES = ("valence", "arousal", "dominance")
# Ridge weight of standardised inputs, chosen on dev from six values between 30 and 10,000, which differ by 0.01.
PULL = {"full": 3000.0, "fast": 3000.0}
# Of the n-grams: the ridge's weight, chosen on dev from four values, and how many buckets are kept.
NGRAM_PULL, NGRAMS = 2.0, 20_000


def rated(rows):
    """[texts, 3], -1 to 1."""
    return np.array([[(row[axis] - 3) / 2 for axis in AXES] for row in rows])


def fit(x, y, pull):
    """Weights [3, inputs] and bias [3] of the ridge regression on standardised inputs."""
    mean, spread = x.mean(0), x.std(0) + 1e-6
    z = (x - mean) / spread
    w = np.linalg.solve(z.T @ z + pull * np.eye(x.shape[1]), z.T @ (y - y.mean(0)))
    weight = (w / spread[:, None]).T
    return weight, y.mean(0) - weight @ mean


def fit_ngram(frequencies, y):
    """(idf [B], weight [B, 3], bias [3]); only the buckets that weigh most have an idf."""
    idf = emotion.idf_of(frequencies)
    for kept in (NGRAMS, 0):
        known = np.flatnonzero(idf)
        x = ngram.weigh(frequencies, idf)[:, known]
        centre = y.mean(0)
        w = np.stack([lsqr(x, column, damp=NGRAM_PULL**0.5)[0] for column in (y - centre).T], 1)
        bias = centre + (y - centre - x @ w).mean(0)
        if kept and kept < len(known):
            heavy = np.abs(w).max(1) * np.sqrt(np.asarray((x != 0).sum(0)).ravel())
            idf[known[np.argsort(-heavy, kind="stable")[kept:]]] = 0
    weight = np.zeros((ngram.BUCKETS, y.shape[1]))
    weight[known] = w
    return idf, weight, bias


def ngram_answers(frequencies, idf, weight, bias):
    return ngram.weigh(frequencies, idf) @ weight + bias


def train(texts, inputs, frequencies, y, folder, say=print):
    """Fits and writes everything. `inputs` maps a tier to what it reads of every text."""
    folds = np.array([emotion.fold_of(t) for t in texts])
    unseen = {name: np.zeros_like(y) for name in ("ngram", *inputs)}
    for k in range(emotion.FOLDS):
        known, new = folds != k, folds == k
        unseen["ngram"][new] = ngram_answers(frequencies[new], *fit_ngram(frequencies[known], y[known]))
        for tier, x in inputs.items():
            w, b = fit(x[known], y[known], PULL[tier])
            unseen[tier][new] = x[new] @ w.T + b
        say(f"fold {k + 1} of {emotion.FOLDS}")
    idf, weight, bias = fit_ngram(frequencies, y)
    quantised, scale = emotion.in_int8(weight)
    tensors = {"ngram.idf": idf, "ngram.weight": quantised, "ngram.weight_scale": scale, "ngram.bias": bias.astype(np.float32)}
    for tier, x in inputs.items():
        apart = unseen["ngram"] - unseen[tier]
        share = np.clip((apart * (y - unseen[tier])).sum(0) / (apart**2).sum(0), 0, 1)
        say(f"{tier}: the n-grams count {np.round(share, 2)}")
        w, b = fit(x, y, PULL[tier])
        tensors |= {f"{tier}.weight": w * (1 - share[:, None]), f"{tier}.bias": b * (1 - share), f"{tier}.share": share}
    save_file({name: np.ascontiguousarray(t, t.dtype if t.dtype == np.int8 else np.float32) for name, t in tensors.items()}, f"{folder}/vad.safetensors")


def answers(folder, tier, x, frequencies):
    """What the shipped file says: [texts, 3]."""
    file = load_file(f"{folder}/vad.safetensors")
    words = ngram_answers(frequencies, file["ngram.idf"], file["ngram.weight"] * file["ngram.weight_scale"], file["ngram.bias"])
    return x @ file[f"{tier}.weight"].T + file[f"{tier}.bias"] + words * file[f"{tier}.share"]


def pearson(said, y):
    return [float(np.corrcoef(said[:, axis], y[:, axis])[0, 1]) for axis in range(y.shape[1])]


def figures(said, y, resamples=1000, seed=1):
    """{axis: {value, low, high}}: Pearson's r with the 95 % interval of resampled sentences."""
    rng = np.random.default_rng(seed)
    drawn = np.array([pearson(said[i], y[i]) for i in rng.integers(0, len(y), (resamples, len(y)))])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    values = zip(AXES, pearson(said, y), low, high)
    return {axis: {"value": round(v, 4), "low": round(float(l), 4), "high": round(float(h), 4)} for axis, v, l, h in values}
