"""Losses against plain NumPy and PyTorch, and their safety at extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_masks_need_no_channel():
    z, y = jnp.asarray(LOGITS).reshape(6, 5, 1), jnp.asarray(TARGETS)
    assert losses.for_task("mask")(z, y) == losses.binary_cross_entropy(jnp.asarray(LOGITS), y)


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


def test_a_masked_class_costs_nothing():
    assert losses.cross_entropy(jnp.array([0.0, -jnp.inf]), 0) == 0


@pytest.mark.parametrize("task", sorted(losses.BY_TASK))
def test_float32_stays_float32(task):
    y = jnp.int32(1) if task == "single" else jnp.asarray(TARGETS[0])
    for name in losses.BY_TASK[task]:
        options = {"label_smoothing": 0.1} if name == "cross_entropy" else {}
        z = jnp.asarray(LOGITS[0], jnp.float32)
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
            "loss.name: 'mse' does not fit the task 'single' (one of: cross_entropy)",
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
