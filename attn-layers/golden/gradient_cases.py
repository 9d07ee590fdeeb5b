"""The cases with a gradient of the output, which is pulled back to the inputs and parameters."""

import numpy as np

from case import *


def pulled(name, inputs, call=None, **config):
    """A call of the layer and its gradients."""
    return forward(f"gradient_{name}", inputs, call, gradient=True, **config)


def dropping(rate=0.3, **more):
    """Dropout with an explicit key: inputs, arguments of the call, fields."""
    return {"dropout_rng": key(0x12345678, 0x9ABCDEF0)}, {"deterministic": False}, {"dropout_rate": rate} | more


def inputs():
    yield pulled("self", self_attention(2))
    yield pulled("cross", cross_attention(2), qkv_features=6, out_features=5)
    yield pulled("keys_serve_as_values", {"inputs_q": normal(2, 4, 8), "inputs_k": normal(2, 3, 6)})
    yield pulled("inputs_kv_no_bias", {"inputs_q": normal(2, 4, 8), "inputs_kv": normal(2, 3, 6)}, use_bias=False)
    yield pulled("batch_dims_0", self_attention(length=4, features=6), num_heads=3)
    yield pulled("batch_dims_3", self_attention(2, 1, 2, length=3, features=4))
    yield pulled("one_key", {"inputs_q": normal(2, 3, 4), "inputs_kv": normal(2, 1, 4)})
    one_seen = {"mask": np.array([False, False, True])}
    yield pulled("one_key_seen_bfloat16", self_attention(2, length=3) | one_seen, dtype=BF16)
    yield pulled("head_dim_17_many_keys", {"inputs_q": normal(1, 2, 6), "inputs_kv": normal(1, 67, 6)}, qkv_features=34)
    yield pulled("no_keys", {"inputs_q": normal(1, 2, 4), "inputs_kv": normal(1, 0, 4)})
    yield pulled("no_queries", {"inputs_q": normal(1, 0, 4), "inputs_kv": normal(1, 2, 4)})
    yield pulled("self_attention_class", self_attention(2), module="SelfAttention", qkv_features=4)


def masks():
    yield pulled("causal_normalize_qk", self_attention(2) | {"mask": causal(5)}, normalize_qk=True)
    yield pulled("padding", self_attention(3, length=4) | {"mask": padding([2, 4, 0], 4)})
    for dtype in (F32, BF16, F16):
        rows = self_attention(2) | {"mask": first_rows_masked(5, 2)}
        yield pulled(f"fully_masked_rows_{dtype}", rows, dtype=dtype)


def dtypes():
    for dtype in (BF16, F16, F64):
        yield pulled(f"{dtype}", self_attention(2), dtype=dtype, x64=dtype == F64, param_dtype=dtype)
        yield pulled(
            f"{dtype}_cross_normalize_qk",
            cross_attention(1, dtype=dtype),
            dtype=dtype,
            x64=dtype == F64,
            qkv_features=6,
            normalize_qk=True,
        )
    mixed = {"inputs_q": normal(2, 4, 8, dtype=BF16), "inputs_k": normal(2, 3, 8), "inputs_v": normal(2, 3, 8, dtype=F16)}
    yield pulled("dtype_none_mixed_inputs", mixed, param_dtype=BF16)
    yield pulled("dtype_none_mixed_inputs_normalize_qk", mixed, param_dtype=F16, normalize_qk=True)
    yield pulled("dtype_float32_float16_parameters", self_attention(2, dtype=BF16), dtype=F32, param_dtype=F16)
    for dtype in (BF16, F16, F64):
        yield pulled(
            f"float32_softmax_{dtype}", self_attention(2), dtype=dtype, x64=dtype == F64, force_fp32_for_softmax=True
        )
    yield pulled(
        "float32_softmax_dtype_none", self_attention(2, dtype=BF16), param_dtype=BF16, force_fp32_for_softmax=True
    )


def dropout():
    key, call, config = dropping()
    yield pulled("dropout", self_attention(2) | key, call, **config)
    each = self_attention(2) | {"mask": causal(5)} | key
    yield pulled("dropout_each_causal_normalize_qk", each, call, broadcast_dropout=False, normalize_qk=True, **config)
    rows = self_attention(2, length=4) | {"mask": first_rows_masked(4, 2)} | key
    yield pulled("dropout_fully_masked_rows", rows, call, **config)
    for dtype in (BF16, F16, F64):
        yield pulled(f"dropout_{dtype}", self_attention(2) | key, call, dtype=dtype, x64=dtype == F64, **config)
    yield pulled("dropout_split_in_halves", self_attention(2) | key, call, partitionable=False, broadcast_dropout=False, **config)
    yield pulled(
        "dropout_stream_nested",
        cross_attention(2),
        call,
        qkv_features=6,
        path=("decoder", "attention"),
        make_rng_count=2,
        rngs={"dropout": 5},
        **config,
    )
    _, _, everything = dropping(1.0)
    yield pulled("dropout_everything", self_attention(1, length=3, features=4) | {"mask": causal(3)} | key, call, **everything)
    off = {"deterministic": True}
    yield pulled("dropout_off", self_attention(2), off, **config)


def functions():
    key, _, rate = dropping()
    core = {"query": normal(2, 5, 3, 4), "key": normal(2, 7, 3, 4), "value": normal(2, 7, 3, 6)}
    biases = {"whole": (2, 3, 5, 7), "heads": (3, 1, 7), "batch": (2, 1, 5, 7), "keys": (7,)}
    attention = "dot_product_attention"
    for name, shape in biases.items():
        yield function(f"gradient_attention_bias_{name}", attention, core | {"bias": normal(*shape)}, gradient=True)
    mask = {"mask": np.arange(7) % 3 != 1}
    bias = {"bias": normal(1, 3, 5, 7)}
    yield function("gradient_attention_mask", attention, core | mask, gradient=True)
    yield function("gradient_attention_bias_mask_dropout", attention, core | mask | bias | key, rate, gradient=True)
    yield function("gradient_attention_bfloat16_float32_bias", attention, core | bias, {"dtype": BF16}, gradient=True)
    softmax = {"dtype": F16, "force_fp32_for_softmax": True}
    yield function("gradient_attention_float16_float32_softmax", attention, core | bias, softmax, gradient=True)


GROUPS = (inputs, masks, dtypes, dropout, functions)
