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
        with jax.enable_x64(case.x64):
            make(case, folder)
        print(f"[{number}/{len(cases)}] {case.name} ({case.kind})", flush=True)


def make(case, folder):
    """Records one case and writes it."""
    random = np.random.default_rng(zlib.crc32(case.name.encode()))
    inputs = drawn(case.inputs, random)
    config = record.DEFAULTS | case.config
    params = parameters(case, config, inputs, random) if case.module else {}
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
    fit = config | {"decode": False, "dtype": None}
    if case.kind == "error":
        fit["num_heads"], fit["dropout_rate"] = 2, 0.0
    if fit["dropout_rate"]:
        fit["deterministic"] = True
    if case.params_from is not None:
        inputs = drawn(case.params_from, np.random.default_rng(0))
    return case.params(record.parameters(record.module_of(case.module, fit), inputs, random), random)


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
    json_case["rngs"] = {}
    if case.function:
        json_case["function"] = case.function
    if case.kind == "decode":
        json_case["max_length"] = int(shape_of(case, "init_inputs_q")[-2])
        json_case["steps"] = int(shape_of(case, "inputs_q")[-2])
    return json_case


def shape_of(case, name):
    """The shape of an input."""
    return np.shape(drawn({name: case.inputs[name]}, np.random.default_rng(0))[name])


def success(case, config, params, inputs):
    """What comes out of the case's call."""
    if case.kind == "function":
        return record.function(case.function, case.call, inputs)
    module = record.module_of(case.module, config)
    run = record.decode if case.kind == "decode" else record.forward
    return run(module, config, case.call, params, inputs)


def failure(case, config, params, inputs):
    """What the case's call raises."""
    if case.function:
        return record.failed_function(case.function, case.call, inputs)
    mutable = ["cache"] if case.mutable else False
    return record.failed_layer(case.module, config, case.call, params, inputs, mutable)


if __name__ == "__main__":
    main()
