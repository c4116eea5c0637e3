"""KD3A's knowledge vote and consensus focus. Feng et al., ICML 2021, arXiv 2011.09757, sections 3.2 and 3.3.

K source models say softmax(z) of one unlabelled example; their vote is a pseudo-label, what it weighs in the loss, and how
good the vote is. A coalition's vote hears its members alone; what a source adds to the coalitions' quality is its focus.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

EXACT = 12  # sources up to which every coalition is looked at
PERMUTATIONS = 200  # orders of the sources that are sampled beyond
KINDS = ("soft", "hard", "sum", "max", "min", "mean", "median", "mode")
FOCUSES = ("shapley", "leave_one_out")


class Vote(NamedTuple):
    """What the sources say of ONE example."""

    label: Float[Array, " C"]  # the pseudo-label, a distribution
    weight: Float[Array, ""]  # of the example in the target's loss
    quality: Float[Array, ""]  # 0 for an empty coalition


def soft(P: Float[Array, "K C"], members: Bool[Array, " K"], gate: Float[Array, ""]) -> Vote:
    """The paper's vote: the mean of what the supporters of the consensus class say, weighing as many as they are.

    Who is sure of a class (max p >= gate) takes part; the consensus class is the largest of their summed predictions; its
    supporters are those whose own class it is. Where nobody is sure, or supports it: the mean of all, weighing 0.001.
    Quality: weight times max p of the pseudo-label.
    """
    sure = members & (jnp.max(P, -1) >= gate)
    consensus = jnp.argmax(jnp.sum(jnp.where(sure[:, None], P, 0), 0))
    supporters = sure & (jnp.argmax(P, -1) == consensus)
    number = jnp.sum(supporters.astype(P.dtype))
    heard = jnp.where(number > 0, supporters, members)
    label = _mean(P, heard)
    weight = jnp.where(number > 0, number, jnp.asarray(0.001, P.dtype))
    return Vote(label, weight, weight * jnp.max(label))


def hard(P: Float[Array, "K C"], members: Bool[Array, " K"], gate: Float[Array, ""]) -> Vote:
    """The released code's vote: the class with the largest sum of the sure sources' confidences (max p > gate), one-hot.

    Where nobody is sure all are heard, and the example weighs 0; else 1. Quality: weight times that sum. Ties go to the
    lower class.
    """
    confidence = jnp.where(members, jnp.max(P, -1), 0)
    sure = confidence > gate
    heard = jnp.where(jnp.any(sure), confidence * sure.astype(P.dtype), confidence)
    score = heard @ jax.nn.one_hot(jnp.argmax(P, -1), P.shape[-1], dtype=P.dtype)
    weight = jnp.any(sure).astype(P.dtype)
    return Vote(jax.nn.one_hot(jnp.argmax(score), P.shape[-1], dtype=P.dtype), weight, weight * jnp.max(score))


def statistic(kind: str, P: Float[Array, "K C"], members: Bool[Array, " K"], gate: Float[Array, ""]) -> Vote:
    """One number for each class from what the sure sources (max p > gate) say of it, scaled to sum 1.

    'sum', 'max', 'min', 'mean', 'median' of their probabilities, or 'mode': the class that most of them claim, one-hot (the
    lower of two). Where nobody is sure all are heard, and the example weighs 0; else 1. Quality: weight times the largest
    number before scaling ('mode': the votes for that class).
    """
    sure = members & (jnp.max(P, -1) > gate)
    heard = jnp.where(jnp.any(sure), sure, members)
    of = jnp.where(heard[:, None], P, jnp.nan)
    claims = jnp.where(heard[:, None], jax.nn.one_hot(jnp.argmax(P, -1), P.shape[-1], dtype=P.dtype), 0)
    value = {
        "sum": lambda: jnp.nansum(of, 0),
        "max": lambda: jnp.nanmax(of, 0),
        "min": lambda: jnp.nanmin(of, 0),
        "mean": lambda: jnp.nanmean(of, 0),
        "median": lambda: jnp.nanmedian(of, 0),
        "mode": lambda: jnp.sum(claims, 0),
    }[kind]()
    value = jnp.where(jnp.any(heard), value, jnp.ones_like(value)).astype(P.dtype)
    best = jnp.max(value)
    label = value / jnp.sum(value) if kind != "mode" else jax.nn.one_hot(jnp.argmax(value), P.shape[-1], dtype=P.dtype)
    weight = jnp.any(sure).astype(P.dtype)
    return Vote(label, weight, weight * best)


def by_name(kind: str) -> Callable[[Array, Array, Array], Vote]:
    """The vote called `kind`, one of `KINDS`: (P [K, C], members [K], gate) -> Vote of ONE example."""
    return {"soft": soft, "hard": hard}.get(kind) or partial(statistic, kind)


class Focus(NamedTuple):
    """Each source's focus from the qualities of M coalitions: contribution @ quality."""

    members: np.ndarray  # [M, K] bool; never the empty one, whose quality is 0
    contribution: np.ndarray  # [K, M]


def focus(kind: str, K: int, *, permutations: int = 0, seed: int = 0) -> Focus:
    """The coalitions of K sources that matter, and what each source adds to them.

    'shapley': the mean over all orders of Q(before and i) - Q(before), by all 2^K subsets up to `EXACT` sources and over
    `permutations` sampled orders beyond (0: `PERMUTATIONS`; more than 0: sampled whatever K is). 'leave_one_out': Q(all) -
    Q(all but i), as the paper defines it.
    """
    everybody = (1 << K) - 1
    share: dict[tuple[int, int], float] = {}  # (source, coalition as bits) -> its coefficient

    def adds(i: int, before: int, amount: float) -> None:
        for coalition, sign in ((before | 1 << i, 1), (before, -1)):
            share[i, coalition] = share.get((i, coalition), 0.0) + sign * amount

    if kind == "leave_one_out":
        for i in range(K):
            adds(i, everybody & ~(1 << i), 1.0)
    elif K <= EXACT and not permutations:
        for i, before in itertools.product(range(K), range(1 << K)):
            if not before >> i & 1:
                size = before.bit_count()
                adds(i, before, 1 / (K * math.comb(K - 1, size)))
    else:
        number, rng = permutations or PERMUTATIONS, np.random.default_rng([seed, 4])
        for _ in range(number):
            before = 0
            for i in map(int, rng.permutation(K)):
                adds(i, before, 1 / number)
                before |= 1 << i
    coalitions = sorted({coalition for _, coalition in share} - {0})
    column = {coalition: m for m, coalition in enumerate(coalitions)}
    contribution = np.zeros((K, len(coalitions)))
    for (i, coalition), amount in share.items():
        if coalition:
            contribution[i, column[coalition]] = amount
    members = np.array([[coalition >> i & 1 for i in range(K)] for coalition in coalitions], bool)
    return Focus(members, contribution)


def contributions(
    kind: str,
    focus: Focus,
    P: Float[Array, "B K C"],
    mask: Bool[Array, " B"],
    gate: Float[Array, ""],
) -> Float[Array, " K"]:
    """Each source's focus on a batch, from the coalitions' qualities summed over its real rows."""
    ask = jax.vmap(by_name(kind), (0, None, None))

    def quality(members: Array) -> Array:
        return jnp.sum(jnp.where(mask, ask(P, members, gate).quality, 0))

    # some coalitions at a time: memory stays small with 2^12 of them and hundreds of classes
    q = jax.lax.map(quality, jnp.asarray(focus.members), batch_size=min(32, len(focus.members)))
    return jnp.asarray(focus.contribution, P.dtype) @ q


def _mean(P: Array, heard: Array) -> Array:
    number = jnp.sum(heard.astype(P.dtype))
    return jnp.sum(jnp.where(heard[:, None], P, 0), 0) / jnp.maximum(number, 1)
