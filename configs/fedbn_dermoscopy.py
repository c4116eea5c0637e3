"""FedBN on PRR-FL's dermoscopy: batch norm stays with the hospital.

Paper: arXiv 2102.07623. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedbn_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fedbn")
