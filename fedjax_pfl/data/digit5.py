"""Digit-5: MNIST, MNIST-M, SVHN, SynthDigits and USPS, one natural client each (METHODS 10.5).

MNIST: LeCun, Bottou, Bengio, Haffner 1998. MNIST-M and SynthDigits: Ganin et al., JMLR 2016, arXiv 1505.07818. SVHN: Netzer
et al. 2011. USPS: Hull 1994. Put together for M3SDA (Peng et al., ICCV 2019, arXiv 1812.01754) and used so by KD3A (Feng
et al., ICML 2021, arXiv 2011.09757) and, packaged anew, by FedBN (Li et al., ICLR 2021, arXiv 2102.07623):

    mnist_data.mat           train_32, test_32 [n, 32, 32], label_train, label_test (one-hot)
    mnistm_with_label.mat    train, test [n, 28, 28, 3], label_train, label_test (one-hot)
    svhn_train_32x32.mat     X [32, 32, 3, n], y (10 is zero); M3SDA: train_32x32.mat; each beside its ..test..
    synth_train_32x32.mat    the same; M3SDA: syn_number.mat with train_data, train_label, test_data, test_label
    usps_28x28.mat           cell `dataset`: {images [n, 1, 28, 28] in [0, 1], labels; of train, of test}
    {MNIST,MNIST_M,SVHN,SynthDigits,USPS}/partitions/train_part*.pkl, test.pkl     FedBN: (images, labels)

What each domain has may as well come from another file or folder, told by its content: .mat, .pkl, .h5 (`train/data`,
`train/target`, ...) and .npz files, idx files. Two domains can be made where their files are out of reach (`made`):

  MNIST-M      by its published recipe, |background - digit| in each channel, from random crops of the pictures given.
               The published images themselves are others: their crops are not known.
  SynthDigits  a STAND-IN, not Ganin's set: font glyphs of random colour, scale, place, slant and blur on random crops. One
               digit alone, where his images show parts of the numbers beside it.
"""

import gzip
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_pfl.data import images, matlab
from fedjax_pfl.data.files import Npz, inputs, locate, unpickle
from fedjax_pfl.data.lazy import open_h5
from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError, nearest

FILES = {  # of each domain: the usual names, in a folder of all domains or in one of its own
    "mnist": ("mnist_data.mat", "MNIST"),
    "mnist_m": ("mnistm_with_label.mat", "MNIST_M"),
    "svhn": ("svhn_train_32x32.mat", "train_32x32.mat", "SVHN"),
    "synth": ("synth_train_32x32.mat", "syn_number.mat", "SynthDigits"),
    "usps": ("usps_28x28.mat", "usps.h5", "USPS"),
}
DOMAINS = tuple(FILES)
KEYS = (  # of images and labels, train and test
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_32", "label_train", "test_32", "label_test"),
    ("train", "label_train", "test", "label_test"),
    ("train_data", "train_label", "test_data", "test_label"),
    ("train", "train_label", "test", "test_label"),
    ("train/data", "train/target", "test/data", "test/target"),
)
GROUPS = ("group", "font_id")
IDX = ("train-images*idx3-ubyte*", "train-labels*idx1-ubyte*", "t10k-images*idx3-ubyte*", "t10k-labels*idx1-ubyte*")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
MADE = "made"
INK = 102  # grey values above are white in a made MNIST-M
FIELD = "config.data.digit5"


class Part(NamedTuple):
    """Images and labels as stored, or ready."""

    x: np.ndarray
    """[n, ...]; ready: [n, H, W, C] uint8."""
    y: np.ndarray
    """[n], or one-hot; ready: [n] int32."""
    group: np.ndarray
    """[n]: copies of one image, or images of one font, have one value."""


class Source(NamedTuple):
    """What a file or a folder holds."""

    where: Path
    parts: tuple[Part, ...]
    """Train and test, or one without a split."""
    drawn: bool = False
    """The rows are in random order already: the first ones are taken."""


def digit5(
    *,
    path: str = "",
    domains: Sequence[str] = (),
    mnist: str = "",
    mnist_m: str = "",
    svhn: str = "",
    synth: str = "",
    usps: str = "",
    size: int = 32,
    train: int = 25_000,
    test: int = 9_000,
    test_share: float = 0.25,
    tile_usps: bool = False,
    backgrounds: str = "",
    fonts: str = "",
    seed: int = 0,
) -> Dataset:
    """The domains that are there, uint8 [n, size, size, 3], with a given split into train and test.

    Grey images get three equal channels, values of [0, 1] become 0...255 and are cut off to whole numbers, other sizes are
    resized bilinearly as torchvision does it, all as KD3A has it. Copies of one image, and images of one font, are one
    group: no split made here cuts it.

    Args:
        path: the folder of all domains: KD3A's and M3SDA's files, or FedBN's folders. '' = none.
        domains: which of mnist, mnist_m, svhn, synth and usps; () = all that are there.
        mnist, mnist_m, svhn, synth, usps: the file or the folder of one domain; '' = look in `path`. mnist_m and synth can be
            'made'.
        size: height and width (FedBN: 28).
        train, test: rows of a domain, so many at most; 0 = all. Those of test are the first ones; those of train are drawn by
            `seed`, but for synth, usps and FedBN's parts, where they are the first ones too (FedBN: 743).
        test_share: what is split off for testing where a file has no split: of its groups (keys `group`, `font_id`), else
            of each class. Crops of one street sign may then stand on both sides.
        tile_usps: the training images of USPS four times over, then cut to `train` (as KD3A has it).
        backgrounds: pictures for what is made: an .npz with `x` [n, H, W, 3], or a folder of them (BSDS500's train).
        fonts: glyphs for synth where it is made: any file that could be a domain (Chars74K's fonts).
        seed: draws rows, splits and what is made; each domain has a stream of its own.

    Raises:
        UserError: an option out of range, no domain at all or a chosen one missing, a file that is damaged or of an unknown
            layout, labels that are no digits, values that are no grey values, a pickle that asks for more than arrays.
    """
    _check(domains, size, train, test, test_share, seed)
    root = locate(path, f"{FIELD}.path") if path else None
    if root and (root / "DigitFive").is_dir():
        root = root / "DigitFive"
    given = {"mnist": mnist, "mnist_m": mnist_m, "svhn": svhn, "synth": synth, "usps": usps}
    made = {domain for domain in ("mnist_m", "synth") if given[domain] == MADE}
    places = {domain: None if domain in made else _place(domain, given[domain], root) for domain in DOMAINS}
    there = {domain for domain in DOMAINS if places[domain] or domain in made}
    wanted = [domain for domain in DOMAINS if domain in (domains or there)]
    missing = [domain for domain in wanted if domain not in there]
    if missing or not wanted:
        names = ", ".join(FILES[missing[0]] if missing else (names[0] for names in FILES.values()))
        what = f"'{missing[0]}'" if missing else "any domain"
        raise UserError(
            f"{FIELD}.{missing[0] if missing else 'path'}: no file of {what} found in "
            f"{root or 'config.data.digit5.path, which is not set'}; expected one of {names}"
        )

    tiles = 4 if tile_usps else 1
    read = partial(_rows, train=train, test=test, test_share=test_share, seed=seed)
    rows: dict[str, tuple[Part, Part]] = {}
    for domain in wanted:
        if place := places[domain]:
            rows[domain] = read(domain, place, tiles=tiles if domain == "usps" else 1)
            continue
        rng = np.random.RandomState([seed, DOMAINS.index(domain), 1])
        grounds = _backgrounds(backgrounds, domain)
        if domain == "mnist_m":
            if not (place := places["mnist"]):
                raise UserError(f"{FIELD}.mnist_m: 'made' of MNIST, which was not found; set {FIELD}.mnist")
            learnt, held_out = (
                part._replace(x=_difference(_coloured(part.x, size), grounds, rng))
                for part in read(domain, place, source="mnist")
            )
            rows[domain] = learnt, held_out
        else:
            glyphs = read(domain, locate(fonts, f"{FIELD}.fonts"), train=0, test=0)
            learnt, held_out = (
                _scenes(part, number, grounds, size, rng) for part, number in zip(glyphs, (train, test), strict=True)
            )
            rows[domain] = learnt, held_out

    parts = [part for domain in wanted for part in rows[domain]]
    sizes = [len(part.y) for part in parts]
    groups, start = [], 0
    for part in parts:
        values, codes = np.unique(part.group, return_inverse=True)
        groups.append(start + codes)
        start += len(values)
    return Dataset(
        name="digit5",
        x=np.concatenate([_coloured(part.x, size) for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        task="single",
        class_names=tuple("0123456789"),
        client=np.repeat(np.arange(len(parts)) // 2, sizes).astype(np.int32),
        client_names=tuple(wanted),
        split=np.repeat([TRAIN, TEST] * len(wanted), sizes).astype(np.int8),
        group=np.concatenate(groups).astype(np.int32) if start < sum(sizes) else None,
    )


def _check(domains: Sequence[str], size: int, train: int, test: int, test_share: float, seed: int) -> None:
    for domain in domains:
        if domain not in DOMAINS:
            raise UserError(f"{FIELD}.domains: unknown name '{domain}'{nearest(domain, DOMAINS)}")
    if size < 1:
        raise UserError(f"{FIELD}.size: {size}, expected at least 1 pixel")
    for option, value in (("train", train), ("test", test)):
        if value < 0:
            raise UserError(f"{FIELD}.{option}: {value}, expected at least 1, or 0 for all")
    if not 0 < test_share < 1:
        raise UserError(f"{FIELD}.test_share: {test_share}, expected a share between 0 and 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"{FIELD}.seed: {seed}, expected at least 0 and below 2**32")


def _place(domain: str, given: str, root: Path | None) -> Path | None:
    """The file or the folder of a domain."""
    if given:
        return locate(given, f"{FIELD}.{domain}")
    return next((root / name for name in FILES[domain] if (root / name).exists()), None) if root else None


# --- one domain: which rows, and as what ------------------------------------------------------------------------------


def _rows(
    domain: str,
    place: Path,
    *,
    train: int,
    test: int,
    test_share: float,
    seed: int,
    source: str = "",
    tiles: int = 1,
) -> tuple[Part, Part]:
    """Train and test of a domain, ready but for size and colour."""
    rng = np.random.RandomState([seed, DOMAINS.index(domain)])
    found = _source(place, source or domain)
    where = f"{found.where}"
    split = found.parts if len(found.parts) == 2 else _cut(found.parts[0], test_share, rng, where)
    learnt, held_out = split[0], split[1]
    n = len(learnt.y)
    if found.drawn or domain in ("synth", "usps"):
        chosen = np.tile(np.arange(n), tiles)[: train or None]
    else:
        chosen = np.sort(rng.permutation(n)[: train or None])
    parts = [_some(learnt, chosen), _some(held_out, np.arange(len(held_out.y))[: test or None])]
    scale = _scale([part.x for part in parts], where)
    parts = [part._replace(x=_pictures(part.x, scale, where)) for part in parts]
    for part in parts:
        if part.x.shape[:3] != (len(part.y), *parts[0].x.shape[1:3]):
            raise UserError(
                f"{where}: images {part.x.shape} for {len(part.y)} labels, expected square ones of one size"
            )
    return parts[0], parts[1]


def _part(x: Any, y: Any, where: str, group: np.ndarray | None = None) -> Part:
    """Checks that there are as many labels, 0...9 or one-hot, or 1...10 with 10 for zero, as images."""
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 10:
        if not (np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()):
            raise UserError(f"{where}: [n, 10] labels that are not one-hot")
        y = y.argmax(1)
    y = y.reshape(-1)
    if y.dtype.kind not in "iuf" or not len(y) or not np.isin(y, np.arange(11)).all():
        found = y[~np.isin(y, np.arange(11))][0] if y.dtype.kind in "iuf" and len(y) else f"{len(y)} of {y.dtype}"
        raise UserError(f"{where}: labels: {found} found, expected 0...9, or 1...10 with 10 for zero")
    if (y == 10).any() and (y == 0).any():
        raise UserError(f"{where}: labels 0 and 10 found, expected one of the two for zero")
    if x.ndim < 2 or len(x) != len(y):
        raise UserError(f"{where}: images {x.shape} for {len(y)} labels, expected [n, H, W] or [n, H, W, C]")
    if group is not None and group.shape != y.shape:
        raise UserError(f"{where}: groups of shape {group.shape}, expected one for each of {len(y)} images")
    codes = np.arange(len(y)) if group is None else np.unique(group, return_inverse=True)[1]
    return Part(x, np.where(y == 10, 0, y).astype(np.int32), codes)


def _some(part: Part, rows: np.ndarray) -> Part:
    return Part(part.x[rows], part.y[rows], part.group[rows])


def _cut(part: Part, share: float, rng: np.random.RandomState, where: str) -> tuple[Part, Part]:
    """Train and test where there is no split: by whole groups, else class by class; each in random order."""
    groups = np.unique(part.group)
    if len(groups) < len(part.y):
        units = [rng.permutation(groups)]
    else:
        units = [rng.permutation(part.group[part.y == digit]) for digit in np.unique(part.y)]
    tested = np.isin(part.group, np.concatenate([unit[: round(share * len(unit))] for unit in units]))
    if tested.all() or not tested.any():
        raise UserError(
            f"{FIELD}.test_share: {share} of {len(groups)} rows or groups in {where} leaves train or test empty"
        )
    order = rng.permutation(len(part.y))
    return _some(part, order[~tested[order]]), _some(part, order[tested[order]])


def _scale(arrays: Sequence[np.ndarray], where: str) -> int:
    """255 where floats are in [0, 1], else 1."""
    if any(x.dtype.kind not in "biuf" for x in arrays):
        raise UserError(f"{where}: images of type {arrays[0].dtype}, expected numbers")
    if arrays[0].dtype.kind != "f":
        return 1
    low, high = min(x.min() for x in arrays), max(x.max() for x in arrays)
    if not (low >= 0 and high <= 255):
        raise UserError(f"{where}: image values {low:g}...{high:g} found, expected 0...1 or 0...255")
    return 255 if high <= 1 else 1


def _pictures(x: np.ndarray, scale: int, where: str) -> np.ndarray:
    """[n, H, W, C] uint8 of one or three channels, from any way to store them."""
    if x.ndim == 2:
        side = round(x.shape[1] ** 0.5)
        if side**2 != x.shape[1]:
            raise UserError(f"{where}: rows of {x.shape[1]} values, expected those of square images")
        x = x.reshape(len(x), side, side)
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] not in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.dtype.kind == "f":
        x = (x * scale).astype(np.uint8)  # cut off, as KD3A does it
    x = inputs(x, where)
    if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] not in (1, 3):
        raise UserError(f"{where}: images {x.shape}, expected square ones [n, H, W] or [n, H, W, 3]")
    return x


def _coloured(x: np.ndarray, size: int) -> np.ndarray:
    """[n, size, size, 3]."""
    if x.shape[1] != size:
        x = np.stack([images.bilinear(image, size) for image in x])
    return np.broadcast_to(x, (*x.shape[:3], 3))


# --- files ------------------------------------------------------------------------------------------------------------


def _source(place: Path, domain: str) -> Source:
    """What a file or a folder holds."""
    if not place.is_dir():
        return Source(place, _file(place))
    for folder in (place, place / "raw", place / "MNIST" / "raw"):
        if any(folder.glob(IDX[0])):
            files = [_one(folder, pattern) for pattern in IDX]
            x_train, y_train, x_test, y_test = (_idx(file) for file in files)
            return Source(folder, (_part(x_train, y_train, f"{folder}"), _part(x_test, y_test, f"{folder}: t10k")))
    pieces = sorted(place.glob("partitions/train_part*.pkl"), key=lambda file: (len(file.name), file.name))
    if pieces:
        loaded = [_pair(unpickle(file), file) for file in pieces]
        if len({x.shape[1:] for x, _ in loaded}) > 1:
            raise UserError(f"{place}: the partitions have images of several shapes, expected one")
        x, y = (np.concatenate(arrays) for arrays in zip(*loaded, strict=True))
        held_out = place / "test.pkl"
        if not held_out.exists():
            raise UserError(f"{held_out}: missing, expected beside partitions/train_part*.pkl")
        parts = (_part(x, y, f"{pieces[0]}"), _part(*_pair(unpickle(held_out), held_out), f"{held_out}"))
        return Source(place, parts, drawn=True)
    file = next((place / name for name in ("train.pkl", *FILES[domain]) if (place / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{place}: no file of '{domain}' in it; expected {', '.join(n for n in FILES[domain] if '.' in n)}, idx files, "
            "partitions/train_part*.pkl, or name the file itself"
        )
    return Source(file, _file(file))


def _one(folder: Path, pattern: str) -> Path:
    file = next(iter(sorted(folder.glob(pattern))), None)
    if file is None:
        raise UserError(f"{folder}: no file {pattern}, expected beside {IDX[0]}")
    return file


def _file(file: Path) -> tuple[Part, ...]:
    """Train and test, or what has no split; a file of one part brings the other one from beside it."""
    arrays, where = _arrays(file), f"{file}"
    for x, y, x_test, y_test in KEYS:
        if all(key in arrays for key in (x, y, x_test, y_test)):
            return (
                _part(arrays[x], arrays[y], f"{where}: '{x}', '{y}'"),
                _part(arrays[x_test], arrays[y_test], f"{where}: '{x_test}', '{y_test}'"),
            )
    if "dataset" in arrays:
        cells = np.asarray(arrays["dataset"], object)
        if cells.shape != (2, 2):
            raise UserError(f"{where}: 'dataset' of shape {cells.shape}, expected a 2 x 2 cell of images and labels")
        return tuple(_part(x, y, f"{where}: 'dataset'") for x, y in cells)
    if "X" in arrays and "y" in arrays:
        beside = file.with_name(file.name.replace("train", "test"))
        if beside == file or not beside.exists():
            raise UserError(
                f"{file}: holds one part; expected train in its name, and {beside.name} with the other beside it"
            )
        both = ((name, _arrays(name)) for name in (file, beside))
        return tuple(_part(*_last_axis(found, name), f"{name}") for name, found in both)
    if "x" in arrays and "y" in arrays:
        group = next((np.asarray(arrays[key]) for key in GROUPS if key in arrays), None)
        return (_part(arrays["x"], arrays["y"], where, group),)
    raise UserError(
        f"{file}: keys {', '.join(sorted(arrays)) or 'none'}; expected x_train, y_train, x_test, y_test, or x, y"
    )


def _arrays(file: Path) -> dict[str, Any]:
    """What a file holds, told by its first bytes."""
    with open(file, "rb") as stream:
        head = stream.read(10)
    if head.startswith(b"PK"):
        npz = Npz(file, FIELD)
        return {key: npz[key] for key in npz.keys}
    if head.startswith(b"\x89HDF") and file.suffix != ".mat":
        with open_h5(file) as h5:
            names = [f"{part}/{kind}" for part in ("train", "test") for kind in ("data", "target")]
            return {name: h5[name][()] for name in names if name in h5}
    if head.startswith(b"\x80"):
        found = unpickle(file)
        return found if isinstance(found, dict) else dict(zip(("X", "y"), _pair(found, file), strict=True))
    if head.startswith(b"MATLAB") or file.suffix == ".mat":
        return matlab.load(file)
    raise UserError(f"{file}: not an .npz, .mat, .h5 or .pkl file (it begins with {head!r})")


def _last_axis(arrays: dict[str, Any], file: Path) -> tuple[np.ndarray, np.ndarray]:
    """X and y, the images of a .mat file [H, W, C, n] put first."""
    for key in ("X", "y"):
        if key not in arrays:
            raise UserError(f"{file}: no key '{key}'{nearest(key, arrays)}")
    x, y = np.asarray(arrays["X"]), np.asarray(arrays["y"])
    return (x.transpose(3, 0, 1, 2) if x.ndim == 4 and x.shape[3] == y.size and file.suffix == ".mat" else x), y


def _pair(found: Any, file: Path) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(a, np.ndarray) for a in found):
        raise UserError(f"{file}: holds {type(found).__name__}, expected the two arrays (images, labels)")
    return found[0], found[1]


def _idx(file: Path) -> np.ndarray:
    """An array of bytes as MNIST's own files have it, gzipped or not."""
    content = file.read_bytes()
    try:
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: damaged gzip") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{file}: not an idx file of bytes (it begins with {content[:4]!r})")
    shape = np.frombuffer(content, ">i4", content[3], 4)
    if len(content) - 4 - 4 * content[3] != np.prod(shape, dtype=np.int64):
        raise UserError(f"{file}: {len(content)} bytes found, expected images of shape {tuple(shape.tolist())}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


# --- made domains -----------------------------------------------------------------------------------------------------


def _backgrounds(place: str, domain: str) -> Callable[[np.random.RandomState, int, int], np.ndarray]:
    """`crops(rng, n, size)`: [n, size, size, 3] uint8 from random places of random pictures."""
    field = f"{FIELD}.backgrounds"
    if not place:
        raise UserError(f"{field}: not set, but {FIELD}.{domain} is 'made'; give pictures, an .npz or a folder")
    found = locate(place, field)
    if found.is_dir():
        names = [str(file) for file in sorted(found.rglob("*")) if file.suffix.lower() in PICTURES]
        pictures = [images.load("digit5", [name], lambda n: Path(n).read_bytes(), 0, where=found)[0] for name in names]
    else:
        pictures = list(inputs(Npz(found, field)["x"], f"{found}: key 'x'"))
    if not pictures:
        raise UserError(f"{field}: no picture ({', '.join(PICTURES)}) in {found}")
    if pictures[0].ndim != 3 or pictures[0].shape[2] != 3 or pictures[0].dtype != np.uint8:
        raise UserError(
            f"{field}: {found} holds {pictures[0].dtype} {pictures[0].shape}, expected colour pictures of uint8"
        )
    least = min(min(picture.shape[:2]) for picture in pictures)

    def crops(rng: np.random.RandomState, n: int, size: int) -> np.ndarray:
        if least < size:
            raise UserError(f"{field}: a picture in {found} is {least} pixels wide or high, expected at least {size}")
        which, places = rng.randint(len(pictures), size=n), rng.uniform(size=(n, 2))
        out = np.empty((n, size, size, 3), np.uint8)
        for i, picture in enumerate(pictures[k] for k in which):
            top, left = (int(u * (side - size + 1)) for u, side in zip(places[i], picture.shape[:2], strict=True))
            out[i] = picture[top : top + size, left : left + size]
        return out

    return crops


def _difference(digits: np.ndarray, crops: Callable[..., np.ndarray], rng: np.random.RandomState) -> np.ndarray:
    """MNIST-M (Ganin et al. 2016): |background - digit|, [n, H, W, 3].

    In the published images a digit inverts its background wholly or not at all, and does so in 14 of 100 pixels: so grey
    values are black or white first, and `INK` gives that share.
    """
    grounds = crops(rng, len(digits), digits.shape[1])
    return np.where(digits > INK, 255 - grounds, grounds)


def _scenes(glyphs: Part, number: int, crops: Callable[..., np.ndarray], size: int, rng: np.random.RandomState) -> Part:
    """`number` (0: as many as glyphs) images of random glyphs on random crops, uint8 [number, size, size, 3]."""
    rows = rng.randint(len(glyphs.y), size=number or len(glyphs.y))
    ink = glyphs.x[..., :1].mean(-1, dtype=np.float32) / 255
    ink = 1 - ink if ink.mean() > 0.5 else ink  # a glyph covers less than half of its image
    out = np.empty((len(rows), size, size, 3), np.uint8)
    for start in range(0, len(rows), images.CHUNK):
        some = rows[start : start + images.CHUNK]
        n = len(some)
        shown = _moved(ink[some], size, rng)[..., None]
        grounds = crops(rng, n, size).astype(np.float32)
        # Of four colours the one that is farthest from what it is drawn on.
        colours = rng.uniform(0, 255, (n, 4, 3))
        far = np.linalg.norm(colours - grounds.mean((1, 2))[:, None], axis=-1).argmax(1)
        colour = colours[np.arange(n), far].astype(np.float32)[:, None, None]
        scene = grounds + shown * (colour - grounds)
        blur = rng.uniform(0, 0.25, (n, 1, 1, 1)).astype(np.float32)
        for axis in (1, 2):
            before, behind = (np.take(scene, np.arange(size) + d, axis, mode="clip") for d in (-1, 1))
            scene = (1 - 2 * blur) * scene + blur * (before + behind)
        out[start : start + n] = np.round(scene.clip(0, 255))
    return Part(out, glyphs.y[rows], glyphs.group[rows])


def _moved(ink: np.ndarray, size: int, rng: np.random.RandomState) -> np.ndarray:
    """Glyphs [n, h, h] at [n, size, size]: turned, scaled and shifted a little, bilinear; none outside of them."""
    n, h = ink.shape[:2]
    angle = np.deg2rad(rng.uniform(-20, 20, n))
    step = h / (size * rng.uniform(0.8, 1.15, n))  # of the glyph, for a pixel of the image
    shift = rng.uniform(-0.1, 0.1, (2, n, 1, 1)) * size
    axis = np.arange(size) - (size - 1) / 2
    row, column = axis[:, None] - shift[0], axis[None, :] - shift[1]
    cos, sin = (step * np.cos(angle))[:, None, None], (step * np.sin(angle))[:, None, None]
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    at = [(u + (h - 1) / 2 + 1).clip(0, h + 0.999) for u in (cos * row - sin * column, sin * row + cos * column)]
    (i, j), (u, v) = ([np.floor(a).astype(int) for a in at], [a - np.floor(a) for a in at])
    k = np.arange(n)[:, None, None]
    top = (1 - v) * padded[k, i, j] + v * padded[k, i, j + 1]
    bottom = (1 - v) * padded[k, i + 1, j] + v * padded[k, i + 1, j + 1]
    return ((1 - u) * top + u * bottom).astype(np.float32)
