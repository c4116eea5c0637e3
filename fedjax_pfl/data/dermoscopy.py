"""PRR-FL's dermoscopic federation in its native layout (CityU-AIM-Group/PRR-FL; METHODS 10.3), a folder or a zip of it.

    csv_folder/client{A,B,...}/{train,valid,test}_client{A,B,...}.csv
    data/client{A,B,...}/img_resize<pixels>/<image_id>.{png,jpg}

Clients A, B and C are HAM10000's vidir_modern, vidir_molemax and rosendahl, D is ISIC 2017's MSK. Of the lists the
first three columns are read (image_id, label 0 nv / 1 bkl / 2 mel, label_binary), and `lesion_id` where there is one:
many lesions of A and C stand in both train and test of the published lists (see data source `ham10000`).
"""

import csv
import io
import re
import threading
import zipfile
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_pfl.data import images
from fedjax_pfl.data.files import locate
from fedjax_pfl.data.types import Dataset
from fedjax_pfl.errors import UserError, nearest

LIST = re.compile(r"(?:^|/)csv_folder/client([^/]+)/(train|valid|test)_client\1\.csv$")
IMAGE = re.compile(r"(?:^|/)data/client([^/]+)/img_resize(\d+)/([^/]+)\.(?:png|jpe?g)$", re.IGNORECASE)
PARTS = {"train": 0, "valid": 1, "test": 2}
CHOICES = {"split": ("prrfl", "lesion"), "labels": ("three", "binary")}
CLASSES = {"three": ("nv", "bkl", "mel"), "binary": ("not mel", "mel")}


class Row(NamedTuple):
    """One line of a list."""

    client: str
    image_id: str
    label: int
    split: int
    lesion: str


def dermoscopy(
    *, path: str = "", size: int = 0, split: str = "prrfl", labels: str = "three", cache: bool = True
) -> Dataset:
    """Read the lists and the images they name, uint8 [n, size, size, 3].

    Args:
        path: the folder that holds `csv_folder` and `data`, or a zip file of it.
        size: pixels to resize to (bicubic, from the smallest stored size that is enough); 0 = as stored.
        split: 'prrfl' (its lists) or 'lesion' (none given; rows of one lesion stay together, else those of one image).
        labels: 'three' (nv, bkl, mel) or 'binary' (melanoma or not).
        cache: keep the decoded images in the user's cache folder; a file that changes is read anew.

    Raises:
        UserError: no lists, a list that cannot be read, a label out of range, an image that is missing or damaged.
    """
    for option, value in (("split", split), ("labels", labels)):
        if value not in CHOICES[option]:
            raise UserError(f"config.data.dermoscopy.{option}: unknown name '{value}'{nearest(value, CHOICES[option])}")
    if size < 0:
        raise UserError(f"config.data.dermoscopy.size: {size}, expected pixels, or 0 for images as stored")
    with closing(_Files(locate(path, "config.data.dermoscopy.path"))) as files:
        rows = _lists(files, labels)
        names = _images(files, rows, size)
        stamps = [files.stamps[name] for name in names] if cache else None
        x = images.load("dermoscopy", names, files.read, size, where=files.path, stamps=stamps)

    clients = sorted({row.client for row in rows})
    lesions = {lesion: i for i, lesion in enumerate(sorted({row.lesion for row in rows}))}
    return Dataset(
        name="dermoscopy",
        x=x,
        y=np.array([row.label for row in rows], np.int32),
        task="single",
        class_names=CLASSES[labels],
        client=np.array([clients.index(row.client) for row in rows], np.int32),
        client_names=tuple(clients),
        split=np.array([row.split for row in rows], np.int8) if split == "prrfl" else None,
        group=np.array([lesions[row.lesion] for row in rows], np.int32),
    )


class _Files:
    """The files under a folder or in a zip, by name with '/'; read from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamps: dict[str, images.Stamp]  # of each file: size and time of change
        self._archive = None
        self._lock = threading.Lock()
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.is_file()]
            self.stamps = {p.relative_to(path).as_posix(): images.stamp(p) for p in found}
            return
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"config.data.dermoscopy.path: {path} is neither a folder nor a whole zip file") from error
        self.stamps = dict.fromkeys(self._archive.namelist(), images.stamp(path))

    def read(self, name: str) -> bytes:
        if self._archive is None:
            return (self.path / name).read_bytes()
        with self._lock:
            return self._archive.read(name)

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()


def _lists(files: _Files, labels: str) -> list[Row]:
    column = 1 if labels == "three" else 2
    rows = []
    for name in sorted(files.stamps):
        if not (match := LIST.search(name)):
            continue
        client, part = match.groups()
        where = f"{files.path}: {name}"
        lines = list(csv.reader(io.StringIO(files.read(name).decode("utf-8-sig", "replace"))))
        header = lines[0] if lines else []
        if header[:3] != ["image_id", "label", "label_binary"]:
            raise UserError(f"{where}: starts with {','.join(header[:3])!r}, expected image_id,label,label_binary")
        lesion = header.index("lesion_id") if "lesion_id" in header else None
        for number, line in enumerate(lines[1:], 2):
            if not line:
                continue
            label = line[column].strip() if len(line) > column else ""
            # Spreadsheets write whole numbers as 1.0 too.
            if not re.fullmatch(r"\d(\.0*)?", label) or int(label[0]) >= len(CLASSES[labels]):
                raise UserError(
                    f"{where}: line {number}: {header[column]} '{label}', expected 0...{len(CLASSES[labels]) - 1}"
                )
            own = line[lesion] if lesion is not None and len(line) > lesion else ""
            rows.append(Row(client, line[0], int(label[0]), PARTS[part], own or line[0]))
    if not rows:
        raise UserError(
            "config.data.dermoscopy.path: no csv_folder/client*/{train,valid,test}_client*.csv with rows "
            f"in {files.path}"
        )
    return rows


def _images(files: _Files, rows: list[Row], size: int) -> list[str]:
    """The file of each row's image: of the smallest stored size that is at least `size`, else of the largest."""
    stored: dict[str, dict[int, dict[str, str]]] = {}
    for name in files.stamps:
        if match := IMAGE.search(name):
            client, pixels, image_id = match.groups()
            stored.setdefault(client, {}).setdefault(int(pixels), {})[image_id] = name
    names = []
    for row in rows:
        sizes = stored.get(row.client, {})
        enough = [pixels for pixels in sizes if pixels >= size]
        best = sizes.get(min(enough) if enough else max(sizes, default=0), {})
        if row.image_id not in best:
            raise UserError(
                f"{files.path}: no image {row.image_id} in data/client{row.client}/img_resize*, though a list names it"
            )
        names.append(best[row.image_id])
    return names
