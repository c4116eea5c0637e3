"""What a data source hands over (`Dataset`), what a partition reads (`Pool`) and who holds what (`Federation`)."""

from typing import NamedTuple

import numpy as np

from fedjax_pfl.data.lazy import H5Images

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = ("train", "validation", "test")


class Dataset(NamedTuple):
    """One pool of rows in host memory, as stored."""

    name: str
    x: np.ndarray | H5Images
    """[n, H, W, C] uint8 images (grey: C = 1), in memory or in their file, or [n, ...] float32 features."""
    y: np.ndarray
    """task 'single': [n] int32; 'multi': [n, L] uint8 of 0 and 1; 'mask': [n, H, W] int32."""
    task: str
    """'single' | 'multi' | 'mask'."""
    class_names: tuple[str, ...]
    client: np.ndarray | None = None
    """[n] int32 natural client, -1 = row not used."""
    client_names: tuple[str, ...] = ()
    split: np.ndarray | None = None
    """[n] int8: 0 train, 1 validation, 2 test, as given by the source."""
    group: np.ndarray | None = None
    """[n] int32: rows with one value stay in one split (a lesion, a patient)."""


class Pool(NamedTuple):
    """What a partition may look at: the labels and the natural clients of the rows to hand out, in their order."""

    y: np.ndarray
    """As in `Dataset`."""
    task: str
    classes: int
    client: np.ndarray | None = None
    """[n] int32, every one >= 0."""
    client_names: tuple[str, ...] = ()


class Parts(NamedTuple):
    """What a partition decides for its N clients."""

    rows: tuple[np.ndarray, ...]
    """For each client its rows of the pool, [n_k] int64."""
    names: tuple[str, ...]
    noise: np.ndarray
    """[N] float32, as in `Federation`."""


class Federation(NamedTuple):
    """Who holds what: the rows stay in one pool, each of the N clients holds row numbers of it."""

    name: str
    task: str
    class_names: tuple[str, ...]
    client_names: tuple[str, ...]
    x: np.ndarray | H5Images
    """As in `Dataset`; rows that nobody holds are left out."""
    y: np.ndarray
    train: tuple[np.ndarray, ...]
    """For each client its row numbers, [n_k] int64; never empty."""
    validation: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]
    noise: np.ndarray
    """[N] float32: standard deviation of the Gaussian noise added to a client's inputs once they are in [0, 1]
    (NIID-Bench's noise-based feature skew); 0 = none."""


def subset(x: np.ndarray | H5Images, rows: np.ndarray) -> np.ndarray | H5Images:
    """Only these rows of the inputs, in this order; images in a file stay there."""
    return x.subset(rows) if isinstance(x, H5Images) else x[rows]


def take(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The data set with only these rows ([m] integers, or [n] bool), in this order."""
    return dataset._replace(
        x=subset(dataset.x, rows),
        y=dataset.y[rows],
        client=None if dataset.client is None else dataset.client[rows],
        split=None if dataset.split is None else dataset.split[rows],
        group=None if dataset.group is None else dataset.group[rows],
    )
