"""Folders of pictures by domain and class: DomainNet, MiniDomainNet, Office-Caltech10, Office-31, PACS (METHODS 10.6, 10.7).

DomainNet: Peng et al., ICCV 2019, arXiv 1812.01754. Office-31: Saenko et al., ECCV 2010. Office-Caltech10: Gong et al., CVPR
2012. PACS: Li et al., ICCV 2017, arXiv 1710.03077. Each domain is a natural client.

    <domain>/<class>/<picture>, or Office-31's <domain>/images/<class>/<picture>
    splits/<domain>_{train,test}.txt        lists of KD3A; MiniDomainNet has `splits_mini`, DomainNet's own site has them
                                            beside the domains; each line is `<domain>/<class>/<picture> <label>`
    <domain>_{train,crossval}_kfold.txt     PACS, below `kfold`; its crossval lists are the test rows here, for its test
                                            lists name all of a domain
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_pfl.data import images
from fedjax_pfl.data.files import locate
from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError, nearest

LIST = re.compile(r"(.+)_(train|test)\.txt|(.+)_(train|crossval)_kfold\.txt")
PARTS = {"train": TRAIN, "test": TEST, "crossval": TEST}
SPLITS = ("splits", "splits_mini")
BELOW = ("", "images", "kfold", "images/kfold")  # where the pictures that a list names may begin
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp")
FIELD = "config.data.domains"


class Row(NamedTuple):
    """One picture."""

    domain: str
    word: str
    """Its class."""
    name: str
    """Its file, below the root."""
    split: int


def domains(
    *,
    path: str = "",
    domains: Sequence[str] = (),
    classes: Sequence[str] = (),
    lists: str = "auto",
    size: int = 224,
    test_share: float = 0.2,
    max_examples: int = 0,
    seed: int = 0,
    cache: bool = True,
) -> Dataset:
    """Pictures of several domains, uint8 [n, size, size, 3], split as lists say, else class by class within each domain.

    Pictures are resized bicubically and don't keep their aspect ratio. All of DomainNet at 224 pixels is 88 GB: it is
    decoded once into the user's cache folder and mapped from there.

    Args:
        path: the folder of the domains.
        domains: which of them; () = all that are found.
        classes: names of the classes to keep, in this order; () = all, in the order of the lists' labels or of the alphabet.
        lists: 'auto' (in `splits`, else in `splits_mini`, else beside the domains, else none), 'none', or a folder's name.
        size: pixels to resize to.
        test_share: without lists, the share of each class that is for testing, rounded (KD3A: 0.2).
        max_examples: of a domain's training and of its test pictures, so many of each at most; 0 = all.
        seed: draws the test pictures where there are no lists, and those of `max_examples`.
        cache: keep the decoded pictures in the user's cache folder; without, all must fit in memory.

    Raises:
        UserError: an option out of range; no domains, or not the chosen ones; classes that differ between domains; a list
            with a line that is none, a label of two classes, pictures in both lists or missing; damaged pictures.
    """
    _check(size, test_share, max_examples, seed)
    root = locate(path, f"{FIELD}.path")
    if not root.is_dir():
        raise UserError(f"{FIELD}.path: {root} is a file, expected the folder of the domains")
    folder = _lists(root, lists)
    rows, words = _listed(root, folder, domains) if folder else _found(root, domains, test_share, seed)
    for word in classes:
        if word not in words:
            raise UserError(f"{FIELD}.classes: '{word}' is none of the {len(words)} classes{nearest(word, words)}")
    if len(set(classes)) < len(classes):
        raise UserError(f"{FIELD}.classes: one stands twice in {', '.join(classes)}")
    words = tuple(classes) or words
    _agree(rows, words)
    number = {word: i for i, word in enumerate(words)}
    rows = [row for row in rows if row.word in number]
    if max_examples:
        rows = _some(rows, max_examples, seed)

    clients = sorted({row.domain for row in rows})
    names = [row.name for row in rows]
    try:
        stamps = [images.stamp(root / name) for name in names]
    except OSError as error:
        raise UserError(f"{error.filename}: missing, though a list names it") from error
    holder = {client: i for i, client in enumerate(clients)}
    return Dataset(
        name="domains",
        x=images.load(
            "domains",
            names,
            lambda name: (root / name).read_bytes(),
            size,
            where=root,
            stamps=stamps if cache else None,
        ),
        y=np.array([number[row.word] for row in rows], np.int32),
        task="single",
        class_names=words,
        client=np.array([holder[row.domain] for row in rows], np.int32),
        client_names=tuple(clients),
        split=np.array([row.split for row in rows], np.int8),
    )


def _check(size: int, test_share: float, max_examples: int, seed: int) -> None:
    if size < 1:
        raise UserError(f"{FIELD}.size: {size}, expected at least 1 pixel")
    if not 0 < test_share < 1:
        raise UserError(f"{FIELD}.test_share: {test_share}, expected a share between 0 and 1")
    if max_examples < 0:
        raise UserError(f"{FIELD}.max_examples: {max_examples}, expected at least 1, or 0 for all")
    if not 0 <= seed < 2**32:
        raise UserError(f"{FIELD}.seed: {seed}, expected at least 0 and below 2**32")


def _chosen(found: Sequence[str], domains: Sequence[str], where: str) -> list[str]:
    for domain in domains:
        if domain not in found:
            raise UserError(f"{FIELD}.domains: no domain '{domain}' in {where}{nearest(domain, found)}")
    return sorted(set(domains)) or sorted(found)


def _agree(rows: Sequence[Row], words: Sequence[str]) -> None:
    """Every domain must have the same ones of these classes."""
    held: dict[str, set[str]] = {row.domain: set() for row in rows}
    chosen = set(words)
    for row in rows:
        if row.word in chosen:
            held[row.domain].add(row.word)
    sets = list(held.values())
    usual = max(sets, key=lambda found: (sets.count(found), len(found)))
    for domain, found in held.items():
        if odd := sorted(usual ^ found):
            what = f"no class '{odd[0]}'" if odd[0] in usual else f"a class '{odd[0]}' of its own"
            raise UserError(
                f"{FIELD}.path: domain '{domain}' has {what} ({len(found)} classes, other domains {len(usual)}); expected "
                f"the same classes everywhere: choose among them with {FIELD}.classes or {FIELD}.domains"
            )


def _some(rows: list[Row], number: int, seed: int) -> list[Row]:
    """At most so many rows of each domain and split, in their old order."""
    places: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault((row.domain, row.split), []).append(i)
    kept: list[int] = []
    for (domain, split), place in places.items():
        rng = np.random.RandomState([seed, 1, split, *domain.encode()])  # whatever domains stand beside it
        kept += rng.permutation(place)[:number].tolist()
    return [rows[i] for i in sorted(kept)]


# --- without lists ----------------------------------------------------------------------------------------------------


def _found(root: Path, domains: Sequence[str], share: float, seed: int) -> tuple[list[Row], tuple[str, ...]]:
    tree: dict[str, dict[str, list[str]]] = {}
    for domain in _folders(root):
        inner = domain / "images" if (domain / "images").is_dir() else domain
        held = {word.name: _pictures(word, root) for word in _folders(inner)}
        if any(held.values()):
            tree[domain.name] = held
    if not tree:
        raise UserError(
            f"{FIELD}.path: no <domain>/<class>/<picture> and no <domain>/images/<class>/<picture> in {root}"
        )
    rows = []
    for domain in _chosen(list(tree), domains, f"{root}"):
        for word, names in tree[domain].items():
            if not names:
                raise UserError(f"{root / domain}: no picture of class '{word}'")
            # The stream hangs on the class, not on the domains chosen beside this one.
            rng = np.random.RandomState([seed, 0, *domain.encode(), 0, *word.encode()])
            tested = set(rng.permutation(len(names))[: round(share * len(names))].tolist())
            rows += [Row(domain, word, name, TEST if i in tested else TRAIN) for i, name in enumerate(names)]
    return rows, tuple(sorted({row.word for row in rows}))


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path, root: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    inside = folder.relative_to(root).as_posix()
    return [f"{inside}/{name}" for name in sorted(names) if name.lower().endswith(PICTURES)]


# --- with lists -------------------------------------------------------------------------------------------------------


def _lists(root: Path, lists: str) -> Path | None:
    """The folder of the lists, or None where there are none."""
    if lists == "none":
        return None
    if lists != "auto":
        folder = locate(root / lists, f"{FIELD}.lists")
        if not folder.is_dir() or not any(LIST.fullmatch(file.name) for file in folder.iterdir()):
            raise UserError(f"{FIELD}.lists: no <domain>_train.txt in {folder}")
        return folder
    for folder in (*(root / name for name in SPLITS), root):
        if folder.is_dir() and any(LIST.fullmatch(file.name) for file in folder.iterdir()):
            return folder
    return None


def _listed(root: Path, folder: Path, domains: Sequence[str]) -> tuple[list[Row], tuple[str, ...]]:
    files: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        if match := LIST.fullmatch(file.name):
            files.setdefault(match[1] or match[3], {})[match[2] or match[4]] = file
    rows: list[Row] = []
    labels: dict[str, int] = {}
    of_label: dict[int, str] = {}
    for domain in _chosen(list(files), domains, f"{folder}"):
        parts = files[domain]
        if "train" not in parts or len(parts) < 2:
            raise UserError(
                f"{next(iter(parts.values()))}: of '{domain}' the only list, expected one for train and one for test"
            )
        seen: dict[str, Path] = {}
        for part, file in parts.items():
            lines = _lines(file)
            below = _below(root, lines[0][1], file)
            for number, name, label in lines:
                word = name.split("/")[-2]
                if labels.setdefault(word, label) != label or of_label.setdefault(label, word) != word:
                    other = f"label {labels[word]}" if labels[word] != label else f"class '{of_label[label]}'"
                    raise UserError(f"{file}: line {number}: class '{word}' with label {label}, elsewhere with {other}")
                if name in seen:
                    raise UserError(f"{file}: line {number}: {name} stands in {seen[name].name} too")
                seen[name] = file
                rows.append(Row(domain, word, f"{below}{name}", PARTS[part]))
    return rows, tuple(sorted(labels, key=labels.__getitem__))


def _lines(file: Path) -> list[tuple[int, str, int]]:
    """Number of the line, picture and label."""
    lines = []
    for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not re.fullmatch(r"\d{1,9}", label) or name.count("/") < 2:
            raise UserError(
                f"{file}: line {number}: '{line.strip()[:80]}', expected <domain>/<class>/<picture> <label>"
            )
        lines.append((number, name, int(label)))
    if not lines:
        raise UserError(f"{file}: names no picture")
    return lines


def _below(root: Path, name: str, file: Path) -> str:
    """What comes between the root and the pictures of a list."""
    for below in BELOW:
        if (root / below / name).is_file():
            return f"{below}/" if below else ""
    raise UserError(f"{root / name}: missing, though {file.name} names it")
