"""Methods that seek one better global model: each equals its plain NumPy loop, as in test_equivalence.py; and reductions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from reference import feddyn, fedir, fednova, mime, moon, power_of_choice, vhl
from reference.network import train_batch
from test_equivalence import check, model, nothing, prefixed, solver

from fedjax_pfl import algorithms, local, tree
from fedjax_pfl.algorithms.optimisation.fednova import norm_of_a
from fedjax_pfl.algorithms.optimisation.fedvc import draw
from fedjax_pfl.algorithms.optimisation.moon import contrastive
from fedjax_pfl.algorithms.optimisation.vhl import generator, supervised_contrastive
from fedjax_pfl.errors import UserError

ROUNDS = tuple((ids, ()) for ids, _ in toy.ROUNDS[:4])  # no upload is lost
EQUAL: dict[str, Any] = {"epochs": 3, "batch_size": sum(toy.COUNTS)}  # everybody makes three steps


@functools.cache
def _play(name: str, training: tuple[tuple[str, Any], ...], options: tuple[tuple[str, Any], ...]) -> list[Any]:
    algorithm = algorithms.build(name, toy.training(**dict(training)), dict(options))
    state = algorithm.init(toy.variables(), toy.N)
    return [jax.device_get(state) for state in toy.play(algorithm, state, ROUNDS)]


def play(name: str, training: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """The states after each of ROUNDS, on the host."""
    return _play(name, tuple((training or {}).items()), tuple(options.items()))


def servers(states: list[Any]) -> list[Any]:
    """The server's model after each round."""
    return [state.server.variables for state in states]


def close(a: Any, b: Any) -> None:
    """Equal trees, to rounding."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)


def differ(a: Any, b: Any) -> None:
    """The two models' classifiers are not the same."""
    assert not np.allclose(a["params"]["head"]["kernel"], b["params"]["head"]["kernel"])


def kept_parts(name: str, **options: Any) -> None:
    """The batch-norm policy reaches the method: what stays with the clients does, and the server's stays as it was."""
    first = toy.variables()
    for policy, parts in (("local", ("params", "batch_stats")), ("local-statistics", ("batch_stats",))):
        algorithm = algorithms.build(name, toy.training(batch_norm=policy), options)
        assert algorithm.global_model is None
        *_, last = toy.play(algorithm, algorithm.init(first, toy.N), ROUNDS)
        for collection in parts:
            assert "norm" in last.clients.part[collection]
            close(last.server.variables[collection]["norm"], first[collection]["norm"])
            for kept, begun in zip(
                jax.tree.leaves(last.clients.part[collection]["norm"]),
                jax.tree.leaves(first[collection]["norm"]),
                strict=True,
            ):
                assert not np.any(np.isclose(kept[0], begun))


# -- FedNova ------------------------------------------------------------------------------------------------------------


def with_b(server: Any) -> dict[str, np.ndarray]:
    return model(server) | prefixed("b", toy.flat({"params": server.b}))


def test_fednova():
    """Momentum, proximal term and server momentum, by the definition of ||a||_1."""
    oracle = functools.partial(fednova.fednova, mu=0.3, gamma=0.6)
    check("fednova", {"mu": 0.3, "server_momentum": 0.6}, oracle, with_b, nothing)


@pytest.mark.parametrize("drop_last", [False, True])
def test_fednova_uniform(drop_last):
    """With drop_last a client makes no step, so has no direction."""
    oracle = functools.partial(fednova.fednova, weighting="uniform")
    check("fednova", {"weighting": "uniform"}, oracle, model, nothing, training={"drop_last": drop_last})


@pytest.mark.parametrize(
    ("mu", "settings", "expected"),
    [
        (0.3, {}, {"count": "official", "tau_eff": "steps"}),
        pytest.param(0.3, {"tau_eff": "norms"}, {"count": "official"}, marks=pytest.mark.slow),
        pytest.param(0.3, {"normaliser": "consistent"}, {"tau_eff": "steps"}, marks=pytest.mark.slow),
        pytest.param(0.0, {}, {"count": "official"}, marks=pytest.mark.slow),
    ],
)
def test_fednova_as_released(mu, settings, expected):
    oracle = functools.partial(fednova.fednova, mu=mu, **expected)
    check("fednova", {"mu": mu, "fidelity": "reference", **settings}, oracle, model, nothing)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"momentum": 0.0}, {"nesterov": True}])
def test_fednova_of_other_solvers(changes):
    check(
        "fednova",
        {"mu": 0.3},
        functools.partial(fednova.fednova, mu=0.3),
        model,
        nothing,
        training={"solver": {**toy.SOLVER, **changes}},
        solver=functools.partial(solver, **changes),
    )


@pytest.mark.parametrize(
    ("tau", "rho", "eta_mu", "normaliser", "expected"),
    [
        (5, 0.9, 0.0, "consistent", 13.1441),
        (10, 0.9, 0.0, "official", 41.381060),
        (7, 0.0, 0.0, "consistent", 7),
        (5, 0.0, 2e-4, "consistent", 4.998000),
        (6, 0.0, 0.05, "official", 5.298162),
        (10, 0.0, 0.05, "consistent", 8.025261),
        (4, 0.9, 0.05, "official", 11.866219),
        (10, 0.9, 0.05, "official", 41.505239),
        (4, 0.9, 0.05, "consistent", 8.374125),
        (10, 0.9, 0.05, "consistent", 26.218458),
        (0, 0.9, 0.05, "consistent", 0),
    ],
)
def test_fednovas_normalisers(tau, rho, eta_mu, normaliser, expected):
    """The values of METHODS.md, section 12.6."""
    found = norm_of_a(jnp.int32(tau), jnp.float64(eta_mu), momentum=rho, normaliser=normaliser)
    np.testing.assert_allclose(found, expected, atol=6e-7)
    by_hand = fednova.defined(tau, 0.1, rho, False, eta_mu / 0.1)
    if normaliser == "official":
        by_hand = fednova.official(tau, 0.1, rho, eta_mu / 0.1)
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)


def test_fednova_of_equal_steps_is_fedavg():
    """Or FedProx: the same local solver, momentum included. With the released tau_eff it is not."""
    close(servers(play("fednova", EQUAL)), servers(play("fedavg", EQUAL)))
    fedprox = servers(play("fedprox", EQUAL, mu=0.3))
    close(servers(play("fednova", EQUAL, mu=0.3)), fedprox)
    differ(servers(play("fednova", EQUAL, mu=0.3, fidelity="reference"))[0], fedprox[0])
    differ(servers(play("fednova"))[0], servers(play("fedavg"))[0])  # of unequal ones


def test_fednova_needs_sgd():
    with pytest.raises(UserError, match=r"^config\.client\.optimizer: found another optimiser, expected 'sgd'"):
        algorithms.build("fednova", toy.training(momentum=None))


@pytest.mark.slow
def test_what_stays_with_a_client_in_fednova():
    kept_parts("fednova", mu=0.1)


# -- FedDyn -------------------------------------------------------------------------------------------------------------


def with_h(server: Any) -> dict[str, np.ndarray]:
    mean = toy.flat(server.mean) if server.mean else {}
    return model(server) | prefixed("h", toy.flat({"params": server.h})) | prefixed("mean", mean)


def memory(client: Any) -> dict[str, np.ndarray]:
    return toy.flat({"params": client.h_k})


@pytest.mark.parametrize("drop_last", [False, True])
def test_feddyn(drop_last):
    oracle = functools.partial(feddyn.feddyn, alpha=0.3)
    check("feddyn", {"alpha": 0.3}, oracle, with_h, memory, training={"drop_last": drop_last})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fidelity": "reference"}, {"by_size": True, "mean_model": True}),
        pytest.param({"alphas": "by_size"}, {"by_size": True}, marks=pytest.mark.slow),
        pytest.param({"evaluated": "mean"}, {"mean_model": True}, marks=pytest.mark.slow),
    ],
)
def test_feddyn_as_released(settings, expected):
    oracle = functools.partial(feddyn.feddyn, alpha=0.3, **expected)
    check("feddyn", {"alpha": 0.3, **settings}, oracle, with_h, memory)


def test_feddyns_h_is_the_mean_of_all_clients():
    """Over all N of them, at any participation."""
    for state in play("feddyn", alpha=0.3):
        close(state.server.h, jax.tree.map(lambda h_k: h_k.mean(0), state.clients.h_k))
        assert np.all(state.server.h["head"]["kernel"] != 0)


def test_feddyn_without_its_regulariser_is_not_fedavg():
    """alpha -> 0: the clients train as FedAvg's do, and the server goes |S| / N further than their mean."""
    start, mean = toy.variables()["params"], servers(play("fedavg", weighting="uniform"))[0]["params"]
    further = len(set(ROUNDS[0][0]) - {toy.PAD}) / toy.N
    expected = jax.tree.map(lambda m, w: m + further * (m - w), mean, start)
    tiny = play("feddyn", alpha=1e-12)[0]
    close(tiny.server.variables["params"], expected)
    # in the next round as well, from there, with what all rounds so far have added up to
    algorithm = algorithms.build("fedavg", toy.training(), {"weighting": "uniform"})
    began = algorithm.init({**tiny.server.variables}, toy.N)._replace(round=jnp.int32(1))
    (then,) = toy.play(algorithm, began, ROUNDS[1:2])
    first = jax.tree.map(lambda m, w: further * (m - w), mean, start)
    share = len(ROUNDS[1][0]) / toy.N
    expected = jax.tree.map(lambda m, w, h: m + h + share * (m - w), then.server.variables["params"], expected, first)
    close(play("feddyn", alpha=1e-12)[1].server.variables["params"], expected)


def test_feddyn_needs_a_regulariser():
    with pytest.raises(UserError, match=r"^config\.feddyn\.alpha: found 0, expected more than 0$"):
        algorithms.build("feddyn", toy.training(), {"alpha": 0})


@pytest.mark.slow
def test_what_stays_with_a_client_in_feddyn():
    kept_parts("feddyn", alpha=0.3)
    (first, *_) = toy.play(
        algorithm := algorithms.build("feddyn", toy.training(batch_norm="local")),
        algorithm.init(toy.variables(), toy.N),
        ROUNDS,
    )
    assert not np.any(first.clients.client.h_k["norm"]["scale"])
    assert np.any(first.clients.client.h_k["head"]["kernel"])


# -- MOON ---------------------------------------------------------------------------------------------------------------


def previous(client: Any) -> dict[str, np.ndarray] | None:
    return toy.flat(client.previous) if client.has else None


@pytest.mark.parametrize(
    ("newcomers", "weighting", "drop_last"),
    [
        ("none", "examples", False),
        ("initial", "uniform", True),
        ("random", "examples", False),
    ],
)
def test_moon(newcomers, weighting, drop_last):
    def own(k: int) -> dict[str, np.ndarray]:
        return toy.flat(toy.another(jax.random.fold_in(jax.random.key(0), k)))

    first = {"none": None, "initial": lambda k: toy.flat(toy.variables()), "random": own}[newcomers]
    settings = {"mu": 3.0, "temperature": 0.4, "weighting": weighting}
    oracle = functools.partial(moon.moon, first=first, **settings)
    options = {**settings, "newcomers": newcomers}
    check("moon", options, oracle, model, previous, training={"drop_last": drop_last})


def test_moons_gradient_by_hand():
    """What the oracle takes for the gradient of its term is that."""
    z, z_glob, z_prev = np.random.default_rng(2).normal(size=(3, toy.HIDDEN))
    loss, gradient = moon.contrast(z, z_glob, z_prev, 0.4)
    for i, step in enumerate(1e-6 * np.eye(toy.HIDDEN)):
        up, down = (moon.contrast(z + s * step, z_glob, z_prev, 0.4)[0] for s in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-6, gradient[i], rtol=1e-6)
    found, by_jax = jax.value_and_grad(contrastive)(z, z_glob, z_prev, temperature=0.4)
    np.testing.assert_allclose(found, loss)
    np.testing.assert_allclose(by_jax, gradient)
    none = jnp.zeros_like(z)  # features of a dead layer
    value, gradient = jax.value_and_grad(contrastive)(none, z_glob, z_prev, temperature=0.4)
    assert value == pytest.approx(np.log(2))
    assert not np.any(gradient)


def test_moon_without_its_term_is_fedavg():
    """So is its first round, and where the previous model is the received one."""
    fedavg = servers(play("fedavg"))
    close(servers(play("moon", mu=0.0)), fedavg)
    states = play("moon", mu=3.0)
    close(states[0].server.variables, fedavg[0])
    differ(states[-1].server.variables, fedavg[-1])
    algorithm = algorithms.build("moon", toy.training(), {"mu": 3.0, "newcomers": "initial"})
    begun = algorithm.init(toy.variables(), toy.N)._replace(round=jnp.int32(1))
    (state,) = toy.play(algorithm, begun, ROUNDS[1:2])
    without = algorithms.build("fedavg", toy.training())
    begun = without.init(toy.variables(), toy.N)._replace(round=jnp.int32(1))
    (expected,) = toy.play(without, begun, ROUNDS[1:2])
    close(state.server.variables, expected.server.variables)


def test_moon_needs_features():
    with pytest.raises(
        UserError, match=r"^config\.method: 'moon' needs a model with features, found a label-mask model"
    ):
        algorithms.build("moon", toy.training(network=None))
    with pytest.raises(UserError, match=r"^config\.moon\.newcomers: found 'random', expected"):
        algorithms.build("moon", toy.training(init=None), {"newcomers": "random"})


@pytest.mark.slow
def test_what_stays_with_a_client_in_moon():
    kept_parts("moon", mu=3.0)


# -- VHL ----------------------------------------------------------------------------------------------------------------

VHL = {"alpha": 0.7, "lambda_a": 0.9, "lambda_v": 0.4, "temperature": 0.3, "align_epochs": 1}


@functools.cache
def virtual_batch(t: int, k: int, e: int, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Six of twenty virtual examples, by the keys that core.compose, core.run, local.train_on and the method's loss take."""
    key = jax.random.key(toy.KEY)
    for number in (t, 0, k, e, 1, i):
        key = jax.random.fold_in(key, number)
    index = jax.random.randint(jax.random.split(key, 4)[1], (6,), 0, 20, jnp.int32)
    x = generator(jax.random.key(0), toy.CLASSES, (toy.FEATURES,), np.float64)(index % toy.CLASSES, index)
    return np.asarray(x), np.asarray(index % toy.CLASSES)


@pytest.mark.parametrize(
    ("labels", "weighting", "drop_last"),
    [("extra", "examples", False), pytest.param("shared", "uniform", True, marks=pytest.mark.slow)],
)
def test_vhl(labels, weighting, drop_last):
    options = {**VHL, "labels": labels, "weighting": weighting, "examples": 20, "batch_size": 6}
    start = algorithms.build("vhl", toy.training(), options).init(toy.variables(), toy.N).server.head
    head = (np.asarray(start["kernel"]), np.asarray(start["bias"])) if labels == "extra" else None
    oracle = functools.partial(vhl.vhl, virtual=virtual_batch, head=head, weighting=weighting, **VHL)

    def server(held: Any) -> dict[str, np.ndarray]:
        return model(held) | {f"extra.{name}": np.asarray(leaf) for name, leaf in held.head.items()}

    check("vhl", options, oracle, server, nothing, training={"drop_last": drop_last})


def test_vhls_gradient_by_hand():
    """The oracle's, by differences; and the loss of the package, with a padding row."""
    rng = np.random.default_rng(2)
    f, labels = rng.normal(size=(6, 4)), np.array([0, 1, 0, 2, 1, 0])
    loss, gradient = vhl.contrast(f, labels, 0.4)
    for at in np.ndindex(f.shape):
        step = np.zeros_like(f)
        step[at] = 1e-5
        up, down = (vhl.contrast(f + s * step, labels, 0.4)[0] for s in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-5, gradient[at], rtol=1e-5, atol=1e-8)
    padded, mask = np.concatenate([f, np.full((1, 4), 9.0)]), np.arange(7) < 6
    value = supervised_contrastive(jnp.asarray(padded), jnp.asarray([*labels, 0]), jnp.asarray(mask), 0.4)
    np.testing.assert_allclose(value, loss, rtol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (28, 28, 1), (12, 20, 3)])
def test_virtual_examples(shape):
    """An example is its number's, whatever the batch; classes lie apart; each example is standardised."""
    y, index = jnp.arange(40) % 4, jnp.arange(40)
    make = generator(jax.random.key(3), 4, shape)
    x = np.asarray(make(y, index))
    assert x.shape == (40, *shape)
    assert x.dtype == np.float32
    np.testing.assert_allclose(make(y[7:9], index[7:9]), x[7:9], atol=1e-5)
    flat = x.reshape(40, -1)
    np.testing.assert_allclose(flat.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(flat.std(1), 1, atol=1e-3)
    centres = np.stack([flat[y == c].mean(0) for c in range(4)])
    nearest = np.argmin(((flat[:, None] - centres) ** 2).sum(-1), 1)
    assert (nearest == y).mean() > 0.9
    assert not np.allclose(make(y, index + 40), x, atol=0.1)


def test_what_vhl_refuses():
    with pytest.raises(UserError, match=r"^config\.vhl: found batch_size=1, examples=2000, expected at least 2"):
        algorithms.build("vhl", toy.training(), {"batch_size": 1})
    narrow = toy.training().network._replace(objective=lambda z, y, mask, key: jnp.sum(z + jnp.zeros(toy.CLASSES)))
    with pytest.raises(UserError, match=r"^config\.vhl\.labels: found 'extra', expected 'shared'"):
        algorithms.build("vhl", toy.training(network=narrow))
    algorithms.build("vhl", toy.training(network=narrow), {"labels": "shared"})


@pytest.mark.slow
def test_what_stays_with_a_client_in_vhl():
    kept_parts("vhl")


# -- FedIR --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"normalise": True, "server_lr": 0.7, "momentum": 0.5, "nesterov": True, "weighting": "uniform"}],
)
def test_fedir(settings):
    check("fedir", settings, functools.partial(fedir.fedir, **settings), model, nothing)


def test_fedir_of_clients_with_the_same_labels_is_fedavg():
    """However many examples each has."""
    rng = np.random.default_rng(6)
    data = [
        (rng.normal(k, 1.0, (n, toy.FEATURES)), rng.permutation(np.tile([0, 1, 1, 2], n // 4)).astype(np.int32))
        for k, n in enumerate((4, 12, 8))
    ]
    training = toy.training(counts=(6, 12, 6))
    found = []
    for name in ("fedavg", "fedir"):
        algorithm = algorithms.build(name, training)
        rounds = [((0, 1, 2), ()), ((2, 1), ())]
        *_, last = toy.play(algorithm, algorithm.init(toy.variables(), 3), rounds, data=data)
        found.append(last.server.variables)
    close(*found)
    differ(servers(play("fedir"))[0], servers(play("fedavg"))[0])


@pytest.mark.parametrize(("name", "options"), [("fedir", {}), ("fedvc", {"importance": True})])
def test_importance_needs_one_label(name, options):
    for changes in ({"network": None}, {"counts": ()}):
        with pytest.raises(UserError, match=rf"^config\.method: '{name}' needs one label an example, found several"):
            algorithms.build(name, toy.training(**changes), options)
    with pytest.raises(UserError, match=r"^config\.client\.sampler: found 'class_balanced', expected 'instance'"):
        algorithms.build(name, toy.training(sampler="class_balanced"), options)
    algorithm, cohort = algorithms.build(name, toy.training(), options), toy.cohort(ROUNDS[0][0])
    masks = cohort.data._replace(y=jnp.zeros((*cohort.data.y.shape, 2, 2), jnp.int32))
    state = algorithm.init(toy.variables(), toy.N)
    with pytest.raises(
        UserError, match=rf"^config\.method: '{name}' needs one label an example, found several or masks"
    ):
        algorithm.round(state, cohort._replace(data=masks), jax.random.key(0))


@pytest.mark.slow
def test_what_stays_with_a_client_in_fedir():
    kept_parts("fedir")


# -- FedVC --------------------------------------------------------------------------------------------------------------


@functools.cache
def virtual(t: int, k: int, n_vc: int, epochs: int = 2) -> list[list[np.ndarray]]:
    """For each epoch the row numbers of a virtual client's batches."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(toy.KEY), t), 0), k)
    key_draw, key_train = jax.random.split(key)
    index, batches = np.asarray(draw(key_draw, jnp.int32(toy.COUNTS[k]), max(toy.COUNTS), n_vc)), []
    for e in range(epochs):
        key_e = jax.random.fold_in(jax.random.fold_in(key_train, e), 0)
        order = index[np.asarray(local.permutation(key_e, jnp.int32(n_vc), n_vc))]
        batches.append([order[i : i + toy.BATCH] for i in range(0, n_vc, toy.BATCH)])
    return batches


@pytest.mark.parametrize(
    ("n_vc", "settings"),
    [
        (6, {"importance": True}),
        pytest.param(15, {"momentum": 0.5, "weighting": "examples"}, marks=pytest.mark.slow),  # more than anybody has
    ],
)
def test_fedvc(n_vc, settings):
    oracle = functools.partial(fedir.fedir, **{"importance": False, "weighting": "uniform", **settings})
    check("fedvc", {"n_vc": n_vc, **settings}, oracle, model, nothing, batches=lambda t, k: virtual(t, k, n_vc))


def test_a_virtual_clients_examples():
    """All different where there are enough; else every one of the client's as likely; padding never."""
    key, n_max = jax.random.key(0), 20
    for count in (1, 5, 8, 20):
        drawn = np.concatenate([draw(jax.random.fold_in(key, i), jnp.int32(count), n_max, 8) for i in range(200)])
        assert np.all((drawn >= 0) & (drawn < count))
        if count >= 8:
            assert all(len(set(rows.tolist())) == 8 for rows in drawn.reshape(200, 8))
        np.testing.assert_allclose(np.bincount(drawn, minlength=count) / 1600, 1 / count, atol=0.04)
    for i in range(5):  # however much padding there is
        one, other = (draw(jax.random.fold_in(key, i), jnp.int32(9), n, 8) for n in (9, 30))
        np.testing.assert_array_equal(one, other)


def test_fedvc_of_clients_as_large_as_virtual_ones_is_fedavg():
    """On one full step, to which the order of the rows is nothing."""
    rng = np.random.default_rng(7)
    data = [(rng.normal(k, 1.0, (8, toy.FEATURES)), rng.integers(0, 3, 8).astype(np.int32)) for k in range(3)]
    training, found = toy.training(batch_size=8), []
    for name, options in (("fedavg", {}), ("fedvc", {"n_vc": 8})):
        algorithm = algorithms.build(name, training, options)
        *_, last = toy.play(algorithm, algorithm.init(toy.variables(), 3), [((0, 1), ()), ((2, 1), ())], data=data)
        found.append(last.server.variables)
    close(*found)


def test_fedvc_needs_an_example():
    with pytest.raises(UserError, match=r"^config\.fedvc\.n_vc: found 0, expected 1 or more$"):
        algorithms.build("fedvc", toy.training(), {"n_vc": 0})


@pytest.mark.slow
def test_what_stays_with_a_client_in_fedvc():
    kept_parts("fedvc", n_vc=6)


# -- Mime and MimeLite --------------------------------------------------------------------------------------------------


@functools.cache
def second_batches(t: int, k: int) -> list[list[np.ndarray]]:
    """`toy.batches` of a round's second communication."""
    key, batches = jax.random.fold_in(jax.random.fold_in(jax.random.key(toy.KEY), t), 1), []
    for e in range(2):
        key_e = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, k), e), 0)
        order = np.asarray(local.permutation(key_e, jnp.int32(toy.COUNTS[k]), 2 * sum(toy.COUNTS)))[: toy.COUNTS[k]]
        batches.append([order[i : i + toy.BATCH] for i in range(0, len(order), toy.BATCH)])
    return batches


def with_moments(server: Any) -> dict[str, np.ndarray]:
    held = {"c": server.c}
    if hasattr(server.s, "v"):
        held |= {"m": server.s.m, "v": server.s.v}
    else:
        held |= {"m": server.s}
    found = model(server)
    for name, part in held.items():
        found |= prefixed(name, toy.flat({"params": part})) if part else {}
    return found


@pytest.mark.parametrize(
    ("name", "base", "weighting"),
    [
        ("mime", "momentum", "uniform"),
        ("mimelite", "adam", "examples"),
        pytest.param("mime", "adam", "examples", marks=pytest.mark.slow),
        pytest.param("mime", "sgd", "uniform", marks=pytest.mark.slow),
        pytest.param("mimelite", "momentum", "uniform", marks=pytest.mark.slow),
    ],
)
def test_mime(name, base, weighting):
    lite = name == "mimelite"
    oracle = functools.partial(
        mime.mime, batch_size=toy.BATCH, base=base, lite=lite, b1=0.8, b2=0.7, eps=0.1, v0=0.5, weighting=weighting
    )
    options = {"base": base, "beta1": 0.8, "beta2": 0.7, "epsilon": 0.1, "v0": 0.5, "weighting": weighting}
    check(name, options, oracle, with_moments, nothing, batches=None if lite else second_batches)


def test_mimelite_of_sgd_is_fedavg():
    fedavg = servers(play("fedavg", weighting="uniform"))
    close(servers(play("mimelite", base="sgd")), fedavg)
    differ(servers(play("mimelite"))[0], fedavg[0])
    differ(servers(play("mime", base="sgd"))[0], fedavg[0])


@pytest.mark.parametrize("name", ["mime", "mimelite"])
def test_one_full_step_of_mime_is_the_centralised_optimiser(name):
    """Momentum on sum_k n_k / n F_k; the correction is c then, and without it the clients' steps have the same mean."""
    net = toy.Net(batch_norm=False)
    training = toy.training(net, toy.PLAIN, epochs=1, batch_size=sum(toy.COUNTS))
    algorithm = algorithms.build(name, training, {"beta1": 0.8, "weighting": "examples"})
    start = toy.variables(batch_norm=False)
    w = toy.flat(start)
    m = {key: np.zeros_like(value) for key, value in w.items()}
    states = toy.play(algorithm, algorithm.init(start, toy.N), ROUNDS)
    for t, (state, (ids, _)) in enumerate(zip(states, ROUNDS, strict=True)):
        x, y = (np.concatenate([toy.rows()[k][i] for k in ids if k < toy.N]) for i in (0, 1))
        _, g, _ = train_batch(w, x, y)
        m = {key: 0.8 * m[key] + 0.2 * g[key] for key in m}
        w = {key: w[key] - toy.rate(t) * m[key] for key in w}
        found = toy.flat(state.server.variables)
        for key, value in w.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mime", "mimelite"])
def test_mime_needs_a_mean(name):
    with pytest.raises(UserError, match=rf"^config\.loss\.over_batch: found 'sum', but the gradients of '{name}' need"):
        algorithms.build(name, toy.training(summed=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mime", "mimelite"])
def test_what_stays_with_a_client_in_mime(name):
    """Its gradient does not travel, so the statistics know nothing of it."""
    kept_parts(name)
    algorithm = algorithms.build(name, toy.training(batch_norm="local"))
    *_, last = toy.play(algorithm, algorithm.init(toy.variables(), toy.N), ROUNDS)
    assert not np.any(last.server.s["norm"]["scale"])
    assert np.any(last.server.s["head"]["kernel"])
    # After one full step it is where plain training takes it.
    found = []
    for method in (name, "fedavg"):
        training = toy.training(solver=toy.PLAIN, epochs=1, batch_size=sum(toy.COUNTS), batch_norm="local")
        algorithm = algorithms.build(method, training)
        (after,) = toy.play(algorithm, algorithm.init(toy.variables(), toy.N), ROUNDS[:1])
        found.append(after.clients.part)
    close(*found)


# -- power-of-choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "weighting"), [(2, "uniform"), pytest.param(3, "examples", marks=pytest.mark.slow)])
def test_power_of_choice(m, weighting):
    oracle = functools.partial(power_of_choice.power_of_choice, m=m, weighting=weighting)
    check("power_of_choice", {"chosen": m, "weighting": weighting}, oracle, model, nothing)


def test_choosing_all_is_fedavg():
    close(servers(play("power_of_choice", chosen=4)), servers(play("fedavg", weighting="uniform")))


def test_a_choice_reads_the_states_of_the_cohort():
    """Where a round gets these alone (see `store`): each candidate's loss is that of its own batch norm."""
    algorithm = algorithms.build("power_of_choice", toy.training(batch_norm="local"), {"chosen": 1})
    round = toy.jit(algorithm.round)
    state = algorithm.init(toy.variables(), toy.N)
    spread = jnp.asarray(np.exp(np.arange(toy.N) % 4.0))
    clients = jax.tree.map(lambda leaf: leaf * spread.reshape(-1, *[1] * (leaf.ndim - 1)), state.clients)
    for ids in (4, 1, 3), (3, 1, 4), (6, 0, 5), (0, 6, 2):
        cohort = toy.cohort(ids)
        expected, _ = round(state._replace(clients=clients), cohort, jax.random.key(toy.KEY))
        some = state._replace(clients=tree.take(clients, cohort.ids))
        found, _ = round(some, cohort._replace(rows=jnp.arange(3, dtype=jnp.int32)), jax.random.key(toy.KEY))
        close(found.server, expected.server)


def test_a_sample_of_all_examples_chooses_the_same():
    """And a sample of one may choose others."""
    chosen = servers(play("power_of_choice", chosen=1))
    close(servers(play("power_of_choice", chosen=1, sample=max(toy.COUNTS))), chosen)
    few = servers(play("power_of_choice", chosen=1, sample=1))
    assert any(
        not np.allclose(a["params"]["head"]["kernel"], b["params"]["head"]["kernel"])
        for a, b in zip(few, chosen, strict=True)
    )


def test_power_of_choice_needs_as_many_candidates():
    with pytest.raises(UserError, match=r"^config\.power_of_choice\.chosen: found 0, expected 1 or more$"):
        algorithms.build("power_of_choice", toy.training(), {"chosen": 0})
    algorithm = algorithms.build("power_of_choice", toy.training(), {"chosen": 3})
    state = algorithm.init(toy.variables(), toy.N)
    with pytest.raises(UserError, match=r"chosen: found 3, expected at most 2, the cohort's clients$"):
        algorithm.round(state, toy.cohort([0, 1]), jax.random.key(0))


@pytest.mark.slow
def test_what_stays_with_a_client_in_power_of_choice():
    kept_parts("power_of_choice", chosen=3)
