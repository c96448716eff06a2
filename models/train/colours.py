"""The colour of words, learned from names of colours: a small network on hashed n-grams, and in the full tier the colours
of the names that are nearest, in a space that is learned for that.

Promises: trained on the list of colour names alone; the loss of the network is CIEDE2000 itself, whose mean over answers
is least at their median rather than at their mean. What is drawn at random is drawn from SEED. The program computes the
same (processors/src/model/colours.rs). Leaves out: what a feeling does to a colour.
"""

import json

import numpy as np
from safetensors.numpy import load_file, save_file

WIDTH, HIDDEN, PLACES, NEAREST = 32, 64, 64, 32
CHARACTERS_MAX, WORDS_MAX = 200, 6
# An n-gram of fewer names than this has no row.
NAMES_MIN = 4
SEED, SEEDS = 1, (1, 2, 3)
EPOCHS, BATCH, RATE = 4, 256, 4e-3
# Shares of units, and of n-grams of a name at most, that are left out while training.
UNITS_OUT, GRAMS_OUT = 0.4, 0.8
STEPS, QUERIES, SAMPLE, SPACE_RATE = 120, 512, 6144, 3e-3
# Share of the nearest names in the answer of the full tier.
SHARE = 0.5
SRGB = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WHITE = SRGB.sum(1)


def lab_of(hexes):
    """CIELAB under D65."""
    rgb = np.array([[int(h[i:i + 2], 16) for i in (1, 3, 5)] for h in hexes]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ SRGB.T / WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1).astype(np.float32)


def shown(lab):
    """What a screen shows of CIELAB: clipped to sRGB."""
    lab = np.asarray(lab, np.float64)
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], 1)
    linear = np.where(f > 6 / 29, f ** 3, (116 * f - 16) / (24389 / 27)) * WHITE @ np.linalg.inv(SRGB).T
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    bytes_ = np.rint(np.clip(rgb, 0, 1) * 255).astype(int)
    return lab_of(["#%02x%02x%02x" % tuple(row) for row in bytes_])


def de00(torch, p, q, floor=1e-6):
    """CIEDE2000 (Sharma, Wu and Dalal 2005), with gradients that stay finite where colours are grey or equal."""
    cos, sin, rad = (lambda x: torch.cos(torch.deg2rad(x))), (lambda x: torch.sin(torch.deg2rad(x))), torch.rad2deg
    (l1, a1, b1), (l2, a2, b2) = p.T, q.T
    mean = (torch.sqrt(a1 * a1 + b1 * b1 + floor) + torch.sqrt(a2 * a2 + b2 * b2 + floor)) / 2
    g = 0.5 * (1 - torch.sqrt(mean ** 7 / (mean ** 7 + 25.0 ** 7) + 1e-12))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = torch.sqrt(a1 ** 2 + b1 ** 2 + floor), torch.sqrt(a2 ** 2 + b2 ** 2 + floor)
    dh = torch.sqrt(torch.clamp(2 * (c1 * c2 - a1 * a2 - b1 * b2), min=0) + floor) * torch.sign(a1 * b2 - b1 * a2).detach()
    h = rad(torch.atan2(b1 / c1 + b2 / c2, a1 / c1 + a2 / c2 + 1e-9)).detach() % 360
    t = 1 - 0.17 * cos(h - 30) + 0.24 * cos(2 * h) + 0.32 * cos(3 * h + 6) - 0.2 * cos(4 * h - 63)
    c, l = (c1 + c2) / 2, (l1 + l2) / 2
    turn = -sin(60 * torch.exp(-((h - 275) / 25) ** 2)) * 2 * torch.sqrt(c ** 7 / (c ** 7 + 25.0 ** 7) + 1e-12)
    x = (l2 - l1) / (1 + 0.015 * (l - 50) ** 2 / torch.sqrt(20 + (l - 50) ** 2))
    y, z = (c2 - c1) / (1 + 0.045 * c), dh / (1 + 0.015 * c * t)
    return torch.sqrt(torch.clamp(x * x + y * y + z * z + turn * y * z, min=0) + 1e-3)


def scores(said, truth):
    """median_de00 and p90_de00, as a screen shows what was said."""
    import torch  # noqa: PLC0415
    away = de00(torch, torch.tensor(shown(said)).double(), torch.tensor(truth).double(), 1e-12).numpy()
    return {"median_de00": round(float(np.median(away)), 2), "p90_de00": round(float(np.percentile(away, 90)), 2)}


def grams(counter, texts):
    """The buckets of each text, in rising order, each once."""
    return [np.array(sorted(counter.counts(text[:CHARACTERS_MAX])), np.int64) for text in texts]


class Table:
    """The n-grams that have a row."""

    def __init__(self, bags):
        found, counts = np.unique(np.concatenate(bags), return_counts=True)
        self.bucket = found[counts >= NAMES_MIN]
        self.idf = (1 + np.log((1 + len(bags)) / (1 + counts[counts >= NAMES_MIN]))).astype(np.float32)

    def rows(self, bag):
        place = np.searchsorted(self.bucket, bag)
        place[place == len(self.bucket)] = 0
        return place[self.bucket[place] == bag]


def train_network(bags, table, truth, seed, say):
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    rows = [table.rows(bag) for bag in bags]
    middle, spread = torch.tensor(truth.mean(0)), torch.tensor(truth.std(0))
    table_, hidden, out, skip = nn.EmbeddingBag(len(table.bucket), WIDTH, mode="sum"), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 3), nn.Linear(WIDTH, 3)
    nn.init.normal_(table_.weight, std=0.05)
    drop, layers = nn.Dropout(UNITS_OUT), [hidden, out, skip]
    weights = [{"params": table_.parameters(), "weight_decay": 1e-5}, {"params": [p for l in layers for p in l.parameters()], "weight_decay": 1e-3}]
    optimizer = torch.optim.AdamW(weights, lr=RATE)
    per_epoch = -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * per_epoch, pct_start=0.1)
    truth_ = torch.tensor(truth)
    for epoch in range(EPOCHS):
        order, total = draw.permutation(len(rows)), 0.0
        for begin in range(0, len(rows), BATCH):
            batch = order[begin:begin + BATCH]
            kept = [rows[i][draw.random(len(rows[i])) > GRAMS_OUT * draw.random()] for i in batch]
            lengths = np.array([len(k) for k in kept])
            weight = np.concatenate([table.idf[k] / max(np.sqrt((table.idf[k] ** 2).sum()), 1e-9) for k in kept])
            offsets = torch.tensor(np.concatenate([[0], np.cumsum(lengths)[:-1]]))
            bag = table_(torch.tensor(np.concatenate(kept)), offsets, per_sample_weights=torch.tensor(weight.astype(np.float32)))
            bag = drop(bag)
            said = middle + spread * (out(drop(torch.relu(hidden(bag)))) + skip(bag))
            loss = de00(torch, said, truth_[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*table_.parameters(), *(p for l in layers for p in l.parameters())], 5)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        say(f"colours: seed {seed}, epoch {epoch + 1}, CIEDE2000 {total / len(rows):.2f}")
    array = lambda t: t.detach().numpy().astype(np.float32)
    steps = array(table_.weight)
    scale = np.abs(steps).max(0) / 127
    spread, middle = spread.numpy(), middle.numpy()
    return {
        "bucket": table.bucket.astype(np.int32), "idf": table.idf, "rows": np.rint(steps / scale).astype(np.int8), "scale": scale,
        "hidden": array(hidden.weight), "hidden_bias": array(hidden.bias), "out": spread[:, None] * array(out.weight),
        "skip": spread[:, None] * array(skip.weight), "bias": middle + spread * (array(out.bias) + array(skip.bias)), "mean": middle,
    }


def run_network(tensors, bags):
    """CIELAB by the n-grams of each text."""
    table = Table.__new__(Table)
    table.bucket, table.idf = tensors["bucket"].astype(np.int64), tensors["idf"]
    said = np.zeros((len(bags), 3), np.float32)
    for i, bag in enumerate(bags):
        rows = table.rows(bag)
        weight = table.idf[rows] / max(np.sqrt((table.idf[rows] ** 2).sum()), 1e-9)
        x = weight @ tensors["rows"][rows].astype(np.float32) * tensors["scale"] if len(rows) else np.zeros(WIDTH, np.float32)
        said[i] = tensors["bias"] + tensors["out"] @ np.maximum(tensors["hidden"] @ x + tensors["hidden_bias"], 0) + tensors["skip"] @ x
    return said


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def joined(encoded, static):
    return np.hstack([unit(encoded), static]).astype(np.float32)


def train_space(vectors, truth, seed, say):
    """The space in which the colour of a name is best told from those of its neighbours: softmax over cosines."""
    import torch  # noqa: PLC0415

    torch.manual_seed(seed)
    middle = vectors.mean(0)
    centred = vectors - middle
    begin = np.linalg.svd(centred[::3], full_matrices=False)[2][:PLACES].T
    space = torch.tensor(begin.copy(), requires_grad=True)
    sharp = torch.tensor(float(np.log(12.0)), requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [space], "lr": SPACE_RATE}, {"params": [sharp], "lr": 1e-2}])
    inputs, truth_ = torch.tensor(centred), torch.tensor(truth)
    for step in range(STEPS):
        drawn = torch.randperm(len(inputs))[:SAMPLE]
        places = torch.nn.functional.normalize(inputs[drawn] @ space, dim=1)
        alike = places[:QUERIES] @ places.T * sharp.exp()
        alike[torch.arange(QUERIES), torch.arange(QUERIES)] = -1e9
        said = torch.softmax(alike, 1) @ truth_[drawn]
        loss = ((said - truth_[drawn[:QUERIES]]) ** 2).sum(1).add(4).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 40 == 39:
            say(f"colours: neighbours, step {step + 1}, CIELAB {loss.item():.2f}")
    space = space.detach().numpy()
    places = unit(centred @ space)
    return {
        "space": np.ascontiguousarray(space.T), "space_middle": middle, "sharpness": np.array([float(sharp.exp().detach())], np.float32),
        "places": np.rint(places * 127).astype(np.int8), "colours": np.rint(truth).astype(np.int8), "share": np.array([SHARE], np.float32),
    }


def run_nearest(tensors, vectors):
    """CIELAB by the nearest names."""
    places = unit((vectors - tensors["space_middle"]) @ tensors["space"].T)
    alike = places @ tensors["places"].T.astype(np.float32) / 127
    nearest = np.argpartition(-alike, NEAREST, 1)[:, :NEAREST]
    weight = np.exp((np.take_along_axis(alike, nearest, 1) - 1) * tensors["sharpness"][0])
    return (tensors["colours"][nearest].astype(np.float32) * weight[..., None]).sum(1) / weight.sum(1)[:, None]


def run_full(tensors, texts, bags, vectors):
    """The full tier: both together for what is as short as a name."""
    said, near = run_network(tensors, bags), run_nearest(tensors, vectors)
    short = np.array([len(text.split()) <= WORDS_MAX for text in texts])
    share = tensors["share"][0] * short[:, None]
    return said * (1 - share) + near * share


def build(rows, bags, vectors, out, say):
    """Trains on `rows` of train, measures on dev; returns what was measured."""
    truth = {split: lab_of([row["hex"] for row in of]) for split, of in rows.items()}
    texts = [row["name"] for row in rows["dev"]]
    table = Table(bags["train"])
    space = train_space(vectors["train"], truth["train"], SEED, say)
    measured, shipped = {"mean colour": scores(np.tile(truth["train"].mean(0), (len(texts), 1)), truth["dev"]),
                         "nearest names alone": scores(run_nearest(space, vectors["dev"]), truth["dev"])}, None
    for seed in SEEDS:
        tensors = train_network(bags["train"], table, truth["train"], seed, say) | space
        shipped = tensors if seed == SEED else shipped
        measured[f"seed {seed}"] = {"fast": scores(run_network(tensors, bags["dev"]), truth["dev"]),
                                    "full": scores(run_full(tensors, texts, bags["dev"], vectors["dev"]), truth["dev"])}
        say(f"colours: {measured[f'seed {seed}']}")
    save_file({name: np.ascontiguousarray(value) for name, value in shipped.items()}, str(out / "colours.safetensors"))
    return measured


def golden(texts, bags, vectors, folder, path):
    """What the shipped file says of texts, for the program's tests."""
    tensors = load_file(str(folder / "colours.safetensors"))
    fast, full = run_network(tensors, bags), run_full(tensors, texts, bags, vectors)
    rows = [{"text": t, "fast": [round(float(x), 4) for x in f], "full": [round(float(x), 4) for x in g]} for t, f, g in zip(texts, fast, full)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
