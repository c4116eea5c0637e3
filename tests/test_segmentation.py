"""Masks end to end: a run learns them, what the evaluator keeps of them, what it draws, and the weights it starts from."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base
from fedjax_pfl import config as configuration
from fedjax_pfl import experiment, metrics, plots, train
from fedjax_pfl.errors import UserError
from fedjax_pfl.models import build, weights


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Bright squares on noise, for two clients with other contrasts."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 60, (40, 12, 12, 1)), np.zeros((40, 12, 12), int)
    for i, (row, column) in enumerate(rng.integers(0, 7, (40, 2))):
        y[i, row : row + 5, column : column + 5] = 1
    x[:20] += 140 * y[:20, ..., None]
    x[20:] += 180 * y[20:, ..., None]
    path = tmp_path / "squares.npz"
    np.savez(path, x=x.astype(np.uint8), y=y, client=np.repeat([0, 1], 20), client_names=["dim", "bright"])
    return path


def config_of(path: Path, **options: Any) -> Any:
    config = base.get_config()
    config.data.source = "npz"
    config.data.npz.path = str(path)
    config.model.name = "unet"
    config.model.unet.update(depth=1, width=4)
    config.update_from_flattened_dict({"rounds": 4, "client.lr": 0.1, "client.sgd.momentum": 0.9})
    config.update_from_flattened_dict(
        {"client.batch_size": 4, "client.epochs": 4, "eval.every": 4, "tensorboard": False, **options}
    )
    return config


@pytest.mark.slow
def test_a_run_learns_masks_and_draws_them(squares: Path, tmp_path: Path) -> None:
    summary = train.run(config_of(squares), tmp_path / "run", quiet=True)
    assert summary is not None
    assert summary["main_metric"] == "validation/personal/dice"
    assert summary["last"]["test/personal/dice/worst"] > 0.8  # all foreground would give 0.3
    assert summary["last"]["test/personal/hausdorff95/worst"] >= summary["last"]["test/personal/hausdorff95"] > 0
    with Image.open(tmp_path / "run" / "plots" / "segmentation.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_the_evaluator_keeps_a_byte_a_pixel(squares: Path) -> None:
    setup = experiment.prepare(
        config_of(squares, **{"eval.batch_size": 3})
    )  # batches that don't divide the 4 test rows
    state = setup.init()
    candidate = setup.candidates["global"]
    variables = candidate.model(state, (), None, None)  # type: ignore[arg-type]
    for said in setup.evaluator.scores(candidate, state, "test", np.arange(2)):
        rows = setup.federation.test[said.id]
        x = jnp.asarray(setup.federation.x[rows], jnp.float32) / 255
        logits = np.asarray(setup.problem.model.apply(variables, x))
        assert said.logits.predicted.dtype == np.uint8
        np.testing.assert_array_equal(said.logits.predicted, logits.argmax(-1))
        found, expected = metrics.mask(said.logits, said.y), metrics.mask(logits, setup.federation.y[rows])
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.slow
def test_images_that_do_not_fit_together_are_scored_slice_by_slice(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = experiment.prepare(config_of(squares))
    state, candidate = setup.init(), setup.candidates["global"]
    whole = list(setup.evaluator.scores(candidate, state, "test", np.arange(2)))
    monkeypatch.setattr(type(setup.evaluator), "GROUP_BYTES", 3 * 144)
    for one, other in zip(whole, setup.evaluator.scores(candidate, state, "test", np.arange(2)), strict=True):
        np.testing.assert_array_equal(one.logits.predicted, other.logits.predicted)
        np.testing.assert_allclose(one.logits.loss, other.logits.loss, rtol=1e-6)


@pytest.mark.slow
def test_a_backbone_starts_from_weights_of_its_own(squares: Path, tmp_path: Path) -> None:
    resnet = build("resnet18", 7)
    shapes = jax.eval_shape(resnet.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1), jnp.float32))
    rng = np.random.default_rng(0)
    given = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    path = tmp_path / "resnet18.npz"
    np.savez(path, **weights.from_variables(given, resnet))
    options = {"model.name": "deeplab_resnet18", "model.weights": str(path), "model.new_head": True}
    federation = experiment.load_federation(config_of(squares))
    problem = configuration.build_problem(config_of(squares, **options), federation, 2)
    variables = problem.init(jax.random.key(0))
    for kind in ("params", "batch_stats"):
        expected = {name: value for name, value in given[kind].items() if name != "fc"}
        jax.tree.map(np.testing.assert_array_equal, variables[kind]["backbone"], expected)
    assert variables["params"]["out"]["kernel"].shape == (1, 1, 256, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model.name": "mlp"},
            r"config.model.name: MLP gives \(2,\) per example, the data's targets need \(12, 12, 2\)",
        ),
        ({"model.unet.depth": 4}, "model unet: images of 12x12 found, at least 16x16 expected"),
        ({"loss.name": "mse"}, "loss.name: 'mse' does not fit the task 'mask'"),
        ({"eval.metric": "macro_f1"}, "config.eval.metric: found 'macro_f1', expected one of dice, iou, hausdorff95"),
    ],
)
def test_mistakes_are_named(options: dict, message: str, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train.run(config_of(squares, **options), tmp_path / "run", quiet=True)


def test_masks_need_a_second_class(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((9, 8, 8, 1), np.uint8), y=np.zeros((9, 8, 8), int))
    with pytest.raises(UserError, match="data: masks of one class found"):
        experiment.prepare(config_of(path, **{"split.partition": "homogeneous", "split.homogeneous.clients": 1}))


def test_a_picture_of_outlines(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.zeros((3, 20, 30), int)
    y[0, 5:12, 4:20] = y[1, :6, 20:] = 1
    rows = {
        "colour": (rng.integers(0, 256, (3, 20, 30, 3), np.uint8), y, np.roll(y, 2, 1)),
        "slices": (rng.normal(size=(2, 20, 30, 3)).astype(np.float32), y[:2], np.zeros((2, 20, 30), int)),
        "grey": (rng.integers(0, 256, (1, 20, 30, 1), np.uint8), y[2:], y[2:]),
    }
    assert plots.segmentation(rows, tmp_path / "plots" / "a.png")
    with Image.open(tmp_path / "plots" / "a.png") as picture:
        assert picture.size[0] > 600
