"""Masks from every source: NIfTI volumes, prostate MRI in both its layouts, .npz files, real lesions and vessels."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data import read, refused, split_section

from fedjax_pfl.data import Dataset, federate, nifti
from fedjax_pfl.errors import UserError

RealData = Callable[[str], Path]
CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768}


def write_nifti(
    path: Path,
    x: np.ndarray,
    *,
    order: str = "<",
    slope: float = 1,
    inter: float = 0,
    offset: int = 352,
    trailing: int = 0,
    **fields: Any,
) -> Path:
    """A NIfTI-1 file of the array [x, y, z] from the format's description, field by field."""
    dim = [x.ndim + trailing, *x.shape, *[1] * (7 - x.ndim)]
    header = struct.pack(f"{order}i", 348) + bytes(36) + struct.pack(f"{order}8h", *fields.get("dim", dim))
    header += bytes(14) + struct.pack(f"{order}2h", fields.get("code", CODES[x.dtype.str[1:]]), 8 * x.dtype.itemsize)
    header += bytes(2) + struct.pack(f"{order}8f", *[1.0] * 8) + struct.pack(f"{order}3f", offset, slope, inter)
    header += bytes(344 - len(header)) + fields.get("magic", b"n+1\0") + bytes(offset - 348)
    content = header + x.astype(x.dtype.newbyteorder(order)).tobytes(order="F")
    content = content[: fields.get("cut", len(content))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# --- NIfTI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", CODES)
def test_nifti_of_every_type(kind: str, order: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 100, (3, 4, 2)).astype(kind)
    for name, options in (("a.nii", {}), ("a.nii.gz", {"offset": 400, "trailing": 1})):
        found = nifti.read(write_nifti(tmp_path / name, x, order=order, **options))
        np.testing.assert_array_equal(found, x)


def test_nifti_scaling(tmp_path: Path) -> None:
    x = np.arange(24, dtype="i2").reshape(2, 3, 4)
    scaled = nifti.read(write_nifti(tmp_path / "a.nii", x, slope=0.5, inter=-3))
    np.testing.assert_allclose(scaled, x * 0.5 - 3)
    np.testing.assert_array_equal(nifti.read(write_nifti(tmp_path / "b.nii", x, slope=0, inter=7)), x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magic": b"ni1\0"}, r"magic b'ni1\\x00' found"),
        ({"code": 128}, "values of NIfTI type 128 found, one of 2, 4"),
        ({"dim": [2, 2, 3, 1, 1, 1, 1, 1]}, r"2 dimensions \(2, 3\) found, a volume"),
        ({"dim": [4, 2, 3, 4, 2, 1, 1, 1]}, r"4 dimensions \(2, 3, 4, 2\) found"),
        ({"cut": 380}, "380 bytes found, 48 bytes of values from byte 352 expected: it is cut off"),
        ({"cut": 100}, "no NIfTI-1 header found"),
        ({"cut": 0}, "no NIfTI-1 header found"),
    ],
)
def test_nifti_mistakes_are_one_line(fields: dict, message: str, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", np.zeros((2, 3, 4), "i2"), **fields)
    with pytest.raises(UserError, match=message) as error:
        nifti.read(path)
    assert "\n" not in str(error.value)
    (tmp_path / "b.nii.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"b.nii.gz: damaged, or not gzip"):
        nifti.read(tmp_path / "b.nii.gz")


# --- prostate MRI: volumes ------------------------------------------------------------------------------------------


def volume(seed: int, slices: int = 6, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask [slices, H, W], the prostate (values 1 and 2) in slices 2, 3 and 4 of them, with a gap."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(50, 20, (slices, size, size)).astype("f4"), np.zeros((slices, size, size), "u1")
    y[2, 2:5, 1:4], y[4, 3:6, 2:7], y[4, 3, 3] = 1, 2, 1
    return x, y


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two institutions; one spells its masks as BMC does, one has .npy volumes besides."""
    for site, number, seed in (("RUNMC", "00", 0), ("RUNMC", "01", 1), ("BMC", "00", 2)):
        x, y = volume(seed)
        word = "_Segmentation" if site == "BMC" else "_segmentation"
        write_nifti(tmp_path / site / f"Case{number}.nii.gz", x.transpose(2, 1, 0))
        write_nifti(tmp_path / site / f"Case{number}{word}.nii.gz", y.transpose(2, 1, 0))
    x, y = volume(3)
    np.save(tmp_path / "BMC" / "case10.npy", x)
    np.save(tmp_path / "BMC" / "case10_segmentation.npy", y)
    (tmp_path / "readme.txt").write_text("no institution")
    return tmp_path


def test_prostate_volumes(archive: Path) -> None:
    data = read("prostate", path=str(archive))
    assert (data.task, data.class_names, data.client_names) == ("mask", ("background", "prostate"), ("BMC", "RUNMC"))
    assert data.x.shape == (12, 8, 8, 3)
    assert data.split is None
    np.testing.assert_array_equal(data.client, np.repeat([0, 1], 6))
    np.testing.assert_array_equal(data.group, np.repeat([0, 1, 2, 3], 3))
    for case, seed in enumerate((2, 3, 0, 1)):
        x, y = volume(seed)
        x = (x - x.mean()) / x.std()
        for row, middle in enumerate((2, 3, 4)):
            expected = np.stack([x[middle - 1], x[middle], x[middle + 1]], -1)
            np.testing.assert_allclose(data.x[3 * case + row], expected, atol=1e-5)
            np.testing.assert_array_equal(data.y[3 * case + row], y[middle] > 0)
    assert data.y.max() == 1


def test_prostate_slices_and_neighbours(archive: Path) -> None:
    data = read("prostate", path=str(archive), slices="all")
    assert len(data.x) == 24
    np.testing.assert_array_equal(data.x[0, ..., 0], data.x[0, ..., 1])  # nothing before the first
    np.testing.assert_array_equal(data.x[5, ..., 2], data.x[5, ..., 1])
    np.testing.assert_array_equal(data.x[1, ..., 0], data.x[0, ..., 1])
    alone = read("prostate", path=str(archive), slices="all", neighbours=False)
    np.testing.assert_array_equal(alone.x[..., 0], data.x[..., 1])
    np.testing.assert_allclose([alone.x[:6].mean(), alone.x[:6].std()], [0, 1], atol=1e-6)


def test_prostate_resized(archive: Path) -> None:
    data, whole = (read("prostate", path=str(archive), size=size) for size in (4, 0))
    assert data.x.shape == (12, 4, 4, 3)
    np.testing.assert_array_equal(data.y, whole.y[:, 1::2, 1::2])
    image = Image.fromarray(whole.x[0, ..., 1]).resize((4, 4), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(data.x[0, ..., 1], image, atol=1e-5)


def test_prostate_cases_are_never_cut(tmp_path: Path) -> None:
    for number in range(20):
        x, y = volume(number)
        (tmp_path / "A").mkdir(exist_ok=True)
        np.save(tmp_path / "A" / f"Case{number:02d}.npy", x)
        np.save(tmp_path / "A" / f"Case{number:02d}_segmentation.npy", y)
    data = read("prostate", path=str(tmp_path))
    for how in ("auto", "global"):
        f = federate(data, split_section(how=how), 0)
        cases = [set(whose(data, f, rows[0])) for rows in (f.train, f.validation, f.test)]
        assert [len(each) for each in cases] == [14, 2, 4]
        assert len(set.union(*cases)) == 20


def whose(data: Dataset, f: Any, rows: np.ndarray) -> np.ndarray:
    """The groups of a federation's rows, found by their inputs."""
    known = {x.tobytes(): group for x, group in zip(np.asarray(data.x), data.group, strict=True)}
    return np.array([known[f.x[row].tobytes()] for row in rows])


def test_prostate_mistakes_are_one_line(archive: Path, tmp_path: Path) -> None:
    path, x = str(archive), np.zeros((6, 8, 8))
    refused("config.data.prostate.size: -1", "prostate", path=path, size=-1)
    refused(r"config.data.prostate.slices: unknown name 'al' \(did you mean 'all'", "prostate", path=path, slices="al")
    lone = archive / "BMC" / "case11.npy"
    np.save(lone, x)
    refused(r"case11.npy: its mask is missing in .*BMC", "prostate", path=path)
    np.save(archive / "BMC" / "case11_segmentation.npy", x)
    refused("case11.npy: mean 0 and standard deviation 0 found", "prostate", path=path)
    np.save(lone, np.random.default_rng(0).normal(size=(6, 8, 8)))
    np.save(archive / "BMC" / "case11_segmentation.npy", x + 3)
    refused("case11_segmentation.npy: mask value 3 found", "prostate", path=path)
    np.save(archive / "BMC" / "case11_segmentation.npy", x[:5])
    refused(r"shape \(5, 8, 8\) found, \(6, 8, 8\) as its image has", "prostate", path=path)
    np.save(lone, x[0])
    refused(r"case11.npy: shape \(8, 8\) of float64 found", "prostate", path=path)
    lone.write_bytes(b"")
    refused("case11.npy: not a whole .npy file", "prostate", path=path)
    lone.unlink()
    refused("case11_segmentation.npy: its image is missing", "prostate", path=path)
    (archive / "BMC" / "case11_segmentation.npy").unlink()
    for part, value in zip(("", "_segmentation"), volume(0, size=10), strict=True):
        np.save(archive / "BMC" / f"case11{part}.npy", value)
    refused("config.data.prostate.size: 0, but the slices are of 8x8, 10x10 pixels", "prostate", path=path)
    np.save(archive / "BMC" / "CASE11.npy", x)
    refused("case11.npy: the same case as CASE11.npy", "prostate", path=path)
    (tmp_path / "empty").mkdir()
    refused("neither .*Case.* nor .*train.lst", "prostate", path=str(tmp_path / "empty"))


# --- prostate MRI: PRR-FL's pictures --------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for client, lists in (("A", {"train": 3, "valid": 1, "test": 2}), ("B", {"train": 2, "test": 1})):
        number = 0
        for kind in ("images", "labels"):
            (tmp_path / client / kind).mkdir(parents=True)
        for part, n in lists.items():
            lines = []
            for _ in range(n):
                name = f"Case{number // 2:02d}_{number}.png"
                x, y = rng.integers(0, 256, (6, 4, 3), np.uint8), np.zeros((6, 4), np.uint8)
                x[0, 0] = [number, 10, 20 if client == "A" else 30]  # red, green, blue
                y[number % 6, 1:3] = 255
                Image.fromarray(x).save(tmp_path / client / "images" / name)
                Image.fromarray(y).save(tmp_path / client / "labels" / name)
                lines.append(name)
                number += 1
            (tmp_path / client / f"{part}.lst").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def test_prostate_pictures(pictures: Path) -> None:
    data = read("prostate", path=str(pictures))
    assert data.x.shape == (9, 6, 4, 3)
    assert data.x.dtype == np.uint8
    assert data.client_names == ("A", "B")
    order = np.lexsort((data.x[:, 0, 0, 0], data.client))
    np.testing.assert_array_equal(data.split[order], [0, 0, 0, 1, 2, 2, 0, 0, 2])
    np.testing.assert_array_equal(data.group[order], [0, 0, 1, 1, 2, 2, 3, 3, 4])
    np.testing.assert_array_equal(data.x[order][:, 0, 0, 2], [20] * 6 + [30] * 3)
    for row in range(9):
        expected = np.zeros((6, 4), int)
        expected[data.x[row, 0, 0, 0] % 6, 1:3] = 1
        np.testing.assert_array_equal(data.y[row], expected)
    assert read("prostate", path=str(pictures), size=8).y.shape == (9, 8, 8)
    f = federate(data, split_section(validation=0.0), 0)
    assert [[len(rows) for rows in split] for split in (f.train, f.validation, f.test)] == [[3, 2], [1, 0], [2, 1]]


def test_prostate_picture_mistakes_are_one_line(pictures: Path) -> None:
    path, label = str(pictures), pictures / "B" / "labels" / "Case00_0.png"
    Image.fromarray(np.ones((6, 4), np.uint8)).save(label)
    refused("Case00_0.png: grey values up to 1 found, 0 and 255 expected", "prostate", path=path)
    Image.fromarray(np.ones((6, 5), np.uint8)).save(label)
    refused(r"\(6, 5\) pixels found, \(6, 4\) as its image has", "prostate", path=path)
    label.write_bytes(b"")
    refused("Case00_0.png is not a whole image", "prostate", path=path)
    label.unlink()
    refused("train.lst: line 1: no Case00_0.* in labels", "prostate", path=path)
    (pictures / "A" / "images").rename(pictures / "A" / "pictures")
    refused("A: no folder 'images'", "prostate", path=path)


# --- .npz -----------------------------------------------------------------------------------------------------------


def test_npz_masks_are_resized_with_their_images(tmp_path: Path) -> None:
    path, rng = str(tmp_path / "a.npz"), np.random.default_rng(0)
    x, y = rng.integers(0, 256, (3, 8, 12, 3), np.uint8), rng.integers(0, 4, (3, 8, 12))
    np.savez(path, x=x, y=y)
    data = read("npz", path=path, size=4)
    assert data.x.shape == (3, 4, 4, 3)
    np.testing.assert_array_equal(data.y, y[:, 1::2, 1::3])
    np.testing.assert_array_equal(read("npz", path=path, size=24).y, y.repeat(3, 1).repeat(2, 2))
    assert set(np.unique(read("npz", path=path, size=5).y)) <= {0, 1, 2, 3}
    grey = rng.integers(0, 256, (3, 8, 12), np.uint8)
    np.savez(path, x=x, y=grey)
    mean = grey.reshape(3, 4, 2, 4, 3).mean((2, 4))
    np.testing.assert_array_equal(read("npz", path=path, size=4, threshold=128).y, mean >= 128)
    bicubic = [np.asarray(Image.fromarray(g.astype(np.float32)).resize((5, 5), Image.Resampling.BICUBIC)) for g in grey]
    np.testing.assert_array_equal(read("npz", path=path, size=5, threshold=128).y, np.stack(bicubic) >= 128)


def test_npz_masks_beside_labels_have_names_of_their_own(tmp_path: Path) -> None:
    path, x = str(tmp_path / "a.npz"), np.zeros((3, 4, 4, 3), np.uint8)
    mask = np.arange(48).reshape(3, 4, 4) % 2
    arrays = {"x": x, "y": [0, 1, 2], "class_names": ["a", "b", "c"], "mask": mask}
    np.savez(path, **arrays)
    assert read("npz", path=path).class_names == ("a", "b", "c")
    assert read("npz", path=path, y="mask").class_names == ("0", "1")
    np.savez(path, **arrays, mask_names=["skin", "lesion"])
    assert read("npz", path=path, y="mask").class_names == ("skin", "lesion")
    del arrays["y"]
    np.savez(path, **arrays)
    assert read("npz", path=path, y="mask").class_names == ("a", "b", "c")


@pytest.mark.real_data
def test_real_lesions_as_the_config_reads_them(real_data: RealData) -> None:
    from configs import prrfl_lesion_segmentation

    path = str(real_data("ham10000/ham10000_prrfl_64x64_sub.npz"))
    config = prrfl_lesion_segmentation.get_config()
    data = read("npz", **{**dict(config.data.npz), "path": path})
    assert data.class_names == ("0", "1")
    f = federate(data, config.split, 0)
    assert f.client_names == ("rosendahl", "vidir_modern", "vidir_molemax")
    assert [sum(map(len, split)) for split in zip(f.train, f.validation, f.test, strict=True)] == [200, 200, 200]
    for splits in zip(f.train, f.validation, f.test, strict=True):
        held = [set(whose(data, f, rows)) for rows in splits]
        assert not held[0] & held[1]
        assert not held[0] & held[2]
        assert not held[1] & held[2]


@pytest.mark.real_data
def test_real_vessels_as_the_config_reads_them(real_data: RealData) -> None:
    from configs import prrfl_vessels

    config = prrfl_vessels.get_config()
    path = str(real_data("retina_vessels/retina_vessels_160x160.npz"))
    data = read("npz", **{**dict(config.data.npz), "path": path})
    f = federate(data, config.split, 0)
    assert f.client_names == ("DRIVE", "CHASE_DB1")
    assert [len(rows) for rows in f.train] == [18, 18]
    assert [len(rows) for rows in f.test] == [20, 8]
    assert 0.02 < f.y.mean() < 0.2
