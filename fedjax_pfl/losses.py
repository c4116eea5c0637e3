"""Losses, written for ONE example; the caller maps them over a batch and averages over its real rows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.registry import lookup

Loss = Callable[..., jax.Array]

REDUCTIONS = ("mean", "sum")
WEIGHTINGS = ("none", "inverse_frequency", "given")


def cross_entropy(logits: jax.Array, label: jax.Array | int, *, label_smoothing: float = 0.0) -> jax.Array:
    """Cross entropy in nats of logits [C] with an integer label in 0..C-1: a scalar of the logits' dtype.

    `label_smoothing` e replaces the one-hot target t by (1 - e) t + e / C (arXiv 1512.00567; as PyTorch).
    """
    log_p = jax.nn.log_softmax(logits)
    if not label_smoothing:  # not 0 * mean(log_p): a class masked by a logit of -inf would make that NaN
        return -log_p[label]
    return -(1 - label_smoothing) * log_p[label] - label_smoothing * jnp.mean(log_p)


def binary_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    counted: jax.Array | None = None,
    *,
    reduction: str = "mean",
    weighting: str = "none",
    weights: Sequence[float] = (),
) -> jax.Array:
    """Binary cross entropy in nats of logits [L] with targets [L] in [0, 1], averaged or summed over the L labels.

    Masks count as labels: logits [H, W, 1] go with targets [H, W].

    Args:
        counted: [L] bool, the labels that count, of a label-mask model the unknown ones; None: all.
        reduction: 'mean' or 'sum', over the labels that count.
        weighting: 'none', or each label's loss times its weight: 'given' or 'inverse_frequency' (`inverse_frequency`
            makes these from the training data, see `config.build_problem`).
        weights: [L], unless weighting is 'none'.

    Raises:
        UserError: an unknown `reduction` or `weighting`, or another number of weights.
    """
    for option, value, known in (("reduction", reduction, REDUCTIONS), ("weighting", weighting, WEIGHTINGS)):
        if value not in known:
            raise UserError(f"loss.binary_cross_entropy.{option}: unknown name '{value}'{nearest(value, known)}")
    y = targets.reshape(logits.shape).astype(logits.dtype)
    # log sigma(z) and log sigma(-z) = log(1 - sigma(z)), neither of which overflows or cancels at large |z|.
    losses = -(y * jax.nn.log_sigmoid(logits) + (1 - y) * jax.nn.log_sigmoid(-logits))
    if weighting != "none":
        if len(weights) != logits.size:
            raise UserError(
                f"loss.binary_cross_entropy.weights: {len(weights)} found, one for each of {logits.size} labels expected"
            )
        losses = losses * jnp.asarray(weights, losses.dtype).reshape(losses.shape)
    if counted is not None:
        losses = jnp.where(counted, losses, jnp.zeros_like(losses))
    total = jnp.sum(losses)
    if reduction == "sum":
        return total
    number = jnp.asarray(losses.size) if counted is None else jnp.maximum(jnp.sum(counted), 1)
    return total / number.astype(losses.dtype)


def inverse_frequency(counts: np.ndarray) -> tuple[float, ...]:
    """Weights ~ 1 / counts [L] of mean 1; a label that never occurs counts as one that occurs once."""
    weights = 1 / np.maximum(counts, 1)
    return tuple(float(w) for w in weights / weights.mean())


def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error between a model's raw outputs [L] and the targets [L]."""
    return jnp.mean(jnp.square(outputs - targets.reshape(outputs.shape).astype(outputs.dtype)))


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
}

# The losses that fit each task's targets; the first is the default.
BY_TASK: dict[str, tuple[str, ...]] = {
    "single": ("cross_entropy",),
    "multi": ("binary_cross_entropy", "mse"),
    "mask": ("binary_cross_entropy", "mse"),
}


# The losses that can leave out labels which a label-mask model was told.
MASKABLE = ("binary_cross_entropy",)


def for_task(task: str, name: str = "", **options: Any) -> Loss:
    """The loss `name` with its `options`, or the task's default loss where `name` is empty.

    Raises:
        UserError: an unknown task or loss, or a loss that does not fit the task's targets.
    """
    if task not in BY_TASK:
        raise UserError(f"task: unknown name '{task}'{nearest(task, BY_TASK)}")
    name = name or BY_TASK[task][0]
    loss = lookup(LOSSES, name, "loss.name")
    if name not in BY_TASK[task]:
        raise UserError(f"loss.name: '{name}' does not fit the task '{task}' (one of: {', '.join(BY_TASK[task])})")
    return partial(loss, **options)
