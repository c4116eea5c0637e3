"""A model's metric on one client's examples inside a compiled round: sums over batches, then the metric."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from fedjax_pfl import local, metrics
from fedjax_pfl.core import ClientData, Variables
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.local import Batch, Network


class Metric(NamedTuple):
    """A metric by mergeable sums."""

    sums: Callable[[Array, Array, Bool[Array, " B"]], Any]  # of logits [B, ...], targets [B, ...] and the real rows
    value: Callable[[Any], Float[Array, ""]]  # of those sums, added over the batches


def _confusion(logits: Array, y: Array, mask: Array) -> Float[Array, "C C"]:
    """Rows: true class, columns: predicted."""
    one_hot = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    claimed = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=logits.dtype)
    return jnp.where(mask[:, None], one_hot, jnp.zeros_like(one_hot)).T @ claimed


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, jnp.ones_like(b)), jnp.zeros_like(a))


def _accuracy(confusion: Array) -> Array:
    return _ratio(jnp.trace(confusion), jnp.sum(confusion))


def _macro_f1(confusion: Array) -> Array:
    """Mean over the classes that occur in targets or predictions, as `metrics.single_label`."""
    occurs = jnp.sum(confusion, 0) + jnp.sum(confusion, 1)
    return _ratio(jnp.sum(_ratio(2 * jnp.diag(confusion), occurs)), jnp.sum((occurs > 0).astype(confusion.dtype)))


def _balanced_accuracy(confusion: Array) -> Array:
    actual = jnp.sum(confusion, 1)
    return _ratio(jnp.sum(_ratio(jnp.diag(confusion), actual)), jnp.sum((actual > 0).astype(confusion.dtype)))


METRICS: dict[str, dict[str, Metric]] = {
    "single": {
        "macro_f1": Metric(_confusion, _macro_f1),
        "accuracy": Metric(_confusion, _accuracy),
        "balanced_accuracy": Metric(_confusion, _balanced_accuracy),
    },
    # 0, not NaN, where no image has foreground: stages compare numbers
    "mask": {"dice": Metric(metrics.dice_counts, lambda sums: jnp.nan_to_num(metrics.mean_dice(sums)))},
}


def metric(task: str, name: str = "") -> Metric:
    """The metric `name` of a task; the task's first where `name` is empty.

    Raises:
        UserError: there is none that a round can compute.
    """
    known = METRICS.get(task, {})
    if not known:
        raise UserError(f"config.score.metric: no metric can be scored within a round for the task '{task}'")
    name = name or next(iter(known))
    if name not in known:
        raise UserError(f"config.score.metric: unknown name '{name}'{nearest(name, known)}")
    return known[name]


def build(network: Network, metric: Metric, batch_size: int = 64) -> Callable[..., Float[Array, ""]]:
    """(variables, data, key=None) -> the metric of a model in evaluation mode on all rows of a client; 0 without rows.

    With a key the inputs are augmented as in training, by that key, as the released code of PRR-FL scores.
    """

    def score(variables: Variables, data: ClientData, key: Key[Array, ""] | None = None) -> Float[Array, ""]:
        def sums(batch: Batch, i: Array) -> Any:
            if key is None:  # input noise by the client's id alone: two models are scored on the same inputs
                x, y = network.plain(batch.x, batch.noise, jax.random.fold_in(jax.random.key(0), i)), batch.y
            else:
                x, y = network.inputs(batch, jax.random.fold_in(key, i))
            return metric.sums(network.evaluate(variables, x)[1], y, batch.mask)

        return metric.value(local.sum_over(data, batch_size, sums))

    return score
