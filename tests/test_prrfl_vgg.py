"""PRR-FL on a small VGG16 with batch norm: two whole rounds of v1 and v2 against the loop in PyTorch, all three stages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from reference import fourier as fourier_oracle
from reference import prrfl as oracle
from reference.sgd import SGD

from fedjax_pfl import algorithms, fourier, local, score
from fedjax_pfl.core import ClientData, Cohort
from fedjax_pfl.models import weights
from fedjax_pfl.models.vgg import VGG16Slim
from fedjax_pfl.problem import build

pytestmark = pytest.mark.parity

COUNTS, BATCH, EPOCHS, CLASSES, ROUNDS = (7, 6, 10), 4, 4, 3, 2
WIDTH = 2


def data(seed, counts):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n, 32, 32, 3)), rng.integers(0, CLASSES, n).astype(np.int32)) for n in counts]


def padded(rows):
    n_max = max(len(y) for _, y in rows)
    x, y = np.zeros((len(rows), n_max, 32, 32, 3)), np.zeros((len(rows), n_max), np.int32)
    for k, (x_k, y_k) in enumerate(rows):
        x[k, : len(y_k)], y[k, : len(y_k)] = x_k, y_k
    counts = jnp.asarray([len(y) for _, y in rows], jnp.int32)
    return ClientData(jnp.arange(len(rows)), counts, jnp.asarray(x), jnp.asarray(y), jnp.zeros(len(rows), jnp.float32))


def batches(round, id):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(toy.KEY), round), 0)
    orders = [
        local.permutation(
            jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, id), e), 0), jnp.int32(COUNTS[id]), 16
        )
        for e in range(EPOCHS)
    ]
    return [[np.asarray(o)[: COUNTS[id]][i : i + BATCH] for i in range(0, COUNTS[id], BATCH)] for o in orders]


def noise(round, e):
    key = jax.random.fold_in(jax.random.key(0), 2**31 - 1)
    key = jax.random.fold_in(jax.random.fold_in(key, jnp.int32(round)), e)
    return np.asarray(jax.random.normal(key, (CLASSES, 2 * WIDTH), jnp.float64))


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        pytest.param(
            {"components": "amplitude", "classwise": False, "cpa_weight": 0.0},
            {"pfa": fourier_oracle.Rules("amplitude", classwise=False), "cpa": False},
            id="v1",
        ),
        pytest.param({"start": 1}, {"start": 1}, id="v2"),
    ],
)
def test_two_rounds(options, rules):
    pytest.importorskip("torch")
    from reference.prrfl_vgg import Slim, load

    model = VGG16Slim(CLASSES, False, "batch", "auto", width=WIDTH)
    train, validation = data(0, COUNTS), data(1, (5, 4, 6))
    problem = build(model, train[0][0][0], "single", dtype=jnp.float64)
    network = problem.network
    counts = tuple(int(n) for n in np.bincount(np.concatenate([y for _, y in train]), minlength=CLASSES))
    training = toy.training(
        loss=problem.loss, network=network, label_mask=None, layers=model.layers, epochs=EPOCHS, counts=counts,
        rounds=ROUNDS, score=score.build(network, score.metric("single")),
    )  # fmt: skip
    variables = build(model, train[0][0][0], "single").init(jax.random.key(0))  # initial values come in float32
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
    # Every stage whatever the scores: 1, 2, 3, 3.
    algorithm = algorithms.build("prrfl", training, {"lambda1": 0.0, "lambda2": 0.0, **options})
    rules = oracle.Rules(
        **{"rates": tuple(fourier.rates(ROUNDS)), "counts": counts, "lambda1": 0, "lambda2": 0, **rules}
    )
    start = load(weights.from_variables(variables, model))
    loop = oracle.prrfl(
        Slim(CLASSES, 2 * WIDTH), start, train, validation, [[(k, True) for k in range(3)]] * ROUNDS, batches,
        lambda t: SGD(toy.rate(t), **toy.SOLVER), rules, noise,
    )  # fmt: skip
    rows = padded(train)._replace(validation=padded(validation))
    cohort = Cohort(rows.id, rows.count.astype(jnp.float32), rows)
    state, round = algorithm.init(variables, 3), toy.jit(algorithm.round)
    torch_names = functools.partial(weights.from_variables, model=model)
    for expected in loop:
        assert all(set(stages) == {1, 2, 3} for stages in expected.stages)
        state, _ = round(state, cohort, jax.random.key(toy.KEY))
        for k in range(3):
            host = jax.device_get(state)
            P = load(torch_names(toy.row(host.clients.client.P, k)))
            S = load(torch_names(toy.row(host.server.variables, k)))
            for actual, wanted in ((P, expected.round.models[k]), (S, expected.S[k])):
                assert actual.keys() == wanted.keys()
                for name, value in wanted.items():
                    scale = np.abs(value).max()
                    np.testing.assert_allclose(actual[name], value, rtol=0, atol=1e-7 * scale, err_msg=name)
