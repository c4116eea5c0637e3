"""Losses for unequal classes: against the formulas in plain NumPy, their gradients, and where they are cross entropy."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from configs import fedproto_dermoscopy, fml_dermoscopy, imbalance_dermoscopy, silobn_dermoscopy
from fedjax_pfl import algorithms, imbalance, losses, problem
from fedjax_pfl import config as configuration
from fedjax_pfl.errors import UserError
from fedjax_pfl.models.mlp import mlp

COUNTS = (5408, 941, 994)  # of PRR-FL's dermoscopy
C = len(COUNTS)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(12, C)) * 2
LOGITS[0] = (9, 0, -1)  # a confident example, right
LOGITS[1] = (9, 0, -1)  # and wrong, with sigma_i under seesaw's clamp
LABELS = np.array([0, 2] + [0, 1, 2] * 3 + [1], np.int32)
Z, Y = jnp.asarray(LOGITS), jnp.asarray(LABELS)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def each(name, **options):
    """The loss of every example."""
    return np.asarray(jax.vmap(losses.for_task("single", name, **options))(Z, Y))


CROSS_ENTROPY = np.array([-np.log(softmax(z)[y]) for z, y in zip(LOGITS, LABELS, strict=True)])


# -- weights of classes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weighting", "beta", "expected"),  # METHODS.md, section 8.1
    [
        ("inverse_frequency", 0.0, (0.246149, 1.414640, 1.339211)),
        ("effective_number", 0.999, (0.712226, 1.162469, 1.125304)),
        ("effective_number", 0.9999, (0.298038, 1.386225, 1.315738)),
        ("effective_number", 0.0, (1, 1, 1)),
    ],
)
def test_class_weights(weighting, beta, expected):
    found = imbalance.class_weights(weighting, COUNTS, beta=beta)
    np.testing.assert_allclose(found, expected, atol=5e-7)
    np.testing.assert_allclose(found.sum(), C, rtol=1e-12)


@pytest.mark.parametrize("weighting", ["inverse_frequency", "effective_number"])
def test_a_class_that_never_occurs_has_a_finite_weight(weighting):
    never = imbalance.class_weights(weighting, (10, 0), beta=0.99)
    np.testing.assert_array_equal(never, imbalance.class_weights(weighting, (10, 1), beta=0.99))


@functools.cache
def fitted(name, summed=False, **options):
    """The batch loss of a linear model whose logits are its inputs, as training sees it."""
    built = problem.build(
        mlp(C, hidden=()), LOGITS[0], "single", loss=losses.for_task("single", name, **options), summed=summed
    )
    assert built.network is not None
    return built.network.objective


def batch(objective, real=12):
    """The loss of the first `real` rows; the others are padding, whose logits are NaN."""
    mask = jnp.arange(len(LABELS)) < real
    return objective(jnp.where(mask[:, None], Z, jnp.nan), Y, mask, jax.random.key(0))


@pytest.mark.parametrize("real", [len(LABELS), 5])
def test_reductions(real):
    """A weighted mean is divided by the sum of the weights, a mean by the number of examples."""
    w = imbalance.class_weights("inverse_frequency", COUNTS)[LABELS[:real]]
    total = (w * CROSS_ENTROPY[:real]).sum()
    options = {"weighting": "inverse_frequency", "counts": COUNTS}
    for reduction, number in [("weighted_mean", w.sum()), ("mean", real)]:
        found = batch(fitted("cross_entropy", reduction=reduction, **options), real)
        np.testing.assert_allclose(found, total / number, rtol=1e-12)
        summed = batch(fitted("cross_entropy", True, reduction=reduction, **options), real)
        np.testing.assert_allclose(summed, total, rtol=1e-12)
    plain = batch(fitted("cross_entropy"), real)
    np.testing.assert_allclose(plain, CROSS_ENTROPY[:real].mean(), rtol=1e-12)


def test_a_batch_without_weight_costs_nothing():
    objective = fitted("cross_entropy", weighting="given", weights=(0.0, 1.0, 1.0))
    assert batch(objective, 1) == 0  # its only example is of class 0
    assert batch(objective, 0) == 0


@pytest.mark.parity
def test_equal_to_pytorchs_class_weights():
    torch = pytest.importorskip("torch")
    weights = (0.2, 1.5, 0.7)
    z = torch.tensor(LOGITS, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        z, torch.tensor(LABELS, dtype=torch.int64), torch.tensor(weights).double()
    )
    expected.backward()
    objective = fitted("cross_entropy", weighting="given", weights=weights)
    mask = jnp.ones(len(LABELS), bool)
    found, gradient = jax.value_and_grad(lambda z: objective(z, Y, mask, jax.random.key(0)))(Z)
    np.testing.assert_allclose(found, expected.item(), rtol=1e-7)
    np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=1e-6)


# -- each loss by its formula -------------------------------------------------------------------------------------------


def focal(z, y, gamma, alpha=(1, 1, 1)):
    p = softmax(z)[y]
    return -alpha[y] * (1 - p) ** gamma * np.log(p)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma):
    expected = [focal(z, y, gamma) for z, y in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(each("focal", gamma=gamma), expected, rtol=1e-9)
    alpha = (0.3, 1.0, 2.0)
    expected = [focal(z, y, gamma, alpha) for z, y in zip(LOGITS, LABELS, strict=True)]
    found = each("focal", gamma=gamma, weighting="given", weights=alpha, reduction="mean")
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def seesaw(z, i, p, q, n=COUNTS):
    n, sigma = np.maximum(n, 1), softmax(z)
    S = np.ones(C)
    for j in range(C):
        if j != i:
            S[j] *= 1 if n[i] <= n[j] else (n[j] / n[i]) ** p
            ratio = sigma[j] / max(sigma[i], 0.01)
            S[j] *= ratio**q if ratio > 1 else 1
    e = np.exp(z)
    return -np.log(e[i] / (S * e).sum())


@pytest.mark.parametrize(("p", "q"), [(0.8, 2.0), (0.8, 0.0), (0.0, 2.0)])
def test_seesaw(p, q):
    expected = [seesaw(z, y, p, q) for z, y in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(each("seesaw", p=p, q=q, counts=COUNTS), expected, rtol=1e-9)
    expected = [seesaw(z, y, p, q, (10, 0, 1)) for z, y in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(each("seesaw", p=p, q=q, counts=(10, 0, 1)), expected, rtol=1e-9)


@pytest.mark.parametrize(("label", "expected"), list(enumerate((0.121676990, 1.417030016, 2.306578028))))
def test_seesaw_without_compensation_is_the_conjoint_objective(label, expected):
    """METHODS.md, section 12.1, without the terms of 1e-6."""
    found = imbalance.seesaw(jnp.array([2.0, 1.0, 0.1]), label, p=0.8, q=0.0, counts=COUNTS)
    np.testing.assert_allclose(found, expected, atol=5e-10)


def test_compensation_is_a_constant():
    """The gradient is that of cross entropy on shifted logits: softmax of the shifted minus one-hot."""
    z, i = Z[1], 2
    loss = functools.partial(imbalance.seesaw, p=0.8, q=2.0, counts=COUNTS)
    sigma = softmax(LOGITS[1])
    log_s = np.array([2 * max(0, np.log(sigma[j] / max(sigma[i], 0.01))) for j in range(C)])
    log_s += [0.8 * min(0, np.log(COUNTS[j] / COUNTS[i])) for j in range(C)]
    log_s[i] = 0
    np.testing.assert_allclose(jax.grad(loss)(z, i), softmax(LOGITS[1] + log_s) - np.eye(C)[i], rtol=1e-9)


def test_balanced_softmax():
    expected = [-np.log(softmax(z + np.log(COUNTS))[y]) for z, y in zip(LOGITS, LABELS, strict=True)]
    np.testing.assert_allclose(each("balanced_softmax", counts=COUNTS), expected, rtol=1e-10)


def test_balanced_softmax_of_a_class_that_never_occurs():
    loss = functools.partial(imbalance.balanced_softmax, counts=(6, 0, 3))
    np.testing.assert_allclose(loss(Z[2], 0), -np.log(softmax(LOGITS[2, [0, 2]] + np.log([6, 3]))[0]), rtol=1e-10)
    for label in range(C):
        value, gradient = jax.value_and_grad(loss)(Z[2], label)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_equalization_of_sigmoids():
    p = 1 / (1 + np.exp(-LOGITS))
    for z, y, p_, found in zip(
        LOGITS, LABELS, p, each_equalization(form="sigmoid", threshold=0.2, counts=COUNTS), strict=True
    ):
        terms = [-np.log(p_[j]) if j == y else -np.log(1 - p_[j]) for j in range(C)]
        rare = [n / sum(COUNTS) < 0.2 for n in COUNTS]
        assert rare == [False, True, True]
        expected = sum(term for j, term in enumerate(terms) if j == y or not rare[j])
        np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=str(z))


def each_equalization(**options):
    keys = jax.random.split(jax.random.key(1), len(LABELS))
    return np.asarray(jax.vmap(losses.for_task("single", "equalization", **options))(Z, Y, keys))


def equalization(z, y, spared):
    e = np.exp(z)
    return -np.log(e[y] / sum(e[j] for j in range(C) if j == y or j not in spared))


def test_equalization_of_the_softmax():
    """gamma = 1 spares every rare class; below, each example spares its own draw of them, as often as gamma says."""
    expected = [equalization(z, y, {1, 2}) for z, y in zip(LOGITS, LABELS, strict=True)]
    found = each_equalization(threshold=0.2, gamma=1.0, counts=COUNTS)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    n, gamma = 4000, 0.7
    draw = jax.vmap(lambda key: imbalance.equalization(Z[2], 0, key, threshold=0.2, gamma=gamma, counts=COUNTS))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), n)))
    for spared in (set(), {1}, {2}, {1, 2}):
        chance = np.prod([gamma if j in spared else 1 - gamma for j in (1, 2)])
        share = np.isclose(found, equalization(LOGITS[2], 0, spared)).mean()
        assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / n), spared


def test_the_threshold_is_strict():
    """A class of exactly that share is not rare."""
    found = each_equalization(form="sigmoid", threshold=0.25, counts=(2, 1, 1))
    np.testing.assert_array_equal(found, each_equalization(form="sigmoid", threshold=0.0, counts=(2, 1, 1)))


def test_equalization_draws_anew_for_each_step_and_example():
    objective = fitted("equalization", threshold=0.2, gamma=0.5, counts=COUNTS)
    mask = jnp.ones(len(LABELS), bool)
    same = [objective(Z, Y, mask, jax.random.key(k)) for k in (0, 0, 1)]
    assert same[0] == same[1] != same[2]
    one = jnp.broadcast_to(Z[2], Z.shape)
    grads = jax.grad(lambda z: objective(z, jnp.zeros_like(Y), mask, jax.random.key(0)))(one)
    assert len({tuple(np.asarray(row) == 0) for row in grads}) > 1


# -- where they are cross entropy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": 0.0}),
        ("seesaw", {"p": 0.0, "q": 0.0, "counts": COUNTS}),
        ("seesaw", {"q": 0.0, "counts": (7, 7, 7)}),
        ("balanced_softmax", {"counts": (7, 7, 7)}),
    ],
)
def test_reduction_to_cross_entropy(name, options):
    np.testing.assert_allclose(each(name, **options), CROSS_ENTROPY, rtol=1e-9)


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.1, "gamma": 0.0}])
def test_equalization_without_rare_classes_is_cross_entropy(options):
    np.testing.assert_allclose(each_equalization(**options, counts=COUNTS), CROSS_ENTROPY, rtol=1e-9)


# -- numbers ------------------------------------------------------------------------------------------------------------

ALL = {
    "cross_entropy": {"weighting": "effective_number", "reduction": "mean", "counts": COUNTS},
    "focal": {"gamma": 2.0},
    "equalization": {"threshold": 0.2, "gamma": 0.5, "counts": COUNTS},
    "seesaw": {"q": 0.0, "counts": COUNTS},  # q = 0: else the numerical gradient sees through the constant
    "balanced_softmax": {"counts": COUNTS},
}


def single(name, **options):
    loss = losses.for_task("single", name, **{**ALL[name], **options})
    return functools.partial(loss, key=jax.random.key(3)) if name == "equalization" else loss


@pytest.mark.parametrize("name", ALL)
def test_gradient_by_differences(name):
    loss = jax.jit(single(name))
    for k in range(4):
        gradient = jax.grad(loss)(Z[k], Y[k])
        for j in range(C):
            step = 1e-5 * jnp.eye(C)[j]
            difference = (loss(Z[k] + step, Y[k]) - loss(Z[k] - step, Y[k])) / 2e-5
            np.testing.assert_allclose(gradient[j], difference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_entropy", {}),
        ("focal", {"gamma": 0.5}),
        ("focal", {"gamma": 2.0}),
        ("equalization", {}),
        ("equalization", {"form": "sigmoid"}),
        ("seesaw", {"q": 2.0}),
        ("balanced_softmax", {}),
    ],
)
def test_extreme_logits_stay_finite(name, options):
    """In float32, for the label and against it; the types stay too."""
    loss = single(name, **options)
    z = jnp.array([[s, -s, 0] for s in (100, 1e30)], jnp.float32).repeat(C, 0)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(z, jnp.arange(2 * C, dtype=jnp.int32) % C)
    assert values.dtype == gradients.dtype == jnp.float32
    assert not values.weak_type
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(gradients))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.for_task("single", weighting="inverse")(Z[0], 0),
            "loss.cross_entropy.weighting: unknown name 'inverse' (did you mean 'inverse_frequency'?)",
        ),
        (
            lambda: losses.for_task("single", "focal", weighting="given", weights=(1, 2))(Z[0], 0),
            "loss.focal.weights: 2 found, one for each of 3 classes expected",
        ),
        (
            lambda: losses.for_task("single", "seesaw")(Z[0], 0),
            "loss.seesaw.counts: 0 found, one for each of 3 classes expected",
        ),
        (
            lambda: losses.for_task("mask", "cross_entropy", weighting="given")(
                jnp.zeros((2, 2, C)), jnp.zeros((2, 2))
            ),
            "loss.cross_entropy.weighting: found 'given', expected 'none' for masks",
        ),
        (
            lambda: losses.for_task("single", "equalization", form="sigmoids")(Z[0], 0),
            "loss.equalization.form: unknown name 'sigmoids' (did you mean 'sigmoid'?)",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value) == message


# -- from a config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", imbalance_dermoscopy.VARIANTS)
def test_examples_are_counted_over_the_clients_that_train(word):
    """In every variant of the config that has a loss with counts."""
    config = imbalance_dermoscopy.get_config(word)
    configuration.validate(config)
    y = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2], np.int32)
    train = [np.array([0, 1, 3]), np.array([2, 4, 5]), np.array([6, 7, 8])]  # the third is held out
    federation: Any = SimpleNamespace(task="single", y=y, train=train, class_names=("nv", "bkl", "mel"))
    loss = configuration.build_loss(config, federation, 2)
    assert loss.keywords.get("counts", (3, 2, 1)) == (3, 2, 1)
    keys = {"key": jax.random.key(0)} if losses.takes(loss, "key") else {}
    found = loss(Z[0], 1, **keys)
    assert np.isfinite(found.value if isinstance(found, imbalance.Weighted) else found)
    algorithms.build(config.method, toy.training(), config[config.method])


@pytest.mark.parametrize("module", [fedproto_dermoscopy, fml_dermoscopy, silobn_dermoscopy])
def test_configs_of_methods(module):
    config = module.get_config()
    configuration.validate(config)
    algorithms.build(config.method, toy.training(), config[config.method])


def test_the_weights_of_a_config_reach_the_loss():
    config = imbalance_dermoscopy.get_config("reweight")
    federation: Any = SimpleNamespace(task="single", y=np.repeat(range(C), COUNTS), train=[np.arange(sum(COUNTS))])
    federation.class_names = ("nv", "bkl", "mel")
    found = configuration.build_loss(config, federation, 1)(Z[0], 2)
    np.testing.assert_allclose(found.weight, 1.339211, atol=5e-7)
    np.testing.assert_allclose(found.value, 1.339211 * -np.log(softmax(LOGITS[0])[2]), rtol=1e-6)
