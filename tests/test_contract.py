"""The laws that every method of the registry obeys (DESIGN.md, section 4); a new entry is tested without another line."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_pfl import algorithms, core, local, store, together, tree
from fedjax_pfl.checkpoint import Checkpoints, Progress
from fedjax_pfl.core import Algorithm, State

# Options without which a method's interesting part would not happen within the few rounds played here.
OPTIONS: dict[str, dict[str, Any]] = {
    "finetune": {"start": 2},
    "fedrep": {"head_epochs": 2},
    "lg_fedavg": {"start": 1},
    "apfl": {"alpha_decay": 0.1, "mix_with": "own"},
    "pfedme": {"inner_steps": 2, "beta": 1.5},
    "pfedhn": {"hidden": 7, "server_lr": 0.1, "start": "model"},
    "fedlgt": {"epsilon": 0.2},
    "prrfl": {"start": 1},
    "fedproto": {"inference": "prototype"},
    "crt": {"start": 2},
    "fedhealth": {"cloud_rounds": 1, "tuned_layers": 2, "eta": 2.0},
    "fednova": {"mu": 0.2, "server_momentum": 0.5},
    "feddyn": {"alpha": 0.3, "fidelity": "reference"},
    "moon": {"mu": 3.0, "newcomers": "random"},
    "fedir": {"momentum": 0.5},
    "fedvc": {"n_vc": 6, "importance": True},
    "mimelite": {"base": "adam"},
    "faug": {"seeds": 2, "gan_steps": 3, "gan_batch_size": 5},
    "fedmd": {"alignment": 5, "pretrain_epochs": 2, "private_epochs": 1, "digest_batch_size": 3},
    "kd3a": {"fidelity": "reference", "target": "c3", "det": True, "sub_epochs": 2},
}

ROUNDS = toy.ROUNDS[:4]


class Play(NamedTuple):
    """A method's first rounds."""

    algorithm: Algorithm
    round: Any  # jitted; it donates the state
    states: list[State]  # on the host: the initial one, and after each round of ROUNDS


def build(name: str, how: core.How = "map") -> Algorithm:
    return algorithms.build(name, toy.training(how=how), OPTIONS.get(name))


def on_device(state: State) -> State:
    """A copy, which may be donated."""
    return jax.tree.map(jnp.array, state)


@functools.cache
def played(name: str) -> Play:
    algorithm = build(name)
    round = toy.jit(algorithm.round, donate_argnums=0)
    state = algorithm.init(toy.variables(), toy.N)
    states = [jax.device_get(state)]
    for ids, lost in ROUNDS:
        state, _ = round(state, toy.cohort(ids, lost), jax.random.key(toy.KEY))
        states.append(jax.device_get(state))
    return Play(algorithm, round, states)


# One of each kind; the others' laws run with the slow tests.
QUICK = {
    "local",
    "fedavg",
    "scaffold",
    "fedadam",
    "fednova",
    "fedbn",
    "ditto",
    "apfl",
    "fml",
    "fedproto",
    "prrfl",
    "kd3a",
}


# of the module, so that a method's tests stand together and its round is compiled once
@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in algorithms.METHODS],
)
def name(request) -> str:
    return request.param


@pytest.fixture
def play(name) -> Play:
    return played(name)


def close(a: Any, b: Any, tolerance: float) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def identical(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def again(play: Play, r: int, **changes: Any) -> State:
    """Round r of ROUNDS once more, with a changed cohort."""
    ids, lost = ROUNDS[r]
    cohort = toy.cohort(**{"ids": ids, "lost": lost, **changes})
    return play.round(on_device(play.states[r]), cohort, jax.random.key(toy.KEY))[0]


def test_one_trace(name):
    """Law 1: the second and third round, with other clients, don't recompile."""
    algorithm, round, _ = played(name)
    before = round._cache_size()
    state = algorithm.init(toy.variables(), toy.N)
    for ids, lost in ROUNDS[:3]:
        state, _ = round(state, toy.cohort(ids, lost), jax.random.key(toy.KEY))
    assert round._cache_size() == before


def test_order_of_clients(play):
    """Law 2: keys come from the client's id, so only the order of the sums differs."""
    for r, (ids, _) in enumerate(ROUNDS):
        close(again(play, r, ids=ids[::-1]), play.states[r + 1], 1e-11)


def test_padding_and_all_clients_at_once(name, play):
    """Laws 3 and 6: more rows in the cohort, and more rows in each client, all of them padding, change nothing.

    The clients run under vmap here and one after the other there, so that the two laws take one compilation.
    """
    round = toy.jit(build(name, "vmap").round)
    for r, (ids, lost) in enumerate(ROUNDS):
        cohort = toy.cohort((toy.PAD, *ids, toy.PAD), lost, n_max=19)
        state, _ = round(on_device(play.states[r]), cohort, jax.random.key(toy.KEY))
        close(state, play.states[r + 1], 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("how", [2, 3, core.Lanes(2)], ids=str)
def test_chunks_of_clients(name, play, how):
    """Law 6: in chunks of any size, whether or not it divides the cohort of 4. (One method in test_core.py.)"""
    algorithm = build(name, how)
    states = toy.play(algorithm, algorithm.init(toy.variables(), toy.N), ROUNDS)
    for state, expected in zip(states, play.states[1:], strict=True):
        close(state, expected, 1e-9)


@pytest.mark.slow
def test_over_devices(name, play):
    """Law 6: with the clients dealt out to four devices. (One method in test_core.py.)"""
    over = core.Sharded(toy.devices(), "map")
    round = toy.jit(build(name, over).round)
    for r, (ids, lost) in enumerate(ROUNDS[:2]):
        state, _ = round(
            core.everywhere(on_device(play.states[r]), over), toy.cohort(ids, lost), jax.random.key(toy.KEY)
        )
        close(jax.device_get(state), play.states[r + 1], 1e-9)


@pytest.mark.slow
def test_runs_as_one_program(name):
    """Two runs with seeds, learning rates and numbers of each class of their own, in different cohorts, side by side."""
    own = [
        {"seed": 0, "lr": local.schedule("step", 0.1, rounds=4, every=2, factor=0.5), "counts": (9, 30, 20)},
        {"seed": 3, "lr": local.schedule("step", 0.07, rounds=4, every=2, factor=0.5), "counts": (25, 11, 23)},
    ]
    runs = [algorithms.build(name, toy.training(**each), OPTIONS.get(name)) for each in own]
    starts = [each.init(toy.variables(), toy.N) for each in runs]
    cohorts = [[toy.cohort(ids, lost) for ids, lost in some] for some in (ROUNDS[:2], ROUNDS[1:3])]
    keys = [jax.random.key(toy.KEY + run) for run in range(2)]
    expected = []
    for run, state, mine, key in zip(runs, starts, cohorts, keys, strict=True):
        round = toy.jit(run.round)
        for cohort in mine:
            state, _ = round(state, cohort, key)
        expected.append(jax.device_get(state))
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    round, states = together.jit_rounds(runs), stack(*starts)
    for some in zip(*cohorts, strict=True):
        states, _ = round(states, stack(*some), stack(*keys))
    for i, one in enumerate(expected):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], jax.device_get(states)), one, 1e-9)


def test_states_in_a_store(name, play):
    """A round that gets the states of its cohort alone gives the same, and everybody else's stays as it was."""
    n, round = toy.N, toy.jit(build(name).round)
    state = store.init(build(name), toy.variables(), n, None)
    clients = state.clients
    if not isinstance(clients, store.Store):
        assert not jax.tree.leaves(play.states[0].clients)
        return
    for r, (ids, lost) in enumerate(ROUNDS):
        rows = jnp.array([core.NOWHERE if id == toy.PAD else k for k, id in enumerate(ids)], jnp.int32)
        state = state._replace(clients=clients.take(np.array(ids)))
        state, _ = round(state, toy.cohort(ids, lost)._replace(rows=rows), jax.random.key(toy.KEY))
        clients.put(np.array(ids), state.clients)
        everybody = state._replace(clients=clients.take(np.arange(n)))
        close(jax.device_get(everybody), play.states[r + 1], 1e-12)


def test_clients_that_do_not_take_part(play):
    """Law 4: they keep their state bit for bit, and so does a client whose row was read for a padding row."""
    for (ids, _), before, after in zip(ROUNDS, play.states[:-1], play.states[1:], strict=True):
        for k in set(range(toy.N)) - set(ids):
            identical(toy.row(before.clients, k), toy.row(after.clients, k))


def test_every_client_has_a_model(play):
    """Law 5: before the first round and after each, whether the client ever took part or not."""
    for state in play.states:
        models = toy.models(play.algorithm, state)
        if play.algorithm.global_model is not None:
            models.append(play.algorithm.global_model(state.server))
        for model in models:
            assert jax.tree.map(jnp.shape, model) == jax.tree.map(jnp.shape, toy.variables())
            assert tree.all_finite(model)


def test_save_and_restore(play, tmp_path):
    """Law 7: what is saved comes back bit for bit, and the round that follows is the same bit for bit."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(on_device(play.states[2]), Progress(2))
    checkpoints.wait()
    restored, _ = checkpoints.restore(2, play.algorithm.init(toy.variables(), toy.N))
    checkpoints.close()
    restored = jax.device_get(restored)
    identical(restored, play.states[2])
    ids, lost = ROUNDS[2]
    after, _ = play.round(on_device(restored), toy.cohort(ids, lost), jax.random.key(toy.KEY))
    identical(after, play.states[3])


def test_types(name):
    """Law 8: float32 stays float32 although float64 is enabled; shapes stay too, and no type is weak."""
    algorithm = build(name)
    state = algorithm.init(toy.variables(dtype=np.float32), toy.N)
    cohort = toy.cohort(ROUNDS[0][0], dtype=np.float32)
    after, report = jax.eval_shape(algorithm.round, state, cohort, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert not x.weak_type
        assert not y.weak_type
    assert np.float64 not in {leaf.dtype for leaf in jax.tree.leaves((after, report))}
    model = jax.eval_shape(algorithm.client_model, state.server, toy.row(state.clients, 0), jnp.int32(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype(np.float32)}


def test_donation(play):
    """A round may take the state's memory: every array of it can be given up, none twice."""
    state = on_device(play.states[1])
    play.round(state, toy.cohort(ROUNDS[1][0]), jax.random.key(toy.KEY))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_all_uploads_lost(play, name):
    """The server stays bit for bit; the round counts; the clients trained all the same."""
    ids, _ = ROUNDS[1]
    before, after = play.states[1], again(play, 1, lost=ids)
    identical(after.server, before.server)
    assert after.round == before.round + 1
    if name != "fedhealth":  # whose users take over in a round what the server has just made
        identical(after.clients, play.states[2].clients)
