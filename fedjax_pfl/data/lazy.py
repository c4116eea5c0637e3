"""Images that stay in their file until they are asked for."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_pfl.errors import UserError


@contextmanager
def open_h5(path: str | Path) -> Iterator[Any]:
    """The HDF5 file, open for reading; whatever is wrong with it becomes one line.

    A file is open only while it is read: so no handle is shared between threads or processes.

    Raises:
        UserError: no such file, not an HDF5 file, or a damaged one.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"{path}: no such file, or none that may be read") from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).strip("'\"").split())[:160]
        raise UserError(f"{path} is not a whole HDF5 file ({reason})") from error


class H5Images:
    """Images in many data sets of one HDF5 file, indexed like one array [n, ...]; only what is asked for is read.

    Indexing with a number, a slice, a bool mask or an array of numbers of any shape gives a NumPy array of what it
    would give on a NumPy array. `subset` picks rows without reading any.

    Args:
        path: the file.
        datasets: names of data sets [m, *image] in it.
        owner: [n] which of them has each row, `offset`: [n] and where in it.
        image: shape of one image.
    """

    def __init__(
        self,
        path: str | Path,
        datasets: Sequence[str],
        owner: np.ndarray,
        offset: np.ndarray,
        image: tuple[int, ...],
        dtype: Any = np.uint8,
    ) -> None:
        self.path, self.dtype, self.shape = Path(path), np.dtype(dtype), (len(owner), *image)
        self._datasets, self._owner, self._offset = datasets, owner, offset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all images would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(f"{self.path} is streamed: index it, images[rows], to read these rows")

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The images of these rows, read data set by data set in the file's order, each one once.

        Raises:
            UserError: the file is gone or damaged.
        """
        owner, offset = np.asarray(self._owner[rows]), np.asarray(self._offset[rows])
        out = np.empty((*owner.shape, *self.shape[1:]), self.dtype)
        flat = out.reshape(-1, *self.shape[1:])
        owner, offset = owner.ravel(), offset.ravel()
        order = np.lexsort((offset, owner))
        with open_h5(self.path) as file:
            for places in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
                if len(places):
                    wanted, which = np.unique(offset[places], return_inverse=True)
                    images = self._read(file, self._datasets[int(owner[places[0]])], wanted)
                    for place, i in zip(places, which, strict=True):  # no second copy of rows asked for twice
                        flat[place] = images[i]
        return out

    def subset(self, rows: np.ndarray) -> "H5Images":
        """The images with only these rows ([m] numbers, or [n] bool), in this order; nothing is read."""
        owner, offset = self._owner[rows], self._offset[rows]
        return H5Images(self.path, self._datasets, owner, offset, self.shape[1:], self.dtype)

    def fingerprint(self) -> bytes:
        """Changes with the file's size and with the data sets (users) and places of the rows; reads no image."""
        digest = hashlib.sha256(repr((self.path.stat().st_size, self.shape, self.dtype.str)).encode())
        names, owner = np.unique(self._owner, return_inverse=True)
        digest.update(repr([self._datasets[i] for i in names]).encode())
        for column in (owner, self._offset):
            digest.update(np.ascontiguousarray(column, np.int64).data)
        return digest.digest()

    def _read(self, file: Any, name: str, rows: np.ndarray) -> np.ndarray:
        first, last = int(rows[0]), int(rows[-1])
        return file[name][first : last + 1] if last - first + 1 == len(rows) else file[name][rows]
