"""Bring your own data: one .npz file."""

from collections.abc import Sequence

import numpy as np

from fedjax_pfl.data import images
from fedjax_pfl.data.files import WORDS, Npz, codes, inputs, splits, targets, together
from fedjax_pfl.data.types import SPLITS, VALIDATION, Dataset, take
from fedjax_pfl.errors import UserError, nearest

PARTS = {"train": 0, "val": 1, "validation": 1, "test": 2}


def npz(
    *,
    path: str = "",
    x: str = "x",
    y: str = "y",
    client: str = "",
    split: str = "split",
    split_names: Sequence[str] = SPLITS,
    group: str = "group",
    classes: int = 0,
    threshold: int = 0,
    size: int = 0,
    val: str = "validation",
) -> Dataset:
    """Read `x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test` and `x_val`, `y_val`, from an .npz file.

    Further keys are used where the file has them; in the second layout each may end in _train, _val and _test too:
      client, site   the natural client of each row: integers (below 0: row not used) or strings
      split          the given split of each row: words, or integers that count through `split_names`
      group          rows with one value stay in one split (a patient); below 0: a row by itself
      class_names, client_names (or <key>_names; of another key than 'y', where 'y' is there too, only these)

    Args:
        path: the file.
        x: key of the inputs: [n, H, W] or [n, H, W, C] images, uint8 or float; [n, ...] features.
        y: key of the labels: [n] classes (integers or words), [n, L] 0 or 1, or [n, H, W] masks.
        client: key of the clients; '' = 'client', else 'site', else no natural clients.
        split: key of the given split.
        split_names: what the integers of that column mean.
        group: key of the groups.
        classes: number of classes; 0 = from `class_names`, else the largest label + 1.
        threshold: of masks stored as grey values: class 1 from this value up, class 0 below; 0 = values are classes.
        size: height and width to resize images to: means of blocks where it divides, else bicubic; so are masks of grey
            values (`threshold`) before it is applied, masks of classes by nearest neighbour. The aspect ratio is not
            kept; 0 = as stored.
        val: what `x_val` (or `x_validation`) is: 'validation' or, of files without a test part, 'test'.

    Raises:
        UserError: a missing or damaged file, a missing key, arrays that do not fit together, NaN or infinite values,
            labels that are no labels, pickled objects.
    """
    if size < 0:
        raise UserError(f"config.data.npz.size: {size}, expected pixels, or 0 for images as stored")
    if val not in ("validation", "test"):
        raise UserError(f"config.data.npz.val: unknown name '{val}'{nearest(val, ('validation', 'test'))}")
    file = Npz(path, "config.data.npz.path")
    parts = [part for part in PARTS if f"{x}_{part}" in file] if x not in file else []
    if client and not _present(file, client, parts):
        file[client]  # raises: no such key
    client = client or next((key for key in ("client", "site") if _present(file, key, parts)), "")

    where = f"{file.path}: key"
    pieces = [file[f"{x}_{part}"] for part in parts] or [file[x]]
    lengths = [len(piece) for piece in pieces]

    def read(key: str) -> np.ndarray:
        return together([file[f"{key}_{part}"] for part in parts] or [file[key]], lengths, f"{where} '{key}'")

    rows = inputs(together(pieces, lengths, f"{where} '{x}'"), f"{where} '{x}'")
    n = len(rows)
    labels = read(y)
    if size and rows.ndim != 4:
        raise UserError(
            f"config.data.npz.size: {size} is for images, but {file.path} has inputs of shape {rows.shape}; set it to 0"
        )
    if size and labels.ndim > 2 and labels.shape[:3] == rows.shape[:3]:
        grey = labels.reshape(*rows.shape[:3], -1)
        labels = (
            images.resize(grey.astype(np.float32), size)[..., 0] if threshold else images.nearest(grey[..., 0], size)
        )
    if size:
        rows = images.resize(rows, size)
    if threshold:
        labels = labels >= threshold
    # In a file with labels `y` besides, `class_names` are theirs.
    names = file.words(f"{y}_names") or (file.words("class_names") if y == "y" or "y" not in file else ())
    labels, task, class_names = targets(labels, rows, f"{where} '{y}'", names, classes or 2 * bool(threshold))
    given = None
    if parts:
        given = np.repeat([WORDS[val] if PARTS[part] == VALIDATION else PARTS[part] for part in parts], lengths)
        given = given.astype(np.int8)
    elif split in file:
        given = splits(file[split], n, f"{where} '{split}'", split_names)

    holder, holder_names = None, ()
    if client:
        names = file.words(f"{client}_names") or file.words("client_names")
        holder, holder_names = codes(read(client), n, f"{where} '{client}'", names)
    groups = None
    if _present(file, group, parts):
        groups, values = codes(read(group), n, f"{where} '{group}'")
        alone = groups < 0
        groups[alone] = len(values) + np.arange(alone.sum())
    data = Dataset(file.path.stem, rows, labels, task, class_names, holder, holder_names, given, groups)
    unused = np.zeros(n, bool)
    for column in (holder, given):
        unused |= False if column is None else column < 0
    if unused.all():
        raise UserError(f"{file.path}: every row is marked as not used")
    return take(data, ~unused) if unused.any() else data


def _present(file: Npz, key: str, parts: list[str]) -> bool:
    return all(f"{key}_{part}" in file for part in parts) if parts else key in file
