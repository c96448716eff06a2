"""all-MiniLM-L6-v2 as one ONNX graph in static int8, pooled and normalised inside, whose results do not depend on the batch.

The lower three layers are the checkpoint's own and are shared; on them stand branches of three layers each, one output a
branch, so that one call gives a text's general vector and what it feels like at one and a half times the price of one.

The graph is written node by node from the checkpoint, so that nothing but numpy, onnx and ONNX Runtime is needed and every
scale is a constant: dynamic quantisation takes one scale over the whole batch, and a text's result would depend on its
neighbours. Weights take 7 of the 8 bits, so that sums of two products fit 16 bits on processors without VNNI and the
results agree with those that have it. Three steps keep it near float: (1) smoothing: a linear layer's input is divided per
channel by s = max|x|^0.5 / max|w|^0.5 and its weights multiplied by s (SmoothQuant, Xiao et al. 2023); (2) the channels of each
feed-forward output layer with the largest activations are multiplied in float; (3) an activation range is a high percentile of
the ranges of single texts. Attention, layer norm and pooling stay in float.
Leaves out: every graph but this one's shape, and training.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer

HEADS, HIDDEN, LAYERS, INNER = 12, 384, 6, 1536
TOKENS_MAX = 128
ALPHA = 0.5
KEPT_IN_FLOAT = 16
RANGE_PERCENTILE = 90.0
WEIGHT_LIMIT = 64
LINEARS = ("qkv", "o", "f1", "f2")
SHARED = 3
OUTPUTS = ("embedding", "emotion")


class Graph:
    """Nodes and constants in the order they are added; names are the caller's."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def constant(self, name, value):
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, op, inputs, output, domain="", **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def model(self, outputs):
        inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"])
                  for n in ("input_ids", "attention_mask", "token_type_ids")]
        graph = helper.make_graph(self.nodes, "all-MiniLM-L6-v2", inputs, outputs, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
                                  producer_name="undertone")
        model.ir_version = 8
        return model


def layer_of(raw, i):
    """One layer's weights as [in, out] matrices, queries, keys and values side by side."""
    at = lambda name: raw[f"encoder.layer.{i}.{name}"].astype(np.float32)
    names = {"o": "attention.output.dense", "f1": "intermediate.dense", "f2": "output.dense"}
    layer = {k: (at(n + ".weight").T.copy(), at(n + ".bias")) for k, n in names.items()}
    parts = [f"attention.self.{n}" for n in ("query", "key", "value")]
    layer["qkv"] = (np.concatenate([at(p + ".weight").T for p in parts], 1), np.concatenate([at(p + ".bias") for p in parts]))
    layer["norm1"] = at("attention.output.LayerNorm.weight"), at("attention.output.LayerNorm.bias")
    layer["norm2"] = at("output.LayerNorm.weight"), at("output.LayerNorm.bias")
    return layer


def checkpoint(folder, branches=None):
    """Tables, layers and epsilon. `branches` maps an output to a file with its upper layers; without one they are the
    checkpoint's. Layers are [(name, name of what it reads, weights)], each branch's last one named as its output."""
    raw = load_file(str(Path(folder) / "model.safetensors"))
    config = json.loads((Path(folder) / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (LAYERS, HIDDEN, HEADS)
    layers = [(f"layer.{i + 1}", f"layer.{i}", layer_of(raw, i)) for i in range(SHARED)]
    for output in OUTPUTS:
        upper = load_file(str(branches[output])) if branches and output in branches else raw
        below = f"layer.{SHARED}"
        for i in range(SHARED, LAYERS):
            layers.append((f"{output}.{i + 1}", below, layer_of(upper, i)))
            below = f"{output}.{i + 1}"
    tables = {k: raw[f"embeddings.{n}.weight"].astype(np.float32) for k, n in
              (("words", "word_embeddings"), ("positions", "position_embeddings"), ("types", "token_type_embeddings"))}
    tables["norm"] = raw["embeddings.LayerNorm.weight"].astype(np.float32), raw["embeddings.LayerNorm.bias"].astype(np.float32)
    return tables, layers, float(config["layer_norm_eps"])


def embed_tokens(graph, tables, epsilon, quantised):
    """Word, position and type vectors added and normalised; the word table in int8 with a scale a row."""
    words = tables["words"]
    if quantised:
        scale = np.abs(words).max(1, keepdims=True) / 127
        scale[scale == 0] = 1
        graph.node("Gather", [graph.constant("words", np.rint(words / scale).astype(np.int8)), "input_ids"], "words.int8")
        graph.node("Cast", ["words.int8"], "words.raw", to=TensorProto.FLOAT)
        graph.node("Gather", [graph.constant("words.scale", scale.astype(np.float32)), "input_ids"], "words.row_scale")
        graph.node("Mul", ["words.raw", "words.row_scale"], "words.vector")
    else:
        graph.node("Gather", [graph.constant("words", words), "input_ids"], "words.vector")
    graph.node("Gather", [graph.constant("types", tables["types"]), "token_type_ids"], "types.vector")
    graph.node("Shape", ["input_ids"], "tokens.count", start=1, end=2)
    zero, axis = graph.constant("zero", np.array([0], np.int64)), graph.constant("axis", np.array([0], np.int64))
    graph.node("Slice", [graph.constant("positions", tables["positions"][:TOKENS_MAX]), zero, "tokens.count", axis], "positions.vector")
    graph.node("Add", ["types.vector", "positions.vector"], "places")
    graph.node("Add", ["words.vector", "places"], "embedded")
    gamma, beta = (graph.constant(f"norm.{k}", v) for k, v in zip("gb", tables["norm"]))
    return graph.node("LayerNormalization", ["embedded", gamma, beta], "layer.0", axis=-1, epsilon=epsilon)


def linear(graph, name, x, weight, bias, plan):
    """x · weight + bias; in int8 when there is a plan (see `plan_of`), else in float, its input observable as `name.in`."""
    if plan is None:
        graph.node("MatMul", [x, graph.constant(name + ".w", weight)], name + ".product")
        return graph.node("Add", [name + ".product", graph.constant(name + ".b", bias)], name + ".out")
    if plan["smooth"] is not None:
        x = graph.node("Mul", [x, graph.constant(name + ".inverse", (1 / plan["smooth"]).astype(np.float32))], name + ".smooth")
    scale = graph.constant(name + ".x_scale", np.float32(plan["scale"]))
    zero = graph.constant(name + ".x_zero", np.uint8(plan["zero"]))
    graph.node("QuantizeLinear", [x, scale, zero], name + ".x")
    inputs = [name + ".x", graph.constant(name + ".w", plan["weight"]), scale, graph.constant(name + ".w_scale", plan["weight_scale"]),
              zero, graph.constant(name + ".w_zero", np.zeros(plan["weight"].shape[1], np.int8)), graph.constant(name + ".b", bias)]
    out = graph.node("MatMulIntegerToFloat", inputs, name + ".out", domain="com.microsoft")
    if plan["kept"]:
        start, end, axis = (graph.constant(f"{name}.{k}", np.array([v], np.int64)) for k, v in
                            (("from", weight.shape[0] - plan["kept"]), ("to", weight.shape[0]), ("axis", 2)))
        graph.node("Slice", [x, start, end, axis], name + ".kept")
        graph.node("MatMul", [name + ".kept", graph.constant(name + ".kept_w", weight[-plan["kept"]:])], name + ".kept_product")
        out = graph.node("Add", [out, name + ".kept_product"], name + ".sum")
    return out


def build(tables, layers, epsilon, plans=None):
    """The whole graph; `plans` maps (layer, linear) to its quantisation, None gives float with every linear's input as an output."""
    graph = Graph()
    embed_tokens(graph, tables, epsilon, plans is not None)
    graph.node("Cast", ["attention_mask"], "mask.int", to=TensorProto.INT32)
    watched = []
    for name, below, layer in layers:
        plan = (lambda k, name=name: plans[name, k]) if plans else (lambda k: None)
        qkv = linear(graph, name + ".qkv", below, *layer["qkv"], plan("qkv"))
        parts = [f"{name}.{p}" for p in ("q", "k", "v")]
        graph.nodes.append(helper.make_node("Split", [qkv], parts, name=name + ".split", axis=2))
        attended = graph.node("MultiHeadAttention", [*parts, "", "mask.int"], name + ".attended", domain="com.microsoft", num_heads=HEADS)
        o = linear(graph, name + ".o", attended, *layer["o"], plan("o"))
        y = skip_norm(graph, name + ".norm1", o, below, layer["norm1"], epsilon)
        inner = graph.node("Gelu", [linear(graph, name + ".f1", y, *layer["f1"], plan("f1"))], name + ".gelu", domain="com.microsoft")
        f2 = linear(graph, name + ".f2", inner, *layer["f2"], plan("f2"))
        watched += [(name, "qkv", below), (name, "o", attended), (name, "f1", y), (name, "f2", inner)]
        skip_norm(graph, name, f2, y, layer["norm2"], epsilon)
    pool(graph)
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", HIDDEN]) for n in OUTPUTS]
    if plans is None:
        outputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in dict.fromkeys(n for _, _, n in watched)]
    return graph.model(outputs), watched


def skip_norm(graph, name, x, skip, norm, epsilon):
    gamma, beta = (graph.constant(f"{name}.{k}", v) for k, v in zip("gb", norm))
    return graph.node("SkipLayerNormalization", [x, skip, gamma, beta], name, domain="com.microsoft", epsilon=epsilon)


def pool(graph):
    """Of each branch the mean over the tokens under the mask, then length one."""
    graph.node("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
    middle, tiny = graph.constant("middle", np.array([1], np.int64)), graph.constant("tiny", np.array([1e-12], np.float32))
    graph.node("Unsqueeze", ["mask.float", middle], "mask.row")
    for output in OUTPUTS:
        # A product with the mask instead of ReduceSum, which adds in another order for another batch.
        graph.node("MatMul", ["mask.row", f"{output}.{LAYERS}"], f"{output}.sum_row")
        graph.node("Squeeze", [f"{output}.sum_row", middle], f"{output}.sum")
        graph.node("ReduceL2", [f"{output}.sum"], f"{output}.length", axes=[1], keepdims=1)
        graph.node("Max", [f"{output}.length", tiny], f"{output}.length_safe")
        # The mean differs from the sum by a factor only, which normalising takes away.
        graph.node("Div", [f"{output}.sum", f"{output}.length_safe"], output)


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model if isinstance(model, str) else model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(ids):
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def tokenizer_of(folder, tokens_max=TOKENS_MAX):
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens_max)
    return tokenizer


def encode_ids(tokenizer, texts):
    return [np.array([e.ids], dtype=np.int64) for e in tokenizer.encode_batch(texts)]


def observe(tables, layers, epsilon, calibration):
    """Runs the float graph: the largest absolute value of every channel, and the inputs of every linear layer."""
    model, watched = build(tables, layers, epsilon)
    session = session_of(model)
    names = [n for _, _, n in watched]
    seen = {(i, k): [] for i, k, _ in watched}
    for ids in calibration:
        for (i, k, _), value in zip(watched, session.run(names, feeds(ids))):
            seen[i, k].append(value[0])
    return session, seen


def plan_of(weight, inputs, kept=0, smooth=None):
    """Scale, zero point and 7-bit weights of one linear layer; the last `kept` rows of the weight are left to float."""
    if smooth is not None:
        weight, inputs = weight * smooth[:, None], [x / smooth for x in inputs]
    n = weight.shape[0] - kept
    low = min(0.0, float(np.percentile([x[:, :n].min() for x in inputs], 100 - RANGE_PERCENTILE)))
    high = max(0.0, float(np.percentile([x[:, :n].max() for x in inputs], RANGE_PERCENTILE)))
    scale = (high - low) / 255
    in_int8 = weight.copy()
    in_int8[n:] = 0
    weight_scale = np.maximum(np.abs(in_int8).max(0), 1e-8) / WEIGHT_LIMIT
    return {"scale": scale, "zero": round(-low / scale), "weight": np.rint(in_int8 / weight_scale).astype(np.int8),
            "weight_scale": weight_scale.astype(np.float32), "kept": kept, "smooth": smooth}


def smoothing(weight, largest):
    s = np.maximum(largest, 1e-5) ** ALPHA / np.maximum(np.abs(weight).max(1), 1e-5) ** (1 - ALPHA)
    return (s / s.mean()).astype(np.float32)


def quantise(layers, seen):
    """Smooths and reorders the layers in place, which leaves the float function as it was, and returns the plans."""
    plans = {}
    for i, _, layer in layers:
        inputs = {k: seen[i, k] for k in LINEARS}
        largest = {k: np.max([np.abs(x).max(0) for x in v], 0) for k, v in inputs.items()}
        # The output layer's divisor folds into the values' weights: nothing to compute when it runs.
        s = smoothing(layer["o"][0], largest["o"])
        w, b = (v.copy() for v in layer["qkv"])
        w[:, 2 * HIDDEN:] /= s
        b[2 * HIDDEN:] /= s
        layer["qkv"], layer["o"] = (w, b), (layer["o"][0] * s[:, None], layer["o"][1])
        plans[i, "o"] = plan_of(layer["o"][0], [x / s for x in inputs["o"]])
        plans[i, "qkv"] = plan_of(w, inputs["qkv"], smooth=smoothing(w, largest["qkv"]))
        # The channels with the largest activations move to the end of the inner layer, where a slice takes them.
        order = np.argsort(largest["f2"])
        layer["f1"] = layer["f1"][0][:, order], layer["f1"][1][order]
        layer["f2"] = layer["f2"][0][order], layer["f2"][1]
        plans[i, "f2"] = plan_of(layer["f2"][0], [x[:, order] for x in inputs["f2"]], kept=KEPT_IN_FLOAT)
        plans[i, "f1"] = plan_of(layer["f1"][0], inputs["f1"], smooth=smoothing(layer["f1"][0], largest["f1"]))
    return plans


def equal_in_batches(session, ids, sizes=(2, 3, 5, 8, 16, 64)):
    """Whether every text of the commonest lengths gives the same bits alone and in batches of equal length."""
    by_length = {}
    for x in ids:
        by_length.setdefault(x.shape[1], []).append(x)
    for same in by_length.values():
        alone = [np.concatenate(rows) for rows in zip(*(session.run(OUTPUTS, feeds(x)) for x in same))]
        for size in sizes:
            for start in range(0, len(same), size):
                together = session.run(OUTPUTS, feeds(np.concatenate(same[start:start + size])))
                if not all(np.array_equal(a[start:start + size], t) for a, t in zip(alone, together)):
                    return False
    return True


def export(folder, calibration_texts, check_texts, out, branches=None):
    """Writes the graph to `out` and returns what was measured on texts that it was not calibrated on."""
    tokenizer = tokenizer_of(folder)
    tables, layers, epsilon = checkpoint(folder, branches)
    reference, seen = observe(tables, layers, epsilon, encode_ids(tokenizer, calibration_texts))
    model, _ = build(tables, layers, epsilon, quantise(layers, seen))
    onnx.save(model, out)
    session = session_of(str(out))
    check = encode_ids(tokenizer, check_texts)
    measured = {"bytes": Path(out).stat().st_size, "texts": len(check), "equal_in_batches": equal_in_batches(session, check)}
    pairs = [(session.run(OUTPUTS, feeds(x)), reference.run(OUTPUTS, feeds(x))) for x in check]
    for place, output in enumerate(OUTPUTS):
        cosines = [float(a[place][0] @ b[place][0]) for a, b in pairs]
        measured[output] = {"cosine_median": float(np.median(cosines)), "cosine_p01": float(np.percentile(cosines, 1)), "cosine_worst": min(cosines)}
    return measured


def embed(session, tokenizer, texts, batch=16, progress=None):
    """{output: [texts, 384]} of the exported graph, in batches of equal length."""
    ids = encode_ids(tokenizer, texts)
    order = sorted(range(len(ids)), key=lambda i: ids[i].shape[1])
    out, start = {name: np.zeros((len(ids), HIDDEN), np.float32) for name in OUTPUTS}, 0
    while start < len(order):
        length, end = ids[order[start]].shape[1], start + 1
        while end < len(order) and end - start < batch and ids[order[end]].shape[1] == length:
            end += 1
        chosen = order[start:end]
        for name, rows in zip(OUTPUTS, session.run(OUTPUTS, feeds(np.concatenate([ids[i] for i in chosen])))):
            out[name][chosen] = rows
        start = end
        if progress:
            progress(start, len(order))
    return out
