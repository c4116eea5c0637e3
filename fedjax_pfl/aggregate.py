"""Server maths on stacked uploads [K, ...]: weights, means, and the server optimisers of FedOpt."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_pfl import tree
from fedjax_pfl.core import Cohort


def weights(cohort: Cohort, weighting: str) -> Float[Array, " K"]:
    """n_k ('examples'), or 1 for each client whose upload arrived ('uniform'); 0 for lost uploads and padding."""
    return cohort.weight if weighting == "examples" else (cohort.weight > 0).astype(cohort.weight.dtype)


def mean(stacked: Any, cohort: Cohort, weighting: str) -> Any:
    """sum_k p_k x_k over the uploads that arrived. Padding rows change nothing, whatever they hold."""
    return tree.weighted_mean(stacked, weights(cohort, weighting))


class Moments(NamedTuple):
    """State of an adaptive server optimiser."""

    t: Array
    m: Any
    v: Any


def adaptive(
    name: str, lr: float, *, beta1: float, beta2: float, tau: float, v0: float, bias_correction: bool
) -> optax.GradientTransformation:
    """The adaptive server optimisers of FedOpt (Reddi et al. 2021, Algorithm 2), on Delta_t = mean of w_k - w_t.

        m <- beta1 m + (1 - beta1) Delta
        v <- v + Delta^2 (adagrad) | v - (1 - beta2) Delta^2 sign(v - Delta^2) (yogi) | beta2 v + (1 - beta2) Delta^2 (adam)
        w <- w + lr m / (sqrt(v) + tau)

    Args:
        v0: initial v, at least tau^2 in the paper.
        bias_correction: multiply the step by sqrt(1 - beta2^t) / (1 - beta1^t), as the released trainer does for adam and
            yogi; the paper's algorithm has none.
    """

    def init(params: Any) -> Moments:
        v = jax.tree.map(lambda x: jnp.full_like(x, v0), params)
        return Moments(jnp.zeros((), jnp.int32), tree.zeros_like(params), v)

    def second_moment(v: Array, delta: Array) -> Array:
        square = delta * delta
        if name == "adagrad":
            return v + square
        if name == "yogi":
            return v - (1 - beta2) * square * jnp.sign(v - square)
        return beta2 * v + (1 - beta2) * square

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Moments]:
        delta = updates
        t = state.t + 1
        m = jax.tree.map(lambda m, d: beta1 * m + (1 - beta1) * d, state.m, delta)
        v = jax.tree.map(second_moment, state.v, delta)
        step = jnp.asarray(lr, jnp.result_type(float))
        if bias_correction and name != "adagrad":
            power = t.astype(step.dtype)
            step = step * jnp.sqrt(1 - beta2**power) / (1 - beta1**power)
        updates = jax.tree.map(lambda m, v: step.astype(m.dtype) * m / (jnp.sqrt(v) + tau), m, v)
        return updates, Moments(t, m, v)

    return optax.GradientTransformation(init, update)
