"""Hashed n-gram features: the one definition that training, the golden file and the program share (emotion/FORMAT.md says it in words).

Promises: a pure function of the text with explicit character ranges, so that another language can do the same without the
same Unicode tables; bounded work. Leaves out: weights and training (emotion.py).
"""

import math

import numpy as np
from scipy.sparse import csr_matrix

BUCKETS = 1 << 18
CHARACTERS_MAX = 4096
RUN_MAX = 3
GRAMS = (2, 3, 4, 5)
SPACES = frozenset(map(chr, [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]))
DROPPED = ((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2064), (0x2066, 0x2069), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0x1F3FB, 0x1F3FF))
SYMBOLS = ((0x00, 0x26), (0x28, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7),
           (0xF7, 0xF7), (0x2010, 0x2BFF), (0x3001, 0x303F), (0xFF01, 0xFF0F), (0x1F000, 0x1FAFF))
APOSTROPHES = "\u2018\u2019\u02bc\uff07"


def within(code, ranges):
    return any(low <= code <= high for low, high in ranges)


KINDS = {}


def kind(character):
    """'space', 'drop', 'symbol' or 'word'."""
    found = KINDS.get(character)
    if found is None:
        code = ord(character)
        found = ("space" if character in SPACES else "drop" if within(code, DROPPED) else "symbol" if within(code, SYMBOLS) else "word")
        KINDS[character] = found
    return found


def normalise(text):
    """Chunks between white space: lower case character by character, apostrophes made alike, long runs cut to three."""
    chunks, chunk, run, count = [], [], "", 0
    for character in (c for raw in text for c in raw.lower()):
        character = "'" if character in APOSTROPHES else character
        what = kind(character)
        if what == "drop":
            continue
        if what == "space":
            if chunk:
                chunks.append("".join(chunk))
            chunk, run = [], ""
            count += 1
        elif character == run and repeated == RUN_MAX:
            continue
        else:
            repeated = repeated + 1 if character == run else 1
            run = character
            chunk.append(character)
            count += 1
        if count == CHARACTERS_MAX:
            break
    if chunk:
        chunks.append("".join(chunk))
    return chunks


def tokens(chunks):
    """Words (runs of word characters, apostrophes at the ends taken off) and symbols (runs of one character)."""
    found = []
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            end = start + 1
            if kind(chunk[start]) == "word":
                while end < len(chunk) and kind(chunk[end]) == "word":
                    end += 1
                word = chunk[start:end].strip("'")
                if word:
                    found.append(word)
            else:
                while end < len(chunk) and chunk[end] == chunk[start]:
                    end += 1
                found.append(chunk[start:end])
            start = end
    return found


def features(text):
    """Every feature of the text, repeated as often as it stands there: 'w' words and pairs, 'c' character n-grams."""
    chunks = normalise(text)
    words = tokens(chunks)
    found = ["w" + w for w in words]
    found += ["w" + a + " " + b for a, b in zip(words, words[1:])]
    for chunk in chunks:
        padded = " " + chunk + " "
        for n in GRAMS:
            found += ["c" + padded[i:i + n] for i in range(len(padded) - n + 1)]
    return found


def bucket(feature):
    """FNV-1a, 64 bits, over the UTF-8 bytes, its halves folded by xor."""
    value = 0xCBF29CE484222325
    for byte in feature.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 32)) & (BUCKETS - 1)


class Counter:
    """Bucket counts of texts, with a memory of the features that were hashed before."""

    def __init__(self):
        self.known = {}

    def counts(self, text):
        """{bucket: how often}."""
        found = {}
        for feature in features(text):
            b = self.known.get(feature)
            if b is None:
                b = self.known[feature] = bucket(feature)
            found[b] = found.get(b, 0) + 1
        return found

    def matrix(self, texts):
        """Sublinear term frequencies 1 + ln(count) of all texts, one row each, buckets in rising order."""
        rows, columns, values = [0], [], []
        for text in texts:
            counts = self.counts(text)
            for b in sorted(counts):
                columns.append(b)
                values.append(1 + math.log(counts[b]))
            rows.append(len(columns))
        return csr_matrix((np.array(values, np.float32), np.array(columns, np.int32), np.array(rows, np.int64)), shape=(len(texts), BUCKETS))


def weigh(frequencies, idf):
    """Frequencies times idf, rows of length one; a row without a known feature stays zero."""
    weighed = frequencies.multiply(idf[None, :]).tocsr().astype(np.float32)
    weighed.eliminate_zeros()
    lengths = np.sqrt(np.asarray(weighed.multiply(weighed).sum(1), np.float64)).ravel()
    lengths[lengths == 0] = 1
    weighed.data /= np.repeat(lengths, np.diff(weighed.indptr)).astype(np.float32)
    return weighed
