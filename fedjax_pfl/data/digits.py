"""Handwritten digits from four imaginary hospitals: scikit-learn's 1,797 bundled images, no download.

The pictures are the 8 x 8 UCI digits (Alpaydin and Kaynak 1998). Each belongs to one hospital, which scans in its own
way and sees its own mix of digits:

    hospital_north  the reference scanner; all digits alike
    hospital_east   inverted and flat: dark digits on a bright ground, low contrast; mostly 0 to 4
    hospital_south  out of focus and noisy; mostly 5 to 9
    hospital_west   mirrored, on a bright slope; odd digits are rare
"""

from typing import Any

import numpy as np

from fedjax_pfl.data.types import Dataset
from fedjax_pfl.errors import UserError

HOSPITALS = ("hospital_north", "hospital_east", "hospital_south", "hospital_west")
SHARES = np.array(
    [  # of each digit's images, by hospital
        [0.28, 0.28, 0.28, 0.28, 0.28, 0.28, 0.28, 0.28, 0.28, 0.28],
        [0.37, 0.44, 0.37, 0.44, 0.37, 0.08, 0.04, 0.08, 0.04, 0.08],
        [0.05, 0.18, 0.05, 0.18, 0.05, 0.54, 0.38, 0.54, 0.38, 0.54],
        [0.30, 0.10, 0.30, 0.10, 0.30, 0.10, 0.30, 0.10, 0.30, 0.10],
    ]
)


def digits(*, seed: int = 0, size: int = 16) -> Dataset:
    """Four hospitals as natural clients, uint8 [1797, size, size, 1], no given split.

    Args:
        seed: draws which image goes to which hospital, and the noise of its scanner.
        size: height and width: 8 as published, or more (bilinear).
    """
    from scipy import ndimage
    from sklearn.datasets import load_digits

    if size < 8:
        raise UserError(f"config.data.digits.size: {size}, expected at least 8 pixels")
    if not 0 <= seed < 2**32:
        raise UserError(f"config.data.digits.seed: {seed}, expected at least 0 and below 2**32")
    source: Any = load_digits()
    rng = np.random.RandomState(seed)
    y = source.target.astype(np.int32)
    client = np.empty(len(y), np.int32)
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(y == digit))
        cuts = np.round(np.cumsum(SHARES[:, digit]) * len(rows)).astype(int)[:-1]
        for hospital, part in enumerate(np.split(rows, cuts)):
            client[part] = hospital

    x: Any = ndimage.zoom(source.images / 16.0, (1, size / 8, size / 8), order=1, grid_mode=True, mode="nearest")
    slope = np.add.outer(np.linspace(0, 0.5, size), np.linspace(0, 0.5, size))  # dark top left, bright bottom right
    east, south, west = (client == h for h in (1, 2, 3))
    x[east] = 0.75 - 0.45 * x[east]
    x[south] = ndimage.gaussian_filter(x[south], (0, size / 16, size / 16)) + rng.normal(0, 0.15, x[south].shape)
    x[west] = 0.5 * x[west][:, :, ::-1] ** 1.5 + 0.5 * slope
    images = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)[..., None]
    return Dataset("digits", images, y, "single", tuple("0123456789"), client, HOSPITALS)
