"""Records what Flax does with a case, and what the truth is."""

import functools
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import calls
import files
import truth
import truth_gradients

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

    def add_keep(self, masks):
        """Which weights the last dropout kept."""
        if masks:
            self.add(files.exact("dropout_keep", masks[-1].astype(np.uint8)))


def parameters(make, inputs, random):
    """Random parameters of the shapes and types that the module makes: biases and scales are far from their usual 0 and 1."""
    kwargs = {k: v for k, v in inputs.items() if k in INPUTS}
    shapes = jax.eval_shape(lambda: calls.Place(make, rngs=jax.random.key(0)).init(kwargs))
    return {name: parameter(name, shape, random) for name, shape in sorted(shapes.items())}


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
    return [inputs[call[name]] for name in source_names(call)]


def source_names(call):
    """The arguments that queries, keys and values are projected from."""
    kv = call.get("inputs_kv") and "inputs_kv"
    k = kv or (call.get("inputs_k") and "inputs_k") or "inputs_q"
    return "inputs_q", k, kv or (call.get("inputs_v") and "inputs_v") or k


def computed_in(config, params, tensors):
    """The types that the projections of queries, keys and values give."""
    if config["dtype"] is not None:
        return [jnp.zeros((), files.dtype_of(config["dtype"])).dtype] * 3
    used = ("kernel", "bias") if config["use_bias"] else ("kernel",)
    return [
        jnp.result_type(jnp.asarray(t).dtype, *(jnp.asarray(params[f"{name}/{part}"]).dtype for part in used))
        for t, name in zip(tensors, ("query", "key", "value"))
    ]


def attended_in(dtypes):
    """The type that attention computes in."""
    return functools.reduce(jnp.promote_types, dtypes)


def multiplier(masks, rate, dtype):
    """What the last of the recorded dropouts multiplies the weights by: rounded to `dtype` as in Flax, then exact."""
    if not masks:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient = masks[-1].astype(dtype) / np.asarray(1.0 - rate).astype(dtype)
    return quotient.astype(np.float64)


def truth_layer(config, params, dtype):
    flat = {name: as_f64(value) for name, value in params.items()}
    return truth.Layer(flat, config["use_bias"], config["normalize_qk"], float(jnp.finfo(dtype).min))


def init(place, call, inputs):
    """The parameters that the module makes. Their bits are expected."""
    recorded = Recorded()
    for name, made in place.init(call_arguments(call, inputs)).items():
        recorded.add(files.bits(f"params/{name}", made))
    return recorded


def forward(place, config, call, params, inputs):
    """One call, and if there is a `d_out` among the inputs the gradients."""
    recorded = Recorded()
    tensors = sources(call, inputs)
    dtype = attended_in(computed_in(config, params, tensors))
    mutable = ["intermediates"] if call.get("sow_weights") else False
    with calls.kept_masks() as masks:
        out, state = place.apply(params, call_arguments(call, inputs), mutable=mutable)
    layer = truth_layer(config, params, dtype)
    arguments = (*map(as_f64, tensors), as_f64(inputs.get(call.get("mask"))))
    multiply = multiplier(masks, config["dropout_rate"], dtype)
    true_out, true_weights = layer(*arguments, multiply)
    if mutable:
        weights = state["intermediates"]["attention_weights"][-1]
        recorded.add(files.judged("attention_weights", weights, true_weights))
    recorded.add(files.judged("out", out, true_out))
    recorded.add_keep(masks)
    if "d_out" in inputs:
        true = truth_gradients.layer(layer, *arguments, multiply, as_f64(inputs["d_out"]))
        add_gradients(recorded, place, call, params, inputs, true)
    return recorded


def output_like(place, call, params, inputs):
    """The shape and type of the layer's output."""
    return jax.eval_shape(lambda: place.apply(params, call_arguments(call, inputs))[0])


def add_gradients(recorded, place, call, params, inputs, true):
    """The gradients of the parameters, and of the inputs that were given and are numbers of a floating type."""
    arguments = call_arguments(call, inputs)
    given = [name for name in INPUTS if name in arguments and jnp.issubdtype(arguments[name].dtype, jnp.inexact)]
    params = {name: jnp.asarray(value) for name, value in params.items()}
    _, pull_back = jax.vjp(
        lambda params, tensors: place.apply(params, arguments | tensors)[0], params, {n: arguments[n] for n in given}
    )
    d_params, d_inputs = pull_back(jnp.asarray(inputs["d_out"]))
    true_d_inputs, true_d_params = true
    for name in given:
        paths = [d for d, source in zip(true_d_inputs, source_names(call)) if source == name]
        recorded.add(files.judged(f"d_{name}", d_inputs[name], sum(paths)))
    for name, true_d in sorted(true_d_params.items()):
        # The key's bias moves all logits of a query alike, so its gradient is 0 but for rounding.
        scale = true_d_params["key/kernel"] if name == "key/bias" else true_d
        recorded.add(files.judged(f"d_params/{name}", d_params[name], true_d, scale=scale))


def decode(place, config, call, params, inputs):
    """The call that makes the cache, then one token at a time."""
    recorded = Recorded()
    dtypes = computed_in(config, params, sources(call, inputs))
    dtype = attended_in(dtypes)
    layer = truth_layer(config, params, dtype)
    arguments = call_arguments(call, inputs)
    queries, mask = arguments.pop("inputs_q"), arguments.get("mask")
    first = {k: v for k, v in arguments.items() if k != "mask"}

    init = jnp.asarray(inputs["init_inputs_q"])
    with calls.kept_masks() as masks:
        out_init, state = place.apply(params, first | {"inputs_q": init}, mutable=["cache"])
    multiply = multiplier(masks, config["dropout_rate"], dtype)
    true_out_init, _ = layer.create_cache(*[as_f64(init)] * 3, multiply)

    outs, true_outs = [], []
    for step in range(queries.shape[-2]):
        token = queries[..., step : step + 1, :]
        with calls.kept_masks() as masks:
            out, state = place.apply(params, arguments | {"inputs_q": token}, state["cache"], mutable=["cache"])
        outs.append(out)
        multiply = multiplier(masks, config["dropout_rate"], dtype)
        true_outs.append(layer.step(*[as_f64(token)] * 3, as_f64(mask), multiply)[0])
    recorded.add(files.judged("out", np.concatenate(outs, axis=-2), np.concatenate(true_outs, axis=-2)))
    for name in ("key", "value"):
        cached = state["cache"][f"cached_{name}"]
        recorded.add(files.judged(f"cache/cached_{name}", cached, layer.cache[name]))
    recorded.add(files.exact("cache/cache_index", state["cache"]["cache_index"]))
    recorded.add(files.judged("out_init", out_init, true_out_init))
    return recorded


def function(name, call, inputs):
    """A call of a function. The mask helpers are exact; their truth is Flax's own."""
    recorded = Recorded()
    with calls.kept_masks() as masks:
        got = called_function(name, call, inputs)
    if not name.startswith("dot_product_attention"):
        recorded.add(files.exact("out", got))
        return recorded
    names = [n for n in ("query", "key", "value") if n in call]
    dtype = call.get("dtype") or jnp.result_type(*(jnp.asarray(inputs[call[n]]).dtype for n in names))
    dtype = jnp.zeros((), files.dtype_of(dtype) if isinstance(dtype, str) else dtype).dtype
    operands = [as_f64(inputs[call[n]]) for n in names]
    bias, mask = (as_f64(inputs.get(call.get(n))) for n in ("bias", "mask"))
    fill = float(jnp.finfo(dtype).min)
    multiply = multiplier(masks, call.get("dropout_rate", 0.0), dtype)
    if name.endswith("weights"):
        true = truth.attention_weights(*operands, bias, mask, fill)
        true = true if multiply is None else true * multiply
    else:
        true, _ = truth.attention(*operands, bias, mask, fill, multiply)
    recorded.add(files.judged("out", got, true))
    recorded.add_keep(masks)
    if "d_out" in inputs:
        true = truth_gradients.attention(*operands, bias, mask, fill, multiply, as_f64(inputs["d_out"]))
        add_function_gradients(recorded, name, call, inputs, true)
    return recorded


def called_function(name, call, inputs, **tensors):
    """What the function gives; `tensors` replace arguments."""
    arguments = calls.with_dtypes({k: v for k, v in call.items() if k != "positional"})
    if isinstance(arguments.get("pairwise_fn"), str):
        arguments["pairwise_fn"] = getattr(jnp, arguments["pairwise_fn"])
    positional = [None if p is None else jnp.asarray(inputs[p]) for p in call.get("positional", [])]
    return getattr(nn, name)(*positional, **call_arguments(arguments, inputs) | tensors)


def add_function_gradients(recorded, name, call, inputs, true):
    """The gradients of the query, key, value and bias."""
    given = [n for n in ("query", "key", "value", "bias") if n in call]
    tensors = {n: jnp.asarray(inputs[call[n]]) for n in given}
    _, pull_back = jax.vjp(lambda tensors: called_function(name, call, inputs, **tensors), tensors)
    (gradients,) = pull_back(jnp.asarray(inputs["d_out"]))
    for n, true_d in zip(("query", "key", "value", "bias"), true):
        if n in given:
            recorded.add(files.judged(f"d_{n}", gradients[n], true_d))


def function_output_like(name, call, inputs):
    """The shape and type of the function's result."""
    return jax.eval_shape(lambda: called_function(name, call, inputs))


def exception(make_call):
    """The exception that `make_call` raises."""
    try:
        make_call()
    except Exception as error:  # noqa: BLE001 - every class that Flax raises is of interest
        # Addresses of functions differ from run to run.
        message = re.sub(r" at 0x[0-9a-f]+", "", str(error))
        return {"type": type(error).__name__, "message": message}
    raise AssertionError("the call succeeded")


def failed_layer(place, call, params, inputs, mutable):
    """The exception of a layer's call. A cache among the inputs is given to the call."""
    cache = {name.removeprefix("cache/"): jnp.asarray(t) for name, t in inputs.items() if name.startswith("cache/")}
    return exception(lambda: place.apply(params, call_arguments(call, inputs), cache or None, mutable=mutable))


def failed_function(name, call, inputs):
    """The exception of a function's call."""
    return exception(lambda: called_function(name, call, inputs))


warnings.filterwarnings("ignore", category=DeprecationWarning)
