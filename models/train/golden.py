"""The golden file: texts with every intermediate result, so that the program's own code can be held against this one.

Promises: one JSON object a line: `text`; `tokens` (the encoder's, at most 128, special ones included); `full` and `fast` (28
probabilities); and on the first lines also `ngram` ({features, buckets, checksum, first}), `ngram_logits`, `static` (first 8
components before quantising), `embedding` ({scale, first: 8 steps}). The checksum is FNV-1a with 64 bits, in hexadecimal,
over bucket and count as little-endian u32, buckets rising.

A second file holds 10,000 real texts, one JSON object a line, gzipped: `text`, and CRC-32 of what three readers make of it,
each a sequence of little-endian u32: `encoder` and `static` (ids of the tokens, at most 128 and 512) and `ngram` (bucket and
count, buckets rising). Leaves out: labels; this is no test of quality.
"""

import gzip
import json
import random
import struct
import zlib

import numpy as np

import emotion
import encoder

DETAILED, TEXTS = 200, 1000
NASTY = [
    "", " ", "\t\n\r", "\u200b", "\u200b\u200c\u200d\ufeff", "'", "''' ''", "a", "A", ".", "!!!!!!!!!!", "?!?!?!?!", "...", "\u2026", "\u0000", "a\u0000b",
    "I don't know", "I don\u2019t know", "I DON\u02bcT KNOW", "'quoted' words'", "soooooooo happyyyyyy", "ha ha ha ha ha", "hahahahaha", "aa\u200baa aaaa",
    "\U0001f602", "\U0001f602\U0001f602\U0001f602\U0001f602\U0001f602", "love it \u2764\ufe0f\u2764\ufe0f", "\U0001f44d\U0001f3fd thanks", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
    "\U0001f1eb\U0001f1ee flag", "text\U0001f600glued\U0001f622together", ":) :( :-D ;) <3 >:( xD", "\u00af\\_(\u30c4)_/\u00af", "(\u256f\u00b0\u25a1\u00b0\uff09\u256f\ufe35 \u253b\u2501\u253b",
    "\u0645\u0631\u062d\u0628\u0627\u060c \u0623\u0646\u0627 \u0633\u0639\u064a\u062f \u062c\u062f\u0627 \u0627\u0644\u064a\u0648\u0645", "\u05e9\u05dc\u05d5\u05dd, \u05d0\u05e0\u05d9 \u05e2\u05e6\u05d5\u05d1", "\u202eright to left override\u202c end",
    "\u4eca\u5929\u6211\u5f88\u9ad8\u5174\uff01", "\u4eca\u65e5\u306f\u3068\u3066\u3082\u60b2\u3057\u3044\u3067\u3059\u3002", "\uc624\ub298 \uc815\ub9d0 \uae30\ubd84\uc774 \uc88b\uc544\uc694", "\u0906\u091c \u092e\u0948\u0902 \u092c\u0939\u0941\u0924 \u0916\u0941\u0936 \u0939\u0942\u0901", "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e14\u0e35\u0e43\u0e08\u0e21\u0e32\u0e01",
    "\u042f \u043e\u0447\u0435\u043d\u044c \u0440\u0430\u0434!", "\u0395\u03af\u03bc\u03b1\u03b9 \u03c0\u03bf\u03bb\u03cd \u03c7\u03b1\u03c1\u03bf\u03cd\u03bc\u03b5\u03bd\u03bf\u03c2", "\u039f\u0394\u039f\u03a3 \u03a3\u03a3\u03a3\u03a3\u03a3", "\u0130STANBUL \u0130\u0130\u0130\u0130\u0130\u0130 I\u0307", "STRASSE STRA\u00dfE \u1e9e", "\ufb01ne \u01c4 \u01c5 \u2160",
    "cafe\u0301 caf\u00e9 CAF\u00c9", "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e\u0349\u035a\u032f\u031e\u0320\u034da\u036b\u0357\u0334\u0362\u0335\u031c\u0330\u0354l\u0368\u0367\u0369\u0358\u0320g\u0311\u0357\u030e\u0305\u035b\u0341\u0334\u033b\u0348\u034d\u0354\u0339o\u0342\u030c\u030c\u0358\u0328\u0335\u0339\u033b\u031d\u0333!", "\uff34\uff28\uff29\uff33 \uff29\uff33 \uff26\uff35\uff2c\uff2c\uff37\uff29\uff24\uff34\uff28\uff01\uff07\uff07",
    "\U0001d4d5\U0001d4ea\U0001d4f7\U0001d4ec\U0001d4ee", "line one\nline two\r\nline three", "no\u00a0break\u3000wide\u2003em", "[NAME] is [RELIGION]", "[CLS] [SEP] [UNK] [PAD] [MASK]", "##ing ##s", "http://example.com/?q=a&b=%20 @user #tag", "1234567890 3.14 1,000,000 \u0664\u0665",
    "a" * 300, "word " * 300, "x\u0301" * 200, "\U0001f602" * 500, "no spaces " + "abcdefghij" * 60, "The quick brown fox is sad. " * 360, "supercalifragilistic" * 6 + " ok", "\u200b".join("invisible"), "-" * 200, "a b " * 200 + "!" * 9,
    "I hate this so much!!! \U0001f621", "thank you so much, you made my day", "why would you do that?", "I'm so sorry for your loss", "meh", "ok", "lol", "wow", "yes", "no", "hi",
]


def checksum(counts):
    value = 0xCBF29CE484222325
    for b in sorted(counts):
        for byte in struct.pack("<II", b, counts[b]):
            value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


REAL, LONG, LONG_CHARACTERS = 10_000, 10, 10_000


def real(data):
    """Comments, subtitles in eight languages, questionnaire items in 39 languages, and lines of 10 kB made of them."""
    drawn = random.Random(1)
    rows = lambda path: sorted({json.loads(line)["text"] for line in open(path, encoding="utf-8")})
    texts = drawn.sample(rows(data / "goemotions/train.jsonl"), 3000)
    for path in sorted((data / "xed").glob("*.jsonl")):
        texts += drawn.sample(rows(path), 350)
    items = sorted({item["text"] for path in (data / "ipip120").glob("*.json") for item in json.loads(path.read_text())})
    texts += drawn.sample(items, REAL - LONG - len(texts))
    for _ in range(LONG):
        line = ""
        while len(line) < LONG_CHARACTERS:
            line += drawn.choice(texts) + drawn.choice([" ", "  ", "\n", ""])
        texts.append(line)
    return texts


def write_real(data, out, encoder_tokenizer, static_tokenizer, counter):
    crc = lambda numbers: zlib.crc32(struct.pack(f"<{len(numbers)}I", *numbers))
    with open(out, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        for text in real(data):
            counts = counter.counts(text)
            row = {"text": text, "encoder": crc(encoder_tokenizer.encode(text).ids), "static": crc(static_tokenizer.encode(text, add_special_tokens=False).ids[:512]),
                   "ngram": crc([x for b in sorted(counts) for x in (b, counts[b])])}
            file.write((json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def chosen(texts):
    """The nasty ones, then texts spread evenly over the data."""
    step = max(1, len(texts) // (TEXTS - len(NASTY)))
    return NASTY + texts[::step][:TEXTS - len(NASTY)]


def write(texts, out, session, tokenizer, static, shipped, counter):
    texts = chosen(texts)
    frequencies = counter.matrix(texts)
    encoded = [encoder.embed(session, tokenizer, [t]) for t in texts]
    embedding, feeling = (np.concatenate([e[name] for e in encoded]) for name in encoder.OUTPUTS)
    vectors = {"full": feeling, "fast": emotion.read(static.embed(texts))}
    logits = shipped.ngram_logits(frequencies)
    p = {tier: shipped.probabilities(tier, logits, v) for tier, v in vectors.items()}
    steps, scales = emotion.travelled(embedding)
    weighed = emotion.ngram.weigh(frequencies, shipped.idf)
    rounded = lambda values, digits=6: [round(float(v), digits) for v in values]
    with open(out, "w") as file:
        for i, text in enumerate(texts):
            row = {"text": text, "tokens": tokenizer.encode(text).ids, "full": rounded(p["full"][i]), "fast": rounded(p["fast"][i])}
            if i < DETAILED:
                counts, x = counter.counts(text), weighed[i].sorted_indices()
                row["ngram"] = {"features": sum(counts.values()), "buckets": len(counts), "checksum": checksum(counts),
                                "first": [[int(b), round(float(v), 6)] for b, v in zip(x.indices[:5], x.data[:5])]}
                row["ngram_logits"] = rounded(logits[i], 5)
                row["static"] = rounded(static.embed([text])[0][:8])
                row["embedding"] = {"scale": float(scales[i]), "first": [int(v) for v in steps[i][:8]]}
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    return len(texts)
