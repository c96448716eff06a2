"""potion-base-8M as int8 rows with a scale each, and its tokenizer, for the fast tier.

Promises: a row is int8 · scale; a text's vector is the mean of its tokens' rows, length one, all zeros when no token is known.
The checkpoint holds finished rows (its PCA and token weights are already in them), so nothing else is folded in.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

DIMENSIONS = 256


def export(folder, out):
    """Writes static.safetensors and tokenizer.json to `out`; returns the cosines of int8 to float rows."""
    rows = load_file(str(Path(folder) / "model.safetensors"))["embeddings"].astype(np.float32)
    assert rows.shape[1] == DIMENSIONS
    scale = np.abs(rows).max(1) / 127
    scale[scale == 0] = 1
    quantised = np.rint(rows / scale[:, None]).astype(np.int8)
    save_file({"embeddings": quantised, "scale": scale.astype(np.float32)}, str(Path(out) / "static.safetensors"))
    write_tokenizer(folder, Path(out) / "tokenizer.json")
    back = quantised * scale[:, None]
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(back, axis=1)
    cosines = (rows * back).sum(1)[norms > 0] / norms[norms > 0]
    return {"rows": len(rows), "cosine_median": float(np.median(cosines)), "cosine_worst": float(cosines.min())}


def write_tokenizer(folder, out):
    """The tokenizer without padding and truncation: the reader sets the limit."""
    tokenizer = json.loads((Path(folder) / "tokenizer.json").read_text())
    tokenizer["padding"] = tokenizer["truncation"] = None
    Path(out).write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")))


class Static:
    """The shipped files, read and run as the program does."""

    def __init__(self, folder, tokens_max):
        tensors = load_file(str(Path(folder) / "static.safetensors"))
        self.rows = tensors["embeddings"] * tensors["scale"][:, None]
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self.unknown = self.tokenizer.token_to_id("[UNK]")
        self.tokens_max = tokens_max

    def embed(self, texts):
        out = np.zeros((len(texts), DIMENSIONS), np.float32)
        for i, encoding in enumerate(self.tokenizer.encode_batch(texts, add_special_tokens=False)):
            ids = [t for t in encoding.ids[:self.tokens_max] if t != self.unknown]
            if ids:
                out[i] = self.rows[ids].mean(0)
                out[i] /= max(np.linalg.norm(out[i]), 1e-12)
        return out
