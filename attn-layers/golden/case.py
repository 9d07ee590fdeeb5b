"""A case: what is called with which tensors, and short ways to say it.

Everything random comes from a generator seeded with the case's name.
"""

from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

import files

F32, F64, F16, BF16 = "float32", "float64", "float16", "bfloat16"
MODULE = "MultiHeadDotProductAttention"


@dataclass
class Case:
    """One case. Inputs are arrays, or functions that draw them; `params` changes the drawn parameters."""

    name: str
    kind: str
    inputs: dict[str, Any]
    call: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    module: str | None = MODULE
    function: str | None = None
    x64: bool = False
    params: Callable = lambda params, random: params
    params_from: dict[str, Any] | None = None
    msgpack: Callable | None = None
    mutable: bool = False
    # Whether a gradient of the output is drawn and pulled back.
    gradient: bool = False
    # Streams of random numbers by name: each a seed, or the two words of a key.
    rngs: dict[str, Any] = field(default_factory=dict)
    # Names of the modules from the root down to the attention module; none if it is the root.
    path: tuple[str, ...] = ()
    # How often the attention module is called within one apply.
    make_rng_count: int = 1
    # Settings of JAX and Flax that decide which random numbers come out.
    partitionable: bool = True
    separator: bool = False


# Fields of a case that say how random numbers are made.
RANDOM = ("rngs", "path", "make_rng_count", "partitionable", "separator")


def normal(*shape, dtype=F32):
    """Draws a tensor of standard normal numbers."""
    return lambda random: random.standard_normal(shape).astype(files.dtype_of(dtype))


def integers(*shape, low=-2, high=3):
    """Draws a tensor of small int32 numbers."""
    return lambda random: random.integers(low, high, shape, dtype=np.int32)


def key(first, second):
    """A key by its words."""
    return np.array([first, second], dtype=np.uint32)


def forward(name, inputs, call=None, *, module=MODULE, x64=False, params=Case.params, msgpack=None, gradient=False, **config):
    """A call of the layer. Every input is passed under its own name."""
    call = {k: k for k in inputs} | (call or {})
    how, config = random_settings({"num_heads": 2} | config)
    return Case(
        name, "forward", inputs, call, config, module, x64=x64, params=params, msgpack=msgpack, gradient=gradient, **how
    )


def init(name, inputs, *, seed, module=MODULE, x64=False, **config):
    """Fresh parameters. Of the inputs only the shapes matter. `seed` may be a key, too."""
    how, config = random_settings({"num_heads": 2} | config)
    how["rngs"] = {"params": seed} | how.get("rngs", {})
    return Case(name, "init", inputs, {k: k for k in inputs}, config, module, x64=x64, **how)


def decode(name, batch, max_length, steps, *, features=8, dtype=F32, mask=None, x64=False, **config):
    """Token by token. `dtype` is that of the inputs."""
    inputs = {
        "init_inputs_q": normal(*batch, max_length, features, dtype=dtype),
        "inputs_q": normal(*batch, steps, features, dtype=dtype),
    }
    call = {"inputs_q": "inputs_q"}
    if mask is not None:
        inputs["mask"] = mask
        call["mask"] = "mask"
    how, config = random_settings({"num_heads": 2, "decode": True} | config)
    return Case(name, "decode", inputs, call, config, x64=x64, **how)


def function(name, of, inputs, call=None, *, positional=None, x64=False, gradient=False, **how):
    """A call of a function, by keyword or, for the mask helpers, by position."""
    named = {"positional": positional} if positional else {k: k for k in inputs}
    return Case(
        name, "function", inputs, named | (call or {}), module=None, function=of, x64=x64, gradient=gradient, **how
    )


def failing(name, inputs, call=None, *, params=Case.params, params_from=None, mutable=False, **config):
    """A call of the layer that raises. `params_from`: shapes to make the parameters from, if the inputs are unfit for that."""
    call = {k: k for k in inputs if not k.startswith("cache/")} | (call or {})
    how, config = random_settings({"num_heads": 2} | config)
    return Case(
        name, "error", inputs, call, config, params=params, params_from=params_from, mutable=mutable, **how
    )


def failing_function(name, of, inputs, call=None, *, positional=None):
    """A call of a function that raises."""
    named = {"positional": positional} if positional else {k: k for k in inputs}
    return Case(name, "error", inputs, named | (call or {}), module=None, function=of)


def random_settings(config):
    """Those of the arguments that say how random numbers are made, and the others, which are the module's."""
    how = {k: v for k, v in config.items() if k in RANDOM}
    return how, {k: v for k, v in config.items() if k not in RANDOM}


def self_attention(*batch, length=5, features=8, dtype=F32):
    """The inputs of self-attention."""
    return {"inputs_q": normal(*batch, length, features, dtype=dtype)}


def cross_attention(*batch, dtype=F32):
    """Inputs of three widths and two lengths."""
    return {
        "inputs_q": normal(*batch, 4, 6, dtype=dtype),
        "inputs_k": normal(*batch, 7, 5, dtype=dtype),
        "inputs_v": normal(*batch, 7, 9, dtype=dtype),
    }


def causal(length):
    """`[1, 1, length, length]`."""
    return np.tril(np.ones((1, 1, length, length), dtype=bool))


def padding(lengths, length):
    """`[batch, 1, 1, length]`: keys beyond each entry's own length are masked."""
    return (np.arange(length) < np.asarray(lengths)[:, None])[:, None, None, :]


def first_rows_masked(length, rows):
    """`[1, 1, length, length]`: the first queries see nothing, the others everything."""
    return np.broadcast_to((np.arange(length) >= rows)[:, None], (1, 1, length, length)).astype(np.float32)


def without(*names):
    """Leaves parameters out."""
    return lambda params, random: {k: v for k, v in params.items() if k not in names}


def reshaped(name, *shape):
    """Gives the parameter `name` another shape."""
    return lambda params, random: params | {name: random.standard_normal(shape).astype(np.float32)}
