"""FLAIR from a small file in the true layout: labels and their orders, images read cohort by cohort, mistakes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest

from configs import base
from fedjax_pfl import checkpoint, cohort, data, experiment, protocol, rounds, train
from fedjax_pfl.data.flair import flair
from fedjax_pfl.data.lazy import H5Images
from fedjax_pfl.errors import UserError

ROOT = Path(__file__).parents[1]
COARSE = ("structure", "equipment", "plant", "food", "animal")
FINE = ("rodeo", "lake", "tree", "bag", "document", "plate", "hound_other", "grass")
USERS = {"train": 30, "val": 6, "test": 8}
PIXELS = (16, 16, 3)
Records = list[dict[str, Any]]


def records() -> Records:
    """What labels_and_metadata.json holds: the users' images in a mixed order, users of 1 to 12 images."""
    rng = np.random.RandomState(0)
    users = [(f"{part}{i:02d}@N00", part) for part, count in USERS.items() for i in range(count)]
    found = []
    for i, (user, part) in enumerate(sorted(users, key=lambda user: list(USERS).index(user[1]))):
        for k in range(1 + (5 * i) % 12):
            coarse = rng.permutation(COARSE)[: rng.randint(1, 4)].tolist()
            fine = rng.permutation(FINE)[: rng.randint(1, 6)].tolist()
            image = f"{i}_{k}"
            found.append(dict(user_id=user, image_id=image, partition=part, labels=coarse, fine_grained_labels=fine))
    return [found[i] for i in rng.permutation(len(found))]


def write(path: Path, metadata: Records) -> None:
    """The federated file, group by group as the providers' script lays it out."""
    rng = np.random.RandomState(1)
    users: dict[str, Records] = {}
    for record in metadata:
        users.setdefault(record["user_id"], []).append(record)
    with h5py.File(path, "w") as file:
        for user, mine in users.items():
            group = f"/{mine[0]['partition']}/{user}"
            for key in ("labels", "fine_grained_labels"):
                file[f"{group}/{key}"] = np.asarray(["|".join(record[key]) for record in mine], dtype="S")
            file[f"{group}/image_ids"] = np.asarray([record["image_id"] for record in mine], dtype="S")
            # A picture says whose it is and which: no two are equal.
            file.create_dataset(f"{group}/images", data=rng.randint(0, 256, (len(mine), *PIXELS)).astype(np.uint8))
        for key, counter in (("labels", "label_counter"), ("fine_grained_labels", "fine_grained_label_counter")):
            names = [name for mine in users.values() for record in mine for name in record[key]]
            file[f"/metadata/{counter}"] = json.dumps({name: names.count(name) for name in dict.fromkeys(names)})


class Made:
    """The file, its metadata, and all of it in memory, user by user in the file's order."""

    def __init__(self, folder: Path) -> None:
        self.path, self.metadata, self.records = folder / "fl_data.hdf5", folder / "labels_and_metadata.json", records()
        self.metadata.write_text(json.dumps(self.records))
        write(self.path, self.records)
        with h5py.File(self.path) as file:
            where = [(part, user) for part in USERS for user in sorted(file[part])]
            self.counts = np.array([len(file[f"{part}/{user}/images"]) for part, user in where])
            self.images = np.concatenate([file[f"{part}/{user}/images"][()] for part, user in where])
        self.users = [user for _, user in where]
        self.split = np.repeat([list(USERS).index(part) for part, _ in where], self.counts)

    def appearance(self, key: str) -> list[str]:
        """By a plain walk through the records."""
        names: list[str] = []
        for record in self.records:
            for name in record[key]:
                if name not in names:
                    names.append(name)
        return names

    def targets(self, key: str, names: list[str]) -> np.ndarray:
        rows = [[r[key] for r in self.records if r["user_id"] == user] for user in self.users]
        return np.array([[name in labels for name in names] for user in rows for labels in user])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("flair"))


def refused(message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as error:
        flair(**options)
    assert "\n" not in str(error.value)


# --- Labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "key"), [("coarse", "labels"), ("fine", "fine_grained_labels")])
def test_labels_in_both_orders(labels: str, key: str, made: Made) -> None:
    names = made.appearance(key)
    assert names != sorted(names)
    one = flair(path=str(made.path), labels=labels, metadata=str(made.metadata))
    two = flair(path=str(made.path), labels=labels, order="alphabetical")
    for found, order in ((one, names), (two, sorted(names))):
        assert found.task == "multi"
        assert found.class_names == tuple(order)
        assert found.y.dtype == np.uint8
        np.testing.assert_array_equal(found.y, made.targets(key, order))
        np.testing.assert_array_equal(found.split, made.split)
        assert found.client_names == tuple(made.users)
        np.testing.assert_array_equal(found.client, np.repeat(np.arange(len(made.users)), made.counts))


def test_the_order_of_appearance_comes_from_fedlgts_mapping_as_well(made: Made, tmp_path: Path) -> None:
    names = made.appearance("labels")
    one_hot = np.eye(len(names), dtype=int).tolist()
    for mapping in (dict(zip(names, one_hot, strict=True)), {name: i for i, name in enumerate(names)}):
        (tmp_path / "label_mapping.json").write_text(json.dumps(mapping))
        found = flair(path=str(made.path), mapping=str(tmp_path / "label_mapping.json"))
        assert found.class_names == tuple(names)
    np.testing.assert_array_equal(found.y, flair(path=str(made.path), metadata=str(made.metadata)).y)


def test_max_images_takes_the_first_of_training_users_only(made: Made) -> None:
    found = flair(path=str(made.path), metadata=str(made.metadata), max_images=3)
    whole = flair(path=str(made.path), metadata=str(made.metadata))
    position = np.concatenate([np.arange(count) for count in made.counts])
    kept = (made.split != 0) | (position < 3)
    np.testing.assert_array_equal(found.y, whole.y[kept])
    np.testing.assert_array_equal(found.x[:], made.images[kept])
    assert found.client_names == whole.client_names


def test_an_image_without_labels_and_an_unknown_label(made: Made, tmp_path: Path) -> None:
    path = Path(shutil.copy(made.path, tmp_path / "fl_data.hdf5"))
    user = made.users[0]
    with h5py.File(path, "a") as file:
        texts = file[f"train/{user}/labels"]
        texts[0] = b""
    found = flair(path=str(path), order="alphabetical")
    assert found.y[0].sum() == 0
    with h5py.File(path, "a") as file:
        file[f"train/{user}/labels"][0] = b"plnt"
    refused(rf"fl_data.hdf5: user {user} has the label 'plnt'.*did you mean 'plant'", path=path, order="alphabetical")


# --- Images that stay in their file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        0, -1, np.int32(17), slice(3, 40, 5), np.array([], int), np.array([5, 5, 0, 3]), np.arange(40)[::-1],
        np.array([[7, 7, 0], [120, 3, 0]], np.int32), np.arange(170) % 3 == 0, np.ones(170, bool),
    ],
    ids=lambda rows: f"{type(rows).__name__}{np.shape(rows)}",
)  # fmt: skip
def test_lazy_images_index_like_an_array(rows: Any, made: Made) -> None:
    x = flair(path=str(made.path), order="alphabetical").x
    assert (x.shape, x.dtype, x.ndim, x.nbytes, len(x)) == (
        made.images.shape, made.images.dtype, 4, made.images.nbytes, len(made.images),
    )  # fmt: skip
    if np.shape(rows) == (170,):
        rows = np.resize(rows, len(x))
    for images, arrays in ((x, made.images), (x.subset(np.arange(len(x))[::-1]), made.images[::-1])):
        found = images[rows]
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, arrays[rows])
    with pytest.raises(IndexError):
        x[len(x)]
    with pytest.raises(TypeError, match="is streamed"):
        np.asarray(x)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """(data set, rows) of every read."""
    found: list[tuple[str, list[int]]] = []
    read = H5Images._read

    def spy(self: H5Images, file: Any, name: str, rows: np.ndarray) -> np.ndarray:
        found.append((name, rows.tolist()))
        return read(self, file, name, rows)

    monkeypatch.setattr(H5Images, "_read", spy)
    return found


def test_rows_are_read_once_in_the_order_of_the_file(made: Made, reads: list) -> None:
    x = flair(path=str(made.path), order="alphabetical").x
    assert not reads
    last = len(x) - 1
    x[np.array([[last, 2, 2, 2], [1, last, 4, 0]])]
    with h5py.File(made.path) as file:
        first, *_, end = [f"{part}/{user}/images" for part in USERS for user in sorted(file[part])]
    assert made.counts[0] == 1
    assert [name for name, _ in reads] == [first, reads[1][0], end]
    assert reads[1][1] == [0, 1, 3]  # of the second user: rows 1, 2 and 4 of the pool


def test_the_fingerprint_reads_no_image_and_follows_labels_users_and_rows(made: Made, reads: list) -> None:
    section = base.get_config().split
    whole = flair(path=str(made.path), order="alphabetical")
    f = data.federate(whole, section, 0)
    y = f.y.copy()
    y[3, 0] ^= 1

    def swapped(i: int, j: int) -> np.ndarray:
        rows = np.arange(len(f.x))
        rows[[i, j]] = j, i
        return rows

    others = [
        f,
        f._replace(y=y),
        f._replace(train=(f.train[0][::-1], f.train[1][::-1], *f.train[2:])),
        f._replace(test=f.validation),
        f._replace(x=f.x.subset(swapped(1, 2))),  # two images of one user
        f._replace(x=f.x.subset(swapped(1, 7))),  # the first images of two users
        data.federate(flair(path=str(made.path), order="alphabetical", max_images=3), section, 0),
        data.federate(flair(path=str(made.path), metadata=str(made.metadata)), section, 0),
    ]
    assert len({data.fingerprint(other) for other in others}) == len(others)
    assert data.fingerprint(f) == data.fingerprint(data.federate(whole, section, 0))
    assert not reads


def test_training_users_are_the_clients_and_all_are_tested_on_the_same_images(made: Made, reads: list) -> None:
    whole = flair(path=str(made.path), order="alphabetical")
    section = base.get_config().split
    for how in ("auto", "global"):
        section.how = how
        f = data.federate(whole, section, 0)
        assert f.client_names == tuple(made.users[: USERS["train"]])
        assert [len(rows) for rows in f.train] == made.counts[: USERS["train"]].tolist()
        for given, split in ((f.validation, 1), (f.test, 2)):
            assert all(rows is given[0] for rows in given)
            np.testing.assert_array_equal(given[0], np.flatnonzero(made.split == split))
    section.update(max_clients=5, max_examples=120)
    assert not reads
    f = data.federate(whole, section, 0)
    assert not reads
    assert len(f.train) == 5
    assert len(f.x) == len(f.y) == sum(map(len, f.train)) + len(f.validation[0]) + len(f.test[0])
    held = {image.tobytes(): i for i, image in enumerate(made.images)}
    rows = [held[image.tobytes()] for image in f.x[:]]
    np.testing.assert_array_equal(f.y, whole.y[rows])
    for k, name in enumerate(f.client_names):
        owner = np.repeat(made.users, made.counts)[np.array(rows)[f.train[k]]]
        assert set(owner) == {name}


# --- Cohorts --------------------------------------------------------------------------------------------------------


def pools(made: Made) -> tuple[data.Federation, cohort.Rows, cohort.Rows]:
    """The federation, and its training rows streamed and in memory."""
    f = data.federate(flair(path=str(made.path), order="alphabetical"), base.get_config().split, 0)
    streamed, resident = cohort.Pool(f.x, f.y), cohort.Pool(f.x[:], f.y)
    assert not streamed.resident
    assert resident.resident
    return f, cohort.Rows(streamed, f.train), cohort.Rows(resident, f.train)


def test_a_cohort_is_padded_to_its_own_largest_client(made: Made, reads: list) -> None:
    f, streamed, resident = pools(made)
    sizes = [len(rows) for rows in f.train]
    reads.clear()
    assert max(sizes) == 12
    for most, padded in ((1, 1), (3, 4), (4, 4), (5, 8), (9, 12)):
        ids = np.array([*[k for k, size in enumerate(sizes) if size <= most][-3:], len(sizes)], np.int32)
        ids[0] = sizes.index(most)
        one, two = streamed(ids), resident(ids)
        assert one.x.shape == (4, padded, *PIXELS)
        assert two.x.shape == (4, 12, *PIXELS)
        # Each row of the cohort once, and at most one that fills up.
        assert sum(len(rows) for _, rows in reads) <= sum(sizes[k] for k in set(ids[:3].tolist())) + 1
        reads.clear()
        for k, count in enumerate(np.asarray(two.count)):
            np.testing.assert_array_equal(one.x[k, :count], two.x[k, :count])
            np.testing.assert_array_equal(one.y[k, :count], two.y[k, :count])


@pytest.mark.parametrize("size", [1, 4, 7, 1000])
def test_parts_of_clients(size: int, made: Made) -> None:
    """As many as asked for, of clients whose turn is at different rows; each knows its id, its noise and its count."""
    f, streamed, _ = pools(made)
    tests = cohort.Rows(streamed.pool, f.test, f.noise + np.float32(0.5))
    assert tests.shared
    assert not streamed.shared
    count = len(f.test[3])
    starts = np.arange(0, count, size, np.int32)
    ids = np.append(np.full(len(starts), 3, np.int32), tests.n)
    parts = tests(ids, starts=np.append(starts, 0), most=size)
    assert parts.x.shape == (len(ids), min(size, count), *PIXELS)
    assert parts.y.shape == (len(ids), min(size, count), len(COARSE))
    np.testing.assert_array_equal(parts.id, ids)
    np.testing.assert_array_equal(parts.noise[:-1], 0.5)
    np.testing.assert_array_equal(parts.count, [*np.minimum(count - starts, size), 0])
    x, y = (np.concatenate([np.asarray(some)[:rows] for some, rows in zip(a, parts.count, strict=True)])
            for a in (parts.x, parts.y))  # fmt: skip
    np.testing.assert_array_equal(x, made.images[made.split == 2])
    np.testing.assert_array_equal(y, tests.targets(3))


def test_forty_thousand_clients_are_drawn_by_size() -> None:
    sizes = 1 + np.random.RandomState(0).zipf(1.9, 41_131).clip(max=4150)
    sampler = cohort.Sampler(sizes, sampling="by_size", size=50)
    drawn = np.concatenate([sampler(round)[0] for round in range(40)])
    assert sizes[drawn].mean() > 3 * sizes.mean()


# --- A run ----------------------------------------------------------------------------------------------------------


def tiny(source: str, path: Path, **changes: Any):
    config = base.get_config()
    config.data.source = source
    config.data[source].path = str(path)
    config.rounds = 2
    config.model.mlp.hidden = (3,)
    config.client.update(epochs=2, batch_size=4, lr=0.02)
    config.cohort.update(sampling="uniform", size=4)
    config.eval.tuned = "never"
    config.checkpoint.every = 1
    config.plots = config.tensorboard = False
    config.update_from_flattened_dict(changes)
    return config.lock()


def test_a_streamed_run_equals_one_in_memory(made: Made, tmp_path: Path, monkeypatch, reads: list) -> None:
    names = made.appearance("labels")
    np.savez(
        tmp_path / "mine.npz", x=made.images, y=made.targets("labels", names).astype(np.uint8), split=made.split,
        client=np.repeat(made.users, made.counts), class_names=names,
    )  # fmt: skip
    shapes: list[int] = []
    compiled = rounds.Compiled.__call__

    def spy(self, state, some, key):
        shapes.append(some.data.x.shape[1])
        run = compiled(self, state, some, key)
        assert {shape[1] for shape in self._by_shape} == set(shapes)
        return run

    monkeypatch.setattr(rounds.Compiled, "__call__", spy)
    states = {}
    for source, path in (("npz", tmp_path / "mine.npz"), ("flair", made.path)):
        changes = {"data.flair.metadata": str(made.metadata), "rounds": 3, "cohort.size": 2, "seed": 1}
        config = tiny(source, path, **changes)
        shapes.clear()
        summary = train.run(config, tmp_path / source, quiet=True)
        assert summary is not None
        assert set(shapes) == ({12} if source == "npz" else {8, 12})
        setup = experiment.prepare(config)
        saved = checkpoint.Checkpoints(tmp_path / source / "checkpoints")
        states[source] = saved.restore(config.rounds, setup.init())[0]
        saved.close()
        lines = [json.loads(line) for line in (tmp_path / source / "metrics.jsonl").read_text().splitlines()]
        states[f"{source} metrics"] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    jax.tree.map(np.testing.assert_array_equal, states["npz"], states["flair"])
    assert states["npz metrics"] == states["flair metrics"]
    assert "test/global/c_ap" in states["flair metrics"][0]
    assert max(len(rows) for _, rows in reads) <= made.counts.max()


def test_training_reads_no_more_than_its_cohorts(made: Made, tmp_path: Path, monkeypatch, reads: list) -> None:
    config = tiny("flair", made.path, **{"data.flair.order": "alphabetical", "rounds": 4})
    monkeypatch.setattr(protocol, "evaluation", lambda *args, **kwargs: {})
    setup = experiment.prepare(config)
    reads.clear()
    assert train.run(config, tmp_path / "run", stop_at=3, quiet=True) is None
    rows = [(name, row) for name, some in reads for row in some]
    cohorts = [setup.sampler(round)[0] for round in range(3)]
    # Every example of the three cohorts, a row that fills up for each, and the two examples that show the shape.
    assert len(rows) <= sum(int(setup.rows.counts[ids].sum()) + 1 for ids in cohorts) + 2
    assert {name.split("/")[0] for name, _ in rows} == {"train"}


# --- Mistakes -------------------------------------------------------------------------------------------------------


def test_options_that_do_not_fit(made: Made, tmp_path: Path) -> None:
    path = str(made.path)
    refused("config.data.flair.path: not set")
    refused("config.data.flair.path: .* is a folder", path=tmp_path)
    refused(r"config.data.flair.labels: unknown name 'fines' \(did you mean 'fine'", path=path, labels="fines")
    refused("config.data.flair.order: unknown name 'alphabet'", path=path, order="alphabet")
    refused("config.data.flair.max_images: -1", path=path, max_images=-1)
    refused("config.data.flair.order: 'appearance' needs .*labels_and_metadata.json .*=label_mapping.json", path=path)
    refused("mapping=fine_grained_label_mapping.json", path=path, labels="fine")
    refused("config.data.flair.metadata: no such file", path=path, metadata=str(tmp_path / "no.json"))
    refused(
        "config.data.flair.metadata: given, but order = 'alphabetical'",
        path=path, metadata=str(made.metadata), order="alphabetical",
    )  # fmt: skip
    refused("config.data.flair.mapping: given besides", path=path, metadata=str(made.metadata), mapping=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1', "is not a whole JSON file"),
        ("[1, 2]", "expected name: one-hot list"),
        ('{"structure": 0, "plant": 2}', r"the labels' numbers are not 0 \.\.\. 1"),
        ('{"structure": [1, 0], "plant": [1, 1]}', "the labels' numbers are not 0"),
        ('{"animal": 0, "food": 1, "plant": 2}', "alphabetical order .*take config.data.flair.order='alphabetical'"),
        ('{"plant": 0, "food": 1, "animal": 2}', "has the label '.*', which is none of the 3"),
    ],
)
def test_mappings_that_are_none(content: str, message: str, made: Made, tmp_path: Path) -> None:
    (tmp_path / "mapping.json").write_text(content)
    refused(message, path=str(made.path), mapping=str(tmp_path / "mapping.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not a whole JSON file"),
        ('{"a": 1}', "found one dict, expected a list of records with 'labels'"),
        ('[{"labels": ["plant"]}, {"user_id": "u"}]', "record 1 has no list 'labels'"),
    ],
)
def test_metadata_that_are_none(content: str, message: str, made: Made, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(content)
    refused(message, path=str(made.path), metadata=str(tmp_path / "metadata.json"))


def foreign(path: Path, user: dict[str, Any], group: str = "train/u1") -> None:
    with h5py.File(path, "w") as file:
        for name, value in user.items():
            file[f"{group}/{name}"] = value


IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
TEXTS = np.array([b"a|b", b"c"])
WHOLE = dict(images=IMAGES, labels=TEXTS, fine_grained_labels=TEXTS)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "is not a whole HDF5 file"),
        (lambda path: path.write_text("no HDF5"), "is not a whole HDF5 file"),
        (lambda path: h5py.File(path, "w").close(), "holds nothing, but no group 'train'"),
        (lambda path: foreign(path, WHOLE, "users/u1"), "holds users, but no group 'train'"),
        (lambda path: foreign(path, {"u1": TEXTS}, "train"), "/train/u1 has no data set 'fine_grained_labels'"),
        (
            lambda path: foreign(path, dict(images=IMAGES, labels_row=[0], labels_col=[0])),
            "is apple/pfl-research's file .*labels_row",
        ),
        (lambda path: foreign(path, dict(image=IMAGES[0], labels=b"a", user_id=b"u")), "is the central file"),
        (lambda path: foreign(path, dict(images=IMAGES, labels=TEXTS)), "u1 has no data set 'fine_grained_labels'"),
        (lambda path: foreign(path, WHOLE), "no data set '/metadata/label_counter'"),
    ],
)
def test_files_that_are_another_or_none(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write(tmp_path / "fl_data.hdf5")
    refused(message, path=str(tmp_path / "fl_data.hdf5"), order="alphabetical")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=IMAGES.astype(np.float32)), "user u1 has images of shape .* and type float32"),
        (dict(images=IMAGES[0]), r"user u1 has images of shape \(4, 4, 3\)"),
        (dict(labels=TEXTS[:1]), "user u1 has 1 labels for 2 images"),
        (dict(labels=np.array([1, 2])), "/train/u1/labels has type int64"),
        (dict(labels=TEXTS[None]), r"/train/u1/labels has type \|S3 and shape \(1, 2\)"),
    ],
)
def test_users_that_are_odd(change: dict, message: str, tmp_path: Path) -> None:
    foreign(tmp_path / "fl_data.hdf5", {**WHOLE, **change})
    with h5py.File(tmp_path / "fl_data.hdf5", "a") as file:
        file["metadata/label_counter"] = '{"a": 1, "b": 1, "c": 1}'
    refused(message, path=str(tmp_path / "fl_data.hdf5"), order="alphabetical")
    with h5py.File(tmp_path / "fl_data.hdf5", "a") as file:
        del file["train/u1"]
        for name, value in WHOLE.items():
            file[f"train/u1/{name}"] = value
            file[f"train/u2/{name}"] = value if name != "images" else IMAGES[:, :2]
    path = str(tmp_path / "fl_data.hdf5")
    refused("user u2 has images of shape .* the users before have", path=path, order="alphabetical")
    for other in ("labels/a", "other"):  # a group in its place, nothing in its place
        with h5py.File(path, "a") as file:
            del file["train/u2/labels"]
            file[f"train/u2/{other}"] = TEXTS
        refused("/train/u2 has no data sets 'images' and 'labels'", path=path, order="alphabetical")


def test_a_file_that_breaks_while_it_is_read(made: Made, tmp_path: Path) -> None:
    path = Path(shutil.copy(made.path, tmp_path / "fl_data.hdf5"))
    x = flair(path=str(path), order="alphabetical").x
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused("fl_data.hdf5 is not a whole HDF5 file", path=str(path), order="alphabetical")
    with pytest.raises(UserError, match=r"fl_data\.hdf5 is not a whole HDF5 file"):
        x[0]
    path.unlink()
    with pytest.raises(UserError, match=r"fl_data\.hdf5: no such file"):
        x[np.arange(3)]


def launch(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "launch.py", "--config=configs/base.py", "--config.data.source=flair", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_partition_shows_the_users_and_a_mistake_is_status_2(made: Made, tmp_path: Path) -> None:
    flags = ("--mode=partition", f"--workdir={tmp_path}", f"--config.data.flair.path={made.path}")
    done = launch(*flags, f"--config.data.flair.metadata={made.metadata}")
    assert done.returncode == 0, done.stderr
    assert "flair-coarse: 30 clients" in done.stdout
    assert "every client is tested on the same" in done.stdout
    assert (tmp_path / "plots" / "partition.png").stat().st_size > 10_000
    done = launch(*flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: config.data.flair.order: 'appearance' needs")
    assert done.stderr.count("\n") == 1
