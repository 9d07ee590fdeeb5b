"""Makes the files that tests/io.rs reads: small ones of every kind that Flax and safetensors write.

    VENV/bin/python make.py [OUT_DIR]      (the packages of ../../../golden/requirements.txt)
"""

import sys
from pathlib import Path

import flax.serialization as serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from safetensors.numpy import save_file

out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
rng = np.random.default_rng(0)


def array(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


params = {
    "query": {"kernel": array(4, 2, 3), "bias": array(2, 3, dtype=ml_dtypes.bfloat16)},
    "key": {"kernel": array(4, 2, 3, dtype=np.float16), "bias": array(2, 3, dtype=np.float64)},
    "value": {"kernel": array(4, 2, 3), "bias": np.zeros((2, 3), np.float32)},
    "out": {"kernel": array(2, 3, 5), "bias": array(300)},
}
(out / "params.msgpack").write_bytes(serialization.to_bytes({"params": {"encoder": {"attn": params}}}))

state = {"step": 7, "rate": 0.5, "done": False, "nothing": None, "name": "adam", "complex": 1j, "scalar": np.float32(0.5)}
optimizer = optax.adam(1e-3).init({"w": jnp.zeros((2, 2))})
(out / "state.msgpack").write_bytes(serialization.to_bytes({**state, "opt_state": optimizer, "index": np.array(3, np.int32)}))

limit, serialization.MAX_CHUNK_SIZE = serialization.MAX_CHUNK_SIZE, 20
(out / "chunked.msgpack").write_bytes(serialization.msgpack_serialize({"a": array(13, 2), "b": array(2)}))
serialization.MAX_CHUNK_SIZE = limit

flat = {f"params.encoder.attn.{scope}.{name}": leaf for scope, leaves in params.items() for name, leaf in leaves.items()}
save_file({name: leaf for name, leaf in flat.items()}, out / "params.safetensors", metadata={"format": "flax"})
