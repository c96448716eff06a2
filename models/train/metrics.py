"""The figures of the emotion model: F1 over labels, calibration, Brier score, each with a bootstrap interval.

Promises: `macro_f1` counts a label never predicted and never present as 0; `ece` is the mean over labels with at least 30
positives of the calibration error in 15 bins of equal mass; intervals are the 2.5 and 97.5 percentiles of 1,000 resamples of
texts, seed 1. Leaves out: thresholds, which come from the model.
"""

import numpy as np

from labels import EKMAN_MEMBERS

RESAMPLES, SEED = 1000, 1
BINS, POSITIVES_MIN = 15, 30


def ekman(p):
    """1 − Π(1 − p) over each group's members, columns in Ekman order."""
    return np.stack([1 - np.prod(1 - p[:, m], axis=1) for m in EKMAN_MEMBERS], 1)


def ekman_truth(y):
    return np.stack([y[:, m].max(1) for m in EKMAN_MEMBERS], 1)


def f1(tp, predicted, present):
    return 2 * tp / np.maximum(predicted + present, 1)


def ece(p, y):
    errors = []
    for l in np.flatnonzero(y.sum(0) >= POSITIVES_MIN):
        order = np.argsort(p[:, l], kind="stable")
        gaps = [abs(p[b, l].mean() - y[b, l].mean()) * len(b) for b in np.array_split(order, BINS)]
        errors.append(sum(gaps) / len(y))
    return float(np.mean(errors)) if errors else float("nan")


def figures(p, y, threshold, ekman_threshold, resamples=RESAMPLES):
    """{name: {value, low, high}} of probabilities [texts, 28] against truth [texts, 28]."""
    predicted, truth = (p >= threshold).astype(np.float64), y.astype(np.float64)
    e_predicted, e_truth = (ekman(p) >= ekman_threshold).astype(np.float64), ekman_truth(truth)
    squares = ((p - y) ** 2).mean(1)
    rng = np.random.default_rng(SEED)
    weights = np.concatenate([np.ones((1, len(y))), rng.multinomial(len(y), np.full(len(y), 1 / len(y)), resamples)])
    sums = lambda a, b: (weights @ (a * b), weights @ a, weights @ b)
    tp, positive, present = sums(predicted, truth)
    values = {
        "macro_f1": f1(tp, positive, present).mean(1),
        "micro_f1": f1(tp.sum(1), positive.sum(1), present.sum(1)),
        "ekman_macro_f1": f1(*sums(e_predicted, e_truth)).mean(1),
        "brier": weights @ squares / len(y),
        "ece": np.array([ece(p, y)] + [ece(p[i], y[i]) for i in (rng.integers(0, len(y), (min(resamples, 200), len(y))))]),
    }
    out = {}
    for name, v in values.items():
        low, high = np.percentile(v[1:], [2.5, 97.5]) if len(v) > 1 else (v[0], v[0])
        out[name] = {"value": round(float(v[0]), 4), "low": round(float(low), 4), "high": round(float(high), 4)}
    return out


def by_label(p, y, threshold):
    predicted = p >= threshold
    return f1((predicted * y).sum(0), predicted.sum(0), y.sum(0))


def thresholds(p, y, shrink=40.0):
    """The thresholds with the best F1 of each label, pulled in log-odds towards the best common one as if by `shrink` positives."""
    odds = np.log(np.clip(p, 1e-6, 1 - 1e-6) / (1 - np.clip(p, 1e-6, 1 - 1e-6)))
    grid = np.linspace(-4, 2, 121)
    common = grid[np.argmax([f1(((odds >= g) * y).sum(0), (odds >= g).sum(0), y.sum(0)).mean() for g in grid])]
    best = np.array([grid[np.argmax(smooth([f1(((odds[:, l] >= g) * y[:, l]).sum(), (odds[:, l] >= g).sum(), y[:, l].sum()) for g in grid]))]
                     for l in range(p.shape[1])])
    n = y.sum(0)
    return (1 / (1 + np.exp(-(n * best + shrink * common) / (n + shrink)))).astype(np.float32)


def smooth(curve, width=7):
    """A moving mean, so that one lucky text does not place a threshold."""
    padded = np.pad(np.asarray(curve), width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
