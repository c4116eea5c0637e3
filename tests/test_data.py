"""Every source: small made files, each mistake in one line, and the real data where they are."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from fedjax_pfl import registry
from fedjax_pfl.data import PARTITIONS, SOURCES, Dataset, dermoscopy, digits, federate, files, load
from fedjax_pfl.errors import UserError

RealData = Callable[[str], Path]


def read(source: str, **options: object) -> Dataset:
    config = ConfigDict({name: registry.options(function) for name, function in SOURCES.items()})
    config.source = source
    config[source].update(options)
    data = load(config)
    n = len(data.x)
    assert data.x.dtype == (np.uint8 if data.x.ndim == 4 else np.float32) or data.x.dtype == np.float32
    assert data.y.dtype == (np.uint8 if data.task == "multi" else np.int32)
    assert len(data.y) == n
    for column, kind in ((data.client, np.int32), (data.split, np.int8), (data.group, np.int32)):
        assert column is None or (column.dtype == kind and column.shape == (n,))
    return data


def split_section(**options: object) -> ConfigDict:
    config = ConfigDict({name: registry.options(function) for name, function in PARTITIONS.items()})
    config.update(partition="natural", how="auto", validation=0.1, test=0.2, min_train=1, max_clients=0, max_examples=0)
    config.update(options)
    return config


def refused(message: str, source: str, **options: object) -> None:
    """The source says so, in one line."""
    with pytest.raises(UserError, match=message) as error:
        read(source, **options)
    assert "\n" not in str(error.value)


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_four_hospitals_that_look_and_count_differently() -> None:
    data = read("digits")
    assert data.x.shape == (1797, 16, 16, 1)
    assert data.client_names == ("hospital_north", "hospital_east", "hospital_south", "hospital_west")
    counts = np.array([np.bincount(data.y[data.client == k], minlength=10) for k in range(4)])
    assert counts.min() >= 5
    assert counts.sum(1).tolist() == [504, 417, 520, 356]
    assert np.ptp(counts[0]) <= 3  # balanced
    assert counts[1, :5].sum() > 5 * counts[1, 5:].sum()
    assert counts[2, 5:].sum() > 3 * counts[2, :5].sum()
    mean = [data.x[data.client == k].mean(0) / 255 for k in range(4)]
    pairs = [(i, j) for i in range(4) for j in range(i) if (i, j) != (2, 0)]
    assert all(np.abs(mean[i] - mean[j]).mean() > 0.05 for i, j in pairs)
    corner = [data.x[data.client == k, 0, 0, 0].std() for k in range(4)]
    assert corner[2] > 10 > 1 > corner[0]  # noise, on a picture that is north's but for the blur
    assert mean[1][0, 0, 0] > 0.7 > 0.05 > mean[0][0, 0, 0]  # inverted: the corner is bright
    assert mean[3][-1, -1, 0] > 0.4  # a slope: bright bottom right


def test_digits_follow_their_seed_and_size() -> None:
    assert np.array_equal(digits.digits(seed=3).x, digits.digits(seed=3).x)
    assert not np.array_equal(digits.digits(seed=3).client, digits.digits(seed=4).client)
    assert read("digits", size=8).x.shape == (1797, 8, 8, 1)
    refused("config.data.digits.size: 4", "digits", size=4)
    refused("config.data.digits.seed: -1", "digits", seed=-1)


def test_digits_north_is_scikit_learns_picture_and_west_its_mirror_image() -> None:
    from sklearn.datasets import load_digits

    data = digits.digits(size=8)
    north = data.client == 0
    np.testing.assert_allclose(data.x[north, ..., 0], load_digits().images[north] * 255 / 16, atol=0.51)
    west = data.client == 3
    pictures, mirrored = data.x[west, ..., 0].astype(float), load_digits().images[west, :, ::-1]
    pictures -= pictures.mean(0)
    mirrored = mirrored - mirrored.mean(0)
    assert (pictures * mirrored).sum() > 0.9 * np.sqrt((pictures**2).sum() * (mirrored**2).sum())


def test_unknown_source_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"config.data.source: unknown name 'digts' \(did you mean 'digits'"):
        load(ConfigDict({"source": "digts"}))


# --- npz ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    def write(**arrays: Any) -> str:
        path = tmp_path / "mine.npz"
        np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})
        return str(path)

    return write


IMAGES = np.random.RandomState(0).randint(0, 256, (12, 4, 4, 3)).astype(np.uint8)
Y = np.arange(12) % 3
TABLE = np.random.RandomState(0).rand(12, 5)


def test_npz_with_everything(save: Callable[..., str]) -> None:
    path = save(
        x=IMAGES, y=Y, client=np.arange(12) % 2 * 7, split=["train", "valid", "test"] * 4, group=list("aabbccddeeff"),
        class_names=["p", "q", "r"],
    )  # fmt: skip
    data = read("npz", path=path)
    np.testing.assert_array_equal(data.x, IMAGES)
    np.testing.assert_array_equal(data.y, Y)
    assert (data.name, data.task, data.class_names) == ("mine", "single", ("p", "q", "r"))
    assert data.client_names == ("0", "7")
    np.testing.assert_array_equal(data.client, np.arange(12) % 2)
    np.testing.assert_array_equal(data.split, [0, 1, 2] * 4)
    np.testing.assert_array_equal(data.group, np.arange(12) // 2)


def test_npz_of_least(save: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(x=TABLE, y=Y.astype(float))
    monkeypatch.setenv("MINE", str(tmp_path))
    data = read("npz", path="$MINE/mine.npz")
    assert data.x.dtype == np.float32
    assert data.class_names == ("0", "1", "2")
    assert data.client is data.split is data.group is None


def test_npz_sites_words_unused_rows_and_grey_images(save: Callable[..., str]) -> None:
    path = save(x=IMAGES[..., 0], y=["cat", "dog"] * 6, site=[0, 1, -1] * 4, site_names=["Lyon", "Oslo"])
    data = read("npz", path=path)
    assert data.x.shape == (8, 4, 4, 1)
    assert data.class_names == ("cat", "dog")
    assert data.client_names == ("Lyon", "Oslo")
    np.testing.assert_array_equal(data.client, [0, 1] * 4)
    data = read("npz", path=save(x=IMAGES, y=Y, hospital=["b", "a", "b"] * 4), client="hospital")
    assert data.client_names == ("a", "b")
    np.testing.assert_array_equal(data.client, [1, 0, 1] * 4)
    data = read("npz", path=save(x=IMAGES, y=Y, split=[0, 1, -1] * 4), split_names=("train", "test"))
    np.testing.assert_array_equal(data.split, [0, 2] * 4)


def test_npz_rows_without_a_group_are_groups_of_their_own(save: Callable[..., str]) -> None:
    data = read("npz", path=save(x=TABLE, y=Y, group=[5, 5, -1, -1, 7, 7] * 2))
    assert np.bincount(data.group).tolist() == [4, 4, 1, 1, 1, 1]


def test_npz_in_parts(save: Callable[..., str]) -> None:
    path = save(
        x_train=IMAGES[:6], y_train=Y[:6], x_val=IMAGES[6:8], y_val=Y[6:8], x_test=IMAGES[8:], y_test=Y[8:],
        client_train=[0] * 6, client_val=[1, 0], client_test=[1] * 4,
    )  # fmt: skip
    data = read("npz", path=path)
    np.testing.assert_array_equal(data.x, IMAGES)
    np.testing.assert_array_equal(data.split, [0] * 6 + [1] * 2 + [2] * 4)
    np.testing.assert_array_equal(data.client, [0] * 6 + [1, 0] + [1] * 4)


def test_npz_multi_label_and_masks(save: Callable[..., str]) -> None:
    labels = (TABLE > 0.5).astype(int)
    data = read("npz", path=save(x=TABLE, y=labels))
    assert data.task == "multi"
    np.testing.assert_array_equal(data.y, labels)
    grey = np.random.RandomState(0).randint(0, 256, (12, 4, 4))
    data = read("npz", path=save(x=IMAGES, y=grey // 64))
    assert (data.task, data.class_names) == ("mask", ("0", "1", "2", "3"))
    data = read("npz", path=save(x=IMAGES, y=grey), threshold=128)
    assert data.class_names == ("0", "1")
    np.testing.assert_array_equal(data.y, grey >= 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "mine.npz: no key 'x' "),
        ({"y": None, "labels": Y}, "mine.npz: no key 'y'"),
        ({"y": Y[:5]}, "key 'y': 5 rows, expected 12 as the inputs have"),
        ({"y": 3}, "key 'y': 1 rows, expected 12"),
        (
            {"x": np.where(np.arange(60).reshape(12, 5) == 22, np.nan, TABLE)},
            "NaN or infinite values in 1 of 12 rows, the first in row 4",
        ),
        ({"x": np.full((12, 2), np.inf)}, "NaN or infinite values in 12 of 12 rows"),
        ({"x": np.full((12, 2), 1e300)}, "NaN or infinite values in 12 of 12 rows"),
        ({"x": np.full((12, 2), "a")}, "expected numbers"),
        ({"x": TABLE[:, 0]}, r"shape \(12,\), expected"),
        ({"x": TABLE[:0]}, r"shape \(0, 5\), expected"),
        ({"x": IMAGES.astype(int) * 2}, r"integer images with values 0...\d+, expected 0...255"),
        ({"x": np.zeros((12, 3, 32, 32), np.uint8)}, "has the channels first"),
        ({"y": Y - 1}, "label -1 is out of range"),
        ({"y": Y + 0.5}, "labels must be whole numbers, found 0.5"),
        ({"y": np.where(Y == 1, np.nan, Y)}, "NaN or infinite labels in 4 places"),
        ({"y": Y * 10**6}, "label 2000000 found; number the classes 0, 1, 2"),
        ({"y": np.stack([Y, Y], 1)}, r"\[n, L\] labels must be 0 or 1, found 2"),
        ({"y": np.zeros((12, 4, 4), int)}, r"labels of shape \(12, 4, 4\) for inputs \(12, 5\)"),
        ({"class_names": ["a", "b"]}, "label 2 found, but there are 2 classes"),
        ({"y": ["a", "b", "z"] * 4, "class_names": ["a", "b", "c"]}, "label 'z' is not a class"),
        ({"client": [0] * 5}, "key 'client': 5 rows, expected 12"),
        ({"split": [0] * 5}, "key 'split': shape .5,., expected one value for each of 12 rows"),
        ({"client": [0.5] * 12}, "key 'client': values of type float64"),
        ({"client": [-1] * 12}, "every row is marked as not used"),
        ({"client": [3] * 12, "client_names": ["a"]}, "value 3, but there are only 1 names"),
        ({"split": [3] * 12}, "found 3, expected words, or 0...2 for train, validation, test"),
        ({"split": ["tran"] * 12}, r"unknown split 'tran' \(did you mean 'train'"),
        ({"group": np.zeros((12, 2), int)}, "key 'group': shape"),
        ({"y": np.array([{}] * 12)}, "key 'y' holds pickled Python objects, which are refused"),
    ],
)
def test_npz_mistakes_are_one_line(change: dict, message: str, save: Callable[..., str]) -> None:
    arrays = {"x": TABLE, "y": Y, **change}
    refused(message, "npz", path=save(**{key: value for key, value in arrays.items() if value is not None}))


def test_npz_options_that_do_not_fit(save: Callable[..., str]) -> None:
    path = save(x=TABLE, y=Y)
    refused("label 2 found, but there are 2 classes", "npz", path=path, classes=2)
    refused("no key 'hospital'", "npz", path=path, client="hospital")
    refused("unknown split 'dev'", "npz", path=save(x=TABLE, y=Y, split=[0] * 12), split_names=("train", "dev"))
    parts = save(x_train=IMAGES, y_train=Y, x_test=IMAGES[:, :2], y_test=Y)
    refused("key 'x': the parts differ in shape", "npz", path=parts)
    # As many labels as rows in all, but not in each part: every label after the first part would be another row's.
    parts = save(x_train=IMAGES[:6], y_train=Y[:7], x_test=IMAGES[6:], y_test=Y[7:])
    refused("key 'y': 7, 5 rows, expected 6, 6 as the inputs have", "npz", path=parts)


def test_files_that_are_no_npz(save: Callable[..., str], tmp_path: Path) -> None:
    refused("config.data.npz.path: not set", "npz")
    path = Path(save(x=TABLE, y=Y))
    refused(r"no such file: .*min.npz \(did you mean 'mine.npz'", "npz", path=str(tmp_path / "min.npz"))
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:cut])
        refused("mine.npz is not a whole .npz file", "npz", path=str(path))
    middle = whole.index(b"x.npy") + 200
    path.write_bytes(whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 40]) + whole[middle + 40 :])
    refused("key 'x' is damaged", "npz", path=str(path))
    np.save(tmp_path / "bare.npy", TABLE)
    refused("holds one bare array", "npz", path=str(tmp_path / "bare.npy"))


# --- MNIST and its like, MedMNIST -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("mnist", (28, 28)), ("usps", (16, 16)), ("mnist_m", (32, 32, 3)), ("cifar10", (32, 32, 3))]
)
def test_arrays(name: str, shape: tuple[int, ...], save: Callable[..., str]) -> None:
    x = np.random.RandomState(0).randint(0, 256, (9, *shape)).astype(np.uint8)
    parts = {"x_train": x[:6], "y_train": np.arange(6), "x_test": x[6:], "y_test": np.arange(3)}
    data = read(name, path=save(**parts))
    np.testing.assert_array_equal(data.x.reshape(x.shape), x)
    assert data.split.tolist() == [0] * 6 + [2] * 3
    assert len(data.class_names) == 10
    refused(f"expected uint8 .* for {name}", name, path=save(**{**parts, "x_test": x[6:, :8]}))
    refused("label 12 found, but there are 10 classes", name, path=save(**{**parts, "y_test": [1, 2, 12]}))
    refused("no key 'x_test'", name, path=save(x_train=x, y_train=np.arange(9)))
    refused(f"config.data.{name}.path: not set", name)


@pytest.mark.parametrize("labels", [1, 14])
def test_medmnist(labels: int, save: Callable[..., str]) -> None:
    y = np.random.RandomState(0).randint(0, 2 if labels > 1 else 5, (12, labels))
    y[0] = y.max()
    data = read(
        "medmnist",
        path=save(
            train_images=IMAGES[:6], train_labels=y[:6], val_images=IMAGES[6:8], val_labels=y[6:8],
            test_images=IMAGES[8:], test_labels=y[8:],
        ),
    )  # fmt: skip
    assert data.task == ("single" if labels == 1 else "multi")
    np.testing.assert_array_equal(data.x, IMAGES)
    np.testing.assert_array_equal(data.y, y if labels > 1 else y[:, 0])
    assert data.split.tolist() == [0] * 6 + [1] * 2 + [2] * 4
    refused("no key 'val_images'", "medmnist", path=save(train_images=IMAGES))


def test_fcube_options() -> None:
    assert read("fcube", train=8, test=3).x.shape == (11, 3)
    refused("config.data.fcube: train = 7", "fcube", train=7)


# --- HAM10000 and PRR-FL's folder -----------------------------------------------------------------------------------


def test_ham10000(save: Callable[..., str]) -> None:
    path = save(
        x=IMAGES, y=np.arange(12) % 7, class_names=["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"],
        site=np.arange(12) % 4, site_names=list("stuv"), lesion=np.arange(12) // 2,
        prrfl_client=[0, 1, 2, -1] * 3, prrfl_split=[0, 0, 0, -1, 1, 1, 1, -1, 2, 2, 2, -1],
        prrfl_label=[0, 1, 2, -1] * 3,
    )  # fmt: skip
    data = read("ham10000", path=path)
    used = np.arange(12) % 4 < 3
    np.testing.assert_array_equal(data.x, IMAGES[used])
    assert data.client_names == ("A", "B", "C")
    assert data.class_names == ("nv", "bkl", "mel")
    np.testing.assert_array_equal(data.y, [0, 1, 2] * 3)
    np.testing.assert_array_equal(data.split, np.repeat([0, 1, 2], 3))
    data = read("ham10000", path=path, clients="site", split="lesion", labels="dx")
    assert len(data.x) == 12
    assert data.split is None
    assert data.client_names == ("s", "t", "u", "v")
    np.testing.assert_array_equal(data.group, np.arange(12) // 2)
    data = read("ham10000", path=path, clients="site", labels="dx")  # rows in none of PRR-FL's lists are left out
    np.testing.assert_array_equal(data.x, IMAGES[used])
    refused("config.data.ham10000.split: unknown name 'leson'.*'lesion'", "ham10000", path=path, split="leson")


LISTS = {
    "A/train": "image_id,label,label_binary,lesion_id,dx\nI1,0,0,L1,nv\nI2,2,1,L1,mel\nI3,1,0,L2,bkl\n",
    "A/valid": "image_id,label,label_binary,lesion_id,dx\nI4,0.0,0.0,L3,nv\n",
    "A/test": "image_id,label,label_binary,lesion_id,dx\nI5,2,1,L3,mel\n",
    "D/train": "image_id,label,label_binary,melanoma,seborrheic_keratosis,,\nI6,2,1,1,0,,\n",
    "D/test": "image_id,label,label_binary,melanoma,seborrheic_keratosis\nI7,1,0,0,1\n",
}


@pytest.fixture
def native(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PRR-FL's folder with five images of A and two of D, PNG and JPEG, at 8 and at 16 pixels."""
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "prrfl"
    for name, text in LISTS.items():
        client, part = name.split("/")
        path = root / f"csv_folder/client{client}/{part}_client{client}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for i in range(1, 8):
        client = "A" if i < 6 else "D"
        for pixels in (8, 16):
            path = root / f"data/client{client}/img_resize{pixels}/I{i}.{'png' if i % 2 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((pixels, pixels, 3), 10 * i + pixels, np.uint8)).save(path)
    return root


def zipped(folder: Path) -> str:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return str(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cache", [False, True])
def test_dermoscopy_folder_and_zip(packed: bool, cache: bool, native: Path) -> None:
    path = zipped(native) if packed else str(native)
    for _ in range(2):  # the second time out of the cache
        data = read("dermoscopy", path=path, cache=cache)
        assert data.x.shape == (7, 8, 8, 3)
        assert data.client_names == ("A", "D")
        rows = {round((x.mean() - 8) / 10): i for i, x in enumerate(data.x)}  # the image's number: its row
        assert sorted(rows) == [1, 2, 3, 4, 5, 6, 7]
        order = [rows[i] for i in range(1, 8)]
        assert data.y[order].tolist() == [0, 2, 1, 0, 2, 2, 1]
        assert data.client[order].tolist() == [0, 0, 0, 0, 0, 1, 1]
        assert data.split[order].tolist() == [0, 0, 0, 1, 2, 0, 2]
        group = data.group[order]
        assert group[0] == group[1]
        assert group[3] == group[4]
        assert len(set(group.tolist())) == 5  # D has no lesions: each image is its own group
    assert (len(list(files.cache_folder().glob("*.npy"))) == 1) == cache


def test_dermoscopy_options(native: Path) -> None:
    path = str(native)
    assert read("dermoscopy", path=path, size=16).x[0].max() >= 26  # the stored 16 pixels, not 8 enlarged
    assert read("dermoscopy", path=path, size=4).x.shape == (7, 4, 4, 3)
    data = read("dermoscopy", path=path, split="lesion", labels="binary")
    assert data.split is None
    assert data.class_names == ("not mel", "mel")
    assert sorted(data.y.tolist()) == [0, 0, 0, 0, 1, 1, 1]
    refused("config.data.dermoscopy.split: unknown name 'x'", "dermoscopy", path=path, split="x")
    refused("config.data.dermoscopy.size: -1", "dermoscopy", path=path, size=-1)


def test_dermoscopy_cache_follows_the_files(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    path = native / "data/clientA/img_resize8/I1.png"
    before = read("dermoscopy", path=str(native)).x
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert (read("dermoscopy", path=str(native)).x == 200).any()
    (cached,) = [p for p in files.cache_folder().glob("*.npy") if not (np.load(p) == 200).any()]
    os.utime(path, ns=(2, 2))
    for broken in files.cache_folder().glob("*.npy"):
        broken.write_bytes(cached.read_bytes()[:50])  # a damaged cache is read anew
    assert (read("dermoscopy", path=str(native)).x == 200).any()
    assert before.shape == (7, 8, 8, 3)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # cannot be written
    assert read("dermoscopy", path=str(native)).x.shape == (7, 8, 8, 3)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "csv_folder/clientA/test_clientA.csv",
            "image_id,label,label_binary\nI5,3,1\n",
            "line 2: label '3', expected 0...2",
        ),
        ("csv_folder/clientA/test_clientA.csv", "image_id,label,label_binary\nI5,mel,1\n", "line 2: label 'mel'"),
        ("csv_folder/clientA/test_clientA.csv", "image_id,label,label_binary\nI5\n", "line 2: label ''"),
        ("csv_folder/clientA/test_clientA.csv", "image,label\nI5,2\n", "starts with 'image,label', expected image_id"),
        ("csv_folder/clientA/test_clientA.csv", "image_id,label,label_binary\nI9,2,1\n", "no image I9 in data/clientA"),
        ("data/clientA/img_resize8/I5.png", "no picture", "I5.png is not a whole image"),
    ],
)
def test_dermoscopy_mistakes_are_one_line(file: str, text: str, message: str, native: Path) -> None:
    (native / file).write_text(text)
    refused(message, "dermoscopy", path=str(native))


def test_dermoscopy_needs_lists_and_images_of_one_size(native: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(native / "data/clientA/img_resize8/I1.png")
    refused("config.data.dermoscopy.size: 0, but the images have 2 sizes", "dermoscopy", path=str(native))
    (tmp_path / "empty").mkdir()
    refused("no csv_folder/client", "dermoscopy", path=str(tmp_path / "empty"))
    (tmp_path / "bad.zip").write_bytes(b"PK")
    refused("neither a folder nor a whole zip file", "dermoscopy", path=str(tmp_path / "bad.zip"))


# --- TFDS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 12 + 6 PNG images with a label and a site, prepared as array_record without TensorFlow."""
    import tensorflow_datasets as tfds
    from PIL import Image

    def png(i: int) -> io.BytesIO:
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file, "png")
        file.seek(0)
        return file

    class TinySet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                "site": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(0, 12), "test": self._generate_examples(12, 18)}

        def _generate_examples(self, first: int, last: int) -> Any:
            for i in range(first, last):
                yield i, {"image": png(i), "label": i % 3, "site": f"s{i % 2}"}

    folder = str(tmp_path_factory.mktemp("tfds"))
    TinySet(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_reads_a_prepared_set_without_tensorflow(prepared: str) -> None:
    import sys

    data = read("tfds", name="tiny_set", data_dir=prepared, client="site")
    number = data.x[:, 0, 0, 0].astype(int)
    assert data.x.shape == (18, 8, 8, 3)
    assert sorted(number.tolist()) == list(range(18))
    np.testing.assert_array_equal(data.y, number % 3)
    np.testing.assert_array_equal(data.client, number % 2)
    np.testing.assert_array_equal(data.split, np.where(number < 12, 0, 2))
    assert data.class_names == ("a", "b", "c")
    assert data.client_names == ("s0", "s1")
    half = read("tfds", name="tiny_set", data_dir=prepared, train="train[:50%]", validation="train[50%:]", test="")
    assert np.bincount(half.split).tolist() == [6, 6]
    assert "tensorflow" not in sys.modules


def test_tfds_mistakes_are_one_line(prepared: str) -> None:
    refused("config.data.tfds.name: not set", "tfds")
    refused("'tinyset' cannot be read", "tfds", name="tinyset", data_dir=prepared)
    refused("'mnist' cannot be read", "tfds", name="mnist", data_dir=prepared)  # nothing is downloaded
    refused("Unknown split 'dev'", "tfds", name="tiny_set", data_dir=prepared, validation="dev")
    refused("has no feature 'class'", "tfds", name="tiny_set", data_dir=prepared, label="class")
    refused("no split to read", "tfds", name="tiny_set", train="", test="")
    assert not (Path(prepared) / "mnist").exists()


def test_tfds_mock(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=7):
        data = read("tfds", name="mnist", data_dir=str(tmp_path))
    assert data.x.shape == (14, 28, 28, 1)
    assert len(data.class_names) == 10
    assert np.bincount(data.split).tolist() == [7, 0, 7]


# --- Real data ------------------------------------------------------------------------------------------------------

# PRR-FL's counts nv / bkl / mel of train, validation and test (METHODS.md 10.3).
PRRFL = {
    "A": [(1282, 333, 476), (183, 47, 68), (367, 95, 136)],
    "B": [(2604, 87, 17), (372, 12, 2), (744, 25, 5)],
    "C": [(562, 343, 239), (80, 49, 34), (161, 98, 69)],
}


def counts(data: Dataset, seed: int = 0, **options: object) -> dict[str, list[tuple[int, ...]]]:
    f = federate(data, split_section(**options), seed)
    classes = len(f.class_names)
    return {
        name: [
            tuple(np.bincount(f.y[split[k]], minlength=classes).tolist()) for split in (f.train, f.validation, f.test)
        ]
        for k, name in enumerate(f.client_names)
    }


@pytest.mark.real_data
def test_real_ham10000(real_data: RealData) -> None:
    path = str(real_data("ham10000/ham10000_28x28.npz"))
    data = read("ham10000", path=path)
    assert counts(data) == PRRFL
    f = federate(data, split_section(), 0)
    lesions = [set(data.group[(data.client == 0) & (data.split == s)].tolist()) for s in (0, 2)]
    assert len(lesions[0] & lesions[1]) == 384  # PRR-FL's own lists cut lesions
    assert f.x.shape == (8490, 28, 28, 3)

    data = read("ham10000", path=path, clients="site", split="lesion", labels="dx")
    sizes = {name: sum(map(sum, splits)) for name, splits in counts(data).items()}
    assert sizes == {"rosendahl": 2259, "vidir_modern": 3363, "vidir_molemax": 3954, "vienna_dias": 439}
    assert np.bincount(data.y).tolist() == [327, 514, 1099, 115, 1113, 6705, 142]
    f = federate(data, split_section(), 0)
    for splits in zip(f.train, f.validation, f.test, strict=True):
        held = [set(data.group[rows].tolist()) for rows in splits]
        assert not held[0] & held[1]
        assert not held[0] & held[2]
        assert not held[1] & held[2]
        assert abs(len(splits[2]) / sum(map(len, splits)) - 0.2) < 0.01


@pytest.mark.real_data
def test_real_ham10000_masks(real_data: RealData) -> None:
    path = str(real_data("ham10000/ham10000_prrfl_64x64_sub.npz"))
    data = read("npz", path=path, y="mask", client="prrfl_client", split="prrfl_split", group="lesion")
    assert data.task == "mask"
    assert data.y.shape == (1351, 64, 64)
    f = federate(data, split_section(), 0)
    assert [list(map(len, split)) for split in (f.train, f.validation, f.test)] == [[300] * 3, [50, 51, 50], [100] * 3]


@pytest.mark.real_data
def test_real_dermoscopy(real_data: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = str(real_data("dermoscopy_prrfl/dermoscopy_abc_128.zip"))
    blank = lambda source, names, *more, **options: np.zeros((len(names), 1, 1, 3), np.uint8)  # noqa: E731
    monkeypatch.setattr(dermoscopy.images, "load", blank)
    assert counts(read("dermoscopy", path=path)) == PRRFL
    by_lesion = read("dermoscopy", path=path, split="lesion")
    assert {k: sum(map(sum, v)) for k, v in counts(by_lesion).items()} == {"A": 2987, "B": 3868, "C": 1635}
    assert len(np.unique(by_lesion.group)) < 8490 - 1500


@pytest.mark.slow
@pytest.mark.real_data
def test_real_dermoscopy_images(real_data: RealData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = str(real_data("dermoscopy_prrfl/dermoscopy_abc_128.zip"))
    data = read("dermoscopy", path=path, size=28)
    assert data.x.shape == (8490, 28, 28, 3)
    assert np.array_equal(read("dermoscopy", path=path, size=28).x, data.x)
    # The same photographs as in the other file: class by class the mean picture is nearly the same.
    other = read("ham10000", path=str(real_data("ham10000/ham10000_28x28.npz")))
    for label in range(3):
        mine, theirs = (d.x[d.y == label].mean(0) for d in (data, other))
        assert np.abs(mine - theirs).max() < 3


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("source", "name", "shape", "split"),
    [
        ("mnist", "mnist/mnist.npz", (70000, 28, 28, 1), [60000, 0, 10000]),
        ("usps", "usps/usps_16x16.npz", (9298, 16, 16, 1), [7291, 0, 2007]),
        ("mnist_m", "mnist_m/mnist_m_sub.npz", (4000, 32, 32, 3), [3000, 0, 1000]),
        ("cifar10", "cifar10/cifar10_sub.npz", (4000, 32, 32, 3), [3000, 0, 1000]),
        ("medmnist", "pneumoniamnist_balanced/pneumoniamnist.npz", (3166, 28, 28, 1), [2428, 270, 468]),
        ("npz", "mednist/mednist_64x64_sub.npz", (2400, 64, 64, 1), [1800, 0, 600]),
    ],
)
def test_real_images(source: str, name: str, shape: tuple, split: list[int], real_data: RealData) -> None:
    data = read(source, path=str(real_data(name)))
    assert data.x.shape == shape
    assert np.bincount(data.split, minlength=3).tolist() == split
    assert np.bincount(data.y).min() > 0


@pytest.mark.real_data
def test_real_multi_label_tables(real_data: RealData) -> None:
    for name, shape, labels, cardinality in (
        ("scene", (2407, 294), 6, 1.074), ("yeast", (2417, 103), 14, 4.237),
        ("emotion", (593, 72), 6, 1.869), ("corel5k", (5000, 499), 374, 3.522),
    ):  # fmt: skip
        data = read("npz", path=str(real_data(f"multilabel_tabular/{name}.npz")))
        assert data.task == "multi"
        assert data.x.shape == shape
        assert data.y.shape[1] == labels
        assert abs(data.y.sum(1).mean() - cardinality) < 1e-3


@pytest.mark.real_data
def test_real_retina_vessels(real_data: RealData) -> None:
    path = str(real_data("retina_vessels/retina_vessels_160x160.npz"))
    data = read("npz", path=path, y="vessel_coverage", threshold=128, split_names=("train", "test"))
    assert (data.task, data.client_names) == ("mask", ("DRIVE", "CHASE_DB1"))
    f = federate(data, split_section(validation=0.0), 0)
    assert [len(rows) for rows in f.train] == [20, 20]
    assert [len(rows) for rows in f.test] == [20, 8]
    assert 0.02 < data.y.mean() < 0.2


def test_the_default_config_has_exactly_the_options_of_every_source_and_partition() -> None:
    from configs import base

    config = base.get_config()
    for name, function in SOURCES.items():
        assert dict(config.data[name]) == registry.options(function), name
    for name, function in PARTITIONS.items():
        assert dict(config.split[name]) == registry.options(function), name
    json.loads(config.data.to_json())
