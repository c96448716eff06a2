"""The base branch: the encoder's upper three layers, tuned so that texts of one intent lie together, over four sets at once.

Promises: the lower three layers stay as they are, so their activations are computed once and kept in a file; batches hold texts
of equal length, without padding; says how far it is. The recipe: each set has a direction for each of its intents; a text's
cosines with the directions of its own set, times 20, less 0.1 for the right one, go through a softmax (intents of two sets are
never pushed apart). Every epoch also sees chat, whose vectors are held where the published model puts them, so that it stays a
general sentence encoder. AdamW, rate 2.5e-4 (directions 2.5e-3), 100 steps of warm-up, then falling to 2 % of it; 3 epochs, up to
96 texts a step, dropout 0.1, gradients cut at length 1, bfloat16 in the linear layers where the processor has it.
Leaves out: anything that looks at dev; quantisation (encoder.py). One seed gives the same order and dropout, not the same bits
on another processor. Writes Hugging Face's names, layers 3 to 5.
"""

import random
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import bert
import encoder
import intents

EPOCHS, TEXTS, RATE, FASTER, DECAY, WARM, DROPOUT, SEED = 3, 96, 2.5e-4, 10, 0.01, 100, 0.1, 1
SCALE, MARGIN, HELD = 20.0, 0.1, 3.0
TOKENS_MAX, CHAT_A_EPOCH = 64, 5000
MULTIDOGO_EACH = 120
NO_INTENT = {"contentonly", "confirmation", "rejection", "thankyou", "openinggreeting", "closinggreeting", "outofdomain"}
TOLD_EVERY = 100


def intents_of(data):
    """[(set, text, intent)] of all train splits; MultiDoGO's turns that want one thing, at most so many of each."""
    rows = [(name, t, i) for name in intents.SETS for t, i in intents.texts_of(data, name)["train"]]
    by = {}
    for row in intents.lines(data / "multidogo/train.jsonl.gz"):
        if row["intent"] and not set("< ") & set(row["intent"]) and row["intent"] not in NO_INTENT:
            by.setdefault(row["intent"], set()).add(row["text"])
    rng = random.Random(SEED)
    for intent, texts in sorted(by.items()):
        if len(texts) >= 10:
            rows += [("multidogo", t, intent) for t in rng.sample(sorted(texts), min(len(texts), MULTIDOGO_EACH))]
    return rows


def chat_of(data):
    """Texts of people and bots that the published model's vectors are kept of."""
    rng = random.Random(SEED)
    kinds = [
        ({m[2] for r in intents.lines(data / "byu_chitchat/train.jsonl.gz") for m in r["m"]}, 5000),
        ({line.split(": ", 1)[-1] for r in intents.lines(data / "synthetic_persona_chat/dev.jsonl") for line in r["conversation"].split("\n")}, 3000),
        ({r["text"] for r in intents.lines(data / "goemotions/train.jsonl")}, 5000),
        ({e["Text"] for r in intents.lines(data / "star/train.jsonl.gz") for e in r["events"] if e.get("Text")}, 4000),
    ]
    return [t for texts, n in kinds for t in rng.sample(sorted(t for t in texts if 3 < len(t) < 300), n)]


def train(folder, data, work, out, say=print):
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    wanted, chat = intents_of(data), chat_of(data)
    texts = [t for _, t, _ in wanted] + chat
    tokenizer = encoder.tokenizer_of(folder, TOKENS_MAX)
    model = bert.Encoder(folder, DROPOUT)
    say(f"shared layers of {len(texts)} texts")
    kept = bert.Activations(model, [e.ids for e in tokenizer.encode_batch(texts)], work / "base-activations.npy", vectors=True)
    lengths, before = kept.lengths, kept.vectors
    names = sorted({name for name, _, _ in wanted})
    index = [{intent: k for k, intent in enumerate(sorted({i for n, _, i in wanted if n == name}))} for name in names]
    which = np.array([names.index(name) for name, _, _ in wanted])
    y = np.array([index[s][intent] for s, (_, _, intent) in zip(which, wanted)])
    mean = lambda s, c: torch.tensor(before[: len(wanted)][(which == s) & (y == c)].mean(0))
    directions = nn.ParameterList(nn.Parameter(F.normalize(torch.stack([mean(s, c) for c in range(len(i))]), dim=-1)) for s, i in enumerate(index))
    net = model.upper.train()
    groups = [([p for p in net.parameters() if p.dim() > 1], 1, DECAY), ([p for p in net.parameters() if p.dim() < 2], 1, 0), (list(directions), FASTER, 0)]
    optimiser = torch.optim.AdamW([{"params": p, "weight_decay": d} for p, _, d in groups], lr=RATE, fused=True)
    chats = range(len(wanted), len(texts))
    steps = EPOCHS * (len(bert.batches(range(len(wanted)), lengths, random.Random(SEED), TEXTS)) + len(bert.batches(chats[:CHAT_A_EPOCH], lengths, random.Random(SEED), TEXTS)))
    step, total, started = 0, 0.0, time.monotonic()
    for _ in range(EPOCHS):
        drawn = [(True, b) for b in bert.batches(range(len(wanted)), lengths, rng, TEXTS)]
        drawn += [(False, b) for b in bert.batches(rng.sample(chats, CHAT_A_EPOCH), lengths, rng, TEXTS)]
        rng.shuffle(drawn)
        for asks, batch in drawn:
            for group, (_, faster, _) in zip(optimiser.param_groups, groups):
                group["lr"] = RATE * faster * min(1, (step + 1) / WARM) * max(0.02, 1 - step / steps)
            below = kept.of(batch)
            with torch.autocast("cpu", torch.bfloat16):
                e = net(below)
            loss = told_apart(e, directions, which[batch], torch.from_numpy(y[batch])) if asks else HELD * held(e, torch.from_numpy(before[batch]))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            step, total = step + 1, total + loss.item()
            if step % TOLD_EVERY == 0:
                say(f"base: step {step} of {steps}, loss {total / TOLD_EVERY:.3f}, {time.monotonic() - started:.0f} s")
                total = 0.0
    net.save(out)


def told_apart(e, directions, which, y):
    """Softmax over the directions of each text's own set, the right one with a handicap."""
    loss = 0.0
    for s in sorted(set(which)):
        mine = torch.from_numpy(which == s)
        cosine = e[mine] @ F.normalize(directions[s], dim=-1).T
        cosine = cosine - MARGIN * F.one_hot(y[mine], cosine.shape[1])
        loss = loss + F.cross_entropy(SCALE * cosine, y[mine], reduction="sum")
    return loss / len(y)


def held(e, before):
    """How far vectors, and their cosines with each other, went from where they were."""
    return (1 - (e * before).sum(1)).mean() + 10 * ((e @ e.T - before @ before.T) ** 2).mean()
