"""Data sharing: the loop of `reference.data_sharing`, and its options' errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from reference import data_sharing as oracle
from reference.sgd import SGD

from fedjax_pfl import algorithms, local
from fedjax_pfl.errors import UserError

PUBLIC, ALPHA = 5, 0.6  # 4 of its 8 examples
ROUNDS = (
    ((0, 1, 2, 3, 4, 5, 6), ()),
    ((toy.PAD, 1, 5, 0, toy.PAD, 3, toy.PAD), ()),
    ((5, 4, 1, 0, 2, toy.PAD, toy.PAD), (4,)),
    ((0, 1, 2, toy.PAD, 3, 4, 6), ()),  # nobody has G
    ((1, 2, 5, toy.PAD, 3, 6, 0), (5,)),  # its upload is lost, its examples aren't
)
PARTICIPANTS = [[(k, k not in lost) for k in ids if k < toy.N] for ids, lost in ROUNDS]


def part(k):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2**31 - 5), k)
    return np.asarray(local.permutation(key, jnp.int32(toy.COUNTS[PUBLIC]), max(toy.COUNTS)))[:4]


@functools.partial(jax.jit, static_argnums=4)
def _order(round, exchange, id, count, epoch):
    key = jax.random.fold_in(jax.random.key(toy.KEY), round)
    key = jax.random.fold_in(jax.random.fold_in(key, exchange), id)
    return local.permutation(jax.random.fold_in(jax.random.fold_in(key, epoch), 0), count, 2 * sum(toy.COUNTS))


def orders(round, exchange, id, count):
    return [np.asarray(_order(round, exchange, id, count, e))[:count] for e in range(2)]


@pytest.mark.parametrize("weighting", ["examples", pytest.param("uniform", marks=pytest.mark.slow)])
def test_equals_the_plain_loop(weighting):
    options = {"public": f"c{PUBLIC}", "alpha": ALPHA, "warmup_rounds": 2, "weighting": weighting}
    algorithm = algorithms.build("data_sharing", toy.training(), options)
    loop = oracle.data_sharing(
        toy.flat(toy.variables()), toy.rows(), PARTICIPANTS, orders, lambda t: SGD(toy.rate(t), **toy.SOLVER), PUBLIC,
        part, 2, toy.BATCH, weighting,
    )  # fmt: skip
    states = toy.play(algorithm, algorithm.init(toy.variables(), toy.N), ROUNDS)
    for state, expected in zip(states, loop, strict=True):
        actual = toy.flat(jax.device_get(state).server.variables)
        for name, value in expected.server.items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_an_unknown_client_is_one_line():
    with pytest.raises(UserError, match=r"^config\.data_sharing\.public: unknown name 'c55' \(did you mean 'c5'\?\)$"):
        algorithms.build("data_sharing", toy.training(), {"public": "c55"})
