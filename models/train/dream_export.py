"""Exports the dream decoder as ONNX, one piece a call with a key-value cache, and checks and times the result.

    python3 dream_export.py --data DIR --work DIR [--run NAME] [--out DIR] [--lines 300] [--kinds dynamic]

Writes the family models/dreams (graph, vocabulary, sizes, card) and models/golden/dreams.jsonl.

The graph: inputs `piece` [1], `pair` [1], `triple` [1] (buckets of the piece with its one and two predecessors, as
`dream_net.grams` computes them; ONNX has no signed shifts), `position` [1], `keys` and `values` [layers, heads, past, width of a
head]; outputs `logits` [pieces], `keys` and `values` with one more row. Promises: the float graph agrees with torch to
1e-3; the int8 files are measured in bits a character against it on the same dev lines before one is chosen.
Leaves out: sampling, which is the program's.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
GOLDEN = 60
NASTY = ["O", "LXXIII. THE McDonald's, o'er-arching heav'n", "naïve café — “Ümläute” 12,345!", "日本語 🙂", "   three  spaces "]
EPSILON = float(np.finfo(np.float32).eps)


class Graph:
    def __init__(self):
        self.nodes, self.constants, self.count = [], [], 0

    def keep(self, array, name=None):
        name = name or self.name("c")
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def name(self, prefix="t"):
        self.count += 1
        return f"{prefix}{self.count}"

    def add(self, kind, *inputs, out=None, outputs=1, domain="", **attributes):
        names = [out] if out else [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names


def build(net, quantised):
    """quantised: '' (float), 'dynamic' (int8 products, one scale a row of activations) or 'blocks' (8-bit weights in blocks of 32)."""
    g, c = Graph(), net.config
    heads, wide = c["heads"], c["width"] // c["heads"]
    weight = {n: p.detach().float().numpy() for n, p in net.state_dict().items()}
    axis, eps = g.keep(np.array([-1], np.int64)), g.keep(np.float32(EPSILON))

    def norm(x):
        mean = g.add("ReduceMean", g.add("Mul", x, x), axis, keepdims=1)
        return g.add("Div", x, g.add("Sqrt", g.add("Add", mean, eps)))

    def product(x, w, name):
        """x [1, in] by w [out, in], transposed."""
        if quantised == "blocks" and w.shape[1] % 32 == 0:
            rows, inner = w.shape
            blocks = w.reshape(rows, inner // 32, 32)
            scale = np.abs(blocks).max(-1) / 127
            scale[scale == 0] = 1
            q = (np.rint(blocks / scale[..., None]) + 128).clip(0, 255).astype(np.uint8)
            return g.add("MatMulNBits", x, g.keep(q, name), g.keep(scale.astype(np.float32).reshape(rows, -1)), domain="com.microsoft",
                         K=inner, N=rows, bits=8, block_size=32, accuracy_level=4)
        if quantised == "dynamic":
            scale = np.abs(w).max(1) / 63
            q = np.rint(w / scale[:, None]).astype(np.int8)
            a, a_scale, a_zero = g.add("DynamicQuantizeLinear", x, outputs=3)
            whole = g.add("MatMulInteger", a, g.keep(q.T.copy(), name), a_zero)
            return g.add("Mul", g.add("Cast", whole, to=TensorProto.FLOAT), g.add("Mul", g.keep(scale.astype(np.float32)), a_scale))
        return g.add("MatMul", x, g.keep(w.T.copy(), name))

    def row(table, at, name):
        """[1, width] of an embedding, kept in int8 with a scale a row unless the graph is float."""
        if not quantised:
            return g.add("Gather", g.keep(table, name), at)
        scale = np.abs(table).max(1, keepdims=True) / 127
        scale[scale == 0] = 1
        q = np.rint(table / scale).astype(np.int8)
        return g.add("Mul", g.add("Cast", g.add("Gather", g.keep(q, name), at), to=TensorProto.FLOAT), g.add("Gather", g.keep(scale.astype(np.float32)), at))

    x = g.add("Add", norm(row(weight["embedding.weight"], "piece", "embedding")), row(weight["position.weight"], "position", "positions"))
    if c["bits"]:
        both = g.add("Concat", row(weight["pairs.weight"], "pair", "pairs"), row(weight["triples.weight"], "triple", "triples"), axis=1)
        x = g.add("Add", x, product(both, weight["gram.weight"], "gram"))
    by_head, by_layer = g.keep(np.array([heads, 1, wide], np.int64)), g.keep(np.array([1, c["width"]], np.int64))
    sharp = g.keep(np.float32(0.25))
    keys, values = [], []
    for i in range(c["layers"]):
        b = f"blocks.{i}."
        layer = g.keep(np.int64(i))
        q, k, v = g.add("Split", product(norm(x), weight[b + "qkv.weight"], b + "qkv"), outputs=3, axis=1, num_outputs=3)
        q = g.add("Mul", norm(g.add("Reshape", q, by_head)), sharp)
        k = g.add("Concat", g.add("Gather", "keys", layer, axis=0), norm(g.add("Reshape", k, by_head)), axis=1)
        v = g.add("Concat", g.add("Gather", "values", layer, axis=0), g.add("Reshape", v, by_head), axis=1)
        keys.append(k)
        values.append(v)
        scores = g.add("Softmax", g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1])), axis=-1)
        a = g.add("Reshape", g.add("MatMul", scores, v), by_layer)
        x = g.add("Add", x, product(a, weight[b + "out.weight"], b + "out"))
        up = g.add("Relu", product(norm(x), weight[b + "up.weight"], b + "up"))
        x = g.add("Add", x, product(g.add("Mul", up, up), weight[b + "down.weight"], b + "down"))
    scaled = g.add("Mul", norm(x), g.keep((8 * weight["scale"]).reshape(())))
    zero = g.keep(np.array([0], np.int64))
    g.add("Squeeze", product(scaled, weight["embedding.weight"], "output"), zero, out="logits")
    for name, parts in (("keys_out", keys), ("values_out", values)):
        g.add("Concat", *[g.add("Unsqueeze", p, zero) for p in parts], out=name, axis=0)
    ints = [helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in ("piece", "pair", "triple", "position")]
    cache = lambda n, past: helper.make_tensor_value_info(n, TensorProto.FLOAT, [c["layers"], heads, past, wide])  # noqa: E731
    graph = helper.make_graph(g.nodes, "dreams", ints + [cache("keys", "past"), cache("values", "past")],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [c["pieces"]]), cache("keys_out", "now"), cache("values_out", "now")], g.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)], producer_name="undertone")
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def weights_of(path, net):
    """The state of `net` as a graph that `build` wrote with 'dynamic' has it: to go on training where only the graph is kept."""
    import torch
    graph = onnx.load(str(path)).graph
    constant = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    made = {n.output[0]: n for n in graph.node}
    users = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def only(name, kind):
        return next(n for n in users[name] if n.op_type == kind)

    tables = {"embedding": "embedding.weight", "positions": "position.weight", "pairs": "pairs.weight", "triples": "triples.weight"}
    state = {}
    for kept, name in tables.items():
        both = only(only(only(kept, "Gather").output[0], "Cast").output[0], "Mul")
        state[name] = constant[kept] * constant[made[both.input[1]].input[0]]
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] != "output":
            both = only(only(node.output[0], "Cast").output[0], "Mul")
            scale = constant[made[both.input[1]].input[0]]
            state[node.input[1] + ".weight"] = constant[node.input[1]].T * scale[:, None]
    whole = next(n for n in graph.node if n.op_type == "MatMulInteger" and n.input[1] == "output")
    scaled = made[made[whole.input[0]].input[0]]
    state["scale"] = constant[scaled.input[1]] / 8
    return {n: torch.from_numpy(np.ascontiguousarray(state[n], np.float32)).reshape(p.shape) for n, p in net.state_dict().items()}


class Decoder:
    """The graph, fed as the program feeds it."""

    def __init__(self, path, config):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.config = config
        self.wanted = {i.name for i in self.session.get_inputs()}
        self.reset()

    def reset(self):
        c = self.config
        self.keys = self.values = np.zeros((c["layers"], c["heads"], 0, c["width"] // c["heads"]), np.float32)
        self.before, self.position = (0, 0), 0

    def step(self, piece):
        import torch
        from dream_net import grams
        two, one = self.before
        pair, triple = grams(torch.tensor([[two, one, piece]]), self.config["bits"] or 1)[0, 0].tolist()
        feed = {"piece": piece, "pair": pair, "triple": triple, "position": self.position}
        feed = {n: np.array([v], np.int64) for n, v in feed.items() if n in self.wanted}
        logits, self.keys, self.values = self.session.run(None, feed | {"keys": self.keys, "values": self.values})
        self.before, self.position = (one, piece), self.position + 1
        return logits


def choose(net, corpus, chosen, out, kinds, say):
    """{kind: what was measured} of graphs in `out`, on these lines."""
    import torch
    characters = int(corpus.characters[chosen].sum())
    measured = {}
    for kind in kinds:
        path = out / f"decoder-{kind or 'float'}.onnx"
        onnx.save(build(net, kind), path)
        decoder, total, count, started = Decoder(path, net.config), 0.0, 0, time.process_time()
        for i in chosen:
            bits, pieces = surprise(decoder, corpus.sample(i, 0, None))
            total, count = total + bits, count + pieces
        spent = time.process_time() - started
        decoder.reset()
        ids = torch.from_numpy(np.concatenate([[0, 0], corpus.sample(chosen[0], 0, None)[:-1]])[None])
        with torch.no_grad():
            expected = net.logits(net.states(ids)[0])[0].numpy()
        got = np.stack([decoder.step(int(p)) for p in ids[0, 2:]])
        worst = np.abs(torch.softmax(torch.from_numpy(got), 1).numpy() - torch.softmax(torch.from_numpy(expected), 1).numpy()).max()
        measured[kind or "float"] = {"bytes": path.stat().st_size, "bits_per_char": round(total / characters, 4), "pieces_per_second": round(count / spent),
                                     "characters_per_second": round(characters / spent), "worst_probability": float(f"{worst:.2e}")}
        say(f"{kind or 'float'}: {json.dumps(measured[kind or 'float'])} on {len(chosen)} dev lines")
    return measured


def surprise(decoder, sample):
    """Bits of a sample's pieces after its start, and how many there are."""
    total = 0.0
    decoder.reset()
    for now, then in zip(sample[:-1], sample[1:]):
        z = decoder.step(int(now)).astype(np.float64)
        z -= z.max()
        total -= (z[then] - math.log(np.exp(z).sum())) / math.log(2)
    return total, len(sample) - 1


def ship(corpus, lines, path, net, tokenizer_at, out, golden_at):
    """The family beside its graph, and the golden file: dev lines with their pieces and bits as the graph has them."""
    import dream_net
    import dream_text
    from tokenizers import Tokenizer
    (out / "tokenizer.json").write_bytes(tokenizer_at.read_bytes())
    c = net.config
    train = np.concatenate([corpus.line(i) for i in corpus.train[::4]])
    counts = np.bincount(train, minlength=c["pieces"]).astype(float)
    counts[dream_text.LINE] += len(corpus.train[::4])
    frequencies = np.maximum(counts / counts.sum() * 65536, 1e-4)
    sizes = {"layers": c["layers"], "heads": c["heads"], "wide": c["width"] // c["heads"], "bits": c["bits"], "positions": dream_net.POSITIONS}
    (out / "decoder.json").write_text(json.dumps({"sizes": sizes, "frequencies": [float(f"{f:.4g}") for f in frequencies]}) + "\n")
    decoder, tokenizer = Decoder(path, c), Tokenizer.from_file(str(tokenizer_at))
    dev = np.flatnonzero(corpus.dev)
    asked = [lines[i] for i in dev[:: len(dev) // GOLDEN]][:GOLDEN] + NASTY
    with open(golden_at, "w", encoding="utf-8") as file:
        for line, pieces in zip(asked, dream_text.encode(tokenizer, asked)):
            bits, _ = surprise(decoder, [dream_text.START, *pieces, dream_text.LINE])
            file.write(json.dumps({"line": line, "pieces": pieces, "bits": round(bits, 4)}, ensure_ascii=False) + "\n")


def main():
    import dream_eval
    import dreams
    import torch
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="run")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "dreams")
    parser.add_argument("--lines", type=int, default=300)
    parser.add_argument("--kinds", nargs="*", default=["", "blocks", "dynamic"], help="of which the last ships; empty is float")
    args = parser.parse_args()
    torch.set_num_threads(1)
    say = lambda m: print(m, flush=True)  # noqa: E731
    export(args, dream_eval.load(args), dreams.Corpus(args.work), dreams.lines_of(args.data), say)


def export(args, net, corpus, lines, say):
    """Measures the kinds, ships the last one with its golden file and card; returns what was measured."""
    import card
    dev = np.flatnonzero(corpus.dev)
    measured = choose(net, corpus, dev[::len(dev) // args.lines][:args.lines], args.work, args.kinds, say)
    shipped = args.kinds[-1] or "float"
    args.out.mkdir(exist_ok=True)
    (args.out / "decoder.onnx").write_bytes((args.work / f"decoder-{shipped}.onnx").read_bytes())
    ship(corpus, lines, args.out / "decoder.onnx", net, args.work / "tokenizer.json", args.out, args.out.parent / "golden/dreams.jsonl")
    card.write(args.out.parent, "dreams", data=["Gutenberg poetry, lines (dev: every 50th block of 5,000)", "poem_sentiment (labels of mood)"], needs=["static"],
               net=net.config, shipped=shipped, dev=measured)
    return measured


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
