"""Decoupled training (cRT) on PRR-FL's dermoscopy: FedAvg, then a new classifier on class-balanced samples.

Paper: arXiv 1910.09217. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/crt_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("crt")
    config.crt.start = 9
    return config
