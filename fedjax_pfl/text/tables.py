"""Tables of label embeddings: from a file, from the package, or from an encoder through a cache."""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedjax_pfl.data.files import Npz, cache_folder
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.text import encoders
from fedjax_pfl.text.prompts import prompts

STATES = ("negative", "positive")

# Made by this project from sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0; 384-d, mean pooling, normalised): 'The photo
# contains zero.' ... 'nine.', each under the word and the numeral, and the bare words 'negative' and 'positive'.
PACKAGE = Path(__file__).parent / "package.npz"


class Table(NamedTuple):
    """A frozen vector for each label and for each state that a label can be known to be in.

    Attributes:
        names: L names of labels, in the order that was asked for.
        embeddings: [L, d] float32; L2-normalised, unless the construction is `avg`.
        states: [2, d'] float32, L2-normalised: row 0 'negative', row 1 'positive'; None where the source has none.
            d' = d, unless config.text.states takes them from another source.
        source: where it all came from, for the log.
    """

    names: tuple[str, ...]
    embeddings: np.ndarray
    states: np.ndarray | None
    source: str


def label_table(section: Any, class_names: Sequence[str]) -> Table:
    """The embeddings of these classes, as `config.text` says (FedLGT, universal label embedding).

    Names of a file match whatever their case, spaces, underscores and hyphens; nothing else is guessed.

    Args:
        section: config.text.
        class_names: names of the data set's classes.

    Raises:
        UserError: a class without an embedding or with several, a file that is missing, damaged or not a table, options
            that don't fit together, an encoder that can't be had.
    """
    names = tuple(str(name) for name in class_names)
    source = _source(section)
    embeddings, words = source.labels(names)
    states, other = _states(section, source)
    return Table(names, embeddings, states, words + (f"; states: {other}" if other else ""))


def states_table(section: Any) -> np.ndarray:
    """The embeddings of the words 'negative' and 'positive', [2, d] float32, L2-normalised, as `config.text` says.

    Raises:
        UserError: the source has none, or what `label_table` raises.
    """
    states, _ = _states(section, _source(section))
    if states is None:
        raise UserError(
            f"config.text.states: {section.embeddings} has no states; give --config.text.states=FILE.npz with 'states' "
            "and 'states_names', or --config.text.states=package"
        )
    return states


def project(embeddings: np.ndarray, width: int, seed: int = 0) -> np.ndarray:
    """[..., d] mapped to [..., width] by a fixed linear map with orthonormal rows or columns, drawn by `seed`.

    For d < width norms and angles stay; for d > width it is an orthogonal projection, for d = width the identity. The
    map depends on d, width and seed alone, so labels and states of one source meet the same.
    """
    embeddings = np.asarray(embeddings)
    d = embeddings.shape[-1]
    if d == width:
        return embeddings
    normal = np.random.default_rng(seed).normal(size=(max(d, width), min(d, width)))
    q, r = np.linalg.qr(normal)
    q = q * np.sign(np.diag(r))  # the one decomposition with a positive diagonal: the same whatever the library
    return (embeddings @ (q.T if d < width else q)).astype(embeddings.dtype)


def save(path: Path, table: Table, section: Any) -> None:
    """Write a table as an .npz file that `config.text.embeddings` reads.

    Keys: names, embeddings, normalised (False: the rows are to be taken as they are), states and states_names where there
    are states, and in words source, encoder, kind, prompt, construction.
    """
    arrays: dict[str, Any] = {
        "names": np.array(table.names),
        "embeddings": table.embeddings,
        "normalised": np.array(_is_normalised(table.embeddings)),
        "source": np.array(table.source),
    }
    if not section.embeddings:  # else these options say nothing about the rows
        arrays |= {key: np.array(section[key]) for key in ("encoder", "kind", "prompt", "construction")}
    if table.states is not None:
        arrays |= {"states": table.states, "states_names": np.array(STATES)}
    _write(path, arrays)


def nearest_pairs(table: Table, count: int = 3) -> str:
    """The labels that lie nearest to each other, with their cosines: "cat - dog 0.91, ..."; a look at whether it is sane."""
    rows = _normalise(table.embeddings)
    cosines = np.triu(rows @ rows.T, 1) - 2 * np.tri(len(rows))
    best = [divmod(int(place), len(rows)) for place in np.argsort(-cosines, axis=None)[:count]]
    return ", ".join(f"{table.names[i]} - {table.names[j]} {cosines[i, j]:.2f}" for i, j in best if i < j)


class _Source(Protocol):
    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, str]: ...
    def states(self) -> np.ndarray | None: ...


def _source(section: Any) -> _Source:
    if not section.embeddings:
        return _Encoder(section)
    if section.embeddings == "package":
        return _File(PACKAGE, "", "config.text.embeddings")
    return _File(section.embeddings, section.key, "config.text.embeddings")


def _states(section: Any, source: _Source) -> tuple[np.ndarray | None, str]:
    """The two states or None, and where they come from if not from where the labels do."""
    if not section.states:
        return source.states(), ""
    file = _File(PACKAGE if section.states == "package" else section.states, "", "config.text.states")
    states = file.states()
    if states is None:
        raise UserError(
            f"config.text.states: {file.npz.path} has no key 'states'; expected 'states' and 'states_names'"
        )
    return states, file.npz.path.name


class _File:
    """Embeddings in an .npz file: `<key>` [L, d] and `<key>_names`; `states` [2, d] and `states_names`."""

    def __init__(self, path: str | Path, key: str, field: str) -> None:
        self.npz, self.key = Npz(path, field), key

    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, str]:
        key = self._table()
        where = f"{self.npz.path}: key '{key}'"
        stored = self._words(_names_key(self.npz, key))
        rows = _rows(self.npz[key], len(stored), where)
        picked = rows[_match(names, stored, rows, where)]
        zero = np.flatnonzero(~picked.any(1))
        if len(zero):
            raise UserError(f"{where}: the embedding of '{names[zero[0]]}' is all zeros")
        normalised = "normalised" not in self.npz or bool(self.npz["normalised"].all())
        return _normalise(picked) if normalised else picked, f"{self.npz.path.name} ({key})"

    def states(self) -> np.ndarray | None:
        if "states" not in self.npz:
            return None
        where = f"{self.npz.path}: key 'states'"
        stored = self._words("states_names")
        rows = _rows(self.npz["states"], len(stored), where)
        rows = rows[_match(STATES, stored, rows, where)]
        if not rows.any(1).all():
            raise UserError(f"{where}: a state's embedding is all zeros")
        return _normalise(rows)

    def _words(self, key: str) -> tuple[str, ...]:
        if key in self.npz and (names := self.npz[key]).dtype.kind == "S":
            return tuple(np.char.decode(names, "utf-8").tolist())
        return self.npz.words(key)

    def _table(self) -> str:
        """The key of the table: the one asked for, else `embeddings`, else the only one there is."""
        tables = [key for key in self.npz.keys if key != "states" and _names_key(self.npz, key)]
        if self.key:
            if self.key in tables:
                return self.key
            raise UserError(f"config.text.key: {self.npz.path} has no table '{self.key}'{nearest(self.key, tables)}")
        if "embeddings" in tables:
            return "embeddings"
        if len(tables) == 1:
            return tables[0]
        if not tables:
            raise UserError(f"config.text.embeddings: {self.npz.path} has no table; expected 'names' and 'embeddings'")
        raise UserError(f"config.text.key: not set, but {self.npz.path} has several tables: {', '.join(tables)}")


class _Encoder:
    """Embeddings computed by an encoder, which is loaded at the first text that isn't in the cache."""

    def __init__(self, section: Any) -> None:
        encoders.check_kind(section.kind)
        self.section, self.encode = section, None
        folder = encoders.local_folder(section.encoder)
        self.identity = [section.kind, section.encoder]
        if folder is not None:  # whose files may change
            files = sorted(file for file in folder.iterdir() if file.is_file())
            self.identity = [section.kind, str(folder.resolve())]
            self.identity += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]

    def labels(self, names: Sequence[str]) -> tuple[np.ndarray, str]:
        texts = prompts(self.section, names)
        features = iter(self.features([text for group in texts for text in group]))
        rows = np.stack([np.mean([next(features) for _ in group], axis=0) for group in texts])
        words = f"{self.section.encoder}, '{self.section.prompt}'"
        if self.section.construction == "avg":  # the one construction that isn't normalised
            return rows, f"{words}, avg"
        return _normalise(rows), words + (", concat" if self.section.construction == "concat" else "")

    def states(self) -> np.ndarray:
        return _normalise(self.features(STATES))

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32 as the encoder gives them: from the cache where it has these very texts."""
        key = hashlib.sha256(json.dumps([self.identity, list(texts)]).encode()).hexdigest()[:24]
        path = cache_folder().parent / "text" / f"{key}.npz"
        if path.exists():
            try:
                return _rows(Npz(path, "cache")["features"], len(texts), str(path))
            except UserError:
                print(f"warning: {path} is damaged; computing its label embeddings anew", file=sys.stderr)
        if self.encode is None:
            self.encode = encoders.load(self.section.encoder, self.section.kind)
        features = self.encode(texts)
        if not np.isfinite(features).all():
            raise UserError(f"config.text.encoder: {self.section.encoder} gives NaN or infinite features")
        with contextlib.suppress(OSError):  # a cache that can't be written (disk full, home read-only) is only slow
            _write(path, {"features": features})
        return features


def _names_key(npz: Npz, key: str) -> str:
    """The key of the names of table `key`, or ''.

    `voc12_single` may have `voc12_single_names` or, shared with its like, `voc12_names`; `embeddings` has `names`.
    """
    if key == "embeddings":
        return "names" if "names" in npz else ""
    if key == "names" or key.endswith("_names"):
        return ""
    words = key.split("_")
    options = ("_".join([*words[:n], "names"]) for n in range(len(words), 0, -1))
    return next((option for option in options if option in npz), "")


def _rows(values: np.ndarray, count: int, where: str) -> np.ndarray:
    """[count, d] float32, checked."""
    if values.dtype.kind != "f":
        raise UserError(f"{where}: values of type {values.dtype}, expected floats")
    if values.ndim != 2 or not values.size:
        raise UserError(f"{where}: shape {values.shape}, expected [labels, width]")
    if len(values) != count:
        raise UserError(f"{where}: {len(values)} rows, but {count} names")
    finite = np.isfinite(values).all(1)
    if not finite.all():
        raise UserError(f"{where}: NaN or infinite values in row {np.flatnonzero(~finite)[0]}")
    return values.astype(np.float32)


def _match(names: Sequence[str], stored: Sequence[str], rows: np.ndarray, where: str) -> list[int]:
    """The row of each name: the one stored under this very name, else under one that differs in case or separators."""
    places: dict[str, list[int]] = {}
    for row, word in enumerate(stored):
        places.setdefault(_bare(word), []).append(row)
    missing = [name for name in names if _bare(name) not in places]
    if missing:
        more = f" nor for {len(missing) - 1} more of the {len(names)} names" if len(missing) > 1 else ""
        raise UserError(f"{where}: no embedding for '{missing[0]}'{more}{_hint(missing[0], stored)}")
    found, owner = [], dict[int, str]()
    for name in names:
        options = [row for row in places[_bare(name)] if stored[row] == name] or places[_bare(name)]
        if any((rows[row] != rows[options[0]]).any() for row in options):
            raise UserError(f"{where}: '{name}' is ambiguous: rows {', '.join(map(str, options))} differ")
        if options[0] in owner:
            raise UserError(
                f"{where}: '{owner[options[0]]}' and '{name}' would be the same row, '{stored[options[0]]}'"
            )
        owner[options[0]] = name
        found.append(options[0])
    return found


def _bare(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _hint(name: str, stored: Sequence[str]) -> str:
    hint = nearest(name, stored)
    return hint if "did you mean" in hint or len(stored) <= 20 else f" (none of its {len(stored)} names is near)"


def _normalise(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _is_normalised(rows: np.ndarray) -> bool:
    return bool(np.allclose(np.linalg.norm(rows.astype(np.float64), axis=-1), 1, atol=1e-4))


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """In one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
