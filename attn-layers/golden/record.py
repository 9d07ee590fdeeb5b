"""Records what Flax does with a case, and what the truth is."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import files
import truth

DEFAULTS = {
    "num_heads": None,
    "dtype": None,
    "param_dtype": "float32",
    "qkv_features": None,
    "out_features": None,
    "broadcast_dropout": True,
    "dropout_rate": 0.0,
    "deterministic": None,
    "precision": "highest",
    "use_bias": True,
    "decode": False,
    "normalize_qk": False,
    "force_fp32_for_softmax": False,
}
CALL = dict.fromkeys(["inputs_q", "inputs_k", "inputs_v", "inputs_kv", "mask", "deterministic", "dropout_rng"]) | {
    "sow_weights": False
}
INPUTS = ("inputs_q", "inputs_k", "inputs_v", "inputs_kv")


class Recorded:
    """Expectations by the output's name and the tensors that go with them."""

    def __init__(self):
        self.expected = {}
        self.tensors = {}

    def add(self, expected_and_tensors):
        expected, tensors = expected_and_tensors
        name = next(iter(tensors))
        self.expected[name] = expected
        self.tensors.update(tensors)


def with_dtypes(arguments):
    """The same arguments, with numpy types where names of types stand."""
    types = ("dtype", "param_dtype")
    return {k: files.dtype_of(v) if k in types and v is not None else v for k, v in arguments.items()}


def module_of(name, config):
    """Flax's module."""
    return getattr(nn, name)(**with_dtypes(config))


def parameters(module, inputs, random):
    """Random parameters of the shapes and types that the module makes: biases and scales are far from their usual 0 and 1."""
    kwargs = {k: v for k, v in inputs.items() if k in INPUTS}
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), **kwargs))["params"]
    flat = traverse_util.flatten_dict(shapes, sep="/")
    return {name: parameter(name, shape, random) for name, shape in sorted(flat.items())}


def parameter(name, shape, random):
    values = random.standard_normal(shape.shape)
    match name.split("/")[-1]:
        case "kernel":
            inputs = np.prod(shape.shape[:-1]) if name.startswith("out/") else shape.shape[0]
            values /= np.sqrt(inputs)
        case "bias":
            values *= 0.3
        case "scale":
            values = 1 + 0.2 * values
    return values.astype(shape.dtype)


def call_arguments(call, inputs):
    """The call's arguments, with tensors in place of their names."""
    return {
        name: jnp.asarray(inputs[value]) if isinstance(value, str) and value in inputs else value
        for name, value in call.items()
        if value is not None
    }


def as_f64(tensor):
    """What JAX would hold of `tensor`, in float64: it narrows 64-bit types where they are off."""
    return None if tensor is None else np.asarray(jnp.asarray(tensor)).astype(np.float64)


def sources(call, inputs):
    """The tensors that queries, keys and values are projected from."""
    q, k, v, kv = (inputs.get(call.get(name)) for name in INPUTS)
    k = kv if kv is not None else q if k is None else k
    v = kv if kv is not None else k if v is None else v
    return q, k, v


def computed_in(config, params, tensors):
    """The types that the projections and the softmax give."""
    softmax = {"float32"} if config["force_fp32_for_softmax"] else set()
    if config["dtype"] is not None:
        return {config["dtype"]} | softmax
    kernels = (params[f"{name}/kernel"] for name in ("query", "key", "value"))
    return {jnp.promote_types(jnp.asarray(t).dtype, k.dtype).name for t, k in zip(tensors, kernels)} | softmax


def fill_of(dtypes):
    """The number that a masked logit is set to. Any of the types does: a masked weight is 0 beside one that is not."""
    joint = jnp.result_type(*(files.dtype_of(dtype) for dtype in dtypes))
    return float(jnp.finfo(joint).min)


def truth_layer(config, params, dtypes):
    flat = {name: as_f64(value) for name, value in params.items()}
    return truth.Layer(flat, config["use_bias"], config["normalize_qk"], fill_of(dtypes))


def variables(params, cache=None):
    tree = {"params": traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in params.items()}, sep="/")}
    return tree if cache is None else tree | {"cache": cache}


def forward(module, config, call, params, inputs):
    """One call."""
    recorded = Recorded()
    tensors = sources(call, inputs)
    dtypes = computed_in(config, params, tensors)
    mutable = ["intermediates"] if call.get("sow_weights") else False
    out = module.apply(variables(params), **call_arguments(call, inputs), mutable=mutable)
    layer = truth_layer(config, params, dtypes)
    true_out, true_weights = layer(*map(as_f64, tensors), as_f64(inputs.get(call.get("mask"))))
    if mutable:
        out, state = out
        weights = state["intermediates"]["attention_weights"][0]
        recorded.add(files.judged("attention_weights", weights, true_weights, dtypes))
    recorded.add(files.judged("out", out, true_out, dtypes))
    return recorded


def decode(module, config, call, params, inputs):
    """The call that makes the cache, then one token at a time."""
    recorded = Recorded()
    tensors = sources(call, inputs)
    dtypes = computed_in(config, params, tensors)
    layer = truth_layer(config, params, dtypes)
    init = jnp.asarray(inputs["init_inputs_q"])
    out_init, state = module.apply(variables(params), init, mutable=["cache"])
    true_out_init, _ = layer.create_cache(*[as_f64(init)] * 3)

    arguments = call_arguments(call, inputs)
    queries, mask = arguments.pop("inputs_q"), arguments.get("mask")
    outs, true_outs = [], []
    for step in range(queries.shape[-2]):
        token = queries[..., step : step + 1, :]
        out, state = module.apply(variables(params, state["cache"]), token, **arguments, mutable=["cache"])
        outs.append(out)
        true_outs.append(layer.step(*[as_f64(token)] * 3, as_f64(mask))[0])
    recorded.add(files.judged("out", np.concatenate(outs, axis=-2), np.concatenate(true_outs, axis=-2), dtypes))
    for name in ("key", "value"):
        cached = state["cache"][f"cached_{name}"]
        recorded.add(files.judged(f"cache/cached_{name}", cached, layer.cache[name], dtypes))
    recorded.add(files.exact("cache/cache_index", state["cache"]["cache_index"]))
    recorded.add(files.judged("out_init", out_init, true_out_init, dtypes))
    return recorded


def function(name, call, inputs):
    """A call of a function. The mask helpers are exact; their truth is Flax's own."""
    arguments = with_dtypes({k: v for k, v in call.items() if k != "positional"})
    if isinstance(arguments.get("pairwise_fn"), str):
        arguments["pairwise_fn"] = getattr(jnp, arguments["pairwise_fn"])
    positional = [None if p is None else jnp.asarray(inputs[p]) for p in call.get("positional", [])]
    got = getattr(nn, name)(*positional, **call_arguments(arguments, inputs))
    recorded = Recorded()
    if not name.startswith("dot_product_attention"):
        recorded.add(files.exact("out", got))
        return recorded
    operands = [inputs[call[n]] for n in ("query", "key", "value") if n in call]
    dtypes = {call.get("dtype") or jnp.result_type(*(o.dtype for o in operands)).name}
    bias, mask = (as_f64(inputs.get(call.get(n))) for n in ("bias", "mask"))
    compute = truth.attention_weights if name.endswith("weights") else truth.attention
    true = compute(*map(as_f64, operands), bias, mask, fill_of(dtypes))
    recorded.add(files.judged("out", got, true if name.endswith("weights") else true[0], dtypes))
    return recorded


def exception(make_call):
    """The exception that `make_call` raises."""
    try:
        make_call()
    except Exception as error:  # noqa: BLE001 - every class that Flax raises is of interest
        return {"type": type(error).__name__, "message": str(error)}
    raise AssertionError("the call succeeded")


def failed_layer(module_name, config, call, params, inputs, mutable):
    """The exception of a layer's call. A cache among the inputs is given to the call."""
    cache = {name.removeprefix("cache/"): jnp.asarray(t) for name, t in inputs.items() if name.startswith("cache/")}

    def make_call():
        module = module_of(module_name, config)
        arguments = call_arguments(call, inputs)
        module.apply(variables(params, cache or None), **arguments, mutable=mutable)

    return exception(make_call)


def failed_function(name, call, inputs):
    """The exception of a function's call."""
    return exception(lambda: function(name, call, inputs))


warnings.filterwarnings("ignore", category=DeprecationWarning)
