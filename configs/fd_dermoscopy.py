"""FD on PRR-FL's dermoscopy: hospitals exchange the mean predictions for each of their classes, and no weights.

Paper: arXiv 1811.11479 (whose data are others). Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fd_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fd")
