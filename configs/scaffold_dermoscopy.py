"""SCAFFOLD on PRR-FL's dermoscopy: control variates against client drift.

Paper: arXiv 1910.06378. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/scaffold_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("scaffold")
