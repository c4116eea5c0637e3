"""Metrics that a compiled round computes equal those of `metrics`; padding and the size of batches change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_pfl import config as configuration
from fedjax_pfl import experiment, metrics, score
from fedjax_pfl.core import ClientData
from fedjax_pfl.errors import UserError


def rows(x, y, padding=0):
    """A client's data, its padding rows being what would be noticed."""
    x_padded = np.concatenate([x, np.full((padding, *x.shape[1:]), np.nan)])
    y_padded = np.concatenate([y, np.zeros((padding, *y.shape[1:]), y.dtype)])
    return ClientData(jnp.int32(0), jnp.int32(len(y)), jnp.asarray(x_padded), jnp.asarray(y_padded), jnp.float32(0))


def reading(classes):
    """A network whose inputs are its logits; augmented inputs are others."""
    return toy.network_of(toy.Net())._replace(
        evaluate=lambda variables, x: (x, x),
        plain=lambda x, noise, key: x,
        inputs=lambda batch, key: (jnp.flip(batch.x, -1), batch.y),
        classes=classes,
    )


@pytest.mark.parametrize("name", score.METRICS["single"])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_single_label(name, batch_size):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(11, 4)), rng.integers(0, 3, 11)  # class 3 is never the label
    value = score.build(reading(4), score.metric("single", name), batch_size)
    expected = metrics.single_label(z, y)[name]
    assert 0 < expected < 1
    for padding in (0, 5):
        assert value({}, rows(z, y, padding)) == pytest.approx(expected, abs=1e-12)


def test_classes_that_never_occur_don_t_count():
    z, y = np.eye(5)[[0, 1, 1]], np.array([0, 1, 0])
    assert score.build(reading(5), score.metric("single"))({}, rows(z, y)) == pytest.approx(
        metrics.single_label(z, y)["macro_f1"], abs=1e-12
    )


def test_masks():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(7, 4, 5, 2)), rng.integers(0, 2, (7, 4, 5))
    value = score.build(reading(2), score.metric("mask"), 3)
    assert value({}, rows(z, y, 2)) == pytest.approx(metrics.mask(z, y)["dice"], abs=1e-12)


@pytest.mark.parametrize(("task", "shape"), [("single", (3,)), ("mask", (4, 5, 2))])
def test_without_rows_it_is_0(task, shape):
    y = np.zeros((0, *shape[:-1]), np.int64)
    assert score.build(reading(shape[-1]), score.metric(task))({}, rows(np.zeros((0, *shape)), y, 4)) == 0


def test_with_a_key_inputs_are_augmented():
    z, y = np.array([[2.0, 1.0, 0.0]]), np.array([0])
    value = score.build(reading(3), score.metric("single", "accuracy"))
    assert value({}, rows(z, y)) == 1
    assert value({}, rows(z, y), jax.random.key(0)) == 0


@pytest.mark.parametrize(("task", "name", "words"), [("multi", "", "multi"), ("single", "macro_f2", "macro_f1")])
def test_unknown(task, name, words):
    with pytest.raises(UserError, match=words):
        score.metric(task, name)


def test_a_client_without_validation_rows_is_refused():
    """Where rounds score models on them."""
    from configs import base

    config = base.get_config()
    config.method = "prrfl"
    config.model.name = "mlp"
    config.split.validation = 0.0
    with pytest.raises(UserError, match="has no validation examples"):
        experiment.prepare(config)
    config.prrfl.score_on = "train"
    experiment.prepare(config)
    config.eval.retrogress = True
    with pytest.raises(UserError, match="has no validation examples"):
        experiment.prepare(config)


def test_class_counts():
    """Of the clients that train."""
    from configs import base

    federation = experiment.load_federation(base.get_config())
    expected = np.bincount(np.concatenate([federation.y[rows] for rows in federation.train[:3]]), minlength=10)
    assert configuration.class_counts(federation, 3) == tuple(expected)
