"""HAM10000 (Tschandl, Rosendahl, Kittler 2018, Scientific Data 5:180161) with its sites of origin, from an .npz file.

Many of its 7,470 lesions were photographed several times. PRR-FL's own split has many of them in both train and test,
so figures on it serve comparison; `split='lesion'` keeps each lesion in one split and tells the truth.
"""

import numpy as np

from fedjax_pfl.data.files import Npz, codes, inputs, targets
from fedjax_pfl.data.types import Dataset
from fedjax_pfl.errors import UserError, nearest

PRRFL_CLASSES = ("nv", "bkl", "mel")
PRRFL_CLIENTS = ("A", "B", "C")
CHOICES = {"clients": ("prrfl", "site"), "split": ("prrfl", "lesion"), "labels": ("prrfl", "dx")}


def ham10000(*, path: str = "", clients: str = "prrfl", split: str = "prrfl", labels: str = "prrfl") -> Dataset:
    """Read keys `x`, `y`, `site`, `lesion`, `prrfl_client`, `prrfl_split` and `prrfl_label`.

    Rows that the choice leaves without a client, a split or a label are not read.

    Args:
        path: the file.
        clients: 'prrfl' (A vidir_modern, B vidir_molemax, C rosendahl) or 'site' (all four).
        split: 'prrfl' (its lists) or 'lesion' (none given; rows of one lesion stay together).
        labels: 'prrfl' (nv, bkl, mel) or 'dx' (akiec, bcc, bkl, df, mel, nv, vasc).
    """
    for option, value in (("clients", clients), ("split", split), ("labels", labels)):
        if value not in CHOICES[option]:
            raise UserError(f"config.data.ham10000.{option}: unknown name '{value}'{nearest(value, CHOICES[option])}")
    file = Npz(path, "config.data.ham10000.path")
    x = inputs(file["x"], f"{file.path}: key 'x'")
    n = len(x)

    key, names = ("prrfl_client", PRRFL_CLIENTS) if clients == "prrfl" else ("site", file.words("site_names"))
    client, client_names = codes(file[key], n, f"{file.path}: key '{key}'", names)
    used = client >= 0
    given = None
    if split == "prrfl":
        given = file["prrfl_split"].astype(np.int8)
        used &= given >= 0
    key, names = ("prrfl_label", PRRFL_CLASSES) if labels == "prrfl" else ("y", file.words("class_names"))
    used &= file[key].astype(np.int64) >= 0
    lesion, _ = codes(file["lesion"], n, f"{file.path}: key 'lesion'")

    x, client, lesion = x[used], client[used], lesion[used]
    given = None if given is None else given[used]
    y, task, class_names = targets(file[key][used], x, f"{file.path}: key '{key}'", names)
    return Dataset("ham10000", x, y, task, class_names, client, client_names, given, lesion)
