"""Prototypes: the mean feature of each class, collected batch by batch and put together over clients.

A class that nobody has owns no prototype: its row is zeros, and `has` says so; nothing here divides by a count of 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from fedjax_pfl.core import Variables


class Sums(NamedTuple):
    """Mergeable: the sums of two sets of rows are the sums of both together."""

    sums: Float[Array, "C d"]  # of the features of each class's rows
    counts: Float[Array, " C"]  # number of those rows, of the features' dtype


class Prototypes(NamedTuple):
    """The classes' mean features."""

    mean: Float[Array, "C d"]  # zeros where there is none
    has: Bool[Array, " C"]


def zeros(classes: int, width: int, dtype: Any) -> Sums:
    """Of no rows at all, features being `width` numbers."""
    return Sums(jnp.zeros((classes, width), dtype), jnp.zeros((classes,), dtype))


def width(variables: Variables, layers: tuple[str, ...]) -> tuple[int, Any]:
    """The width d and the dtype of the features: what the classifier, the last of `layers`, reads."""
    head: dict[Any, Any] = traverse_util.flatten_dict(variables["params"][layers[-1]])
    (kernel,) = (leaf for path, leaf in head.items() if path[-1] == "kernel")
    return kernel.shape[-2], kernel.dtype


def add(total: Sums, features: Float[Array, "B d"], y: Int[Array, " B"], mask: Bool[Array, " B"]) -> Sums:
    """`total` and the rows of a batch; rows where `mask` is False change nothing, whatever they hold."""
    classes = jnp.arange(total.counts.shape[0], dtype=y.dtype)
    chosen = ((y[:, None] == classes[None, :]) & mask[:, None]).astype(features.dtype)  # [B, C]
    real = jnp.where(mask[:, None], features, jnp.zeros_like(features))  # 0 * NaN would be NaN
    return Sums(total.sums + jnp.matmul(chosen.T, real, precision="highest"), total.counts + jnp.sum(chosen, 0))


def means(total: Sums) -> Prototypes:
    """The mean of each class that has rows."""
    has = total.counts > 0
    counts = jnp.where(has, total.counts, jnp.ones_like(total.counts))
    return Prototypes(jnp.where(has[:, None], total.sums / counts[:, None], jnp.zeros_like(total.sums)), has)


def over_clients(uploads: Sums, weighting: str) -> Prototypes:
    """The mean over the clients that own a class of their means of it, from their stacked sums [K, ...].

    A lost upload and a padding row are zeros (`core.run`) and so own nothing.

    Args:
        weighting: 'examples' (each client by its number of rows of the class, so this is the mean over all rows), or
            'uniform' (each client that has any counts the same).
    """
    if weighting == "uniform":
        own = jax.vmap(means)(uploads)
        uploads = Sums(own.mean, own.has.astype(uploads.counts.dtype))
    return means(jax.tree.map(lambda leaf: jnp.sum(leaf, 0), uploads))


def update(old: Prototypes, new: Prototypes) -> Prototypes:
    """The new ones; for a class that has none among these, the old one."""
    return Prototypes(jnp.where(new.has[:, None], new.mean, old.mean), old.has | new.has)


def squared_distance(
    prototypes: Prototypes, features: Float[Array, "B d"], y: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Of each row's features to the prototype of its class (a constant), 0 where that has none; and where it has one."""
    has = jnp.take(prototypes.has, y)
    target = jax.lax.stop_gradient(jnp.take(prototypes.mean, y, axis=0))
    distance = jnp.sum(jnp.square(features - target), -1)
    return jnp.where(has, distance, jnp.zeros_like(distance)), has


def none(variables: Variables, layers: tuple[str, ...], classes: int) -> Prototypes:
    """No class has one yet."""
    return means(zeros(classes, *width(variables, layers)))
