"""More methods with a model per client: each equals its plain NumPy loop, and is another method where the maths says so.

The loops, rounds and tolerances are those of test_equivalence.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import toy
from reference import apfl, fedrep, lg_fedavg, network, per_fedavg, pfedhn, pfedme
from reference.sgd import SGD
from test_equivalence import BATCH_NORM, STATISTICS, check, kept, model, nothing, prefixed

from fedjax_pfl import algorithms, evaluate, local
from fedjax_pfl.core import State
from fedjax_pfl.errors import UserError

ROUNDS = tuple((ids, ()) for ids, _ in toy.ROUNDS[:4])  # no upload is lost
WITHOUT_BN = toy.Net(batch_norm=False)
FULL = {"epochs": 1, "batch_size": sum(toy.COUNTS), "solver": toy.PLAIN}  # one step on all of a client's rows
METHODS = ("fedrep", "lg_fedavg", "apfl", "pfedme", "per_fedavg", "pfedhn")


@functools.cache
def batches(t: int, k: int, epochs: int, phase: int | None = None, draw: int = 0) -> list[list[np.ndarray]]:
    """`toy.batches`; with `phase`, of that part of the client's key split in two; or another draw of the same epochs."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(toy.KEY), t), 0), k)
    key = key if phase is None else jax.random.split(key)[phase]
    found = []
    for e in range(epochs):
        key_e = jax.random.fold_in(jax.random.fold_in(key, e), draw)
        order = np.asarray(local.permutation(key_e, np.int32(toy.COUNTS[k]), sum(toy.COUNTS)))[: toy.COUNTS[k]]
        found.append([order[i : i + toy.BATCH] for i in range(0, len(order), toy.BATCH)])
    return found


def play(name: str, options: dict[str, Any] | None = None, **training: Any) -> list[State]:
    """The states after each of ROUNDS, on the host."""
    algorithm = algorithms.build(name, toy.training(**training), options)
    start = toy.variables(batch_norm=training.get("net") is not WITHOUT_BN)
    return [jax.device_get(state) for state in toy.play(algorithm, algorithm.init(start, toy.N), ROUNDS)]


def same(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    """Equal trees, to rounding."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-3 * tolerance)


def differ(a: Any, b: Any) -> bool:
    """Whether any leaf does, by more than rounding."""
    return any(not np.allclose(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def body(state: State) -> Any:
    return state.server.variables["params"]["body"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("policy", "collection"), [("local", "params"), ("local-statistics", "batch_stats")])
def test_the_batch_norm_policy(name, policy, collection):
    """Reaches each method; what stays has a row for each client, and there is no global model."""
    algorithm = algorithms.build(name, toy.training(batch_norm=policy))
    part = algorithm.init(toy.variables(), toy.N).clients.part
    assert "norm" in part[collection]
    assert "norm" in part["batch_stats"]
    assert algorithm.global_model is None


def refused(name: str, options: dict[str, Any], message: str, **training: Any) -> None:
    with pytest.raises(UserError) as error:
        algorithms.build(name, toy.training(**training), options)
    assert str(error.value) == message


# -- FedRep -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "heads", "bodies", "weighting", "policy", "names"),
    [
        (1, 2, 1, "uniform", "aggregate", network.HEAD),
        (1, 1, 2, "examples", "local", BATCH_NORM + network.HEAD),
        pytest.param(1, 3, 1, "uniform", "local-statistics", STATISTICS + network.HEAD, marks=pytest.mark.slow),
    ],
)
def test_fedrep(layers, heads, bodies, weighting, policy, names):
    """Momentum, decay and the clipped norm are those of the phase's part alone."""
    check(
        "fedrep",
        {"personal_layers": layers, "head_epochs": heads, "body_epochs": bodies, "weighting": weighting},
        functools.partial(fedrep.fedrep, personal=names, weighting=weighting),
        model,
        kept,
        stays=names,
        batches=lambda t, k: (batches(t, k, heads, 0), batches(t, k, bodies, 1)),
        training={"batch_norm": policy},
    )


def frozen(where: Callable[..., bool]) -> dict[str, Any]:
    """Training on all rows at once, in which the parameters of these paths rest."""
    freeze = local.freeze(where, np.asarray(True))
    plain = local.optimizer(lambda: local.sgd(0.0))
    return {**FULL, "net": WITHOUT_BN, "optimizer": lambda lr: optax.chain(plain(lr), freeze)}


def test_fedrep_without_head_epochs_is_fedavg_of_the_body():
    """All clients keep the initial head, which rests."""
    states = play("fedrep", {"head_epochs": 0}, net=WITHOUT_BN, **FULL)
    fedavg = play("fedavg", {"weighting": "uniform"}, **frozen(lambda path: path[1] == "head"))
    for mine, other in zip(states, fedavg, strict=True):
        same(body(mine), body(other))
        same(toy.row(mine.clients.part, 0), {"params": {"head": other.server.variables["params"]["head"]}})


def test_fedreps_head_trains_first():
    """And so it sees the representation that came: one step of it is FedPer's, the body's then is not."""
    states = play("fedrep", {"head_epochs": 1, "weighting": "examples"}, net=WITHOUT_BN, **FULL)
    fedper = play("fedper", net=WITHOUT_BN, **FULL)
    same(states[0].clients.part, fedper[0].clients.part)
    assert differ(body(states[0]), body(fedper[0]))


def test_fedreps_layers_fit_the_model():
    refused(
        "fedrep",
        {"personal_layers": 3},
        "config.fedrep.personal_layers: found 3, expected 1 to 2, as the model has the layers body, norm, head",
    )


# -- LG-FedAvg ----------------------------------------------------------------------------------------------------------

BODY = ("body.kernel", "body.bias")


def local_part(client: Any) -> dict[str, np.ndarray] | None:
    return toy.flat(client.l_k) if client.own else None


@pytest.mark.parametrize(
    ("layers", "start", "weighting", "names"),
    [(1, 2, "uniform", BODY), (2, 0, "examples", BODY + BATCH_NORM)],
)
def test_lg_fedavg(layers, start, weighting, names):
    check(
        "lg_fedavg",
        {"local_layers": layers, "start": start, "weighting": weighting},
        functools.partial(lg_fedavg.lg_fedavg, local=names, start=start, weighting=weighting),
        model,
        local_part,
    )


def test_lg_fedavg_is_fedavg_before_it_starts():
    states, fedavg = play("lg_fedavg", {"start": 2}), play("fedavg", {"weighting": "uniform"})
    same([state.server for state in states[:2]], [state.server for state in fedavg[:2]])
    assert differ(states[2].server, fedavg[2].server)
    same(body(states[3]), body(states[1]))  # what the server has of the local part rests


def test_lg_fedavg_is_fedpers_mirror_image():
    """What one of them averages the other keeps: one round of both makes all of FedAvg's, and each client's own."""
    mine, fedper, fedavg = (
        play(name, {"weighting": "uniform", **options})[0]
        for name, options in [("lg_fedavg", {"local_layers": 2}), ("fedper", {"personal_layers": 1}), ("fedavg", {})]
    )
    w, statistics = fedavg.server.variables["params"], fedavg.server.variables["batch_stats"]
    same(mine.server.variables["params"]["head"], w["head"])
    for layer in ("body", "norm"):
        same(fedper.server.variables["params"][layer], w[layer])
    same(fedper.server.variables["batch_stats"], statistics)
    alone = play("local")[0].clients.variables
    for k in (k for k in ROUNDS[0][0] if k < toy.N):
        parts = toy.row((mine.clients.l_k, fedper.clients.part, alone), k)
        same({**parts[0]["params"], **parts[1]["params"]}, parts[2]["params"])


def test_lg_fedavgs_layers_fit_the_model():
    refused(
        "lg_fedavg",
        {"local_layers": 0},
        "config.lg_fedavg.local_layers: found 0, expected 1 to 2, as the model has the layers body, norm, head",
    )


# -- APFL ---------------------------------------------------------------------------------------------------------------


def mixed(client: Any) -> dict[str, np.ndarray]:
    found = toy.flat(client.v_k) | {"alpha": np.asarray(client.alpha_k)}
    return found | (prefixed("w", toy.flat(client.w_k)) if client.w_k else {})


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.4, "alpha_decay": 0.3, "weighting": "examples"},
        {"alpha": 0.999, "mix_with": "own"},
        pytest.param({"alpha": 0.3, "adaptive": False}, marks=pytest.mark.slow),
    ],
)
def test_apfl(settings):
    check("apfl", settings, functools.partial(apfl.apfl, **settings), model, mixed)


def test_apfls_shares_adapt():
    """Each client's to its own data; they stay in [0, 1], and are at times clipped there; without adaptation they rest."""
    states = play("apfl", {"alpha": 0.999})
    shares = np.stack([state.clients.alpha_k for state in states])
    assert len(np.unique(shares[-1])) > 3
    assert np.all((shares >= 0) & (shares <= 1))
    assert np.any(shares == 1)
    assert np.all(play("apfl", {"alpha": 0.999, "adaptive": False})[-1].clients.alpha_k == 0.999)


def test_apfl_with_a_share_of_nothing_is_fedavg():
    """For everybody; but batch norm's running statistics are the client's own."""
    options = {"alpha": 0.0, "adaptive": False}
    algorithm = algorithms.build("apfl", toy.training(), options)
    fedavg = [state.server for state in play("fedavg", {"weighting": "uniform"})]
    states = play("apfl", options)
    same([state.server for state in states], fedavg)
    for used in toy.models(algorithm, states[-1]):
        same(used["params"], fedavg[-1].variables["params"])


def test_apfl_with_a_share_of_all_is_local_training():
    """And its global model is FedAvg's whatever the share."""
    states = play("apfl", {"alpha": 1.0, "adaptive": False})
    same(states[-1].clients.v_k, play("local")[-1].clients.variables)
    fedavg = [state.server for state in play("fedavg", {"weighting": "uniform"})]
    same([state.server for state in states], fedavg)
    same([state.server for state in play("apfl")], fedavg)


# -- pFedMe -------------------------------------------------------------------------------------------------------------


def theta(client: Any) -> dict[str, np.ndarray] | None:
    return toy.flat(client.theta) if client.own else None


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": 2.0, "inner_steps": 3, "personal_lr": 0.07, "beta": 1.5, "weighting": "examples"},
        pytest.param({"lam": 5.0, "inner_steps": 5, "personal_lr": 0.02}, marks=pytest.mark.slow),
    ],
)
def test_pfedme(settings):
    """theta goes on from batch to batch, with its momentum, and begins a round at w."""
    check("pfedme", settings, functools.partial(pfedme.pfedme, **settings), model, theta)


def test_pfedme_with_one_full_step_is_fedavg():
    """Then theta - w is -eta_p times the gradient, and w_k makes a step of eta lambda eta_p; here that is eta."""
    states = play("pfedme", {"lam": 20.0, "inner_steps": 1, "personal_lr": 0.05}, net=WITHOUT_BN, **FULL)
    fedavg = play("fedavg", {"weighting": "uniform"}, net=WITHOUT_BN, **FULL)
    same([state.server for state in states], [state.server for state in fedavg])


def test_pfedme_without_its_term():
    """w rests, and each theta is local training from there, here with one step a batch at the same rate."""
    options = {"lam": 0.0, "inner_steps": 1, "personal_lr": toy.rate(0)}
    state, start = play("pfedme", options)[0], toy.variables()["params"]
    same(state.server.variables["params"], start)
    same(state.clients.theta, play("local")[0].clients.variables)
    resting = play("pfedme", {"beta": 0.0})[-1]
    same(resting.server.variables["params"], start)
    assert differ(resting.clients.theta["params"]["head"]["kernel"][0], start["head"]["kernel"])


def test_pfedmes_personal_model_is_near_the_global_one_where_lambda_is_large():
    """And is not w_k itself."""
    small, large = (
        play("pfedme", {"lam": lam, "personal_lr": 0.5 / lam, "inner_steps": 8}, solver=toy.PLAIN)[-1]
        for lam in (1.0, 100.0)
    )

    def distance(state: State) -> float:
        mine, w = state.clients.theta["params"], state.server.variables["params"]
        return float(np.sum(np.square(mine["head"]["kernel"][2] - w["head"]["kernel"])))

    assert 0 < distance(large) < distance(small) / 10


# -- Per-FedAvg ---------------------------------------------------------------------------------------------------------


def three(t: int, k: int) -> list[list[tuple[np.ndarray, ...]]]:
    """For each epoch the batches D, D', D'' of its steps."""
    draws = [batches(t, k, 2, draw=draw) for draw in (0, 3, 4)]
    return [list(zip(*epoch, strict=True)) for epoch in zip(*draws, strict=True)]


@pytest.mark.parametrize(
    ("form", "weighting", "delta"),
    [("hf", "uniform", 0.01), ("fo", "examples", 1.0), pytest.param("hf", "examples", 0.1, marks=pytest.mark.slow)],
)
def test_per_fedavg(form, weighting, delta):
    settings = {"alpha": 0.3, "delta": delta, "weighting": weighting}
    oracle = functools.partial(per_fedavg.per_fedavg, hessian_free=form == "hf", **settings)
    check("per_fedavg", {"form": form, **settings}, oracle, model, nothing, batches=three)


@pytest.mark.parametrize("steps", [1, 3])
def test_per_fedavg_adapts_to_a_clients_rows(steps):
    """To all of them and nothing else, whatever the padding; running statistics stay."""
    algorithm = algorithms.build("per_fedavg", toy.training(), {"alpha": 0.2, "adapt_steps": steps})
    adapt = toy.jit(algorithm.adapt)
    cohort = toy.cohort(range(toy.N))
    for k, (x, y) in enumerate(toy.rows()):
        used = adapt(toy.variables(), toy.row(cohort.data, k), jax.random.key(0))
        want = per_fedavg.adapted(toy.flat(toy.variables()), x, y, 0.2, steps, toy.BATCH)
        same(toy.flat(used), {name: want[name] for name in toy.flat(used)})


def test_what_is_evaluated_is_adapted():
    """The personal model, on its client's training data; and what trains on goes on from there. The global one is w."""
    training = toy.training()
    algorithm = algorithms.build("per_fedavg", training, {"alpha": 0.2})
    found = evaluate.candidates(algorithm, training)
    state = algorithm.init(toy.variables(), toy.N)
    data = toy.row(toy.cohort([2]).data, 0)
    x, y = toy.rows()[2]
    assert found["personal"].trains
    want = per_fedavg.adapted(toy.flat(toy.variables()), x, y, 0.2, 1, toy.BATCH)
    personal, tuned = (toy.jit(found[name].model)(state, (), data, jax.random.key(0)) for name in ("personal", "tuned"))
    used = toy.flat(personal)
    same(used, {name: want[name] for name in used})
    assert differ(tuned, personal)
    same(found["global"].model(state, (), data, jax.random.key(0)), toy.variables())
    fedavg = evaluate.candidates(algorithms.build("fedavg", training), training)
    assert not fedavg["personal"].trains


@pytest.mark.parametrize("form", ["fo", "hf"])
def test_per_fedavg_without_an_inner_step_is_fedavg(form):
    states = play("per_fedavg", {"alpha": 0.0, "form": form}, net=WITHOUT_BN, **FULL)
    fedavg = play("fedavg", {"weighting": "uniform"}, net=WITHOUT_BN, **FULL)
    same([state.server for state in states], [state.server for state in fedavg])
    algorithm = algorithms.build("per_fedavg", toy.training(), {"adapt_steps": 0})
    same(algorithm.adapt(toy.variables(), toy.row(toy.cohort([2]).data, 0), jax.random.key(0)), toy.variables())


def test_per_fedavg_descends_its_objective():
    """Hessian-free with one full step: the gradient of f(w - alpha grad f(w)), which automatic differentiation knows."""
    training = toy.training(net=WITHOUT_BN, **FULL)
    algorithm = algorithms.build("per_fedavg", training, {"alpha": 0.3, "delta": 1e-5})
    w, data = toy.variables(batch_norm=False), toy.row(toy.cohort([0]).data, 0)
    (state,) = toy.play(algorithm, algorithm.init(w, toy.N), [([0], ())])

    def f(params: Any) -> Any:
        batch = local.rows(data, np.arange(toy.COUNTS[0]), np.ones(toy.COUNTS[0], bool))
        return training.loss({"params": params}, batch, jax.random.key(0))[0]

    def objective(params: Any) -> Any:
        return f(jax.tree.map(lambda w, g: w - 0.3 * g, params, jax.grad(f)(params)))

    step = jax.tree.map(lambda new, old: (old - new) / toy.rate(0), state.server.variables["params"], w["params"])
    want = toy.jit(jax.grad(objective))(w["params"])
    same(step, want, 1e-6)
    assert differ(want, jax.grad(f)(w["params"]))


def test_per_fedavg_needs_a_mean():
    message = "config.loss.over_batch: found 'sum', but the adaptation of 'per_fedavg' needs 'mean'"
    refused("per_fedavg", {}, message, summed=True)


# -- pFedHN -------------------------------------------------------------------------------------------------------------

SERVER = {"server_lr": 0.2, "momentum": 0.8, "weight_decay": 0.02, "clip": 3.0}
HYPER = {"hidden": 7, "hidden_layers": 2, **SERVER}


def hyper(server: Any) -> dict[str, np.ndarray]:
    """By the oracle's names: the embeddings, the layers, the heads; and running statistics that the server has."""
    *layers, heads = server.hyper.psi
    found = {"e": np.asarray(server.hyper.e)}
    for i, layer in enumerate(layers):
        found |= {f"{i}.kernel": np.asarray(layer.kernel), f"{i}.bias": np.asarray(layer.bias)}
    for what in ("kernel", "bias"):
        found |= prefixed(f"heads.{what}", toy.flat(getattr(heads, what)))
    return found | toy.flat({name: part for name, part in server.rest.items() if name == "batch_stats"})


@pytest.mark.parametrize(
    ("layers", "start", "weighting", "policy", "names"),
    [
        (0, "model", "uniform", "aggregate", ()),
        (1, "hypernetwork", "examples", "local", BATCH_NORM + network.HEAD),
    ],
)
def test_pfedhn(layers, start, weighting, policy, names):
    """And pFedHN-PC; the server's momentum and decay move the embeddings of those who are absent."""
    options = {**HYPER, "personal_layers": layers, "start": start, "weighting": weighting}
    algorithm = algorithms.build("pfedhn", toy.training(batch_norm=policy), options)
    begin = hyper(algorithm.init(toy.variables(), toy.N).server)
    begin = {name: value for name, value in begin.items() if name not in STATISTICS}
    server = SGD(lr=0.2, momentum=0.8, weight_decay=0.02, clip=3.0)
    oracle = functools.partial(pfedhn.pfedhn, hyper=begin, depth=3, server=server, personal=names, weighting=weighting)
    client = kept if names else nothing
    check("pfedhn", options, oracle, hyper, client, stays=names, training={"batch_norm": policy})


def test_pfedhns_beginning():
    """PyTorch's initial values; or, with the heads' biases, about the initial model."""
    training = toy.training()
    states = {
        s: algorithms.build("pfedhn", training, {"start": s}).init(toy.variables(), toy.N)
        for s in ("hypernetwork", "model")
    }
    assert states["model"].server.hyper.e.shape == (toy.N, 2)  # 1 + 7 // 4
    first, *_, heads = states["hypernetwork"].server.hyper.psi
    for layer, fan_in in ((first, 2), (heads, 100)):
        drawn = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(layer)])
        assert 0.9 < np.max(np.abs(drawn)) * fan_in**0.5 <= 1
    same(states["model"].server.hyper.psi[-1].bias["params"], toy.variables()["params"])
    other = algorithms.build("pfedhn", toy.training(seed=1)).init(toy.variables(), toy.N)
    assert differ(other.server.hyper.e, states["model"].server.hyper.e)


def test_pfedhn_with_one_full_step_descends_the_clients_loss():
    """Then Delta is eta times the gradient, so the server descends that of f_k(H_psi(e_k)) at eta times its rate."""
    training = toy.training(net=WITHOUT_BN, **FULL)
    options = {**HYPER, "momentum": 0.0, "weight_decay": 0.0, "clip": 0.0}
    algorithm = algorithms.build("pfedhn", training, options)
    before = algorithm.init(toy.variables(batch_norm=False), toy.N)
    (after,) = toy.play(algorithm, before, [([2], ())])
    data = toy.row(toy.cohort([2]).data, 0)
    batch = local.rows(data, np.arange(toy.COUNTS[2]), np.ones(toy.COUNTS[2], bool))

    def f(hyper: Any) -> Any:
        used = algorithm.client_model(before.server._replace(hyper=hyper), (), np.int32(2))
        return training.loss(used, batch, jax.random.key(0))[0]

    grads = toy.jit(jax.grad(f))(before.server.hyper)
    want = jax.tree.map(lambda x, g: x - 0.2 * toy.rate(0) * g, before.server.hyper, grads)
    same(after.server.hyper, want, 1e-9)


def test_a_newcomer_of_pfedhn_has_the_mean_embedding():
    algorithm = algorithms.build("pfedhn", toy.training())
    server = algorithm.init(toy.variables(), toy.N).server
    mean = server._replace(hyper=server.hyper._replace(e=np.tile(np.mean(server.hyper.e, 0), (toy.N, 1))))
    same(algorithm.client_model(server, (), np.int32(toy.N + 1)), algorithm.client_model(mean, (), np.int32(3)))


def test_pfedhns_layers_fit_the_model():
    refused(
        "pfedhn",
        {"personal_layers": 3},
        "config.pfedhn.personal_layers: found 3, expected 0 to 2, as the model has the layers body, norm, head",
    )
