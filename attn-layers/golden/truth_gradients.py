"""The gradients of the layer and of its functions in float64, written from the formulas and without JAX.

Shapes are those of `truth.py`. `d_x` is the gradient of `x`.
"""

import numpy as np

import truth


def project(x, kernel, d_y):
    """The gradients of the input, kernel and bias of a projection to heads."""
    flat_x = x.reshape(-1, x.shape[-1])
    flat_d_y = d_y.reshape(-1, *d_y.shape[-2:])
    d_x = np.einsum("...hd,fhd->...f", d_y, kernel)
    return d_x, np.einsum("nf,nhd->fhd", flat_x, flat_d_y), flat_d_y.sum(axis=0)


def project_out(x, kernel, d_y):
    """The gradients of the input, kernel and bias of the projection from heads."""
    flat_x = x.reshape(-1, *x.shape[-2:])
    flat_d_y = d_y.reshape(-1, d_y.shape[-1])
    d_x = np.einsum("...o,hdo->...hd", d_y, kernel)
    return d_x, np.einsum("nhd,no->hdo", flat_x, flat_d_y), flat_d_y.sum(axis=0)


def layer_norm(x, scale, d_y):
    """The gradients of the input and the scale."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    inverse = 1 / np.sqrt(variance + truth.LAYER_NORM_EPSILON)
    normal = centred * inverse
    d_normal = d_y * scale
    along = (d_normal * normal).mean(axis=-1, keepdims=True)
    d_x = inverse * (d_normal - d_normal.mean(axis=-1, keepdims=True) - normal * along)
    return d_x, (d_y * normal).reshape(-1, x.shape[-1]).sum(axis=0)


def attention(query, key, value, bias, mask, fill, multiplier, d_x):
    """The gradients of the query, key, value and bias (None without one)."""
    weights = truth.attention_weights(query, key, bias, mask, fill)
    d_weights = np.einsum("...qhd,...khd->...hqk", d_x, value)
    dropped = weights
    if multiplier is not None:
        dropped, d_weights = weights * multiplier, d_weights * multiplier
    d_value = np.einsum("...hqk,...qhd->...khd", dropped, d_x)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    if mask is not None:
        d_logits = np.where(mask != 0, d_logits, 0.0)
    scale = 1 / np.sqrt(query.shape[-1])
    d_query = np.einsum("...hqk,...khd->...qhd", d_logits, key) * scale
    d_key = np.einsum("...hqk,...qhd->...khd", d_logits, query) * scale
    return d_query, d_key, d_value, None if bias is None else summed_to(d_logits, bias.shape)


def summed_to(gradient, shape):
    """The sum over the axes along which `shape` was broadcast."""
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra)))
    broadcast = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=broadcast, keepdims=True)


def layer(of, q, k, v, mask, multiplier, d_out):
    """The gradients of the three inputs and, by their names, of the parameters of the `truth.Layer` `of`."""
    params, gradients = of.params, {}
    raw = {name: of.project(name, x) for name, x in (("query", q), ("key", k), ("value", v))}
    heads = [of.normalized(name, y) for name, y in raw.items()]
    x, _ = truth.attention(*heads, None, mask, of.fill, multiplier)
    d_x, gradients["out/kernel"], gradients["out/bias"] = project_out(x, params["out/kernel"], d_out)
    *d_heads, _ = attention(*heads, None, mask, of.fill, multiplier, d_x)
    d_inputs = []
    for (name, y), x, d_y in zip(raw.items(), (q, k, v), d_heads):
        if of.has_norm(name):
            d_y, gradients[f"{name}_ln/scale"] = layer_norm(y, params[f"{name}_ln/scale"], d_y)
        d_input, gradients[f"{name}/kernel"], gradients[f"{name}/bias"] = project(x, params[f"{name}/kernel"], d_y)
        d_inputs.append(d_input)
    if not of.use_bias:
        gradients = {name: gradient for name, gradient in gradients.items() if not name.endswith("/bias")}
    return d_inputs, gradients
