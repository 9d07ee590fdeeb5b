"""The cases of fresh parameters and of dropout."""

import numpy as np

from case import *

TWO_PARENTS = ("encoder", "layers_3", "attention")


def initializer(name, **options):
    """One of `jax.nn.initializers`."""
    return {"name": name} | options


def all_four(kernel, out_kernel, bias, out_bias):
    """Initializers of the four kinds of parameters."""
    return {"kernel_init": kernel, "out_kernel_init": out_kernel, "bias_init": bias, "out_bias_init": out_bias}


def initializers():
    yield init("init_default_normalize_qk", self_attention(2), seed=0, normalize_qk=True)
    yield init("init_cross_no_bias", cross_attention(2), seed=42, qkv_features=6, out_features=5, use_bias=False)
    he = all_four(initializer("he_normal"), initializer("he_uniform"), initializer("normal"), initializer("uniform"))
    lecun = all_four(
        initializer("lecun_uniform"),
        initializer("xavier_normal"),
        initializer("truncated_normal", stddev=0.5, lower=-1.0, upper=1.5),
        initializer("constant", value=0.3),
    )
    for dtype in (F32, BF16, F16, F64):
        options = {"param_dtype": dtype, "x64": dtype == F64, "qkv_features": 6, "out_features": 5}
        yield init(f"init_{dtype}_lecun_normal", cross_attention(), seed=7, **options)
        yield init(f"init_{dtype}_he", cross_attention(), seed=8, **options, **he)
        yield init(f"init_{dtype}_lecun_uniform", cross_attention(), seed=9, **options, **lecun)
    for mode, distribution in (("fan_avg", "normal"), ("fan_geo_avg", "uniform"), ("fan_out", "truncated_normal")):
        scaling = initializer("variance_scaling", scale=1.7, mode=mode, distribution=distribution)
        yield init(f"init_variance_{mode}_{distribution}", cross_attention(), seed=11, qkv_features=6, kernel_init=scaling)
    plain = all_four(initializer("ones"), initializer("zeros"), initializer("ones"), initializer("normal", stddev=2.0))
    yield init("init_self_attention_class_ones", self_attention(3), seed=1, module="SelfAttention", **plain)


def seeds_and_paths():
    small = {"length": 2, "features": 6}
    yield init("init_seed_beyond_32_bits", self_attention(**small), seed=2**35 + 5)
    yield init("init_seed_beyond_32_bits_x64", self_attention(**small), seed=2**35 + 5, x64=True)
    yield init("init_seed_negative", self_attention(**small), seed=-5)
    yield init("init_seed_negative_x64", self_attention(**small), seed=-5, x64=True)
    yield init("init_key_words", self_attention(**small), seed=key(0xDEADBEEF, 0x01234567))
    drawn_bias = {"bias_init": initializer("normal")}
    yield init("init_nested", self_attention(**small), seed=3, path=TWO_PARENTS, **drawn_bias)
    automatic = ("MultiHeadDotProductAttention_0",)
    yield init("init_nested_separator", self_attention(**small), seed=3, path=automatic, separator=True, **drawn_bias)
    yield init("init_called_twice", self_attention(**small), seed=3, path=("attn",), make_rng_count=2)
    for dtype in (F32, BF16, F16):
        yield init(
            f"init_split_in_halves_{dtype}",
            cross_attention(),
            seed=4,
            partitionable=False,
            qkv_features=6,
            param_dtype=dtype,
            **drawn_bias,
        )


def dropped(name, inputs, call=None, *, rate=0.4, **config):
    """A call with dropout."""
    return forward(name, inputs, {"deterministic": False} | (call or {}), dropout_rate=rate, **config)


def explicit(first=0xB7766976, second=0x811DA1F6):
    """An explicit key among the inputs."""
    return {"dropout_rng": key(first, second)}


def dropout_keys():
    for broadcast in (True, False):
        yield dropped(
            f"dropout_key_broadcast_{broadcast}".lower(), self_attention(3) | explicit(), broadcast_dropout=broadcast
        )
    yield dropped("dropout_key_before_streams", self_attention(2) | explicit(), rngs={"dropout": 1, "params": 2})
    yield dropped("dropout_stream", self_attention(2), rngs={"dropout": 1})
    yield dropped("dropout_params_stream", self_attention(2), rngs={"params": 1})
    yield dropped("dropout_both_streams", self_attention(2), rngs={"dropout": 1, "params": 2})
    yield dropped("dropout_nested", self_attention(2), rngs={"dropout": key(5, 6)}, path=TWO_PARENTS)
    yield dropped("dropout_nested_separator", self_attention(2), rngs={"dropout": 3}, path=TWO_PARENTS, separator=True)
    yield dropped("dropout_second_call", self_attention(2), rngs={"dropout": 1}, make_rng_count=2)
    yield dropped(
        "dropout_third_call_nested", self_attention(2), rngs={"params": 1}, make_rng_count=3, path=("décodeur", "attn")
    )


def dropout_masks():
    batches = {"batch_dims_0": (), "batch_dims_2": (2, 2), "batch_dims_3": (2, 1, 2)}
    for name, batch in batches.items():
        for broadcast in (True, False):
            yield dropped(
                f"dropout_{name}_broadcast_{broadcast}".lower(),
                self_attention(*batch, length=3, features=4) | explicit(),
                broadcast_dropout=broadcast,
            )
    for x64 in (False, True):
        yield dropped(
            f"dropout_split_in_halves_x64_{x64}".lower(),
            {"inputs_q": normal(1, 3, 6), "inputs_k": normal(1, 5, 6)} | explicit(),
            broadcast_dropout=False,
            partitionable=False,
            num_heads=3,
            x64=x64,
        )
    long = {"inputs_q": normal(2, 3, 6), "inputs_k": normal(2, 67, 6)} | explicit()
    yield dropped("dropout_many_keys", long, broadcast_dropout=False, x64=True)
    yield dropped("dropout_nearly_nothing", self_attention(2) | explicit(), rate=1e-9)
    for dtype in (F32, BF16):
        yield dropped(f"dropout_everything_{dtype}", self_attention(2) | explicit(), rate=1.0, dtype=dtype)


def dropout_dtypes():
    for dtype in (BF16, F16, F64):
        yield dropped(
            f"dropout_{dtype}_causal_sow",
            self_attention(2) | {"mask": causal(5)} | explicit(),
            {"sow_weights": True},
            rate=0.1,
            dtype=dtype,
            x64=dtype == F64,
            broadcast_dropout=False,
        )
    mixed = {"inputs_q": normal(2, 4, 8, dtype=BF16), "inputs_kv": normal(2, 3, 8, dtype=F16)} | explicit()
    yield dropped("dropout_mixed_dtypes", mixed, rate=0.1, param_dtype=BF16, normalize_qk=True)
    yield dropped(
        "dropout_float32_softmax_bfloat16",
        self_attention(2) | explicit(),
        rate=0.1,
        dtype=BF16,
        force_fp32_for_softmax=True,
    )
    rows = self_attention(2) | {"mask": first_rows_masked(5, 2)} | explicit()
    yield dropped("dropout_fully_masked_rows", rows)


def dropout_elsewhere():
    drops = {"dropout_rate": 0.4, "deterministic": False}
    yield decode("decode_dropout_stream", (2,), 4, 4, rngs={"dropout": 1}, **drops)
    yield decode("decode_dropout_nested_float16", (2,), 3, 4, rngs={"params": 2}, path=("attn",), dtype=F16, **drops)
    core = {"query": normal(2, 5, 3, 4), "key": normal(2, 7, 3, 4), "value": normal(2, 7, 3, 6)} | explicit()
    query_key = {k: v for k, v in core.items() if k != "value"}
    attention, weights = "dot_product_attention", "dot_product_attention_weights"
    rate = {"dropout_rate": 0.3}
    yield function("attention_dropout", attention, core, rate)
    each = {"broadcast_dropout": False, "dtype": BF16}
    yield function("attention_dropout_each_bfloat16", attention, core, rate | each)
    yield function("weights_dropout", weights, query_key, rate)
    yield function("weights_dropout_split_in_halves_x64", weights, query_key, rate, partitionable=False, x64=True)


def errors():
    x = {"inputs_q": normal(2, 3, 8)}
    drops = {"dropout_rate": 0.5, "params_from": x}
    yield failing("error_dropout_stream_missing", x, {"deterministic": False}, **drops)
    yield failing("error_dropout_other_stream", x, {"deterministic": False}, rngs={"noise": 1}, **drops)
    both = {"deterministic": False}
    yield failing("error_deterministic_twice_false", x | explicit(), both, deterministic=False, **drops)
    other_generator = {"dropout_rng": np.arange(4, dtype=np.uint32)}
    yield failing("error_key_of_other_generator", x | other_generator, both, **drops)
    bad_mask = {"mask": np.ones((4,), dtype=bool)}
    yield failing("error_deterministic_before_mask", x | bad_mask | explicit(), **drops)
    yield failing("error_stream_before_rank", x | {"inputs_k": normal(4, 8)}, both, **drops)


GROUPS = (initializers, seeds_and_paths, dropout_keys, dropout_masks, dropout_dtypes, dropout_elsewhere, errors)
