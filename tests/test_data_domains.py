"""Domains as clients: Digit-5 in all its packagings, folders of pictures, features, reviews; TFDS builders side by side."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from fedjax_pfl.data import files, matlab
from fedjax_pfl.errors import UserError

RealData = Callable[[str], Path]
RNG = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def grey(n: int, side: int = 32, first: int = 0) -> np.ndarray:
    """[n, side, side]: the value of image i is first + i all over, but for its corner."""
    x = np.tile(np.arange(first, first + n, dtype=np.uint8)[:, None, None], (1, side, side))
    x[:, 0, 0] = 255
    return x


def colour(n: int, side: int = 32, first: int = 0) -> np.ndarray:
    """[n, side, side, 3], no two channels alike."""
    return np.stack([grey(n, side, first + 50 * c) for c in range(3)], -1)


def digits(n: int, zero: int = 0) -> np.ndarray:
    y = np.arange(n) % 10
    return np.where(y == 0, zero, y)


def one_hot(y: np.ndarray) -> np.ndarray:
    return np.eye(10)[y]


def mat73(path: Path, write: Callable[[h5py.File], None]) -> None:
    """A .mat file of version 7.3: HDF5 behind 512 bytes of header."""
    with h5py.File(path, "w", userblock_size=512) as file:
        write(file)
    with open(path, "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H2s", 0x0200, b"IM"))


def whole(data: Any, domain: str, split: int) -> tuple[np.ndarray, np.ndarray]:
    rows = (data.client == data.client_names.index(domain)) & (data.split == split)
    return data.x[rows], data.y[rows]


# --- .mat and .pkl files ----------------------------------------------------------------------------------------------


def test_mat_of_both_kinds_is_one(tmp_path: Path) -> None:
    x, cell = RNG.randint(0, 255, (2, 3, 4)).astype(np.uint8), np.empty((2, 2), object)
    sparse = csc_matrix([[0, 2, 0], [1, 0, 3.0]])
    for i, place in enumerate(np.ndindex(2, 2)):
        cell[place] = np.full((2, i + 1), i)
    savemat(tmp_path / "old.mat", {"x": x, "cell": cell, "sparse": sparse})

    def write(file: h5py.File) -> None:
        file["x"] = x.T
        references = np.empty((2, 2), h5py.ref_dtype)
        for i, (a, b) in enumerate(np.ndindex(2, 2)):
            file[f"#refs#/{i}"] = cell[a, b].T
            references[b, a] = file[f"#refs#/{i}"].ref
        file.create_dataset("cell", data=references, dtype=h5py.ref_dtype)
        group = file.create_group("sparse")
        group.attrs["MATLAB_sparse"] = sparse.shape[0]
        group["data"], group["ir"], group["jc"] = sparse.data, sparse.indices, sparse.indptr

    mat73(tmp_path / "new.mat", write)
    for name in ("old.mat", "new.mat"):
        found = matlab.load(tmp_path / name)
        assert sorted(found) == ["cell", "sparse", "x"]
        np.testing.assert_array_equal(found["x"], x)
        np.testing.assert_array_equal(found["sparse"].toarray(), sparse.toarray())
        for place in np.ndindex(2, 2):
            np.testing.assert_array_equal(found["cell"][place], cell[place])
    content = (tmp_path / "old.mat").read_bytes()
    for broken in (content[:300], content[:130], b""):
        (tmp_path / "broken.mat").write_bytes(broken)
        with pytest.raises(UserError, match=r"broken.mat: not a whole .mat file") as error:
            matlab.load(tmp_path / "broken.mat")
        assert "\n" not in str(error.value)


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_hold_arrays_or_are_refused(protocol: int, tmp_path: Path) -> None:
    path, x = tmp_path / "a.pkl", np.arange(6.0).reshape(2, 3)
    path.write_bytes(pickle.dumps((x, {"y": np.float32(2)}), protocol))
    found = files.unpickle(path)
    np.testing.assert_array_equal(found[0], x)
    assert found[1] == {"y": 2}
    if protocol == 2:  # as NumPy 1 wrote it
        path.write_bytes(pickle.dumps(x, protocol).replace(b"numpy._core", b"numpy.core"))
        np.testing.assert_array_equal(files.unpickle(path), x)
    for bad in (Evil(tmp_path / "touched"), np.array([Evil(tmp_path / "touched")], object), eval):
        path.write_bytes(pickle.dumps((x, bad), protocol))
        with pytest.raises(UserError, match=r"a.pkl: asks for .*, expected arrays of numbers only") as error:
            files.unpickle(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()
    for content in (pickle.dumps(x)[:-20], b"", b"\x80"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a.pkl: not a whole pickle of arrays"):
            files.unpickle(path)
