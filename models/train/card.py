"""card.json of a model family: what the program reads before it loads a file, and what a person may want to check.

Promises: lists every file that the program loads, with its checksum; keeps nothing of an older card. Leaves out: prose
(the README beside it).
"""

import json
from pathlib import Path

from sources import sha256_of

GRAMS = ["bucket", "gram_scale", "gram_weight", "idf"]
NEXT = sorted(["word", "own", "label_bias", "state", "side_label", *(n + s for n in ("text", "out", "side_state", "side_pair", "deep", "last") for s in ("", "_bias"))])
HEAD = ["bias", *GRAMS, "threshold", "weight"]

FAMILIES = {
    "encoder": {
        "model": "undertone-encoder-int8", "version": "3", "licence": "Apache-2.0",
        "files": {
            "encoder.onnx": (["input_ids", "attention_mask", "token_type_ids"], ["embedding", "emotion"]),
            "tokenizer.json": ([], []),
        },
    },
    "static": {
        "model": "potion-base-8M-int8", "version": "1", "licence": "MIT",
        "files": {"static.safetensors": ([], ["embeddings", "scale"]), "tokenizer.json": ([], [])},
    },
    "emotion": {
        "model": "undertone-emotion", "version": "3", "licence": "Apache-2.0",
        "files": {
            "ngram.safetensors": ([], ["bias", "idf", "weight", "weight_scale"]),
            "head.safetensors": ([], [f"{t}.{n}" for t in ("fast", "full") for n in ("bias", "ekman_threshold", "fusion", "threshold", "weight")]),
        },
    },
    "dialogue": {
        "model": "undertone-dialogue", "version": "4", "licence": "Apache-2.0",
        "files": {f"acts.{tier}.safetensors": ([], HEAD) for tier in ("fast", "full")} | {
            f"{name}.{file}": ([], tensors) for name in ("clinc150", "banking77", "hwu64")
            for file, tensors in (("json", []), ("centroid.safetensors", GRAMS), ("fast.safetensors", HEAD), ("full.safetensors", HEAD))
        } | {
            "next.json": ([], []),
            **{f"next.{tier}.{kind}.safetensors": ([], NEXT) for tier in ("fast", "full") for kind in ("known", "transfer")},
            "slots.json": ([], []), "slots.dictionary.json": ([], []),
            "slots.safetensors": ([], ["bucket", "first", "label", "last", "scale", "start", "step", "transition"]),
        },
    },
    "personality": {
        "model": "undertone-personality", "version": "1", "licence": "Apache-2.0",
        "files": {
            "words.json": ([], []),
            "personality.safetensors": ([], [f"{t}.{n}" for t in ("fast", "full") for n in ("bias", "drift", "personas", "spread", "weight")]),
        },
    },
    "coherence": {
        "model": "undertone-coherence", "version": "1", "licence": "Apache-2.0",
        "files": {
            "stop.json": ([], []),
            "coherence.safetensors": ([], [f"{t}.{n}" for t in ("fast", "full") for n in (
                "around", "blend", "grams", "grams_scale", "hidden", "hidden_bias", "out", "out_bias", "pair", "projection", "projection_bias", "simple", "threshold")]),
        },
    },
    "memory": {"model": "undertone-memory", "version": "1", "licence": "Apache-2.0", "files": {"memory.json": ([], []), "sensitive.json": ([], [])}},
    "synesthesia": {
        "model": "undertone-synesthesia", "version": "1", "licence": "Apache-2.0",
        "files": {
            "colours.safetensors": ([], ["bias", "bucket", "colours", "hidden", "hidden_bias", "idf", "mean", "out", "places", "rows", "scale", "share", "sharpness", "skip", "space", "space_middle"]),
        },
    },
    "dreams": {
        "model": "undertone-dreams", "version": "1", "licence": "Apache-2.0",
        "files": {
            "decoder.onnx": (["piece", "pair", "triple", "position", "keys", "values"], ["logits", "keys_out", "values_out"]),
            "decoder.json": ([], []), "tokenizer.json": ([], []),
        },
    },
    "vad": {
        "model": "undertone-vad", "version": "2", "licence": "CC-BY-SA-4.0",
        "files": {"vad.safetensors": ([], [f"{tier}.{name}" for tier in ("fast", "full") for name in ("bias", "share", "weight")] + [f"ngram.{name}" for name in ("bias", "idf", "weight", "weight_scale")])},
    },
}


def write(models, family, **more):
    """Writes models/family/card.json; `more` is added as it is (what was measured, sources)."""
    about = FAMILIES[family]
    folder = Path(models) / family
    files = {name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size, "inputs": inputs, "outputs": outputs}
             for name, (inputs, outputs) in about["files"].items()}
    card = {"model": about["model"], "version": about["version"], "licence": about["licence"], "files": files, **more}
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
