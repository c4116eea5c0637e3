"""One round, seen with clients and servers of single numbers: keys, mapping, aggregation, several exchanges, kept parts."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_pfl import aggregate, algorithms, cohort, core, traffic
from fedjax_pfl.core import Exchange, Metrics, Model, compose

METRICS = Metrics(jnp.float64(1.0), jnp.int32(1), jnp.int32(1), jnp.float64(1.0))


@pytest.mark.parametrize("how", ["auto", "map", "vmap", 1, 2, 3, "2", 7])
def test_client_map(how):
    """Written for one client; any chunk size, whether or not it divides the number of clients."""
    x, y = {"a": jnp.arange(5.0)}, jnp.arange(10.0).reshape(5, 2)
    out, total = core.client_map(lambda x, y: ({"b": 2 * x["a"]}, jnp.sum(y)), how)(x, y)
    assert out["b"].tolist() == [0, 2, 4, 6, 8]
    assert total.tolist() == [1, 5, 9, 13, 17]


@pytest.mark.parametrize("how", ["map", "vmap", 2])
def test_clients_dealt_out_to_devices(how):
    """Five clients on four devices, with what all get; and a map within the map, which stays on its device."""
    over = core.Sharded(toy.devices(), how)

    def one(a, x):
        inner = core.client_map(lambda b, y: b * y, over, (2.0,))
        return a * x + jnp.sum(inner(jnp.stack([x, x])))

    @jax.jit
    def program(a, x):
        return core.client_map(one, over, (a,))(x)

    found = program(jnp.float64(3), jnp.arange(5.0))
    assert found.tolist() == [7.0 * k for k in range(5)]
    assert len(program.lower(jnp.float64(3), jnp.arange(5.0)).compile().input_shardings[0][0].device_set) == 4


def test_chunks_of_clients():
    """A method with state on both sides, in chunks of 3: a cohort of 4 leaves one over, which is a chunk of its own.

    And in two lanes, on one device and on two. The sampler reads the client's labels.
    """
    training = partial(toy.training, solver=toy.PLAIN, epochs=2, sampler="class_balanced")
    results = []
    for how in ("map", 3, core.Lanes(2), core.Sharded(toy.devices(2), core.Lanes(1))):
        algorithm = algorithms.build("scaffold", training(how=how))
        results.append(list(toy.play(algorithm, algorithm.init(toy.variables(), toy.N), toy.ROUNDS[:3]))[-1])
    for result in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), results[0], result)


def test_steps_that_lanes_execute():
    """Five clients; on two devices three and two of them."""
    steps, two = np.array([5, 3, 1, 1, 1]), toy.devices(2)
    for how, expected in (("map", 11), ("vmap", 25), ("2", 2 * (5 + 1 + 1)), (5, 25), ("auto", 11)):
        assert cohort.executed(steps, how) == expected
    for how, expected in (("map", 11), ("vmap", 3 * 5 + 2 * 1), ("2", 2 * (5 + 1) + 2 * 1)):
        assert cohort.executed(steps, core.Sharded(two, how)) == expected
    # Two lanes: 5 beside 3 + 1 + 1, then the last 1. More lanes than clients are as many as the clients.
    for number, expected in ((1, 11), (2, 2 * 6), (3, 3 * 5), (9, 5 * 5)):
        assert cohort.executed(steps, core.Lanes(number)) == expected
    assert cohort.executed(steps, core.Sharded(two, core.Lanes(2))) == 2 * 5 + 2 * 1
    assert cohort.executed(steps[:0], core.Lanes(2)) == 0
    assert cohort.executed(steps[:0], "vmap") == 0


class Number(NamedTuple):
    variables: Any  # {'params': {'a': {'w': ...}, 'b': {'w': ...}}}


def number(a, b):
    return {"params": {"a": {"w": jnp.float64(a)}, "b": {"w": jnp.float64(b)}}}


def bits(key):
    return jax.random.bits(key, dtype=jnp.uint32).astype(jnp.float64)


def counting(weighting="examples"):
    """A client uploads its id, and keeps its key's bits; the server becomes their weighted mean."""

    def local_update(download, client, data, round, key):
        return Number(number(data.id.astype(jnp.float64), 0)), bits(key), METRICS

    def server_update(server, uploads, cohort, round):
        return Number(aggregate.mean(uploads.variables, cohort, weighting))

    return Exchange(lambda server, id: server, local_update, server_update)


def build(*exchanges, **changes):
    arguments: dict[str, Any] = {
        "init_server": lambda variables, n: Number(variables),
        "init_client": lambda variables: jnp.float64(0),
        "how": "map",
    }
    return compose(*exchanges, **{**arguments, **changes})


def play(algorithm, ids=(2, 0, toy.PAD), lost=(), round=0, n=toy.N):
    state = algorithm.init(number(100, 200), n)._replace(round=jnp.int32(round))
    return toy.jit(algorithm.round)(state, toy.cohort(ids, lost), jax.random.key(5))


def test_weights():
    """By examples, uniform over the uploads that arrived, and the server as it was where none did."""
    by_examples, uniform = build(counting()), build(counting("uniform"))
    n = [toy.COUNTS[k] for k in range(3)]
    expected = (2 * n[2] + 0 * n[0] + 1 * n[1]) / sum(n)
    ids = (2, 0, toy.PAD, 1)
    assert play(by_examples, ids)[0].server.variables["params"]["a"]["w"] == pytest.approx(expected, rel=1e-14)
    assert play(uniform, ids)[0].server.variables["params"]["a"]["w"] == 1.0
    assert play(uniform, ids, lost=(0,))[0].server.variables["params"]["a"]["w"] == 1.5
    assert play(uniform, ids, lost=ids)[0].server.variables["params"]["a"]["w"] == 100


def test_keys():
    """fold_in(round), then exchange, then client: as documented, and so nobody's order or number matters."""
    algorithm = build(counting(), counting())
    state, _ = play(algorithm, round=4)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 4), 1)  # the second exchange came last
    expected = {k: bits(jax.random.fold_in(key, k)) for k in (2, 0)}
    assert state.clients.tolist() == [expected.get(k, 0) for k in range(toy.N)]
    assert state.round == 5


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_report(bad):
    """Of each client of the cohort; an upload that isn't finite is noticed, and so is the server that it spoils."""

    def local_update(download, client, data, round, key):
        value = jnp.where(data.id == 1, bad, 3.0)
        return Number(number(value, 0)), client, METRICS._replace(steps=data.count)

    algorithm = build(counting()._replace(local_update=local_update))
    _, report = play(algorithm, (2, 1, toy.PAD))
    assert report.ids.tolist() == [2, 1, toy.PAD]
    assert report.train.steps.tolist() == [toy.COUNTS[2], toy.COUNTS[1], 0]
    assert report.finite.tolist() == [True, False, True]
    assert not report.server_finite
    state, report = play(algorithm, (2, 1, toy.PAD), lost=(1,))
    assert report.finite.tolist() == [True, False, True]
    assert report.server_finite
    assert state.server.variables["params"]["a"]["w"] == 3


def test_download_by_id():
    """A server may hold a row per client."""
    exchange = counting()._replace(
        download=lambda server, id: jnp.take(server, id),
        local_update=lambda download, client, data, round, key: (download, client, METRICS),
        aggregate=lambda server, uploads, cohort, round: server.at[cohort.ids].set(2 * uploads, mode="drop"),
    )
    algorithm = build(exchange, init_server=lambda variables, n: jnp.arange(float(n)))
    state, _ = play(algorithm, (3, 1, toy.PAD))
    assert state.server.tolist() == [0, 2, 2, 6, 4, 5, 6]


def test_exchanges_follow_each_other():
    """The second sees what the first left, of the clients that it selects; the report is its own."""

    def add_own(download, client, data, round, key):
        before = download.variables["params"]["a"]["w"]
        return Number(number(before + data.id.astype(jnp.float64), 0)), client + 1, METRICS

    first_two = counting()._replace(
        local_update=add_own, select=lambda cohort: jax.tree.map(lambda leaf: leaf[:2], cohort)
    )
    state, report = play(build(counting("uniform"), first_two), (2, 4, 0))
    n = toy.COUNTS
    expected = 2 + (2 * n[2] + 4 * n[4]) / (n[2] + n[4])
    assert state.server.variables["params"]["a"]["w"] == pytest.approx(expected, rel=1e-14)
    assert report.ids.tolist() == [2, 4]


def test_kept_parts():
    """They come from the client and go back to it; neither the server nor another client sees them."""

    def local_update(download, client, data, round, key):
        params = download.variables["params"]
        return Number(number(params["a"]["w"] + 1, params["b"]["w"] + 10)), client, METRICS

    algorithm = build(
        counting()._replace(local_update=local_update),
        keep=lambda variables: lambda path: path[1] == "b",
        global_model=lambda server: server.variables,
    )
    assert algorithm.global_model is None
    state = algorithm.init(number(100, 200), toy.N)
    for ids in ((2, 0, toy.PAD), (2, 1, toy.PAD)):
        state, _ = toy.jit(algorithm.round)(state, toy.cohort(ids), jax.random.key(5))
    assert state.server.variables["params"]["a"]["w"] == pytest.approx(102, rel=1e-14)
    assert state.clients.part["params"]["b"]["w"].tolist() == [210, 210, 220, 200, 200, 200, 200]
    models = toy.models(algorithm, state)
    assert [model["params"]["b"]["w"] for model in models] == [210, 210, 220, 200, 200, 200, 200]
    assert [model["params"]["a"]["w"] for model in models] == [state.server.variables["params"]["a"]["w"]] * toy.N
    assert state.server.variables["params"]["b"]["w"] == pytest.approx(200, rel=1e-12)  # what it began with


def test_a_method_without_kept_parts_has_its_global_model():
    algorithm = build(counting(), global_model=lambda server: server.variables)
    assert algorithm.global_model is not None
    assert algorithm.global_model(Model(3)) == 3


PARAMS, STATISTICS, NORM, HEAD = 552, 96, 96, 168  # bytes in float64; NORM: scale and bias


@pytest.mark.parametrize(
    ("method", "down", "up"),
    [
        ("local", 0, 0),
        ("centralised", 0, 0),
        ("fedavg", PARAMS + STATISTICS, PARAMS + STATISTICS),
        ("fedavgm", PARAMS + STATISTICS, PARAMS + STATISTICS),  # momentum stays at the server
        ("scaffold", 2 * PARAMS + STATISTICS, 2 * PARAMS + STATISTICS),
        ("fedbn", PARAMS - NORM, PARAMS - NORM),
        ("silobn", PARAMS, PARAMS),
        ("fedper", PARAMS + STATISTICS - HEAD, PARAMS + STATISTICS - HEAD),
        ("ifca", 2 * (PARAMS + STATISTICS), PARAMS + STATISTICS + 4),  # two models, and the number of the chosen one
        ("fd", 3 * 3 * 8 + 3, 3 * 3 * 8 + 3),  # a table, and which rows of it there are
        ("data_sharing", PARAMS + STATISTICS, PARAMS + STATISTICS),  # each client is in one of the two exchanges
        # three candidates, of whom two train
        ("power_of_choice", PARAMS + STATISTICS, 2 * (PARAMS + STATISTICS) / 3 + 8),
    ],
)
def test_traffic(method, down, up):
    """Bytes a client: padding rows, lost uploads and what a client keeps don't count or do, as they travel or don't."""
    algorithm = algorithms.build(method, toy.training())
    state = algorithm.init(toy.variables(), toy.N)
    ids = (0, 1, 3) if method == "power_of_choice" else (0, 1, 3, toy.PAD)
    assert traffic.of(algorithm, state, toy.cohort(ids, lost=(1,))) == pytest.approx((down, up))


def test_traffic_of_a_download_that_nobody_reads():
    def local_update(download, client, data, round, key):
        none = jnp.zeros((), jnp.int32)
        return Model(download.variables["a"] + 1), client, Metrics(jnp.zeros(()), none, none, jnp.zeros(()))

    exchange = Exchange(lambda server, id: server, local_update, lambda server, uploads, cohort, round: server)
    algorithm = compose(exchange, init_server=lambda variables, n: Model(variables))
    state = algorithm.init({"a": jnp.zeros(3), "b": jnp.zeros(100)}, toy.N)
    assert traffic.of(algorithm, state, toy.cohort((0, 1))) == (24, 24)
