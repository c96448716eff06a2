"""The dream decoder: a small transformer with hashed pairs and triples of pieces at its input.

Promises: causal; the pieces before the first are `PAD`; `states` with a cache gives what it gives without.
Pairs and triples cost a look-up and no multiplication, which is what a small decoder on a small processor can afford.
Leaves out: training (dreams.py), sampling (the program).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

POSITIONS = 256
SHARP = 0.25
SCALE = 8.0


def norm(x):
    return F.rms_norm(x, (x.shape[-1],))


def grams(ids, bits):
    """[..., 2] buckets of each piece with its one and two predecessors; ids [B, T + 2], the first two being the past."""
    now, one, two = ids[:, 2:], ids[:, 1:-1], ids[:, :-2]
    mask = (1 << bits) - 1
    pair = now + 4099 * one
    triple = pair + 4099 * 4099 * two
    mix = lambda h, k: ((h * k) >> 16) & mask  # noqa: E731
    return torch.stack([mix(pair, 2654435761), mix(triple, 2246822519)], -1)


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x, past=None):
        """Lines are short: attention spelled out is faster here than the fused kind. After a past, one piece at a time."""
        b, t, d = x.shape
        q, k, v = self.qkv(norm(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = norm(q) * SHARP, norm(k)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = q @ k.transpose(2, 3)
        if past is None:
            scores = scores + torch.full((t, t), -1e4, dtype=x.dtype).triu(1)
        a = torch.softmax(scores, -1) @ v
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.relu(self.up(norm(x))).square()), (k, v)


class Net(nn.Module):
    def __init__(self, pieces, width=384, layers=6, heads=6, hidden=1536, bits=16, gram_width=64):
        super().__init__()
        self.config = dict(pieces=pieces, width=width, layers=layers, heads=heads, hidden=hidden, bits=bits, gram_width=gram_width)
        self.bits = bits
        self.embedding = nn.Embedding(pieces, width)
        nn.init.normal_(self.embedding.weight, std=width ** -0.5)
        self.position = nn.Embedding(POSITIONS, width)
        nn.init.normal_(self.position.weight, std=0.1)
        if bits:
            self.pairs, self.triples = nn.Embedding(1 << bits, gram_width), nn.Embedding(1 << bits, gram_width)
            nn.init.zeros_(self.pairs.weight)
            nn.init.zeros_(self.triples.weight)
            self.gram = nn.Linear(2 * gram_width, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.scale = nn.Parameter(torch.tensor(1.0 / SCALE))

    def trained(self, ids):
        """As `states`, without the cache: the function that training may compile."""
        return self.states(ids)[0]

    def states(self, ids, past=None):
        """ids [B, T + 2] with two pieces of the past; [B, T, width] before the output layer, and the cache."""
        start = 0 if past is None else past[0][0].shape[2]
        x = norm(self.embedding(ids[:, 2:])) + self.position.weight[start:start + ids.shape[1] - 2]
        if self.bits:
            g = grams(ids, self.bits)
            x = x + self.gram(torch.cat([self.pairs(g[..., 0]), self.triples(g[..., 1])], -1))
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        kept = []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, None if past is None else past[i])
            kept.append(cache)
        return norm(x) * (SCALE * self.scale).to(x.dtype), kept

    def logits(self, states):
        return F.linear(states, self.embedding.weight.to(states.dtype)).float()


class Loss(torch.autograd.Function):
    """Summed cross-entropy of tied outputs, a few thousand rows at a time, gradients made on the way."""

    ROWS = 1024

    @staticmethod
    def forward(ctx, states, weight, target):
        w = weight.bfloat16()
        d_states, d_weight, total = torch.empty_like(states), torch.zeros_like(weight), torch.zeros(())
        for i in range(0, len(states), Loss.ROWS):
            h, t = states[i:i + Loss.ROWS], target[i:i + Loss.ROWS]
            z = (h @ w.T).float()
            lse = torch.logsumexp(z, 1, keepdim=True)
            total += (lse[:, 0] - z.gather(1, t[:, None])[:, 0]).sum()
            z.sub_(lse).exp_()
            z[torch.arange(len(t)), t] -= 1
            g = z.bfloat16()
            d_states[i:i + Loss.ROWS] = g @ w
            d_weight += g.T @ h
        ctx.save_for_backward(d_states, d_weight)
        return total

    @staticmethod
    def backward(ctx, up):
        d_states, d_weight = ctx.saved_tensors
        return d_states * up.to(d_states.dtype), d_weight * up, None
