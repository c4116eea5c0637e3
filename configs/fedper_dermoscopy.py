"""FedPer on PRR-FL's dermoscopy: the classifier stays with the hospital.

Paper: arXiv 1912.00818. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedper_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fedper")
