"""Scenes of several handwritten digits: a small multi-label set made from scikit-learn's bundled digits, no download.

A scene shows up to `digits` different digits (the 8 x 8 UCI digits, Alpaydin and Kaynak 1998), scaled up and
tinted, at random places of a textured, coloured ground. Each client has two groups of digits that go together:
with chance `skew` a scene takes its digits from one of them, else from all ten. So which labels occur, and which occur
together, differs from client to client: the partial label correlation that federated multi-label methods are about.

Test scenes are made of source images that no training scene shows.
"""

from typing import Any

import numpy as np

from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError, nearest

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TESTS = ("common", "own")
PLACES = 16  # drawn for each digit; the one farthest from the others is taken


def digit_scenes(
    *,
    seed: int = 0,
    size: int = 32,
    clients: int = 8,
    examples: int = 300,
    test_examples: int = 75,
    digits: int = 3,
    skew: float = 0.8,
    test: str = "common",
) -> Dataset:
    """Scenes of natural clients, uint8 [clients * (examples + test_examples), size, size, 3], with a given split.

    With `test` = 'common' all test scenes follow one distribution, that of skew 0: `config.split.how='global'` tests
    every client on all of them, 'given' on its share. With 'own' a client's test scenes are drawn as its training
    scenes are. ('within' splits all scenes of a client anew; then scenes of all splits share source images.)

    Args:
        seed: draws everything.
        size: height and width, at least 16.
        clients: number of clients.
        examples, test_examples: scenes of each client.
        digits: largest number of different digits in a scene, and the size of a group; 1 to 5.
        skew: chance that a scene takes its digits from one of its client's groups; 0 = all clients alike.
        test: 'common' or 'own'.

    Raises:
        UserError: an option out of range.
    """
    _check(seed, size, clients, examples, test_examples, digits, skew, test)
    from sklearn.datasets import load_digits

    bundled: Any = load_digits()
    sources = _sources(bundled.target, seed)
    x, y = [], []
    for k in range(clients):
        rng = np.random.RandomState([seed, 1, k])
        groups = rng.permutation(10)[: 2 * digits].reshape(2, digits)
        for split, n in ((TRAIN, examples), (TEST, test_examples)):
            share = 0.0 if split == TEST and test == "common" else skew
            rng = np.random.RandomState([seed, 2, k, split])
            labels = np.stack([_label_set(rng, groups, share) for _ in range(n)]) if n else np.zeros((0, 10), np.uint8)
            x.append(_scenes(rng, labels, bundled.images / 16.0, sources[split], size))
            y.append(labels)
    return Dataset(
        name="digit_scenes",
        x=np.concatenate(x),
        y=np.concatenate(y),
        task="multi",
        class_names=NAMES,
        client=np.repeat(np.arange(clients, dtype=np.int32), examples + test_examples),
        client_names=tuple(f"client_{k:0{len(str(clients - 1))}d}" for k in range(clients)),
        split=np.tile(np.repeat([TRAIN, TEST], [examples, test_examples]), clients).astype(np.int8),
    )


def _check(
    seed: int, size: int, clients: int, examples: int, test_examples: int, digits: int, skew: float, test: str
) -> None:
    field = "config.data.digit_scenes"
    if not 0 <= seed < 2**32:
        raise UserError(f"{field}.seed: {seed}, expected at least 0 and below 2**32")
    if size < 16:
        raise UserError(f"{field}.size: {size}, expected at least 16 pixels")
    for option, value, least in (
        ("clients", clients, 1),
        ("examples", examples, 1),
        ("test_examples", test_examples, 0),
    ):
        if value < least:
            raise UserError(f"{field}.{option}: {value}, expected at least {least}")
    if not 1 <= digits <= 5:
        raise UserError(f"{field}.digits: {digits}, expected 1 to 5")
    if not 0 <= skew <= 1:
        raise UserError(f"{field}.skew: {skew}, expected a chance of 0 to 1")
    if test not in TESTS:
        raise UserError(f"{field}.test: unknown name '{test}'{nearest(test, TESTS)}")


def _sources(target: np.ndarray, seed: int) -> dict[int, list[np.ndarray]]:
    """Of each digit the source images of training scenes (seven in ten) and those of test scenes."""
    rng = np.random.RandomState([seed, 0])
    rows = [rng.permutation(np.flatnonzero(target == digit)) for digit in range(10)]
    cuts = [round(0.7 * len(of_digit)) for of_digit in rows]
    return {
        TRAIN: [of_digit[:cut] for of_digit, cut in zip(rows, cuts, strict=True)],
        TEST: [of_digit[cut:] for of_digit, cut in zip(rows, cuts, strict=True)],
    }


def _label_set(rng: np.random.RandomState, groups: np.ndarray, skew: float) -> np.ndarray:
    """[10] uint8: one digit and, each with chance 0.7, up to as many more as a group has."""
    choices = groups[rng.randint(2)] if rng.uniform() < skew else np.arange(10)
    labels = np.zeros(10, np.uint8)
    labels[rng.permutation(choices)[: 1 + rng.binomial(groups.shape[1] - 1, 0.7)]] = 1
    return labels


def _scenes(
    rng: np.random.RandomState, y: np.ndarray, images: np.ndarray, sources: list[np.ndarray], size: int
) -> np.ndarray:
    """uint8 [n, size, size, 3]: all scenes get their first digit, then those with more their second, and so on."""
    scenes = _grounds(rng, len(y), size)
    order = np.argsort(np.where(y, rng.uniform(size=y.shape), 2.0), axis=1)  # [n, 10], those shown first
    centres = np.full((len(y), 0, 2), 0.0)
    for slot in range(int(y.sum(1).max(initial=0))):
        pictures = images[[rng.choice(sources[digit]) for digit in order[:, slot]]]
        extent = rng.uniform(1.5, 2.2, (len(y), 2)) * size / 4  # height and width, 12 to 18 pixels of 32
        centre = _centre(rng, extent, centres, size)
        centres = np.concatenate([centres, centre[:, None]], 1)
        ink = _ink(pictures, centre, extent, size) * (y.sum(1) > slot)[:, None, None]
        colour = rng.uniform(0.55, 1.0, (len(y), 1, 1, 3))
        scenes += (ink * rng.uniform(0.65, 1.0, (len(y), 1, 1)))[..., None] * (colour - scenes)
    bright = rng.uniform(size=len(y)) < 0.3
    scenes[bright] = 1 - scenes[bright]  # dark digits on a bright ground
    return np.round(np.clip(scenes, 0, 1) * 255).astype(np.uint8)


def _grounds(rng: np.random.RandomState, n: int, size: int) -> np.ndarray:
    """[n, size, size, 3]: two dark colours of each scene, mixed by waves of random direction and length, and noise."""
    axis = np.arange(size) / size
    frequency = rng.uniform(-4, 4, (2, n, 4, 1, 1))
    phase = rng.uniform(0, 2 * np.pi, (n, 4, 1, 1))
    wave = np.sin(2 * np.pi * (frequency[0] * axis[:, None] + frequency[1] * axis) + phase)
    mixed = 0.5 + 0.25 * wave.sum(1) + rng.normal(0, 0.15, (n, size, size))
    one, other = rng.uniform(0, 0.5, (2, n, 1, 1, 3))
    return one + np.clip(mixed, 0, 1)[..., None] * (other - one)


def _centre(rng: np.random.RandomState, extent: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """[n, 2]: of a few random places inside the scene the one farthest from the digits that are there."""
    places = extent[:, None] / 2 + rng.uniform(size=(len(extent), PLACES, 2)) * (size - extent)[:, None]
    apart = (places[:, :, None] - centres[:, None]) * (1.0, 1.5)  # [n, PLACES, digits so far, 2]; digits are narrow
    best = np.linalg.norm(apart, axis=-1).min(-1, initial=size).argmax(1)
    return places[np.arange(len(places)), best]


def _ink(pictures: np.ndarray, centre: np.ndarray, extent: np.ndarray, size: int) -> np.ndarray:
    """[n, size, size]: digits [n, 8, 8] enlarged (bilinear) to `extent` about `centre`, zero elsewhere."""
    at = (np.arange(size) + 0.5 - centre[..., None]) * 8 / extent[..., None] + 3.5  # [n, 2, size] source coordinates
    weights = np.maximum(0, 1 - np.abs(at[..., None] - np.arange(8)))  # [n, 2, size, 8]
    return weights[:, 0] @ pictures @ weights[:, 1].transpose(0, 2, 1)
