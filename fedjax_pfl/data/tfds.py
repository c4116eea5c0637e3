"""Any classification set prepared on disk by TensorFlow Datasets, read through `tfds.data_source` without TensorFlow.

Random access needs the ArrayRecord format: prepare a set once with `download=True`, or with
`tfds.builder(name, file_format='array_record').download_and_prepare()`. Nothing is downloaded otherwise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_pfl.data import images
from fedjax_pfl.data.files import codes, inputs, targets
from fedjax_pfl.data.types import Dataset
from fedjax_pfl.errors import UserError, nearest


def tfds(
    *,
    name: str = "",
    data_dir: str = "",
    image: str = "image",
    label: str = "label",
    client: str = "",
    train: str = "train",
    validation: str = "",
    test: str = "test",
    download: bool = False,
    size: int = 0,
) -> Dataset:
    """Read the splits `train`, `validation` and `test` of a data set ('' = none; slices such as 'train[:90%]' work).

    Args:
        name: as TFDS spells it, e.g. 'mnist' or 'cifar10:3.0.2'; several with commas between them, e.g.
            'domainnet/real, domainnet/sketch', are a natural client each and must have the same classes.
        data_dir: where it was prepared; '' = TFDS's own default.
        image: feature with the inputs, all of one shape (see `size`).
        label: feature with the labels; one inside another is written 'objects/label'. A sequence of classes, as
            'labels' of voc or 'objects/label' of coco, gives several labels for each row, or none.
        client: feature with the natural client of each row; '' = none.
        train, validation, test: splits to read.
        download: download and prepare what is missing (some data sets need TensorFlow for that).
        size: height and width to resize images to (bicubic, aspect ratio not kept); 0 = as stored.

    Raises:
        UserError: TFDS is not installed, no such data set, split or feature, nothing prepared at `data_dir`, or
            prepared in another format than ArrayRecord; several names with other classes or shapes than the first has.
    """
    # A comma between arguments of a builder ('name/a=1,b=2') separates no names.
    builders = [word for part in name.split(",") if (word := part.strip())] if "=" not in name else []
    if len(builders) > 1:
        options = dict(
            data_dir=data_dir, image=image, label=label, train=train, validation=validation, test=test, size=size
        )
        return _several(builders, client, options | dict(download=download))
    if size < 0:
        raise UserError(f"config.data.tfds.size: {size}, expected pixels, or 0 for images as stored")
    if not name:
        raise UserError("config.data.tfds.name: not set; give a name as TensorFlow Datasets spells it, e.g. 'mnist'")
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError("config.data.source: 'tfds' needs the packages tensorflow-datasets and array-record") from error

    wanted = {part: split for part, split in enumerate((train, validation, test)) if split}
    if not wanted:
        raise UserError("config.data.tfds: no split to read; set config.data.tfds.train")
    try:
        options: Any = {"file_format": "array_record"} if download else {}
        builder: Any = tensorflow_datasets.builder(name, data_dir=data_dir or None, **options)
        if download:
            builder.download_and_prepare()
        sources: dict[int, Any] = {part: builder.as_data_source(split) for part, split in wanted.items()}
    except Exception as error:  # TFDS raises a dozen types here, each with a screenful of text
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"config.data.tfds: '{name}' cannot be read from {data_dir or 'the default folder'} "
            f"({lines[0].strip() if lines else type(error).__name__}); a set must have been prepared there as "
            "array_record, see config.data.tfds.download"
        ) from error

    features: Any = builder.info.features or {}
    walk = {
        key: _walk(features, key, option, name)
        for option, key in (("image", image), ("label", label), ("client", client))
        if key
    }
    sequence = any(isinstance(step, tensorflow_datasets.features.Sequence) for _, step in walk[label])
    names = getattr(walk[label][-1][1], "names", None) or ()
    several = sequence and (len(names) > 0 or walk[label][-1][1].shape == (None,))
    columns: dict[str, list[Any]] = {key: [] for key in walk}
    split = []
    for part, source in sources.items():
        for example in source:
            for key, steps in walk.items():
                value = example
                for word, _ in steps:
                    value = value[word]
                columns[key].append(_resized(np.asarray(value), size) if size and key == image else value)
            split.append(part)

    where = f"data set '{name}' of TFDS: feature"
    if several:
        columns[label] = _multi_hot(columns[label], len(names), f"{where} '{label}'")
    for key, column in columns.items():
        shapes = {np.shape(value) for value in column}
        if len(shapes) != 1:
            hint = "; set config.data.tfds.size" if key == image else ""
            raise UserError(
                f"config.data.tfds: feature '{key}' of '{name}' has {len(shapes)} shapes, expected one{hint}"
            )

    x = inputs(np.array(columns[image]), f"{where} '{image}'")
    y, task, names = targets(np.array(columns[label]), x, f"{where} '{label}'", names)
    holder, holder_names = None, ()
    if client:
        values = getattr(walk[client][-1][1], "names", None) or ()
        holder, holder_names = codes(np.array(columns[client]), len(x), f"{where} '{client}'", values)
    given = np.array(split, np.int8) if len(wanted) > 1 else None
    return Dataset(name, x, y, task, names, holder, holder_names, given)


def _several(names: Sequence[str], client: str, options: dict[str, Any]) -> Dataset:
    """Data sets with the same classes as one, each a natural client."""
    if client:
        raise UserError(f"config.data.tfds.client: '{client}', but {len(names)} names make a client each; set it to ''")
    if len(set(names)) < len(names):
        raise UserError(f"config.data.tfds.name: one name stands twice in '{', '.join(names)}'")
    parts = [tfds(name=name, **options) for name in names]
    for name, part in zip(names, parts, strict=True):
        for what in ("class_names", "task"):
            if getattr(part, what) != getattr(parts[0], what):
                raise UserError(f"config.data.tfds.name: '{name}' has other classes or labels than '{names[0]}'")
        if part.x.shape[1:] != parts[0].x.shape[1:]:
            raise UserError(
                f"config.data.tfds: inputs {part.x.shape[1:]} in '{name}', {parts[0].x.shape[1:]} in '{names[0]}'; set "
                "config.data.tfds.size"
            )
    given = [part.split for part in parts if part.split is not None]
    return parts[0]._replace(
        name="+".join(names),
        x=np.concatenate([np.asarray(part.x) for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        client=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.y) for part in parts]),
        client_names=tuple(names),
        split=np.concatenate(given) if given else None,
    )


def _walk(features: Any, key: str, option: str, name: str) -> list[tuple[str, Any]]:
    """The names and features on the way to one that may lie inside others, such as 'objects/label'."""
    steps = []
    for word in [key] if key in features else key.split("/"):
        known = list(getattr(features, "keys", list)())
        if word not in known:
            raise UserError(f"config.data.tfds.{option}: '{name}' has no feature '{key}'{nearest(word, known)}")
        features = features[word]
        steps.append((word, features))
    return steps


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3:
        raise UserError(f"config.data.tfds.size: {size} is for images, but the inputs have shape {image.shape}")
    return images.bicubic(image, size)


def _multi_hot(rows: Sequence[np.ndarray], classes: int, where: str) -> list[np.ndarray]:
    """For each row of class numbers 0 and 1 for all classes (0: as many as are found)."""
    if any(np.size(row) and np.asarray(row).dtype.kind not in "iu" for row in rows):
        raise UserError(f"{where}: a sequence of other things than class numbers")
    every = np.concatenate([np.asarray(row, np.int64).ravel() for row in rows])
    classes = classes or int(every.max(initial=0)) + 1
    if every.size and not 0 <= every.min() <= every.max() < classes:
        raise UserError(f"{where}: class numbers {every.min()}...{every.max()}, expected 0...{classes - 1}")
    hot = np.zeros((len(rows), classes), np.uint8)
    hot[np.repeat(np.arange(len(rows)), [np.size(row) for row in rows]), every] = 1
    return list(hot)
