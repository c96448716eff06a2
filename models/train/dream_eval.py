"""Figures of the dream decoder, as `undertone eval dreams` defines them, and the baselines beside it.

    python3 dream_eval.py split | bits | neighbours | dreams | relevance | steering  [--run NAME] --work DIR --data DIR

`bits`: the decoder's bits a character on every dev line. `neighbours`: the same of a 5-gram model with modified
Kneser-Ney smoothing over the same pieces, of zlib and of lzma with as much of train as their windows hold. `dreams`: `copy_6gram` and
`distinct_2` of 1,000 dreams (seed 1), real dev verse beside. `relevance`, `steering`: as the functions say.
Promises: reads nothing of dev but what is scored. Leaves out: the program's own path, which has the last word.
"""

import argparse
import json
import lzma
import math
import re
import sys
import zlib
from pathlib import Path

import numpy as np

import dream_text
import dreams

ORDER, WIDE = 5, 12
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
DREAMS, TEMPERATURE, TOP_P, PIECES_MAX, LINES = 1000, 0.85, 0.95, 96, 4
SIX = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def words_of(text):
    return WORD.findall(text.lower())


# The 5-gram model.

class KneserNey:
    """Interpolated, modified (Chen and Goodman, 1999): three discounts an order, continuation counts below the highest order."""

    def __init__(self, lines):
        grid = padded(lines)
        raw = {n: np.unique(grid & ((1 << (WIDE * n)) - 1), return_counts=True) for n in (ORDER,)}
        self.orders = {}
        keys, counts = raw[ORDER]
        self.orders[ORDER] = self.order(keys, counts)
        whole = counts
        for n in range(ORDER - 1, 0, -1):
            low = keys & ((1 << (WIDE * n)) - 1)
            order = np.argsort(low, kind="stable")
            sorted_low = low[order]
            first = np.flatnonzero(np.concatenate([[True], sorted_low[1:] != sorted_low[:-1]]))
            kinds = np.diff(np.concatenate([first, [len(low)]]))
            sums = np.add.reduceat(whole[order], first)
            keys, whole = sorted_low[first], sums
            begins = (keys >> (WIDE * (n - 1))) == dream_text.START
            self.orders[n] = self.order(keys, np.where(begins & (n > 1), sums, kinds))

    @staticmethod
    def order(keys, counts):
        n1, n2, n3, n4 = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        discount = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        context = keys >> WIDE
        first = np.flatnonzero(np.concatenate([[True], context[1:] != context[:-1]]))
        taken = discount[np.minimum(counts, 3)]
        return keys, counts - taken, context[first], np.add.reduceat(counts, first), np.add.reduceat(taken, first)

    def surprise(self, lines):
        """Bits of every piece."""
        grid = padded(lines)
        p = np.full(len(grid), 1.0 / dream_text.PIECES)
        for n in range(1, ORDER + 1):
            keys, kept, contexts, totals, free = self.orders[n]
            want = grid & ((1 << (WIDE * n)) - 1)
            at = np.minimum(np.searchsorted(keys, want), len(keys) - 1)
            own = np.where(keys[at] == want, kept[at], 0.0)
            context = want >> WIDE
            at = np.minimum(np.searchsorted(contexts, context), len(contexts) - 1)
            known = contexts[at] == context
            p = np.where(known, (own + free[at] * p) / totals[at], p)
        return -np.log2(p)


def padded(lines):
    """Every 5-gram of the lines as one number, starts in front and the line's end behind."""
    out = []
    for line in lines:
        s = np.concatenate([np.full(ORDER - 1, dream_text.START, np.int64), line.astype(np.int64), [dream_text.LINE]])
        key = s[ORDER - 1:].copy()
        for back in range(1, ORDER):
            key |= s[ORDER - 1 - back:len(s) - back] << (WIDE * back)
        out.append(key)
    return np.concatenate(out)


def neighbours(args, corpus, lines):
    dev = np.flatnonzero(corpus.dev)
    characters = int(corpus.characters[dev].sum())
    model = KneserNey([corpus.line(i) for i in corpus.train])
    print(f"5-gram, modified Kneser-Ney: {model.surprise([corpus.line(i) for i in dev]).sum() / characters:.4f} bits a character", flush=True)
    some = dev[::20]
    held = sum(corpus.characters[some])
    known = ("\n".join(lines[i] for i in corpus.train[-200000:]) + "\n").encode()
    window = known[-32768:]
    plain, total = 0, 0
    for i in some:
        c = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, window)
        total += len(c.compress((lines[i] + "\n").encode()) + c.flush()) * 8
    print(f"zlib, each line with 32 KiB of train as its dictionary: {total / held:.4f}", flush=True)
    text = "".join(lines[i] + "\n" for i in dev).encode()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    plain = len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters)) * 8
    print(f"lzma of all dev lines in one file (which sees the lines before): {plain / characters:.4f}", flush=True)


def split(args, corpus, lines):
    """dev.txt and train.txt of the work folder: what `undertone eval dreams --data … --train …` reads."""
    for name, which in (("dev", corpus.dev), ("train", ~corpus.dev)):
        with open(args.work / f"{name}.txt", "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line, chosen in zip(lines, which) if chosen)


# The decoder.

def load(args):
    import torch
    from dream_net import Net
    at = args.work / args.run
    kept = torch.load(at / "final.pt" if (at / "final.pt").is_file() else at / "checkpoint.pt", weights_only=True)
    net = Net(**kept["config"])
    net.load_state_dict(kept["net"])
    return net.eval()


def bits(args, corpus, lines):
    print(f"{dreams.bits(load(args), corpus, np.flatnonzero(corpus.dev)):.4f} bits a character on {int(corpus.dev.sum())} lines")


def sample(net, heads, seed, temperature=TEMPERATURE, top_p=TOP_P, most=PIECES_MAX, lines=LINES, pieces=None):
    """One dream a head (pieces between start and text); many at once with a cache, each with draws of its own."""
    import torch
    out = []
    for i, head in enumerate(heads):
        rng = np.random.default_rng([seed, i])
        ids = [dream_text.PAD, dream_text.PAD, dream_text.START, *head]
        past, fresh, text, ended = None, ids, [], 0
        with torch.no_grad():
            while len(text) < most and ended < lines:
                states, past = net.states(torch.tensor([fresh]), past)
                z = net.logits(states[0, -1]).numpy().astype(np.float64) / temperature
                z[[dream_text.PAD, dream_text.START, dream_text.GO, dream_text.ABOUT]] = -np.inf
                z[6:64] = -np.inf
                if not text or lines == 1:
                    z[dream_text.END] = -np.inf
                order = np.argsort(-z)
                p = np.exp(z[order] - z[order[0]])
                p /= p.sum()
                keep = max(1, int(np.searchsorted(np.cumsum(p), top_p)) + 1)
                p = np.cumsum(p[:keep])
                drawn = int(order[min(keep - 1, int(np.searchsorted(p, rng.random() * p[-1])))])
                if drawn == dream_text.END:
                    break
                text.append(drawn)
                ended += drawn == dream_text.LINE
                fresh = [*([*ids, *text][-3:-1]), drawn]
        out.append(text)
    return out


def text_of(tokenizer, pieces):
    """Lines of a dream."""
    lines, line = [], []
    for p in [*pieces, dream_text.LINE]:
        if p == dream_text.LINE:
            if line:
                lines.append(dream_text.decode(tokenizer, line))
            line = []
        else:
            line.append(p)
    return lines


def six_grams(texts):
    for text in texts:
        w = words_of(text)
        yield from (tuple(w[i:i + 6]) for i in range(len(w) - 5))


def distinct(texts):
    pairs = [p for t in texts for p in zip(words_of(t), words_of(t)[1:])]
    return len(set(pairs)) / max(1, len(pairs)), len(pairs)


def dream_figures(args, corpus, lines):
    """Unsteered stanzas; real verse is taken in stanzas of as many lines, and cut to the same number of words for `distinct_2`."""
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    made = sample(load(args), [[]] * args.count, 1)
    made = [" ".join(text_of(tokenizer, m)) for m in made]
    dev = np.flatnonzero(corpus.dev)
    rng = np.random.default_rng(1)
    real = [" ".join(lines[i] for i in range(a, min(a + LINES, dev[-1] + 1)) if corpus.dev[i]) for a in rng.choice(dev, args.count, replace=False)]
    asked = {"dreams": made, "real verse": real}
    want = {g for texts in asked.values() for g in six_grams(texts)}
    # Line breaks are ignored, so that a 6-gram may run over the lines of train.
    found, window = set(), []
    for i in corpus.train:
        for w in words_of(lines[i]):
            window = [*window[-5:], w]
            g = tuple(window)
            if g in want:
                found.add(g)
    size = min(sum(len(words_of(t)) for t in texts) for texts in asked.values())
    for name, texts in asked.items():
        grams_ = list(six_grams(texts))
        cut, n = [], 0
        for t in texts:
            cut.append(t)
            n += len(words_of(t))
            if n >= size:
                break
        d, pairs = distinct(cut)
        print(f"{name}: copy_6gram {sum(g in found for g in grams_) / max(1, len(grams_)):.4f} of {len(grams_)}, distinct_2 {d:.4f} of {pairs}")
    print("\n\n".join(made[:5]))


def conversations(data, count):
    """Chats with their last turns as text: BYU, dev where there is one."""
    at = data / "byu_chitchat"
    import gzip
    path = next(p for name in ("dev.jsonl", "dev.jsonl.gz", "train.jsonl", "train.jsonl.gz") if (p := at / name).is_file())
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    return [" ".join(m[2] for m in json.loads(r)["m"][-12:]) for r in opened][:count]


def relevance(args, corpus, lines):
    """Share of dreams nearer to their own conversation than to nine others drawn at random, by the static vectors; head: its words of
    highest inverse document frequency. Real dev stanzas chosen at random beside (chance 0.1)."""
    import emotion
    import static
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    chats = conversations(args.data, args.count)
    seen = {}
    for c in chats:
        for w in set(words_of(c)):
            seen[w] = seen.get(w, 0) + 1
    vectors = static.Static(Path(__file__).resolve().parent.parent / "static", 512)
    heads = []
    for c in chats:
        counts = {}
        for w in words_of(c):
            counts[w] = counts.get(w, 0) + 1
        best = sorted((w for w in counts if len(w) >= 4), key=lambda w: -counts[w] * math.log(len(chats) / seen[w]))[:3]
        heads.append([dream_text.ABOUT, *(p for w in best for p in tokenizer.encode(" " + w).ids), dream_text.GO])
    made = [" ".join(text_of(tokenizer, m)) for m in sample(load(args), heads, 1)]
    of = lambda texts: (lambda x: x / np.maximum(1e-9, np.linalg.norm(x, axis=1, keepdims=True)))(emotion.read(vectors.embed(texts)))  # noqa: E731
    near = of(made) @ of(chats).T
    rng = np.random.default_rng(1)
    won = []
    for i in range(len(chats)):
        others = rng.choice([j for j in range(len(chats)) if j != i], 9, replace=False)
        won.append(near[i, i] > near[i, others].max())
    print(f"relevance {np.mean(won):.3f} of {len(won)}")
    print("\n".join(f"{tokenizer.decode(h, skip_special_tokens=False)} | {m}" for h, m in zip(heads[:6], made)))


def steering(args, corpus, lines):
    """Share of dreams of an emotion that a judge gives that emotion, of six, text masked. The judge here: the project's own
    emotion model, which is NOT independent of the labels; the figure only says whether steering takes."""
    import emotion
    import metrics
    import ngram
    import static
    from dream_labels import FEELINGS
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    folder = Path(__file__).resolve().parent.parent
    shipped, vectors, counter = emotion.Shipped(folder / "emotion"), static.Static(folder / "static", 512), ngram.Counter()
    each = args.count // 6
    heads = [[dream_text.control("emotion", e), dream_text.GO] for e in SIX for _ in range(each)]
    made = [" ".join(text_of(tokenizer, m)) for m in sample(load(args), heads, 1)]
    masked = [FEELINGS.sub(" ", m) for m in made]
    p = metrics.ekman(shipped.probabilities("fast", shipped.ngram_logits(counter.matrix(masked)), emotion.read(vectors.embed(masked))))[:, :6]
    lift = np.log(p + 1e-6) - np.log(p + 1e-6).mean(0)
    truth = np.repeat(np.arange(6), each)
    print(f"steering, own judge: {np.mean(lift.argmax(1) == truth):.3f} of {len(truth)}, chance 0.167")
    for k, e in enumerate(SIX):
        print(f"{e}: {np.mean(lift.argmax(1)[truth == k] == k):.2f}  {made[k * each]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["split", "bits", "neighbours", "dreams", "relevance", "steering"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="run")
    parser.add_argument("--count", type=int, default=DREAMS)
    args = parser.parse_args()
    corpus, lines = dreams.Corpus(args.work), dreams.lines_of(args.data)
    {"split": split, "bits": bits, "neighbours": neighbours, "dreams": dream_figures, "relevance": relevance, "steering": steering}[args.what](args, corpus, lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
