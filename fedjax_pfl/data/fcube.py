"""FCUBE, the synthetic feature skew of NIID-Bench (Li et al. 2022, arXiv 2102.02079, section IV-C)."""

import random

import numpy as np

from fedjax_pfl.data.types import TEST, TRAIN, Dataset
from fedjax_pfl.errors import UserError


def fcube(*, train: int = 4000, test: int = 1000, seed: int = 0) -> Dataset:
    """Points of the cube [-1, 1]^3, labelled by the side of the plane x1 = 0 (0: x1 > 0).

    The training points come in four equal runs, each out of two opposite octants, so that partition `fcube` with four
    clients gives each client a region of its own with both labels. The draws are those of the published code with
    `init_seed = seed` where `train` = 4000 and `test` = 1000.

    Args:
        train: number of training points, a multiple of 4.
        test: number of test points, uniform in the cube.
        seed: of Python's generator.
    """
    if train < 4 or train % 4 or test < 1:
        raise UserError(
            f"config.data.fcube: train = {train} and test = {test}, expected a positive multiple of 4 and at least 1"
        )
    draw = random.Random(seed).random
    x, y = [], []
    for octants in range(4):
        for i in range(train // 4):
            point = np.array([draw(), draw(), draw()])
            point *= (1, -1 if octants > 1 else 1, -1 if octants % 2 else 1)
            x.append(-point if i % 2 else point)
            y.append(i % 2)
    for _ in range(test):
        point = np.array([draw() * 2 - 1 for _ in range(3)])
        x.append(point)
        y.append(0 if point[0] > 0 else 1)
    split = np.repeat([TRAIN, TEST], [train, test]).astype(np.int8)
    return Dataset("fcube", np.array(x, np.float32), np.array(y, np.int32), "single", ("x1 > 0", "x1 < 0"), split=split)
