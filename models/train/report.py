"""Measures the shipped emotion files on dev, beside simple baselines, and writes the table into the model card for people.

Promises: the fast tier's thresholds come from train (folds); the full tier's rows are those of five folds of dev, each judged by
what the other four gave; each row says what it is. Leaves out: the kept-apart
split and speed (`undertone eval`).
"""

import numpy as np

import emotion
import metrics
import ngram
from labels import LABELS

START, END = "<!-- figures: written by build.py -->", "<!-- end of figures -->"
METRICS = ("macro_f1", "micro_f1", "ekman_macro_f1", "ece", "brier")
NAMES = {
    "majority": "always neutral",
    "words": "TF-IDF of single words, logistic regression",
    "ngram": "the n-gram model alone",
    "full_head": "the full tier's head alone",
    "fast_head": "the fast tier's head alone",
    "full": "**full tier, five folds**",
    "fast": "**fast tier, as shipped**",
}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def words_matrix(texts, known, learning=True):
    """Counts of single tokens, 1 + ln n, a column a token; tokens that `known` lacks are added to it, or left out."""
    rows, columns, values = [0], [], []
    for text in texts:
        counts = {}
        for token in ngram.tokens(ngram.normalise(text)):
            b = known.setdefault(token, len(known)) if learning else known.get(token)
            if b is not None:
                counts[b] = counts.get(b, 0) + 1
        columns += sorted(counts)
        values += [1 + np.log(counts[b]) for b in sorted(counts)]
        rows.append(len(columns))
    return ngram.csr_matrix((np.array(values, np.float32), columns, rows), shape=(len(texts), ngram.BUCKETS))


def words_baseline(texts, truth):
    """Probabilities of train texts (folds) and of dev texts by TF-IDF of single tokens and logistic regression."""
    known = {}
    matrices = {split: words_matrix(texts[split], known, split == "train") for split in ("train", "dev")}
    fitter = emotion.ngram_fitter()
    unseen = emotion.unseen_logits(texts["train"], matrices["train"], truth["train"], fitter)
    return sigmoid(unseen), sigmoid(fitter(matrices["train"], truth["train"], matrices["dev"]))


def majority(truth, size):
    p = np.tile(truth.mean(0), (size, 1))
    threshold, ekman_threshold = np.full(len(LABELS), 2.0), np.full(7, 2.0)
    threshold[LABELS.index("neutral")] = ekman_threshold[-1] = 0
    return p, threshold, ekman_threshold


def same_words(text):
    """What two texts share that differ in case, spacing and punctuation only."""
    return tuple(t for t in ngram.tokens(ngram.normalise(text)) if t[0].isalnum())


def measure(texts, truth, frequencies, vectors, unseen, shipped):
    """{row: figures}, the F1 of each label, and how many dev texts stand in train too."""
    y = truth["dev"]
    logits = shipped.ngram_logits(frequencies["dev"])
    from_train = lambda p: emotion.thresholds(p, truth["train"])
    rows = {"majority": majority(truth["train"], len(y))}
    words_train, words_dev = words_baseline(texts, truth)
    rows["words"] = (words_dev, *from_train(words_train))
    rows["ngram"] = (sigmoid(logits), *from_train(sigmoid(unseen["ngram"])))
    full, fast = (shipped.head_logits(tier, vectors[tier]) for tier in ("full", "fast"))
    rows["full_head"] = emotion.crossed(np.zeros_like(full), full, texts["dev"], y)
    rows["full"] = emotion.crossed(logits, full, texts["dev"], y)
    rows["fast_head"] = (sigmoid(fast), *from_train(sigmoid(unseen["fast"])))
    rows["fast"] = (shipped.probabilities("fast", logits, vectors["fast"]), shipped.head["fast.threshold"], shipped.head["fast.ekman_threshold"])
    out = {name: metrics.figures(p, y, t, e) for name, (p, t, e) in rows.items()}
    known = set(map(same_words, texts["train"]))
    by_label = {tier: dict(zip(LABELS, (round(float(v), 3) for v in metrics.by_label(rows[tier][0], y, rows[tier][1])))) for tier in ("full", "fast")}
    return {"n": len(y), "also_in_train": sum(same_words(t) in known for t in texts["dev"]), "rows": out, "f1_by_label": by_label,
            "positives": dict(zip(LABELS, map(int, y.sum(0))))}


def write_table(path, measured):
    cell = lambda f: f"{f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})"
    lines = [START, "", "| | " + " | ".join(METRICS) + " |", "|---|" + "---|" * len(METRICS)]
    lines += [f"| {NAMES[row]} | " + " | ".join(cell(figures[m]) for m in METRICS) + " |" for row, figures in measured["rows"].items()]
    lines += ["", f"GoEmotions dev, {measured['n']} texts, {measured['also_in_train']} of which have the same words as a text in train. F1 by label, with the positives in dev:", "",
              "| label | positives | full | fast |", "|---|---|---|---|"]
    lines += [f"| {l} | {measured['positives'][l]} | {measured['f1_by_label']['full'][l]:.2f} | {measured['f1_by_label']['fast'][l]:.2f} |" for l in LABELS]
    text = path.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    path.write_text(before + "\n".join(lines) + "\n\n" + END + after)
