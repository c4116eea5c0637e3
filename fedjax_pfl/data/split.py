"""From one pool of rows to clients with a train, a validation and a test split each.

`config.split.how` says where the splits come from:
  given   the source's own split: a client's rows go where the source put them. What the source lacks (often the
          validation rows) is cut from each client's training rows, by the shares `validation` and `test`.
  within  all rows of a client are split anew by those shares, stratified by label.
  global  NIID-Bench's protocol: only the training rows are handed out, and every client is tested on one and the same
          test set; validation rows, where the source has none, are cut from each client's training rows.
  auto    'given' where the source has a split and the clients are natural ones (or groups of them), 'global' where it
          has a split and the clients are artificial, or other people than those it tests, 'within' where it has none.

Rows of one group (a lesion, a patient), where the source knows groups, are never cut by a split made here.
"""

from typing import Any

import numpy as np

from fedjax_pfl.data.partition import PARTITIONS
from fedjax_pfl.data.types import TEST, TRAIN, VALIDATION, Dataset, Federation, Parts, Pool, subset, take
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.registry import lookup

HOW = ("auto", "given", "within", "global")
NATURAL = ("natural", "real")


def federate(dataset: Dataset, section: Any, seed: int) -> Federation:
    """Hand the rows out to clients and split each client's.

    Args:
        dataset: the pool.
        section: `config.split`: the name `partition` with a sub-section of options for each partition, and `how`,
            `validation`, `test`, `min_train`, `max_clients`, `max_examples`.
        seed: of the partition and of the splits; 0 <= seed < 2**32.

    Raises:
        UserError: an option out of range, a partition that cannot be made, a client without training rows.
    """
    partition = lookup(PARTITIONS, section.partition, "config.split.partition")
    how = _resolve(dataset, section)
    _check(section, seed)

    if dataset.client is not None and (dataset.client < 0).any():
        dataset = take(dataset, dataset.client >= 0)
    if section.max_examples:
        dataset = take(dataset, _subsample(dataset, section.max_examples, _rng(seed, 0)))

    given = _given(dataset)
    if how == "within":
        given = (np.arange(len(dataset.x)), np.empty(0, np.int64), np.empty(0, np.int64))
    if how == "global" and not given[TEST].size:  # no test set in the source: hold one out of the whole pool
        kept, _, held_out = stratify(dataset, given[TRAIN], 0.0, section.test, 1, _rng(seed, 1))
        given = (kept, given[VALIDATION], held_out)
    handed_out = given[TRAIN] if how == "global" else np.sort(np.concatenate(given))

    parts = partition(_pool(dataset, handed_out), seed, **dict(section[section.partition]))
    parts = parts._replace(rows=tuple(handed_out[r] for r in parts.rows))
    if 0 < section.max_clients < len(parts.rows):
        parts = _some_clients(parts, section.max_clients, _rng(seed, 2))

    # The shares that are still to be cut from what would be a client's training rows.
    validation = 0.0 if given[VALIDATION].size else section.validation
    test = 0.0 if given[TEST].size else section.test
    role = np.full(len(dataset.x), TRAIN)
    role[given[VALIDATION]] = VALIDATION
    role[given[TEST]] = TEST
    splits = []
    for k, rows in enumerate(parts.rows):
        mine = rows[role[rows] == TRAIN]
        if len(mine) < section.min_train:
            raise UserError(
                f"split: client '{parts.names[k]}' has {len(mine)} training rows (of {len(rows)}), fewer than "
                f"config.split.min_train = {section.min_train}; lower it, or leave small clients out"
            )
        train, own_validation, own_test = mine, mine[:0], mine[:0]
        if validation or test:
            rng = _rng(seed, 3, k)
            train, own_validation, own_test = stratify(dataset, mine, validation, test, section.min_train, rng)
        if how == "global":
            splits.append((train, given[VALIDATION] if given[VALIDATION].size else own_validation, given[TEST]))
        else:
            held = rows[role[rows] == VALIDATION], rows[role[rows] == TEST]
            splits.append((train, np.concatenate([own_validation, held[0]]), np.concatenate([own_test, held[1]])))

    return _compact(dataset, parts, splits)


def stratify(
    dataset: Dataset, rows: np.ndarray, validation: float, test: float, min_train: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split rows into train, validation and test so that each label has its share of each, and no group is cut.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011): label by label, the rarest first, each group of rows,
    the largest first, goes to the split that lacks most rows of that label. What a split lacks or has too much of in
    all from the labels before is added, so that many labels with few rows still fill every split.

    Args:
        dataset: the pool.
        rows: [m] row numbers.
        validation, test: shares of the rows; the rest trains.
        min_train: at least so many rows train, at the cost of the other two.
        rng: breaks ties.

    Returns:
        Row numbers of train, validation and test, each in the order of `rows`.
    """
    if (not validation and not test) or not len(rows):
        return rows, rows[:0], rows[:0]
    labels = _label_matrix(dataset, rows)
    labels = labels[:, rng.permutation(labels.shape[1])]  # among equally rare labels no one is always the first
    groups = np.arange(len(rows)) if dataset.group is None else dataset.group[rows]
    _, unit, size = np.unique(groups, return_inverse=True, return_counts=True)
    counts = np.zeros((len(size), labels.shape[1]), np.int32)  # [units, L] rows of each label in each group
    np.add.at(counts, unit, labels)

    share = np.array([1 - validation - test, validation, test])
    need = np.outer(share, counts.sum(0))  # [3, L]
    missing = share * len(rows)  # [3]
    to_come = len(rows)
    place = np.full(len(size), -1)
    waiting = np.ones(len(size), bool)
    while waiting.any():
        present = counts[waiting].sum(0)
        label = int(np.argmin(np.where(present > 0, present, np.iinfo(np.int64).max)))
        queue = np.flatnonzero(waiting & (counts[:, label] > 0))
        queue = queue[rng.permutation(len(queue))]
        queue = queue[np.argsort(-counts[queue, label], kind="stable")]
        debt = missing - share * to_come  # [3] rows that the labels so far should have given and did not
        for u in queue:
            place[u] = np.argmax(need[:, label] + debt)
            need[place[u]] -= counts[u]
            missing[place[u]] -= size[u]
        to_come -= size[queue].sum()
        waiting[queue] = False

    trained = size[place == TRAIN].sum()
    for u in rng.permutation(np.flatnonzero(place != TRAIN)):
        if trained >= min_train:
            break
        place[u] = TRAIN
        trained += size[u]
    where = place[unit]
    return rows[where == TRAIN], rows[where == VALIDATION], rows[where == TEST]


def _label_matrix(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """[m, L] int32 of 0 and 1, at least one label for each row."""
    y, classes = dataset.y[rows], len(dataset.class_names)
    if dataset.task == "single":
        return (y[:, None] == np.arange(classes)).astype(np.int32)
    if dataset.task == "mask":
        y = np.stack([(y == c).any((1, 2)) for c in range(classes)], 1)
    return np.concatenate([y, ~y.any(1, keepdims=True)], 1).astype(np.int32)


def _subsample(dataset: Dataset, size: int, rng: np.random.RandomState) -> np.ndarray:
    """`size` rows in their old order: each (client, split, label) keeps its share, and a row where that can be."""
    if size >= len(dataset.x):
        return np.arange(len(dataset.x))
    columns = [c for c in (dataset.client, dataset.split) if c is not None]
    if dataset.task == "single":
        columns.append(dataset.y)
    stratum = np.zeros(len(dataset.x), np.int64)
    if columns:
        _, stratum = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
    counts = np.bincount(stratum)
    share = counts * (size / len(dataset.x))
    keep = np.floor(share).astype(int)
    # The rows lost to rounding down go to empty strata first, then to the largest remainders.
    order = np.lexsort((rng.permutation(len(keep)), -(share - keep), keep > 0))
    keep[order[: size - keep.sum()]] += 1
    of_stratum = np.split(np.argsort(stratum, kind="stable"), np.cumsum(counts)[:-1])
    rows = [rng.permutation(mine)[:k] for mine, k in zip(of_stratum, keep, strict=True)]
    return np.sort(np.concatenate(rows))


def _given(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    split = np.full(len(dataset.x), TRAIN) if dataset.split is None else dataset.split
    return np.flatnonzero(split == TRAIN), np.flatnonzero(split == VALIDATION), np.flatnonzero(split == TEST)


def _pool(dataset: Dataset, rows: np.ndarray) -> Pool:
    client = None if dataset.client is None else dataset.client[rows]
    return Pool(dataset.y[rows], dataset.task, len(dataset.class_names), client, dataset.client_names)


def _some_clients(parts: Parts, number: int, rng: np.random.RandomState) -> Parts:
    chosen = np.sort(rng.permutation(len(parts.rows))[:number])
    return Parts(tuple(parts.rows[k] for k in chosen), tuple(parts.names[k] for k in chosen), parts.noise[chosen])


def _compact(dataset: Dataset, parts: Parts, splits: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Federation:
    """The federation, without the rows that nobody holds: they would only fill the device."""
    held = np.zeros(len(dataset.x), bool)
    different = {id(rows): rows for split in splits for rows in split}  # one test set may be everybody's
    for rows in different.values():
        held[rows] = True
    x, y = (dataset.x, dataset.y) if held.all() else (subset(dataset.x, held), dataset.y[held])
    number = np.cumsum(held) - 1
    renumbered = {key: number[rows] for key, rows in different.items()}
    train, validation, test = (tuple(renumbered[id(split[s])] for split in splits) for s in range(3))
    return Federation(
        dataset.name, dataset.task, dataset.class_names, parts.names, x, y, train, validation, test, parts.noise
    )


def _resolve(dataset: Dataset, section: Any) -> str:
    how = section.how
    if how not in HOW:
        raise UserError(f"config.split.how: unknown name '{how}'{nearest(how, HOW)}")
    if how == "auto":
        if dataset.split is None:
            return "within"
        return "given" if section.partition in NATURAL and not _strangers(dataset, section) else "global"
    if how == "given" and dataset.split is None:
        raise UserError(f"config.split.how: 'given', but data set '{dataset.name}' brings no split; choose 'within'")
    return how


def _strangers(dataset: Dataset, section: Any) -> bool:
    """Whether the source's validation and test rows all belong to clients that hold no training rows."""
    if section.partition != "natural" or dataset.client is None or dataset.split is None:
        return False
    tested = dataset.client[(dataset.split > TRAIN) & (dataset.client >= 0)]
    return tested.size > 0 and not np.isin(tested, dataset.client[dataset.split == TRAIN]).any()


def _check(section: Any, seed: int) -> None:
    for field in ("validation", "test"):
        if not 0 <= section[field] < 1:
            raise UserError(f"config.split.{field}: {section[field]}, expected a share of at least 0 and below 1")
    if section.validation + section.test >= 1:
        raise UserError(
            f"config.split.validation + test: {section.validation} + {section.test} leave nothing to train on"
        )
    if section.min_train < 1:
        raise UserError(f"config.split.min_train: {section.min_train}, expected at least 1")
    for field in ("max_clients", "max_examples"):
        if section[field] < 0:
            raise UserError(f"config.split.{field}: {section[field]}, expected at least 1, or 0 for all")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed}, expected at least 0 and below 2**32")


def _rng(seed: int, *purpose: int) -> np.random.RandomState:
    """A stream of its own for each purpose, the same in every version of NumPy."""
    return np.random.RandomState([seed, *purpose])
