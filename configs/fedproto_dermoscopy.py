"""FedProto on PRR-FL's dermoscopy: hospitals exchange the mean features of their classes, and no weights.

Paper: arXiv 2105.00243. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedproto_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fedproto")
