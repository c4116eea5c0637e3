"""Every method equals its plain NumPy loop in `reference`: server, all clients and all clients' models, round by round.

Ragged clients (one smaller than a batch, one with a single example), another cohort each round, padding rows, lost uploads,
a client that never takes part; two epochs with momentum, weight decay, clipping, a step schedule and batch norm; float64.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import toy
from reference import (
    centralised,
    crt,
    ditto,
    fd,
    fedavg,
    fedbn,
    fedopt,
    fedper,
    fedproto,
    fedprox,
    finetune,
    fml,
    ifca,
    local_only,
    network,
    scaffold,
    silobn,
)
from reference.sgd import SGD

from fedjax_pfl import algorithms, local

STATISTICS, BATCH_NORM = network.STATISTICS, network.BATCH_NORM


def close(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], what: str) -> None:
    """Same names, and the same values to 1e-9."""
    assert actual.keys() == expected.keys(), what
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-9, atol=1e-12, err_msg=f"{what}: {name}")


def prefixed(prefix: str, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part's entries, named as the oracles name what a server keeps besides its model."""
    return {f"{prefix}.{name}": value for name, value in part.items()}


def without(part: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """All entries but those."""
    return {name: value for name, value in part.items() if name not in names}


# -- what each method's server and client hold, by the oracle's names ---------------------------------------------------


def model(holder: Any) -> dict[str, np.ndarray]:
    """A server or a client that is a model."""
    return toy.flat(holder.variables)


def nothing(holder: Any) -> dict[str, np.ndarray]:
    assert holder == ()
    return {}


def with_moments(server: Any) -> dict[str, np.ndarray]:
    moments = {moment: toy.flat({"params": getattr(server.opt_state, moment)}) for moment in ("m", "v")}
    return model(server) | prefixed("m", moments["m"]) | prefixed("v", moments["v"])


def with_control(server: Any) -> dict[str, np.ndarray]:
    return model(server) | prefixed("c", toy.flat({"params": server.c}))


def control(client: Any) -> dict[str, np.ndarray]:
    return toy.flat({"params": client.c_i})


def kept(client: Any) -> dict[str, np.ndarray]:
    return toy.flat(client.part)


def tuned(client: Any) -> dict[str, np.ndarray] | None:
    return toy.flat(client.variables) if client.tuned else None


def personal(client: Any) -> dict[str, np.ndarray]:
    return toy.flat(client.v_k)


def private(client: Any) -> dict[str, np.ndarray]:
    (momentum,) = (part.trace for part in client.opt_state if hasattr(part, "trace"))
    return toy.flat(client.variables) | prefixed("momentum", toy.flat({"params": momentum}))


def means(server: Any) -> dict[str, np.ndarray]:
    return {"mean": np.asarray(server.mean), "has": np.asarray(server.has)}


def predictions(server: Any) -> dict[str, np.ndarray]:
    return {"F": np.asarray(server.F), "has": np.asarray(server.has)}


def owner(client: Any) -> dict[str, np.ndarray]:
    return model(client) | {"owns": np.asarray(client.owns)}


def restarted(server: Any) -> dict[str, np.ndarray]:
    return model(server) | {"restarted": np.asarray(server.restarted)}


def own_head(client: Any) -> dict[str, np.ndarray] | None:
    return toy.flat(client.part) if client.tuned else None


# -- the methods --------------------------------------------------------------------------------------------------------


def solver(round: int, **changes: Any) -> SGD:
    """The client's optimiser of `toy.training()`."""
    return SGD(**{"lr": toy.rate(round), **toy.SOLVER, **changes})


def participants() -> list[list[tuple[int, bool]]]:
    """Who takes part in each round, and whether the upload arrives."""
    return [[(k, k not in lost) for k in ids if k < toy.N] for ids, lost in toy.ROUNDS]


def check(
    name: str,
    options: dict[str, Any],
    oracle: Callable[..., Any],
    server: Callable[[Any], Any],
    client: Callable[[Any], Any],
    *,
    stays: tuple[str, ...] = (),
    batches: Callable[..., Any] | None = None,
    training: dict[str, Any] | None = None,
    solver: Callable[[int], SGD] = solver,
) -> None:
    """Plays all rounds on both sides.

    Args:
        stays: names that stay with the clients; what the server holds there is in test_contract.py.
    """
    settings = toy.training(**(training or {}))
    algorithm = algorithms.build(name, settings, options)
    states = toy.play(algorithm, algorithm.init(toy.variables(), toy.N))
    batches = batches or (lambda t, k: toy.batches(toy.COUNTS[k], t, k, settings.epochs, settings.drop_last))
    expected = oracle(toy.flat(toy.variables()), toy.rows(), participants(), batches, solver)
    for t, (state, want) in enumerate(zip(map(jax.device_get, states), expected, strict=True)):
        close(without(server(state.server), stays), without(want.server, stays), f"{name}, round {t}, server")
        for k, used in enumerate(toy.models(algorithm, state)):
            held = client(toy.row(state.clients, k))
            assert (held is None) == (want.clients[k] is None), f"{name}, round {t}, client {k}"
            close(held or {}, want.clients[k] or {}, f"{name}, round {t}, client {k}")
            close(toy.flat(used), want.models[k], f"{name}, round {t}, model of client {k}")


@pytest.mark.parametrize(("weighting", "drop_last"), [("examples", False), ("uniform", True)])
def test_fedavg(weighting, drop_last):
    oracle = functools.partial(fedavg.fedavg, weighting=weighting)
    check("fedavg", {"weighting": weighting}, oracle, model, nothing, training={"drop_last": drop_last})


def test_nesterov_client():
    check(
        "fedavg",
        {},
        fedavg.fedavg,
        model,
        nothing,
        training={"solver": {**toy.SOLVER, "nesterov": True}},
        solver=functools.partial(solver, nesterov=True),
    )


def test_local_only():
    check("local", {}, local_only.local_only, nothing, model)


def test_centralised():
    check(
        "centralised",
        {},
        centralised.centralised,
        model,
        nothing,
        batches=lambda t, count: toy.batches(count, t, 0),
    )


@pytest.mark.parametrize(("layers", "names"), [(0, None), (2, ("norm.scale", "norm.bias", *network.HEAD))])
def test_finetune(layers, names):
    start, factor = 2, 0.5
    check(
        "finetune",
        {"start": start, "tuned_layers": layers, "lr_factor": factor},
        functools.partial(finetune.finetune, start=start, tuned=names),
        model,
        tuned,
        solver=lambda t: solver(t, lr=toy.rate(t) * (factor if t >= start else 1)),
    )


def test_fedprox():
    settings = {"mu": 0.3, "weighting": "uniform"}
    check("fedprox", settings, functools.partial(fedprox.fedprox, **settings), model, nothing)


@pytest.mark.parametrize(
    ("option", "weighting", "drop_last", "corrected"),
    [
        (1, "uniform", True, "gradient"),
        (2, "uniform", False, "gradient"),
        (2, "examples", True, "gradient"),
        (2, "uniform", False, "step"),
    ],
)
def test_scaffold(option, weighting, drop_last, corrected):
    settings = {"option": option, "server_lr": 0.8, "weighting": weighting, "corrected": corrected}
    oracle = functools.partial(scaffold.scaffold, batch_size=toy.BATCH, **settings)
    check("scaffold", settings, oracle, with_control, control, training={"drop_last": drop_last})


@pytest.mark.parametrize(("nesterov", "weighting"), [(False, "examples"), (True, "uniform")])
def test_fedavgm(nesterov, weighting):
    settings = {"server_lr": 0.7, "momentum": 0.9, "nesterov": nesterov, "weighting": weighting}
    check("fedavgm", settings, functools.partial(fedopt.fedavgm, **settings), model, nothing)


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
@pytest.mark.parametrize("name", ["adagrad", "adam", "yogi"])
def test_fedopt(name, fidelity):
    """'reference': v starts at 0, and Adam's and Yogi's steps are corrected."""
    settings = {"server_lr": 0.1, "tau": 1e-2}
    reference = fidelity == "reference"
    oracle = functools.partial(
        fedopt.fedopt,
        **settings,
        name=name,
        v0=0.0 if reference else 1e-4,
        correct=reference and name != "adagrad",
        weighting="uniform" if reference else "examples",
    )
    options = {**settings, "fidelity": fidelity, "weighting": "uniform" if reference else "examples"}
    check(f"fed{name}", options, oracle, with_moments, nothing)


def test_fedbn():
    check("fedbn", {}, fedbn.fedbn, model, kept, stays=BATCH_NORM)


@pytest.mark.parametrize(("policy", "stays"), [("local", BATCH_NORM), ("local-statistics", STATISTICS)])
def test_batch_norm_policies(policy, stays):
    """FedAvg with the policy local is FedBN's loop with FedAvg's weights, with local-statistics it is SiloBN."""
    oracle = functools.partial(fedbn.fedbn, weighting="examples", kept=stays)
    check("fedavg", {}, oracle, model, kept, stays=stays, training={"batch_norm": policy})


@pytest.mark.parametrize(
    ("layers", "weighting", "policy", "names"),
    [
        (1, "examples", "aggregate", network.HEAD),
        (2, "uniform", "aggregate", BATCH_NORM + network.HEAD),
        (1, "examples", "local-statistics", STATISTICS + network.HEAD),
    ],
)
def test_fedper(layers, weighting, policy, names):
    oracle = functools.partial(fedper.fedper, personal=names, weighting=weighting)
    options = {"personal_layers": layers, "weighting": weighting}
    check("fedper", options, oracle, model, kept, stays=names, training={"batch_norm": policy})


def test_ditto():
    settings = {"lam": 0.4, "weighting": "examples"}
    check("ditto", settings, functools.partial(ditto.ditto, **settings), model, personal)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_silobn(weighting):
    oracle = functools.partial(silobn.silobn, weighting=weighting)
    check("silobn", {"weighting": weighting}, oracle, model, kept, stays=STATISTICS)


@pytest.mark.parametrize("settings", [{"alpha": 0.3, "beta": 0.6, "temperature": 3.0, "weighting": "examples"}, {}])
def test_fml(settings):
    """The private optimiser's momentum goes on over the rounds; by default the mean of the memes is unweighted."""
    oracle = functools.partial(fml.fml, **{"alpha": 0.5, "beta": 0.5, **settings})
    check("fml", settings, oracle, model, private)


def test_fml_with_private_models_of_two_architectures():
    """The meme has batch norm, the private models of some clients haven't."""
    members = ((1, 2, 5, 6), (0, 3, 4))
    groups = [
        toy.training(toy.Net(batch_norm=norm))._replace(members=some)
        for norm, some in zip((True, False), members, strict=True)
    ]
    algorithm = algorithms.build("fml", toy.training()._replace(groups=tuple(groups)), {"alpha": 0.3, "beta": 0.6})
    first = (toy.variables(), toy.variables(), toy.variables(batch_norm=False))
    models = [toy.flat(first[1 + (k in members[1])]) for k in range(toy.N)]

    def batches(t: int, k: int) -> list[list[np.ndarray]]:
        return toy.batches(toy.COUNTS[k], t, k)

    oracle = fml.fml(toy.flat(first[0]), toy.rows(), participants(), batches, solver, 0.3, 0.6, models=models)
    states = toy.play(algorithm, algorithm.init(first, toy.N))
    for t, (state, want) in enumerate(zip(map(jax.device_get, states), oracle, strict=True)):
        close(model(state.server), want.server, f"round {t}, meme")
        for stack, some in zip(state.clients, members, strict=True):
            for row, k in enumerate(some):
                close(private(toy.row(stack, row)), want.clients[k], f"round {t}, client {k}")


@pytest.mark.parametrize(("weighting", "drop_last"), [("uniform", False), ("examples", True)])
def test_fedproto(weighting, drop_last):
    settings = {"lam": 0.7, "weighting": weighting}
    oracle = functools.partial(fedproto.fedproto, classes=toy.CLASSES, **settings)
    check("fedproto", settings, oracle, means, owner, training={"drop_last": drop_last})


@pytest.mark.parametrize(
    "settings", [{"gamma": 0.7}, {"schedule": "notes"}, {"gamma": 0.3, "fidelity": "reference"}], ids=str
)
def test_fd(settings):
    """The others' predictions, as the server holds them after each round; PFLlib's port with logits."""
    given = {"gamma": 0.1, **settings}
    oracle = functools.partial(fd.fd, classes=toy.CLASSES, port=given.pop("fidelity", "paper") == "reference", **given)
    check("fd", settings, oracle, predictions, model)


@pytest.mark.parametrize(
    ("layers", "common", "weighting"), [(0, (), "examples"), (1, ("body.kernel", "body.bias"), "uniform")]
)
def test_ifca(layers, common, weighting):
    """Three models from draws of their own; each is chosen by somebody, and none by all."""
    settings = {"clusters": 3, "shared_layers": layers, "weighting": weighting}
    key = jax.random.fold_in(jax.random.key(0), 2**31 - 4)
    first = toy.flat(toy.variables())
    others = [toy.flat(toy.another(jax.random.fold_in(key, j))) for j in (1, 2)]
    models = [first, *({**other, **{name: first[name] for name in common}} for other in others)]
    chosen = set()

    def oracle(model, *args, **options):
        for round in ifca.ifca(models, *args, common=common, weighting=weighting, **options):
            chosen.update(int(client["j"]) for client in round.clients)
            yield round

    def held(server):
        return {f"{j}.{name}": value for j in range(3) for name, value in toy.flat(toy.row(server.models, j)).items()}

    check("ifca", settings, oracle, held, lambda client: {"j": np.asarray(client.j)})
    assert chosen == {0, 1, 2}


def test_fedprotos_nearest_prototype():
    """Among the classes that the client has examples of, whatever its classifier says."""
    algorithm = algorithms.build("fedproto", toy.training(), {"inference": "prototype"})
    *_, state = toy.play(algorithm, algorithm.init(toy.variables(), toy.N))
    state, x = jax.device_get(state), np.random.default_rng(5).normal(size=(200, toy.FEATURES)) * 3
    assert np.all(state.server.has)
    for k, used in enumerate(toy.models(algorithm, state)):
        v = toy.flat(toy.row(state.clients.variables, k))
        owns = [] if k == 6 else sorted(set(toy.rows()[k][1].tolist()))  # client 6 never took part
        features = crt.evaluate(v, x)
        if owns:
            distance = ((features[:, None] - state.server.mean[None, owns]) ** 2).sum(-1)
            expected = np.array(owns)[distance.argmin(1)]
        else:
            expected = network.predict(v, x).argmax(1)
        np.testing.assert_array_equal(network.predict(toy.flat(used), x).argmax(1), expected, err_msg=f"client {k}")


@functools.cache
def balanced(t: int, k: int, share: float = 1.0, epochs: int = 2) -> list[list[np.ndarray]]:
    """`toy.batches` of the class-balanced sampler; with `share` of it, the rest instance-balanced."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(toy.KEY), t), 0), k)
    data, count = toy.row(toy.cohort([k]).data, 0), toy.COUNTS[k]
    drawn = []
    for e in range(epochs):
        key_e = jax.random.fold_in(jax.random.fold_in(key, e), 0)
        order = np.asarray(local.draw_classes(key_e, data, toy.CLASSES, ((1 - share, 1.0), (share, 0.0))))[:count]
        drawn.append([order[i : i + toy.BATCH] for i in range(0, count, toy.BATCH)])
    return drawn


@pytest.mark.parametrize("sampler", ["class_balanced", "progressive"])
def test_samplers(sampler):
    """FedAvg on drawn rows; the progressive sampler knows the round."""
    last = len(toy.ROUNDS) - 1
    batches = lambda t, k: balanced(t, k, t / last if sampler == "progressive" else 1.0)  # noqa: E731
    settings = {"sampler": sampler, "rounds": last + 1}
    check("fedavg", {}, fedavg.fedavg, model, nothing, training=settings, batches=batches)


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
@pytest.mark.parametrize("retrain", ["federated", "local"])
def test_crt(retrain, fidelity):
    start, alone = 2, retrain == "local"
    oracle = functools.partial(crt.crt, start=start, alone=alone, drifts=fidelity == "reference")
    check(
        "crt",
        {"start": start, "retrain": retrain, "fidelity": fidelity},
        oracle,
        restarted,
        own_head if alone else nothing,
        batches=lambda t, k: balanced(t, k) if t >= start else toy.batches(toy.COUNTS[k], t, k),
    )
