"""The emotion branch: the encoder's upper three layers and a linear head, tuned on GoEmotions and on film subtitles.

Promises: the lower three layers stay as they are, so their activations are computed once and kept in a file; batches hold texts
of equal length, without padding; says how far it is. The recipe: a text of GoEmotions gives the binary cross-entropy of its 28
labels, and of the seven classes of their Ekman view, 1 - prod(1 - p); a line of XED gives that of six of the classes, whose
log-odds go through a scale and an offset of their own, because subtitles were annotated by other rules. AdamW, rates 2e-4
(layers) and 2e-3 (head) rising over 6 % of the steps and falling to 0, 64 texts a step, dropout 0.1, gradients cut at length 1,
the head on ten times the unit vector; bfloat16 in the linear layers where the processor has it. Several seeds (the order and the
dropout; all start from the same weights) are trained, and their weights averaged (model soup, Wortsman et al. 2022).
Leaves out: anything that looks at dev; quantisation (encoder.py). One seed does not give the same bits on another processor.
Writes Hugging Face's names, layers 3 to 5, and `head.weight` and `head.bias` for the unit vector.
"""

import random
import time

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import bert
import encoder
import labels

EPOCHS, TEXTS, RATE, HEAD_RATE, DECAY, WARM, DROPOUT, STRETCH = 3, 64, 2e-4, 2e-3, 0.01, 0.06, 0.1, 10.0
EKMAN_WEIGHT, XED_WEIGHT = 0.3, 0.3
SEEDS = (1, 2, 3)
TOLD_EVERY = 100


class Tuned(nn.Module):
    """A branch with the head on it. `there` is the scale and the offset of each class in subtitles."""

    def __init__(self, upper, prior):
        super().__init__()
        self.upper, self.dropout = upper, nn.Dropout(DROPOUT)
        self.head = nn.Linear(bert.HIDDEN, len(prior))
        self.head.weight.data.zero_()
        self.head.bias.data = torch.tensor(np.log(prior / (1 - prior))).float()
        self.there = nn.Parameter(torch.tensor([[1.0], [0.0]]).repeat(1, len(labels.XED)))

    def forward(self, below):
        return self.head(self.dropout(self.upper(below)) * STRETCH)


def ekman(logits):
    """Log-odds of 1 - prod(1 - p) over each class's members."""
    none = torch.stack([F.softplus(logits[:, m]).sum(1) for m in labels.EKMAN_MEMBERS], 1)
    return none + torch.log(-torch.expm1(-none).clamp(max=-1e-6))


def entropy(logits, truth):
    """Binary cross-entropy, summed over the labels, mean over the texts."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1).mean()


class Data:
    """GoEmotions first, then subtitles: what the shared layers say of them, and the truth of each."""

    def __init__(self, folder, emotions, subtitles, work, say=print):
        (texts, self.truth), (lines, self.classes) = emotions, subtitles
        self.emotions, self.count = len(texts), len(texts) + len(lines)
        say(f"shared layers of {self.count} texts")
        self.model = lambda: bert.Encoder(folder, DROPOUT)
        ids = [e.ids for e in encoder.tokenizer_of(folder).encode_batch(texts + lines)]
        self.kept = bert.Activations(self.model(), ids, work / "branch-activations.npy")
        self.ekman = np.stack([self.truth[:, m].max(1) for m in labels.EKMAN_MEMBERS], 1)

    def drawn(self, rng):
        """Batches in an order drawn anew, each of one kind."""
        kinds = (range(self.emotions), range(self.emotions, self.count))
        out = [b for kind in kinds for b in bert.batches(kind, self.kept.lengths, rng, TEXTS)]
        rng.shuffle(out)
        return out

    def loss(self, net, batch):
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(self.kept.of(batch))
        logits = logits.float()
        if batch[0] >= self.emotions:
            rows = [i - self.emotions for i in batch]
            return XED_WEIGHT * entropy(ekman(logits)[:, : len(labels.XED)] * net.there[0] + net.there[1], torch.from_numpy(self.classes[rows]))
        return entropy(logits, torch.from_numpy(self.truth[batch])) + EKMAN_WEIGHT * entropy(ekman(logits), torch.from_numpy(self.ekman[batch]))


def train(data, seed, out, say=print):
    torch.manual_seed(seed)
    rng = random.Random(seed)
    net = Tuned(data.model().upper, np.clip(data.truth.mean(0), 1e-4, 1 - 1e-4)).train()
    own = [net.there, *net.head.parameters()]
    groups = [{"params": list(net.upper.parameters()), "lr": RATE, "weight_decay": DECAY}, {"params": own, "lr": HEAD_RATE, "weight_decay": 0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    steps = len(data.drawn(random.Random(seed))) * EPOCHS
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: min((i + 1) / (WARM * steps), max(0.0, (steps - i) / (steps * (1 - WARM)))))
    step, total, started = 0, 0.0, time.monotonic()
    for _ in range(EPOCHS):
        for batch in data.drawn(rng):
            loss = data.loss(net, batch)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            rate.step()
            step, total = step + 1, total + loss.item()
            if step % TOLD_EVERY == 0:
                say(f"branch {seed}: step {step} of {steps}, loss {total / TOLD_EVERY:.3f}, {time.monotonic() - started:.0f} s")
                total = 0.0
    named = {}
    for i, layer in enumerate(net.upper.layers, bert.SHARED):
        named |= layer.written(f"encoder.layer.{i}.")
    save_file(named | {"head.weight": net.head.weight.detach() * STRETCH, "head.bias": net.head.bias.detach()}, str(out))


def average(paths, out):
    """The mean of several runs' weights."""
    runs = [load_file(str(path)) for path in paths]
    save_file({k: torch.stack([run[k] for run in runs]).mean(0) for k in runs[0]}, str(out))


def vectors(folder, path, texts):
    """In float, what a trained branch says of texts: [texts, 384]."""
    model = bert.Encoder(folder)
    raw = load_file(str(path))
    for i, layer in enumerate(model.upper.layers, bert.SHARED):
        layer.read(raw, f"encoder.layer.{i}.")
    ids = [e.ids for e in encoder.tokenizer_of(folder).encode_batch(texts)]
    lengths, out = np.array([len(i) for i in ids]), np.zeros((len(texts), bert.HIDDEN), np.float32)
    with torch.no_grad():
        for batch in bert.batches(range(len(ids)), lengths, random.Random(1), TEXTS):
            out[batch] = model.upper(model.lower(torch.tensor([ids[i] for i in batch]))).numpy()
    return out
