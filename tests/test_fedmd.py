"""FedMD: equal to its plain NumPy loop, and the draw of its alignment sets."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from reference import fedmd
from test_equivalence import check, close, model, participants, solver

from configs import fedmd_digits
from fedjax_pfl import algorithms, cohort, core, experiment, local, traffic, train
from fedjax_pfl import config as configuration
from fedjax_pfl.algorithms.personal.fedmd import stratified
from fedjax_pfl.errors import UserError

PUBLIC, M, BATCH = 0, 5, 3  # client 0 isn't there in two of the five rounds
OPTIONS = {"public": "c0", "alignment": M, "pretrain_epochs": 2, "private_epochs": 3, "digest_epochs": 2}
PARTS = {"pretrain": (0, 3, 0, 2, BATCH), "private": (0, 3, 1, 3, toy.BATCH), "digest": (1, 2, 0, 2, BATCH)}


def orders(key: Any, count: int, epochs: int, size: int) -> list[list[np.ndarray]]:
    found = []
    for e in range(epochs):
        key_e = jax.random.fold_in(jax.random.fold_in(key, e), 0)
        order = np.asarray(local.permutation(key_e, np.int32(count), sum(toy.COUNTS)))[:count]
        found.append([order[i : i + size] for i in range(0, count, size)])
    return found


@functools.cache
def epochs(t: int, k: int, part: str, count: int) -> list[list[np.ndarray]]:
    """By the keys that core.compose, core.run and the method take: the exchange, the parts of a key and which of them."""
    exchange, split, which, number, size = PARTS[part]
    key = jax.random.key(toy.KEY)
    for value in (t, exchange, k):
        key = jax.random.fold_in(key, value)
    return orders(jax.random.split(key, split)[which], count, number, size)


@functools.cache
def revisit(t: int, k: int) -> list[list[np.ndarray]]:
    key = jax.random.key(toy.KEY)
    for value in (t, 1, k):
        key = jax.random.fold_in(key, value)
    return orders(jax.random.split(key, 2)[1], toy.COUNTS[k], 2, toy.BATCH)


@functools.cache
def alignment(t: int, m: int = M) -> np.ndarray:
    """The rows of A in round t, of the public client's padded examples."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2**31 - 11), t)
    data = toy.cohort((PUBLIC,)).data
    rows = stratified(key, toy.row(data, 0), toy.CLASSES)
    return np.asarray(rows)[: min(m, toy.COUNTS[PUBLIC])]


@pytest.mark.parametrize("m", [M, pytest.param(13, marks=pytest.mark.slow)], ids=["few", "more than there are"])
def test_fedmd(m):
    options = {**OPTIONS, "alignment": m, "digest_batch_size": BATCH}
    oracle = functools.partial(
        fedmd.fedmd, public=PUBLIC, alignment=functools.partial(alignment, m=m), m=m, epochs=epochs
    )

    def server(held: Any) -> dict[str, np.ndarray]:
        return {"Z": np.asarray(held.Z), "of": np.asarray(held.of)}

    check("fedmd", options, oracle, server, model, batches=revisit)


def test_the_alignment_set_has_the_classes_in_proportion():
    """Of any size; another key, another set; padding last."""
    y = np.repeat([0, 1, 2], [40, 20, 20])
    data = toy.row(toy.cohort((0,)).data, 0)._replace(
        count=jnp.int32(80), y=jnp.asarray(np.concatenate([y, np.zeros(10)]), jnp.int32)
    )
    drawn = [np.asarray(stratified(jax.random.key(seed), data, 3)) for seed in (0, 1)]
    for order in drawn:
        assert sorted(order) == list(range(90))
        assert set(order[80:]) == set(range(80, 90))
        for m in (4, 20, 52):
            np.testing.assert_array_equal(np.bincount(y[order[:m]], minlength=3), [m // 2, m // 4, m // 4])
    assert set(drawn[0][:20]) != set(drawn[1][:20])


def test_when_no_upload_arrives_nobody_digests_an_old_consensus():
    """The server keeps that of an earlier round, whose alignment set was another."""
    options = {**OPTIONS, "digest_batch_size": BATCH}
    algorithm = algorithms.build("fedmd", toy.training(), options)
    without = algorithms.build("fedmd", toy.training(), {**options, "digest_epochs": 0})
    round, alone = toy.jit(algorithm.round), toy.jit(without.round)
    key = jax.random.key(toy.KEY)
    first, _ = round(algorithm.init(toy.variables(), toy.N), toy.cohort((0, 1)), key)
    lost, _ = round(first, toy.cohort((0, 1), lost=(0, 1)), key)
    expected, _ = alone(first, toy.cohort((0, 1)), key)
    for a, b in zip(jax.tree.leaves(lost.clients), jax.tree.leaves(expected.clients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_fedmd_with_two_architectures():
    """With and without batch norm: each equals the loop of its own network, and all agree on the same logits."""
    members = ((0, 2, 4, 6), (1, 3, 5))
    groups = [
        toy.training(toy.Net(batch_norm=norm))._replace(members=some)
        for norm, some in zip((True, False), members, strict=True)
    ]
    algorithm = algorithms.build(
        "fedmd", toy.training()._replace(groups=tuple(groups)), {**OPTIONS, "digest_batch_size": BATCH}
    )
    first = (
        toy.variables(),
        toy.variables(),
        toy.variables(batch_norm=False),
    )  # the server's, which this method has not
    models = [toy.flat(first[1 + (k in members[1])]) for k in range(toy.N)]
    oracle = fedmd.fedmd(toy.flat(first[0]), toy.rows(), participants(), revisit, solver, public=PUBLIC,
                         alignment=alignment, m=M, epochs=epochs, models=models)  # fmt: skip
    states = list(toy.play(algorithm, algorithm.init(first, toy.N)))
    for state, want in zip(map(jax.device_get, states), oracle, strict=True):
        close({"Z": state.server.Z}, {"Z": want.server["Z"]}, "consensus")
        for group, some in zip(state.clients, members, strict=True):
            for row, k in enumerate(some):
                client = toy.row(group, row)
                close(model(client), want.clients[k], f"client {k}")
                close(
                    toy.flat(algorithm.client_model(state.server, client, jnp.int32(k))), want.clients[k], f"client {k}"
                )
    # more padding, all at once, and the clients in another order
    together = algorithms.build(
        "fedmd",
        toy.training(how="vmap")._replace(groups=tuple(groups)),
        {**OPTIONS, "digest_batch_size": BATCH},
    )
    some = toy.cohort((toy.PAD, 4, 3, 5, 2, toy.PAD), n_max=19)
    other, report = toy.jit(together.round)(states[0], some, jax.random.key(toy.KEY))
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    trained = dict(zip(map(int, report.ids), map(int, report.train.steps), strict=False))
    assert {id for id, steps in trained.items() if steps} == {2, 3, 4, 5}
    assert traffic.of(algorithm, states[0], some) == pytest.approx((M * toy.CLASSES * 8 + 4, M * toy.CLASSES * 8))


@pytest.mark.slow
def test_a_run_with_two_architectures(tmp_path):
    """Each hospital's scores are those of its own model; a run can be gone on with."""
    config = fedmd_digits.get_config()
    config.rounds = 3
    config.split.max_examples = 240
    config.client.optimizer = "sgd"
    config.model.per_client = ("mlp", "cnn_niid", "mlp(hidden=(5,), norm='batch')")  # the fourth gets an mlp as well
    config.fedmd.pretrain_epochs = config.fedmd.private_epochs = 1
    config.plots = config.tensorboard = False
    train.run(config, tmp_path / "b", stop_at=1, quiet=True)
    summaries = [train.run(config, tmp_path / name, quiet=True) for name in "ab"]
    assert summaries[0]["last"] == summaries[1]["last"]
    assert summaries[0]["model"] == "mlp+cnn_niid+mlp(hidden=(5,), norm='batch')"
    assert not any("/tuned/" in key for key in summaries[0]["last"])

    setup = experiment.prepare(config)
    some = cohort.assemble(setup.rows, *setup.sampler(0))
    state, everybody = core.jit_round(setup.algorithm)(setup.init(), some, setup.key)[0], np.arange(4)
    found = list(setup.evaluator.scores(setup.candidates["personal"], state, "test", everybody))
    assert [scores.id for scores in found] == [0, 1, 2, 3]
    groups = configuration.build_groups(config, setup.federation, 4)
    assert [each.members for _, each in groups] == [(0, 3), (1,), (2,)]
    for (problem, each), clients in zip(groups, state.clients, strict=True):
        for row, id in enumerate(each.members):
            x = setup.federation.x[setup.federation.test[id]]
            logits = problem.predict(toy.row(clients, row).variables, x, jnp.float32(0), jax.random.key(0))
            np.testing.assert_allclose(found[id].logits, logits, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "fedavg"},
            r"per_client: found models, but all clients of 'fedavg' have that of config\.model\.name",
        ),
        (
            {"model.per_client": ("mlp(hiden=(5,))",)},
            r"per_client: 'mlp' has no option 'hiden' \(did you mean 'hidden'",
        ),
        (
            {"model.per_client": ("mlp(",)},
            r"per_client: found 'mlp\(', expected a model's name, or name\(option=value, ",
        ),
        ({"model.per_client": ("mlp(5)",)}, r"per_client: found 'mlp\(5\)', expected a model's name"),
        (
            {"model.per_client": ("mlp(hidden=5)",)},
            r"per_client: 'mlp', hidden: found 5, expected a value of type tuple",
        ),
        ({"model.per_client": ("mlp", "cnn_nid")}, r"per_client: unknown name 'cnn_nid' \(did you mean 'cnn_niid'"),
        ({"eval.held_out": 1}, r"eval\.held_out: found 1, expected 0 with config\.model\.per_client"),
        ({"client.batch_norm": "local"}, r"client\.batch_norm: found 'local', expected 'aggregate' with"),
        ({"model.per_client": ("mlp", "cnn_niid", "mlp", "mlp", "mlp")}, r"found 5 models for 4 clients"),
    ],
)
def test_what_several_architectures_refuse(changes, message):
    config = fedmd_digits.get_config()
    config.model.per_client = ("mlp", "cnn_niid")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=r"^config\..*" + message.removeprefix("config.")):
        experiment.prepare(config)


def test_what_fedmd_refuses():
    with pytest.raises(UserError, match=r"^config\.fedmd\.public: unknown name 'c9'"):
        algorithms.build("fedmd", toy.training(), {"public": "c9"})
