"""Losses for classes of unequal size, written for ONE example with an integer label, and the weights of classes.

n_c, `counts`, is how many training examples of class c there are: over all clients that train, so that they share a
histogram of their labels. It does not change in a run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl.errors import UserError, nearest

WEIGHTINGS = ("none", "inverse_frequency", "effective_number", "given")
REDUCTIONS = ("weighted_mean", "mean")
FORMS = ("softmax", "sigmoid")

Label = jax.Array | int


class Weighted(NamedTuple):
    """A loss whose mean over a batch is sum of value / sum of weight, instead of sum of value / number of examples."""

    value: jax.Array  # already times the weight
    weight: jax.Array


def class_weights(
    weighting: str, counts: Sequence[int], weights: Sequence[float] = (), beta: float = 0.0
) -> np.ndarray:
    """[C] float64 weights of classes.

    inverse_frequency: ~ 1 / n_c. effective_number: ~ (1 - beta) / (1 - beta^n_c), Cui et al., CVPR 2019, arXiv 1901.05555;
    beta = 0 weighs all alike. Both sum to C, and take a class that never occurs for one that occurs once. given: `weights`
    as they are.
    """
    if weighting == "given":
        return np.asarray(weights, np.float64)
    n = np.maximum(np.asarray(counts, np.float64), 1)
    found = 1 / n if weighting == "inverse_frequency" else (1 - beta) / (1 - beta**n)
    return found / found.mean()


def weigh(
    name: str,
    value: jax.Array,
    label: Label,
    classes: int,
    *,
    weighting: str,
    weights: Sequence[float],
    beta: float,
    reduction: str,
    counts: Sequence[int],
) -> jax.Array | Weighted:
    """The loss `value` of an example, times the weight of its class.

    Args:
        name: the loss's, for messages.
        reduction: how a batch's mean is taken: 'weighted_mean' (sum of w CE / sum of w; what the class weights of deep
            learning frameworks mean) or 'mean' (sum of w CE / number of examples).

    Raises:
        UserError: an unknown name, or another number of weights or counts than classes.
    """
    _known(f"loss.{name}.weighting", weighting, WEIGHTINGS)
    _known(f"loss.{name}.reduction", reduction, REDUCTIONS)
    if weighting == "none":
        return value
    _one_each(
        f"loss.{name}.{'weights' if weighting == 'given' else 'counts'}",
        weights if weighting == "given" else counts,
        classes,
    )
    w = jnp.asarray(class_weights(weighting, counts, weights, beta), value.dtype)[label]
    return Weighted(w * value, w) if reduction == "weighted_mean" else w * value


def focal(
    logits: jax.Array,
    label: Label,
    counts: Sequence[int] = (),
    *,
    gamma: float = 2.0,
    weighting: str = "none",
    weights: Sequence[float] = (),
    beta: float = 0.9999,
    reduction: str = "mean",
) -> jax.Array | Weighted:
    """Focal loss in its softmax form, -alpha_y (1 - p_y)^gamma log p_y. Lin et al., ICCV 2017, arXiv 1708.02002.

    gamma = 0 is cross entropy.

    Args:
        logits: [C].
        weighting, weights, beta, reduction: of the alpha_c, see `class_weights` and `weigh`; 'none' is alpha = 1.
    """
    log_p = jax.nn.log_softmax(logits)
    value = -log_p[label]
    if gamma:
        # 1 - p_y as the sum of the others: neither cancels nor has a power of 0 in its gradient.
        others = jax.nn.logsumexp(jnp.where(_is(label, logits), -jnp.inf, log_p))
        value = jnp.exp(gamma * others) * value
    return weigh(
        "focal",
        value,
        label,
        logits.shape[-1],
        weighting=weighting,
        weights=weights,
        beta=beta,
        reduction=reduction,
        counts=counts,
    )


def equalization(
    logits: jax.Array,
    label: Label,
    key: jax.Array | None = None,
    counts: Sequence[int] = (),
    *,
    form: str = "softmax",
    threshold: float = 0.00177,
    gamma: float = 0.9,
) -> jax.Array:
    """Equalization loss: rare classes are not pushed down by examples of others. Tan et al., CVPR 2020, arXiv 2003.05176.

    A class is rare where its share f_c = n_c / n of the examples is below the threshold lambda. Every example is of a class
    ('foreground' in the paper's detection). threshold = 0 is cross entropy (of the sigmoids, in that form).

    softmax: -log(e^z_y / sum_k w_k e^z_k) with w_k = 1 - beta_k [k rare and k != y], beta_k ~ Bernoulli(gamma), drawn for
    each example and class.
    sigmoid: binary cross entropy summed over the classes, without those that are rare and not y.

    Args:
        logits: [C].
        key: draws the beta of the softmax form.
    """
    _known("loss.equalization.form", form, FORMS)
    _one_each("loss.equalization.counts", counts, logits.shape[-1])
    n = np.asarray(counts, np.float64)
    mine = _is(label, logits)
    spared = jnp.asarray(n / max(n.sum(), 1) < threshold) & ~mine
    if form == "sigmoid":
        each = jnp.where(mine, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))
        return -jnp.sum(jnp.where(spared, jnp.zeros_like(each), each))
    if key is None:
        raise ValueError("the softmax form of the equalization loss draws by a key")
    spared = spared & jax.random.bernoulli(key, jnp.float32(gamma), spared.shape)
    return -jax.nn.log_softmax(jnp.where(spared, -jnp.inf, logits))[label]


def seesaw(logits: jax.Array, label: Label, counts: Sequence[int] = (), *, p: float = 0.8, q: float = 2.0) -> jax.Array:
    """Seesaw loss, cross entropy on z_j + log S_ij with i the label and S_ii = 1. Wang et al., CVPR 2021, arXiv 2008.10032.

    S_ij = M_ij C_ij. Mitigation M_ij = min(1, n_j / n_i)^p: a rarer class is pushed down less. Compensation C_ij = max(1,
    sigma_j / max(sigma_i, 0.01))^q, sigma the plain softmax as a constant: where it is mistaken for the label it is pushed
    more. p = q = 0 is cross entropy. The released code counts n online, over the samples that it has seen; here n is the
    count of all training examples, and a class that never occurs counts as one that occurs once.

    Args:
        logits: [C].
    """
    _one_each("loss.seesaw.counts", counts, logits.shape[-1])
    log_n = np.log(np.maximum(np.asarray(counts, np.float64), 1))
    mitigation = jnp.asarray(p * np.minimum(0, log_n[None, :] - log_n[:, None]), logits.dtype)[label]
    log_sigma = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
    compensation = q * jnp.maximum(log_sigma - jnp.maximum(log_sigma[label], math.log(0.01)), 0)
    log_s = jnp.where(_is(label, logits), jnp.zeros_like(logits), mitigation + compensation)
    return -jax.nn.log_softmax(logits + log_s)[label]


def balanced_softmax(logits: jax.Array, label: Label, counts: Sequence[int] = ()) -> jax.Array:
    """Cross entropy on z + log n: -log(n_y e^z_y / sum_j n_j e^z_j). Ren et al., NeurIPS 2020, arXiv 2007.10740.

    Prediction uses z. A class that never occurs has weight 0, unless it is the label (of a client that did not count).

    Args:
        logits: [C].
    """
    _one_each("loss.balanced_softmax.counts", counts, logits.shape[-1])
    n = np.asarray(counts, np.float64)
    log_n = np.log(np.where(n > 0, n, 1))
    shifted = logits + jnp.asarray(log_n, logits.dtype)
    never = jnp.asarray(n == 0) & ~_is(label, logits)
    return -jax.nn.log_softmax(jnp.where(never, -jnp.inf, shifted))[label]


def _is(label: Label, logits: jax.Array) -> jax.Array:
    """[C] bool: the label's class."""
    return jnp.arange(logits.shape[-1], dtype=jnp.int32) == jnp.asarray(label, jnp.int32)


def _known(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{field}: unknown name '{value}'{nearest(value, known)}")


def _one_each(field: str, values: Sequence[float], classes: int) -> None:
    if len(values) != classes:
        raise UserError(f"{field}: {len(values)} found, one for each of {classes} classes expected")
