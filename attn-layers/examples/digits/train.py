"""Trains the digits classifier with Flax and writes what the example reads.

    python -m venv VENV && VENV/bin/pip install -r ../../golden/requirements.txt
    VENV/bin/python train.py [OUT_DIR]

Data: the 1,797 handwritten digits (8x8, 0..16) that scikit-learn ships. Every fifth image is held out (359 images). Writes model.json, digits.msgpack (flax.serialization.to_bytes of {"params": ...}) and
digits_test.safetensors (held-out images, labels, Flax's logits and predictions, the first image's attention weights).
"""

import json
import sys
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

MODEL = {
    "patch": 2,
    "tokens": 16,
    "features": 32,
    "num_heads": 4,
    "layers": 2,
    "mlp_features": 64,
    "classes": 10,
    "epsilon": 1e-6,
    "pixel_scale": 16.0,
}
TRAINING = {"seed": 0, "epochs": 100, "batch": 64, "learning_rate": 4e-3, "dropout_rate": 0.1}


class Block(nn.Module):
    """Self-attention and an MLP, each normalised before and added."""

    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.LayerNorm(epsilon=MODEL["epsilon"], name="attention_norm")(x)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=MODEL["num_heads"],
            dropout_rate=TRAINING["dropout_rate"],
            precision="highest",
            name="attention",
        )
        x = x + attention(y, deterministic=deterministic, sow_weights=True)
        y = nn.LayerNorm(epsilon=MODEL["epsilon"], name="mlp_norm")(x)
        y = nn.relu(nn.Dense(MODEL["mlp_features"], precision="highest", name="mlp_in")(y))
        return x + nn.Dense(MODEL["features"], precision="highest", name="mlp_out")(y)


class Classifier(nn.Module):
    """Patches to tokens, blocks, the tokens' mean, one dense layer."""

    @nn.compact
    def __call__(self, images, deterministic=True):
        p, side = MODEL["patch"], 8 // MODEL["patch"]
        batch = images.shape[0]
        x = images / MODEL["pixel_scale"]
        x = x.reshape(batch, side, p, side, p).transpose(0, 1, 3, 2, 4).reshape(batch, side * side, p * p)
        x = nn.Dense(MODEL["features"], precision="highest", name="embed")(x)
        x = x + self.param("position", nn.initializers.normal(0.02), (MODEL["tokens"], MODEL["features"]))
        for layer in range(MODEL["layers"]):
            x = Block(name=f"block_{layer}")(x, deterministic)
        x = nn.LayerNorm(epsilon=MODEL["epsilon"], name="norm")(x)
        return nn.Dense(MODEL["classes"], precision="highest", name="head")(x.mean(axis=1))


def train(model, images, labels):
    params = model.init(jax.random.key(TRAINING["seed"]), images[:1])["params"]
    steps = TRAINING["epochs"] * (len(images) // TRAINING["batch"])
    optimizer = optax.adam(optax.cosine_decay_schedule(TRAINING["learning_rate"], steps))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, images, labels, key):
        def loss(params):
            logits = model.apply({"params": params}, images, deterministic=False, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(TRAINING["seed"])
    key = jax.random.key(TRAINING["seed"] + 1)
    for epoch in range(TRAINING["epochs"]):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - TRAINING["batch"] + 1, TRAINING["batch"]):
            rows = order[start : start + TRAINING["batch"]]
            key, own = jax.random.split(key)
            params, state, value = step(params, state, images[rows], labels[rows], own)
        print(f"epoch {epoch + 1}/{TRAINING['epochs']}: loss {value:.4f}", end="\r", flush=True)
    print()
    return params


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    data = load_digits()
    images, labels = data.images.astype(np.float32), data.target.astype(np.int32)
    held_out = np.arange(len(images)) % 5 == 4
    model = Classifier()
    params = train(model, images[~held_out], labels[~held_out])
    test, truth = images[held_out], labels[held_out]
    logits, sown = model.apply({"params": params}, test, mutable=["intermediates"])
    predictions = np.argmax(np.asarray(logits), axis=-1)
    accuracy = float((predictions == truth).mean())
    print(f"test accuracy {accuracy:.4f} on {len(test)} images")
    weights = {
        f"attention_weights/block_{layer}": np.asarray(
            sown["intermediates"][f"block_{layer}"]["attention"]["attention_weights"][0][0]
        )
        for layer in range(MODEL["layers"])
    }
    (out / "digits.msgpack").write_bytes(flax.serialization.to_bytes({"params": params}))
    save_file(
        {
            "images": test.astype(np.uint8),
            "labels": truth.astype(np.uint8),
            "logits": np.asarray(logits, np.float32),
            "predictions": predictions.astype(np.uint8),
            **weights,
        },
        out / "digits_test.safetensors",
    )
    description = {**MODEL, "training": TRAINING, "accuracy": accuracy, "flax": flax.__version__, "jax": jax.__version__}
    (out / "model.json").write_text(json.dumps(description, indent=1) + "\n")


if __name__ == "__main__":
    main()
