"""FedProx on PRR-FL's dermoscopy: FedAvg with a proximal term.

Paper: arXiv 1812.06127. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedprox_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("fedprox")
    config.fedprox.mu = 0.01  # PRR-FL's parser default
    return config
