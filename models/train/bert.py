"""all-MiniLM-L6-v2 in torch, cut after its third layer: `lower` is shared by all branches and frozen, `upper` is a branch.

Promises: the function of the published checkpoint (mean over the tokens, length one), without padding: a batch holds texts of
equal length. Leaves out: everything that is not training; the program runs the exported graph (encoder.py).
"""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

HEADS, HIDDEN, LAYERS, INNER, SHARED = 12, 384, 6, 1536, 3
EPSILON = 1e-12


class Layer(nn.Module):
    """One transformer layer; parameter names map to the checkpoint's by `NAMES`."""

    NAMES = {"o": "attention.output.dense", "f1": "intermediate.dense", "f2": "output.dense",
             "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}
    PARTS = [f"attention.self.{n}" for n in ("query", "key", "value")]

    def __init__(self, dropout):
        super().__init__()
        self.qkv, self.o = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.f1, self.f2 = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, EPSILON), nn.LayerNorm(HIDDEN, EPSILON)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, HEADS, HIDDEN // HEADS).permute(2, 0, 3, 1, 4)
        # In float: its backward pass in bfloat16 is twenty times slower on a CPU.
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        attended = attended.transpose(1, 2).reshape(batch, tokens, HIDDEN)
        y = self.norm1(x + self.drop(self.o(attended)))
        return self.norm2(y + self.drop(self.f2(F.gelu(self.f1(y)))))

    def read(self, raw, prefix):
        state = {}
        for kind in ("weight", "bias"):
            state["qkv." + kind] = torch.cat([raw[f"{prefix}{p}.{kind}"] for p in self.PARTS]).float()
            for name, theirs in self.NAMES.items():
                state[f"{name}.{kind}"] = raw[f"{prefix}{theirs}.{kind}"].float()
        self.load_state_dict(state)

    def written(self, prefix):
        out = {}
        for kind in ("weight", "bias"):
            for part, tensor in zip(self.PARTS, getattr(self.qkv, kind).detach().chunk(3)):
                out[f"{prefix}{part}.{kind}"] = tensor.contiguous().clone()
            for name, theirs in self.NAMES.items():
                out[f"{prefix}{theirs}.{kind}"] = getattr(getattr(self, name), kind).detach().contiguous().clone()
        return out


class Branch(nn.Module):
    """Layers 4 to 6, pooled to one vector of length one."""

    def __init__(self, raw, dropout=0.1):
        super().__init__()
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(SHARED, LAYERS))
        for i, layer in enumerate(self.layers, SHARED):
            layer.read(raw, f"encoder.layer.{i}.")

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return F.normalize(hidden.float().mean(1), dim=-1)

    def save(self, path):
        tensors = {}
        for i, layer in enumerate(self.layers, SHARED):
            tensors |= layer.written(f"encoder.layer.{i}.")
        save_file(tensors, str(path))


class Encoder(nn.Module):
    """The whole checkpoint."""

    def __init__(self, folder, dropout=0.0):
        super().__init__()
        raw = load_file(str(Path(folder) / "model.safetensors"))
        raw = {k.removeprefix("bert."): v for k, v in raw.items()}
        self.raw = raw
        self.words, self.positions = raw["embeddings.word_embeddings.weight"].float(), raw["embeddings.position_embeddings.weight"].float()
        self.type = raw["embeddings.token_type_embeddings.weight"].float()[0]
        self.norm = raw["embeddings.LayerNorm.weight"].float(), raw["embeddings.LayerNorm.bias"].float()
        self.shared = nn.ModuleList(Layer(dropout) for _ in range(SHARED))
        for i, layer in enumerate(self.shared):
            layer.read(raw, f"encoder.layer.{i}.")
        self.upper = Branch(raw, dropout)

    def lower(self, ids):
        x = self.words[ids] + self.positions[: ids.shape[1]] + self.type
        x = F.layer_norm(x, (HIDDEN,), *self.norm, EPSILON)
        for layer in self.shared:
            x = layer(x)
        return x


def batches(rows, lengths, rng, most):
    """Indices in groups of equal length, at most so many, in an order drawn anew."""
    by, rows = {}, list(rows)
    rng.shuffle(rows)
    for i in rows:
        by.setdefault(int(lengths[i]), []).append(i)
    out = [same[k:k + most] for same in by.values() for k in range(0, len(same), most)]
    rng.shuffle(out)
    return out


class Activations:
    """What the shared layers say of every token, one text after another in a file, and where wanted the checkpoint's own vectors."""

    def __init__(self, model, ids, kept, vectors=False):
        self.lengths = np.array([len(i) for i in ids])
        self.begin = np.concatenate([[0], np.cumsum(self.lengths)])
        self.rows = np.lib.format.open_memmap(kept, mode="w+", dtype=np.float16, shape=(int(self.begin[-1]), HIDDEN))
        self.vectors = np.zeros((len(ids), HIDDEN), np.float32)
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for batch in batches(range(len(ids)), self.lengths, random.Random(1), 96):
                hidden = model.lower(torch.tensor([ids[i] for i in batch])).float()
                if vectors:
                    self.vectors[batch] = model.upper(hidden).numpy()
                for i, row in zip(batch, hidden.numpy()):
                    self.rows[self.begin[i]:self.begin[i + 1]] = row

    def of(self, batch):
        """[texts, tokens, 384] of texts of one length."""
        return torch.from_numpy(np.stack([self.rows[self.begin[i]:self.begin[i + 1]] for i in batch]).astype(np.float32))
