"""Variables of MATLAB's .mat files: up to version 7 through scipy, version 7.3 (HDF5) through h5py."""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax_pfl.data.lazy import open_h5
from fedjax_pfl.errors import UserError


def load(path: Path) -> dict[str, Any]:
    """The variables by name, with MATLAB's shapes: arrays, cells as arrays of objects, sparse matrices as scipy's CSC.

    Raises:
        UserError: not a whole .mat file.
    """
    with open(path, "rb") as stream:
        head = stream.read(16)
    if head.startswith((b"MATLAB 7.3", b"\x89HDF")):
        with open_h5(path) as file:
            return {name: _variable(file, file[name]) for name in file if not name.startswith("#")}
    from scipy.io import loadmat

    try:
        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except Exception as error:  # of a damaged file scipy raises a dozen types
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: not a whole .mat file ({reason})") from error


def _variable(file: Any, stored: Any) -> Any:
    """HDF5 has the axes the other way round; cells are references to where their contents lie."""
    if "MATLAB_sparse" in stored.attrs:
        from scipy.sparse import csc_matrix

        columns = stored["jc"][:]
        entries = (stored["data"][:], stored["ir"][:]) if "data" in stored else (np.zeros(0), np.zeros(0, int))
        return csc_matrix((*entries, columns), shape=(int(stored.attrs["MATLAB_sparse"]), len(columns) - 1))
    if hasattr(stored, "items"):
        return {name: _variable(file, value) for name, value in stored.items()}
    if stored.dtype.kind != "O":
        return stored[()].T
    references = stored[()].T
    cells = np.empty(references.shape, object)
    for place, reference in np.ndenumerate(references):
        cells[place] = _variable(file, file[reference])
    return cells
