"""The emotion branch: the encoder's upper three layers and a linear head, tuned on GoEmotions train.

Promises: the lower three layers stay as they are, so their activations are computed once and kept in memory (about 0.7 GB in
half precision); batches hold texts of equal length, without padding; says how far it is. The recipe: AdamW, 3 epochs, 64 texts
a step, rates 2e-4 (layers) and 2e-3 (head) rising over 6 % of the steps and falling to 0, dropout 0.1, gradients cut at length 1,
binary cross-entropy, the head on ten times the unit vector; bfloat16 where the processor multiplies it.
Leaves out: anything that looks at dev; quantisation (encoder.py). One seed gives the same order and dropout, not the same bits on
another processor. Writes Hugging Face's names, layers 3 to 5, and `head.weight` and `head.bias` for the unit vector.
"""

import os
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import BertModel

import encoder

EPOCHS, TEXTS, RATE, HEAD_RATE, DECAY, WARM, DROPOUT, STRETCH, SEED = 3, 64, 2e-4, 2e-3, 0.01, 0.06, 0.1, 10.0, 1
TOLD_EVERY = 100


class Branch(nn.Module):
    def __init__(self, model, prior):
        super().__init__()
        self.layers = nn.ModuleList(model.encoder.layer[encoder.SHARED:])
        for module in self.layers.modules():
            if isinstance(module, nn.Dropout):
                module.p = DROPOUT
        self.head, self.dropout = nn.Linear(encoder.HIDDEN, len(prior)), nn.Dropout(DROPOUT)
        self.head.bias.data = torch.tensor(np.log(prior / (1 - prior))).float()
        self.head.weight.data *= 0.3

    def forward(self, below):
        for layer in self.layers:
            below = layer(below)
            below = below[0] if isinstance(below, tuple) else below
        return self.head(self.dropout(functional.normalize(below.float().mean(1), dim=1)) * STRETCH)


def batches(lengths, random=None):
    """Indices in groups of equal length; drawn anew each time when there is a generator."""
    order, out, start = np.argsort(lengths + (random.random(len(lengths)) * 0.9 if random else 0), kind="stable"), [], 0
    while start < len(order):
        end = start + 1
        while end < len(order) and end - start < TEXTS and lengths[order[end]] == lengths[order[start]]:
            end += 1
        out.append(order[start:end])
        start = end
    if random:
        random.shuffle(out)
    return out


def activations(model, ids):
    """What the shared layers say of every text: rows of all texts one after another, and where each begins."""
    lengths = np.array([x.shape[1] for x in ids])
    begin = np.concatenate([[0], np.cumsum(lengths)])
    out = np.zeros((begin[-1], encoder.HIDDEN), np.float16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches(lengths):
            tokens = torch.from_numpy(np.concatenate([ids[i] for i in batch]))
            rows = model(tokens, output_hidden_states=True).hidden_states[encoder.SHARED].float().numpy()
            for i, row in zip(batch, rows):
                out[begin[i]:begin[i + 1]] = row
    return out, begin


def train(folder, texts, truth, out, say=print):
    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count())))
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = encoder.encode_ids(encoder.tokenizer_of(folder), texts)
    say("shared layers")
    rows, begin = activations(model, ids)
    lengths = np.diff(begin)
    net = Branch(model, np.clip(truth.mean(0), 1e-4, 1 - 1e-4)).train()
    upper = [p for name, p in net.named_parameters() if not name.startswith("head")]
    optimiser = torch.optim.AdamW([{"params": upper, "lr": RATE, "weight_decay": DECAY},
                                   {"params": net.head.parameters(), "lr": HEAD_RATE, "weight_decay": 0}], betas=(0.9, 0.98))
    steps = len(batches(lengths)) * EPOCHS
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: min((i + 1) / (WARM * steps), max(0.0, (steps - i) / (steps * (1 - WARM)))))
    step, total, started = 0, 0.0, time.monotonic()
    for _ in range(EPOCHS):
        for batch in batches(lengths, random):
            below = torch.from_numpy(np.stack([rows[begin[i]:begin[i + 1]] for i in batch]).astype(np.float32))
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(below)
            loss = functional.binary_cross_entropy_with_logits(logits.float(), torch.from_numpy(truth[batch]), reduction="none").sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            rate.step()
            step, total = step + 1, total + loss.item()
            if step % TOLD_EVERY == 0:
                say(f"branch: step {step} of {steps}, loss {total / TOLD_EVERY:.3f}, {time.monotonic() - started:.0f} s")
                total = 0.0
    write(net.state_dict(), out)


def write(state, out):
    """Saves the tuned weights under Hugging Face's names; the head's stretch goes into its weight."""
    named = {f"encoder.layer.{int(k.split('.')[1]) + encoder.SHARED}.{k.split('.', 2)[2]}": v for k, v in state.items() if k.startswith("layers.")}
    named |= {"head.weight": state["head.weight"] * STRETCH, "head.bias": state["head.bias"]}
    save_file({k: v.float().contiguous() for k, v in named.items()}, str(out))
