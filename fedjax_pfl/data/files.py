"""Files and arrays as users give them: found, read and checked, with one clear line for each mistake."""

import importlib
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_pfl.data.types import SPLITS
from fedjax_pfl.errors import UserError, nearest

WORDS = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "testing": 2}


def locate(path: str | os.PathLike[str], field: str) -> Path:
    """The existing file or folder; `~` and `$VARIABLES` are expanded. `field` is the config field that held it."""
    if not str(path):
        raise UserError(f"{field}: not set; give the path of the data, e.g. --{field}=...")
    found = Path(os.path.expandvars(path)).expanduser()
    if not found.exists():
        near = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
        raise UserError(f"{field}: no such file: {found}{nearest(found.name, near) if 0 < len(near) < 50 else ''}")
    return found


def cache_folder() -> Path:
    """Where decoded data are kept between runs: `$XDG_CACHE_HOME/fedjax_pfl/data`, else under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax_pfl" / "data"


class Npz:
    """An .npz file read array by array, never unpickled; open only while it is read."""

    def __init__(self, path: str | os.PathLike[str], field: str) -> None:
        """Look what the file holds.

        Raises:
            UserError: no such file, or not an .npz file.
        """
        self.path = locate(path, field)
        try:
            with open(self.path, "rb") as stream:
                file = np.load(stream, allow_pickle=False)
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise UserError(f"{field}: {self.path} holds one bare array; expected an .npz file of named arrays")
                self.keys = tuple(file.files)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{field}: {self.path} is not a whole .npz file ({_line(error)})") from error

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def __getitem__(self, key: str) -> np.ndarray:
        """The array.

        Raises:
            UserError: no such key, a damaged array, or pickled Python objects.
        """
        if key not in self.keys:
            raise UserError(f"{self.path}: no key '{key}'{nearest(key, self.keys)}")
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return np.atleast_1d(file[key])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if "allow_pickle" in str(error):
                raise UserError(
                    f"{self.path}: key '{key}' holds pickled Python objects, which are refused; save it as numbers"
                ) from error
            raise UserError(f"{self.path}: key '{key}' is damaged ({_line(error)})") from error

    def words(self, key: str) -> tuple[str, ...]:
        """A list of names, or () where there is no such key."""
        return tuple(str(word) for word in self[key].tolist()) if key in self.keys else ()


class _Arrays(pickle.Unpickler):
    """Only what arrays of numbers are made of: whatever else a pickle asks for would run code of its author's choice."""

    KNOWN = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("_codecs", "encode"),  # the bytes of an array, as Python 2 wrote them
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        place = re.sub(r"^numpy\.core\b", "numpy._core", module)  # its name before NumPy 2
        if (place, name) not in self.KNOWN:
            raise _RefusedError(f"{module}.{name}")
        return getattr(importlib.import_module(place), name)


class _RefusedError(Exception):
    pass


def unpickle(path: Path) -> Any:
    """What a pickle of NumPy arrays holds, in lists, tuples and dictionaries.

    Raises:
        UserError: no whole pickle, or one that asks for anything but arrays: it is refused before it can run code.
    """
    try:
        with open(path, "rb") as stream:
            return _Arrays(stream, encoding="latin1").load()
    except _RefusedError as error:
        raise UserError(
            f"{path}: asks for {error}, expected arrays of numbers only; other pickles are refused, they can run code"
        ) from error
    except Exception as error:  # of a damaged pickle nearly any type comes
        raise UserError(f"{path}: not a whole pickle of arrays ({_line(error)})") from error


def inputs(x: np.ndarray, where: str) -> np.ndarray:
    """Images as [n, H, W, C] uint8 (grey ones get C = 1), anything else as float32.

    Images of integers must be in 0...255; images of floats stay floats, with the values they have.

    Raises:
        UserError: no rows, NaN or infinite values, integers that are not grey values, an image with channels first.
    """
    if x.dtype.kind not in "biuf":
        raise UserError(f"{where}: values of type {x.dtype}, expected numbers")
    if x.ndim < 2 or not x.size:
        raise UserError(f"{where}: shape {x.shape}, expected [n, features], [n, H, W] or [n, H, W, C]")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        raise UserError(f"{where}: shape {x.shape} has the channels first, expected [n, H, W, C]; transpose it")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim >= 4 and x.dtype.kind != "f":
        if x.dtype.kind == "b":
            return x.astype(np.uint8) * 255
        if x.min() < 0 or x.max() > 255:
            raise UserError(f"{where}: integer images with values {x.min()}...{x.max()}, expected 0...255")
        return x.astype(np.uint8, copy=False)
    with np.errstate(over="ignore"):  # said below
        x = x.astype(np.float32, copy=False)
    finite = np.isfinite(x)
    if not finite.all():
        rows = np.flatnonzero(~finite.all(axis=tuple(range(1, x.ndim))))
        raise UserError(f"{where}: NaN or infinite values in {len(rows)} of {len(x)} rows, the first in row {rows[0]}")
    return x


def together(parts: Sequence[np.ndarray], lengths: Sequence[int], where: str) -> np.ndarray:
    """The parts (train, validation, test) one after the other.

    Raises:
        UserError: a part has not as many rows as the inputs of that part have, or the parts differ in shape.
    """
    if [len(part) for part in parts] != list(lengths):
        found = ", ".join(str(len(part)) for part in parts)
        raise UserError(f"{where}: {found} rows, expected {', '.join(map(str, lengths))} as the inputs have")
    if len({part.shape[1:] for part in parts}) > 1:
        raise UserError(f"{where}: the parts differ in shape: {', '.join(str(part.shape) for part in parts)}")
    return np.concatenate(parts)


def targets(
    y: np.ndarray, x: np.ndarray, where: str, names: Sequence[str] = (), classes: int = 0
) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Labels in the form of `Dataset.y`, the task they make, and the names of the classes.

    [n] or [n, 1] is one class for each row: integers, or words (classes in alphabetical order). [n, L] is 0 or 1 for
    each of L labels. [n, H, W] with the height and width of the images is a mask of classes.

    Args:
        y: labels.
        x: the inputs, already checked.
        where: file and key, for messages.
        names: names of the classes where they are known.
        classes: number of classes where it is known; 0 = from the names, else the largest label + 1.

    Raises:
        UserError: as many labels as rows are expected, whole, in range, and of one of the shapes above.
    """
    if y.ndim > 1 and y.shape[-1] == 1:
        y = y[..., 0]
    if len(y) != len(x):
        raise UserError(f"{where}: {len(y)} labels for {len(x)} rows")
    if y.dtype.kind == "S":
        y = np.char.decode(y)
    if y.dtype.kind == "U" and y.ndim == 1:
        if not len(names):
            names = [str(word) for word in np.unique(y)]
        unknown = sorted(set(y.tolist()) - set(names))
        if unknown:
            raise UserError(f"{where}: label '{unknown[0]}' is not a class{nearest(unknown[0], names)}")
        code = {name: i for i, name in enumerate(names)}
        y = np.array([code[word] for word in y.tolist()])
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise UserError(f"{where}: NaN or infinite labels in {(~np.isfinite(y)).sum()} places")
        if (y != np.floor(y)).any():
            raise UserError(f"{where}: labels must be whole numbers, found {y[y != np.floor(y)][0]}")
        y = y.astype(np.int64)
    if y.dtype.kind not in "biu":
        raise UserError(f"{where}: labels of type {y.dtype}, expected whole numbers or words")

    if y.ndim == 2:
        if not np.isin(y, (0, 1)).all():
            raise UserError(f"{where}: [n, L] labels must be 0 or 1, found {y[~np.isin(y, (0, 1))][0]}")
        task, found, y = "multi", y.shape[1], y.astype(np.uint8)
    elif y.ndim == 1 or (y.ndim == 3 and x.ndim == 4 and y.shape == x.shape[:3]):
        task, found = ("single" if y.ndim == 1 else "mask"), int(y.max()) + 1
        if y.min() < 0:
            raise UserError(f"{where}: label {y.min()} is out of range, expected 0 or more")
    else:
        raise UserError(
            f"{where}: labels of shape {y.shape} for inputs {x.shape}, expected [n], [n, L] or masks [n, H, W]"
        )
    expected = classes or len(names) or found
    if found > expected or (task == "multi" and found != expected):
        raise UserError(f"{where}: {_found(task, found)}, but there are {expected} classes")
    if expected > 100_000:
        raise UserError(f"{where}: {_found(task, found)}; number the classes 0, 1, 2, ...")
    if len(names) not in (0, expected):
        raise UserError(f"{where}: {len(names)} class names for {expected} classes")
    names = tuple(str(name) for name in names) or tuple(str(c) for c in range(expected))
    return (y if task == "multi" else y.astype(np.int32)), task, names


def codes(column: np.ndarray, n: int, where: str, names: Sequence[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows' clients or groups as [n] int32 (integers below 0 become -1: no client), and the names they stand for.

    Raises:
        UserError: a wrong length or type.
    """
    if column.shape != (n,):
        raise UserError(f"{where}: shape {column.shape}, expected one value for each of {n} rows")
    if column.dtype.kind == "S":
        column = np.char.decode(column)
    if column.dtype.kind not in "biuU":
        raise UserError(f"{where}: values of type {column.dtype}, expected integers or strings")
    if column.dtype.kind != "U" and len(names):
        if column.max() >= len(names):
            raise UserError(f"{where}: value {column.max()}, but there are only {len(names)} names")
        return np.maximum(column.astype(np.int64), -1).astype(np.int32), tuple(map(str, names))
    values, code = np.unique(column, return_inverse=True)
    unused = 0 if column.dtype.kind == "U" else int((values < 0).sum())
    return np.maximum(code - unused, -1).astype(np.int32), tuple(str(v) for v in values[unused:])


def splits(column: np.ndarray, n: int, where: str, names: Sequence[str] = SPLITS) -> np.ndarray:
    """The given split of each row as [n] int8: 0 train, 1 validation, 2 test, -1 in none of them.

    Args:
        column: words, or integers that count through `names` (below 0: in no split).
        n: number of rows.
        where: file and key, for messages.
        names: words that the integers 0, 1, ... stand for.

    Raises:
        UserError: a wrong length, an unknown word, an integer without a word.
    """
    for name in names:
        if name not in WORDS:
            raise UserError(f"{where}: unknown split '{name}'{nearest(name, WORDS)}")
    if column.shape != (n,):
        raise UserError(f"{where}: shape {column.shape}, expected one value for each of {n} rows")
    if column.dtype.kind == "S":
        column = np.char.decode(column)
    if column.dtype.kind == "U":
        unknown = sorted(set(column.tolist()) - set(WORDS))
        if unknown:
            raise UserError(f"{where}: unknown split '{unknown[0]}'{nearest(unknown[0], WORDS)}")
        return np.array([WORDS[word] for word in column.tolist()], np.int8)
    if column.dtype.kind not in "biu" or column.max() >= len(names):
        found = column.max() if column.dtype.kind in "biuf" else column.dtype
        raise UserError(f"{where}: found {found}, expected words, or 0...{len(names) - 1} for {', '.join(names)}")
    table = np.array([-1, *(WORDS[name] for name in names)], np.int8)
    return table[np.maximum(column.astype(np.int64), -1) + 1]


def _found(task: str, found: int) -> str:
    return f"{found} labels a row" if task == "multi" else f"label {found - 1} found"


def _line(error: Exception) -> str:
    return str(error).split("\n")[0][:200] or type(error).__name__
