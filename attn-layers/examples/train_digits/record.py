"""Trains the digits classifier with Flax and records what the example train_digits follows.

    VENV/bin/python record.py [OUT_DIR]

The model is that of ../digits/train.py. Orders of images come from JAX's own bits, so that they need not be stored. Writes
train.safetensors (the training images and labels) and recorded.json: a hash of each initial parameter, the losses of the first steps without dropout (and the
same in float64 from the same start: how far rounding leads astray), the first loss with dropout, and the test accuracy after each epoch with and without dropout.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "digits"))
from train import TRAINING as DIGITS  # noqa: E402
from train import Classifier  # noqa: E402

# Shorter and gentler than there: in longer or faster trainings rounding alone leads several test images apart, in this one at most one.
TRAINING = {**DIGITS, "epochs": 30, "learning_rate": 1e-3}
FOLLOWED = 50
BATCH = TRAINING["batch"]


def data():
    digits = load_digits()
    images, labels = digits.images.astype(np.float32), digits.target.astype(np.int32)
    held_out = np.arange(len(images)) % 5 == 4
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def orders(count):
    """The rows of each step: an epoch's images sorted by random words, the rest of the division left out."""
    key = jax.random.key(TRAINING["seed"] + 2)
    for epoch in range(TRAINING["epochs"]):
        words = jax.random.bits(jax.random.fold_in(key, epoch), (count,), jnp.uint32)
        order = np.argsort(np.asarray(words), kind="stable")
        yield [order[start : start + BATCH] for start in range(0, count - BATCH + 1, BATCH)]


def trainer(model, steps, dropout):
    optimizer = optax.adam(optax.cosine_decay_schedule(TRAINING["learning_rate"], steps))

    @jax.jit
    def step(params, state, images, labels, key):
        def loss(params):
            logits = model.apply({"params": params}, images, deterministic=not dropout, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    return optimizer, step


def train(model, params, images, labels, *, dropout, limit=None, watch=None):
    """Losses of the steps; `watch` is called with the parameters after each epoch."""
    steps = TRAINING["epochs"] * (len(images) // BATCH)
    optimizer, step = trainer(model, steps, dropout)
    state, losses = optimizer.init(params), []
    key = jax.random.key(TRAINING["seed"] + 1)
    for rows_of_steps in orders(len(images)):
        for rows in rows_of_steps:
            key, own = jax.random.split(key)
            params, state, value = step(params, state, images[rows], labels[rows], own)
            losses.append(float(value))
            if len(losses) == limit:
                return losses
        if watch:
            watch(params)
    return losses


def followed(start, *, dropout=False, limit=FOLLOWED):
    """The first losses from the parameters in the file `start`, in the widest type that is switched on."""
    widest = jnp.zeros(()).dtype
    params = {name: array.astype(widest) for name, array in load_file(start).items()}
    params = flax.traverse_util.unflatten_dict(params, sep="/")
    (images, labels), _ = data()
    return train(Classifier(), params, images.astype(widest), labels, dropout=dropout, limit=limit)


def in_float64(start):
    """`followed` in another process, since the width of numbers is a setting of the process."""
    command = [sys.executable, __file__, "--follow", str(start)]
    environment = {**os.environ, "JAX_ENABLE_X64": "1"}
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)


def accuracies(model, params, dropout):
    (images, labels), (test, truth) = data()
    classify = jax.jit(lambda params: model.apply({"params": params}, test))
    curve = []

    def watch(params):
        right = int((np.argmax(classify(params), axis=-1) == truth).sum())
        curve.append(right / len(test))
        print(f"epoch {len(curve)}: {curve[-1]:.4f}", end="\r", flush=True)

    train(model, params, images, labels, dropout=dropout, watch=watch)
    print()
    return curve


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", type=Path, default=HERE)
    parser.add_argument("--follow")
    arguments = parser.parse_args()
    if arguments.follow:
        print(json.dumps(followed(arguments.follow)))
        return
    (images, labels), _ = data()
    model = Classifier()
    params = model.init(jax.random.key(TRAINING["seed"]), images[:1])["params"]
    flat = {name: np.asarray(array) for name, array in flax.traverse_util.flatten_dict(params, sep="/").items()}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.safetensors"
        save_file(flat, start)
        losses, losses_in_float64 = followed(start), in_float64(start)
        (with_dropout,) = followed(start, dropout=True, limit=1)
    recorded = {
        "training": TRAINING,
        "flax": flax.__version__,
        "jax": jax.__version__,
        "parameters": [[name, hashlib.sha1(array.tobytes()).hexdigest()] for name, array in flat.items()],
        "losses": losses,
        "losses_in_float64": losses_in_float64,
        "first_loss_with_dropout": with_dropout,
        "accuracy_with_dropout": accuracies(model, params, True),
        "accuracy_without_dropout": accuracies(model, params, False),
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in recorded.items())
    (arguments.out / "recorded.json").write_text(f"{{\n{lines}\n}}\n")
    arrays = {"images": images.astype(np.uint8), "labels": labels.astype(np.uint8)}
    save_file(arrays, arguments.out / "train.safetensors")


if __name__ == "__main__":
    main()
