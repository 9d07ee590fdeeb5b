"""JAX and Flax, compiled: the layer itself, the attention functions, products."""

import os

import protocol

protocol.keep_to_cores()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if protocol.threads() == 1:
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = " ".join([flags, os.environ.get("XLA_FLAGS", "")])
try:
    import flax
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
except ImportError as error:
    protocol.serve_nothing(error)
    raise SystemExit(0)

DTYPES = {"f32": jnp.float32, "f16": jnp.float16, "bf16": jnp.bfloat16}
SCOPES = {"query": "q", "key": "k", "value": "v"}


def numpy_of(array):
    return np.asarray(array.astype(jnp.float32))


def waiting(call, *arguments):
    return lambda: jax.block_until_ready(call(*arguments))


def parameters(spec, arrays):
    width, heads = spec["D"], spec["H"]
    split = (heads, width // heads)
    params = {
        scope: {"kernel": arrays["w" + name].reshape(width, *split), "bias": arrays["b" + name].reshape(split)}
        for scope, name in SCOPES.items()
    }
    params["out"] = {"kernel": arrays["wo"].reshape(*split, width), "bias": arrays["bo"]}
    return jax.tree.map(jnp.asarray, params)


def layer(spec, arrays):
    dropout = spec["kind"] == "dropout"
    rate = spec["p"] if dropout else 0.0
    module = nn.MultiHeadDotProductAttention(num_heads=spec["H"], dropout_rate=rate, deterministic=not dropout)
    params, x = parameters(spec, arrays), jnp.asarray(arrays["x"])

    def apply(params, x, key):
        return module.apply({"params": params}, x, rngs={"dropout": key} if dropout else None)

    key = jax.random.key(0)
    if spec["kind"] != "train":
        return waiting(jax.jit(apply), params, x, key), numpy_of
    g = jnp.asarray(arrays["g"])

    def gradients(params, x):
        return jax.vjp(lambda params, x: apply(params, x, key), params, x)[1](g)

    def fetch(made):
        of_params, of_x = made
        parts = [of_x, of_params["query"]["kernel"], of_params["out"]["kernel"]]
        return np.concatenate([numpy_of(part).ravel() for part in parts])

    return waiting(jax.jit(gradients), params, x), fetch


def core(attend, repeats_heads):
    def prepare(spec, arrays):
        def ours(name):
            return jnp.asarray(np.ascontiguousarray(arrays[name].swapaxes(1, 2)), DTYPES[spec["dtype"]])

        q, k, v = (ours(name) for name in "qkv")
        if repeats_heads and spec["H"] != spec["Hkv"]:
            raise ValueError("there are no grouped heads")
        call = jax.jit(lambda q, k, v: attend(spec, q, k, v))
        return waiting(call, q, k, v), lambda made: numpy_of(made).swapaxes(1, 2)

    return prepare


def padding(spec):
    return (jnp.arange(spec["Lk"]) < spec["valid"])[None, None, None] if spec["valid"] else None


def attend_jax(spec, q, k, v):
    return jax.nn.dot_product_attention(q, k, v, mask=padding(spec), is_causal=spec["causal"])


def attend_flax(spec, q, k, v):
    causal = jnp.tri(spec["Lq"], spec["Lk"], dtype=bool)[None, None] if spec["causal"] else None
    return nn.dot_product_attention(q, k, v, mask=nn.combine_masks(padding(spec), causal, dtype=bool))


def product(spec, arrays):
    return waiting(jax.jit(jnp.matmul), jnp.asarray(arrays["a"]), jnp.asarray(arrays["b"])), numpy_of


protocol.serve(
    "jax %s, flax %s" % (jax.__version__, flax.__version__),
    {
        "flax": (["layer", "train", "dropout"], layer),
        "flax.dpa": (["core"], core(attend_flax, True)),
        "jax.dpa": (["core"], core(attend_jax, False)),
        "jax.mm": (["gemm"], product),
    },
)
