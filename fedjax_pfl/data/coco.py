"""MS-COCO as a multi-label set, 2014 or 2017, in its own layout (Lin et al., ECCV 2014, arXiv 1405.0312; METHODS 10.2).

    annotations/instances_train2014.json   annotations/instances_val2014.json
    train2014/COCO_train2014_000000000009.jpg ...   val2014/...

An image has a label where at least one object of that category is annotated in it, crowds among them. By default images
that nobody annotated are left out, as the 122,218 images that FedLGT counts in train and val of 2014 suggest.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_pfl.data import images
from fedjax_pfl.data.files import locate
from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError, nearest

UNLABELLED = ("drop", "keep")


class _Part(NamedTuple):
    names: list[str]
    """Files of the n images, below the root, by image id."""
    y: np.ndarray
    """[n, L] uint8."""
    categories: dict[int, str]
    """L names by their id, in ascending order."""


def coco(
    *,
    path: str = "",
    year: int = 2014,
    size: int = 256,
    unlabelled: str = "drop",
    max_images: int = 0,
    cache: bool = True,
) -> Dataset:
    """Train (split train) and val (split test), uint8 [n, size, size, 3]; 80 labels in the order of the category ids.

    Images are resized bicubically and don't keep their aspect ratio, so that nothing is cut off. All of COCO at 256
    pixels is 24 GB: it is decoded once into the user's cache folder and mapped from there.

    Args:
        path: the folder that holds `annotations`, `train<year>` and `val<year>`.
        year: 2014 or 2017.
        size: pixels to resize to.
        unlabelled: images without any annotation: 'drop' or 'keep'.
        max_images: only the first so many of each of the two, for trying out; 0 = all.
        cache: keep the decoded images in the user's cache folder; without, all must fit in memory.

    Raises:
        UserError: an option out of range; no annotation file, or one that is no COCO JSON; unknown category or image
            ids; images that are missing or damaged.
    """
    if year not in (2014, 2017):
        raise UserError(f"config.data.coco.year: {year}, expected 2014 or 2017")
    if unlabelled not in UNLABELLED:
        raise UserError(f"config.data.coco.unlabelled: unknown name '{unlabelled}'{nearest(unlabelled, UNLABELLED)}")
    if size < 1:
        raise UserError(f"config.data.coco.size: {size}, expected at least 1 pixel")
    if max_images < 0:
        raise UserError(f"config.data.coco.max_images: {max_images}, expected at least 1, or 0 for all")
    root = locate(path, "config.data.coco.path")

    parts: list[_Part] = []
    stamps: list[images.Stamp] = []
    for name in (f"train{year}", f"val{year}"):
        part = _part(root, name)
        if parts and part.categories != parts[0].categories:
            raise UserError(f"{root}: the categories of train{year} and val{year} differ; expected the same ones")
        rows = np.flatnonzero(part.y.any(1)) if unlabelled == "drop" else np.arange(len(part.y))
        rows = rows[: max_images or None]
        if not len(rows):
            raise UserError(f"{root}: no image of {name} has an annotation")
        part = part._replace(names=[part.names[row] for row in rows], y=part.y[rows])
        stamps += _stamps(root, name, part.names)
        parts.append(part)

    names = [name for part in parts for name in part.names]
    x = images.load(
        "coco", names, lambda name: (root / name).read_bytes(), size, where=root, stamps=stamps if cache else None
    )
    return Dataset(
        name=f"coco{year}",
        x=x,
        y=np.concatenate([part.y for part in parts]),
        task="multi",
        class_names=tuple(parts[0].categories.values()),
        split=np.repeat([TRAIN, TEST], [len(part.names) for part in parts]).astype(np.int8),
    )


def _part(root: Path, name: str) -> _Part:
    file = locate(root / "annotations" / f"instances_{name}.json", "config.data.coco.path")
    content = _json(file)
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        pictures = {entry["id"]: f"{name}/{entry['file_name']}" for entry in content["images"]}
        pairs = [(entry["image_id"], entry["category_id"]) for entry in content["annotations"]]
        categories, pictures = dict(sorted(categories.items())), dict(sorted(pictures.items()))
    except (KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else "other types"
        raise UserError(
            f"{file}: {what}, expected COCO's instances: images (id, file_name), annotations (image_id, category_id) "
            "and categories (id, name)"
        ) from error

    row = {image: i for i, image in enumerate(pictures)}
    column = {category: i for i, category in enumerate(categories)}
    y = np.zeros((len(row), len(column)), np.uint8)
    for image, category in pairs:
        if category not in column:
            raise UserError(f"{file}: an annotation has category_id {category}, which is not among the categories")
        if image not in row:
            raise UserError(f"{file}: an annotation has image_id {image}, which is not among the images")
        y[row[image], column[category]] = 1
    return _Part(list(pictures.values()), y, categories)


def _json(file: Path) -> Any:
    def lean(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)  # outlines are nearly all of a file of half a gigabyte
        return entry

    try:
        with open(file, encoding="utf-8") as stream:
            return json.load(stream, object_hook=lean)
    except ValueError as error:
        raise UserError(f"{file}: not a whole JSON file ({str(error)[:100]})") from error


def _stamps(root: Path, folder: str, names: list[str]) -> list[images.Stamp]:
    """One look at the folder, which also tells what is missing there."""
    with os.scandir(locate(root / folder, "config.data.coco.path")) as entries:
        there = {f"{folder}/{entry.name}": entry for entry in entries}
    missing = [name for name in names if name not in there]
    if missing:
        raise UserError(
            f"{root / folder}: {len(missing)} of {len(names)} images named by the annotations are missing, "
            f"the first is {missing[0].removeprefix(f'{folder}/')}"
        )
    return [images.stamp(there[name]) for name in names]
