"""How Flax is called: below which parents, with which streams of random numbers, under which settings."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import files


class Parent(nn.Module):
    """A module whose only part is the next one on a path."""

    names: tuple[str, ...]
    make: Callable
    times: int

    @nn.compact
    def __call__(self, *args, **kwargs):
        name, *rest = self.names
        if rest:
            return Parent(tuple(rest), self.make, self.times, name=name)(*args, **kwargs)
        return repeated(self.make(name=name), self.times, args, kwargs)


def repeated(module, times, args, kwargs):
    """The output of the last of several calls."""
    return [module(*args, **kwargs) for _ in range(times)][-1]


@dataclass
class Place:
    """A module at its place: below its parents, called so many times, with the root keys of its streams."""

    make: Callable
    path: tuple[str, ...] = ()
    times: int = 1
    rngs: dict[str, Any] = field(default_factory=dict)

    def init(self, arguments):
        """The flat parameters that the module makes."""
        root = Parent(self.path, self.make, self.times) if self.path else self.make()
        tree = root.init(self.rngs, **arguments)["params"]
        return traverse_util.flatten_dict(_inner(tree, self.path), sep="/")

    def apply(self, params, arguments, cache=None, mutable=False):
        """The output and the module's part of the mutable collections."""
        variables = {"params": _outer(_unflattened(params), self.path)}
        if cache is not None:
            variables["cache"] = _outer(cache, self.path)
        options = {"rngs": self.rngs or None, "mutable": mutable}
        if self.path:
            got = Parent(self.path, self.make, self.times).apply(variables, **arguments, **options)
        else:
            # The function's own name for the module must not be one of the call's arguments.
            last = lambda root, **kwargs: repeated(root, self.times, (), kwargs)  # noqa: E731
            got = self.make().apply(variables, **arguments, **options, method=last)
        if not mutable:
            return got, {}
        out, state = got
        return out, {name: _inner(tree, self.path) for name, tree in state.items()}


def _outer(tree, path):
    for name in reversed(path):
        tree = {name: tree}
    return tree


def _inner(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def _unflattened(params):
    return traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in params.items()}, sep="/")


def module_maker(name, config):
    """Makes Flax's module, given its name in a parent."""
    return lambda **kwargs: getattr(nn, name)(**module_arguments(config), **kwargs)


def module_arguments(config):
    """The constructor's arguments, with numpy's types and JAX's initializers where their names stand."""
    arguments = with_dtypes(config)
    for name, value in config.items():
        if name.endswith("_init") and value is not None:
            options = {k: v for k, v in value.items() if k != "name"}
            made = getattr(jax.nn.initializers, value["name"])
            arguments[name] = made if value["name"] in ("zeros", "ones") else made(**options)
    return {k: v for k, v in arguments.items() if not (k.endswith("_init") and v is None)}


def with_dtypes(arguments):
    """The same arguments, with numpy types where names of types stand."""
    types = ("dtype", "param_dtype")
    return {k: files.dtype_of(v) if k in types and v is not None else v for k, v in arguments.items()}


@contextmanager
def settings(x64=False, partitionable=True, separator=False):
    """JAX's and Flax's settings that change numbers."""
    before = flax.config.flax_fix_rng_separator
    flax.config.update("flax_fix_rng_separator", separator)
    try:
        with jax.enable_x64(x64), jax.threefry_partitionable(partitionable):
            yield
    finally:
        flax.config.update("flax_fix_rng_separator", before)


@contextmanager
def kept_masks():
    """The masks of the dropouts that Flax draws meanwhile, in their order."""
    masks, bernoulli = [], jax.random.bernoulli

    def recording(*args, **kwargs):
        mask = bernoulli(*args, **kwargs)
        masks.append(np.asarray(mask))
        return mask

    jax.random.bernoulli = recording
    try:
        yield masks
    finally:
        jax.random.bernoulli = bernoulli


def key_words(seed):
    """The words of the key of a seed; a key is given by its words."""
    words = seed if isinstance(seed, np.ndarray) else jax.random.key_data(jax.random.key(seed))
    return np.asarray(words, dtype=np.uint32)
