"""FLAIR (Song, Granqvist, Talwar, NeurIPS 2022 Datasets and Benchmarks, arXiv 2207.08869): the photographs of 51,414
Flickr users, 17 coarse or 1,628 fine labels, as the federated HDF5 file that the providers' script writes.

Only names, labels and counts are read at the start; the images stay in the file and are read cohort by cohort. The
users of the three partitions are different people: training users are the clients, and all of them are tested on the
images of all test users (`config.split.how` 'global', or 'auto').

There are two orders of the labels, and a model trained with the one is of no use with the other: FedLGT numbers them as
they first appear in the providers' `labels_and_metadata.json`, apple/pfl-research by the alphabet.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_pfl.data.files import locate
from fedjax_pfl.data.lazy import H5Images, open_h5
from fedjax_pfl.data.types import TEST, TRAIN, VALIDATION, Dataset
from fedjax_pfl.errors import UserError, nearest

FIELD = "config.data.flair"
PARTITIONS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
LABELS = {"coarse": "labels", "fine": "fine_grained_labels"}
COUNTERS = {"coarse": "label_counter", "fine": "fine_grained_label_counter"}
MAPPINGS = {"coarse": "label_mapping.json", "fine": "fine_grained_label_mapping.json"}
ORDERS = ("appearance", "alphabetical")


class User(NamedTuple):
    """One user's group of the file."""

    name: str
    split: int
    labels: list[str]
    """For each image the names of its labels, joined by '|'."""


def flair(
    *,
    path: str = "",
    labels: str = "coarse",
    order: str = "appearance",
    metadata: str = "",
    mapping: str = "",
    max_images: int = 0,
) -> Dataset:
    """Read who has which labels; `x` is an `H5Images`, [n, 256, 256, 3] uint8 that stay in the file.

    Args:
        path: the federated HDF5 file.
        labels: 'coarse' or 'fine'.
        order: of the labels: 'appearance', which needs `metadata` or `mapping`, or 'alphabetical'.
        metadata: the providers' labels_and_metadata.json.
        mapping: FedLGT's label_mapping.json or, for fine labels, fine_grained_label_mapping.json.
        max_images: of a training user, the first so many; 0 = all.

    Raises:
        UserError: an unknown option, a missing, damaged or foreign file, an unknown label.
    """
    for option, value, known in (("labels", labels, tuple(LABELS)), ("order", order, ORDERS)):
        if value not in known:
            raise UserError(f"{FIELD}.{option}: unknown name '{value}'{nearest(value, known)}")
    if max_images < 0:
        raise UserError(f"{FIELD}.max_images: {max_images}, expected at least 1, or 0 for all")
    file = locate(path, f"{FIELD}.path")
    if file.is_dir():
        raise UserError(f"{FIELD}.path: {file} is a folder, expected the federated HDF5 file")
    with open_h5(file) as h5:
        _check_layout(h5, file)
        names = _names(h5, file, labels, order, metadata, mapping)
        image, users = _read(h5, file, LABELS[labels], max_images)

    counts = np.array([len(user.labels) for user in users])
    owner = np.repeat(np.arange(len(users), dtype=np.int32), counts)
    offset = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    place = {split: part for part, split in PARTITIONS.items()}
    x = H5Images(file, [f"{place[user.split]}/{user.name}/images" for user in users], owner, offset, image)
    clients = {name: i for i, name in enumerate(dict.fromkeys(user.name for user in users))}
    client = np.array([clients[user.name] for user in users], np.int32)[owner]
    split = np.array([user.split for user in users], np.int8)[owner]
    y = _targets(users, names, file)
    return Dataset(f"flair-{labels}", x, y, "multi", names, client, tuple(clients), split)


def _check_layout(h5: Any, file: Path) -> None:
    expected = "expected the federated file of apple/ml-flair's prepare_dataset.py"
    if "train" not in h5 or not hasattr(h5["train"], "keys"):
        found = ", ".join(list(h5)[:5]) or "nothing"
        raise UserError(f"{FIELD}.path: {file} holds {found}, but no group 'train'; {expected}")
    first = next(iter(h5["train"].values()), None)
    if first is None:
        raise UserError(f"{FIELD}.path: {file} has no users in group 'train'; {expected}")
    found = list(first) if hasattr(first, "keys") else []
    if "labels_row" in found:
        raise UserError(
            f"{FIELD}.path: {file} is apple/pfl-research's file (labels as sparse indices, labels_row and labels_col); "
            + expected
        )
    if "image" in found:
        raise UserError(
            f"{FIELD}.path: {file} is the central file (one group for each image); {expected} "
            "without --not_group_data_by_user"
        )
    missing = sorted({"images", *LABELS.values()} - set(found))
    if missing:
        raise UserError(f"{FIELD}.path: {file}: {first.name} has no data set '{missing[0]}'; {expected}")


def _read(h5: Any, file: Path, key: str, max_images: int) -> tuple[tuple[int, ...], list[User]]:
    """The shape of an image, and all users who have any, in the order of the file."""
    image, users = None, []
    for name, split, shape, dtype, labels in _groups(h5, key):
        where = f"{file}: user {name}"
        if len(shape) != 4 or dtype != np.uint8:
            raise UserError(f"{where} has images of shape {shape} and type {dtype}, expected [n, H, W, C] of uint8")
        image = image or shape[1:]
        if shape[1:] != image:
            raise UserError(f"{where} has images of shape {shape[1:]}, the users before have {image}")
        if len(labels) != shape[0]:
            raise UserError(f"{where} has {len(labels)} {key} for {shape[0]} images")
        if max_images and split == TRAIN:
            labels = labels[:max_images]
        if len(labels):
            users.append(User(name, split, [text.decode() for text in labels.tolist()]))
    if image is None or not any(user.split == TRAIN for user in users):
        raise UserError(f"{FIELD}.path: {file}: the users in group 'train' have no images")
    return image, users


def _groups(h5: Any, key: str) -> Iterator[tuple[str, int, tuple[int, ...], np.dtype, np.ndarray]]:
    """(user, split, shape and type of the images, labels) of each user, through h5py's low-level functions.

    There are 51,414 of them, and the usual objects take several times as long.
    """
    import h5py

    for part, split in PARTITIONS.items():
        for name in h5.get(part, ()):
            try:
                images = h5py.h5d.open(h5.id, f"{part}/{name}/images".encode())
                labels = h5py.h5d.open(h5.id, f"{part}/{name}/{key}".encode())
            except (KeyError, ValueError, TypeError):
                raise UserError(f"{h5.filename}: /{part}/{name} has no data sets 'images' and '{key}'") from None
            dtype = labels.dtype
            if dtype.kind != "S" or labels.rank != 1:
                raise UserError(
                    f"{h5.filename}: /{part}/{name}/{key} has type {dtype} and shape {labels.shape}, expected bytes [n]"
                )
            found = np.empty(labels.shape, dtype)
            labels.read(h5py.h5s.ALL, h5py.h5s.ALL, found)
            yield name, split, images.shape, images.dtype, found


def _names(h5: Any, file: Path, labels: str, order: str, metadata: str, mapping: str) -> tuple[str, ...]:
    """The names of the labels in the order of their numbers."""
    if order == "alphabetical":
        for option, value in (("metadata", metadata), ("mapping", mapping)):
            if value:
                raise UserError(
                    f"{FIELD}.{option}: given, but order = 'alphabetical' does without; "
                    "set order = 'appearance', or leave it empty"
                )
        return tuple(sorted(_counter(h5, file, COUNTERS[labels])))
    if metadata and mapping:
        raise UserError(f"{FIELD}.mapping: given besides metadata; both say the order of the labels, give one of them")
    if metadata:
        return _appearance(locate(metadata, f"{FIELD}.metadata"), LABELS[labels])
    if mapping:
        return _mapped(locate(mapping, f"{FIELD}.mapping"))
    raise UserError(
        f"{FIELD}.order: 'appearance' needs the order of the labels: give {FIELD}.metadata=labels_and_metadata.json (the "
        f"providers') or {FIELD}.mapping={MAPPINGS[labels]} (FedLGT's), or take order='alphabetical'"
    )


def _counter(h5: Any, file: Path, name: str) -> list[str]:
    if f"metadata/{name}" not in h5:
        raise UserError(f"{file}: no data set '/metadata/{name}', from which order = 'alphabetical' takes the names")
    text = h5[f"metadata/{name}"][()]
    try:
        return list(json.loads(text).keys())
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{file}: /metadata/{name} is not JSON of label: count") from None


def _appearance(file: Path, key: str) -> tuple[str, ...]:
    """The labels in the order in which a walk through the records meets them."""
    records = _json(file)
    expected = f"expected a list of records with '{key}', as labels_and_metadata.json has"
    if not isinstance(records, list):
        raise UserError(f"{file}: found one {type(records).__name__}, {expected}")
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get(key), list):
            raise UserError(f"{file}: record {i} has no list '{key}', {expected}")
        names.update(dict.fromkeys(record[key]))
    return tuple(names)


def _mapped(file: Path) -> tuple[str, ...]:
    """The labels by the numbers that a mapping gives them."""
    mapping = _json(file)
    expected = "expected name: one-hot list (or number) for each label, as FedLGT's label_mapping.json has"
    if not isinstance(mapping, dict) or not mapping:
        raise UserError(f"{file}: {expected}")
    number = {name: _number(value, len(mapping)) for name, value in mapping.items()}
    names = sorted(number, key=number.__getitem__)
    if [number[name] for name in names] != list(range(len(names))):
        raise UserError(f"{file}: the labels' numbers are not 0 ... {len(names) - 1}, each once; {expected}")
    if len(names) > 2 and names == sorted(names):
        raise UserError(
            f"{file}: the labels are in alphabetical order (apple/pfl-research's), not in that of their appearance; "
            f"take {FIELD}.order='alphabetical' without a mapping"
        )
    return tuple(names)


def _number(value: Any, length: int) -> int:
    """What a number or a one-hot list stands for; -1 where it is neither."""
    if isinstance(value, list):
        return value.index(1) if len(value) == length and sorted(value) == [0] * (length - 1) + [1] else -1
    return value if isinstance(value, int) else -1


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a whole JSON file ({str(error)[:120]})") from None


def _targets(users: list[User], names: tuple[str, ...], file: Path) -> np.ndarray:
    """[n, L] uint8 of 0 and 1."""
    code = {name: i for i, name in enumerate(names)}
    y = np.zeros((sum(len(user.labels) for user in users), len(names)), np.uint8)
    row = 0
    for user in users:
        for text in user.labels:
            for name in text.split("|") if text else ():
                if name not in code:
                    raise UserError(
                        f"{file}: user {user.name} has the label '{name}', which is none of the {len(names)}"
                        f"{nearest(name, names) if len(names) < 50 else ''}"
                    )
                y[row, code[name]] = 1
            row += 1
    return y
