"""Partitions against the reference, and what each promises; splits within the clients."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from fedjax_pfl import registry
from fedjax_pfl.data import PARTITIONS, Dataset, Federation, describe, draw, federate, fingerprint
from fedjax_pfl.data.fcube import fcube
from fedjax_pfl.data.split import stratify
from fedjax_pfl.data.types import Pool
from fedjax_pfl.errors import UserError
from tests.reference import partitions as reference


def pool(n: int = 1200, classes: int = 10, seed: int = 3, writers: int = 0) -> Pool:
    """Labels that are not balanced, and writers with between 1 and 60 rows each, in storage order."""
    rng = np.random.RandomState(seed)
    y = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 5.0))).astype(np.int32)
    if not writers:
        return Pool(y, "single", classes)
    client = np.sort(np.concatenate([np.arange(writers), rng.randint(0, writers, n - writers)])).astype(np.int32)
    return Pool(y, "single", classes, client, tuple(f"w{i}" for i in range(writers)))


def dataset(n: int = 600, classes: int = 4, seed: int = 0, **more: object) -> Dataset:
    """Rows whose input is their own number, with classes of very different sizes."""
    rng = np.random.RandomState(seed)
    y = rng.choice(classes, n, p=2.0 ** -np.arange(classes) / (2.0 ** -np.arange(classes)).sum()).astype(np.int32)
    x = np.arange(n, dtype=np.float32)[:, None]
    return Dataset("made", x, y, "single", tuple("abcdefghij"[:classes]))._replace(**more)


def section(partition: str = "natural", how: str = "auto", **options: object) -> ConfigDict:
    """`config.split` with its defaults; further options are for the partition where it has them, else for the split."""
    config = ConfigDict({"validation": 0.1, "test": 0.2, "min_train": 1, "max_clients": 0, "max_examples": 0})
    config.partition, config.how = partition, how
    for name, function in PARTITIONS.items():
        config[name] = registry.options(function)
    for key, value in options.items():
        (config[partition] if key in config[partition] else config)[key] = value
    return config


def equal(parts, expected) -> bool:
    return len(parts.rows) == len(expected) and all(map(np.array_equal, parts.rows, expected))


def assert_disjoint(f: Federation, once: bool = True) -> None:
    """No client's splits share a row; with `once` no row is held by two clients either, and none is lost."""
    for splits in zip(f.train, f.validation, f.test, strict=True):
        rows = np.concatenate(splits)
        assert len(np.unique(rows)) == len(rows)
    if once:
        rows = np.concatenate([*f.train, *f.validation, *f.test])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(f.x)))


# --- The partitions equal the reference, draw by draw ---------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("n", [5, 10, 13])
def test_homogeneous_equals_the_reference(seed: int, n: int) -> None:
    p = pool()
    assert equal(PARTITIONS["homogeneous"](p, seed, clients=n), reference.homogeneous(p.y, n, seed))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n", "k"), [(10, 1), (10, 2), (13, 3), (12, 10), (10, 7)])
def test_label_quantity_equals_the_reference(seed: int, n: int, k: int) -> None:
    p = pool()
    parts = PARTITIONS["label_quantity"](p, seed, clients=n, k=k)
    assert equal(parts, reference.label_quantity(p.y, 10, n, k, seed))
    assert [len(np.unique(p.y[rows])) for rows in parts.rows] == [k] * n


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("n", "beta"), [(10, 0.5), (5, 0.1), (7, 5.0)])
def test_dirichlet_equals_the_reference(seed: int, n: int, beta: float) -> None:
    p = pool()
    parts = PARTITIONS["dirichlet"](p, seed, clients=n, beta=beta)
    assert equal(parts, reference.dirichlet(p.y, 10, n, beta, seed))
    assert min(map(len, parts.rows)) >= 10


def test_dirichlet_equals_the_reference_after_failed_attempts() -> None:
    # Hard enough that some seed needs a second attempt: the draws of the first are not rewound.
    p = pool(200)
    with pytest.raises(UserError, match="none of 1 draws"):
        PARTITIONS["dirichlet"](p, 0, clients=10, beta=0.1, retries=1)
    assert equal(PARTITIONS["dirichlet"](p, 0, clients=10, beta=0.1), reference.dirichlet(p.y, 10, 10, 0.1, 0))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quantity_equals_the_reference(seed: int) -> None:
    p = pool()
    parts = PARTITIONS["quantity"](p, seed, clients=8, beta=0.5)
    assert equal(parts, reference.quantity(p.y, 8, 0.5, seed))
    assert min(map(len, parts.rows)) >= 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_real_equals_the_reference(seed: int) -> None:
    p = pool(writers=40)
    parts = PARTITIONS["real"](p, seed, clients=7)
    assert equal(parts, reference.real(np.bincount(p.client).tolist(), 7, seed))
    assert all(not set(p.client[a]) & set(p.client[b]) for a, b in zip(parts.rows, parts.rows[1:], strict=False))


def test_noise_is_homogeneous_with_a_level_that_grows_to_the_last_client() -> None:
    p = pool()
    parts = PARTITIONS["noise"](p, 4, clients=5, level=0.2)
    assert equal(parts, reference.homogeneous(p.y, 5, 4))
    np.testing.assert_allclose(parts.noise, [0, 0.05, 0.1, 0.15, 0.2], rtol=1e-6)
    assert parts.noise.dtype == np.float32
    assert not PARTITIONS["homogeneous"](p, 4, clients=5).noise.any()


@pytest.mark.parametrize("seed", [0, 5])
def test_fcube_equals_the_reference_and_gives_each_client_two_octants(seed: int) -> None:
    data = fcube(seed=seed)
    x, y, x_test, y_test = reference.fcube(seed)
    np.testing.assert_array_equal(data.x, np.array(x + x_test, np.float32))
    np.testing.assert_array_equal(data.y, y + y_test)
    f = federate(data, section("fcube", validation=0.0), seed)
    assert equal(SimpleNamespace(rows=f.train), [range(1000 * i, 1000 * i + 1000) for i in range(4)])
    octants = [{tuple(np.sign(p)) for p in f.x[rows]} for rows in f.train]
    assert octants == [
        {(1, 1, 1), (-1, -1, -1)}, {(1, 1, -1), (-1, -1, 1)}, {(1, -1, 1), (-1, 1, -1)}, {(1, -1, -1), (-1, 1, 1)},
    ]  # fmt: skip
    assert all(np.bincount(f.y[rows]).tolist() == [500, 500] for rows in f.train)
    assert all(len(rows) == 1000 and rows[0] == 4000 for rows in f.test)


# --- What the others promise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_every_row_goes_to_one_client_and_the_seed_decides(name: str) -> None:
    p = pool(writers=30)
    if name == "label_cluster":  # of several labels: the row's class and the one before it
        p = p._replace(y=np.eye(10, dtype=np.uint8)[p.y] | np.eye(10, dtype=np.uint8)[p.y - 1], task="multi")
    rows = np.concatenate(PARTITIONS[name](p, 0).rows)
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(p.y)))
    np.testing.assert_array_equal(rows, np.concatenate(PARTITIONS[name](p, 0).rows))
    if name not in ("natural", "fcube"):
        assert not np.array_equal(rows, np.concatenate(PARTITIONS[name](p, 1).rows))


def test_natural_clients_keep_their_rows_and_names() -> None:
    p = Pool(np.zeros(7, np.int32), "single", 1, np.array([2, 0, 2, 0, 3, 2, 0], np.int32), ("a", "b", "c", "d"))
    parts = PARTITIONS["natural"](p, 0)
    assert parts.names == ("a", "c", "d")  # b has no rows
    assert equal(parts, [[1, 3, 6], [0, 2, 5], [4]])
    assert PARTITIONS["natural"](p, 0, min_examples=2).names == ("a", "c")


def test_shards_are_runs_of_one_label() -> None:
    y = np.repeat(np.arange(10), 60).astype(np.int32)
    np.random.RandomState(0).shuffle(y)
    two = PARTITIONS["shards"](Pool(y, "single", 10), 0, clients=30, shards=2)
    assert all(len(rows) == 20 and len(np.unique(y[rows])) <= 2 for rows in two.rows)
    one = PARTITIONS["shards"](Pool(y, "single", 10), 0, clients=10, shards=1)  # Zhao's 1-class non-IID
    assert sorted(tuple(np.unique(y[rows])) for rows in one.rows) == [(c,) for c in range(10)]


def test_hsu_gives_equal_sizes_and_less_skew_with_a_larger_alpha() -> None:
    p = pool()
    overall = np.bincount(p.y, minlength=10) / len(p.y)
    skew = []
    for alpha in (0.1, 10.0, 1000.0):
        parts = PARTITIONS["hsu"](p, 0, clients=7, alpha=alpha)
        assert {len(rows) for rows in parts.rows} == {171, 172}
        shares = [np.bincount(p.y[rows], minlength=10) / len(rows) for rows in parts.rows]
        skew.append(np.abs(np.array(shares) - overall).sum(1).mean())
    assert skew[0] > 1.8 * skew[1] > 4 * skew[2]
    assert skew[2] < 0.3  # no more than chance: at a large alpha every client follows the prior


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("homogeneous", {"clients": 0}, "expected at least 1"),
        ("homogeneous", {"clients": 1201}, "1201 clients, but there are only 1200 examples"),
        ("dirichlet", {"clients": 121}, "121 clients of at least 10 rows, but there are only 1200 examples"),
        ("dirichlet", {"beta": 0.0}, "config.split.dirichlet.beta: 0.0, expected a number > 0"),
        ("dirichlet", {"beta": float("nan")}, "expected a number > 0"),
        ("dirichlet", {"clients": 100, "beta": 1e-6, "retries": 3}, "none of 3 draws"),
        ("quantity", {"beta": -1.0}, "expected a number > 0"),
        ("quantity", {"clients": 100, "beta": 0.1, "retries": 3}, "none of 3 draws"),
        ("label_quantity", {"k": 11}, "11 classes for each client, but the data have 10"),
        ("label_quantity", {"k": 0}, "0 classes for each client"),
        ("label_quantity", {"clients": 3, "k": 1}, "no client of 3 drew the classes 3, 4, 5, 6, 7, 8, 9"),
        ("label_quantity", {"unheld": "keep"}, "expected 'error' or 'drop'"),
        ("noise", {"clients": 1}, "expected at least 2"),
        ("noise", {"level": -0.1}, "expected a standard deviation >= 0"),
        ("shards", {"clients": 700}, "there are only 1200 examples"),
        ("shards", {"shards": 0}, "config.split.shards.shards: 0"),
        ("hsu", {"alpha": 0}, "config.split.hsu.alpha: 0"),
        ("natural", {}, "'natural' needs natural clients"),
        ("real", {}, "'real' needs natural clients"),
    ],
)
def test_impossible_partitions_are_refused_in_one_line(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        PARTITIONS[name](pool(), 0, **options)
    assert "\n" not in str(error.value)


def test_more_refusals() -> None:
    with pytest.raises(UserError, match="41 groups out of 40 natural clients"):
        PARTITIONS["real"](pool(writers=40), 0, clients=41)
    with pytest.raises(UserError, match="leaves no client"):
        PARTITIONS["natural"](pool(writers=40), 0, min_examples=10_000)
    for name in ("label_quantity", "shards", "hsu"):
        with pytest.raises(UserError, match="the task is 'multi'"):
            PARTITIONS[name](Pool(np.ones((900, 3), np.uint8), "multi", 3), 0)


def test_classes_that_nobody_drew_can_be_dropped() -> None:
    p = pool()
    parts = PARTITIONS["label_quantity"](p, 0, clients=3, k=1, unheld="drop")
    np.testing.assert_array_equal(np.sort(np.concatenate(parts.rows)), np.flatnonzero(p.y < 3))


# --- Splits within the clients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_within_is_stratified_by_label(seed: int) -> None:
    data = dataset(classes=6, seed=seed)
    f = federate(data, section("dirichlet", "within", clients=4, beta=2.0), seed)
    assert_disjoint(f)
    for splits in zip(f.train, f.validation, f.test, strict=True):
        counts = np.array([np.bincount(f.y[rows], minlength=6) for rows in splits])  # [3, classes]
        shares = np.array([0.7, 0.1, 0.2])[:, None]
        assert np.abs(counts - shares * counts.sum(0)).max() < 2
        assert np.abs(counts.sum(1) - shares[:, 0] * counts.sum()).max() < 1


def test_many_classes_of_two_rows_still_fill_every_split() -> None:
    data = dataset(40, 4)._replace(
        y=np.repeat(np.arange(20), 2).astype(np.int32), class_names=tuple(map(str, range(20)))
    )
    f = federate(data, section("homogeneous", clients=1), 0)
    assert [len(f.train[0]), len(f.validation[0]), len(f.test[0])] == [28, 4, 8]


def test_small_clients_in_bulk_do_not_bias_the_classes_of_a_split() -> None:
    # 200 clients with 6 rows of each of two classes: one of 12 rows validates, now of this class, now of that.
    y = np.tile(np.repeat([0, 1], 6), 200).astype(np.int32)
    data = dataset(2400, 2)._replace(y=y, client=np.repeat(np.arange(200), 12).astype(np.int32))
    data = data._replace(client_names=tuple(map(str, range(200))))
    f = federate(data, section("natural"), 0)
    share = f.y[np.concatenate(f.validation)].mean()
    assert 0.35 < share < 0.65


def test_groups_are_never_cut() -> None:
    rng = np.random.RandomState(0)
    group = rng.randint(0, 150, 600).astype(np.int32)
    data = dataset(group=group, client=rng.randint(0, 3, 600).astype(np.int32), client_names=("a", "b", "c"))
    f = federate(data, section("natural"), 0)
    assert_disjoint(f)
    for splits in zip(f.train, f.validation, f.test, strict=True):
        groups = [set(group[f.x[rows, 0].astype(int)]) for rows in splits]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]
        sizes = np.array([len(rows) for rows in splits]) / sum(map(len, splits))
        np.testing.assert_allclose(sizes, [0.7, 0.1, 0.2], atol=0.05)


def test_multi_label_splits_keep_the_share_of_each_label() -> None:
    rng = np.random.RandomState(1)
    y = (rng.rand(800, 6) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]).astype(np.uint8)
    data = dataset(800)._replace(y=y, task="multi", class_names=tuple("abcdef"))
    f = federate(data, section("homogeneous", clients=1), 0)
    assert_disjoint(f)
    positives = y.sum(0)
    for rows, share in ((f.train[0], 0.7), (f.validation[0], 0.1), (f.test[0], 0.2)):
        assert np.abs(f.y[rows].sum(0) - share * positives).max() < 6
        assert abs(len(rows) - share * 800) < 16


def test_masks_are_split_by_the_classes_they_show() -> None:
    y = np.zeros((60, 4, 4), np.int32)
    y[:20, 0, 0] = 1  # every third image shows class 1
    data = Dataset("m", np.zeros((60, 4, 4, 1), np.uint8), y, "mask", ("ground", "lesion"))
    f = federate(data, section("homogeneous", clients=1), 0)
    assert [int(f.y[rows].any((1, 2)).sum()) for rows in (f.train[0], f.validation[0], f.test[0])] == [14, 2, 4]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_tiny_clients_always_train(n: int) -> None:
    for seed in range(5):
        data = dataset(n, 3, seed)
        rows = stratify(data, np.arange(n), 0.3, 0.5, 1, np.random.RandomState(seed))
        assert len(rows[0]) >= 1
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(n))


def test_min_train_is_kept_at_the_cost_of_the_others() -> None:
    train, validation, test = stratify(dataset(10), np.arange(10), 0.4, 0.4, 7, np.random.RandomState(0))
    assert len(train) == 7
    assert len(validation) + len(test) == 3


def given(n: int = 600, validation: bool = True) -> np.ndarray:
    rng = np.random.RandomState(9)
    return rng.choice([0, 1, 2] if validation else [0, 2], n).astype(np.int8)


def natural(n: int = 600) -> dict:
    return {"client": (np.arange(n) % 3).astype(np.int32), "client_names": ("a", "b", "c")}


def test_given_keeps_the_sources_split() -> None:
    data = dataset(split=given(), **natural())
    f = federate(data, section("natural"), 0)
    assert_disjoint(f)
    for k in range(3):
        for s, split in enumerate((f.train, f.validation, f.test)):
            np.testing.assert_array_equal(split[k], np.flatnonzero((data.client == k) & (data.split == s)))


def test_given_with_an_artificial_partition_hands_all_rows_out_and_keeps_the_split() -> None:
    data = dataset(split=given())
    f = federate(data, section("dirichlet", "given", clients=4), 7)
    assert_disjoint(f)
    for s, split in enumerate((f.train, f.validation, f.test)):
        np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.flatnonzero(data.split == s))
    for mine, expected in zip(
        zip(f.train, f.validation, f.test, strict=True), reference.dirichlet(data.y, 4, 4, 0.5, 7), strict=False
    ):
        assert sorted(np.concatenate(mine).tolist()) == sorted(expected)


def test_given_without_validation_cuts_it_from_the_training_rows() -> None:
    data = dataset(split=given(validation=False), **natural())
    f = federate(data, section("natural"), 0)
    assert_disjoint(f)
    for k in range(3):
        np.testing.assert_array_equal(np.sort(f.test[k]), np.flatnonzero((data.client == k) & (data.split == 2)))
        assert abs(len(f.validation[k]) - 0.1 * (len(f.train[k]) + len(f.validation[k]))) <= 1


def test_global_hands_out_the_training_rows_and_shares_the_test_rows() -> None:
    data = dataset(split=given(validation=False))
    f = federate(data, section("dirichlet", clients=4, validation=0.0), 7)
    train, test = np.flatnonzero(data.split == 0), np.flatnonzero(data.split == 2)
    expected = reference.dirichlet(data.y[train], 4, 4, 0.5, 7)  # NIID-Bench numbers the training rows
    assert all(np.array_equal(a, train[b]) for a, b in zip(f.train, expected, strict=True))
    assert all(rows is f.test[0] for rows in f.test)
    np.testing.assert_array_equal(f.test[0], test)
    assert not any(map(len, f.validation))
    assert_disjoint(f, once=False)

    f = federate(data, section("dirichlet", clients=4), 7)  # now a tenth of each client's rows validates
    assert_disjoint(f, once=False)
    for rows, validation, before in zip(f.train, f.validation, expected, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([rows, validation])), np.sort(train[before]))
        assert abs(len(validation) - 0.1 * len(before)) < 1


def test_global_shares_given_validation_rows_and_holds_out_a_test_set_where_there_is_none() -> None:
    data = dataset(split=given())
    f = federate(data, section("homogeneous", clients=4), 0)
    np.testing.assert_array_equal(f.validation[3], np.flatnonzero(data.split == 1))
    f = federate(dataset(), section("homogeneous", "global", clients=4), 0)
    assert len(f.test[0]) == 120
    assert all(rows is f.test[0] for rows in f.test)
    assert_disjoint(f, once=False)
    assert sum(map(len, f.train)) + sum(map(len, f.validation)) == 480


def test_within_ignores_the_given_split_and_given_needs_one() -> None:
    data = dataset(split=given(), **natural())
    f = federate(data, section("natural", "within"), 0)
    assert [len(rows) for rows in f.test] == [40, 40, 40]
    with pytest.raises(UserError, match="'given', but data set 'made' brings no split"):
        federate(dataset(**natural()), section("natural", "given"), 0)


def test_unused_rows_are_left_out() -> None:
    client = (np.arange(600) % 3 - 1).astype(np.int32)
    f = federate(dataset(client=client, client_names=("a", "b")), section("natural"), 0)
    np.testing.assert_array_equal(f.x[:, 0], np.flatnonzero(client >= 0))
    assert_disjoint(f)


def test_max_clients_and_max_examples() -> None:
    data = dataset(client=(np.arange(600) % 20).astype(np.int32), client_names=tuple(f"c{i}" for i in range(20)))
    f = federate(data, section("natural", max_clients=6), 0)
    assert len(f.train) == 6
    assert len(f.x) == 180
    assert_disjoint(f)
    assert list(f.client_names) == sorted(f.client_names, key=lambda name: int(name[1:]))
    assert f.client_names != federate(data, section("natural", max_clients=6), 1).client_names
    whole = dataset(classes=6)
    f = federate(whole, section("homogeneous", clients=2, max_examples=200), 0)
    assert len(f.x) == 200
    assert_disjoint(f)
    assert np.abs(np.bincount(f.y, minlength=6) - np.bincount(whole.y, minlength=6) / 3).max() <= 1
    assert len(federate(whole, section("homogeneous", clients=2, max_examples=10_000), 0).x) == 600
    rare = np.zeros(600, np.int32)
    rare[17] = 1
    f = federate(dataset(600, 2)._replace(y=rare), section("homogeneous", clients=2, max_examples=20), 0)
    assert np.bincount(f.y).tolist() == [19, 1]  # the only row of a class is kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "dirichet"}, r"config.split.partition: unknown name 'dirichet' \(did you mean 'dirichlet'"),
        ({"how": "globl"}, "did you mean 'global'"),
        ({"validation": -0.1}, "config.split.validation: -0.1"),
        ({"test": 1.0}, "config.split.test: 1.0"),
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"min_train": 0}, "config.split.min_train: 0"),
        ({"min_train": 500}, "client 'a' has 200 training rows"),
        ({"max_clients": -1}, "config.split.max_clients: -1"),
    ],
)
def test_impossible_splits_are_refused_in_one_line(options: dict, message: str) -> None:
    config = section("natural")
    config.update(options)
    with pytest.raises(UserError, match=message) as error:
        federate(dataset(**natural()), config, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="seed: -1"):
        federate(dataset(**natural()), section("natural"), -1)


# --- Table, picture, fingerprint ------------------------------------------------------------------------------------


def test_describe_counts_train_validation_and_test() -> None:
    data = dataset(split=given(), **natural())
    f = federate(data, section("natural"), 0)
    text = describe(f)
    for k, name in enumerate("abc"):
        line = next(line.split() for line in text.splitlines() if line.startswith(f"{name} "))
        assert list(map(int, line[1:4])) == [len(f.train[k]), len(f.validation[k]), len(f.test[k])]
        counts = [np.bincount(f.y[split[k]], minlength=4) for split in (f.train, f.validation, f.test)]
        assert line[4:] == ["/".join(str(c[label]) for c in counts) for label in range(4)]


def test_describe_stays_readable() -> None:
    big = dataset(6000, 10)
    text = describe(federate(big, section("homogeneous", clients=300), 0))
    assert len(text.splitlines()) < 80
    assert "200 clients between" not in text
    assert "250 clients between" in text
    assert max(map(len, text.splitlines())) <= 120
    data = big._replace(class_names=tuple(f"a very long class name {i}" for i in range(60)))
    text = describe(federate(data, section("homogeneous", clients=5), 0))
    assert "largest" in text
    assert max(map(len, text.splitlines())) <= 120
    shared = describe(federate(big._replace(split=given(6000, validation=False)), section("noise", clients=5), 0))
    assert "every client is tested on the same" in shared
    assert "0.100" in shared


@pytest.mark.parametrize("clients", [4, 250])
def test_draw_writes_a_picture(clients: int, tmp_path) -> None:
    draw(federate(dataset(6000, 10), section("homogeneous", clients=clients), 0), tmp_path / "clients.png")
    assert (tmp_path / "clients.png").read_bytes().startswith(b"\x89PNG")


def test_fingerprint_changes_with_rows_labels_inputs_and_noise() -> None:
    data = dataset(split=given(validation=False), **natural())
    f = federate(data, section("natural"), 0)
    assert fingerprint(f) == fingerprint(federate(data, section("natural"), 0))
    assert len(fingerprint(f)) == 16
    x, y = f.x.copy(), f.y.copy()
    x[5] += 1
    y[7] = (y[7] + 1) % 4
    others = [
        f._replace(x=x),
        f._replace(y=y),
        f._replace(train=(f.train[0][::-1], *f.train[1:])),
        f._replace(train=f.validation, validation=f.train),
        f._replace(noise=f.noise + np.float32(0.1)),
        f._replace(client_names=("a", "b", "d")),
    ]
    assert len({fingerprint(other) for other in [f, *others]}) == 7
