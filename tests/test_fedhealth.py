"""FedHealth: the loop of `reference.fedhealth`, the CORAL loss, its limits and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from reference import fedhealth as oracle
from reference.sgd import SGD

from fedjax_pfl import algorithms, local
from fedjax_pfl.algorithms.transfer import fedhealth
from fedjax_pfl.errors import UserError

PUBLIC = 5
# The public data in every round but one (and once lost); PAD stands anywhere.
ROUNDS = (
    ((0, 1, 2, 3, 4, 5, 6), ()),
    ((toy.PAD, 1, 5, 0, toy.PAD, 3, toy.PAD), ()),
    ((5, 4, 1, 0, 2, toy.PAD, toy.PAD), (4,)),
    ((1, 2, 5, toy.PAD, 3, 6, 0), (5,)),
    ((0, 1, 2, toy.PAD, 3, 4, 6), ()),
)
PARTICIPANTS = [[(k, k not in lost) for k in ids if k < toy.N] for ids, lost in ROUNDS]


@functools.partial(jax.jit, static_argnums=4)
def _order(round, id, exchange, count, epoch):
    key = jax.random.fold_in(jax.random.key(toy.KEY), round)
    key = jax.random.fold_in(jax.random.fold_in(key, exchange), id)
    return local.permutation(jax.random.fold_in(jax.random.fold_in(key, epoch), 0), count, 2 * sum(toy.COUNTS))


def batches(round, id, exchange):
    count = toy.COUNTS[id]
    orders = [np.asarray(_order(round, id, exchange, count, e))[:count] for e in range(2)]
    return [[order[i : i + toy.BATCH] for i in range(0, count, toy.BATCH)] for order in orders]


def build(options, **training):
    return algorithms.build("fedhealth", toy.training(**training), {"public": f"c{PUBLIC}", **options})


@pytest.mark.parametrize("tuned", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_equals_the_plain_loop(tuned):
    options = {"cloud_rounds": 2, "eta": 3.0, "tuned_layers": tuned}
    loop = oracle.fedhealth(
        toy.flat(toy.variables()), toy.rows(), PARTICIPANTS, batches, lambda t: SGD(toy.rate(t), **toy.SOLVER), PUBLIC,
        2, 3.0, oracle.TUNED[tuned],
    )  # fmt: skip
    algorithm = build(options)
    states = toy.play(algorithm, algorithm.init(toy.variables(), toy.N), ROUNDS)
    for state, expected in zip(states, loop, strict=True):
        state = jax.device_get(state)
        np.testing.assert_allclose(state.server.covariance, expected.server.pop("covariance"), rtol=1e-9, atol=1e-12)
        close(toy.flat(state.server.variables), expected.server)
        for model, wanted in zip(toy.models(algorithm, state), expected.models, strict=True):
            wanted.pop("covariance", None)
            close(toy.flat(model), wanted)


def close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-8, atol=1e-11, err_msg=name)


def test_coral():
    """METHODS.md 5.11: the loss, and its gradient by the features of either side; padding rows change nothing."""
    rng = np.random.default_rng(0)
    X_S, X_T = rng.normal(size=(6, 3)), rng.normal(size=(5, 3))
    C_S, C_T = (np.cov(X, rowvar=False) for X in (X_S, X_T))
    padded = jnp.asarray(np.vstack([X_T, np.full((2, 3), 99.0)]))
    mask = jnp.arange(7) < 5

    def loss(X_S, X_T):
        return fedhealth.coral(fedhealth.covariance(X_S, jnp.ones(6, bool)), fedhealth.covariance(X_T, mask))

    np.testing.assert_allclose(loss(jnp.asarray(X_S), padded), ((C_S - C_T) ** 2).sum() / (4 * 9), rtol=1e-12)
    d_S, d_T = jax.grad(loss, (0, 1))(jnp.asarray(X_S), padded)
    np.testing.assert_allclose(d_S, (X_S - X_S.mean(0)) @ (C_S - C_T) / (9 * 5), rtol=1e-9)
    np.testing.assert_allclose(d_T[:5], -(X_T - X_T.mean(0)) @ (C_S - C_T) / (9 * 4), rtol=1e-9)
    np.testing.assert_array_equal(d_T[5:], 0)
    one = fedhealth.covariance(padded, jnp.arange(7) < 1)
    np.testing.assert_array_equal(one, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"public": "c55"}, "config.fedhealth.public: unknown name 'c55' (did you mean 'c5'?)"),
        ({"tuned_layers": 4}, "config.fedhealth.tuned_layers: found 4, expected 1 to 3, as the model has the layers"),
    ],
)
def test_a_wrong_option_is_one_line(options, message):
    with pytest.raises(UserError) as caught:
        build(options)
    assert str(caught.value).startswith(message)
