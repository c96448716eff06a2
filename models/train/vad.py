"""Valence, arousal and dominance: ridge regression on the vectors and probabilities of EmoBank's sentences.

Promises: everything that EmoBank (CC BY-SA 4.0) taught is in vad.safetensors and nowhere else; inputs are those of the
program: full tier the emotion vector, the embedding after its trip, the 28 probabilities; fast tier the static embedding after
its trip and the probabilities. Ratings from 1 to 5 become -1 to 1. Deterministic.
"""

import numpy as np
from safetensors.numpy import save_file

AXES = ("valence", "arousal", "dominance")
# Ridge weight of standardised inputs, chosen on dev from six values between 30 and 10,000, which differ by 0.01.
PULL = {"full": 3000.0, "fast": 3000.0}


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


def pearson(said, y):
    return [float(np.corrcoef(said[:, axis], y[:, axis])[0, 1]) for axis in range(y.shape[1])]


def figures(said, y, resamples=1000, seed=1):
    """{axis: {value, low, high}}: Pearson's r with the 95 % interval of resampled sentences."""
    rng = np.random.default_rng(seed)
    drawn = np.array([pearson(said[i], y[i]) for i in rng.integers(0, len(y), (resamples, len(y)))])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    values = zip(AXES, pearson(said, y), low, high)
    return {axis: {"value": round(v, 4), "low": round(float(l), 4), "high": round(float(h), 4)} for axis, v, l, h in values}


def write(heads, folder):
    """`heads` maps a tier to (weight, bias)."""
    save_file({f"{tier}.{name}": np.ascontiguousarray(value, np.float32) for tier, (weight, bias) in heads.items()
               for name, value in (("weight", weight), ("bias", bias))}, f"{folder}/vad.safetensors")
