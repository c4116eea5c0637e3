"""Losses against plain NumPy and PyTorch, and their safety at extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fedjax_pfl import losses
from fedjax_pfl.errors import UserError

LOGITS = np.random.default_rng(0).normal(size=(6, 5)) * 3
LABELS = np.array([0, 1, 2, 3, 4, 0], np.int32)
TARGETS = (np.random.default_rng(1).random((6, 5)) < 0.4).astype(np.uint8)


def test_cross_entropy_of_a_smoothed_target():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    for smoothing in (0.0, 0.1):
        target = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
        found = jax.vmap(losses.for_task("single", label_smoothing=smoothing))(jnp.asarray(LOGITS), jnp.asarray(LABELS))
        np.testing.assert_allclose(found, -(target * np.log(p)).sum(1), rtol=1e-12)


def test_binary_cross_entropy_and_mse():
    p = 1 / (1 + np.exp(-LOGITS))
    each = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p))
    z, y = jnp.asarray(LOGITS), jnp.asarray(TARGETS)
    np.testing.assert_allclose(jax.vmap(losses.for_task("multi"))(z, y), each.mean(1), rtol=1e-10)
    np.testing.assert_allclose(jax.vmap(losses.for_task("multi", reduction="sum"))(z, y), each.sum(1), rtol=1e-10)
    np.testing.assert_allclose(
        jax.vmap(losses.for_task("multi", "mse"))(z, y), ((LOGITS - TARGETS) ** 2).mean(1), rtol=1e-12
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_losses_of_masks(classes):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(5, 6, classes)) * 2, rng.integers(0, classes - (classes > 2), (5, 6))  # the last is absent
    p, t = np.exp(z) / np.exp(z).sum(-1, keepdims=True), np.eye(classes)[y]
    dice = np.mean([1 - (2 * (p * t)[..., c].sum() + 1) / ((p + t)[..., c].sum() + 1) for c in range(1, classes)])
    entropy = -(t * np.log(p)).sum(-1).mean()
    smooth = 0.9 * entropy - 0.1 * np.log(p).mean()
    expected = [
        (losses.for_task("mask"), dice + entropy),
        (losses.for_task("mask", dice_weight=0.3, cross_entropy_weight=2.0), 0.3 * dice + 2 * entropy),
        (losses.for_task("mask", "dice"), dice),
        (losses.for_task("mask", "cross_entropy"), entropy),
        (losses.for_task("mask", "cross_entropy", label_smoothing=0.1), smooth),
    ]
    for loss, value in expected:
        np.testing.assert_allclose(loss(jnp.asarray(z), jnp.asarray(y, jnp.int32)), value, rtol=1e-12)
        one = lambda z, loss=loss: loss(z, jnp.asarray(y, jnp.int32))  # noqa: E731
        check_grads(one, (jnp.asarray(z),), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_dice_of_an_image_without_foreground_is_defined():
    y = jnp.zeros((3, 3), jnp.int32)
    sure = jnp.stack([jnp.full((3, 3), 50.0), jnp.full((3, 3), -50.0)], -1)
    value, gradient = jax.value_and_grad(losses.dice)(sure, y)
    np.testing.assert_allclose([value, losses.dice(sure, y, smoothing=2.0)], 0, atol=1e-12)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(losses.dice(-sure, y), 0.9, rtol=1e-12)  # 1 - (0 + 1) / (9 + 0 + 1)


@pytest.mark.parametrize("size", [100.0, 1e30])
def test_extreme_logits_keep_loss_and_gradient_exact(size):
    z = jnp.array([size, -size, 0.0], jnp.float32)
    value, gradient = jax.value_and_grad(losses.cross_entropy)(z, 1)
    assert value == jnp.float32(2 * size)
    np.testing.assert_allclose(gradient, [1, -1, 0], atol=1e-30)
    value, gradient = jax.value_and_grad(
        lambda z: losses.binary_cross_entropy(z, jnp.array([0, 1, 1]), reduction="sum")
    )(z)
    np.testing.assert_allclose(value, 2 * size + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [1, -1, -0.5], atol=1e-30)
    confident = losses.binary_cross_entropy(jnp.array([20.0], jnp.float32), jnp.array([1]))
    np.testing.assert_allclose(confident, np.exp(-20.0), rtol=1e-6)  # not 0: nothing cancels


@pytest.mark.parametrize(
    ("temperature", "expected"),  # METHODS.md, section 12.4
    [(1.0, 0.199976688), (2.0, 0.273915612), (4.0, 0.277907671), (10.0, 0.264672644), (1e5, 0.25)],
)
def test_distillation(temperature, expected):
    teacher, student = jnp.array([2.0, 0.0, -1.0]), jnp.array([1.0, 0.5, -0.5])
    loss = lambda teacher, student: losses.distillation(teacher, student, temperature=temperature)  # noqa: E731
    found, (to_teacher, to_student) = jax.value_and_grad(loss, (0, 1))(teacher, student)
    np.testing.assert_allclose(found, expected, atol=1e-5 if temperature > 10 else 6e-10)
    assert np.all(to_teacher == 0)
    expected = temperature * (jax.nn.softmax(student / temperature) - jax.nn.softmax(teacher / temperature))
    np.testing.assert_allclose(to_student, expected, rtol=1e-9)
    one, three = (jnp.broadcast_to(z, (2, 3, 3)) for z in (student, teacher))
    np.testing.assert_allclose(loss(three, one), found, rtol=1e-9)  # a mask: the mean over its pixels


def test_a_masked_class_costs_nothing():
    assert losses.cross_entropy(jnp.array([0.0, -jnp.inf]), 0) == 0


@pytest.mark.parametrize("task", sorted(losses.BY_TASK))
def test_float32_stays_float32(task):
    y = {"single": jnp.int32(1), "multi": jnp.asarray(TARGETS[0]), "mask": jnp.asarray(TARGETS[:, :4], jnp.int32)}[task]
    z = jnp.asarray(LOGITS.reshape(6, 5, 1) + np.arange(2), jnp.float32)[:, :4] if task == "mask" else LOGITS[0]
    z = jnp.asarray(z, jnp.float32)
    for name in losses.BY_TASK[task]:
        if task == "single" and name != "cross_entropy":
            continue  # in test_imbalance.py
        options = {"label_smoothing": 0.1} if name == "cross_entropy" else {}
        value, gradient = jax.value_and_grad(losses.for_task(task, name, **options))(z, y)
        assert value.dtype == gradient.dtype == jnp.float32
        assert not value.weak_type


@pytest.mark.parity
def test_equal_to_pytorch():
    torch = pytest.importorskip("torch")
    z, y, t = torch.tensor(LOGITS), torch.tensor(LABELS, dtype=torch.int64), torch.tensor(TARGETS, dtype=torch.float64)
    functional = torch.nn.functional
    for ours, theirs, target in [
        (
            losses.for_task("single", label_smoothing=0.1),
            lambda z: functional.cross_entropy(z, y, label_smoothing=0.1),
            LABELS,
        ),
        (losses.for_task("multi"), lambda z: functional.binary_cross_entropy_with_logits(z, t), TARGETS),
        (losses.for_task("multi", "mse"), lambda z: functional.mse_loss(z, t), TARGETS),
    ]:
        z = z.detach().requires_grad_()
        value = theirs(z)
        value.backward()
        mean = lambda x, ours=ours, target=target: jnp.mean(jax.vmap(ours)(x, jnp.asarray(target)))  # noqa: E731
        found, gradient = jax.value_and_grad(mean)(jnp.asarray(LOGITS))
        np.testing.assert_allclose(found, value.item(), rtol=1e-12)
        np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.for_task("singel"), "task: unknown name 'singel' (did you mean 'single'?)"),
        (lambda: losses.for_task("multi", "msse"), "loss.name: unknown name 'msse' (did you mean 'mse'?)"),
        (
            lambda: losses.for_task("single", "mse"),
            "loss.name: 'mse' does not fit the task 'single' (one of: cross_entropy, focal, equalization, seesaw, "
            "balanced_softmax)",
        ),
        (
            lambda: losses.for_task("multi", reduction="summ")(jnp.zeros(2), jnp.zeros(2)),
            "loss.binary_cross_entropy.reduction: unknown name 'summ' (did you mean 'sum'?)",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value) == message
