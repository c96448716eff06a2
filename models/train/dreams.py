"""Trains the dream decoder on single lines of verse, steered ones and short stanzas; goes on from where it was stopped.

    python3 dreams.py prepare | check | train   --data DIR --work DIR

Promises: dev is every 50th block of 5,000 lines, never trained on; the order of samples is a function of the seed and of how
far the training is, so that a run that was cut off goes on; a checkpoint after every part of 65,536 lines; dev is measured
as `undertone eval dreams` does: single lines from the start token alone, their ends scored, newline counted.
Leaves out: labels for steering (dream_labels.py), export (dream_export.py), dreams themselves (dream_eval.py).
"""

import argparse
import gzip
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

BLOCK, EVERY, AT = 5000, 50, 25
PART, TOKENS, LINES_MAX = 65536, 12288, 4
SEED = 1
STEERED_KNOWN, STEERED, STANZAS = 0.7, 0.08, 0.06
RATE, GRAM_RATE, MUON_RATE, WARM, DECAY = 3e-3, 1e-2, 0.02, 0.01, 0.3
DEV_QUICK = 4000


def lines_of(data):
    text = gzip.open(Path(data) / "gutenberg_poetry/train.txt.gz").read().decode()
    return [line for line in text.split("\n") if line]


def is_dev(count):
    return np.arange(count) // BLOCK % EVERY == AT


def prepare(args):
    import dream_text
    lines = lines_of(args.data)
    dev = is_dev(len(lines))
    at = args.work / "tokenizer.json"
    if not at.is_file():
        dream_text.train([line for line, d in zip(lines, dev) if not d], args.pieces).save(str(at))
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(at))
    flat, ends = [], [0]
    for i in range(0, len(lines), 50000):
        for ids in dream_text.encode(tokenizer, lines[i:i + 50000]):
            flat.append(np.array(ids, np.uint16))
            ends.append(ends[-1] + len(ids))
    np.save(args.work / "pieces.npy", np.concatenate(flat))
    np.save(args.work / "ends.npy", np.array(ends))
    characters = np.array([len(line) + 1 for line in lines], np.int32)
    np.save(args.work / "characters.npy", characters)
    print(f"{len(lines)} lines, {ends[-1]} pieces, {characters.sum() / ends[-1]:.3f} characters a piece", flush=True)


def check(args):
    import dream_text
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    wrong = refused = 0
    for i, line in enumerate(lines_of(args.data)):
        if any(c < " " for c in line):
            refused += 1
        elif dream_text.unfold(dream_text.fold(line)) != line or i % 50 == 0 and dream_text.decode(tokenizer, dream_text.encode(tokenizer, [line])[0]) != line:
            wrong += 1
            if wrong < 9:
                print(repr(line), repr(dream_text.fold(line)))
    print(f"{wrong} lines do not come back, {refused} with control characters not asked")


class Corpus:
    def __init__(self, work):
        self.work = work
        self.pieces, self.ends = np.load(work / "pieces.npy"), np.load(work / "ends.npy")
        self.characters = np.load(work / "characters.npy")
        self.dev = is_dev(len(self.characters))
        self.train = np.flatnonzero(~self.dev)
        self.labels, self.read_at = None, None
        self.read_labels()

    def read_labels(self):
        """Again when they were made anew."""
        at = self.work / "labels.npz"
        if at.is_file() and at.stat().st_mtime != self.read_at:
            self.labels, self.read_at = dict(np.load(at)), at.stat().st_mtime

    def line(self, i):
        return self.pieces[self.ends[i]:self.ends[i + 1]]

    def sample(self, i, kind, rng):
        """Pieces of one sample, start first and last line's end last."""
        from dream_net import POSITIONS
        from dream_text import ABOUT, END, GO, LINE, START
        if kind == 0:
            return np.concatenate([[START], self.line(i), [LINE]])
        last = i + 1
        if kind == 2:
            while last < i + LINES_MAX and last < len(self.dev) and not self.dev[last]:
                last += 1
        head = []
        if kind == 1 or rng.random() < 0.5:
            head = self.head(i, last, rng, ABOUT) + [GO]
        body = []
        for j in range(i, last):
            body += [*self.line(j), LINE]
        return np.array([START, *head, *body, *([END] if kind == 2 else [])])[:POSITIONS + 1]

    def head(self, first, last, rng, about):
        """What steers lines first..last: each kind of label, where there is one, with even odds."""
        import dream_labels
        return dream_labels.head(self, first, last, rng, about)

    def batches(self, part):
        """Of the part-th 65,536 lines: [(ids [B, T + 2], targets [B, T])], targets -1 where nothing is asked."""
        self.read_labels()
        per_epoch = math.ceil(len(self.train) / PART)
        epoch, at = divmod(part, per_epoch)
        chosen = np.random.default_rng([SEED, epoch]).permutation(self.train)[at * PART:(at + 1) * PART]
        rng = np.random.default_rng([SEED, epoch, at, 7])
        kinds = np.zeros(len(chosen), int)
        if self.labels is not None:
            draw = rng.random(len(chosen))
            steered = np.where(self.labels["known"][chosen], STEERED_KNOWN, STEERED)
            kinds = np.where(draw < steered, 1, np.where(draw > 1 - STANZAS, 2, 0))
        samples = sorted((self.sample(i, k, rng) for i, k in zip(chosen, kinds)), key=len)
        groups, start = [], 0
        while start < len(samples):
            stop = start + 1
            while stop < len(samples) and (stop + 1 - start) * len(samples[stop]) <= TOKENS:
                stop += 1
            groups.append(padded(samples[start:stop]))
            start = stop
        return [groups[i] for i in rng.permutation(len(groups))]


def padded(samples):
    import torch
    from dream_text import GO, PAD, START
    longest = max(map(len, samples)) - 1
    ids, target = np.full((len(samples), longest + 2), PAD, np.int64), np.full((len(samples), longest), -1, np.int64)
    for row, s in enumerate(samples):
        n = len(s) - 1
        ids[row, 2:n + 2] = s[:-1]
        target[row, :n] = s[1:]
        go = np.flatnonzero(s == GO)
        if len(go):
            target[row, :go[0]] = -1
    return torch.from_numpy(ids), torch.from_numpy(target)


def orthogonal(g):
    """Newton-Schulz, as Muon (Jordan, 2024) has it."""
    import torch
    x = g.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if tall else x
    return x.float() * max(1, g.shape[0] / g.shape[1]) ** 0.5


class Muon:
    def __init__(self, weights, momentum=0.95):
        import torch
        self.weights, self.momentum = weights, momentum
        self.kept = [torch.zeros_like(w) for w in weights]

    def step(self, rate, decay):
        import torch
        with torch.no_grad():
            for w, m in zip(self.weights, self.kept):
                m.lerp_(w.grad, 1 - self.momentum)
                w.mul_(1 - rate * decay).add_(orthogonal(w.grad.lerp(m, self.momentum)), alpha=-rate)


def pace(progress, decay=DECAY):
    """Warm up, stay, come down."""
    return min(1, progress / WARM) * min(1, max(0, (1 - progress) / decay))


def bits(net, corpus, chosen):
    """Bits a character of single lines, each from the start token alone."""
    import torch
    chosen = sorted(chosen, key=lambda i: corpus.ends[i + 1] - corpus.ends[i])
    total = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for k in range(0, len(chosen), 500):
            ids, target = padded([corpus.sample(i, 0, None) for i in chosen[k:k + 500]])
            states, _ = net.states(ids)
            asked = target >= 0
            logits = net.logits(states[asked])
            total += float(torch.nn.functional.cross_entropy(logits.float(), target[asked], reduction="sum"))
    return total / math.log(2) / corpus.characters[chosen].sum()


def train(args):
    import torch
    from dream_net import Loss, Net
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    corpus = Corpus(args.work)
    size = json.loads((args.work / "tokenizer.json").read_text())["model"]["vocab"]
    net = Net(len(size), **json.loads(args.net))
    hidden = [w for n, w in net.named_parameters() if w.ndim == 2 and n.startswith("blocks")]
    tables = [w for n, w in net.named_parameters() if n.startswith(("pairs", "triples"))]
    rest = [w for n, w in net.named_parameters() if not any(w is h for h in hidden + tables)]
    muon, adam = Muon(hidden), torch.optim.AdamW([{"params": rest, "base": RATE}, {"params": tables, "base": GRAM_RATE}], lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    states_of = torch.compile(net.trained, dynamic=True) if args.compile else net.trained
    run = args.work / args.run
    run.mkdir(exist_ok=True)
    if args.graph:
        from dream_export import weights_of
        net.load_state_dict(weights_of(args.graph, net))
    checkpoint, part, spent = run / "checkpoint.pt", args.first, 0.0
    if checkpoint.is_file():
        kept = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(kept["net"])
        adam.load_state_dict(kept["adam"])
        muon.kept = kept["muon"]
        part, spent = kept["part"], kept["spent"]
    quick = np.flatnonzero(corpus.dev)[::len(np.flatnonzero(corpus.dev)) // DEV_QUICK]
    log = open(run / "log.txt", "a")

    def say(message):
        print(message, flush=True)
        print(message, file=log, flush=True)

    say(f"{sum(w.numel() for w in net.parameters()) / 1e6:.2f} M parameters ({sum(w.numel() for w in hidden) / 1e6:.2f} M multiplied), part {part} of {args.parts}, "
        f"{'steered' if corpus.labels is not None else 'unsteered'}, {json.dumps(net.config)}")
    while part < args.parts and not (run / "stop").exists():
        started, seen, lost = time.monotonic(), 0, 0.0
        groups = corpus.batches(part)
        for i, (ids, target) in enumerate(groups):
            speed = pace((part - args.first + i / len(groups)) / (args.parts - args.first), args.decay)
            asked = target >= 0
            count = int(asked.sum())
            with torch.autocast("cpu", torch.bfloat16):
                states = states_of(ids)
            loss = Loss.apply(states[asked].bfloat16(), net.embedding.weight, target[asked])
            (loss / count).backward()
            for group in adam.param_groups:
                group["lr"] = group["base"] * speed
            adam.step()
            muon.step(MUON_RATE * speed, args.weight_decay)
            net.zero_grad()
            seen, lost = seen + count, lost + loss.item()
            if args.steps and i + 1 >= args.steps:
                break
            if i % 50 == 49:
                say(f"  {i + 1}/{len(groups)}: {lost / seen:.4f} nats a piece, {seen / (time.monotonic() - started):.0f} pieces/s")
        part += 1
        spent += time.monotonic() - started
        torch.save({"net": net.state_dict(), "adam": adam.state_dict(), "muon": muon.kept, "part": part, "spent": spent, "config": net.config}, str(checkpoint) + ".new")
        os.replace(str(checkpoint) + ".new", checkpoint)
        say(f"part {part}/{args.parts}: {lost / seen:.4f} nats a piece, {seen / (time.monotonic() - started):.0f} pieces/s, {spent / 3600:.2f} h, pace {speed:.3f}"
            + (f", dev {bits(net, corpus, quick):.4f} bits a character" if part % args.look == 0 or part == args.parts else ""))
        if args.steps:
            break
    if part >= args.parts:
        say(f"done: dev, all lines: {bits(net, corpus, np.flatnonzero(corpus.dev)):.4f} bits a character")
        torch.save({"net": net.state_dict(), "config": net.config}, run / "final.pt")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["prepare", "check", "train"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pieces", type=int, default=4096)
    parser.add_argument("--run", default="run")
    parser.add_argument("--net", default="{}")
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--graph", type=Path, help="go on from the weights of this int8 graph, as dream_export.py wrote it")
    parser.add_argument("--first", type=int, default=0, help="the part to begin with: those before are what the graph has read")
    parser.add_argument("--decay", type=float, default=DECAY, help="the share of the schedule over which the rate comes down")
    parser.add_argument("--look", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"prepare": prepare, "check": check, "train": train}[args.step](args)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
