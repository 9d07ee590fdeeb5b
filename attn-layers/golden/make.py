"""Makes the cases from Flax.

    python make.py OUT_DIR

A second run writes the same files. The newest Flax that the cases know is pinned in requirements.txt.
"""

import sys
import zlib
from pathlib import Path

import flax
import jax
import numpy as np
from flax import traverse_util

import calls
import files
import record
from cases import all_cases


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    cases = all_cases()
    for number, case in enumerate(cases, start=1):
        with calls.settings(case.x64, case.partitionable, case.separator):
            make(case, folder)
        print(f"[{number}/{len(cases)}] {case.name} ({case.kind})", flush=True)


def make(case, folder):
    """Records one case and writes it."""
    random = np.random.default_rng(zlib.crc32(case.name.encode()))
    inputs = drawn(case.inputs, random)
    config = record.DEFAULTS | case.config
    params = parameters(case, config, inputs, random) if case.module and case.kind != "init" else {}
    inputs |= {f"rng_{stream}": calls.key_words(seed) for stream, seed in case.rngs.items()}
    if case.gradient:
        inputs["d_out"] = upstream(case, config, params, inputs, random)
    json_case = description(case, config)
    tensors = {}
    if case.kind == "error":
        json_case |= {"expected": {}, "error": failure(case, config, params, inputs), "mutable": case.mutable}
    else:
        recorded = success(case, config, params, inputs)
        json_case["expected"], tensors = recorded.expected, recorded.tensors
    msgpack = None
    if case.msgpack:
        msgpack, root = case.msgpack(traverse_util.unflatten_dict(params, sep="/"))
        json_case["msgpack"] = {"file": f"{case.name}.params.msgpack", "root": root}
    files.write(folder, json_case, params, inputs, tensors, msgpack)


def drawn(tensors, random):
    """The tensors, those that are functions drawn."""
    return {name: tensor(random) if callable(tensor) else tensor for name, tensor in tensors.items()}


def parameters(case, config, inputs, random):
    """Parameters for the case, by a module that can be made even where the case's own call fails."""
    fit = config | {"decode": False, "dtype": None, "dropout_rate": 0.0}
    if case.kind == "error":
        fit["num_heads"] = 2
    if case.params_from is not None:
        inputs = drawn(case.params_from, np.random.default_rng(0))
    return case.params(record.parameters(calls.module_maker(case.module, fit), inputs, random), random)


def upstream(case, config, params, inputs, random):
    """A gradient of the output."""
    if case.function:
        like = record.function_output_like(case.function, case.call, inputs)
    else:
        like = record.output_like(place(case, config, inputs), case.call, params, inputs)
    return random.standard_normal(like.shape).astype(like.dtype)


def description(case, config):
    """The JSON object without what is expected."""
    json_case = {
        "name": case.name,
        "kind": case.kind,
        "x64": case.x64,
        "made_with": {"flax": flax.__version__, "jax": jax.__version__},
        "module": case.module,
    }
    if case.module:
        json_case["config"] = config
    if case.kind in ("forward", "decode"):
        json_case["call"] = record.CALL | case.call
    else:
        json_case["call"] = case.call
    json_case["rngs"] = {stream: f"rng_{stream}" for stream in case.rngs}
    if case.function:
        json_case["function"] = case.function
    if case.kind == "decode":
        json_case["max_length"] = int(shape_of(case, "init_inputs_q")[-2])
        json_case["steps"] = int(shape_of(case, "inputs_q")[-2])
    return json_case | random_settings(case)


def random_settings(case):
    """What differs from the defaults in how random numbers are made."""
    settings = {}
    if case.kind == "init":
        seed = case.rngs["params"]
        settings["seed"] = None if isinstance(seed, np.ndarray) else seed
    if case.path:
        settings["module_path"] = list(case.path)
    if case.make_rng_count != 1:
        settings["make_rng_count"] = case.make_rng_count
    if not case.partitionable:
        settings["jax_threefry_partitionable"] = False
    if case.separator:
        settings["flax_fix_rng_separator"] = True
    return settings


def shape_of(case, name):
    """The shape of an input."""
    return np.shape(drawn({name: case.inputs[name]}, np.random.default_rng(0))[name])


def place(case, config, inputs):
    """The module of the case, below its parents and with its keys."""
    rngs = {stream: jax.random.wrap_key_data(inputs[f"rng_{stream}"]) for stream in case.rngs}
    return calls.Place(calls.module_maker(case.module, config), case.path, case.make_rng_count, rngs)


def success(case, config, params, inputs):
    """What comes out of the case's call."""
    if case.kind == "function":
        return record.function(case.function, case.call, inputs)
    at = place(case, config, inputs)
    if case.kind == "init":
        return record.init(at, case.call, inputs)
    run = record.decode if case.kind == "decode" else record.forward
    return run(at, config, case.call, params, inputs)


def failure(case, config, params, inputs):
    """What the case's call raises."""
    if case.function:
        return record.failed_function(case.function, case.call, inputs)
    mutable = ["cache"] if case.mutable else False
    return record.failed_layer(place(case, config, inputs), case.call, params, inputs, mutable)


if __name__ == "__main__":
    main()
