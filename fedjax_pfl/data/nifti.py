"""NIfTI-1 images (.nii, .nii.gz), as little of them as volumes need. Format: nifti.nimh.nih.gov/nifti-1."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from fedjax_pfl.errors import UserError

HEADER = 348  # bytes
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}


def read(path: Path) -> np.ndarray:
    """The values [x, y, z] as the file's axes have them, scaled by its slope and intercept where it has any.

    Its orientation is not looked at: x, y, z are the scanner's axes only where the file was written so.

    Raises:
        UserError: not a NIfTI-1 file in one piece, damaged, of another type of values, or not three-dimensional.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged, or not gzip ({type(error).__name__})") from error
    order = next((o for o in "<>" if content[:4] == struct.pack(f"{o}i", HEADER)), None)
    if order is None or len(content) < HEADER:
        raise UserError(f"{path}: no NIfTI-1 header found")
    magic = content[344:348]
    if magic != b"n+1\0":
        raise UserError(f"{path}: magic {magic!r} found, b'n+1\\x00' expected (header and values in one file)")
    rank, *shape = struct.unpack_from(f"{order}8h", content, 40)
    code = struct.unpack_from(f"{order}h", content, 70)[0]
    offset, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
    if not 3 <= rank <= 7 or min(shape[:rank]) < 1 or any(n != 1 for n in shape[3:rank]):
        raise UserError(f"{path}: {rank} dimensions {tuple(shape[: max(0, rank)])} found, a volume [x, y, z] expected")
    if code not in TYPES:
        raise UserError(f"{path}: values of NIfTI type {code} found, one of {', '.join(map(str, TYPES))} expected")
    dtype = np.dtype(order + TYPES[code])
    number = int(np.prod(shape[:3], dtype=np.int64))
    if not HEADER <= offset <= len(content) - number * dtype.itemsize:
        expected = f"{number * dtype.itemsize} bytes of values from byte {offset:g}"
        raise UserError(f"{path}: {len(content)} bytes found, {expected} expected: it is cut off")
    values = np.frombuffer(content, dtype, number, int(offset)).reshape(shape[:3], order="F")
    if slope and np.isfinite([slope, intercept]).all() and (slope, intercept) != (1, 0):  # slope 0: not scaled
        return values.astype(np.float64) * slope + intercept
    return values
