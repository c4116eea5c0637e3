"""Any classification set prepared on disk by TensorFlow Datasets, read through `tfds.data_source` without TensorFlow.

Random access needs the ArrayRecord format: prepare a set once with `download=True`, or with
`tfds.builder(name, file_format='array_record').download_and_prepare()`. Nothing is downloaded otherwise.
"""

from typing import Any

import numpy as np

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
) -> Dataset:
    """Read the splits `train`, `validation` and `test` of a data set ('' = none; slices such as 'train[:90%]' work).

    Args:
        name: as TFDS spells it, e.g. 'mnist' or 'cifar10:3.0.2'.
        data_dir: where it was prepared; '' = TFDS's own default.
        image: feature with the inputs, all of one shape.
        label: feature with the labels.
        client: feature with the natural client of each row; '' = none.
        train, validation, test: splits to read.
        download: download and prepare what is missing (some data sets need TensorFlow for that).

    Raises:
        UserError: TFDS is not installed, no such data set, split or feature, nothing prepared at `data_dir`, or
            prepared in another format than ArrayRecord.
    """
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
    for option, key in (("image", image), ("label", label), ("client", client)):
        if key and key not in features:
            raise UserError(f"config.data.tfds.{option}: '{name}' has no feature '{key}'{nearest(key, list(features))}")
    columns: dict[str, list[Any]] = {key: [] for key in (image, label, client) if key}
    split = []
    for part, source in sources.items():
        for example in source:
            for key, column in columns.items():
                column.append(example[key])
            split.append(part)
    for key, column in columns.items():
        shapes = {np.shape(value) for value in column}
        if len(shapes) != 1:
            raise UserError(f"config.data.tfds: feature '{key}' of '{name}' has {len(shapes)} shapes, expected one")

    where = f"data set '{name}' of TFDS: feature"
    x = inputs(np.array(columns[image]), f"{where} '{image}'")
    y, task, names = targets(
        np.array(columns[label]), x, f"{where} '{label}'", getattr(features[label], "names", None) or ()
    )
    holder, holder_names = None, ()
    if client:
        values = getattr(features[client], "names", None) or ()
        holder, holder_names = codes(np.array(columns[client]), len(x), f"{where} '{client}'", values)
    given = np.array(split, np.int8) if len(wanted) > 1 else None
    return Dataset(name, x, y, task, names, holder, holder_names, given)
