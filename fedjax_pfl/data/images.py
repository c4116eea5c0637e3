"""Pictures as arrays: files decoded by several threads and kept in the user's cache folder, and resizing.

Resizing never keeps the aspect ratio: nothing is cut off, so that no labelled object is lost.
"""

import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedjax_pfl.data.files import cache_folder
from fedjax_pfl.errors import UserError

CHUNK = 1024  # images decoded before they are written away
Stamp = tuple[int, int]


def stamp(file: Path | os.DirEntry[str]) -> Stamp:
    """Size and time of change: what tells that a file is still the same."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def load(
    source: str,
    names: Sequence[str],
    read: Callable[[str], bytes],
    size: int,
    *,
    where: Path,
    stamps: Sequence[Stamp] | None = None,
) -> np.ndarray:
    """The pictures as uint8 [n, H, W, 3] RGB (grey ones too), in the order of `names`.

    With `stamps` they are decoded once, a chunk at a time, into a file of the user's cache folder, and mapped from
    there: sets larger than the memory work. Without, or where that folder cannot be written, all is held in memory.

    Args:
        source: the data source, for messages and for the name in the cache.
        names: of the files, at least one.
        read: the bytes of a file; called from several threads.
        size: height and width (bicubic, aspect ratio not kept); 0 = as stored.
        where: the folder or archive they come from.
        stamps: of each file, as `stamp` gives it: a file that changes is read anew. None = no cache.

    Raises:
        UserError: a file that is not a whole image; images of several sizes where `size` is 0.
    """
    if stamps is None:
        return _in_memory(len(names), _chunks(source, names, read, size, where))
    key = hashlib.sha256(repr((str(where.resolve()), size, list(zip(names, stamps, strict=True)))).encode())
    cache = cache_folder() / f"{source}-{key.hexdigest()[:16]}.npy"
    try:
        return _mapped(cache)
    except (OSError, ValueError, EOFError):  # not there yet, or damaged
        pass
    try:
        _write(cache, len(names), _chunks(source, names, read, size, where))
        return _mapped(cache)
    except OSError:  # a cache that cannot be written (disk full, home read-only) is only slow
        return _in_memory(len(names), _chunks(source, names, read, size, where))


def resize(x: np.ndarray, size: int) -> np.ndarray:
    """Images [n, H, W, C] at [n, size, size, C], of the same type: means of blocks where `size` divides, else bicubic."""
    n, height, width, channels = x.shape
    if (height, width) == (size, size):
        return x
    if height % size or width % size:
        return np.stack([bicubic(image, size) for image in x])
    blocks = x.reshape(n, size, height // size, size, width // size, channels)
    means = blocks.mean((2, 4), dtype=np.float32)
    return means if x.dtype.kind == "f" else np.round(means).astype(x.dtype)


def nearest(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks [n, H, W] at [n, size, size], whose pixels have the class found at their centres."""
    rows, columns = ((np.arange(size) * 2 + 1) * n // (2 * size) for n in masks.shape[1:])
    return masks[:, rows[:, None], columns]


def bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """One image [H, W, C], uint8 or float32, at [size, size, C]; smoothed first where it shrinks, as Pillow does it."""
    return _pillow(image, size, "BICUBIC")


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """The same, bilinear: what torchvision's Resize does to a Pillow image."""
    return _pillow(image, size, "BILINEAR")


def _pillow(image: np.ndarray, size: int, how: str) -> np.ndarray:
    from PIL import Image

    if image.shape[:2] == (size, size):
        return image
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    return np.stack([np.asarray(plane.resize((size, size), Image.Resampling[how])) for plane in planes], -1)


def _chunks(
    source: str, names: Sequence[str], read: Callable[[str], bytes], size: int, where: Path
) -> Iterator[np.ndarray]:
    from PIL import Image

    def one(name: str) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(read(name))).convert("RGB")
        except (OSError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:  # PIL calls a bad PNG a SyntaxError
            raise UserError(f"{where}: {name} is not a whole image") from error
        if size and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    shapes = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(names), CHUNK):
            images = list(pool.map(one, names[start : start + CHUNK]))
            shapes |= {image.shape for image in images}
            if len(shapes) > 1:
                raise UserError(f"config.data.{source}.size: 0, but the images have {len(shapes)} sizes; give one")
            yield np.stack(images)


def _in_memory(n: int, chunks: Iterator[np.ndarray]) -> np.ndarray:
    x = np.empty(0, np.uint8)
    start = 0
    for chunk in chunks:
        if not start:
            x = np.empty((n, *chunk.shape[1:]), np.uint8)
        x[start : start + len(chunk)] = chunk
        start += len(chunk)
    return x


def _write(cache: Path, n: int, chunks: Iterator[np.ndarray]) -> None:
    """The chunks as one .npy file, which is there whole or not at all."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cache.parent, delete=False) as file:
        try:
            for i, chunk in enumerate(chunks):
                if i == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (n, *chunk.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(chunk.data)
            file.close()
            os.replace(file.name, cache)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _mapped(cache: Path) -> np.ndarray:
    return np.asarray(np.load(cache, mmap_mode="r", allow_pickle=False))
