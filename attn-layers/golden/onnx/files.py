"""How much an output may differ from the truth, and arrays as they are stored."""

import numpy as np

# Smallest tolerances, relative to the largest truth.
FLOORS = {"float32": 1e-6, "bfloat16": 2.0**-7, "float16": 2.0**-10, "float64": 1.4e-14}
ERRORS_ALLOWED = 3
# An error beyond so many floors is a disagreement, not rounding.
MOST_FLOORS = 8


def judged(name, got, exact):
    """What is expected of an output, of which the operator's reference implementation gave `got`."""
    got = np.asarray(got)
    values = got.astype(np.float64)
    finite = np.isfinite(exact)
    if not np.array_equal(np.isfinite(values), finite) or not np.array_equal(values[~finite], exact[~finite]):
        raise ValueError(f"{name}: the reference implementation and the truth have infinities at different places")
    error = float(np.max(np.abs(values[finite] - exact[finite]), initial=0.0))
    largest = float(np.max(np.abs(exact[finite]), initial=0.0))
    floor = FLOORS[got.dtype.name] * largest
    if error > MOST_FLOORS * floor:
        raise ValueError(f"{name}: the reference implementation is off by {error}, {error / floor} floors")
    return {
        "dtype": got.dtype.name,
        "shape": list(got.shape),
        "truth": f"{name}@f64",
        "onnx_max_abs_err": error,
        "truth_max_abs": largest,
        "atol": max(ERRORS_ALLOWED * error, floor),
    }


def stored(arrays):
    """Row-major copies in the order of their names; bool is kept as bytes."""
    return {
        name: np.array(array, dtype=np.uint8 if array.dtype == bool else array.dtype, order="C")
        for name, array in sorted(arrays.items())
    }
