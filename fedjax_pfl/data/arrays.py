"""MNIST, USPS, MNIST-M and CIFAR-10 from .npz files with `x_train`, `y_train`, `x_test` and `y_test`.

MNIST: LeCun, Bottou, Bengio, Haffner 1998. USPS: Hull 1994. MNIST-M: Ganin et al. 2016. CIFAR-10: Krizhevsky 2009.
"""

import os

import numpy as np

from fedjax_pfl.data.files import Npz, inputs, targets
from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError

DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def mnist(*, path: str = "") -> Dataset:
    """MNIST, [n, 28, 28, 1]."""
    return _read("mnist", path, (28, 28, 1), DIGITS)


def usps(*, path: str = "") -> Dataset:
    """USPS, [n, 16, 16, 1]."""
    return _read("usps", path, (16, 16, 1), DIGITS)


def mnist_m(*, path: str = "") -> Dataset:
    """MNIST-M, [n, 32, 32, 3]."""
    return _read("mnist_m", path, (32, 32, 3), DIGITS)


def cifar10(*, path: str = "") -> Dataset:
    """CIFAR-10, [n, 32, 32, 3]."""
    return _read("cifar10", path, (32, 32, 3), CIFAR10)


def _read(name: str, path: str | os.PathLike[str], shape: tuple[int, int, int], classes: tuple[str, ...]) -> Dataset:
    file = Npz(path, f"config.data.{name}.path")
    x, y = [], []
    for part in ("train", "test"):
        images = inputs(file[f"x_{part}"], f"{file.path}: key 'x_{part}'")
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise UserError(
                f"{file.path}: key 'x_{part}' is {images.dtype} {images.shape}, expected uint8 [n, {shape[0]}, "
                f"{shape[1]}, {shape[2]}] for {name}; other files go through config.data.source='npz'"
            )
        labels, task, _ = targets(file[f"y_{part}"], images, f"{file.path}: key 'y_{part}'", classes)
        if task != "single":
            raise UserError(f"{file.path}: key 'y_{part}' has shape {labels.shape}, expected one class for each row")
        x.append(images)
        y.append(labels)
    split = np.repeat([TRAIN, TEST], [len(x[0]), len(x[1])]).astype(np.int8)
    return Dataset(name, np.concatenate(x), np.concatenate(y), "single", classes, split=split)
