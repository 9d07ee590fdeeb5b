"""The layouts of msgpack files in which Flax's users keep parameters: each gives the file's bytes and the path to the parameters."""

import jax
import optax
from flax import serialization
from flax.training.train_state import TrainState

# Small enough for a kernel of 8x2x4 float32 numbers to be split into several chunks.
SMALL_CHUNK_BYTES = 100


def bare(params):
    """The parameters themselves, in the order of their making."""
    return serialization.to_bytes(params), []


def sorted_keys(params):
    """The collection, as plain arrays with sorted keys."""
    return serialization.msgpack_serialize(jax.device_get({"params": params})), ["params"]


def nested(params):
    """The layer deep in a model."""
    tree = {"params": {"encoder": {"layers_0": {"attention": params}}, "step": 3}}
    return serialization.to_bytes(tree), ["params", "encoder", "layers_0", "attention"]


def train_state(params):
    """A training state: the parameters come three times, twice as the optimizer's moments."""
    state = TrainState.create(apply_fn=None, params={"params": params}, tx=optax.adam(1e-3))
    return serialization.to_bytes(state), ["params", "params"]


def chunked(params):
    """Large arrays come in pieces. The size from which they do is lowered."""
    usual = serialization.MAX_CHUNK_SIZE
    serialization.MAX_CHUNK_SIZE = SMALL_CHUNK_BYTES
    try:
        return serialization.to_bytes({"params": params}), ["params"]
    finally:
        serialization.MAX_CHUNK_SIZE = usual


LAYOUTS = {
    "bare": bare,
    "sorted_keys": sorted_keys,
    "nested_bfloat16": nested,
    "train_state": train_state,
    "chunked": chunked,
}
