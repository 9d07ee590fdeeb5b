"""Trains the character decoder of the example `generate` with Flax, and records what Flax computes with its weights.

    apt-get install bible-kjv          # the text is in the public domain
    bible -l100000 gen1:1-rev22:21 > kjv.txt
    python -m venv VENV && VENV/bin/pip install -r ../../golden/requirements.txt
    VENV/bin/python train.py train kjv.txt WORK    # goes on from the last checkpoint in the folder WORK
    VENV/bin/python train.py record kjv.txt WORK [OUT_DIR]

Every twentieth chapter is held out. The attention of a block is `flax.linen.MultiHeadDotProductAttention` with a function that rotates queries and keys, under a mask that lets a character see the
last `window` ones alone: what comes later never depends on where a text began, and the model can go on for ever.

`record` writes weights.safetensors (float16, by Flax's names), model.json, and check.safetensors: a held-out text and Flax's logits of its last characters with the weights as they were written, in
float32, and in float64 to tell how far rounding alone leads astray.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from safetensors.numpy import load_file, save_file

MODEL = {"features": 128, "num_heads": 4, "layers": 4, "mlp_features": 512, "window": 128, "rotary_base": 10000.0, "epsilon": 1e-6}
TRAINING = {"seed": 0, "steps": 780, "warm_up": 60, "decay": 230, "batch": 8, "length": 256, "learning_rate": 6e-3, "weight_decay": 0.05}
# Texts in the check: long enough for the window to leave the first characters behind.
PROMPT, CONTINUATION = 160, 64


def rotate(x):
    """Each row's halves turned by its position. Angles in float64, as they are constants."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[-3])[:, None] * MODEL["rotary_base"] ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angles)[:, None, :], x.dtype) for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotary_attention(query, key, value, mask=None, precision=None):
    return nn.dot_product_attention(rotate(query), rotate(key), value, mask=mask, precision=precision)


class Block(nn.Module):
    """Self-attention and an MLP, each normalised before and added."""

    @nn.compact
    def __call__(self, x, mask):
        y = nn.LayerNorm(epsilon=MODEL["epsilon"], name="attention_norm")(x)
        attention = nn.MultiHeadDotProductAttention(num_heads=MODEL["num_heads"], attention_fn=rotary_attention, precision="highest", name="attention")
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(epsilon=MODEL["epsilon"], name="mlp_norm")(x)
        y = nn.gelu(nn.Dense(MODEL["mlp_features"], precision="highest", name="mlp_in")(y))
        return x + nn.Dense(MODEL["features"], precision="highest", name="mlp_out")(y)


class Decoder(nn.Module):
    """Logits of the next character, `[batch, length, characters]`, from characters, `[batch, length]`."""

    characters: int

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(self.characters, MODEL["features"], name="embed")(ids)
        place = np.arange(ids.shape[-1])
        distance = place[:, None] - place[None, :]
        mask = jnp.asarray((distance >= 0) & (distance < MODEL["window"]))[None, None]
        for layer in range(MODEL["layers"]):
            x = Block(name=f"block_{layer}")(x, mask)
        x = nn.LayerNorm(epsilon=MODEL["epsilon"], name="norm")(x)
        return nn.Dense(self.characters, precision="highest", name="head")(x)


def read(path):
    """The characters there are, and the chapters as ids: to train on, and held out. A verse is a line, without its number."""
    chapters = []
    for line in path.read_text().splitlines():
        verse = re.match(r" +\d+ (.*)", line)
        if verse:
            chapters[-1] += verse[1] + "\n"
        elif line.strip():
            chapters.append("")
    characters = "".join(sorted(set("".join(chapters))))
    ids = {character: id for id, character in enumerate(characters)}
    text = [np.array([ids[c] for c in chapter + "\n"], np.uint8) for chapter in chapters]
    return characters, np.concatenate([c for i, c in enumerate(text) if i % 20 != 19]), np.concatenate(text[19::20])


def cross_entropy(logits, ids):
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()


def bits_per_character(model, params, text, windows):
    """Of held-out windows, spread evenly, without their first `window` characters."""
    length = TRAINING["length"]
    starts = np.linspace(0, len(text) - length - 1, windows).astype(int)

    @jax.jit
    def loss(params, ids):
        logits = model.apply({"params": params}, ids[:, :-1])
        return cross_entropy(logits[:, MODEL["window"] :], ids[:, MODEL["window"] + 1 :])

    rows = np.stack([text[start : start + length + 1] for start in starts]).astype(np.int32)
    return float(np.mean([loss(params, part) for part in np.split(rows, len(rows) // 8)])) / np.log(2)


def optimizer_of_training():
    """Muon (Jordan et al. 2024) for the matrices of the blocks, Adam for the rest: half the steps of AdamW alone. A training can be made longer as long as the rate has not begun to fall."""
    rate, end = TRAINING["learning_rate"], TRAINING["steps"]
    begin = end - TRAINING["decay"]
    ramps = [optax.linear_schedule(0.0, rate, TRAINING["warm_up"]), optax.constant_schedule(rate), optax.linear_schedule(rate, 0.0, TRAINING["decay"])]
    schedule = optax.join_schedules(ramps, [TRAINING["warm_up"], begin])

    def matrix(path, array):
        names = [entry.key for entry in path]
        if names[-1] != "kernel" or names[0] == "head":
            return None
        inputs = array.ndim - 1 if names[-2] == "out" else 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, array.ndim)))

    muon = optax.contrib.muon(
        schedule,
        weight_decay=TRAINING["weight_decay"],
        adam_b2=0.95,
        adam_learning_rate=lambda step: schedule(step) / 2,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(matrix, params),
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def train(text, held_out, model, work):
    work.mkdir(exist_ok=True)
    kept = work / "checkpoint.msgpack"
    optimizer = optimizer_of_training()
    params = model.init(jax.random.key(TRAINING["seed"]), jnp.zeros((1, 2), jnp.int32))["params"]
    state = {"step": 0, "params": params, "optimizer": optimizer.init(params)}
    if kept.exists():
        state = flax.serialization.from_bytes(state, kept.read_bytes())

    @jax.jit
    def step(params, state, ids):
        value, gradient = jax.value_and_grad(lambda params: cross_entropy(model.apply({"params": params}, ids[:, :-1]), ids[:, 1:]))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    saved = time.monotonic()
    for number in range(state["step"], TRAINING["steps"]):
        # Each step has its own numbers, so that a training that was cut off goes on as it would have.
        starts = np.random.default_rng([TRAINING["seed"], number]).integers(0, len(text) - TRAINING["length"], TRAINING["batch"])
        ids = np.stack([text[start : start + TRAINING["length"] + 1] for start in starts]).astype(np.int32)
        state["params"], state["optimizer"], value = step(state["params"], state["optimizer"], ids)
        state["step"] = number + 1
        if state["step"] % 20 == 0:
            print(f"step {state['step']}: loss {float(value) / np.log(2):.3f} bits, {time.process_time():.0f} s of CPU", flush=True)
        if time.monotonic() - saved > 600 or state["step"] == TRAINING["steps"]:
            kept.write_bytes(flax.serialization.to_bytes(state))
            saved = time.monotonic()
            print(f"step {state['step']}: held out {bits_per_character(model, state['params'], held_out, 64):.3f} bits per character", flush=True)


def logits_of_check(folder):
    """Those of the check's last characters, in the widest type that is switched on."""
    widest = jnp.zeros(()).dtype
    params = {name: array.astype(widest) for name, array in load_file(folder / "weights.safetensors").items()}
    params = flax.traverse_util.unflatten_dict(params, sep="/")
    ids = load_file(folder / "check.safetensors")["ids"].astype(np.int32)
    logits = Decoder(params["head"]["bias"].size).apply({"params": params}, ids[None])
    return np.asarray(logits[0, PROMPT:])


def record(characters, held_out, model, work, out):
    state = flax.serialization.msgpack_restore((work / "checkpoint.msgpack").read_bytes())
    params = {name: np.asarray(array, np.float16) for name, array in flax.traverse_util.flatten_dict(state["params"], sep="/").items()}
    save_file(params, out / "weights.safetensors")
    check = {"ids": held_out[: PROMPT + CONTINUATION]}
    save_file(check, out / "check.safetensors")
    narrow = logits_of_check(out)
    # The width of numbers is a setting of the process.
    command = [sys.executable, __file__, "wide", str(out), str(work / "wide.npy")]
    subprocess.run(command, env={**os.environ, "JAX_ENABLE_X64": "1"}, check=True)
    wide = np.load(work / "wide.npy")
    save_file({**check, "logits": narrow, "logits_in_float64": wide}, out / "check.safetensors")
    widened = flax.traverse_util.unflatten_dict({name: array.astype(np.float32) for name, array in params.items()}, sep="/")
    bits = bits_per_character(model, widened, held_out, 512)
    print(f"{bits:.3f} bits per character; {sum(a.size for a in params.values())} parameters; float32 leads astray by {np.abs(narrow - wide).max():.2e}")
    description = {
        **MODEL,
        "characters": characters,
        "training": {**TRAINING, "steps_done": int(state["step"])},
        "bits_per_character": bits,
        "flax": flax.__version__,
        "jax": jax.__version__,
    }
    (out / "model.json").write_text(json.dumps(description, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["train", "record", "wide"])
    parser.add_argument("text", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    if arguments.task == "wide":
        np.save(arguments.work, logits_of_check(arguments.text))
        return
    characters, text, held_out = read(arguments.text)
    model = Decoder(len(characters))
    if arguments.task == "train":
        train(text, held_out, model, arguments.work)
    else:
        record(characters, held_out, model, arguments.work, arguments.out)


if __name__ == "__main__":
    main()
