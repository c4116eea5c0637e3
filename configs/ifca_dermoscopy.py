"""IFCA on PRR-FL's dermoscopy: two global models, each hospital takes the one that fits it better.

Paper: arXiv 2006.04088 (hundreds of clients in clusters; here three hospitals). Setting: configs/dermoscopy.py.
Command: python launch.py --config=configs/ifca_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("ifca")
