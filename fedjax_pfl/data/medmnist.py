"""MedMNIST v2 (Yang et al. 2023, Scientific Data 10:41): any of its .npz files."""

import numpy as np

from fedjax_pfl.data.files import Npz, inputs, targets, together
from fedjax_pfl.data.types import Dataset


def medmnist(*, path: str = "") -> Dataset:
    """Read `train_images`, `train_labels`, `val_...` and `test_...`.

    Labels are [n, 1] (one class) or [n, L] (multi-label, as ChestMNIST). The depth of a volume becomes its channels.
    """
    file = Npz(path, "config.data.medmnist.path")
    parts = ("train", "val", "test")
    where = f"{file.path}: keys '..._"
    images = [file[f"{part}_images"] for part in parts]
    lengths = [len(part) for part in images]
    x = inputs(together(images, lengths, f"{where}images'"), f"{where}images'")
    labels = together([file[f"{part}_labels"] for part in parts], lengths, f"{where}labels'")
    y, task, names = targets(labels, x, f"{where}labels'", file.words("class_names"))
    split = np.repeat(np.arange(3), lengths).astype(np.int8)
    return Dataset(file.path.stem, x, y, task, names, split=split)
