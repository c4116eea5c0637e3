"""Office-Caltech10 as features: the SURF histograms of Gong et al., CVPR 2012, DeCAF features, or any others like them.

    amazon_SURF_L10.mat, Caltech10_SURF_L10.mat, dslr_SURF_L10.mat, webcam_SURF_L10.mat      fts [n, 800], labels 1...10
    amazon_decaf.mat, ...                                                                    feas [n, 4096], labels

One .mat file for each domain, each a natural client.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_pfl.data import matlab
from fedjax_pfl.data.files import inputs, locate
from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError, nearest

FEATURES = ("fts", "feas", "feats", "features")
LABELS = ("labels", "label", "gnd")
OFFICE_CALTECH = (
    "back_pack", "bike", "calculator", "headphones", "keyboard",
    "laptop_computer", "monitor", "mouse", "mug", "projector",
)  # fmt: skip
FIELD = "config.data.office_features"


def office_features(
    *,
    path: str = "",
    pattern: str = "*.mat",
    domains: Sequence[str] = (),
    test_share: float = 0.2,
    standardise: bool = True,
    seed: int = 0,
) -> Dataset:
    """Features float32 [n, d] with a given split, drawn class by class within each domain.

    With `standardise` each row is divided by its sum and each feature then has mean 0 and standard deviation 1 within its
    domain, as is usual for SURF histograms; unlike there, both are those of the training rows, so that nothing of the test
    rows is used.

    Args:
        path: the folder of the .mat files; a domain's name is what stands before the first `_`, in lower case, without 10.
        pattern: which of them, e.g. '*_SURF_L10.mat' where several kinds lie in one folder.
        domains: which domains; () = all.
        test_share: share of each class that is for testing, rounded.
        standardise: see above; False: as stored.
        seed: draws the split.

    Raises:
        UserError: an option out of range, no files, two of one domain, a chosen domain missing, a damaged file, no features
            or labels in it, other widths or classes than in the other domains, histograms that are none.
    """
    if not 0 < test_share < 1:
        raise UserError(f"{FIELD}.test_share: {test_share}, expected a share between 0 and 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"{FIELD}.seed: {seed}, expected at least 0 and below 2**32")
    folder = locate(path, f"{FIELD}.path")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not fnmatch(file.name, pattern) or file.stem.endswith("_imgs"):  # those have the names of the pictures
            continue
        domain = file.stem.split("_")[0].lower().removesuffix("10")
        if domain in files:
            raise UserError(
                f"{FIELD}.pattern: both {files[domain].name} and {file.name} are of '{domain}'; choose a kind"
            )
        files[domain] = file
    if not files:
        raise UserError(f"{FIELD}.path: no {pattern} in {folder}")
    for domain in domains:
        if domain not in files:
            raise UserError(f"{FIELD}.domains: no file of '{domain}' in {folder}{nearest(domain, files)}")
    wanted = sorted(set(domains)) or sorted(files)

    x, y, split = [], [], []
    for domain in wanted:
        features, labels = _read(files[domain])
        if x and features.shape[1] != x[0].shape[1]:
            raise UserError(
                f"{files[domain]}: {features.shape[1]} features a row, {x[0].shape[1]} in {files[wanted[0]].name}"
            )
        if y and set(labels) != set(y[0]):
            odd = sorted(set(labels) ^ set(y[0]))[0]
            raise UserError(
                f"{files[domain]}: label {odd} stands either here or in {files[wanted[0]].name}, expected in both"
            )
        rng = np.random.RandomState([seed, *domain.encode()])
        part = np.full(len(labels), TRAIN, np.int8)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            part[rows[: round(test_share * len(rows))]] = TEST
        x.append(_standardised(features, part == TRAIN, files[domain]) if standardise else features)
        y.append(labels)
        split.append(part)

    values, labels = np.unique(np.concatenate(y), return_inverse=True)
    office = values.tolist() == list(range(1, 11))
    return Dataset(
        name="office_features",
        x=np.concatenate(x).astype(np.float32),
        y=labels.astype(np.int32),
        task="single",
        class_names=OFFICE_CALTECH if office else tuple(map(str, values.tolist())),
        client=np.repeat(np.arange(len(wanted), dtype=np.int32), [len(part) for part in split]),
        client_names=tuple(wanted),
        split=np.concatenate(split),
    )


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """[n, d] float32 and [n] whole numbers."""
    found = matlab.load(file)
    x, y = _one(found, FEATURES, file), _one(found, LABELS, file).reshape(-1)
    if x.ndim != 2 or len(x) != len(y) or not len(y):
        raise UserError(
            f"{file}: features {x.shape} for {len(y)} labels, expected [n, features] and a label for each row"
        )
    if y.dtype.kind not in "iuf" or (y != np.floor(y)).any():
        raise UserError(f"{file}: labels of {y.dtype}, expected whole numbers")
    return inputs(x.astype(np.float64), f"{file}: features"), y.astype(np.int64)


def _one(found: dict[str, Any], keys: Sequence[str], file: Path) -> np.ndarray:
    key = next((key for key in keys if key in found), None)
    if key is None:
        raise UserError(f"{file}: none of {', '.join(keys)} in it; it has {', '.join(sorted(found)) or 'nothing'}")
    value = found[key]
    value = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
    if value.dtype.kind not in "biuf":
        raise UserError(f"{file}: '{key}' has values of type {value.dtype}, expected numbers")
    return value


def _standardised(x: np.ndarray, train: np.ndarray, file: Path) -> np.ndarray:
    x, total = x.astype(np.float64), x.sum(1, dtype=np.float64, keepdims=True)
    if x.min() < 0 or not total.all():
        row = int(np.flatnonzero((x < 0).any(1) | (total[:, 0] == 0))[0])
        raise UserError(f"{file}: row {row} is no histogram (a value below 0, or all 0); set {FIELD}.standardise=False")
    x = x / total
    std = x[train].std(0)
    return (x - x[train].mean(0)) / np.where(std > 0, std, 1)
