"""What steers the decoder, as labels on lines of verse: emotion, mood, colour, length, and words that it is about.

    python3 dream_labels.py --data DIR --work DIR [--share 0.2]

Promises: emotions come from the project's own n-gram and static model (emotion/, fast tier), read with emotion words masked,
so that a feeling is carried by more than its name; for each emotion the lines of the highest score are labelled, whatever
the prior of another kind of text was. Mood comes from a model fitted on poem_sentiment. Colours are words of a list. Words
to be about come from the line itself or from its neighbours. A share of the lines is labelled, by a hash of their number.
Leaves out: which samples are steered at all (dreams.py).
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from dream_text import COLOURS, CONTROLS, EMOTIONS, LENGTHS, MOODS, control

TOP_EKMAN, TOP_FINE, MOOD_SURE = 0.03, 0.01, 0.8
SHORT, LONG = 30, 50
ODDS = {"emotion": 0.75, "mood": 0.4, "colour": 0.7, "length": 0.25, "about": 0.6}
OWN_WORDS, ABOUT_MAX, NEAR = 0.6, 3, 3
# The names of feelings and their commonest forms: what the judge of steering will not see either.
FEELINGS = re.compile(r"\b(?:ang(?:er|ered|ry|rily)|wrath\w*|rag(?:e|ed|es|ing)|fur(?:y|ious|iously)|hat(?:e|ed|es|ing|red|eful)|annoy\w*|disgust\w*|loath\w*|fear\w*|afraid|"
                      r"terror\w*|terrif\w*|dread\w*|fright\w*|nervous\w*|joy\w*|happ(?:y|ily|ier|iest|iness)|glad\w*|delight\w*|merr(?:y|ily|iment)|sad(?:ly|ness|der|dest|den)?|"
                      r"sorrow\w*|grie(?:f|fs|ve|ves|ved|ving|vous)|mourn\w*|surpris\w*|astonish\w*|amaz\w*|wonder(?:ed|ing|s)?|lov(?:e|ed|es|er|ers|ing|ely)|proud\w*|pride|"
                      r"desire\w*|hop(?:e|ed|es|ing|eful)|remorse\w*|relie(?:f|ve|ved)|grat(?:eful|itude)|optimis\w*|excit\w*|embarrass\w*|admir\w*|confus\w*|curio\w*|disappoint\w*|amus\w*)\b", re.I)
SHADES = {
    "black": "black ebony raven sable inky swarthy jetty", "white": "white snowy ivory alabaster pearly milky snow-white", "grey": "grey gray ashen silver silvery hoary leaden",
    "red": "red crimson scarlet ruby vermilion ruddy blood-red", "orange": "orange amber tawny copper", "yellow": "yellow gold golden saffron flaxen",
    "green": "green emerald verdant verdure", "blue": "blue azure sapphire cerulean", "purple": "purple violet violets amethyst lilac lavender mauve",
    "pink": "pink rosy blush blushing roseate rose-red", "brown": "brown russet chestnut auburn bronze dun",
}
SHADE = {word: COLOURS.index(colour) for colour, words in SHADES.items() for word in words.split()}
SHADE_WORD = re.compile(r"\b(?:" + "|".join(sorted(SHADE, key=len, reverse=True)) + r")\b", re.I)
STOP = set("that with from this have they them their there then than when what where which while were will would shall should could your yours thou thee thine "
           "into upon unto like such some more most much many each every ever never only till until over under here hath doth been being does must might these those "
           "very still though through thus even come came make made know well said says tell just must also down back again away before after about against".split())


def labelled(lines, data, folder, say):
    """(emotion, finer emotion, mood) of lines, as indices, -1 for none."""
    import emotion
    import labels
    import metrics
    import ngram
    import static
    shipped, vectors, counter = emotion.Shipped(folder / "emotion"), static.Static(folder / "static", 512), ngram.Counter()
    assert labels.LABELS == EMOTIONS

    def seen(texts):
        masked = [FEELINGS.sub(" ", t) for t in texts]
        x = emotion.read(vectors.embed(masked))
        return shipped.probabilities("fast", shipped.ngram_logits(counter.matrix(masked)), x), emotion.read(vectors.embed(texts))

    rows = [json.loads(r) for r in open(data / "poem_sentiment/train.jsonl", encoding="utf-8")]
    rows = [r for r in rows if r["label"] in (-1, 0, 1)]
    features = lambda p, x: np.concatenate([np.log(p + 1e-4), 3 * x], 1)  # noqa: E731
    one_hot = np.array([[r["label"] == v for v in (-1, 0, 1)] for r in rows], np.float32)
    weight, bias = emotion.fit(features(*seen([r["text"] for r in rows])).astype(np.float32), one_hot, 1.0, 300)
    dev = [json.loads(r) for r in open(data / "poem_sentiment/dev.jsonl", encoding="utf-8")]
    dev = [r for r in dev if r["label"] in (-1, 0, 1)]
    guess = emotion.logits(features(*seen([r["text"] for r in dev])), weight, bias).argmax(1) - 1
    truth = np.array([r["label"] for r in dev])
    say(f"mood: right on {np.mean(guess == truth):.3f} of {len(dev)} dev lines of poem_sentiment, always even {np.mean(truth == 0):.3f}")
    p, moods = [], []
    for i in range(0, len(lines), 20000):
        part, x = seen(lines[i:i + 20000])
        z = emotion.logits(features(part, x), weight, bias)
        z = np.exp(z - z.max(1, keepdims=True))
        z /= z.sum(1, keepdims=True)
        moods.append(np.where(z.max(1) >= MOOD_SURE, z.argmax(1), -1))
        p.append(part)
        counter.known.clear()
        say(f"{i + len(part)} of {len(lines)} lines")
    p, mood = np.concatenate(p), np.concatenate(moods)
    six = list(labels.EKMAN)[:6]
    score = metrics.ekman(p)[:, :6]
    rank = score.argsort(0).argsort(0) / len(score)
    coarse = np.where(rank.max(1) >= 1 - TOP_EKMAN, np.array([EMOTIONS.index(e) for e in six])[rank.argmax(1)], -1)
    rank = p.argsort(0).argsort(0) / len(p)
    fine = np.where(rank.max(1) >= 1 - TOP_FINE, rank.argmax(1), -1)
    return coarse, fine, mood


def head(corpus, first, last, rng, about):
    """Control pieces of lines first..last, each kind with its odds."""
    if not hasattr(corpus, "starts"):
        tables(corpus)
    found = []
    at = range(first, last)

    def one(name):
        return next((int(corpus.labels[name][j]) for j in at if corpus.labels[name][j] >= 0), -1)

    draw = dict(zip(ODDS, rng.random(len(ODDS))))
    if draw["emotion"] < ODDS["emotion"]:
        choices = [c for c in (one("coarse"), one("fine")) if c >= 0]
        if choices:
            found.append(control("emotion", EMOTIONS[choices[int(rng.integers(len(choices)))]]))
    if draw["mood"] < ODDS["mood"] and one("mood") >= 0:
        found.append(control("mood", MOODS[one("mood")]))
    if draw["colour"] < ODDS["colour"] and one("colour") >= 0:
        found.append(control("colour", COLOURS[one("colour")]))
    if draw["length"] < ODDS["length"]:
        length = corpus.characters[first:last].mean()
        found.append(control("length", LENGTHS[0 if length < SHORT else 1 if length < LONG else 2]))
    if draw["about"] < ODDS["about"]:
        own = rng.random() < OWN_WORDS
        words = [w for j in (at if own else range(max(0, first - NEAR), min(len(corpus.dev), last + NEAR))) if not corpus.dev[j] for w in corpus.words(j)]
        if words:
            found.append(about)
            for k in rng.permutation(len(words))[:1 + int(rng.integers(ABOUT_MAX))]:
                found.extend(words[k])
    return found


def tables(corpus):
    """Which pieces begin a word and which go on with it."""
    vocabulary = json.loads((corpus.work / "tokenizer.json").read_text())["model"]["vocab"]
    text = {i: piece for piece, i in vocabulary.items()}
    corpus.starts = np.array([text[i].startswith("Ġ") and text[i][1:].isascii() and text[i][1:].isalpha() for i in range(len(text))])
    corpus.goes_on = np.array([text[i].isascii() and text[i].isalpha() for i in range(len(text))])

    def words(i):
        line, out = corpus.line(i), []
        k = 0
        while k < len(line):
            if not corpus.starts[line[k]]:
                k += 1
                continue
            end = k + 1
            while end < len(line) and corpus.goes_on[line[end]]:
                end += 1
            word = "".join(text[int(p)] for p in line[k:end])[1:]
            if len(word) >= 4 and word not in STOP:
                out.append(line[k:end])
            k = end
        return out

    corpus.words = words


def main():
    import dreams
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.2)
    args = parser.parse_args()
    lines = dreams.lines_of(args.data)
    number = np.arange(len(lines), dtype=np.uint64)
    known = (number * np.uint64(2654435761) % np.uint64(1 << 32)) < np.uint64(args.share * (1 << 32))
    known &= ~dreams.is_dev(len(lines))
    chosen = np.flatnonzero(known)
    out = {n: np.full(len(lines), -1, np.int8) for n in ("coarse", "fine", "mood", "colour")}
    for i, line in enumerate(lines):
        found = SHADE_WORD.search(line)
        if found:
            out["colour"][i] = SHADE[found.group().lower()]
    say = lambda m: print(m, flush=True)  # noqa: E731
    coarse, fine, mood = labelled([lines[i] for i in chosen], args.data, Path(__file__).resolve().parent.parent, say)
    out["coarse"][chosen], out["fine"][chosen], out["mood"][chosen] = coarse, fine, mood
    np.savez_compressed(args.work / "labels.new.npz", **out, known=known)
    (args.work / "labels.new.npz").rename(args.work / "labels.npz")
    for name in out:
        say(f"{name}: {(out[name] >= 0).sum()} lines")
    for e in ("joy", "sadness", "anger", "fear", "disgust", "surprise"):
        say(f"{e}: " + " / ".join(lines[i] for i in chosen[coarse == EMOTIONS.index(e)][:6]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
