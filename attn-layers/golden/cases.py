"""The cases: what is called with which tensors. Everything random comes from a generator seeded with the case's name."""

from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

import files
import weights

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


def normal(*shape, dtype=F32):
    """Draws a tensor of standard normal numbers."""
    return lambda random: random.standard_normal(shape).astype(files.dtype_of(dtype))


def integers(*shape, low=-2, high=3):
    """Draws a tensor of small int32 numbers."""
    return lambda random: random.integers(low, high, shape, dtype=np.int32)


def forward(name, inputs, call=None, *, module=MODULE, x64=False, params=Case.params, msgpack=None, **config):
    """A call of the layer. Every input is passed under its own name."""
    call = {k: k for k in inputs} | (call or {})
    config = {"num_heads": 2} | config
    return Case(name, "forward", inputs, call, config, module, x64=x64, params=params, msgpack=msgpack)


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
    return Case(name, "decode", inputs, call, {"num_heads": 2, "decode": True} | config, x64=x64)


def function(name, of, inputs, call=None, *, positional=None, x64=False):
    """A call of a function, by keyword or, for the mask helpers, by position."""
    named = {"positional": positional} if positional else {k: k for k in inputs}
    return Case(name, "function", inputs, named | (call or {}), module=None, function=of, x64=x64)


def failing(name, inputs, call=None, *, params=Case.params, params_from=None, mutable=False, **config):
    """A call of the layer that raises. `params_from`: shapes to make the parameters from, if the inputs are unfit for that."""
    call = {k: k for k in inputs if not k.startswith("cache/")} | (call or {})
    config = {"num_heads": 2} | config
    return Case(
        name, "error", inputs, call, config, params=params, params_from=params_from, mutable=mutable
    )


def failing_function(name, of, inputs, *, positional=None):
    """A call of a function that raises."""
    named = {"positional": positional} if positional else {k: k for k in inputs}
    return Case(name, "error", inputs, named, module=None, function=of)


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


def with_unused(params, random):
    """Adds parameters that the layer has no use for."""
    return params | {
        "query/bias": random.standard_normal((2, 4)).astype(np.float32),
        "adapter/kernel": random.standard_normal((3,)).astype(np.float32),
    }


def plain_layers():
    for dtype in (F32, BF16, F16, F64):
        yield forward(
            f"{dtype}_causal_normalize_qk_sow",
            self_attention(2) | {"mask": causal(5)},
            {"sow_weights": True},
            dtype=dtype,
            x64=dtype == F64,
            normalize_qk=True,
        )
    for dtype in (F32, BF16, F16):
        rows = self_attention(2, dtype=dtype) | {"mask": first_rows_masked(5, 2)}
        yield forward(f"{dtype}_fully_masked_rows", rows, dtype=dtype)
    yield forward("bfloat16_self", self_attention(2, dtype=BF16), dtype=BF16)
    for dtype in (F32, BF16):
        yield forward(f"{dtype}_cross", cross_attention(2), dtype=dtype, qkv_features=6, out_features=5)
    yield forward("float32_wide_heads", self_attention(1, length=37, features=48), num_heads=1)
    yield forward("bfloat16_many_keys", {"inputs_q": normal(1, 3, 16), "inputs_k": normal(1, 131, 16)}, dtype=BF16)


def shapes():
    yield forward("batch_dims_0_head_dim_1", self_attention(features=3), num_heads=3)
    yield forward("batch_dims_3_head_dim_17", self_attention(2, 1, 3), num_heads=3, qkv_features=51)
    yield forward("no_keys", {"inputs_q": normal(2, 4, 8), "inputs_kv": normal(2, 0, 8)})
    yield forward("no_queries", {"inputs_q": normal(2, 0, 8), "inputs_kv": normal(2, 4, 8)}, {"sow_weights": True})
    yield forward(
        "no_bias_unused_parameters_features_0",
        self_attention(2),
        use_bias=False,
        qkv_features=0,
        out_features=0,
        params=with_unused,
    )


def masks():
    padded = self_attention(3) | {"mask": padding([2, 5, 0], 5)}
    yield forward("mask_padding_dropout_off", padded, {"deterministic": True}, dropout_rate=0.5)
    yield forward("mask_of_rank_1", self_attention(2) | {"mask": np.array([True, False, True, True, False])})
    numbers = np.array([[0.5, 0, -1, 2, 0], [0, np.nan, 0, 1, 0]] * 2 + [[0, 0, 1, 0, 0]], dtype=np.float32)
    yield forward("mask_of_numbers", self_attention(2) | {"mask": numbers})
    yield forward(
        "self_attention_class", self_attention(2) | {"mask": causal(5)}, module="SelfAttention", qkv_features=4
    )


def dtypes():
    yield forward("dtype_none_bfloat16_parameters_float16_inputs", self_attention(2, dtype=F16), param_dtype=BF16)
    yield forward(
        "dtype_none_mixed_inputs",
        {"inputs_q": normal(2, 4, 8, dtype=BF16), "inputs_k": normal(2, 7, 8), "inputs_v": normal(2, 7, 8, dtype=F16)},
        param_dtype=BF16,
        normalize_qk=True,
    )
    yield forward("dtype_none_int32_inputs_bfloat16_parameters", {"inputs_q": integers(2, 5, 8)}, param_dtype=BF16)
    yield forward("dtype_float32_bfloat16_inputs", self_attention(2, dtype=BF16), dtype=F32, param_dtype=F16)
    yield forward("float64_without_64_bit_types", self_attention(2, dtype=F64))
    sow = {"sow_weights": True}
    for dtype in (BF16, F64):
        yield forward(
            f"float32_softmax_{dtype}", self_attention(2), sow, dtype=dtype, x64=dtype == F64, force_fp32_for_softmax=True
        )
    yield forward(
        "float32_softmax_dtype_none", self_attention(2, dtype=BF16), sow, param_dtype=BF16, force_fp32_for_softmax=True
    )


def decoding():
    yield decode("decode_past_the_end", (2,), 3, 5)
    yield decode("decode_batch_dims_2_bfloat16", (2, 1), 4, 4, dtype=BF16, param_dtype=BF16)
    yield decode("decode_batch_dims_0_float16", (), 4, 4, dtype=F16, param_dtype=F16, qkv_features=6)
    yield decode("decode_float64", (2,), 4, 4, dtype=F64, param_dtype=F64, x64=True)
    yield decode("decode_normalize_qk_mask", (2,), 5, 5, normalize_qk=True, mask=padding([5, 3], 5) & (np.arange(5) != 1))


def functions():
    core = {"query": normal(2, 5, 3, 4), "key": normal(2, 7, 3, 4), "value": normal(2, 7, 3, 6)}
    query_key = {k: core[k] for k in ("query", "key")}
    bias = {"bias": normal(2, 3, 5, 7)}
    mask = {"mask": np.arange(7) % 3 != 1}
    attention, weight = "dot_product_attention", "dot_product_attention_weights"
    yield function("attention_bias_mask", attention, core | bias | mask)
    yield function("attention_bfloat16_float32_bias", attention, core | bias, {"dtype": BF16})
    infinite = np.zeros((5, 7), dtype=np.float32)
    infinite[1, :3] = infinite[3] = -np.inf
    yield function("attention_infinite_bias", attention, core | {"bias": infinite})
    yield function("weights_mask_float16_float32_softmax", weight, query_key | mask, {"dtype": F16, "force_fp32_for_softmax": True})
    two = {"q": integers(2, 4, low=0, high=4), "k": integers(2, 3, low=0, high=4)}
    yield function("make_attention_mask", "make_attention_mask", two, positional=["q", "k"])
    yield function(
        "make_attention_mask_pairwise_bool",
        "make_attention_mask",
        two,
        {"pairwise_fn": "greater_equal", "extra_batch_dims": 1, "dtype": "bool"},
        positional=["q", "k"],
    )
    rows = {"x": normal(2, 4)}
    yield function("make_causal_mask", "make_causal_mask", rows, {"extra_batch_dims": 2, "dtype": BF16}, positional=["x"])
    some = {"a": causal(4).astype(np.float32) * 0.5, "b": padding([2, 4], 4)}
    yield function("combine_masks", "combine_masks", some, positional=["a", None, "b"])
    yield function("combine_masks_single_keeps_values", "combine_masks", {"a": some["a"]}, positional=[None, "a"])


def weight_files():
    for name, layout in weights.LAYOUTS.items():
        dtype = BF16 if "bfloat16" in name else F32
        yield forward(f"msgpack_{name}", self_attention(2, dtype=dtype), param_dtype=dtype, msgpack=layout)


def cache_of(max_length):
    """A cache without any token, for two heads of four numbers."""
    zeros = np.zeros((2, max_length, 2, 4), dtype=np.float32)
    return {"cache/cached_key": zeros, "cache/cached_value": zeros, "cache/cache_index": np.array(0, dtype=np.int32)}


def input_errors():
    x = {"inputs_q": normal(2, 3, 8)}
    usual = {"params_from": x}
    yield failing("error_inputs_kv_twice", x | {"inputs_k": normal(2, 4, 8), "inputs_kv": normal(2, 4, 8)}, **usual)
    yield failing("error_value_without_key", x | {"inputs_v": normal(2, 4, 8)}, **usual)
    yield failing("error_heads_do_not_divide", x, **usual | {"num_heads": 3})
    yield failing("error_no_heads", x, **usual | {"num_heads": 0})
    yield failing("error_rank", x | {"inputs_k": normal(4, 8)}, **usual)
    yield failing("error_batch_dims", x | {"inputs_k": normal(3, 3, 8)}, **usual)
    yield failing("error_lengths", x | {"inputs_k": normal(2, 4, 8), "inputs_v": normal(2, 5, 8)}, **usual)
    yield failing("error_mask", x | {"mask": np.ones((2, 1, 3, 5), dtype=bool)}, **usual)
    yield failing("error_no_length_axis", {"inputs_q": normal(8)}, **usual)
    yield failing("error_dtype", x, dtype="int32", **usual)
    yield failing("error_deterministic_missing", x, dropout_rate=0.5, **usual)
    yield failing("error_deterministic_twice", x, {"deterministic": True}, dropout_rate=0.5, deterministic=True, **usual)


def parameter_errors():
    x = {"inputs_q": normal(2, 3, 8)}
    yield failing("error_kernel_shape", x, params=reshaped("key/kernel", 8, 2, 3))
    yield failing("error_bias_missing", x, params=without("query/bias"))
    yield failing("error_no_parameters", x, params=lambda params, random: {})
    bad_mask = {"mask": np.ones((4,), dtype=bool)}
    yield failing("error_mask_before_out_kernel", x | bad_mask, params=reshaped("out/kernel", 2, 4, 7))


def decode_errors():
    x, token = {"inputs_q": normal(2, 3, 8)}, {"inputs_q": normal(2, 1, 8)}
    fresh = {"decode": True, "params_from": x}
    yield failing("error_decode_two_tokens", {"inputs_q": normal(2, 2, 8)} | cache_of(4), mutable=True, **fresh)
    mask = {"mask": np.ones((1, 4), dtype=bool)}
    yield failing("error_decode_mask_rank", token | mask | cache_of(4), mutable=True, **fresh)
    yield failing("error_decode_immutable_cache", token | cache_of(4), **fresh)
    yield failing("error_decode_no_cache", token, **fresh)


def function_errors():
    core = {"query": normal(2, 5, 3, 4), "key": normal(2, 7, 3, 4), "value": normal(2, 7, 3, 4)}
    yield failing_function("error_depths", "dot_product_attention", core | {"key": normal(2, 7, 3, 5)})
    masks = {"a": causal(3), "b": np.ones((3, 3), dtype=bool)}
    yield failing_function("error_combine_masks_rank", "combine_masks", masks, positional=["a", "b"])


GROUPS = (
    plain_layers,
    shapes,
    masks,
    dtypes,
    decoding,
    functions,
    weight_files,
    input_errors,
    parameter_errors,
    decode_errors,
    function_errors,
)


def all_cases():
    """Every case."""
    return [case for group in GROUPS for case in group()]
