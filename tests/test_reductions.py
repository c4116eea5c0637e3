"""Where one method is another one, or is something that can be said in a line (METHODS.md, section 12.7)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from reference.network import train_batch

from fedjax_pfl import algorithms, tree
from fedjax_pfl.algorithms.optimisation import fedopt
from fedjax_pfl.core import Algorithm, Cohort, State
from fedjax_pfl.errors import UserError

ROUNDS = tuple((ids, ()) for ids, _ in toy.ROUNDS[:4])  # no upload is lost

FULL = {"epochs": 1, "batch_size": sum(toy.COUNTS), "solver": toy.PLAIN}  # one step on all of a client's rows
WITHOUT_BN = toy.Net(batch_norm=False)
TRAININGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "no batch norm": {"net": WITHOUT_BN},
    "batch norm local": {"batch_norm": "local"},
    "statistics local": {"batch_norm": "local-statistics"},
    "plain": {"solver": toy.PLAIN},
    "full step": {"net": WITHOUT_BN, **FULL},
    "label mask": {"loss": toy.label_mask_of(toy.Net()).loss},  # what fedlgt trains on
    "no table": {"label_mask": toy.label_mask_of(toy.Net(), table=False)},
}


@functools.cache
def build(name: str, training: str = "usual", **options: Any) -> tuple[Algorithm, Any]:
    """A method and its jitted round, made once for all tests that ask for the same."""
    algorithm = algorithms.build(name, toy.training(**TRAININGS[training]), options)
    return algorithm, toy.jit(algorithm.round)


def initial(training: str) -> Any:
    return toy.variables(batch_norm=TRAININGS[training].get("net") is not WITHOUT_BN)


@functools.cache
def play(name: str, training: str = "usual", **options: Any) -> list[State]:
    """The states after each of ROUNDS, on the host."""
    algorithm, round = build(name, training, **options)
    state = algorithm.init(initial(training), toy.N)
    return [jax.device_get(state) for state in toy.play(algorithm, state, ROUNDS, round)]


def once(name: str, cohort: Cohort, n: int, variables: Any = None, round: int = 0, **options: Any) -> State:
    """The state of n clients after one usual round from these variables."""
    algorithm, jitted = build(name, **options)
    state = algorithm.init(toy.variables() if variables is None else variables, n)
    return jax.device_get(jitted(state._replace(round=jnp.int32(round)), cohort, jax.random.key(toy.KEY))[0])


def servers(states: list[State]) -> list[Any]:
    """The server's model after each round."""
    return [state.server.variables for state in states]


def close(a: Any, b: Any) -> None:
    """Equal trees, to rounding."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13)


def identical(a: Any, b: Any) -> bool:
    """Equal trees, bit for bit."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# -- methods with a parameter at which they are another one -------------------------------------------------------------


def test_fedprox_without_its_term_is_fedavg():
    close(servers(play("fedprox", mu=0.0)), servers(play("fedavg")))


def test_ditto_without_its_term_is_local_training():
    close(play("ditto", lam=0.0)[-1].clients.v_k, play("local")[-1].clients.variables)


def test_dittos_global_model_is_fedavg_whatever_lambda():
    fedavg = servers(play("fedavg", weighting="uniform"))
    close(servers(play("ditto", lam=0.0)), fedavg)
    close(servers(play("ditto", lam=0.7)), fedavg)
    assert not identical(play("ditto", lam=0.7)[-1].clients, play("ditto", lam=0.0)[-1].clients)


def test_fedavgm_without_momentum_is_fedavg():
    close(servers(play("fedavgm", server_lr=1.0, momentum=0.0)), servers(play("fedavg")))


def test_fedlgt_without_an_interval_is_fedavg_on_masked_labels():
    fedavg = servers(play("fedavg", "label mask"))
    close(servers(play("fedlgt", epsilon=0.0)), fedavg)
    doubting = servers(play("fedlgt", epsilon=0.2))
    assert not np.allclose(doubting[0]["params"]["head"]["kernel"], fedavg[0]["params"]["head"]["kernel"])


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_fedlgts_global_model_may_run_once_or_on_each_batch(fidelity):
    """Where a row always gives the same input its predictions are a table; else they are made batch by batch."""
    once = servers(play("fedlgt", epsilon=0.2, fidelity=fidelity))
    close(servers(play("fedlgt", "no table", epsilon=0.2, fidelity=fidelity)), once)


def test_fedopt_with_sgd_is_fedavg():
    """optax's optimisers descend, so they are given -Delta."""
    tx = optax.chain(optax.scale(-1.0), optax.sgd(1.0))
    algorithm = fedopt.server_optimizer(toy.training(), tx, "examples")
    states = toy.play(algorithm, algorithm.init(toy.variables(), toy.N), ROUNDS)
    close(servers(list(states)), servers(play("fedavg")))


# -- two models per client, prototypes, decoupled training --------------------------------------------------------------


def test_fml_without_its_terms_is_local_training_and_fedavg():
    """Without momentum, as the private model's goes on over the rounds and local training's does not."""
    states = play("fml", "plain", alpha=1.0, beta=1.0)
    close(states[-1].clients.variables, play("local", "plain")[-1].clients.variables)
    close(servers(states), servers(play("fedavg", "plain", weighting="uniform")))


def test_fmls_models_learn_from_each_other():
    """Each loss alone couples one way."""
    alone = play("fml", "plain", alpha=1.0, beta=1.0)[0]
    taught = play("fml", "plain", alpha=0.5, beta=1.0)[0]
    close(taught.server, alone.server)
    assert not np.allclose(
        taught.clients.variables["params"]["body"]["kernel"][0], alone.clients.variables["params"]["body"]["kernel"][0]
    )


def test_fedproto_without_its_term_is_local_training():
    states = play("fedproto", lam=0.0)
    close(states[-1].clients.variables, play("local")[-1].clients.variables)
    close(
        play("fedproto", lam=2.0)[0].clients.variables, play("local")[0].clients.variables
    )  # round 0 has no prototypes
    assert not identical(play("fedproto", lam=2.0)[-1].clients.variables, states[-1].clients.variables)


def test_fedproto_keeps_the_prototype_of_a_class_that_nobody_has_now():
    """Client 3's only example is of one class; the others' prototypes stay, bit for bit."""
    before = play("fedproto")[-1]
    _, round = build("fedproto")
    after, _ = round(before, toy.cohort([3]), jax.random.key(toy.KEY))
    (c,) = toy.rows()[3][1]
    others = [j for j in range(toy.CLASSES) if j != c]
    assert np.all(before.server.has)
    np.testing.assert_array_equal(after.server.mean[np.array(others)], before.server.mean[others])
    assert not np.array_equal(after.server.mean[c], before.server.mean[c])


def test_silobn_is_fedavg_with_local_statistics():
    close(play("silobn"), play("fedavg", "statistics local"))


@pytest.mark.parametrize("retrain", ["federated", "local"])
def test_crt_is_fedavg_before_its_second_stage(retrain):
    close(servers(play("crt", start=2, retrain=retrain)[:2]), servers(play("fedavg")[:2]))
    close(servers(play("crt", start=4, retrain=retrain)), servers(play("fedavg")))


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_crts_backbone_rests(fidelity):
    """Bit for bit; only the released code's running statistics drift."""
    states = play("crt", start=2, fidelity=fidelity)
    first, last = states[1].server.variables, states[-1].server.variables
    for layer in ("body", "norm"):
        assert identical(first["params"][layer], last["params"][layer])
    assert identical(first["batch_stats"], last["batch_stats"]) == (fidelity == "paper")
    assert not identical(first["params"]["head"], last["params"]["head"])


def test_crts_new_classifier_starts_anew_when_it_can():
    """Where all uploads of the first such round are lost, in the next one."""
    algorithm, round = build("crt", start=1)
    lost, key = ((), toy.ROUNDS[1][0]), jax.random.key(toy.KEY)
    state = algorithm.init(toy.variables(), toy.N)
    state, _ = round(state, toy.cohort(ROUNDS[0][0]), key)
    state, _ = round(state, toy.cohort(lost[1], lost[1]), key)
    assert not state.server.restarted
    trained = state.server.variables
    other = tree.merge(trained, {"params": {"head": tree.scale(3, trained["params"]["head"])}})
    found = [
        jax.device_get(
            round(state._replace(server=state.server._replace(variables=w)), toy.cohort(ROUNDS[2][0]), key)[0]
        )
        for w in (trained, other)
    ]
    assert found[0].server.restarted
    close(found[0].server, found[1].server)  # whatever the old classifier was


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("fml", (4,), "config.method: 'fml' needs one label an example or masks, found several labels"),
        ("fedproto", (4,), "config.method: 'fedproto' needs one label an example, found several"),
        ("crt", (4, 4), "config.method: 'crt' needs one label an example, found several or masks"),
    ],
)
def test_methods_that_need_one_label(name, labels, message):
    cohort = toy.cohort(ROUNDS[0][0])
    y = jnp.zeros((*cohort.data.y.shape, *labels), jnp.int32)
    algorithm = algorithms.build(name, toy.training())
    state = algorithm.init(toy.variables(), toy.N)
    with pytest.raises(UserError) as error:
        algorithm.round(state, cohort._replace(data=cohort.data._replace(y=y)), jax.random.key(0))
    assert str(error.value) == message
    with pytest.raises(UserError, match=f"'{name}' needs one label an example.*, and no label-mask model"):
        algorithms.build(name, toy.training(network=None))


def test_fedprotos_nearest_prototype_needs_a_bias():
    algorithm, variables = algorithms.build("fedproto", toy.training(), {"inference": "prototype"}), toy.variables()
    del variables["params"]["head"]["bias"]
    with pytest.raises(
        UserError, match=r"^config\.fedproto\.inference: found 'prototype', expected 'head', as the model"
    ):
        algorithm.init(variables, toy.N)


def test_tau_norm():
    """tau = 1: every class's weights have length 1. It trains as FedAvg does, and leaves out the bias."""
    algorithm, _ = build("crt", classifier="normalise", tau=1.0)
    state = play("crt", classifier="normalise", tau=1.0)[-1]
    fedavg = play("fedavg")[-1].server.variables
    close(state.server.variables, fedavg)
    for used in (algorithm.global_model(state.server), toy.models(algorithm, state)[6]):
        head = fedavg["params"]["head"]["kernel"]
        close(used["params"]["head"]["kernel"], head / np.linalg.norm(head, axis=0))
        assert np.all(used["params"]["head"]["bias"] == 0)
        close(used["params"]["body"], fedavg["params"]["body"])
    half = build("crt", classifier="normalise", tau=0.5)[0].global_model(state.server)["params"]["head"]["kernel"]
    close(half, head / np.sqrt(np.linalg.norm(head, axis=0)))


# -- SCAFFOLD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [1, 2])
def test_scaffolds_first_round_is_uniform_fedavg(option):
    first, second = play("scaffold", option=option)[:2]
    fedavg = servers(play("fedavg", weighting="uniform"))
    close(first.server.variables, fedavg[0])
    assert not np.allclose(second.server.variables["params"]["head"]["kernel"], fedavg[1]["params"]["head"]["kernel"])


@pytest.mark.parametrize("option", [1, 2])
def test_scaffolds_control_is_the_mean_of_all_clients(option):
    """Over all N of them, at any participation."""
    for state in play("scaffold", option=option):
        close(state.server.c, jax.tree.map(lambda c_i: c_i.mean(0), state.clients.c_i))
        assert np.all(state.server.c["head"]["kernel"] != 0)


def test_scaffolds_options_agree_on_one_full_step():
    """Then option II's mean of the gradients along the path is option I's gradient at its start."""
    close(play("scaffold", "full step", option=1), play("scaffold", "full step", option=2))


# -- batch norm and heads -----------------------------------------------------------------------------------------------


def test_fedbn_without_batch_norm_is_uniform_fedavg():
    states = play("fedbn", "no batch norm")
    close(servers(states), servers(play("fedavg", "no batch norm", weighting="uniform")))
    for model in toy.models(build("fedbn", "no batch norm")[0], states[-1]):
        close(model, states[-1].server.variables)


def test_silobn_and_fedavg_have_the_same_parameters():
    """Training uses the batch's statistics, so the running ones tell only in evaluation."""
    for silobn, fedavg in zip(play("fedavg", "statistics local"), play("fedavg"), strict=True):
        close(silobn.server.variables["params"], fedavg.server.variables["params"])
        own = silobn.clients.part["batch_stats"]["norm"]["mean"]
        assert not np.any(np.isclose(own[0], fedavg.server.variables["batch_stats"]["norm"]["mean"]))


def test_fedbn_is_fedavg_with_the_policy_local():
    close(play("fedbn"), play("fedavg", "batch norm local", weighting="uniform"))


@pytest.mark.parametrize(
    "name",
    [
        "fedavg",
        "fedprox",
        "scaffold",
        "fedavgm",
        "fedadagrad",
        "fedadam",
        "fedyogi",
        "finetune",
        "fedper",
        "ditto",
        "fedlgt",
        "fml",
        "silobn",
        "crt",
    ],
)
def test_the_batch_norm_policy_reaches_every_method_that_shares_a_model(name):
    for policy, collection in [("batch norm local", "params"), ("statistics local", "batch_stats")]:
        algorithm = algorithms.build(name, toy.training(**TRAININGS[policy]))
        part = algorithm.init(toy.variables(), toy.N).clients.part
        assert "norm" in part[collection]
        assert "norm" in part["batch_stats"]
        assert algorithm.global_model is None


def test_a_personal_head_does_not_come_from_the_server():
    """Whatever the server's head is, nothing else changes."""
    algorithm, round = build("fedper")
    state = algorithm.init(toy.variables(), toy.N)
    params = state.server.variables["params"]
    other = {**state.server.variables, "params": {**params, "head": tree.scale(5, params["head"])}}
    cohort = toy.cohort(ROUNDS[0][0])
    one, _ = round(state, cohort, jax.random.key(toy.KEY))
    two, _ = round(state._replace(server=state.server._replace(variables=other)), cohort, jax.random.key(toy.KEY))
    assert identical(one.clients, two.clients)
    assert identical(one.server.variables["params"]["body"], two.server.variables["params"]["body"])
    assert identical(toy.models(algorithm, one), toy.models(algorithm, two))


@pytest.mark.parametrize(("name", "stays"), [("fedper", "head"), ("fedbn", "norm")])
def test_what_a_client_keeps_does_not_reach_the_server(name, stays):
    """Its entries of the server's model stay what they were (METHODS.md, section 5.9)."""
    first, last = toy.variables(), play(name)[-1]
    for collection in set(first) & set(last.clients.part):
        close(last.server.variables[collection][stays], first[collection][stays])
        assert not identical(last.clients.part[collection][stays], tree.broadcast(first[collection][stays], toy.N))


def test_scaffold_does_not_correct_or_send_what_a_client_keeps():
    """Local batch norm follows the client's own gradient: its drift is no control variate, and stays at home."""
    last = play("scaffold", "batch norm local")[-1]
    for control in (last.server.c["norm"], last.clients.client.c_i["norm"]):
        assert identical(control, tree.zeros_like(control))
    assert np.all(last.server.c["body"]["kernel"] != 0)


# -- fine-tuning --------------------------------------------------------------------------------------------------------


def test_finetune_is_fedavg_and_then_local_training():
    """From the model that FedAvg arrived at; who hasn't tuned yet uses that."""
    states, fedavg = play("finetune", start=2), play("fedavg")
    close(servers(states[:2]), servers(fedavg[:2]))
    w = fedavg[1].server.variables
    close(servers(states[2:]), [w, w])
    algorithm, _ = build("finetune", start=2)
    local_algorithm, local_round = build("local")
    start = local_algorithm.init(w, toy.N)._replace(round=jnp.int32(2))
    for state, local in zip(states[2:], toy.play(local_algorithm, start, ROUNDS[2:], local_round), strict=True):
        close(toy.models(algorithm, state), toy.models(local_algorithm, local))


def test_frozen_layers_do_not_move():
    """Decay and momentum rest as well. Running statistics follow the client's data."""
    states = play("finetune", start=2, tuned_layers=1)
    start, clients = states[1].server.variables, states[2].clients.variables
    for k in ROUNDS[2][0]:
        for layer in ("body", "norm"):
            assert identical(toy.row(clients["params"][layer], k), start["params"][layer])
        assert not identical(clients["params"]["head"]["kernel"][k], start["params"]["head"]["kernel"])
        assert not identical(clients["batch_stats"]["norm"]["mean"][k], start["batch_stats"]["norm"]["mean"])


def test_clipping_leaves_out_frozen_layers():
    """Their gradient is none of the optimiser's business: the head's step is as long as the clipped norm allows."""
    training = toy.training(WITHOUT_BN, {**toy.PLAIN, "clip": 0.01}, epochs=1, batch_size=sum(toy.COUNTS))
    algorithm = algorithms.build("finetune", training, {"start": 0, "tuned_layers": 1})
    start = toy.variables(batch_norm=False)
    state = next(toy.play(algorithm, algorithm.init(start, toy.N), ROUNDS))
    step = tree.sub(toy.row(state.clients.variables, 0), start)
    np.testing.assert_allclose(tree.squared_norm(step) ** 0.5, toy.rate(0) * 0.01, rtol=1e-6)


# -- one client, one step, pooled rows ----------------------------------------------------------------------------------


def test_one_client_alone():
    """FedAvg with one client is centralised training is local training."""
    cohort = toy.cohort([0])
    fedavg = once("fedavg", cohort, 1).server.variables
    close(once("centralised", cohort, 1).server.variables, fedavg)
    close(toy.row(once("local", cohort, 1).clients.variables, 0), fedavg)


def test_centralised_is_training_on_the_pooled_rows():
    """As one client does that holds the rows of all, in the order of the clients' ids."""
    ids = (4, 0, toy.PAD, 3, 2)
    x, y = (np.concatenate([toy.rows()[k][i] for k in sorted(ids) if k < toy.N]) for i in (0, 1))
    alone = once("local", toy.cohort([0], data=[(x, y)]), 1).clients.variables
    close(once("centralised", toy.cohort(ids), toy.N).server.variables, toy.row(alone, 0))


def test_one_full_step_is_one_step_on_the_weighted_loss():
    """FedAvg whose clients make one step on all their rows is gradient descent on sum_k n_k / n F_k."""
    w = toy.flat(initial("full step"))
    for t, (state, (ids, _)) in enumerate(zip(play("fedavg", "full step"), ROUNDS, strict=True)):
        x, y = (np.concatenate([toy.rows()[k][i] for k in ids if k < toy.N]) for i in (0, 1))
        _, gradient, _ = train_batch(w, x, y)
        w = {name: w[name] - toy.rate(t) * gradient[name] for name in w}
        close(toy.flat(state.server.variables), w)


@pytest.mark.slow
def test_a_classifier_one_level_down():
    """VGG16-slim's is `fc2.linear`: tau-norm and nearest prototypes find it."""
    from fedjax_pfl.models.vgg import VGG16Slim

    model = VGG16Slim(toy.CLASSES, True, "none", "gemm", width=1)
    variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    training = toy.training(layers=model.layers)
    kernel = np.asarray(variables["params"]["fc2"]["linear"]["kernel"])

    algorithm = algorithms.build("crt", training, {"classifier": "normalise", "tau": 1.0})
    used = algorithm.global_model(algorithm.init(variables, 2).server)["params"]["fc2"]["linear"]
    np.testing.assert_allclose(used["kernel"], kernel / np.linalg.norm(kernel, axis=0), rtol=1e-6)
    assert not np.any(used["bias"])

    algorithm = algorithms.build("fedproto", training, {"inference": "prototype"})
    state = algorithm.init(variables, 2)
    C = np.arange(6, dtype=np.float32).reshape(3, 2)
    server = state.server._replace(mean=C, has=np.ones(3, bool))
    client = toy.row(state.clients, 0)._replace(owns=np.ones(3, bool))
    head = algorithm.client_model(server, client, 0)["params"]["fc2"]["linear"]
    np.testing.assert_allclose(head["kernel"], C.T)
    np.testing.assert_allclose(head["bias"], -(C**2).sum(1) / 2)
