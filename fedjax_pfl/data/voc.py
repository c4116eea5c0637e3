"""PASCAL VOC 2007 and 2012 as a multi-label set, in its own layout (Everingham et al., IJCV 2010; METHODS 10.2).

    VOCdevkit/VOC2007/ImageSets/Main/{trainval,train,val,test}.txt
    VOCdevkit/VOC2007/{Annotations/<image id>.xml, JPEGImages/<image id>.jpg}

2007 has 5,011 images in trainval and 4,952 in test; 2012 has 11,540 in trainval, and no annotations of its test images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from fedjax_pfl.data import images
from fedjax_pfl.data.files import locate
from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError, nearest

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
YEARS = ("2007", "2012")
DIFFICULT = ("drop", "keep")


class _Row(NamedTuple):
    year: str
    image_id: str
    split: int


def voc(
    *,
    path: str = "",
    years: Sequence[str] = ("2007",),
    train: str = "trainval",
    test: str = "test",
    size: int = 256,
    difficult: str = "drop",
    cache: bool = True,
) -> Dataset:
    """The lists `train` and `test` of each year, uint8 [n, size, size, 3]; 20 labels in VOC's order.

    Images are resized bicubically and don't keep their aspect ratio, so that nothing is cut off. One whose objects are
    all difficult stays, without a label.

    Args:
        path: the VOCdevkit folder, or one that holds it.
        years: '2007', '2012' or both.
        train: list of training images: trainval | train.
        test: list of test images: test | val; a year without that list has none, '' = no given split.
        size: pixels to resize to.
        difficult: objects that VOC marks as difficult: 'drop' (as C-Tran does) or 'keep'.
        cache: keep the decoded images in the user's cache folder; without, all must fit in memory.

    Raises:
        UserError: an option out of range; no such list; images in both lists, without annotations or missing; damaged
            XML; unknown classes.
    """
    years = tuple(map(str, years))
    if not years or len(set(years)) < len(years) or not set(years) <= set(YEARS):
        raise UserError(f"config.data.voc.years: {', '.join(years) or 'none'}, expected 2007, 2012 or both")
    if difficult not in DIFFICULT:
        raise UserError(f"config.data.voc.difficult: unknown name '{difficult}'{nearest(difficult, DIFFICULT)}")
    if size < 1:
        raise UserError(f"config.data.voc.size: {size}, expected at least 1 pixel")
    root = locate(path, "config.data.voc.path")
    root = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root

    rows = _rows(root, years, train, test)
    y = np.stack([_labels(root, row, difficult == "keep") for row in rows])
    names = [f"VOC{row.year}/JPEGImages/{row.image_id}.jpg" for row in rows]
    for row, name in zip(rows, names, strict=True):
        if not (root / name).is_file():
            raise UserError(f"{root / name}: missing, though a list of VOC{row.year} names image {row.image_id}")
    stamps = [images.stamp(root / name) for name in names] if cache else None
    return Dataset(
        name=f"voc{'+'.join(years)}",
        x=images.load("voc", names, lambda name: (root / name).read_bytes(), size, where=root, stamps=stamps),
        y=y,
        task="multi",
        class_names=CLASSES,
        split=np.array([row.split for row in rows], np.int8) if test else None,
    )


def _rows(root: Path, years: Sequence[str], train: str, test: str) -> list[_Row]:
    rows = []
    for year in years:
        lists = locate(root / f"VOC{year}" / "ImageSets" / "Main", "config.data.voc.path")
        learnt = _ids(locate(lists / f"{train}.txt", "config.data.voc.train"))
        held_out = _ids(lists / f"{test}.txt") if test and (lists / f"{test}.txt").is_file() else []
        if both := set(learnt) & set(held_out):
            raise UserError(
                f"config.data.voc.test: VOC{year} has {len(both)} images in both '{train}' and '{test}', e.g. "
                f"{min(both)}; choose lists without a common image, e.g. train and val"
            )
        rows += [_Row(year, image_id, TRAIN) for image_id in learnt]
        rows += [_Row(year, image_id, TEST) for image_id in held_out]
    if test and not any(row.split == TEST for row in rows):
        raise UserError(
            f"config.data.voc.test: no list '{test}' in ImageSets/Main of {' and '.join(f'VOC{y}' for y in years)}; "
            "take --config.data.voc.train=train --config.data.voc.test=val, or '' for none"
        )
    return rows


def _ids(file: Path) -> list[str]:
    """The image ids of a list, each in the first column of a line."""
    ids = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    if not ids:
        raise UserError(f"{file}: names no image")
    return ids


def _labels(root: Path, row: _Row, difficult: bool) -> np.ndarray:
    """[20] uint8: the classes of an image's objects."""
    file = root / f"VOC{row.year}" / "Annotations" / f"{row.image_id}.xml"
    try:
        objects = ElementTree.fromstring(file.read_bytes()).findall("object")
    except FileNotFoundError as error:
        raise UserError(f"{file}: missing, though a list of VOC{row.year} names image {row.image_id}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{file}: not a whole XML file ({error})") from error
    y = np.zeros(len(CLASSES), np.uint8)
    for entry in objects:
        name = (entry.findtext("name") or "").strip()
        if name not in CLASSES:
            raise UserError(f"{file}: unknown class '{name}'{nearest(name, CLASSES)}")
        if difficult or (entry.findtext("difficult") or "0").strip() != "1":
            y[CLASSES.index(name)] = 1
    return y
