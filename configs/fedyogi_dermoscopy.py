"""FedYogi on PRR-FL's dermoscopy: adaptive server optimiser.

Paper: arXiv 2003.00295. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedyogi_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("fedyogi")
    config.fedyogi.server_lr = 0.01
    return config
