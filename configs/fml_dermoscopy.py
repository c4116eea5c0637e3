"""FML on PRR-FL's dermoscopy: each hospital keeps a private model that learns with the one that travels.

Paper: arXiv 2006.16765. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fml_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fml")
