"""Maths on parameter pytrees: whole trees, the client axis, and the split of a model into parts by path."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

Tree = Any
Path = tuple[str, ...]  # ('params', 'fc2', 'linear', 'kernel')
Where = Callable[[Path], bool]


def add(a: Tree, b: Tree) -> Tree:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """a - b, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(factor: float | Float[Array, ""], a: Tree) -> Tree:
    """factor * a; the factor takes each leaf's dtype, so float32 stays float32."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, a)


def zeros_like(a: Tree) -> Tree:
    """Zeros in the shape of a."""
    return jax.tree.map(jnp.zeros_like, a)


def where(condition: Bool[Array, ""], a: Tree, b: Tree) -> Tree:
    """a if the scalar condition holds, else b."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def squared_norm(a: Tree) -> Float[Array, ""]:
    """Sum of the squares of all entries. As a sum of squares its gradient at 0 is 0, not NaN."""
    return functools.reduce(jnp.add, [jnp.sum(x * x) for x in jax.tree.leaves(a)])


def all_finite(a: Tree) -> Bool[Array, ""]:
    """Whether no leaf holds a NaN or an infinity."""
    return jnp.all(jnp.stack([jnp.array(True), *(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(a))]))


def take(stacked: Tree, ids: Int[Array, "*K"]) -> Tree:
    """Rows `ids` of every leaf [N, ...]. An id outside 0..N-1 (a padding row) reads the last row: never use it."""
    return jax.tree.map(lambda x: jnp.take(x, ids, axis=0, mode="clip"), stacked)


def put(stacked: Tree, ids: Int[Array, " K"], rows: Tree) -> Tree:
    """The leaves [N, ...] with rows `ids` replaced; ids outside 0..N-1 (padding rows) are dropped."""
    return jax.tree.map(lambda x, row: x.at[ids].set(row, mode="drop"), stacked, rows)


def broadcast(a: Tree, n: int) -> Tree:
    """n copies of a, stacked on a new first axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), a)


def weighted_mean(stacked: Tree, weight: Float[Array, " K"]) -> Tree:
    """sum_k p_k x_k with p_k = weight_k / sum weight, over the first axis of every leaf [K, ...]; NaN if no weight > 0.

    Rows must be finite, also those of weight 0 (`core.run` sets lost uploads to 0).
    """
    weight = weight.astype(jnp.result_type(float))  # counts are exact in float32, their shares aren't
    return weighted_sum(stacked, weight / jnp.sum(weight))


def weighted_sum(stacked: Tree, weight: Float[Array, " K"]) -> Tree:
    """sum_k weight_k x_k over the first axis of every leaf [K, ...]."""
    # A product, since XLA's sum over the first axis takes fifty times as long on a CPU.
    return jax.tree.map(lambda x: jnp.tensordot(weight.astype(x.dtype), x, 1, precision="highest"), stacked)


def split(variables: Tree, where: Where) -> tuple[Tree, Tree]:
    """Two trees of nested dicts: the leaves whose path `where` names, and the rest. `merge` puts them together again."""
    flat = traverse_util.flatten_dict(variables)
    chosen = {path: leaf for path, leaf in flat.items() if where(path)}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return traverse_util.unflatten_dict(chosen), traverse_util.unflatten_dict(rest)


def merge(variables: Tree, part: Tree) -> Tree:
    """`variables` with the leaves of `part` (a subset of its paths, as `split` makes one) in place of its own."""
    flat = traverse_util.flatten_dict(variables)
    return traverse_util.unflatten_dict(flat | traverse_util.flatten_dict(part))


def together(**models: Tree) -> Tree:
    """Several models as one: {'params': {name: ...}, 'batch_stats': {name: ...}}. `member` takes them out again."""
    collections = {collection for variables in models.values() for collection in variables}
    return {
        collection: {name: variables[collection] for name, variables in models.items() if collection in variables}
        for collection in sorted(collections)
    }


def member(variables: Tree, name: str) -> Tree:
    """One of the models that `together` put together; a collection that it hasn't is left out."""
    return {collection: parts[name] for collection, parts in variables.items() if name in parts}


def batch_norm(variables: Tree) -> Where:
    """Names every batch-norm entry: scale, bias and running statistics of each module that has running statistics.

    Found from the structure of `variables` itself, not by what a layer is called: names differ between models.
    """
    modules = {path[1:-1] for path in traverse_util.flatten_dict(variables) if path[0] == "batch_stats"}
    return lambda path: path[1:-1] in modules


def statistics(path: Path) -> bool:
    """Names the batch-norm running statistics alone."""
    return path[0] == "batch_stats"


def top_level(modules: tuple[str, ...]) -> Where:
    """Names all entries of the given top-level modules of a model, such as its head."""
    return lambda path: path[1] in modules


def dense(variables: Tree, module: str) -> tuple[Path, Tree]:
    """Where a top-level module's one dense layer is, and its entries {'kernel': [in, out], 'bias' where it has one}.

    A classifier may be a dense layer or hold one (`fc2.linear`). ((), {}) where the module is, or holds, anything else.
    """
    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(variables["params"][module]))  # pyright: ignore
    layers = {path[:-1] for path in flat}
    entries = {path[-1]: leaf for path, leaf in flat.items()}
    if len(layers) != 1 or not {"kernel"} <= set(entries) <= {"kernel", "bias"} or entries["kernel"].ndim != 2:
        return (), {}
    return ("params", module, *layers.pop()), entries


def nest(path: Path, entries: Tree) -> Tree:
    """The tree that holds these entries at `path`, and nothing else: a part for `merge`."""
    return traverse_util.unflatten_dict({(*path, name): leaf for name, leaf in entries.items()})


def either(*wheres: Where) -> Where:
    """Names what any of them names."""
    return lambda path: any(where(path) for where in wheres)
