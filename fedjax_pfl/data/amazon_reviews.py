"""Amazon reviews of four kinds of products, positive or negative, as counts of words and pairs of words (METHODS 10.8).

Blitzer, Dredze, Pereira, ACL 2007, as prepared for mSDA by Chen et al., ICML 2012; the 5,000 commonest words and pairs are
what DANN (Ganin et al., JMLR 2016) and KD3A (Feng et al., ICML 2021) use. Three layouts:

    KD3A's amazon.npz    xx_data, xx_row, xx_col, xx_shape (features x reviews), yy (-1, +1), offset (5 numbers)
    mSDA's amazon.mat    xx (sparse, features x reviews), yy, offset
    an .npz with a split {books,dvd,electronics,kitchen}_{train,test}_{indptr,indices,values,y}     (rows are reviews)
"""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax_pfl.data import matlab
from fedjax_pfl.data.files import Npz, inputs, locate
from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError, nearest

DOMAINS = ("books", "dvd", "electronics", "kitchen")
SCALES = ("counts", "log", "binary")
FIELD = "config.data.amazon_reviews"


def amazon_reviews(
    *, path: str = "", features: int = 5000, scale: str = "counts", train: int = 2000, seed: int = 0
) -> Dataset:
    """Four natural clients, float32 [n, features] (550 MB with 5,000 of them); classes negative, positive.

    Args:
        path: the .npz or .mat file.
        features: the first so many (they are sorted by how common they are); 0 = all of them.
        scale: 'counts' as stored, 'log' log(1 + count), or 'binary' 0 and 1.
        train: of a file without a split, so many reviews of each domain are for training, drawn by `seed`, the rest for
            testing.
        seed: draws those.

    Raises:
        UserError: an option out of range, a file of another layout or a damaged one, labels other than -1 and +1 (or 0 and
            1), a domain with too few reviews, values below 0 that are no counts.
    """
    if features < 0:
        raise UserError(f"{FIELD}.features: {features}, expected at least 1, or 0 for all")
    if scale not in SCALES:
        raise UserError(f"{FIELD}.scale: unknown name '{scale}'{nearest(scale, SCALES)}")
    if train < 1:
        raise UserError(f"{FIELD}.train: {train}, expected at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"{FIELD}.seed: {seed}, expected at least 0 and below 2**32")
    file = locate(path, f"{FIELD}.path")
    found = _matrices(file, features, train, seed)
    width = min(matrix.shape[1] for _, _, matrix, _ in found)
    if features > width:
        raise UserError(f"{FIELD}.features: {features}, but {file} has {width} of them")
    x = np.empty((sum(len(y) for *_, y in found), features or width), np.float32)
    start = 0
    for _, _, matrix, y in found:
        some = x[start : start + len(y)]
        matrix[:, : x.shape[1]].astype(np.float32).toarray(out=some)
        start += len(y)
    if x.min() < 0:
        raise UserError(f"{file}: a value of {x.min():g} found, expected counts of at least 0")
    if scale == "log":
        np.log1p(x, out=x)
    elif scale == "binary":
        np.greater(x, 0, out=x)
    sizes = [len(y) for *_, y in found]
    return Dataset(
        name="amazon_reviews",
        x=inputs(x, f"{file}"),
        y=np.concatenate([y for *_, y in found]),
        task="single",
        class_names=("negative", "positive"),
        client=np.repeat([client for client, *_ in found], sizes).astype(np.int32),
        client_names=DOMAINS,
        split=np.repeat([split for _, split, *_ in found], sizes).astype(np.int8),
    )


def _matrices(file: Path, features: int, train: int, seed: int) -> list[tuple[int, int, Any, np.ndarray]]:
    """For each domain and split: the domain, the split, counts as a sparse [n, features] matrix, and labels [n] int32."""
    from scipy.sparse import coo_matrix, csr_matrix

    if file.suffix == ".mat":
        pieces: Any = matlab.load(file)
        _need(file, pieces, ("xx", "yy", "offset"))
        try:
            matrix = csr_matrix(pieces["xx"])
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}: xx is no matrix of numbers") from error
        return _cut(file, matrix, pieces["yy"], pieces["offset"], train, seed)
    npz = Npz(file, f"{FIELD}.path")
    if "xx_data" in npz:
        try:
            place = (npz["xx_row"].ravel(), npz["xx_col"].ravel())
            matrix = coo_matrix((npz["xx_data"].ravel(), place), shape=tuple(npz["xx_shape"].ravel().tolist())).tocsr()
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{file}: xx_data, xx_row, xx_col and xx_shape make no matrix ({error})") from error
        return _cut(file, matrix, npz["yy"], npz["offset"], train, seed)
    found = []
    for client, domain in enumerate(DOMAINS):
        for split, part in ((TRAIN, "train"), (TEST, "test")):
            name = f"{domain}_{part}"
            _need(file, npz.keys, [f"{name}_{key}" for key in ("indptr", "indices", "values", "y")])
            found.append((client, split, name))
    # How many features there are this layout does not say: the last ones may occur in no review.
    width = max(features, 1 + max(int(npz[f"{name}_indices"].max(initial=-1)) for *_, name in found))
    return [(client, split, *_rows(npz, name, width)) for client, split, name in found]


def _rows(npz: Npz, name: str, width: int) -> tuple[Any, np.ndarray]:
    from scipy.sparse import csr_matrix

    indptr, indices, values = (npz[f"{name}_{key}"] for key in ("indptr", "indices", "values"))
    y = _labels(npz[f"{name}_y"], npz.path)
    try:
        matrix = csr_matrix((values, indices, indptr), shape=(len(y), width))
        matrix.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{npz.path}: {name}_indptr, _indices and _values make no matrix of {len(y)} rows ({error})"
        ) from error
    return matrix, y


def _cut(
    file: Path, matrix: Any, labels: np.ndarray, offset: np.ndarray, train: int, seed: int
) -> list[tuple[int, int, Any, np.ndarray]]:
    """Reviews of one matrix [features, n] by domain, each domain's first `train` of a random order for training."""
    y, bounds = _labels(labels, file), np.asarray(offset).ravel().astype(np.int64)
    if len(bounds) != len(DOMAINS) + 1 or bounds[0] != 0 or bounds[-1] != len(y) or (np.diff(bounds) < 1).any():
        raise UserError(f"{file}: offset {bounds.tolist()} for {len(y)} labels, expected 0, three bounds and {len(y)}")
    if matrix.shape[1] != len(y):
        raise UserError(f"{file}: a matrix {matrix.shape} for {len(y)} labels, expected features x reviews")
    reviews = matrix.T.tocsr()
    found = []
    for client, domain in enumerate(DOMAINS):
        rows = np.arange(bounds[client], bounds[client + 1])
        if len(rows) <= train:
            raise UserError(
                f"{FIELD}.train: {train}, but {file} has {len(rows)} reviews of '{domain}'; leave some for testing"
            )
        rows = np.random.RandomState([seed, client]).permutation(rows)
        for split, some in ((TRAIN, rows[:train]), (TEST, rows[train:])):
            found.append((client, split, reviews[some], y[some]))
    return found


def _labels(y: np.ndarray, file: Path) -> np.ndarray:
    """[n] int32 of 0 and 1."""
    y = np.asarray(y).ravel()
    if y.dtype.kind not in "biuf" or not (np.isin(y, (-1, 1)).all() or np.isin(y, (0, 1)).all()):
        raise UserError(f"{file}: labels {np.unique(y)[:5].tolist()} found, expected -1 and +1")
    return (y > 0).astype(np.int32)


def _need(file: Path, found: Any, keys: Any) -> None:
    for key in keys:
        if key not in found:
            raise UserError(
                f"{file}: no key '{key}'{nearest(key, found)}; neither KD3A's, mSDA's nor a layout with a split"
            )
