"""Records checksums of what real JAX and Flax draw.

    python record.py        (Python 3.11 with jax 0.10.2, flax 0.12.8, safetensors)

Writes drawn.json, a list of cases. The float64 numbers of the normal family come from the C library's logarithm, whose last bits are its own: only short
arrays are recorded by their bits, and a longer one by its values in float64_normal.safetensors.
"""

import json
import zlib
from pathlib import Path

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from safetensors.numpy import save_file

HERE = Path(__file__).parent
DTYPES = {"float32": jnp.float32, "float64": jnp.float64, "float16": jnp.float16, "bfloat16": jnp.bfloat16}
# A prime: no half, quarter or eighth of it is whole.
LENGTH = 4099
SHORT = 1021


def crc(array):
    array = np.asarray(array)
    assert array.dtype.byteorder in "=<|"
    return zlib.crc32(array.tobytes())


def draws(cases, key, convention):
    for name, dtype in DTYPES.items():
        if name == "float64" and not convention["x64"]:
            continue
        base = {**convention, "dtype": name, "length": LENGTH}
        length = SHORT if name == "float64" else LENGTH
        for low, high in [(0.0, 1.0), (-1.0, 1.0), (-0.3, 2.7), (0.1, 0.1000001)]:
            array = random.uniform(key, (LENGTH,), dtype, low, high)
            cases.append({**base, "draw": "uniform", "low": low, "high": high, "crc32": crc(array)})
        base = {**base, "length": length}
        array = random.normal(key, (length,), dtype)
        cases.append({**base, "draw": "normal", "crc32": crc(array)})
        for lower, upper in [(-2.0, 2.0), (-0.5, 1.5), (0.25, 9.0), (-3.7, -0.1)]:
            array = random.truncated_normal(key, lower, upper, (length,), dtype)
            cases.append({**base, "draw": "truncated_normal", "lower": lower, "upper": upper, "crc32": crc(array)})
    for probability in [0.5, 0.1, 0.9, 1 / 3, 1e-3, 1.0, 0.0]:
        array = random.bernoulli(key, probability, (LENGTH,))
        case = {"draw": "bernoulli", "probability": probability, "length": LENGTH}
        cases.append({**convention, **case, "crc32": crc(array)})


INITIALIZERS = [
    ("lecun_normal", {}), ("lecun_uniform", {}), ("he_normal", {}), ("he_uniform", {}),
    ("xavier_normal", {}), ("xavier_uniform", {}), ("zeros", {}), ("ones", {}),
    ("normal", {"stddev": 0.02}), ("normal", {"stddev": 1.7}), ("uniform", {"scale": 0.3}),
    ("truncated_normal", {"stddev": 0.02, "lower": -2.0, "upper": 2.0}),
    ("truncated_normal", {"stddev": 1.1, "lower": -1.0, "upper": 3.0}), ("constant", {"value": 0.1}),
] + [
    ("variance_scaling", {"scale": scale, "mode": mode, "distribution": distribution})
    for scale, mode in [(1.3, "fan_in"), (0.7, "fan_out"), (2.0, "fan_avg"), (3.1, "fan_geo_avg")]
    for distribution in ["truncated_normal", "normal", "uniform"]
]  # fmt: skip
# Numbers of inputs: their square roots round in many ways.
INPUTS = [1, 2, 3, 5, 7, 11, 23, 48, 63, 100, 127, 199, 257, 384, 511, 768, 1000, 1021, 3072, 4095]
SHAPES = [(13, 21), (48, 7), (3, 5, 4)]


def initializer(name, arguments):
    made = getattr(jax.nn.initializers, name)
    if name in ("zeros", "ones"):
        return made
    return made(**arguments)


def initializers(cases, key, convention):
    for name, dtype in DTYPES.items():
        if name == "float64" and not convention["x64"]:
            continue
        for function, arguments in INITIALIZERS:
            normal = function.endswith("normal") or arguments.get("distribution", "uniform") != "uniform"
            for shape in SHAPES[:1] if normal and name == "float64" else SHAPES:
                array = initializer(function, arguments)(key, shape, dtype)
                case = {"initializer": function, "arguments": arguments, "shape": shape, "dtype": name}
                cases.append({**convention, **case, "crc32": crc(array)})


def fans(cases, key):
    """The deviations of many shapes: one value each."""
    for name in ["float32", "float16", "bfloat16"]:
        for function, arguments in [("lecun_normal", {}), ("he_uniform", {}), ("xavier_normal", {})]:
            make = initializer(function, arguments)
            firsts = [make(key, (inputs, 1), DTYPES[name])[0, 0] for inputs in INPUTS]
            case = {"fans": function, "dtype": name, "inputs": INPUTS}
            cases.append({**case, "crc32": crc(jnp.stack(firsts))})


class Parent(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, *inputs):
        return self.layer(*inputs)


MODULES = [
    ({"num_heads": 2, "qkv_features": 6, "out_features": 5}, [[1, 4, 8]]),
    ({"num_heads": 3, "qkv_features": 15, "normalize_qk": True}, [[2, 3, 5], [2, 6, 9], [2, 6, 11]]),
    ({"num_heads": 1, "use_bias": False}, [[4, 7]]),
    ({"num_heads": 2, "kernel_init": "xavier_uniform", "bias_init": "normal"}, [[1, 4, 8], [1, 5, 3]]),
    ({"num_heads": 4, "param_dtype": "bfloat16", "out_kernel_init": "he_normal", "out_bias_init": "ones"}, [[1, 4, 8]]),
    ({"num_heads": 2, "param_dtype": "float16", "normalize_qk": True}, [[3, 2, 4, 6]]),
]  # fmt: skip


def module_of(config):
    given = dict(config)
    for field in ("kernel_init", "out_kernel_init", "bias_init", "out_bias_init"):
        if field in given:
            given[field] = initializer(given[field], {})
    if "param_dtype" in given:
        given["param_dtype"] = DTYPES[given["param_dtype"]]
    return nn.MultiHeadDotProductAttention(**given)


def modules(cases, convention):
    for config, shapes in MODULES:
        for path in [[], ["layer"]]:
            for separated in [False, True]:
                flax.config.update("flax_fix_rng_separator", separated)
                module = module_of(config)
                module = Parent(module) if path else module
                params = module.init(random.key(11), *[jnp.zeros(shape) for shape in shapes])["params"]
                for name in path:
                    params = params[name]
                flat = flax.traverse_util.flatten_dict(params, sep="/")
                sums = [[name, crc(array)] for name, array in flat.items()]
                case = {"module": config, "shapes": shapes, "path": path, "separated": separated, "params": sums}
                cases.append({**convention, **case})
    flax.config.update("flax_fix_rng_separator", False)


def main():
    cases = []
    for x64 in [False, True]:
        for partitionable in [True, False]:
            jax.config.update("jax_enable_x64", x64)
            jax.config.update("jax_threefry_partitionable", partitionable)
            convention = {"x64": x64, "partitionable": partitionable}
            key = random.key(1234567)
            draws(cases, key, convention)
            if x64 != partitionable:
                initializers(cases, key, convention)
            if not x64:
                modules(cases, convention)
            if partitionable and not x64:
                fans(cases, key)
    array = np.asarray(random.normal(key, (LENGTH,), jnp.float64))
    save_file({"partitionable_false": array}, HERE / "float64_normal.safetensors")
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "drawn.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
