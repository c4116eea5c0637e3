"""Sources and partitions of several labels: COCO, VOC and TFDS in their own layouts, made scenes, and skewed clients."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedjax_pfl.data import PARTITIONS, digit_scenes, federate, files, images
from fedjax_pfl.data.partition import label_groups
from fedjax_pfl.data.types import Pool
from fedjax_pfl.errors import UserError
from tests.test_data import read, refused, split_section

RealData = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(path: Path, value: int, width: int = 20, height: int = 12, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value if mode == "L" else (value, value, value)).save(path, quality=95)


def values(x: np.ndarray) -> list[int]:
    """The grey value of each plain picture, to the nearest ten: which of them it is."""
    return [round(float(v), -1) for v in x.mean((1, 2, 3))]


# --- COCO -----------------------------------------------------------------------------------------------------------

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def instances(numbers: list[int], pairs: list[tuple[int, int]], part: str) -> dict[str, Any]:
    """The parts of an annotation file that exist in COCO's own ones."""
    return {
        "info": {"year": 2014},
        "licenses": [],
        "images": [{"id": n, "file_name": f"COCO_{part}_{n:012d}.jpg", "height": 12, "width": 20} for n in numbers],
        "annotations": [
            {"id": i, "image_id": n, "category_id": c, "iscrowd": int(c == 90), "bbox": [0, 0, 2, 2],
             "segmentation": {"counts": [1, 2], "size": [12, 20]} if c == 90 else [[0.0, 0.0, 2.0, 2.0]]}
            for i, (n, c) in enumerate(pairs)
        ],
        "categories": CATEGORIES,
    }  # fmt: skip


def write_coco(root: Path, part: str, numbers: list[int], pairs: list[tuple[int, int]]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(instances(numbers, pairs, part)))
    for n in numbers:
        picture(root / part / f"COCO_{part}_{n:012d}.jpg", 10 * n, 20 + n, mode="L" if n == 4 else "RGB")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Train 9, 3, 4 (grey) and 5 (nobody annotated it), val 7 and 8."""
    write_coco(tmp_path / "coco", "train2014", [9, 3, 4, 5], [(9, 1), (9, 18), (9, 1), (3, 90), (4, 18)])
    write_coco(tmp_path / "coco", "val2014", [7, 8], [(8, 1), (7, 90), (7, 1)])
    return tmp_path / "coco"


@pytest.mark.parametrize("cache", [True, False])
def test_coco(coco: Path, cache: bool) -> None:
    for _ in range(2):  # the second time out of the cache
        data = read("coco", path=str(coco), size=16, cache=cache)
        assert data.x.shape == (5, 16, 16, 3)
        assert values(data.x) == [30, 40, 90, 70, 80]  # by image id, grey as RGB
        assert data.class_names == ("person", "dog", "toothbrush")  # by category id
        assert data.y.tolist() == [[0, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]]
        assert data.split.tolist() == [0, 0, 0, 2, 2]
        assert data.task == "multi"
    assert len(list(files.cache_folder().glob("coco-*.npy"))) == cache


def test_coco_options(coco: Path) -> None:
    path = str(coco)
    kept = read("coco", path=path, size=8, unlabelled="keep")
    assert values(kept.x) == [30, 40, 50, 90, 70, 80]
    assert kept.y[2].tolist() == [0, 0, 0]
    assert values(read("coco", path=path, size=8, max_images=1).x) == [30, 70]
    write_coco(coco, "train2017", [2], [(2, 1)])
    write_coco(coco, "val2017", [1], [(1, 18)])
    data = read("coco", path=path, size=8, year=2017)
    assert (data.name, values(data.x)) == ("coco2017", [20, 10])
    refused("config.data.coco.year: 2015, expected 2014 or 2017", "coco", path=path, year=2015)
    refused("config.data.coco.size: 0", "coco", path=path, size=0)
    refused("config.data.coco.max_images: -1", "coco", path=path, max_images=-1)
    refused(r"unlabelled: unknown name 'drp' \(did you mean 'drop'\?\)", "coco", path=path, unlabelled="drp")
    refused("config.data.coco.path: not set", "coco")


def test_decoded_images_are_mapped_and_follow_their_files(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CHUNK", 2)  # more than one chunk, the last of them not full
    x = read("coco", path=str(coco), size=8).x
    assert isinstance(x.base, np.memmap)
    assert not x.flags.writeable
    file = coco / "val2014" / "COCO_val2014_000000000008.jpg"
    picture(file, 200)
    os.utime(file, ns=(1, 1))
    assert values(read("coco", path=str(coco), size=8).x) == [30, 40, 90, 70, 200]
    monkeypatch.setattr(images, "_write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    file.touch()
    assert values(read("coco", path=str(coco), size=8).x) == [30, 40, 90, 70, 200]


def test_a_cache_that_breaks_off_leaves_nothing_behind(coco: Path) -> None:
    (coco / "val2014" / "COCO_val2014_000000000008.jpg").write_bytes(b"no picture")
    refused("val2014/COCO_val2014_000000000008.jpg is not a whole image", "coco", path=str(coco))
    assert not list(files.cache_folder().iterdir())


def test_coco_mistakes_are_one_line(coco: Path) -> None:
    path, annotations = str(coco), coco / "annotations" / "instances_val2014.json"
    good = json.loads(annotations.read_text())

    def changed(**parts: Any) -> None:
        annotations.write_text(json.dumps(good | parts))

    changed(annotations=[{"image_id": 7, "category_id": 2}])
    refused("an annotation has category_id 2, which is not among the categories", "coco", path=path)
    changed(annotations=[{"image_id": 6, "category_id": 1}])
    refused("an annotation has image_id 6, which is not among the images", "coco", path=path)
    changed(annotations=[{"image_id": 7, "caption": "a dog"}])
    refused("instances_val2014.json: no 'category_id', expected COCO's instances", "coco", path=path)
    changed(annotations=[])
    refused("no image of val2014 has an annotation", "coco", path=path)
    changed(categories=[*CATEGORIES, {"id": 2, "name": "bicycle"}])
    refused("the categories of train2014 and val2014 differ", "coco", path=path)
    for text, message in (
        ("[1]", "other types, expected COCO's"),
        ("{}", "no 'categories'"),
        ("{", "not a whole JSON"),
    ):
        annotations.write_text(text)
        refused(message, "coco", path=path)
    changed()
    for n in (7, 8):
        (coco / "val2014" / f"COCO_val2014_{n:012d}.jpg").unlink()
    refused("val2014: 2 of 2 images named by the annotations are missing, the first is COCO_val2014_000000000007.jpg",
            "coco", path=path)  # fmt: skip
    annotations.unlink()
    refused("config.data.coco.path: no such file: .*instances_val2014.json", "coco", path=path)


# --- VOC ------------------------------------------------------------------------------------------------------------


def write_voc(root: Path, year: str, lists: dict[str, list[str]], objects: dict[str, list[tuple[str, int]]]) -> None:
    folder = root / f"VOC{year}"
    for name, ids in lists.items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
    (folder / "Annotations").mkdir()
    for number, (image_id, found) in enumerate(objects.items(), 1):
        entries = "".join(
            f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
            "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
            "<part><name>head</name></part></object>"
            for name, difficult in found
        )
        text = f"<annotation><folder>VOC{year}</folder><filename>{image_id}.jpg</filename>{entries}</annotation>"
        (folder / "Annotations" / f"{image_id}.xml").write_text(text)
        picture(folder / "JPEGImages" / f"{image_id}.jpg", 10 * number, 12 + number)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """2007 with trainval (train, val) and test, 2012 without test; 000004's only object is a difficult one."""
    root = tmp_path / "VOCdevkit"
    write_voc(
        root,
        "2007",
        {"trainval": ["000001", "000002"], "train": ["000001"], "val": ["000002"], "test": ["000003", "000004"]},
        {
            "000001": [("dog", 0), ("person", 0), ("person", 0)],
            "000002": [("aeroplane", 0), ("chair", 1)],
            "000003": [("tvmonitor", 0)],
            "000004": [("bus", 1)],
        },
    )
    lists = {"trainval": ["2008_000001", "2008_000002"], "train": ["2008_000001"], "val": ["2008_000002"]}
    write_voc(root, "2012", lists, {"2008_000001": [("sheep", 0)], "2008_000002": [("cow", 0)]})
    return root


def shown(data: Any) -> list[list[str]]:
    return [[data.class_names[c] for c in np.flatnonzero(row)] for row in data.y]


@pytest.mark.parametrize("cache", [True, False])
def test_voc(voc: Path, cache: bool) -> None:
    for path in (voc, voc.parent):
        data = read("voc", path=str(path), size=8, cache=cache)
        assert data.x.shape == (4, 8, 8, 3)
        assert values(data.x) == [10, 20, 30, 40]
        assert shown(data) == [["dog", "person"], ["aeroplane"], ["tvmonitor"], []]
        assert data.split.tolist() == [0, 0, 2, 2]
        assert data.class_names[0] == "aeroplane"
        assert len(data.class_names) == 20


def test_voc_options(voc: Path) -> None:
    path = str(voc)
    kept = read("voc", path=path, size=8, difficult="keep")
    assert shown(kept) == [["dog", "person"], ["aeroplane", "chair"], ["tvmonitor"], ["bus"]]
    both = read("voc", path=path, size=8, years=("2007", "2012"))  # 2012 trains only
    assert shown(both)[4:] == [["sheep"], ["cow"]]
    assert both.split.tolist() == [0, 0, 2, 2, 0, 0]
    assert both.name == "voc2007+2012"
    halves = read("voc", path=path, size=8, years=("2012",), train="train", test="val")
    assert halves.split.tolist() == [0, 2]
    alone = read("voc", path=path, size=8, years=("2012",), test="")
    assert alone.split is None
    assert shown(alone) == [["sheep"], ["cow"]]


def test_voc_mistakes_are_one_line(voc: Path) -> None:
    path, folder = str(voc), voc / "VOC2007"
    refused("config.data.voc.years: 2010, expected 2007, 2012 or both", "voc", path=path, years=("2010",))
    refused("config.data.voc.years: none", "voc", path=path, years=())
    refused("config.data.voc.size: 0", "voc", path=path, size=0)
    refused("config.data.voc.difficult: unknown name 'kep'", "voc", path=path, difficult="kep")
    refused("config.data.voc.test: no list 'test' in ImageSets/Main of VOC2012", "voc", path=path, years=("2012",))
    refused("VOC2007 has 1 images in both 'trainval' and 'val', e.g. 000002", "voc", path=path, test="val")
    refused(r"config.data.voc.train: no such file: .*trainvl.txt \(did you mean 'trainval.txt'\?\)", "voc", path=path,
            train="trainvl")  # fmt: skip
    refused("config.data.voc.path: no such file: .*ImageSets", "voc", path=str(folder / "Annotations"))
    xml = folder / "Annotations" / "000003.xml"
    xml.write_text("<annotation><object><name>tvmonitr</name></object></annotation>")
    refused(r"000003.xml: unknown class 'tvmonitr' \(did you mean 'tvmonitor'\?\)", "voc", path=path)
    xml.write_text("<annotation><object>")
    refused("000003.xml: not a whole XML file", "voc", path=path)
    xml.unlink()
    refused("000003.xml: missing, though a list of VOC2007 names image 000003", "voc", path=path)
    xml.write_text("<annotation/>")
    (folder / "JPEGImages" / "000003.jpg").unlink()
    refused("000003.jpg: missing, though a list of VOC2007 names image 000003", "voc", path=path)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("\n")
    refused("trainval.txt: names no image", "voc", path=path)


# --- TFDS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures of two sizes, with the features of TFDS's voc and coco, prepared as array_record without TensorFlow."""
    import tensorflow_datasets as tfds

    classes = tfds.features.ClassLabel(names=["a", "b", "c", "d"])

    class TinyScenes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "image/filename": tfds.features.Text(),
                "labels": tfds.features.Sequence(classes),
                "numbers": tfds.features.Sequence(np.int64),
                "words": tfds.features.Sequence(tfds.features.Text()),
                "zero_one": tfds.features.Sequence(np.int64, length=3),
                "objects": tfds.features.Sequence({"is_crowd": np.bool_, "label": classes}),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(1, 5), "validation": self._generate_examples(5, 7)}

        def _generate_examples(self, first: int, last: int) -> Any:
            for i in range(first, last):
                file = io.BytesIO()
                Image.new("RGB", (8 + i % 2, 6), (10 * i,) * 3).save(file, "png")
                file.seek(0)
                found = [] if i == 2 else [i % 4, i % 4, 3]
                objects = [{"is_crowd": False, "label": c} for c in found]
                yield i, {
                    "image": file, "image/filename": f"{i}.png", "labels": sorted(set(found)), "objects": objects,
                    "numbers": found[:1], "words": ["x"], "zero_one": [0, 1, i % 2],
                }  # fmt: skip

    folder = str(tmp_path_factory.mktemp("tfds"))
    TinyScenes(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize("label", ["labels", "objects/label"])
def test_tfds_sequences_make_several_labels(prepared: str, label: str) -> None:
    data = read("tfds", name="tiny_scenes", data_dir=prepared, label=label, size=4, test="validation")
    order = np.argsort(values(data.x))
    assert data.x.shape == (6, 4, 4, 3)
    assert [values(data.x)[i] for i in order] == [10, 20, 30, 40, 50, 60]
    assert [[data.class_names[c] for c in np.flatnonzero(row)] for row in data.y[order]] == [
        ["b", "d"], [], ["d"], ["a", "d"], ["b", "d"], ["c", "d"],
    ]  # fmt: skip
    assert data.split[order].tolist() == [0, 0, 0, 0, 2, 2]


def test_tfds_sequences_of_numbers(prepared: str) -> None:
    options = {"name": "tiny_scenes", "data_dir": prepared, "size": 4, "test": ""}
    data = read("tfds", label="numbers", **options)
    assert data.y.shape == (4, 4)
    assert data.y.sum(1).tolist().count(0) == 1
    data = read("tfds", label="zero_one", **options)  # of a fixed length: 0 or 1 for each label
    assert data.y[np.argsort(values(data.x))].tolist() == [[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]]
    data = read("tfds", label="labels", client="image/filename", **options)
    assert sorted(data.client_names) == ["1.png", "2.png", "3.png", "4.png"]


def test_tfds_mistakes_are_one_line(prepared: str) -> None:
    options = {"name": "tiny_scenes", "data_dir": prepared, "test": ""}
    refused("feature 'image' of 'tiny_scenes' has 2 shapes, expected one; set config.data.tfds.size",
            "tfds", label="labels", **options)  # fmt: skip
    refused(r"no feature 'objects/labl' \(did you mean 'label'\?\)", "tfds", label="objects/labl", **options)
    refused("config.data.tfds.label: 'tiny_scenes' has no feature 'labels/x'", "tfds", label="labels/x", **options)
    refused("a sequence of other things than class numbers", "tfds", label="words", size=4, **options)
    refused("config.data.tfds.size: 4 is for images", "tfds", image="labels", label="labels", size=4, **options)
    refused("config.data.tfds.size: -1", "tfds", size=-1, **options)


# --- npz ------------------------------------------------------------------------------------------------------------


def test_npz_resizes_images(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    x = np.random.RandomState(0).randint(0, 256, (3, 8, 12, 3)).astype(np.uint8)
    np.savez(path, x=x, y=np.eye(3, dtype=np.uint8))
    mean = x.reshape(3, 4, 2, 4, 3, 3).mean((2, 4))  # blocks of 2 x 3
    np.testing.assert_allclose(read("npz", path=path, size=4).x, mean, atol=0.51)
    bicubic = [np.asarray(Image.fromarray(image).resize((5, 5), Image.Resampling.BICUBIC)) for image in x]
    np.testing.assert_array_equal(read("npz", path=path, size=5).x, bicubic)
    np.savez(path, x=x[..., 0] / 255, y=np.eye(3, dtype=np.uint8))
    assert read("npz", path=path, size=16).x.shape == (3, 16, 16, 1)  # grey values as floats
    np.testing.assert_allclose(read("npz", path=path, size=4).x, mean[..., :1] / 255, rtol=1e-5)
    refused("config.data.npz.size: -1", "npz", path=path, size=-1)
    np.savez(path, x=x[:, 0, 0], y=np.arange(3))
    refused(r"4 is for images, but .* has inputs of shape \(3, 3\)", "npz", path=path, size=4)


def test_npz_validation_part_can_be_the_test_set(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(path, x_train=np.zeros((4, 2)), y_train=np.zeros(4, int), x_val=np.ones((2, 2)), y_val=np.ones(2, int))
    assert read("npz", path=path).split.tolist() == [0, 0, 0, 0, 1, 1]
    assert read("npz", path=path, val="test").split.tolist() == [0, 0, 0, 0, 2, 2]
    refused(r"config.data.npz.val: unknown name 'tst' \(did you mean 'test'\?\)", "npz", path=path, val="tst")


# --- digit scenes ---------------------------------------------------------------------------------------------------


def together(y: np.ndarray) -> np.ndarray:
    """[L, L] share of the rows that show both labels."""
    return (y.T.astype(float) @ y) / len(y)


def test_digit_scenes() -> None:
    data = read("digit_scenes")
    assert data.x.shape == (3000, 32, 32, 3)
    assert data.task == "multi"
    assert data.class_names[:3] == ("zero", "one", "two")
    assert np.bincount(data.client).tolist() == [375] * 8
    assert [np.bincount(data.split[data.client == k]).tolist() for k in range(8)] == [[300, 0, 75]] * 8
    assert set(data.y.sum(1).tolist()) == {1, 2, 3}
    assert data.y.mean(0).min() > 0.1
    assert data.x.std((1, 2, 3)).min() > 3  # no scene is empty


def test_digit_scenes_options() -> None:
    small = {"clients": 2, "examples": 20, "test_examples": 4}
    one, two = (read("digit_scenes", **small) for _ in range(2))
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.y, two.y)
    data = read("digit_scenes", size=48, digits=1, **small)
    assert data.x.shape == (48, 48, 48, 3)
    assert (data.y.sum(1) == 1).all()
    assert not np.array_equal(read("digit_scenes", **small).y, read("digit_scenes", seed=1, **small).y)
    assert read("digit_scenes", **(small | {"test_examples": 0})).split.max() == 0
    first = data.client == 0  # a client stays the same when others join
    more = read("digit_scenes", size=48, digits=1, **(small | {"clients": 3}))
    np.testing.assert_array_equal(data.x[first], more.x[more.client == 0])
    for options, message in (
        ({"seed": -1}, "seed: -1"), ({"size": 8}, "size: 8, expected at least 16"), ({"clients": 0}, "clients: 0"),
        ({"examples": 0}, "examples: 0"), ({"test_examples": -1}, "test_examples: -1"), ({"digits": 6}, "expected 1 to 5"),
        ({"skew": 1.5}, "skew: 1.5, expected a chance"), ({"test": "owm"}, r"unknown name 'owm' \(did you mean 'own'"),
    ):  # fmt: skip
        refused(message, "digit_scenes", **options)


def test_digits_that_go_together_differ_from_client_to_client() -> None:
    def spread(split: int, **options: Any) -> float:
        """How far the co-occurrence of a client is from the mean over the clients, at most 1."""
        data = read("digit_scenes", size=16, examples=400, test_examples=400, clients=4, **options)
        own = np.stack([together(data.y[(data.client == k) & (data.split == split)]) for k in range(4)])
        return float(np.abs(own - own.mean(0)).max())

    chance = spread(0, skew=0.0)
    assert chance < 0.08
    assert spread(0, skew=0.4) > 0.12
    assert spread(0, skew=1.0) > spread(0, skew=0.4) + 0.1
    assert spread(2, skew=1.0) < 0.08  # the common test set is not skewed
    assert spread(2, skew=1.0, test="own") > 0.25


def test_with_full_skew_a_scene_shows_digits_of_one_group() -> None:
    data = read("digit_scenes", size=16, skew=1.0, clients=3)
    for k in range(3):
        y = data.y[(data.client == k) & (data.split == 0)]
        pairs = together(y) > 0
        assert (y.any(0)).sum() == 6
        assert set(pairs[y.any(0)].sum(1).tolist()) == {3}  # two groups of three, never mixed


def test_test_scenes_show_no_source_image_of_a_training_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    bundled = sklearn.datasets.load_digits()
    sources = digit_scenes._sources(bundled.target, 0)
    used = [np.concatenate(sources[split]) for split in (0, 2)]
    assert sorted(np.concatenate(used).tolist()) == list(range(1797))
    small = {"clients": 2, "examples": 60, "test_examples": 60}
    before = read("digit_scenes", **small)
    bundled.images[used[0]] = 0  # nothing is left of the training images
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bundled)
    after = read("digit_scenes", **small)
    same = (before.x == after.x).all((1, 2, 3))
    assert same[before.split == 2].all()
    assert not same[before.split == 0].any()


def test_every_client_can_be_tested_on_the_common_test_set() -> None:
    data = read("digit_scenes", examples=40, test_examples=10)
    shared = federate(data, split_section(how="global"), 0)
    assert all(rows is shared.test[0] for rows in shared.test)
    assert len(shared.test[0]) == 80
    assert {len(rows) for rows in shared.train} <= {35, 36}
    own = federate(data, split_section(how="auto"), 0)
    assert [len(rows) for rows in own.test] == [10] * 8
    within = federate(data, split_section(how="within"), 0)
    assert all(9 <= len(rows) <= 11 for rows in within.test)


# --- Partitions -----------------------------------------------------------------------------------------------------


def pool(n: int = 1200, seed: int = 0) -> Pool:
    """Nine labels in three groups (0 3 6, 1 4 7, 2 5 8) that rarely mix; one row in ten has none."""
    rng = np.random.RandomState(seed)
    own = np.arange(9) % 3 == rng.choice(3, n, p=(0.5, 0.3, 0.2))[:, None]
    y = (rng.uniform(size=(n, 9)) < np.where(own, 0.6, 0.05)) & (rng.uniform(size=(n, 1)) < 0.9)
    return Pool(y.astype(np.uint8), "multi", 9)


def test_labels_that_occur_together_are_grouped() -> None:
    groups = label_groups(pool().y, 3)
    assert len(set(groups.tolist())) == 3
    np.testing.assert_array_equal(groups, np.tile(groups[:3], 3))
    assert label_groups(np.zeros((4, 5), np.uint8), 2).max() == 1  # labels that nobody has are no trouble
    assert label_groups(np.ones((4, 1), np.uint8), 1).tolist() == [0]


def own_share(parts: Any, p: Pool) -> np.ndarray:
    """For each client which share of its positives its most frequent group of labels has."""
    counts = np.stack([p.y[rows].sum(0).reshape(3, 3).sum(0) for rows in parts.rows])
    return counts.max(1) / counts.sum(1)


def test_label_cluster_gives_each_client_its_groups() -> None:
    p = pool()
    shares = [own_share(PARTITIONS["label_cluster"](p, 0, clients=10, skew=skew), p) for skew in (0.0, 0.5, 1.0)]
    assert shares[0].max() < 0.62  # as in the pool, where the largest group has about half
    assert np.sort(shares[2])[2] > 0.75  # eight of ten clients hold nearly one group alone; two may stand on a border
    assert shares[0].mean() < shares[1].mean() < shares[2].mean()


@pytest.mark.parametrize("name", ["label_cluster", "dirichlet", "quantity", "homogeneous", "noise"])
def test_partitions_of_several_labels_hand_out_every_row_once(name: str) -> None:
    p = pool()
    parts = PARTITIONS[name](p, 3, clients=7)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts.rows)), np.arange(1200))
    again, other = (np.concatenate(PARTITIONS[name](p, seed, clients=7).rows) for seed in (3, 4))
    np.testing.assert_array_equal(np.concatenate(parts.rows), again)
    assert not np.array_equal(again, other)
    if name == "label_cluster":
        assert {len(rows) for rows in parts.rows} <= {171, 172}


def test_dirichlet_of_several_labels_deals_each_row_by_its_rarest_one() -> None:
    p = pool()
    counts = p.y.sum(0)
    rarest = [min(np.flatnonzero(row), key=lambda c: (counts[c], c)) if row.any() else 9 for row in p.y]
    single = p._replace(y=np.array(rarest, np.int32), task="single", classes=10)
    for mine, theirs in zip(PARTITIONS["dirichlet"](p, 1).rows, PARTITIONS["dirichlet"](single, 1).rows, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_partitions_refuse_in_one_line() -> None:
    p = pool()
    single = Pool(np.zeros(100, np.int32), "single", 2)
    for name, data, options, message in (
        ("label_cluster", single, {}, "'label_cluster' needs several labels for each row, but the task is 'single'"),
        ("label_cluster", p, {"groups": 10}, "groups: 10, expected 1 to 9, the number of labels"),
        ("label_cluster", p, {"groups": 0}, "groups: 0"),
        ("label_cluster", p, {"skew": -0.1}, "skew: -0.1, expected a share of 0 to 1"),
        ("label_cluster", p, {"clients": 1201}, "there are only 1200 examples"),
        ("hsu", p, {}, "the task is 'multi'; choose 'dirichlet', 'label_cluster', 'homogeneous'"),
        ("shards", p, {}, "the task is 'multi'"),
        ("label_quantity", p, {}, "the task is 'multi'"),
        ("dirichlet", Pool(np.zeros((100, 2, 2), np.int32), "mask", 2), {}, "the task is 'mask'; choose 'homogeneous'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            PARTITIONS[name](data, 0, **options)
        assert "\n" not in str(error.value)


# --- Real data ------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_small_sets_are_multi_label_through_npz(real_data: RealData) -> None:
    path = str(real_data("voc2012_sub/voc2012_sub_64x64.npz"))
    data = read("npz", path=path, split="in_val", split_names=("train", "test"), size=32)
    assert (data.task, data.x.shape, data.y.shape) == ("multi", (1200, 32, 32, 3), (1200, 20))
    assert data.class_names[14] == "person"
    assert data.y[:, 14].sum() == 533
    assert set(data.split.tolist()) == {0, 2}
    data = read("npz", path=str(real_data("coco_tiny/coco_tiny_96x96.npz")), val="test", size=64)
    assert (data.task, data.x.shape, data.y.shape) == ("multi", (100, 64, 64, 3), (100, 80))
    assert np.bincount(data.split).tolist() == [50, 0, 50]
    data = read("npz", path=str(real_data("miml_scene/miml_scene_64x64_sub.npz")))
    assert (data.task, data.x.shape, len(data.class_names)) == ("multi", (900, 64, 64, 3), 5)
    assert (data.y.sum(1) > 1).sum() == 457


@pytest.mark.real_data
def test_real_voc_labels_fall_into_groups_that_make_sense(real_data: RealData) -> None:
    from fedjax_pfl.data.voc import CLASSES

    y = np.load(real_data("voc_labels/voc07_labels.npz"))["trainval"].astype(np.uint8)
    group = dict(zip(CLASSES, label_groups(y, 3).tolist(), strict=True))
    assert len({group[name] for name in ("bottle", "chair", "diningtable", "sofa", "tvmonitor")}) == 1
    assert group["person"] != group["chair"]
    share = [
        y[rows][:, CLASSES.index("sofa")].mean() for rows in PARTITIONS["label_cluster"](Pool(y, "multi", 20), 0).rows
    ]
    assert max(share) > 5 * np.median(share)
