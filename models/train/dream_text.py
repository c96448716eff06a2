"""How verse is written for the dream decoder: case factored out, byte-pair pieces, and what stands for what in its vocabulary.

Promises: `encode` and `decode` are exact inverses on any line without the two marks and control characters (a test of the
whole corpus: `python3 dreams.py check`); the first letter of a line is a capital unless a mark says otherwise, so that
"Love" at the start and "love" within are one piece. Leaves out: what the decoder learns (dreams.py).
"""

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

FLIP, CAPITALS = "\x01", "\x02"
PAD, START, LINE, GO, ABOUT, END = range(6)
EMOTIONS = ("admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval disgust embarrassment "
            "excitement fear gratitude grief joy love nervousness optimism pride realization relief remorse sadness surprise neutral").split()
COLOURS = "black white grey red orange yellow green blue purple pink brown".split()
MOODS = "negative even positive".split()
LENGTHS = "short middle long".split()
CONTROLS = [*(f"<emotion {e}>" for e in EMOTIONS), *(f"<colour {c}>" for c in COLOURS), *(f"<mood {m}>" for m in MOODS), *(f"<length {n}>" for n in LENGTHS)]
SPECIAL = ["<pad>", "<start>", "<line>", "<go>", "<about>", "<end>", *CONTROLS, *(f"<spare {i}>" for i in range(64 - 6 - len(CONTROLS)))]
PIECES = 4096
WORDS = Regex(r" ?[\x01\x02]?\p{L}+(?:['’]\p{L}+)*| ?[^\s\p{L}\x01\x02]+|\s+|[\x01\x02]")
RUN = re.compile(r"[A-Za-z]+")


def control(kind, name):
    return SPECIAL.index(f"<{kind} {name}>")


def fold(line):
    """Lower case with marks; a space before the first word."""
    out, end, first = [" "], 0, True
    for run in RUN.finditer(line):
        word = run.group()
        out.append(line[end:run.start()])
        end = run.end()
        if len(word) > 1 and word.isupper():
            out.append(CAPITALS + word.lower())
        elif word[1:].islower() or len(word) == 1:
            capital = word[0].isupper()
            out.append((FLIP if capital != first else "") + word.lower())
        else:
            out.extend((FLIP if c.isupper() != (first and i == 0) else "") + c.lower() for i, c in enumerate(word))
        first = False
    out.append(line[end:])
    return "".join(out)


def unfold(text):
    """The line again; total: a mark without a letter after it is dropped."""
    out, flip, capitals, first = [], False, False, True
    for c in text[1:] if text.startswith(" ") else text:
        if c == FLIP:
            flip = True
        elif c == CAPITALS:
            capitals = True
        elif "a" <= c <= "z":
            out.append(c.upper() if capitals or flip != first else c)
            flip = first = False
        else:
            capitals = flip = False
            out.append(c)
    return "".join(out)


def train(lines, size=PIECES):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(map(fold, lines), trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False,
                                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def encode(tokenizer, lines):
    """[[piece]], without start and end."""
    return [e.ids for e in tokenizer.encode_batch_fast([fold(line) for line in lines], add_special_tokens=False)]


def decode(tokenizer, pieces):
    return unfold(tokenizer.decode(pieces, skip_special_tokens=False))
