"""Domains as clients: Digit-5 in all its packagings, folders of pictures, features, reviews; TFDS builders side by side."""

import gzip
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix

from fedjax_pfl.data import federate, files, matlab
from fedjax_pfl.errors import UserError
from tests.test_data import read, refused, split_section

RealData = Callable[[str], Path]
RNG = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def grey(n: int, side: int = 32, first: int = 0) -> np.ndarray:
    """[n, side, side]: the value of image i is first + i all over, but for one pixel, which tells the axes apart."""
    x = np.tile(np.arange(first, first + n, dtype=np.uint8)[:, None, None], (1, side, side))
    x[:, 0, 3] = 255
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


# --- Digit-5 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kd3a(tmp_path: Path) -> Path:
    """KD3A's folder, small: 30 + 12 of each domain; in USPS 20 + 8."""
    folder = tmp_path / "dataset" / "DigitFive"
    folder.mkdir(parents=True)
    y, z = digits(30), digits(12)
    savemat(
        folder / "mnist_data.mat",
        {"train_32": grey(30), "test_32": grey(12, first=100), "label_train": one_hot(y), "label_test": one_hot(z),
         "train_28": np.zeros((30, 28, 28))},
    )  # fmt: skip
    savemat(
        folder / "mnistm_with_label.mat",
        {"train": colour(30, 28), "test": colour(12, 28, 30), "label_train": one_hot(y), "label_test": one_hot(z)},
    )
    for name, first in (("svhn", 5), ("synth", 6)):
        for part, n in (("train", 30), ("test", 12)):
            x = colour(n, first=first).transpose(1, 2, 3, 0)
            savemat(folder / f"{name}_{part}_32x32.mat", {"X": x, "y": digits(n, 10)[:, None].astype(np.uint8)})
    cell = np.empty((2, 2), object)
    for part, n in enumerate((20, 8)):
        # values whose product with 255 is no whole number: 0.999 * k
        cell[part, 0] = (np.arange(n) * 0.999 / 255)[:, None, None, None] * np.ones((1, 28, 28))
        cell[part, 0][:, :, 14:] = 1
        cell[part, 1] = digits(n)[:, None]
    savemat(folder / "usps_28x28.mat", {"dataset": cell})
    return folder


def test_digit5_of_kd3a(kd3a: Path) -> None:
    data = read("digit5", path=str(kd3a))
    assert data.client_names == ("mnist", "mnist_m", "svhn", "synth", "usps")
    assert data.x.shape == (4 * 42 + 28, 32, 32, 3)
    assert data.x.dtype == np.uint8
    assert data.class_names == tuple("0123456789")
    assert data.group is None
    np.testing.assert_array_equal(read("digit5", path=str(kd3a.parent)).x, data.x)
    for split, n in ((0, 30), (2, 12)):
        x, y = whole(data, "mnist", split)
        np.testing.assert_array_equal(x, grey(n, first=50 * split)[..., None].repeat(3, -1))
        np.testing.assert_array_equal(y, digits(n))
        for domain, first in (("svhn", 5), ("synth", 6)):
            x, y = whole(data, domain, split)
            np.testing.assert_array_equal(x, colour(n, first=first))
            np.testing.assert_array_equal(y, digits(n))
        x, y = whole(data, "mnist_m", split)
        expected = [Image.fromarray(i).resize((32, 32), Image.Resampling.BILINEAR) for i in colour(n, 28, 15 * split)]
        np.testing.assert_array_equal(x, np.stack([np.asarray(i) for i in expected]))
        np.testing.assert_array_equal(y, digits(n))
    x, y = whole(data, "usps", 0)
    np.testing.assert_array_equal(x[:, 0, 0, 0], [0, *range(19)])  # 0.999 k is cut off, not rounded
    assert (x[:, -1, -1] == 255).all()
    np.testing.assert_array_equal(y, digits(20))
    f = federate(data, split_section(validation=0.0), 0)
    assert [len(rows) for rows in f.train] == [30, 30, 30, 30, 20]
    assert [len(rows) for rows in f.test] == [12, 12, 12, 12, 8]


def test_digit5_draws_rows(kd3a: Path) -> None:
    some = [read("digit5", path=str(kd3a), train=10, test=5, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(some[0].x, some[1].x)
    shown = [{domain: whole(data, domain, 0)[0][:, 5, 5, 0].tolist() for domain in data.client_names} for data in some]
    for domain in ("mnist", "mnist_m", "svhn"):
        assert len(set(shown[0][domain])) == 10
        assert shown[0][domain] != shown[2][domain]
        assert shown[0][domain] != sorted(shown[0][domain])[0:1] + list(range(1, 10))
    assert shown[0]["synth"] == shown[2]["synth"] == list(range(6, 16))  # the first ones
    for domain, first in (("mnist", 100), ("synth", 6)):
        assert whole(some[0], domain, 2)[0][:, 5, 5, 0].tolist() == list(range(first, first + 5))
    # A domain's rows don't depend on which others are there.
    alone = read("digit5", path=str(kd3a), train=10, domains=("svhn",))
    assert alone.client_names == ("svhn",)
    assert whole(alone, "svhn", 0)[0][:, 5, 5, 0].tolist() == shown[0]["svhn"]
    assert len(read("digit5", path=str(kd3a), train=0, test=0).x) == 196


def test_digit5_usps_is_tiled_where_asked(kd3a: Path) -> None:
    data = read("digit5", path=str(kd3a), domains=("usps",), tile_usps=True, train=70)
    assert np.bincount(data.split).tolist() == [70, 0, 8]
    np.testing.assert_array_equal(data.x[20:40], data.x[:20])
    np.testing.assert_array_equal(data.y[:70], np.tile(digits(20), 4)[:70])
    f = federate(data, split_section(validation=0.2), 0)  # copies of one image don't stand on both sides
    learnt, validated = ({f.x[row].tobytes() for row in rows[0]} for rows in (f.train, f.validation))
    assert len(f.validation[0]) >= 10
    assert not learnt & validated


def test_digit5_of_m3sda(kd3a: Path) -> None:
    for part in ("train", "test"):
        (kd3a / f"svhn_{part}_32x32.mat").rename(kd3a / f"{part}_32x32.mat")
        (kd3a / f"synth_{part}_32x32.mat").unlink()
    savemat(
        kd3a / "syn_number.mat",
        {"train_data": colour(30), "test_data": colour(12), "train_label": digits(30)[:, None],
         "test_label": digits(12)[:, None]},
    )  # fmt: skip
    (kd3a / "usps_28x28.mat").unlink()
    with h5py.File(kd3a / "usps.h5", "w") as file:
        for part, n in (("train", 20), ("test", 8)):
            file[f"{part}/data"] = (np.arange(n, dtype=np.float32)[:, None] * np.ones(256, np.float32)) / 255
            file[f"{part}/target"] = digits(n)
    data = read("digit5", path=str(kd3a))
    assert data.client_names == ("mnist", "mnist_m", "svhn", "synth", "usps")
    np.testing.assert_array_equal(whole(data, "svhn", 0)[0], colour(30, first=5))
    np.testing.assert_array_equal(whole(data, "synth", 2)[0], colour(12))
    assert whole(data, "usps", 0)[0].shape == (20, 32, 32, 3)
    assert np.abs(whole(data, "usps", 0)[0][:, 0, 0, 0] - np.arange(20.0)).max() <= 1


@pytest.fixture
def fedbn(tmp_path: Path) -> Path:
    folder = tmp_path / "fedbn"
    for name, side in (("MNIST", 28), ("USPS", 16), ("SVHN", 32)):
        (folder / name / "partitions").mkdir(parents=True)
        make = colour if name == "SVHN" else grey
        for part in range(11):  # part 10 comes after part 9, not after part 1
            content = (make(4, side, 4 * part), digits(4))
            (folder / name / "partitions" / f"train_part{part}.pkl").write_bytes(pickle.dumps(content))
        (folder / name / "test.pkl").write_bytes(pickle.dumps((make(6, side, 100), digits(6))))
    return folder


def test_digit5_of_fedbn(fedbn: Path) -> None:
    data = read("digit5", path=str(fedbn), size=28)
    assert data.client_names == ("mnist", "svhn", "usps")
    x, y = whole(data, "mnist", 0)
    np.testing.assert_array_equal(x[..., 1], grey(44, 28))
    np.testing.assert_array_equal(y, np.tile(digits(4), 11))
    np.testing.assert_array_equal(whole(data, "mnist", 2)[0][..., 2], grey(6, 28, 100))
    few = read("digit5", path=str(fedbn), train=9)  # FedBN takes the first parts
    assert whole(few, "mnist", 0)[0][:, 20, 20, 0].tolist() == list(range(9))
    (fedbn / "USPS" / "partitions" / "train_part3.pkl").write_bytes(pickle.dumps((Evil(fedbn / "x"), digits(4))))
    refused("train_part3.pkl: asks for .*touch, expected arrays", "digit5", path=str(fedbn))
    (fedbn / "USPS" / "partitions" / "train_part3.pkl").write_bytes(pickle.dumps(digits(4)))
    refused(r"train_part3.pkl: holds ndarray, expected the two arrays \(images, labels\)", "digit5", path=str(fedbn))
    (fedbn / "USPS" / "partitions" / "train_part3.pkl").write_bytes(pickle.dumps((grey(4), digits(4))))
    refused("USPS: the partitions have images of several shapes", "digit5", path=str(fedbn))
    (fedbn / "USPS" / "partitions" / "train_part3.pkl").unlink()
    (fedbn / "USPS" / "test.pkl").unlink()
    refused("test.pkl: missing, expected beside partitions", "digit5", path=str(fedbn))
    assert not (fedbn / "x").exists()


def idx(x: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{x.ndim}i", 0, 0, 8, x.ndim, *x.shape) + x.astype(np.uint8).tobytes()


@pytest.mark.parametrize("inner", ["", "raw", "MNIST/raw"])
def test_digit5_idx_files(inner: str, tmp_path: Path) -> None:
    folder = tmp_path / "idx" / inner
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(grey(20, 28))))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(digits(20))))
    (folder / "t10k-images.idx3-ubyte").write_bytes(idx(grey(10, 28, 50)))
    path = str(tmp_path / "idx")
    refused("no file t10k-labels.*, expected beside train-images", "digit5", mnist=path)
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(digits(10)))
    data = read("digit5", mnist=path, size=28)
    np.testing.assert_array_equal(whole(data, "mnist", 0)[0][..., 0], grey(20, 28))
    np.testing.assert_array_equal(whole(data, "mnist", 2)[0][..., 0], grey(10, 28, 50))
    for content, message in (
        (idx(digits(10))[:-1], r"17 bytes found, expected images of shape \(10,\)"),
        (b"\0\0\x0d\x01" + idx(digits(10))[4:], "not an idx file of bytes"),
        (b"", "not an idx file of bytes"),
        (gzip.compress(idx(digits(10)))[:-9], "damaged gzip"),
        (idx(digits(9)), r"images \(10, 28, 28\) for 9 labels"),
        (idx(digits(10) + 10), "labels: 11 found, expected 0...9, or 1...10"),
        (idx(np.arange(10) + 1), ""),
        (idx(np.arange(10).repeat(2)[:10] * 5 % 15), "labels 0 and 10 found, expected one of the two"),
    ):
        labels.write_bytes(content)
        if message:
            refused(message, "digit5", mnist=path)
    labels.write_bytes(idx(np.arange(10) + 1))
    assert whole(read("digit5", mnist=path), "mnist", 2)[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_digit5_files_of_one_domain_beside_the_folder(kd3a: Path, tmp_path: Path) -> None:
    path = tmp_path / "usps.npz"
    np.savez(path, x_train=grey(12, 16), y_train=digits(12), x_test=grey(4, 16, 90), y_test=digits(4))
    data = read("digit5", path=str(kd3a), usps=str(path), domains=("usps", "mnist"))
    assert data.client_names == ("mnist", "usps")
    assert whole(data, "usps", 0)[0].shape == (12, 32, 32, 3)
    mat = kd3a / "svhn_train_32x32.mat"
    own = read("digit5", mnist_m=str(mat), synth=str(kd3a))
    assert own.client_names == ("mnist_m", "synth")
    np.testing.assert_array_equal(whole(own, "synth", 0)[0], colour(30, first=6))

    def write(part: str, n: int) -> Callable[[h5py.File], None]:
        def inside(file: h5py.File) -> None:
            file["X"], file["y"] = colour(n, first=5).transpose(1, 2, 3, 0).T, digits(n, 10)[None].astype(float)

        return inside

    for part, n in (("train", 30), ("test", 12)):
        mat73(tmp_path / f"{part}.mat", write(part, n))
    new = read("digit5", svhn=str(tmp_path / "train.mat"))
    np.testing.assert_array_equal(new.x, read("digit5", path=str(kd3a), domains=("svhn",)).x)
    np.testing.assert_array_equal(new.y, np.concatenate([digits(30), digits(12)]))


def test_digit5_without_a_split(tmp_path: Path) -> None:
    path, n = tmp_path / "signs.npz", 40
    np.savez(path, x=colour(n), y=np.sort(digits(n)), good=np.ones(n, bool), orig_wh=np.ones((n, 2)))
    data = read("digit5", svhn=str(path))
    for split, each in ((0, 3), (2, 1)):
        assert np.bincount(whole(data, "svhn", split)[1]).tolist() == [each] * 10
    assert sorted(data.x[:, 5, 5, 0].tolist()) == list(range(n))
    np.testing.assert_array_equal(data.x[:, 5, 5, 0] // 4, data.y)  # images keep their labels
    assert data.y[data.split == 0].tolist() != sorted(data.y[data.split == 0].tolist())
    other = read("digit5", svhn=str(path), seed=1)
    assert set(other.x[other.split == 2][:, 5, 5, 0]) != set(data.x[data.split == 2][:, 5, 5, 0])
    assert np.bincount(read("digit5", svhn=str(path), test_share=0.5).split).tolist() == [20, 0, 20]

    fonts = np.arange(n) % 8 + 1
    np.savez(path, x=colour(n), y=np.sort(digits(n)), font_id=fonts)
    data = read("digit5", synth=str(path))
    held = [set(fonts[data.x[data.split == split][:, 5, 5, 0]]) for split in (0, 2)]
    assert [len(each) for each in held] == [6, 2]
    assert not held[0] & held[1]
    f = federate(data, split_section(validation=0.2), 0)
    held = [set(fonts[f.x[rows[0]][:, 5, 5, 0]]) for rows in (f.train, f.validation, f.test)]
    assert sum(map(len, held)) == 8
    assert len(set.union(*held)) == 8


def test_digit5_made(tmp_path: Path) -> None:
    mnist, signs = tmp_path / "mnist.npz", tmp_path / "fonts.npz"
    ink = np.zeros((50, 28, 28), np.uint8)
    ink[:, 8:20, 10:18] = 255
    ink[:, 4:6, 10:18] = 90  # too pale
    np.savez(mnist, x_train=ink[:40], y_train=digits(40), x_test=ink[:10], y_test=digits(10))
    np.savez(signs, x=255 - ink, y=digits(50), font_id=np.arange(50) // 10)
    grounds = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3)) + np.array([0, 60, 120], np.uint8)
    np.savez(tmp_path / "grounds.npz", x=grounds[None])
    options = dict(
        mnist=str(mnist), mnist_m="made", synth="made", fonts=str(signs), backgrounds=str(tmp_path / "grounds.npz"),
        train=30, test=8, size=28,
    )  # fmt: skip
    data = read("digit5", **options)
    assert data.client_names == ("mnist", "mnist_m", "synth")
    assert np.bincount(3 * data.client + data.split).tolist() == [30, 0, 8, 30, 0, 8, 30, 0, 8]
    x = whole(data, "mnist_m", 0)[0].astype(int)
    top = x[:, :1, :1, :1]
    assert len(np.unique(top)) > 5  # crops of different places
    ground = top + np.arange(28)[:, None, None] + np.array([0, 60, 120])
    on = ink[0] > 200
    np.testing.assert_array_equal(x, np.where(on[..., None], 255 - ground, ground))

    x, y = whole(data, "synth", 0)
    assert len(np.unique(x.reshape(30, -1), axis=0)) == 30
    assert len(np.unique(y)) > 5
    # What is drawn covers about a tenth of the image, in its middle, and stands out from the ground.
    ground = np.median(x.astype(int), axis=2, keepdims=True)
    off = np.abs(x - ground).max(-1) > 40
    assert 0.04 < off.mean() < 0.25
    assert off[:, 10:18, 10:18].mean() > 3 * off[:, :, [0, 1, 2, 25, 26, 27]].mean()

    again, other = read("digit5", **options), read("digit5", **options, seed=1)
    np.testing.assert_array_equal(again.x, data.x)
    assert (other.x != data.x).any((1, 2, 3))[data.client > 0].mean() > 0.9
    alone = read("digit5", **(options | dict(domains=("synth",), mnist="")))
    np.testing.assert_array_equal(alone.x, data.x[data.client == 2])
    f = federate(data, split_section(validation=0.2), 0)
    assert [len(rows) for rows in f.test] == [8, 8, 8]

    (tmp_path / "pictures").mkdir()
    Image.fromarray(grounds).save(tmp_path / "pictures" / "a.png")
    same = read("digit5", **(options | dict(backgrounds=str(tmp_path / "pictures"))))
    np.testing.assert_array_equal(same.x, data.x)


def test_digit5_made_mistakes_are_one_line(tmp_path: Path) -> None:
    path, empty = tmp_path / "a.npz", tmp_path / "empty"
    empty.mkdir()
    np.savez(path, x=grey(40), y=digits(40))
    own = str(path)
    refused("digit5.backgrounds: not set, but .*mnist_m is 'made'", "digit5", mnist=own, mnist_m="made")
    refused("digit5.mnist: no such file: .*made", "digit5", mnist="made")
    refused("digit5.backgrounds: no picture .* in .*empty", "digit5", mnist=own, mnist_m="made", backgrounds=str(empty))
    refused("holds uint8 .*, expected colour pictures", "digit5", mnist=own, mnist_m="made", backgrounds=own)
    np.savez(tmp_path / "b.npz", x=colour(3, 16))
    options = dict(backgrounds=str(tmp_path / "b.npz"), mnist_m="made")
    refused("16 pixels wide or high, expected at least 32", "digit5", mnist=own, **options)
    refused("digit5.mnist_m: 'made' of MNIST, which was not found", "digit5", **options)
    refused("digit5.fonts: not set", "digit5", **(options | dict(synth="made", mnist_m="")))


def test_digit5_mistakes_are_one_line(kd3a: Path, tmp_path: Path) -> None:
    path, file = str(kd3a), tmp_path / "a.npz"
    for option, value, message in (
        ("domains", ("mnsit",), r"domains: unknown name 'mnsit' \(did you mean 'mnist'\?\)"),
        ("size", 0, "size: 0, expected at least 1 pixel"),
        ("train", -1, "train: -1, expected at least 1, or 0 for all"),
        ("test", -2, "test: -2"),
        ("test_share", 1.0, "test_share: 1.0, expected a share"),
        ("seed", -1, "seed: -1"),
    ):
        refused(f"config.data.digit5.{message}", "digit5", path=path, **{option: value})
    refused(
        "config.data.digit5.path: no file of any domain found in .*not set; expected one of mnist_data.mat", "digit5"
    )
    refused("digit5.path: no file of any domain found in .*empty", "digit5", path=str(_folder(tmp_path / "empty")))
    (kd3a / "svhn_test_32x32.mat").unlink()
    refused("svhn_train_32x32.mat: holds one part; expected train in its name, and svhn_test", "digit5", path=path)
    (kd3a / "svhn_train_32x32.mat").unlink()
    assert "svhn" not in read("digit5", path=path).client_names
    refused(
        "digit5.svhn: no file of 'svhn' found in .*; expected one of svhn_train", "digit5", path=path, domains=("svhn",)
    )
    refused("empty: no file of 'svhn' in it; expected svhn_train", "digit5", svhn=str(tmp_path / "empty"))
    x, y = grey(20), digits(20)
    for arrays, message in (
        (dict(x=x), "a.npz: keys x; expected x_train"),
        (dict(x=x[:, :, :20], y=y), "expected square ones"),
        (dict(x=x.reshape(20, -1)[:, 1:], y=y), "rows of 1023 values, expected those of square images"),
        (dict(x=x - 300.0, y=y), r"image values -300...-\d+ found, expected 0...1 or 0...255"),
        (dict(x=x * np.nan, y=y), "image values nan...nan found"),
        (dict(x=x.astype(int) * 3, y=y), "integer images with values .*765, expected 0...255"),
        (dict(x=x, y=y[:9]), r"images \(20, 32, 32\) for 9 labels"),
        (dict(x=x, y=y + 0.5), "labels: 0.5 found"),
        (dict(x=x, y=one_hot(y) * 2), "labels that are not one-hot"),
        (dict(x=x, y=y, font_id=[1, 2]), r"groups of shape \(2,\), expected one for each of 20"),
        (dict(x_train=x, y_train=y, x_test=grey(5, 16), y_test=digits(5)), "square ones of one size"),
        (dict(dataset=np.zeros((2, 3))), r"'dataset' of shape \(2, 3\), expected a 2 x 2 cell"),
    ):
        np.savez(file, **arrays)
        refused(message, "digit5", mnist=str(file), test_share=0.5)
    np.savez(file, x=x, y=y)
    refused("digit5.test_share: 0.2 of 20 rows or groups in .*a.npz leaves", "digit5", mnist=str(file), test_share=0.2)
    refused("digit5.path: no file of any domain found in .*a.npz", "digit5", path=str(file))
    file.write_bytes(b"no data")
    refused(r"a.npz: not an .npz, .mat, .h5 or .pkl file \(it begins with b'no data'\)", "digit5", mnist=str(file))
    mat = kd3a / "usps_28x28.mat"
    mat.write_bytes(mat.read_bytes()[:2000])
    refused("usps_28x28.mat: not a whole .mat file", "digit5", path=path)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


# --- folders of pictures ----------------------------------------------------------------------------------------------


def picture(path: Path, value: int) -> None:
    Image.new("RGB", (20, 12), (value, value, value)).save(_folder(path.parent) / path.name)


@pytest.fixture
def office(tmp_path: Path) -> Path:
    """Three domains as in Office-Caltech10, the last one as in Office-31; picture i of class c of domain d is plain."""
    root = tmp_path / "office"
    for d, (domain, n) in enumerate({"amazon": 10, "dslr": 3, "webcam": 6}.items()):
        for c, word in enumerate(("bike", "mouse", "mug")):
            for i in range(n):
                inner = f"{domain}/images" if domain == "webcam" else domain
                picture(root / inner / word / f"frame_{i:04d}.{'png' if i % 2 else 'bmp'}", 80 * d + 25 * c + i)
    (root / "amazon" / "bike" / ".hidden.png").write_text("")
    (root / "amazon" / "bike" / "notes.txt").write_text("")
    _folder(root / ".git" / "x")
    _folder(root / "empty")
    return root


def test_domains_without_lists(office: Path) -> None:
    data = read("domains", path=str(office), size=8)
    assert data.client_names == ("amazon", "dslr", "webcam")
    assert data.class_names == ("bike", "mouse", "mug")
    assert data.x.shape == (3 * (10 + 3 + 6), 8, 8, 3)
    value = data.x[:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(value // 80, data.client)
    np.testing.assert_array_equal(value % 80 // 25, data.y)
    assert sorted(value[(data.client == 0) & (data.y == 1)].tolist()) == list(range(25, 35))
    for client, tested in enumerate((2, 1, 1)):  # round(0.2 n): 2 of 10, 1 of 3, 1 of 6
        for word in range(3):
            assert data.split[(data.client == client) & (data.y == word)].tolist().count(2) == tested
    same, other, part = (
        read("domains", path=str(office), size=8, **o) for o in ({}, {"seed": 1}, {"domains": ("webcam",)})
    )
    np.testing.assert_array_equal(same.split, data.split)
    assert (other.split != data.split).any()
    assert part.client_names == ("webcam",)
    np.testing.assert_array_equal(part.split, data.split[data.client == 2])
    half = read("domains", path=str(office), size=8, test_share=0.5)
    assert (half.split == 2).sum() == 3 * (5 + 2 + 3)
    two = read("domains", path=str(office), size=8, classes=("mug", "bike"))
    assert two.class_names == ("mug", "bike")
    np.testing.assert_array_equal(two.x[:, 0, 0, 0] % 80 // 25, np.array([2, 0])[two.y])
    few = read("domains", path=str(office), size=8, max_examples=4)
    assert [(few.split[few.client == c] == s).sum() for c in range(3) for s in (0, 2)] == [4, 4, 4, 3, 4, 3]
    alone = read("domains", path=str(office), size=8, max_examples=4, domains=("webcam",))
    np.testing.assert_array_equal(alone.x, few.x[few.client == 2])
    again = read("domains", path=str(office), size=8, max_examples=4, seed=1)
    assert set(again.x[:, 0, 0, 0].tolist()) != set(few.x[:, 0, 0, 0].tolist())


def test_domains_are_decoded_once_and_stay_in_their_file(office: Path) -> None:
    data = read("domains", path=str(office), size=8)
    (cached,) = files.cache_folder().glob("domains-*.npy")
    f = federate(data, split_section(validation=0.1), 0)

    def mapped(x: Any) -> bool:
        while x is not None and not isinstance(x, np.memmap):
            x = x.base
        return x is not None

    assert mapped(data.x)
    assert mapped(f.x)  # every row is held, so that nothing is copied
    before = cached.stat().st_mtime_ns
    read("domains", path=str(office), size=8)
    assert cached.stat().st_mtime_ns == before
    picture(office / "dslr" / "mug" / "frame_0001.png", 255)
    assert (read("domains", path=str(office), size=8).x == 255).any()
    plain = read("domains", path=str(office), size=8, cache=False)
    assert not mapped(plain.x)
    assert len(list(files.cache_folder().glob("domains-*.npy"))) == 2


DOMAINNET = {"clipart": 4, "real": 6}


def write_lists(root: Path, folder: str = "splits", *, first: int = 0, kfold: bool = False, below: str = "") -> None:
    """Pictures and lists of DomainNet: class order by label is not that of the alphabet; the last third is for testing."""
    for d, (domain, n) in enumerate(DOMAINNET.items()):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for label, word in enumerate(("zebra", "ant", "the_bee")):
            for i in range(n):
                name = f"{domain}/{word}/{domain}_{i:06d}.jpg"
                picture(root / below / name, 100 * d + 30 * label + 2 * i)
                lines["test" if i >= n - n // 3 else "train"].append(f"{name} {label + first}")
        _folder(root / folder)
        for part, content in lines.items():
            name = f"{domain}_{'crossval' if kfold and part == 'test' else part}{'_kfold' * kfold}.txt"
            (root / folder / name).write_text("\n".join(reversed(content)) + "\n\n")
        if kfold:
            (root / folder / f"{domain}_test_kfold.txt").write_text("\n".join(lines["train"] + lines["test"]) + "\n")


@pytest.mark.parametrize(
    "layout",
    [
        {"folder": "splits"}, {"folder": "splits_mini"}, {"folder": "."}, {"folder": "own"},
        {"folder": "splits", "first": 1, "kfold": True, "below": "images/kfold"},
        {"folder": ".", "first": 1, "kfold": True, "below": "kfold"},
    ],
)  # fmt: skip
def test_domains_with_lists(layout: dict[str, Any], tmp_path: Path) -> None:
    write_lists(tmp_path / "net", **layout)
    lists = {"lists": "own"} if layout["folder"] == "own" else {}
    data = read("domains", path=str(tmp_path / "net"), size=8, **lists)
    assert data.client_names == ("clipart", "real")
    assert data.class_names == ("zebra", "ant", "the_bee")
    value = np.round(data.x.mean((1, 2, 3))).astype(int)
    np.testing.assert_array_equal(value // 100, data.client)
    np.testing.assert_array_equal(value % 100 // 30, data.y)
    i = value % 100 % 30 // 2
    np.testing.assert_array_equal(data.split == 2, np.where(data.client == 0, i >= 3, i >= 4))
    assert len(data.x) == 3 * (4 + 6)


def test_domains_lists_or_none(tmp_path: Path) -> None:
    root = tmp_path / "net"
    write_lists(root)
    write_lists(root, "splits_mini")
    for file in (root / "splits_mini").iterdir():
        file.write_text("".join(line for line in file.read_text().splitlines(True) if "zebra" in line))
    assert len(read("domains", path=str(root), size=8).class_names) == 3
    mini = read("domains", path=str(root), size=8, lists="splits_mini")
    assert mini.class_names == ("zebra",)
    none = read("domains", path=str(root), size=8, lists="none", test_share=0.5)
    assert none.class_names == ("ant", "the_bee", "zebra")
    assert (none.split == 2).sum() == 3 * (2 + 3)
    assert read("domains", path=str(root), size=8, domains=("real",)).client_names == ("real",)


def test_domains_mistakes_are_one_line(office: Path, tmp_path: Path) -> None:
    path = str(office)
    for option, value, message in (
        ("size", 0, "size: 0"),
        ("test_share", 0.0, "test_share: 0.0"),
        ("max_examples", -1, "max_examples: -1"),
        ("seed", -1, "seed: -1"),
        ("domains", ("dsrl",), r"domains: no domain 'dsrl' in .*office \(did you mean 'dslr'\?\)"),
        ("classes", ("bikes",), r"classes: 'bikes' is none of the 3 classes \(did you mean 'bike'\?\)"),
        ("classes", ("bike", "bike"), "classes: one stands twice in bike, bike"),
        ("lists", "split", "lists: no such file: .*split"),
        ("lists", "amazon", "lists: no <domain>_train.txt in .*amazon"),
        ("lists", "amazon/bike/notes.txt", "lists: no <domain>_train.txt in .*notes.txt"),
        ("path", str(office / "empty"), "path: no <domain>/<class>/<picture> and no"),
        ("path", str(office / "amazon" / "bike" / "notes.txt"), "path: .*notes.txt is a file, expected the folder"),
    ):
        refused(f"config.data.domains.{message}", "domains", **({"path": path, "size": 8} | {option: value}))
    (office / "dslr" / "mug").rename(office / "dslr" / "mugs")
    refused(
        "path: domain 'dslr' has no class 'mug' .3 classes, other domains 3.; expected the same", "domains", path=path
    )
    assert len(read("domains", path=path, size=8, classes=("bike", "mouse")).class_names) == 2
    refused("domain 'dslr' has no class 'mug' .2 classes", "domains", path=path, classes=("bike", "mouse", "mug"))
    assert read("domains", path=path, size=8, domains=("amazon", "webcam")).class_names[2] == "mug"
    (office / "dslr" / "mugs").rename(office / "dslr" / "mug")
    _folder(office / "webcam" / "images" / "pen")
    refused("webcam: no picture of class 'pen'", "domains", path=path)
    picture(office / "webcam" / "images" / "pen" / "a.png", 3)
    refused("domain 'webcam' has a class 'pen' of its own", "domains", path=path)
    picture(office / "amazon" / "mug" / "frame_0003.png", 3)
    (office / "amazon" / "mug" / "frame_0003.png").write_bytes(b"no picture")
    refused("frame_0003.png is not a whole image", "domains", path=path, domains=("amazon",))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("real_test.txt", "real/ant/real_000000.jpg\n", "real_test.txt: line 1: 'real/ant/real_000000.jpg', expected <domain>"),
        ("real_test.txt", "ant.jpg 1\n", "line 1: 'ant.jpg 1', expected <domain>/<class>/<picture> <label>"),
        ("real_test.txt", "real/ant/real_000005.jpg x\n", "line 1: .*, expected"),
        ("real_test.txt", "\n", "real_test.txt: names no picture"),
        ("real_test.txt", "\nreal/ant/real_000005.jpg 2\n", "line 2: class 'ant' with label 2, elsewhere with label 1"),
        ("real_test.txt", "real/bee/real_000005.jpg 2\n", "real/bee/real_000005.jpg: missing, though real_test.txt names it"),
        ("real_test.txt", "real/ant/real_000005.jpg 1\nreal/ant/real_9.jpg 1\n", "real_9.jpg: missing, though a list"),
        ("real_test.txt", "real/ant/real_000000.jpg 1\n", "real/ant/real_000000.jpg stands in real_test.txt too"),
        ("real_test.txt", "", "real_test.txt: names no picture"),
        ("sketch_train.txt", "real/ant/real_000000.jpg 1\n", "sketch_train.txt: of 'sketch' the only list"),
    ],
)  # fmt: skip
def test_domains_list_mistakes_are_one_line(file: str, text: str, message: str, tmp_path: Path) -> None:
    write_lists(tmp_path / "net")
    (tmp_path / "net" / "splits" / file).write_text(text)
    refused(message, "domains", path=str(tmp_path / "net"), size=8)


def test_domains_lists_where_a_label_has_two_classes(tmp_path: Path) -> None:
    write_lists(tmp_path / "net")
    file = tmp_path / "net" / "splits" / "real_train.txt"
    picture(tmp_path / "net" / "real" / "bee" / "a.jpg", 1)
    file.write_text(file.read_text() + "real/bee/a.jpg 2\n")
    refused("class 'bee' with label 2, elsewhere with class 'the_bee'", "domains", path=str(tmp_path / "net"), size=8)
    file.write_text(file.read_text().replace("bee/a.jpg 2", "bee/a.jpg 7"))
    refused("domain 'real' has a class 'bee' of its own|domain 'clipart' has no class 'bee'", "domains",
            path=str(tmp_path / "net"), size=8)  # fmt: skip


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def surf(tmp_path: Path) -> Path:
    folder = _folder(tmp_path / "surf")
    for name, n in (("amazon", 30), ("Caltech10", 20), ("dslr", 10)):
        x = np.random.RandomState(n).randint(0, 9, (n, 6)).astype(np.uint8)
        x[:, 0], x[:, 5] = 1, 0
        savemat(folder / f"{name}_SURF_L10.mat", {"fts": x, "labels": (np.arange(n) % 10 + 1)[:, None]})
        savemat(folder / f"{name}_SURF_L10_imgs.mat", {"imgNames": "x"})
    return folder


def test_office_features(surf: Path) -> None:
    data = read("office_features", path=str(surf))
    assert data.client_names == ("amazon", "caltech", "dslr")
    assert data.class_names[0] == "back_pack"
    assert len(data.class_names) == 10
    assert data.x.shape == (60, 6)
    for client, tested in enumerate((1, 0, 0)):  # round(0.2 n) of 3, 2 and 1 rows
        mine = data.client == client
        for label in range(10):
            assert (data.split[mine & (data.y == label)] == 2).sum() == tested
        train = data.x[mine & (data.split == 0)]
        np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(train.std(0)[:5], 1, atol=1e-5)
        assert (data.x[mine][:, 5] == 0).all()
    x = np.random.RandomState(30).randint(0, 9, (30, 6)).astype(float)
    x[:, 0], x[:, 5] = 1, 0
    stored = read("office_features", path=str(surf), standardise=False)
    np.testing.assert_array_equal(stored.x[:30], x)
    x /= x.sum(1, keepdims=True)
    train = data.split[:30] == 0
    np.testing.assert_allclose(
        data.x[:30, :5], ((x - x[train].mean(0)) / x[train].std(0, where=True).clip(1e-12))[:, :5], rtol=1e-4
    )
    some = read("office_features", path=str(surf), domains=("dslr",), test_share=0.5)
    assert some.client_names == ("dslr",)
    other = read("office_features", path=str(surf), seed=1)
    assert (other.split != data.split).any()


def test_office_features_of_other_kinds(surf: Path) -> None:
    x = RNG.normal(size=(8, 4))
    for domain in ("amazon", "webcam"):
        savemat(surf / f"{domain}_decaf.mat", {"feas": csr_matrix(x), "labels": np.arange(8)[None] % 4 + 1})
    refused("pattern: both amazon_SURF_L10.mat and amazon_decaf.mat are of 'amazon'", "office_features", path=str(surf))
    data = read("office_features", path=str(surf), pattern="*_decaf.mat", standardise=False, test_share=0.5)
    assert data.class_names == ("1", "2", "3", "4")
    np.testing.assert_allclose(data.x, np.concatenate([x, x]), rtol=1e-6)
    assert np.bincount(data.split).tolist() == [8, 0, 8]
    refused(
        r"amazon_decaf.mat: row \d is no histogram .*standardise=False",
        "office_features",
        path=str(surf),
        pattern="*_decaf.mat",
    )


def test_office_features_mistakes_are_one_line(surf: Path) -> None:
    path, file = str(surf), surf / "dslr_SURF_L10.mat"
    refused("config.data.office_features.test_share: 1", "office_features", path=path, test_share=1)
    refused("config.data.office_features.seed: -1", "office_features", path=path, seed=-1)
    refused("no file of 'webcam' in .*surf", "office_features", path=path, domains=("webcam",))
    refused(r"config.data.office_features.path: no \*.npy in", "office_features", path=path, pattern="*.npy")
    refused("no .*mat in .*dslr_SURF_L10.mat", "office_features", path=str(file))
    refused("no /x in", "office_features", path=path, pattern="/x")
    x, y = np.ones((10, 6)), np.arange(10) + 1
    for arrays, message in (
        ({"fts": x}, "dslr_SURF_L10.mat: none of labels, label, gnd in it; it has fts"),
        ({"x": x, "labels": y}, "none of fts, feas, feats, features in it; it has labels, x"),
        ({"fts": x[:9], "labels": y}, r"features \(9, 6\) for 10 labels"),
        ({"fts": x, "labels": y + 0.5}, "labels of float64, expected whole numbers"),
        ({"fts": x * np.nan, "labels": y}, "NaN or infinite values in 10 of 10 rows"),
        ({"fts": x[:, 1:], "labels": y}, "5 features a row, 6 in amazon_SURF_L10.mat"),
        ({"fts": x, "labels": y % 9 + 1}, "label 10 stands either here or in amazon_SURF_L10.mat"),
        ({"fts": "text", "labels": y}, "'fts' has values of type <U"),
    ):
        savemat(file, arrays)
        refused(message, "office_features", path=path)
    file.write_bytes(b"")
    refused("dslr_SURF_L10.mat: not a whole .mat file", "office_features", path=path)


# --- reviews ----------------------------------------------------------------------------------------------------------

SIZES = (7, 6, 8, 9)


def reviews() -> tuple[np.ndarray, np.ndarray]:
    """Counts [30, 11] with the row's number in its first column, and labels -1 and +1."""
    x = np.random.RandomState(3).poisson(0.5, (sum(SIZES), 11))
    x[:, 0] = np.arange(len(x)) + 1
    x[0, 10] = 3
    return x, np.where(np.arange(len(x)) % 2, 1, -1)


@pytest.fixture
def amazon(tmp_path: Path) -> Path:
    """All three layouts."""
    (x, y), offset = reviews(), np.cumsum((0, *SIZES))
    stored = coo_matrix(x.T)  # features x reviews
    np.savez(
        tmp_path / "kd3a.npz",
        xx_data=stored.data, xx_row=stored.row, xx_col=stored.col, xx_shape=stored.shape, yy=y[:, None], offset=offset[:, None],
    )  # fmt: skip
    savemat(tmp_path / "msda.mat", {"xx": csc_matrix(x.T.astype(float)), "yy": y[:, None], "offset": offset[None]})
    arrays = {}
    for k, domain in enumerate(("books", "dvd", "electronics", "kitchen")):
        for part, rows in (("train", slice(offset[k], offset[k] + 4)), ("test", slice(offset[k] + 4, offset[k + 1]))):
            piece = csr_matrix(x[rows])
            for key, value in (
                ("indptr", piece.indptr),
                ("indices", piece.indices),
                ("values", piece.data),
                ("y", y[rows]),
            ):
                arrays[f"{domain}_{part}_{key}"] = value
    np.savez(tmp_path / "split.npz", **arrays)
    return tmp_path


@pytest.mark.parametrize("name", ["kd3a.npz", "msda.mat", "split.npz"])
def test_amazon_reviews(name: str, amazon: Path) -> None:
    (x, y), offset = reviews(), np.cumsum((0, *SIZES))
    data = read("amazon_reviews", path=str(amazon / name), features=0, train=4)
    assert data.client_names == ("books", "dvd", "electronics", "kitchen")
    assert data.class_names == ("negative", "positive")
    rows = data.x[:, 0].astype(int) - 1
    assert sorted(rows.tolist()) == list(range(30))
    np.testing.assert_array_equal(data.x, x[rows])
    np.testing.assert_array_equal(data.y, y[rows] > 0)
    np.testing.assert_array_equal(data.client, np.searchsorted(offset, rows, "right") - 1)
    for k, n in enumerate(SIZES):
        assert np.bincount(data.split[data.client == k]).tolist() == [4, 0, n - 4]
    other = read("amazon_reviews", path=str(amazon / name), features=0, train=4, seed=1)
    assert (sorted(other.x[other.split == 2][:, 0]) != sorted(data.x[data.split == 2][:, 0])) == (name != "split.npz")

    few = read("amazon_reviews", path=str(amazon / name), features=5, train=4)
    np.testing.assert_array_equal(few.x, x[rows, :5])
    log, binary = (
        read("amazon_reviews", path=str(amazon / name), features=0, train=4, scale=s).x for s in ("log", "binary")
    )
    np.testing.assert_allclose(log, np.log(1 + x[rows]), rtol=1e-6)
    np.testing.assert_array_equal(binary, x[rows] > 0)


def test_amazon_reviews_mistakes_are_one_line(amazon: Path, tmp_path: Path) -> None:
    path, file = str(amazon / "kd3a.npz"), tmp_path / "a.npz"
    refused("config.data.amazon_reviews.features: -1", "amazon_reviews", path=path, features=-1)
    refused("features: 12, but .*kd3a.npz has 11 of them", "amazon_reviews", path=path, features=12, train=4)
    refused(r"scale: unknown name 'logs' \(did you mean 'log'\?\)", "amazon_reviews", path=path, scale="logs")
    refused("train: 0, expected at least 1", "amazon_reviews", path=path, train=0)
    refused("seed: -1", "amazon_reviews", path=path, seed=-1)
    refused(
        "train: 6, but .*kd3a.npz has 6 reviews of 'dvd'; leave some for testing", "amazon_reviews", path=path, train=6
    )
    for name, changes in (
        ("kd3a", [
            (dict(yy=np.zeros(29)), r"offset \[0, 7, 13, 21, 30\] for 29 labels"),
            (dict(yy=np.full(30, 2)), r"labels \[2\] found, expected -1 and \+1"),
            (dict(offset=[0, 30]), r"offset \[0, 30\] for 30 labels, expected 0, three bounds and 30"),
            (dict(xx_shape=[30, 11]), "make no matrix"),
            (dict(xx_shape=[11, 31]), r"a matrix \(11, 31\) for 30 labels, expected features x reviews"),
            (dict(xx_row=[1, 2]), "xx_data, xx_row, xx_col and xx_shape make no matrix"),
            (dict(xx_shape=None), "no key 'xx_shape'"),
        ]),
        ("split", [
            (dict(dvd_test_y=None), "no key 'dvd_test_y'.*; neither KD3A's, mSDA's nor a layout with a split"),
            (dict(dvd_test_y=[1]), "dvd_test_indptr, _indices and _values make no matrix of 1 rows"),
            (dict(dvd_test_indices=[-1] * 100), "make no matrix"),
            (dict(dvd_test_y=[3, 3]), r"labels \[3\] found"),
        ]),
    ):  # fmt: skip
        with np.load(amazon / f"{name}.npz") as stored:
            arrays = dict(stored)
        for change, message in changes:
            np.savez(file, **{key: value for key, value in (arrays | change).items() if value is not None})
            refused(message, "amazon_reviews", path=str(file), features=0, train=4)
        key = "xx_data" if name == "kd3a" else "dvd_test_values"
        np.savez(file, **(arrays | {key: -arrays[key]}))
        refused(
            "a value of -[0-9]+ found, expected counts of at least 0",
            "amazon_reviews",
            path=str(file),
            features=0,
            train=4,
        )
    refused("not a whole .npz file", "amazon_reviews", path=str(tmp_path))
    savemat(tmp_path / "a.mat", {"xx": np.zeros((3, 3))})
    refused("a.mat: no key 'yy'", "amazon_reviews", path=str(tmp_path / "a.mat"))
    file.write_bytes(b"")
    refused("not a whole .npz file", "amazon_reviews", path=str(file))


# --- TFDS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set of several configs as DomainNet's, prepared as array_record without TensorFlow."""
    import tensorflow_datasets as tfds

    class TinyDomains(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [  # noqa: RUF012
            tfds.core.BuilderConfig(name=name, version="1.0.0") for name in ("real", "sketch", "other", "large")
        ]

        def _info(self) -> Any:
            names = ["a", "b", "d" if self.builder_config.name == "other" else "c"]
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=names),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(0, 6), "test": self._generate_examples(6, 9)}

        def _generate_examples(self, first: int, last: int) -> Any:
            start = {"real": 0, "sketch": 100}.get(self.builder_config.name, 0)
            side = 9 if self.builder_config.name == "large" else 8
            for i in range(first, last):
                file = io.BytesIO()
                Image.fromarray(np.full((side, side, 3), start + i, np.uint8)).save(file, "png")
                file.seek(0)
                yield i, {"image": file, "label": i % 3}

    folder = str(tmp_path_factory.mktemp("tfds"))
    for config in TinyDomains.BUILDER_CONFIGS:
        TinyDomains(config=config.name, data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_builders_are_clients(prepared: str) -> None:
    data = read("tfds", name="tiny_domains/real, tiny_domains/sketch", data_dir=prepared)
    assert data.client_names == ("tiny_domains/real", "tiny_domains/sketch")
    value = data.x[:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(data.client, value // 100)
    np.testing.assert_array_equal(data.y, value % 100 % 3)
    np.testing.assert_array_equal(data.split, np.where(value % 100 < 6, 0, 2))
    assert len(data.x) == 18
    assert read("tfds", name="tiny_domains/real,tiny_domains/sketch", data_dir=prepared, test="").split is None
    one = read("tfds", name="tiny_domains/sketch:1.0.0", data_dir=prepared)
    assert one.client is None


def test_tfds_builders_must_agree(prepared: str) -> None:
    real = "tiny_domains/real"
    refused("'tiny_domains/other' has other classes", "tfds", name=f"{real},tiny_domains/other", data_dir=prepared)
    refused(
        r"inputs \(9, 9, 3\) in 'tiny_domains/large', \(8, 8, 3\)",
        "tfds",
        name=f"{real},tiny_domains/large",
        data_dir=prepared,
    )
    assert len(read("tfds", name=f"{real},tiny_domains/large", data_dir=prepared, size=4).x) == 18
    refused("one name stands twice", "tfds", name=f"{real},{real}", data_dir=prepared)
    refused("2 names make a client each", "tfds", name=f"{real},tiny_domains/sketch", data_dir=prepared, client="label")
    refused("'tiny_domains/none' cannot be read", "tfds", name=f"{real},tiny_domains/none", data_dir=prepared)


# --- Real data --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real_data
def test_real_digit5(real_data: RealData) -> None:
    """Counts as the sources of the files state them."""
    own = {
        "mnist": "mnist/mnist.npz",
        "mnist_m": "mnist_m/mnist_m_sub.npz",
        "svhn": "chars74k_natural/natural_digits_32x32.npz",
        "synth": "chars74k_fonts/font_digits_28x28.npz",
        "usps": "usps/usps_16x16.npz",
    }
    places = {domain: str(real_data(name)) for domain, name in own.items()}
    data = read("digit5", **places)
    counts = {
        name: np.bincount(data.split[data.client == k], minlength=3).tolist()
        for k, name in enumerate(data.client_names)
    }
    assert counts == {
        "mnist": [25_000, 0, 9_000],
        "mnist_m": [3_000, 0, 1_000],
        "svhn": [664, 0, 221],  # of 885, a quarter of each digit
        "synth": [7_620, 0, 2_540],  # 254 of 1,016 fonts with their ten digits
        "usps": [7_291, 0, 2_007],
    }
    assert np.bincount(data.y[data.client == 1]).tolist() == [400] * 10
    assert np.bincount(data.y[data.client == 2]).tolist() == [155, 128, 118, 72, 73, 81, 84, 61, 42, 71]
    f = federate(data, split_section(), 0)
    assert [len(rows) for rows in f.test] == [9_000, 1_000, 221, 2_540, 2_007]
    tiled = read("digit5", usps=places["usps"], tile_usps=True)
    assert np.bincount(tiled.split).tolist() == [25_000, 0, 2_007]


@pytest.mark.real_data
def test_real_digit5_made(real_data: RealData) -> None:
    options = dict(
        mnist=str(real_data("mnist/mnist.npz")),
        backgrounds=str(real_data("bsds500_patches/bsds500_train_patches_64x64.npz")),
        fonts=str(real_data("chars74k_fonts/font_digits_28x28.npz")),
        train=2_000,
        test=500,
    )
    made = read("digit5", mnist_m="made", synth="made", **options)
    assert made.client_names == ("mnist", "mnist_m", "synth")
    assert np.bincount(made.client).tolist() == [2_500] * 3
    published = read("digit5", mnist_m=str(real_data("mnist_m/mnist_m_sub.npz")), train=2_000, test=500)
    for moment in (np.mean, np.std):  # of all pixels, in 0...255
        assert abs(moment(whole(made, "mnist_m", 0)[0]) - moment(published.x)) < 6
    assert np.bincount(whole(made, "synth", 0)[1]).min() > 150


@pytest.mark.real_data
def test_real_amazon_reviews(real_data: RealData) -> None:
    data = read("amazon_reviews", path=str(real_data("amazon_reviews/amazon_reviews_bow5000.npz")))
    assert data.x.shape == (27_677, 5_000)
    tests = [4_465, 3_586, 5_681, 5_945]
    for k, n in enumerate(tests):
        mine = data.client == k
        assert np.bincount(data.split[mine]).tolist() == [2_000, 0, n]
        assert np.bincount(data.y[mine & (data.split == 0)]).tolist() == [1_000, 1_000]
    assert data.x.min() == 0
    assert (data.x == np.round(data.x)).all()
    # A word's count says something: the sentiment of a held-out review from the difference of the classes' means.
    books = data.client == 0
    x, y = np.minimum(data.x[books], 1), data.y[books]
    learnt = data.split[books] == 0
    means = [x[learnt & (y == c)].mean(0) for c in (0, 1)]
    log = np.log(means[1] + 1e-3) - np.log(means[0] + 1e-3)
    score = x[~learnt] @ log
    assert ((score > np.median(score)) == y[~learnt]).mean() > 0.7
