"""Do two processors agree? Runs the golden texts on this one, and compares two such runs.

    agree.py run OUT.npy              on each processor; an emulated one will do:
    qemu-x86_64 -cpu Haswell $(readlink -f .cache/models/venv/bin/python) models/train/agree.py run OUT.npy
    agree.py compare A.npy B.npy      says how many embeddings are equal bit for bit and how far apart probabilities are

Promises: exits with 1 when a probability of the full tier differs by more than 1e-3. Leaves out: the fast tier, which has no
integer kernels. Under an emulator set PYTHONPATH to the environment's site-packages.
"""

import json
import sys
from pathlib import Path

import numpy as np

import emotion
import encoder
import ngram

MODELS = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3


def golden():
    return [json.loads(line) for line in open(MODELS / "golden/emotion.jsonl", encoding="utf-8")]


def run(out):
    session = encoder.session_of(str(MODELS / "encoder/encoder.onnx"))
    np.save(out, np.array([np.concatenate(session.run(encoder.OUTPUTS, encoder.feeds(np.array([row["tokens"]]))), 1)[0] for row in golden()]))


def compare(a, b):
    a, b = np.load(a), np.load(b)
    shipped = emotion.Shipped(MODELS / "emotion")
    logits = shipped.ngram_logits(ngram.Counter().matrix([row["text"] for row in golden()]))
    feelings = (a[:, encoder.HIDDEN:], b[:, encoder.HIDDEN:])
    apart = np.abs(np.subtract(*(shipped.probabilities("full", logits, v) for v in feelings))).max(1)
    print(f"{len(a)} texts: {(a == b).all(1).sum()} pairs of vectors equal bit for bit, worst cosine {(a * b).sum(1).min() / 2:.6f}; "
          f"probabilities differ by at most {apart.max():.1e}, by more than {TOLERANCE} in {(apart > TOLERANCE).sum()} texts")
    return int(apart.max() > TOLERANCE)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", out]:
            run(out)
        case ["compare", a, b]:
            sys.exit(compare(a, b))
        case _:
            sys.exit(__doc__)
