"""A case on disk: one JSON file and three safetensors files, and how much an output may differ from the truth."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save

# Smallest tolerances, relative to the largest truth.
FLOORS = {"float32": 1e-6, "bfloat16": 2.0**-7, "float16": 2.0**-10, "float64": 1.4e-14}
FLAX_ERRORS_ALLOWED = 3
# How far a number that was drawn may be off where logarithms are rounded otherwise.
LAST_PLACES = 4


def dtype_of(name):
    """A numpy type by its name, bfloat16 among them."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def judged(name, got, truth, scale=None):
    """The expectation for the output `name`, and the tensors to store with it. `scale`: numbers as large as those that met."""
    got = np.asarray(got)
    difference = np.abs(got.astype(np.float64) - truth)
    if not np.array_equal(np.isnan(got.astype(np.float64)), np.isnan(truth)):
        raise ValueError(f"{name}: Flax and the truth have NaN at different places")
    error = float(np.nanmax(difference, initial=0.0))
    largest = float(np.nanmax(np.abs(truth if scale is None else scale), initial=0.0))
    expected = {
        "dtype": got.dtype.name,
        "shape": list(got.shape),
        "truth": f"{name}@f64",
        "flax_max_abs_err": error,
        "truth_max_abs": largest,
        "atol": max(FLAX_ERRORS_ALLOWED * error, FLOORS[got.dtype.name] * largest),
    }
    return expected, {name: got, f"{name}@f64": truth}


def bits(name, got):
    """The expectation for a parameter that was drawn: the same bits on x86-64, elsewhere a few last places.

    In float64 logarithms are those of the machine's C library.
    """
    got = np.asarray(got)
    largest = float(np.max(np.abs(got.astype(np.float64)), initial=0.0))
    expected = {
        "dtype": got.dtype.name,
        "shape": list(got.shape),
        "bit_exact": got.dtype != np.float64,
        "atol_if_not_bit_exact": LAST_PLACES * float(ml_dtypes.finfo(got.dtype).eps) * largest,
    }
    return expected, {name: got}


def exact(name, got):
    """The expectation for an output that must have the very same values."""
    got = np.asarray(got)
    stored = got.astype(np.uint8) if got.dtype == bool else got
    expected = {"dtype": stored.dtype.name, "shape": list(got.shape), "exact": True, "flax_dtype": got.dtype.name}
    return expected, {name: stored}


def write(folder, case, params, inputs, expected, msgpack=None):
    """Writes `case`, the JSON object, and its tensors, flat dicts."""
    name = case["name"]
    (folder / f"{name}.json").write_text(json.dumps(case, indent=1) + "\n")
    for part, tensors in (("params", params), ("inputs", inputs), ("expected", expected)):
        (folder / f"{name}.{part}.safetensors").write_bytes(save(stored(tensors)))
    if msgpack is not None:
        (folder / f"{name}.params.msgpack").write_bytes(msgpack)


def stored(tensors):
    """Row-major copies in the order of their names; bool is kept as bytes."""
    arrays = {name: np.asarray(tensor) for name, tensor in sorted(tensors.items())}
    return {
        name: np.array(array, dtype=np.uint8 if array.dtype == bool else array.dtype, order="C")
        for name, array in arrays.items()
    }
