"""Augmentation on the device, written for one example and one key: `jax.vmap` it over a batch.

Images are floats in [0, 1], [H, W, C]. What is switched off leaves no operation behind. Each step has random numbers of
its own, so that switching one on or off does not change the others.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from fedjax_pfl.errors import UserError

SHARES = ("flip_horizontal", "flip_vertical", "shift_scale_rotate_p", "brightness_p", "contrast_p")


def pipeline(section: Any) -> Callable[..., Any]:
    """The augmentation of `config.augment`: flips, shift-scale-rotate, crop, brightness, contrast, in this order.

    Args:
        section: `flip_horizontal`, `flip_vertical` (probabilities), `shift` (share of the sides), `scale` (0.1 = 0.9 to
            1.1), `rotate` (degrees), `shift_scale_rotate_p`, `crop_padding` (pixels), `brightness`, `brightness_p`,
            `contrast`, `contrast_p`. Each amount is drawn uniformly between minus and plus its option.

    Returns:
        `augment(key, image, mask=None)`: the image [H, W, C] in its own float type; with a mask of classes [H, W] the
        pair, the mask moved alike (nearest neighbour; class 0 comes in from outside).

    Raises:
        UserError: an option out of range; at the call: something on, but the examples are not images.
    """
    _check(section)
    flips = [(axis, p) for axis, p in ((0, section.flip_vertical), (1, section.flip_horizontal)) if p]
    moves, brightens, contrasts = _moves(section), _brightens(section), _contrasts(section)
    on = active(section)

    def augment(key: Key[Array, ""], image: Float[Array, "H W C"], mask: Int[Array, "H W"] | None = None) -> Any:
        if on and image.ndim != 3:
            raise UserError(
                f"config.augment: works on images [H, W, C], but an example has shape {image.shape}; switch it off"
            )
        if on:
            # All draws in one call: one per step would cost more than the steps do.
            u = jax.random.uniform(key, (13,), image.dtype)
            for axis, p in flips:
                image = jnp.where(u[axis] < p, jnp.flip(image, axis), image)
                mask = None if mask is None else jnp.where(u[axis] < p, jnp.flip(mask, axis), mask)
            if moves:
                points = _moved(u[2:7], section, image)
                image = _bilinear(image, *points)
                mask = None if mask is None else _nearest(mask, *points)
            if section.crop_padding:
                start = (u[7:9] * (2 * section.crop_padding + 1)).astype(jnp.int32)
                image = _crop(image, section.crop_padding, start)
                mask = None if mask is None else _crop(mask, section.crop_padding, start)
            if brightens:
                image = jnp.clip(image + _amount(u[9], section.brightness_p, u[10], section.brightness), 0, 1)
            if contrasts:
                mean, factor = image.mean(), 1 + _amount(u[11], section.contrast_p, u[12], section.contrast)
                image = jnp.clip(mean + factor * (image - mean), 0, 1)
        return image if mask is None else (image, mask)

    return augment


def active(section: Any) -> bool:
    """Whether `config.augment` changes an image at all (normalising doesn't count)."""
    flips = section.flip_vertical or section.flip_horizontal
    return bool(flips or _moves(section) or section.crop_padding or _brightens(section) or _contrasts(section))


def _moves(section: Any) -> bool:
    return bool(section.shift_scale_rotate_p and (section.shift or section.scale or section.rotate))


def _brightens(section: Any) -> bool:
    return bool(section.brightness and section.brightness_p)


def _contrasts(section: Any) -> bool:
    return bool(section.contrast and section.contrast_p)


def normalise(x: Float[Array, "... C"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "... C"]:
    """(x - mean) / std over the last axis of x, in x's float type.

    Args:
        x: [..., C], in [0, 1] where it is images.
        mean, std: one value for all channels, or one for each.

    Raises:
        UserError: another number of values, or a deviation that is not positive.
    """
    for field, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, x.shape[-1]):
            raise UserError(f"config.augment.{field}: {len(values)} values for {x.shape[-1]} channels")
    if not all(s > 0 for s in std):
        raise UserError(f"config.augment.std: {tuple(std)}, expected values > 0")
    if all(m == 0 for m in mean) and all(s == 1 for s in std):
        return x
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (x - jnp.array(mean, x.dtype).reshape(shape)) / jnp.array(std, x.dtype).reshape(shape)


def _check(section: Any) -> None:
    for field in SHARES:
        if not 0 <= section[field] <= 1:
            raise UserError(f"config.augment.{field}: {section[field]}, expected a probability in [0, 1]")
    for field in ("shift", "scale", "brightness", "contrast"):
        if not 0 <= section[field] < 1:
            raise UserError(f"config.augment.{field}: {section[field]}, expected at least 0 and below 1")
    if not 0 <= section.rotate <= 180:
        raise UserError(f"config.augment.rotate: {section.rotate}, expected degrees in [0, 180]")
    if section.crop_padding < 0:
        raise UserError(f"config.augment.crop_padding: {section.crop_padding}, expected pixels, or 0 for none")


def _amount(happens: Array, p: float, u: Array, limit: float) -> Array:
    """Uniform in [-limit, limit) with probability p, else 0, from two uniform numbers."""
    return jnp.where(happens < p, (2 * u - 1) * limit, jnp.zeros_like(u))


def _moved(
    u: Float[Array, " 5"], section: Any, image: Float[Array, "H W C"]
) -> tuple[Float[Array, "H W"], Float[Array, "H W"]]:
    """Where each pixel of the new image comes from: row and column in the old one.

    Forwards, a point p goes to c + scale * rotation (p - c) + shift, with c the centre.
    """
    (h, w, _), dtype = image.shape, image.dtype
    limits = (section.shift * h, section.shift * w, section.scale, section.rotate * math.pi / 180)
    down, right, scale, angle = (
        _amount(u[0], section.shift_scale_rotate_p, u[i], limit) for i, limit in enumerate(limits, 1)
    )
    rows, columns = jnp.meshgrid(
        jnp.arange(h, dtype=dtype) - (h - 1) / 2 - down, jnp.arange(w, dtype=dtype) - (w - 1) / 2 - right, indexing="ij"
    )
    cos, sin = jnp.cos(angle) / (1 + scale), jnp.sin(angle) / (1 + scale)
    return cos * rows + sin * columns + (h - 1) / 2, cos * columns - sin * rows + (w - 1) / 2


def _bilinear(image: Array, rows: Array, columns: Array) -> Array:
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = (1 - right) * _pixels(image, top, left) + right * _pixels(image, top, left + 1)
    lower = (1 - right) * _pixels(image, top + 1, left) + right * _pixels(image, top + 1, left + 1)
    return (1 - down) * upper + down * lower


def _nearest(mask: Array, rows: Array, columns: Array) -> Array:
    r, c = jnp.round(rows).astype(jnp.int32), jnp.round(columns).astype(jnp.int32)
    return _pixels(mask[..., None], r, c)[..., 0]


def _pixels(image: Array, r: Array, c: Array) -> Array:
    """image[r, c], 0 outside."""
    h, w, _ = image.shape
    inside = (r >= 0) & (r < h) & (c >= 0) & (c < w)
    return jnp.where(inside[..., None], image[jnp.clip(r, 0, h - 1), jnp.clip(c, 0, w - 1)], jnp.zeros((), image.dtype))


def _crop(image: Array, padding: int, start: Array) -> Array:
    padded = jnp.pad(image, ((padding, padding), (padding, padding)) + ((0, 0),) * (image.ndim - 2))
    return jax.lax.dynamic_slice(padded, (*start, *[jnp.int32(0)] * (image.ndim - 2)), image.shape)
