"""Ekman's six emotions in the other languages of XED: what the English models say there, and what n-grams learn there.

    python3 models/train/languages.py --data DIR

Prints a table, a language a row, of macro F1 over the six classes on lines that have at least one of them: always every class;
the shipped full tier, which reads English; TF-IDF of single words, and hashed n-grams (emotion/FORMAT.md), each fitted on four
folds of the language's own file and judged on the one left out. Thresholds are fitted on the other folds in each case, those of
the English model too. Leaves out: weights to ship. Every line of these files expresses an emotion, so that nothing that learns
from them alone has seen a neutral text.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import emotion
import encoder
import labels
import metrics
import ngram
import report

MODELS = Path(__file__).resolve().parents[1]
FILES = {"fi": "fi-train", "fr": "fr-dev", "it": "it-dev", "nl": "nl-dev", "pl": "pl-dev", "pt": "pt-dev", "sv": "sv-dev"}
LINES_MAX = 8000
STRENGTHS = (1.0, 4.0)


def f1(answers, y):
    return float(metrics.f1((answers * y).sum(0), answers.sum(0), y.sum(0)).mean())


def judged(p, texts, y):
    """Macro F1 by thresholds that were fitted without the text's fold."""
    folds, answers = np.array([emotion.fold_of(t) for t in texts]), np.zeros_like(y)
    for k in np.unique(folds):
        answers[folds == k] = p[folds == k] >= metrics.thresholds(p[folds != k], y[folds != k])
    return f1(answers, y)


def learnt(x, texts, y):
    """Of the better strength of two."""
    return max(judged(report.sigmoid(emotion.unseen_logits(texts, x, y, emotion.ngram_fitter(c))), texts, y) for c in STRENGTHS)


def main():
    parser = argparse.ArgumentParser(description="Ekman's emotions in other languages.")
    parser.add_argument("--data", required=True, help="folder that holds xed/")
    data = Path(parser.parse_args().data) / "xed"
    session, tokenizer = encoder.session_of(str(MODELS / "encoder/encoder.onnx")), encoder.tokenizer_of(MODELS / "encoder")
    shipped, counter = emotion.Shipped(MODELS / "emotion"), ngram.Counter()
    print("| | lines | every class | English model | words | n-grams |\n|---|---|---|---|---|---|")
    for language, file in FILES.items():
        rows = [json.loads(line) for line in open(data / f"{file}.jsonl", encoding="utf-8")]
        rows = [row for row in rows if set(row["labels"]) & set(labels.XED)][:LINES_MAX]
        texts, y = [row["text"] for row in rows], labels.xed_truth(rows)
        frequencies = counter.matrix(texts)
        print(f"{language}: {len(texts)} lines", file=sys.stderr, flush=True)
        vectors = encoder.embed(session, tokenizer, texts)["emotion"]
        english = metrics.ekman(shipped.probabilities("full", shipped.ngram_logits(frequencies), vectors))[:, : len(labels.XED)]
        figures = [f1(np.ones_like(y), y), judged(english, texts, y), learnt(report.words_matrix(texts, {}), texts, y), learnt(frequencies, texts, y)]
        print(f"| {language} | {len(texts)} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
