"""Losses, written for ONE example; the caller maps them over a batch and averages over its real rows."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.registry import lookup

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, label: jax.Array | int, *, label_smoothing: float = 0.0) -> jax.Array:
    """Cross entropy in nats of logits [C] with an integer label in 0..C-1: a scalar of the logits' dtype.

    `label_smoothing` e replaces the one-hot target t by (1 - e) t + e / C (arXiv 1512.00567; as PyTorch).
    """
    log_p = jax.nn.log_softmax(logits)
    if not label_smoothing:  # not 0 * mean(log_p): a class masked by a logit of -inf would make that NaN
        return -log_p[label]
    return -(1 - label_smoothing) * log_p[label] - label_smoothing * jnp.mean(log_p)


def binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, reduction: Literal["mean", "sum"] = "mean"
) -> jax.Array:
    """Binary cross entropy in nats of logits [L] with targets [L] in [0, 1], averaged or summed over the L labels.

    Masks count as labels: logits [H, W, 1] go with targets [H, W].

    Raises:
        UserError: an unknown `reduction`.
    """
    if reduction not in ("mean", "sum"):
        raise UserError(
            f"binary_cross_entropy.reduction: unknown name '{reduction}'{nearest(reduction, ('mean', 'sum'))}"
        )
    y = targets.reshape(logits.shape).astype(logits.dtype)
    # log sigma(z) and log sigma(-z) = log(1 - sigma(z)), neither of which overflows or cancels at large |z|.
    losses = -(y * jax.nn.log_sigmoid(logits) + (1 - y) * jax.nn.log_sigmoid(-logits))
    return jnp.mean(losses) if reduction == "mean" else jnp.sum(losses)


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
