"""The cases of ordinary calls, weight files and errors; `all_cases` has the others, too."""

import numpy as np

import gradient_cases
import random_cases
import weights
from case import *


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
    *random_cases.GROUPS,
    *gradient_cases.GROUPS,
)


def all_cases():
    """Every case."""
    return [case for group in GROUPS for case in group()]
