"""Augmentation: identity when off, exact moves, masks that go along, and what the key decides."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fedjax_pfl.data import normalise, pipeline
from fedjax_pfl.errors import UserError

OFF = {
    "flip_horizontal": 0.0, "flip_vertical": 0.0, "shift": 0.0, "scale": 0.0, "rotate": 0.0,
    "shift_scale_rotate_p": 0.0, "crop_padding": 0, "brightness": 0.0, "brightness_p": 0.0, "contrast": 0.0,
    "contrast_p": 0.0, "mean": (0.0,), "std": (1.0,),
}  # fmt: skip


def section(**options: object) -> ConfigDict:
    return ConfigDict({**OFF, **options})


def image(h: int = 9, w: int = 7, c: int = 3, dtype: type = np.float32) -> jax.Array:
    return jnp.asarray(np.random.RandomState(0).rand(h, w, c).astype(dtype))


KEY = jax.random.key(0)


def many(augment: Callable[..., Any], n: int, *example: jax.Array) -> Any:
    """One example, augmented with n keys."""
    return jax.jit(jax.vmap(augment, (0, *(None for _ in example))))(jax.random.split(KEY, n), *example)


def test_off_is_the_identity_and_leaves_no_operation() -> None:
    augment = pipeline(section(shift=0.5, brightness=0.5, rotate=90.0))  # amounts without probabilities
    assert not jax.make_jaxpr(augment)(KEY, image()).eqns
    np.testing.assert_array_equal(augment(KEY, image()), image())
    mask = jnp.ones((9, 7), jnp.int32)
    x, m = augment(KEY, image(), mask)
    np.testing.assert_array_equal(x, image())
    np.testing.assert_array_equal(m, mask)
    features = jnp.ones(5, jnp.float32)
    assert augment(KEY, features) is features


@pytest.mark.parametrize(("field", "axis"), [("flip_horizontal", 1), ("flip_vertical", 0)])
def test_a_flip_turns_the_axis_and_a_second_one_turns_it_back(field: str, axis: int) -> None:
    augment = jax.jit(pipeline(section(**{field: 1.0})))
    once = augment(KEY, image())
    np.testing.assert_array_equal(once, np.flip(image(), axis))
    np.testing.assert_array_equal(augment(KEY, once), image())


def test_a_flip_happens_as_often_as_it_should() -> None:
    augment = pipeline(section(flip_horizontal=0.25))
    x = many(augment, 800, image(2, 2, 1))
    flipped = (np.asarray(x) != np.asarray(image(2, 2, 1))).any((1, 2, 3)).mean()
    assert 0.19 < flipped < 0.31


def test_a_move_by_nothing_is_exact() -> None:
    # An affine map with the probability on and tiny amounts hits every pixel; with zero amounts it is off altogether.
    augment = jax.jit(pipeline(section(rotate=1e-12, shift_scale_rotate_p=1.0)))
    np.testing.assert_allclose(augment(KEY, image()), image(), atol=1e-6)
    np.testing.assert_array_equal(pipeline(section(shift_scale_rotate_p=1.0))(KEY, image()), image())


def amounts(field: str, limit: float, h: int = 9, w: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A picture of both coordinates, moved: in the inside it shows where each pixel came from."""
    rows, columns = jnp.meshgrid(jnp.arange(h, dtype=jnp.float64), jnp.arange(w, dtype=jnp.float64), indexing="ij")
    augment = pipeline(section(**{field: limit}, shift_scale_rotate_p=1.0))
    moved = many(augment, 200, jnp.stack([rows, columns], -1))
    centre = np.asarray(moved[:, h // 2 - 1 : h // 2 + 2, w // 2 - 1 : w // 2 + 2])  # 3 x 3 in the middle
    return centre[..., 0], centre[..., 1]


def test_shift_moves_by_a_share_of_each_side() -> None:
    rows, columns = amounts("shift", 0.2, 11, 21)
    down, right = 5 - rows[:, 1, 1], 10 - columns[:, 1, 1]
    assert 0.9 * 2.2 < np.abs(down).max() <= 2.2 + 1e-9
    assert 0.9 * 4.2 < np.abs(right).max() <= 4.2 + 1e-9
    assert down.min() < 0 < down.max()
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.2
    np.testing.assert_allclose(np.diff(rows, axis=1), 1)  # nothing but a shift


def test_scale_enlarges_about_the_centre() -> None:
    rows, columns = amounts("scale", 0.3)
    factor = 1 / np.diff(rows, axis=1)
    assert 1.25 < factor.max() <= 1.3 + 1e-9
    assert 0.7 - 1e-9 <= factor.min() < 0.75
    np.testing.assert_allclose(rows[:, 1, 1], 4)
    np.testing.assert_allclose(columns[:, 1, 1], 3)
    np.testing.assert_allclose(np.diff(rows, axis=1)[:, :, :2], np.diff(columns, axis=2)[:, :2, :])


def test_rotation_keeps_lengths_and_stays_within_its_degrees() -> None:
    rows, columns = amounts("rotate", 20.0)
    down, right = np.diff(rows, axis=1)[:, 0, 0], np.diff(columns, axis=1)[:, 0, 0]  # one step down
    np.testing.assert_allclose(np.hypot(down, right), 1)
    np.testing.assert_allclose(np.diff(rows, axis=2)[:, 0, 0], -right)  # one step to the right: no shear
    np.testing.assert_allclose(np.diff(columns, axis=2)[:, 0, 0], down)
    angle = np.degrees(np.arctan2(right, down))
    assert 18 < np.abs(angle).max() <= 20 + 1e-9
    assert angle.min() < 0 < angle.max()


def test_a_half_turn_is_both_flips() -> None:
    # 180 degrees is the limit: among many keys some come close, and the picture close to both flips.
    x = image(8, 8, 1, np.float64)
    moved = many(pipeline(section(rotate=180.0, shift_scale_rotate_p=1.0)), 2000, x)
    distance = np.abs(np.asarray(moved) - np.asarray(x)[::-1, ::-1]).max((1, 2, 3))
    assert distance.min() < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"flip_horizontal": 0.5, "flip_vertical": 0.5},
        {"crop_padding": 3},
        {"shift": 0.3, "rotate": 30.0, "scale": 0.2, "shift_scale_rotate_p": 0.9},
        {"flip_horizontal": 0.5, "crop_padding": 2, "rotate": 45.0, "shift_scale_rotate_p": 1.0},
    ],
)
def test_masks_move_with_their_images(options: dict) -> None:
    truth = np.zeros((24, 24), np.int32)
    truth[4:15, 6:12] = 1
    truth[12:20, 14:22] = 2
    picture = jnp.asarray((truth[..., None] == np.arange(3)).astype(np.float32))  # a channel for each class
    augment = pipeline(section(**options))
    x, mask = many(augment, 40, picture, jnp.asarray(truth))
    assert mask.dtype == jnp.int32
    assert mask.shape == (40, 24, 24)
    assert (np.asarray(mask) != truth).any()
    # Bilinear pictures and nearest masks agree wherever one class fills the pixel.
    for label in (1, 2):
        sure = np.asarray(x[..., label]) > 0.99
        assert (np.asarray(mask)[sure] == label).all()
        assert (np.asarray(x[..., label])[np.asarray(mask) == label] > 0.2).all()


def test_the_border_is_black() -> None:
    x = jnp.ones((10, 10, 1), jnp.float32)
    moved = many(pipeline(section(shift=0.4, shift_scale_rotate_p=1.0)), 50, x)
    assert float(moved.min()) == 0
    assert float(moved.max()) <= 1 + 1e-6
    mean = np.asarray(moved).mean((1, 2, 3))
    assert 0.35 < mean.min() < 0.6 < mean.max() <= 1


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    x = np.asarray(image(6, 5, 2))
    padded = np.pad(x, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 6, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    crops = many(pipeline(section(crop_padding=2)), 400, image(6, 5, 2))
    assert {np.asarray(crop).tobytes() for crop in np.asarray(crops)} == windows


def test_brightness_and_contrast() -> None:
    x = jnp.full((4, 4, 1), 0.5, jnp.float32)
    brighter = np.asarray(many(pipeline(section(brightness=0.2, brightness_p=0.75)), 400, x))[:, 0, 0, 0]
    assert 0.2 < (brighter == 0.5).mean() < 0.3
    assert 0.3 - 1e-6 <= brighter.min() < 0.31 < 0.69 < brighter.max() <= 0.7 + 1e-6
    white = pipeline(section(brightness=0.9, brightness_p=1.0))
    assert float(many(white, 400, jnp.ones_like(x)).max()) == 1  # never beyond [0, 1]
    two = jnp.stack([jnp.full((4, 4), v, jnp.float32) for v in (0.4, 0.6)], -1)
    wider = np.asarray(many(pipeline(section(contrast=0.5, contrast_p=1.0)), 400, two))
    np.testing.assert_allclose(wider.mean((1, 2, 3)), 0.5, atol=1e-6)
    spread = wider[:, 0, 0, 1] - wider[:, 0, 0, 0]
    assert 0.1 - 1e-6 <= spread.min() < 0.12 < 0.28 < spread.max() <= 0.3 + 1e-6


ALL = section(
    flip_horizontal=0.5, flip_vertical=0.5, shift=0.1, scale=0.1, rotate=15.0, shift_scale_rotate_p=0.85,
    crop_padding=2, brightness=0.2, brightness_p=0.75, contrast=0.2, contrast_p=0.5,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_together_keeps_type_shape_and_range_and_follows_the_key(dtype: type) -> None:
    augment = jax.jit(jax.vmap(pipeline(ALL)))
    keys = jax.random.split(KEY, 16)
    x = jnp.broadcast_to(image(dtype=dtype), (16, 9, 7, 3))
    y = augment(keys, x)
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    np.testing.assert_array_equal(y, augment(keys, x))
    assert len({np.asarray(v).tobytes() for v in np.asarray(y)}) == 16
    np.testing.assert_array_equal(augment(keys[::-1], x)[::-1], y)  # a row depends on its own key alone


def test_switching_one_step_off_leaves_the_draws_of_the_others() -> None:
    x = image(6, 6)
    both = np.asarray(many(pipeline(section(flip_horizontal=0.5, flip_vertical=0.5)), 20, x))
    one = np.asarray(many(pipeline(section(flip_horizontal=0.5)), 20, x))
    for a, b in zip(both, one, strict=True):
        assert np.array_equal(a, b) or np.array_equal(a, b[::-1])


def test_normalise() -> None:
    x = image()
    y = normalise(x, (0.5, 0.4, 0.3), (0.5, 0.25, 0.1))
    np.testing.assert_allclose(y, (np.asarray(x) - [0.5, 0.4, 0.3]) / [0.5, 0.25, 0.1], rtol=1e-4, atol=1e-6)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(normalise(x[None], (0.5,), (0.5,)), (np.asarray(x[None]) - 0.5) / 0.5, atol=1e-6)
    assert normalise(x, (0.0,), (1.0,)) is x
    assert normalise(x, [0.0, 0.0, 0.1], [1.0]).shape == x.shape
    with pytest.raises(UserError, match=r"config.augment.mean: 2 values for 3 channels"):
        normalise(x, (0.5, 0.5), (1.0,))
    with pytest.raises(UserError, match=r"config.augment.std: \(0.0,\), expected values > 0"):
        normalise(x, (0.5,), (0.0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip_horizontal": 1.5}, "config.augment.flip_horizontal: 1.5, expected a probability"),
        ({"brightness_p": -0.1}, "config.augment.brightness_p: -0.1"),
        ({"shift": -0.1}, "config.augment.shift: -0.1"),
        ({"scale": 1.0}, "config.augment.scale: 1.0"),
        ({"rotate": 200.0}, "config.augment.rotate: 200.0"),
        ({"crop_padding": -1}, "config.augment.crop_padding: -1"),
        ({"contrast": 2.0}, "config.augment.contrast: 2.0"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(section(**options))


def test_features_cannot_be_flipped() -> None:
    with pytest.raises(UserError, match=r"works on images \[H, W, C\], but an example has shape \(5,\)"):
        pipeline(section(flip_vertical=0.5))(KEY, jnp.ones(5, jnp.float32))
