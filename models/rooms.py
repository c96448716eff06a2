"""Spliced conversations for `undertone eval rooms`: the turns of six chats, in pieces, shuffled; each turn says whose it is.

Usage: rooms.py DATA_FOLDER PIECES HALF > spliced.jsonl. Class T alone (Synthetic-Persona-Chat, BYU chit-chat, MultiDoGO dev).
PIECES 1 strings the chats one after the other; 3 cuts each in three, so that subjects come back. HALF a was for choosing,
b is for measuring: no chat stands in both. The same arguments give the same file.
"""

import gzip
import json
import random
import sys
from pathlib import Path

CHATS, LONGEST, CONVERSATIONS = 6, 30, {"a": 16, "b": 30}


def chats(data):
    out = []
    for line in (data / "synthetic_persona_chat/dev.jsonl").read_text().splitlines()[:300]:
        said = [text for _, sep, text in (part.partition(": ") for part in json.loads(line)["conversation"].split("\n")) if sep]
        if len(said) >= 12:
            out.append(said[2:])  # greetings are nobody's subject
    with gzip.open(data / "byu_chitchat/train.jsonl.gz", "rt") as lines:
        for line, _ in zip(lines, range(600)):
            said = [m[2] for m in json.loads(line)["m"]]
            if 12 <= len(said) <= 40:
                out.append(said)
    tasks = {}
    with gzip.open(data / "multidogo/dev.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            tasks.setdefault(row["dialogue"], []).append(row["text"])
    return out + [said for said in tasks.values() if len(said) >= 9][:100]


def spliced(chosen, pieces, rng):
    """Pieces in a drawn order, none after one of the same chat while there is another."""
    left = []
    for said in chosen:
        said = said[:LONGEST]
        size = len(said) // pieces
        left.append([said[i * size:(i + 1) * size if i < pieces - 1 else len(said)] for i in range(pieces)])
    turns, last = [], None
    while any(left):
        ready = [i for i, rest in enumerate(left) if rest]
        last = rng.choice([i for i in ready if i != last] or ready)
        turns += [{"text": text, "chat": last} for text in left[last].pop(0)]
    return turns


def main(data, pieces, half):
    all_chats = chats(Path(data))
    random.Random(0).shuffle(all_chats)
    middle = len(all_chats) // 2
    mine = all_chats[:middle] if half == "a" else all_chats[middle:]
    rng = random.Random(1 if half == "a" else 2)
    for _ in range(CONVERSATIONS[half]):
        print(json.dumps({"turns": spliced(rng.sample(mine, CHATS), int(pieces), rng)}, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
