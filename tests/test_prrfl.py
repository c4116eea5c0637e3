"""PRR-FL: the loop of `reference.prrfl`, the stage machine, the CPA loss, its limits and its switches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from reference import fourier as fourier_oracle
from reference import prrfl as oracle
from reference.sgd import SGD

from fedjax_pfl import algorithms, cpa, fourier, prototypes
from fedjax_pfl.algorithms.personal import prrfl
from fedjax_pfl.errors import UserError
from fedjax_pfl.prototypes import Prototypes

EPOCHS = 4
# 0.7, 0.75, 0.8 ...: as decimals, since half of 5 * 0.7999999999999999 is under 2 and that of 5 * 0.8 is not
RATES = np.round(fourier.rates(len(toy.ROUNDS)), 12)
COUNTS = toy.training().counts


@functools.partial(jax.jit, static_argnums=4)
def _order(round, id, exchange, count, epochs):
    """The orders of a client's rows in an exchange, by the keys that core.compose, core.run and local.train_on document."""
    key = jax.random.fold_in(jax.random.key(toy.KEY), round)
    key = jax.random.fold_in(jax.random.fold_in(key, exchange), id)
    return [
        prrfl.local.permutation(jax.random.fold_in(jax.random.fold_in(key, e), 0), count, 2 * sum(toy.COUNTS))
        for e in range(epochs)
    ]


def batches(round, id, exchange="round", epochs=EPOCHS):
    """For each epoch the row numbers of its batches."""
    count = toy.COUNTS[id]
    if exchange == "round":
        orders = _order(round, id, 0, count, epochs)
    else:
        orders = [_order(round, id, e, count, 1)[0] for e in range(epochs)]
    return [[np.asarray(o)[:count][i : i + toy.BATCH] for i in range(0, count, toy.BATCH)] for o in orders]


def noise(round, e):
    """The draw that `prrfl` makes for everybody."""
    key = jax.random.fold_in(jax.random.key(0), 2**31 - 1)
    key = jax.random.fold_in(jax.random.fold_in(key, jnp.int32(round)), e)
    return np.asarray(jax.random.normal(key, (toy.CLASSES, toy.HIDDEN), jnp.float64))


def solver(round):
    return SGD(toy.rate(round), **toy.SOLVER)


PARTICIPANTS = [[(k, k not in lost) for k in ids if k < toy.N] for ids, lost in toy.ROUNDS]

V1 = {"components": "amplitude", "classwise": False, "cpa_weight": 0.0}
V1_RULES = {"pfa": fourier_oracle.Rules("amplitude", classwise=False), "cpa": False}
CASES = {
    "v1": (V1, V1_RULES),
    "v2": ({"start": 1}, {"start": 1}),
    "v2 avg, T": (
        {"start": 0, "global_prototype": "avg", "temperature": 2.0},
        {"start": 0, "kind": "avg", "temperature": 2.0},
    ),
    "reference": (
        {"start": 1, "fidelity": "reference"},
        {"start": 1, "pfa": fourier_oracle.REFERENCE, "score_on": "train", "exchange": "epoch", "reset": True},
    ),
    "PFA alone": (
        {"det": False, "cpa_weight": 0.0, "components": "complex", "classwise": False},
        {"det": False, "cpa": False, "pfa": fourier_oracle.Rules("complex", classwise=False)},
    ),
}


QUICK = ("v1", "v2")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_equals_the_plain_loop(case):
    """Personal models, S_k, batch norm and prototypes after each of five rounds; every stage occurs."""
    options, rules = CASES[case]
    exchange = rules.get("exchange", "round")
    training = toy.training(epochs=EPOCHS)
    algorithm = algorithms.build("prrfl", training, {"lambda1": 0.6, "lambda2": 0.8, **options})
    rules = oracle.Rules(**{"rates": tuple(RATES), "counts": COUNTS, "lambda1": 0.6, "lambda2": 0.8, **rules})
    loop = oracle.prrfl(
        oracle.ByHand(toy.CLASSES, toy.HIDDEN), toy.flat(toy.variables()), toy.rows(), toy.validation(), PARTICIPANTS,
        functools.partial(batches, exchange=exchange), solver, rules, noise,
    )  # fmt: skip
    stages = set()
    states = toy.play(algorithm, algorithm.init(toy.variables(), toy.N))
    for state, expected in zip(states, loop, strict=True):
        stages |= {stage for each in expected.stages for stage in each}
        state = jax.device_get(state)
        for k, model in enumerate(toy.models(algorithm, state)):
            close(toy.flat(model), expected.round.models[k], f"model {k}")
            close(toy.flat(toy.row(state.server.variables, k)), expected.S[k], f"S {k}")
            close(toy.flat(toy.row(state.clients.part, k)), expected.round.clients[k], f"batch norm {k}")
        if rules.cpa:
            has = expected.has
            np.testing.assert_array_equal(state.server.prototypes.has, has)
            np.testing.assert_allclose(state.server.prototypes.mean[has], expected.prototypes[has], rtol=1e-8)
            for k, (sums, counts) in enumerate(expected.own):
                np.testing.assert_allclose(state.clients.client.f.sums[k], sums, rtol=1e-8, atol=1e-12)
                np.testing.assert_array_equal(state.clients.client.f.counts[k], counts)
    assert stages == ({1, 2, 3} if rules.det else {2})


def close(actual, expected, what):
    assert actual.keys() == expected.keys(), what
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-8, atol=1e-11, err_msg=f"{what}: {name}")


# -- the other ways to run it -------------------------------------------------------------------------------------------


ALL = ((tuple(range(toy.N)), ()),) * 3


def rounds_of(options, rounds=toy.ROUNDS, **training):
    algorithm = algorithms.build("prrfl", toy.training(**{"epochs": 2, **training}), options)
    states = list(toy.play(algorithm, algorithm.init(toy.variables(), toy.N), rounds))
    return algorithm, jax.device_get(states)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["round", "epoch"])
def test_kept_optimisers(exchange):
    """They differ from fresh ones from a client's second round on, and are the client's own."""
    _, fresh = rounds_of({"exchange": exchange})
    _, kept = rounds_of({"exchange": exchange, "optimizer": "kept"})
    for k in (0, 1, 3):  # of the first round
        close(toy.flat(toy.row(kept[0].clients.client.P, k)), toy.flat(toy.row(fresh[0].clients.client.P, k)), k)
    body = [s[-1].clients.client.P["params"]["body"]["kernel"] for s in (fresh, kept)]
    for k in range(toy.N):
        rounds = sum(k in ids for ids, _ in toy.ROUNDS)
        assert np.array_equal(body[0][k], body[1][k]) == (rounds < 2), k


@pytest.mark.slow
def test_prototypes_of_logits():
    """The classes' mean logits; without a personal model those of the deputy."""
    for det in (True, False):
        _, states = rounds_of({"prototype": "logit", "start": 0, "det": det}, ALL[:1])
        assert states[0].clients.client.f.sums.shape == (toy.N, toy.CLASSES, toy.CLASSES)
        assert states[0].server.prototypes.has.all()


@pytest.mark.slow
def test_classes_that_a_cohort_lacks_keep_their_prototypes():
    """Client 3 alone, with its single example: only that class's global prototype moves."""
    _, (before, after) = rounds_of({"start": 0}, (ALL[0], ((3,), ())))
    (own,) = toy.rows()[3][1]
    assert before.server.prototypes.has.all()
    for c in range(toy.CLASSES):
        same = np.array_equal(before.server.prototypes.mean[c], after.server.prototypes.mean[c])
        assert same == (c != own)


@pytest.mark.slow
def test_lost_uploads_change_no_others():
    """A client whose upload is lost keeps its S_k, and goes on with its personal model and batch norm all the same."""
    for exchange in ("round", "epoch"):
        _, states = rounds_of({"exchange": exchange})
        before, after = states[1], states[2]  # client 4's upload is lost there
        assert toy.ROUNDS[2][1] == (4,)
        np.testing.assert_array_equal(
            before.server.variables["params"]["body"]["kernel"][4],
            after.server.variables["params"]["body"]["kernel"][4],
        )
        P = [s.clients.client.P["params"]["body"]["kernel"][4] for s in (before, after)]
        assert not np.array_equal(*P)


def test_without_its_three_parts_it_is_fedbn():
    """The mean instead of PFA, no personal model, cross entropy, everybody there: FedBN."""
    ours, states = rounds_of({"pfa": False, "det": False, "cpa_weight": 0.0}, ALL)
    fedbn = algorithms.build("fedbn", toy.training())
    for state, expected in zip(states, toy.play(fedbn, fedbn.init(toy.variables(), toy.N), ALL), strict=True):
        for a, b in zip(toy.models(ours, state), toy.models(fedbn, expected), strict=True):
            close(toy.flat(a), toy.flat(b), "")


@pytest.mark.slow
def test_complex_coefficients_at_rate_1_are_the_mean():
    """Then S_k is the deputies' mean."""
    whole, mean = (
        rounds_of({"cpa_weight": 0.0, **options}, ALL)[1]
        for options in ({"components": "complex", "classwise": False, "r0": 1.0, "final_rate": 1.0}, {"pfa": False})
    )
    for a, b in zip(whole, mean, strict=True):
        for k in range(toy.N):
            close(toy.flat(toy.row(a.server.variables, k)), toy.flat(toy.row(b.server.variables, k)), k)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 0.5}, ("config.prrfl.tau", "1 or more")),
        ({"exchange": "epochs"}, ("config.prrfl.exchange", "'epochs'", "epoch")),
        ({"distill": "k1"}, ("config.prrfl.distill", "kl")),
        ({"components": "phase"}, ("config.prrfl.components", "amplitude_phase")),
        ({"score_on": "test"}, ("config.prrfl.score_on", "validation")),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError) as error:
        algorithms.build("prrfl", toy.training(), options)
    for word in words:
        assert word in str(error.value)


def test_a_label_mask_model_is_refused():
    with pytest.raises(UserError, match="label-mask"):
        algorithms.build("prrfl", toy.training(network=None))


def test_the_curve():
    """Before and after training: S_k with the client's batch norm, and its personal model."""
    training = toy.training()
    algorithm = algorithms.build("prrfl", training._replace(observe=training.score), {})
    state = algorithm.init(toy.variables(), toy.N)
    round = toy.jit(algorithm.round)
    for t, (ids, lost) in enumerate(toy.ROUNDS[:2]):
        before = state
        state, report = round(state, toy.cohort(ids, lost), jax.random.key(toy.KEY))
        curve = jax.device_get(report.train.curve)
        for i, k in enumerate(ids):
            if k == toy.PAD:
                continue
            for values, s, model in (
                (curve.received, before, algorithm.shared_model),
                (curve.own_before, before, algorithm.client_model),
                (curve.own_after, state, algorithm.client_model),
            ):
                x, y = toy.validation()[k]
                variables = jax.device_get(model(s.server, toy.row(s.clients, k), jnp.int32(k)))
                logits = oracle.predict(toy.flat(variables), x)
                expected = oracle.macro_f1(logits.argmax(1), y, toy.CLASSES)
                assert values[i] == pytest.approx(expected, abs=1e-12), (t, k)


def test_the_curve_of_a_method_without_a_model_of_ones_own():
    """What one client alone sends is the server's next model."""
    training = toy.training()
    algorithm = algorithms.build("fedavg", training._replace(observe=training.score), {})
    state = algorithm.init(toy.variables(), toy.N)
    state, report = toy.jit(algorithm.round)(state, toy.cohort([4]), jax.random.key(toy.KEY))
    x, y = toy.validation()[4]
    for value, variables in (
        (report.train.curve.received, toy.variables()),
        (report.train.curve.trained, state.server.variables),
    ):
        expected = oracle.macro_f1(oracle.predict(toy.flat(variables), x).argmax(1), y, toy.CLASSES)
        assert value[0] == pytest.approx(expected, abs=1e-12)
    assert report.train.curve.own_before == report.train.curve.own_after == ()


# -- the stages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "f_P", "f_D", "expected"),
    [
        (0, 0.5, 0.9, 1),  # a round begins
        (1, 0.5, 0.34, 1),  # under 0.7 f_P
        (1, 0.5, 0.35, 2),  # at 0.7 f_P
        (1, 0.5, 0.9, 2),  # never from Recover to Sublimate
        (2, 0.5, 0.44, 2),
        (2, 0.5, 0.45, 3),  # at 0.9 f_P
        (3, 0.5, 0.44, 2),
        (3, 0.5, 0.34, 1),
        (3, 0.0, 0.0, 3),
    ],
)
def test_next_stage(stage, f_P, f_D, expected):
    assert prrfl.next_stage(jnp.int32(stage), jnp.float64(f_P), jnp.float64(f_D), 0.7, 0.9) == expected
    assert oracle.choose(stage, f_P, f_D, oracle.Rules()) == expected


@pytest.mark.slow
def test_one_epoch_a_round_is_exchange():
    """Whatever the scores say: with impossible thresholds both still learn from each other."""
    (_, a), (_, b) = (rounds_of({"lambda1": lambda1}, epochs=1) for lambda1 in (0.0, 1e9))
    for x, y in zip(jax.tree.leaves(a[-1]), jax.tree.leaves(b[-1]), strict=True):
        np.testing.assert_array_equal(x, y)


# -- what both learn from each other ------------------------------------------------------------------------------------

TEACHER, STUDENT = np.array([2.0, 0.0, -1.0]), np.array([1.0, 0.5, -0.5])


@pytest.mark.parametrize(("temperature", "value"), [(1, 0.199976688), (2, 0.273915612), (4, 0.277907671)])
def test_distillation_vectors(temperature, value):
    """METHODS.md 12.4."""
    assert prrfl.distillation("kl", TEACHER, STUDENT, temperature) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("kind", prrfl.DISTILLATIONS)
def test_distillation(kind):
    """Nothing flows to the teacher; pixels are averaged; equal logits teach nothing."""
    value, (to_teacher, to_student) = jax.value_and_grad(functools.partial(prrfl.distillation, kind), (0, 1))(
        jnp.asarray(TEACHER), jnp.asarray(STUDENT), 1.0
    )
    assert value > 0
    assert not np.any(to_teacher)
    assert np.sum(to_student) == pytest.approx(0, abs=1e-15)
    p, q = (np.exp(z) / np.exp(z).sum() for z in (STUDENT, TEACHER))
    expected = {"kl": q @ np.log(q / p), "reverse_kl": p @ np.log(p / q), "mse": np.mean((p - q) ** 2)}
    assert value == pytest.approx(expected[kind], rel=1e-12)
    maps = [jnp.asarray(np.stack([z, 0 * z]).reshape(2, 1, 3)) for z in (TEACHER, STUDENT)]
    assert prrfl.distillation(kind, *maps, 1.0) == pytest.approx(expected[kind] / 2, rel=1e-12)
    assert prrfl.distillation(kind, STUDENT, STUDENT, 1.0) == 0


# -- the CPA loss -------------------------------------------------------------------------------------------------------

N = (5408, 941, 994)
LOGITS = np.array([2.0, 1.0, 0.1])


def test_mitigation():
    """METHODS.md 2.5; and a class without examples."""
    s = [[1, 0.246855, 0.257917], [1, 1, 1], [1, 0.957112, 1]]
    np.testing.assert_allclose(cpa.mitigation(N, 0.8), s, atol=5e-7)
    np.testing.assert_array_equal(cpa.mitigation(N, 0.8), oracle.mitigation(N, 0.8))
    assert np.isfinite(cpa.mitigation((5, 0), 0.8)).all()


@pytest.mark.parametrize(("y", "value"), list(enumerate((0.121676746, 1.417026550, 2.306568654))))
def test_conjoint_vectors(y, value):
    """METHODS.md 12.1; a common offset changes nothing; the gradient is that of the oracle, and sums to 0."""
    loss = functools.partial(cpa.conjoint, s=cpa.mitigation(N, 0.8))
    assert loss(LOGITS, y) == pytest.approx(value, abs=1e-9)
    assert loss(LOGITS + 100, y) == pytest.approx(value, abs=1e-9)
    grad = jax.grad(loss)(jnp.asarray(LOGITS), y)
    _, expected = oracle.conjoint(LOGITS[None], [y], np.ones(3), oracle.mitigation(N, 0.8))
    np.testing.assert_allclose(grad, expected[0], atol=1e-14)
    assert np.sum(grad) == pytest.approx(0, abs=1e-14)
    h, step = 1e-6, np.eye(3)
    numeric = [(loss(LOGITS + h * d, y) - loss(LOGITS - h * d, y)) / (2 * h) for d in step]
    np.testing.assert_allclose(grad, numeric, atol=1e-8)


def test_conjoint_limits():
    """beta = 0 or equal counts: cross entropy up to the 1e-6; the loss of one example is at most 13.8155."""
    for s in (cpa.mitigation(N, 0.0), cpa.mitigation((7, 7, 7), 0.8)):
        for y in range(3):
            assert cpa.conjoint(LOGITS, y, s) == pytest.approx(float(-jax.nn.log_softmax(LOGITS)[y]), abs=1e-5)
    assert cpa.conjoint(np.array([0.0, 1e4, 0.0]), 0, s) == pytest.approx(13.8155, abs=1e-4)
    assert np.isfinite(jax.grad(cpa.conjoint)(jnp.array([0.0, 1e4, 0.0]), 0, s)).all()


def both(mean, has=None):
    mean = np.asarray(mean, np.float64)
    return Prototypes(jnp.asarray(mean), jnp.ones(len(mean), bool) if has is None else jnp.asarray(has))


@pytest.mark.parametrize(("cosine", "gamma"), [(1, 1), (0.5, 1.142857), (0, 1.333333), (-0.5, 1.6)])
def test_refinement_vectors(cosine, gamma):
    """METHODS.md 12.1, tau = 3."""
    own, shared = both([[3.0, 0.0]]), both([[2 * cosine, 2 * np.sqrt(1 - cosine**2)]])
    assert cpa.refinement(own, shared, 3.0)[0] == pytest.approx(gamma, abs=1e-5)


def test_refinement_where_a_class_is_missing():
    """gamma = 1 where the client or everybody lacks it, and never NaN, not even for zeros."""
    own, shared = (
        both([[1, 0], [0, 1], [0, 0]], [True, False, True]),
        both([[0, 1], [1, 0], [1, 1]], [True, True, True]),
    )
    np.testing.assert_allclose(cpa.refinement(own, shared, 3.0), [4 / 3, 1, 4 / 3], rtol=1e-6)
    np.testing.assert_array_equal(cpa.refinement(own, both([[0, 1]] * 3, [False] * 3), 3.0), [1, 1, 1])


def test_global_prototypes():
    """Mean and deviation over the clients that have a class; the deviation is at least 1; a lone client has none."""
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 4, (4, 3, 5))
    has = np.array([[True, True, False], [True, False, False], [True, False, False], [True, False, False]])
    mean[~has] = 0
    own, key = Prototypes(jnp.asarray(mean), jnp.asarray(has)), jax.random.key(1)
    epsilon = np.asarray(jax.random.normal(key, (3, 5), jnp.float64))
    avg, gaussian = (cpa.global_prototypes(own, kind, key) for kind in cpa.KINDS[::-1])
    np.testing.assert_array_equal(avg.has, [True, True, False])
    np.testing.assert_allclose(avg.mean, [mean[:, 0].mean(0), mean[0, 1], np.zeros(5)], rtol=1e-12)
    spread = np.maximum(mean[:, 0].std(0, ddof=1), 1)
    assert (spread > 1).any()
    np.testing.assert_allclose(gaussian.mean[0], mean[:, 0].mean(0) + spread * epsilon[0], rtol=1e-12)
    np.testing.assert_allclose(gaussian.mean[1], mean[0, 1] + epsilon[1], rtol=1e-12)
    assert not np.any(gaussian.mean[2])


def test_collect_masks():
    """Of maps: the mean over all positions of the feature where the (shrunk) mask says the class; padding rows count not."""
    rng = np.random.default_rng(0)
    maps, y = rng.normal(size=(3, 2, 2, 4)), rng.integers(0, 3, (3, 4, 6))
    maps[2] = np.nan
    total = cpa.collect(
        prototypes.zeros(3, 4, jnp.float64), jnp.asarray(maps), jnp.asarray(y), jnp.array([1, 1, 0], bool)
    )
    expected = np.zeros((3, 4))
    for i in range(2):
        for r in range(2):
            for c in range(2):
                expected[y[i, 2 * r, 3 * c]] += maps[i, r, c] / 4
    np.testing.assert_allclose(total.sums, expected, rtol=1e-12)
    np.testing.assert_array_equal(total.counts, [2, 2, 2])
