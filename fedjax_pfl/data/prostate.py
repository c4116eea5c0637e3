"""Prostate MRI of several institutions, slice by slice, with masks of the prostate: volumes or pictures.

Volumes, as the public archive of liuquande/SAML has them (NCI-ISBI 2013, I2CVB, PROMISE12; six sites):

    <institution>/Case<number>.nii.gz, Case<number>_segmentation.nii.gz        in any mixture of upper and lower case

`.nii` works too, and `.npy` arrays [slices, H, W] of numbers. As SAML's loader does it, a volume is standardised as a whole
(mean 0 and standard deviation 1 over all its voxels), mask value 2 counts as 1, and a slice comes with its two neighbours
as channels, its own mask being the target. The slices are those along the last axis of a NIfTI file (axial in the archive).

Pictures, as PRR-FL's segmentation script reads them:

    <client>/{train,valid,test}.lst, images/, labels/

Each line of a list names a file of `images`, whose namesake in `labels` is its mask (grey, 128 and more: prostate).
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_pfl.data import images, nifti
from fedjax_pfl.data.files import inputs, locate
from fedjax_pfl.data.types import Dataset
from fedjax_pfl.errors import UserError, nearest

VOLUME = re.compile(r"case[_-]?(\d+)(_segmentation)?\.(?:nii|nii\.gz|npy)$", re.IGNORECASE)
NAMED = re.compile(r"case[_-]?(\d+)", re.IGNORECASE)
LISTS = {"train.lst": 0, "valid.lst": 1, "test.lst": 2}
SLICES = ("prostate", "all")
CLASSES = ("background", "prostate")


class Slices(NamedTuple):
    """Slices of one case, or one picture."""

    client: str
    case: str  # '': unknown
    x: np.ndarray  # [n, H, W, C]
    y: np.ndarray  # [n, H, W] of 0 and 1
    split: int = -1


def prostate(*, path: str = "", size: int = 0, slices: str = "prostate", neighbours: bool = True) -> Dataset:
    """Read volumes as float32 [n, H, W, 3] (without neighbours [n, H, W, 1]), or pictures as uint8 [n, H, W, 3].

    Rows of one case are one group, so that no split made here cuts a case. All is held in memory: 384 x 384 pixels with
    neighbours are 1.8 MB a slice.

    Args:
        path: the folder of the institutions.
        size: pixels to resize to (images bicubic, masks nearest neighbour); 0 = as stored.
        slices: 'prostate' (of a volume from the first to the last slice that shows it) or 'all'.
        neighbours: the slice before and the one behind as channels 0 and 2, at the ends the slice itself again.

    Raises:
        UserError: no cases, a volume without mask or the other way round, a damaged file, shapes that differ.
    """
    if size < 0:
        raise UserError(f"config.data.prostate.size: {size}, expected pixels, or 0 for slices as stored")
    if slices not in SLICES:
        raise UserError(f"config.data.prostate.slices: unknown name '{slices}'{nearest(slices, SLICES)}")
    root = locate(path, "config.data.prostate.path")
    listed = sorted(file for name in LISTS for file in root.glob(f"*/{name}"))
    parts = list(_pictures(root, listed, size) if listed else _volumes(root, size, slices == "all", neighbours))
    if not parts:
        raise UserError(
            f"config.data.prostate.path: neither */Case*.nii.gz with a prostate nor */train.lst with lines in {root}"
        )
    shapes = {part.x.shape[1:] for part in parts}
    if len(shapes) > 1:
        found = ", ".join("x".join(map(str, shape[:2])) for shape in sorted(shapes))
        raise UserError(f"config.data.prostate.size: 0, but the slices are of {found} pixels; give one size")
    clients = sorted({part.client for part in parts})
    cases = sorted({(part.client, part.case) for part in parts})
    rows = [len(part.y) for part in parts]
    given = np.repeat([part.split for part in parts], rows).astype(np.int8)
    group = np.repeat([cases.index((part.client, part.case)) for part in parts], rows).astype(np.int32)
    return Dataset(
        name="prostate",
        x=inputs(np.concatenate([part.x for part in parts]), str(root)),
        y=np.concatenate([part.y for part in parts]).astype(np.int32),
        task="mask",
        class_names=CLASSES,
        client=np.repeat([clients.index(part.client) for part in parts], rows).astype(np.int32),
        client_names=tuple(clients),
        split=given if listed else None,
        group=group if all(part.case for part in parts) else None,
    )


def _volumes(root: Path, size: int, everything: bool, neighbours: bool) -> Iterator[Slices]:
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        found: dict[tuple[str, bool], Path] = {}
        for file in sorted(folder.iterdir()):
            if match := VOLUME.fullmatch(file.name):
                key = (match[1], bool(match[2]))
                if key in found:
                    raise UserError(f"{file}: the same case as {found[key].name}; keep one of the two")
                found[key] = file
        for number in sorted({number for number, _ in found}):
            missing = next((is_mask for is_mask in (False, True) if (number, is_mask) not in found), None)
            if missing is not None:
                other = found[number, not missing]
                raise UserError(f"{other}: its {'mask' if missing else 'image'} is missing in {folder}")
            x, y = _volume(found[number, False]), _volume(found[number, True])
            if x.shape != y.shape:
                raise UserError(f"{found[number, True]}: shape {y.shape} found, {x.shape} as its image has expected")
            x, y = _standardised(x, found[number, False]), _foreground(y, found[number, True])
            inside = np.flatnonzero(y.any((1, 2)))
            if everything or inside.size:
                shown = np.arange(len(y)) if everything else np.arange(inside[0], inside[-1] + 1)
                around = [(shown + step).clip(0, len(x) - 1) for step in ((-1, 0, 1) if neighbours else (0,))]
                x, y = _resized(x, size), images.nearest(y[shown], size) if size else y[shown]
                yield Slices(folder.name, number, np.stack([x[i] for i in around], -1), y)


def _volume(file: Path) -> np.ndarray:
    """[slices, H, W]."""
    if file.suffix.lower() != ".npy":
        return nifti.read(file).transpose(2, 1, 0)  # a picture has its rows, y, before its columns, x
    try:
        x = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not a whole .npy file of numbers") from error
    if x.ndim != 3 or not x.size or x.dtype.kind not in "biuf":
        raise UserError(f"{file}: shape {x.shape} of {x.dtype} found, numbers [slices, H, W] expected")
    return x


def _standardised(x: np.ndarray, file: Path) -> np.ndarray:
    x = x.astype(np.float64)
    mean, std = x.mean(), x.std()
    if not std > 0 or not np.isfinite(mean):
        raise UserError(f"{file}: mean {mean:g} and standard deviation {std:g} found, a volume with contrast expected")
    return ((x - mean) / std).astype(np.float32)


def _foreground(y: np.ndarray, file: Path) -> np.ndarray:
    """[slices, H, W] uint8 of 0 and 1."""
    if not np.isin(y, (0, 1, 2)).all():
        raise UserError(f"{file}: mask value {y[~np.isin(y, (0, 1, 2))][0]:g} found, 0, 1 and 2 expected")
    return (y > 0).astype(np.uint8)


def _resized(x: np.ndarray, size: int) -> np.ndarray:
    return x if not size else np.stack([images.bicubic(image[..., None], size)[..., 0] for image in x])


def _pictures(root: Path, lists: Sequence[Path], size: int) -> Iterator[Slices]:
    for file in lists:
        found = []
        for kind in ("images", "labels"):
            folder = next((f for f in (file.parent / kind, root / kind) if f.is_dir()), None)
            if folder is None:
                raise UserError(f"{file.parent}: no folder '{kind}'")
            found.append({picture.stem: picture for picture in sorted(folder.iterdir())})
        for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
            if not (name := re.split(r"[\s,]", line.strip())[0]):
                continue
            stem = Path(name).stem
            for kind, pictures in zip(("images", "labels"), found, strict=True):
                if stem not in pictures:
                    raise UserError(f"{file}: line {number}: no {stem}.* in {kind}{nearest(stem, list(pictures)[:50])}")
            x = _picture(found[0][stem], "RGB", size)
            y = _picture(found[1][stem], "L", size)
            if x.shape[:2] != y.shape:
                raise UserError(f"{found[1][stem]}: {y.shape} pixels found, {x.shape[:2]} as its image has expected")
            if 0 < y.max() < 128:
                raise UserError(f"{found[1][stem]}: grey values up to {y.max()} found, 0 and 255 expected")
            case = match[1] if (match := NAMED.search(stem)) else ""
            yield Slices(file.parent.name, case, x[None], (y[None] >= 128).astype(np.uint8), LISTS[file.name])


def _picture(file: Path, mode: str, size: int) -> np.ndarray:
    from PIL import Image

    try:
        picture = Image.open(file).convert(mode)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{file} is not a whole image") from error
    if size and picture.size != (size, size):
        how = Image.Resampling.BICUBIC if mode == "RGB" else Image.Resampling.NEAREST
        picture = picture.resize((size, size), how)
    return np.asarray(picture)
