"""Ditto on PRR-FL's dermoscopy: a personal model drawn to the global one.

Paper: arXiv 2012.04221. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/ditto_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("ditto")
