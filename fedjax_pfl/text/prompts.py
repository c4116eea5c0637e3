"""From the names of labels to the texts that the encoder reads (FedLGT's three constructions)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_pfl.data.files import locate
from fedjax_pfl.errors import UserError, nearest

CONSTRUCTIONS = ("plain", "concat", "avg")
LONGEST = 20  # finer labels that `concat` takes


def prompts(section: Any, class_names: Sequence[str]) -> list[list[str]]:
    """The texts of each class, in its order: one text, except for `avg`.

    plain: the prompt with the class's name. concat: the prompt with the names of the 20 commonest finer labels of the
    class, joined by commas. avg: one text for each finer label, the prompt without its full stop (their features are to
    be averaged).

    Raises:
        UserError: an option that isn't one, a file of finer labels or of counts that can't be read, a class without any.
    """
    if section.construction not in CONSTRUCTIONS:
        raise UserError(
            f"config.text.construction: unknown name '{section.construction}'"
            f"{nearest(section.construction, CONSTRUCTIONS)}"
        )
    if "{name}" not in section.prompt:
        raise UserError(f"config.text.prompt: found '{section.prompt}', expected a text with {{name}} in it")
    if section.construction == "plain":
        return [[_fill(section, section.prompt, [name])] for name in class_names]
    finer = _finer(section)
    for name in class_names:
        if not finer.get(name):
            raise UserError(
                f"config.text.subclasses: {section.subclasses} has no finer labels of '{name}'{nearest(name, finer)}"
            )
    if section.construction == "concat":
        return [[_fill(section, section.prompt, finer[name][:LONGEST])] for name in class_names]
    bare = section.prompt.removesuffix(".")
    return [[_fill(section, bare, [fine]) for fine in finer[name]] for name in class_names]


def _fill(section: Any, prompt: str, names: Sequence[str]) -> str:
    words = [name.replace("_", " ") if section.spaces else name for name in names]
    if section.capitalise:
        words = [word[:1].upper() + word[1:] for word in words]
    return prompt.replace("{name}", ",".join(words))


def _finer(section: Any) -> dict[str, list[str]]:
    """The finer labels of each class; sorted by (count, name), both descending, where counts are given."""
    path = locate(section.subclasses, "config.text.subclasses")
    finer = _read_json_map(path) if path.suffix == ".json" else _read_relationship(path)
    if section.counts:
        counts = _counts(locate(section.counts, "config.text.counts"))
        return {name: sorted(fine, key=lambda f: (counts.get(f, 0), f), reverse=True) for name, fine in finer.items()}
    if section.construction == "concat" and path.suffix != ".json":
        raise UserError(f"config.text.counts: not set; which of the labels in {path} are the commonest is said there")
    return finer


def _read_relationship(path: Path) -> dict[str, list[str]]:
    """FLAIR's label_relationship.txt: a line `fine -> coarse` for each finer label."""
    finer: dict[str, list[str]] = {}
    for number, line in enumerate(_text(path, "config.text.subclasses").splitlines(), 1):
        fine, arrow, coarse = (part.strip() for part in line.partition("->"))
        if line.strip():
            if not (fine and arrow and coarse):
                raise UserError(f"config.text.subclasses: {path}, line {number}: '{line}', expected 'fine -> coarse'")
            finer.setdefault(coarse, []).append(fine)
    return finer


def _read_json_map(path: Path) -> dict[str, list[str]]:
    """FedLGT's label_map_for_text.json: class -> finer labels, the commonest first."""
    found = _json(_text(path, "config.text.subclasses"), path, "config.text.subclasses")
    lists = isinstance(found, dict) and all(isinstance(names, list) for names in found.values())
    if not lists or not all(isinstance(name, str) for names in found.values() for name in names):
        raise UserError(f"config.text.subclasses: {path} is not an object of class -> list of finer labels")
    return found


def _counts(path: Path) -> Mapping[str, int]:
    """How many images have each finer label, from FLAIR's federated HDF5 file or its labels_and_metadata.json."""
    field = "config.text.counts"
    if path.suffix in (".h5", ".hdf5"):
        found = _json(_counter(path), path, field)
        if not isinstance(found, dict) or not all(isinstance(count, int) for count in found.values()):
            raise UserError(f"{field}: {path}, metadata/fine_grained_label_counter is not an object of label -> count")
        return found
    records = _json(_text(path, field), path, field)
    try:
        return Counter(name for record in records for name in record["fine_grained_labels"])
    except (TypeError, KeyError):
        raise UserError(f"{field}: {path} is not a list of records with 'fine_grained_labels'") from None


def _counter(path: Path) -> str | bytes:
    try:
        import h5py
    except ImportError:
        raise UserError(f"config.text.counts: {path}: reading it needs h5py (pip install h5py)") from None
    try:
        with h5py.File(path, "r") as file:
            entry: Any = file["metadata/fine_grained_label_counter"]
            return entry[()]
    except (OSError, KeyError, TypeError):
        raise UserError(f"config.text.counts: {path} has no metadata/fine_grained_label_counter") from None


def _text(path: Path, field: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: {path} can't be read as text ({type(error).__name__})") from None


def _json(text: str | bytes, path: Path, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError) as error:
        raise UserError(f"{field}: {path}: not valid JSON ({error})") from None
