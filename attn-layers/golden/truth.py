"""The attention layer and its functions in float64, written from the formulas and without JAX.

Arrays are `[batch..., length, features]`, projected ones `[batch..., length, heads, head_dim]`, weights
`[batch..., heads, query_length, key_length]`. Every function takes and gives float64; roundings of the computation type are
left out on purpose, but for `fill`: the finite number that a masked logit is set to.
"""

import numpy as np

LAYER_NORM_EPSILON = 1e-6


def project(x, kernel, bias):
    """`[..., features]` to `[..., heads, head_dim]`."""
    y = np.einsum("...f,fhd->...hd", x, kernel)
    return y if bias is None else y + bias


def project_out(x, kernel, bias):
    """`[..., heads, head_dim]` to `[..., features]`."""
    y = np.einsum("...hd,hdo->...o", x, kernel)
    return y if bias is None else y + bias


def layer_norm(x, scale):
    """Over the last axis, without a bias."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + LAYER_NORM_EPSILON) * scale


def softmax(logits):
    """Over the last axis, which may be empty."""
    # A row of -inf, which only a bias can make, is NaN by this formula, as it is in Flax.
    with np.errstate(invalid="ignore"):
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return exp / exp.sum(axis=-1, keepdims=True)


def attention_weights(query, key, bias, mask, fill):
    """The weights; a row whose keys are all masked weighs all of them alike, because `fill` is finite."""
    logits = np.einsum("...qhd,...khd->...hqk", query / np.sqrt(query.shape[-1]), key)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = np.where(mask != 0, logits, fill)
    return softmax(logits)


def attention(query, key, value, bias, mask, fill, multiplier=None):
    """The attended values, and the weights before dropout, which multiplies them by `multiplier`."""
    weights = attention_weights(query, key, bias, mask, fill)
    dropped = weights if multiplier is None else weights * multiplier
    return np.einsum("...hqk,...khd->...qhd", dropped, value), weights


class Layer:
    """A layer with its parameters, a flat dict such as `{"query/kernel": ...}`, and a cache if it decodes."""

    def __init__(self, params, use_bias, normalize_qk, fill):
        self.params = params
        self.use_bias = use_bias
        self.normalize_qk = normalize_qk
        self.fill = fill
        self.cache = None

    def __call__(self, q, k, v, mask, multiplier=None):
        """The output and the weights before dropout of an ordinary call."""
        query, key, value = self._heads(q, k, v)
        return self._attended(query, key, value, mask, multiplier)

    def create_cache(self, q, k, v, multiplier=None):
        """The call that makes the cache: it attends as usual and stores nothing but zeros."""
        query, key, value = self._heads(q, k, v)
        self.cache = {"key": np.zeros_like(key), "value": np.zeros_like(value), "index": 0}
        return self._attended(query, key, value, None, multiplier)

    def step(self, q, k, v, mask, multiplier=None):
        """One token: past the end the last slot is written again, and the index counts on."""
        query, key, value = self._heads(q, k, v)
        max_length = self.cache["key"].shape[-3]
        slot = min(self.cache["index"], max_length - 1)
        self.cache["key"][..., slot, :, :] = key[..., 0, :, :]
        self.cache["value"][..., slot, :, :] = value[..., 0, :, :]
        written = np.arange(max_length) <= self.cache["index"]
        self.cache["index"] += 1
        seen = written if mask is None else np.logical_and(written, mask != 0)
        return self._attended(query, self.cache["key"], self.cache["value"], seen, multiplier)

    def project(self, name, x):
        """The heads that the projection `name` makes of `x`, before a norm."""
        return project(x, self.params[f"{name}/kernel"], self._bias(name))

    def has_norm(self, name):
        """Whether heads of this name are normalized."""
        return self.normalize_qk and name != "value"

    def normalized(self, name, heads):
        """The heads as attention takes them."""
        return layer_norm(heads, self.params[f"{name}_ln/scale"]) if self.has_norm(name) else heads

    def _heads(self, q, k, v):
        named = (("query", q), ("key", k), ("value", v))
        return [self.normalized(name, self.project(name, x)) for name, x in named]

    def _attended(self, query, key, value, mask, multiplier):
        x, weights = attention(query, key, value, None, mask, self.fill, multiplier)
        return project_out(x, self.params["out/kernel"], self._bias("out")), weights

    def _bias(self, name):
        return self.params[f"{name}/bias"] if self.use_bias else None
