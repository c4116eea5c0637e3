"""Losses, written for ONE example; the caller maps them over a batch and averages over its real rows."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl import imbalance
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.registry import lookup

Loss = Callable[..., Any]
"""(logits, target) -> the loss, or `imbalance.Weighted`; called with a key as well where it `takes` one."""

REDUCTIONS = ("mean", "sum")
WEIGHTINGS = ("none", "inverse_frequency", "given")


def cross_entropy(
    logits: jax.Array,
    label: jax.Array | int,
    counts: Sequence[int] = (),
    *,
    label_smoothing: float = 0.0,
    weighting: str = "none",
    weights: Sequence[float] = (),
    beta: float = 0.9999,
    reduction: str = "weighted_mean",
) -> Any:
    """Cross entropy in nats of logits [C] with an integer label in 0..C-1: of the logits' dtype, or `imbalance.Weighted`.

    Of a mask, logits [H, W, C] with classes [H, W], it is the mean over the pixels. `label_smoothing` e replaces the
    one-hot target t by (1 - e) t + e / C (arXiv 1512.00567; as PyTorch).

    Args:
        counts, weighting, weights, beta, reduction: class weights, see `imbalance.class_weights` and `imbalance.weigh`; a
            smoothed loss is multiplied by the weight of its label.

    Raises:
        UserError: class weights of a mask, an unknown name, or another number of weights than classes.
    """
    if weighting != "none":
        if logits.ndim > 1:
            raise UserError(f"loss.cross_entropy.weighting: found '{weighting}', expected 'none' for masks")
        value = cross_entropy(logits, label, label_smoothing=label_smoothing)
        return imbalance.weigh(
            "cross_entropy",
            value,
            label,
            logits.shape[-1],
            weighting=weighting,
            weights=weights,
            beta=beta,
            reduction=reduction,
            counts=counts,
        )
    log_p = jax.nn.log_softmax(logits)
    if logits.ndim > 1:
        # Chosen by comparison: the gradient of an index is a scatter, one pixel after the other on a CPU.
        chosen = jnp.where(_one_hot(label, logits), log_p, jnp.zeros_like(log_p)).sum(-1)
        return -jnp.mean((1 - label_smoothing) * chosen + label_smoothing * jnp.mean(log_p, -1))
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


def distillation(teacher: jax.Array, student: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """T^2 KL(q || p) of logits [C], q = softmax(teacher / T) a constant and p = softmax(student / T); of a mask's logits
    [H, W, C] the mean over the pixels.

    Hinton, Vinyals, Dean, arXiv 1503.02531: the factor T^2 keeps the size of the gradient when T changes.
    """
    log_q = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    log_p = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1))


def mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error between a model's raw outputs [L] and the targets [L]."""
    return jnp.mean(jnp.square(outputs - targets.reshape(outputs.shape).astype(outputs.dtype)))


def dice(logits: jax.Array, mask: jax.Array, *, smoothing: float = 1.0) -> jax.Array:
    """Soft Dice loss of one image, logits [H, W, C] with classes [H, W] (0: background), meaned over the classes 1..C-1.

    1 - (2 sum p g + s) / (sum p + sum g + s) with the class's softmax channel p, its mask g and `smoothing` s, sums over
    the pixels. Source: the released segmentation code of PRR-FL (s = 1).
    """
    p = jax.nn.softmax(logits)[..., 1:]
    g = _one_hot(mask, logits)[..., 1:].astype(p.dtype)
    same, all_p, all_g = (jnp.sum(part, axis=(0, 1)) for part in (p * g, p, g))
    return jnp.mean(1 - (2 * same + smoothing) / (all_p + all_g + smoothing))


def dice_cross_entropy(
    logits: jax.Array,
    mask: jax.Array,
    *,
    dice_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    smoothing: float = 1.0,
) -> jax.Array:
    """`dice` plus the pixels' mean `cross_entropy`, each with its weight. Arguments as in `dice`."""
    overlap, pixels = dice(logits, mask, smoothing=smoothing), cross_entropy(logits, mask)
    return dice_weight * overlap + cross_entropy_weight * pixels


def _one_hot(label: jax.Array | int, logits: jax.Array) -> jax.Array:
    """Labels [...] as booleans in the shape of the logits [..., C]."""
    label = jnp.asarray(label, jnp.int32)
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return label[..., None] == classes.reshape((1,) * label.ndim + (-1,))


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "focal": imbalance.focal,
    "equalization": imbalance.equalization,
    "seesaw": imbalance.seesaw,
    "balanced_softmax": imbalance.balanced_softmax,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
    "dice_cross_entropy": dice_cross_entropy,
    "dice": dice,
}

# The losses that fit each task's targets; the first is the default.
BY_TASK: dict[str, tuple[str, ...]] = {
    "single": ("cross_entropy", "focal", "equalization", "seesaw", "balanced_softmax"),
    "multi": ("binary_cross_entropy", "mse"),
    "mask": ("dice_cross_entropy", "cross_entropy", "dice"),
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


def takes(loss: Loss, argument: str) -> bool:
    """Whether the loss reads more than logits and target: a 'key', or the 'counts' of the classes' training examples."""
    return argument in inspect.signature(loss).parameters


def unit(v: jax.Array) -> jax.Array:
    """Scaled to length 1 along the last axis; 0, with the gradient 0, where all are zeros."""
    square = jnp.sum(v * v, -1, keepdims=True)
    return v * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
