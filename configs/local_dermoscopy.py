"""Local training on PRR-FL's dermoscopy: every hospital alone.

Paper: (baseline). Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/local_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("local")
