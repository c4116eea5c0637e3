"""Mime on PRR-FL's dermoscopy: corrected gradients and the server's momentum in every local step.

Paper: arXiv 2008.03606, whose data are EMNIST, CIFAR-100 and Shakespeare by user, with the momentum of a centralised
optimiser (or Adam) on the server. Setting here: configs/dermoscopy.py; no momentum of the clients' own, lr 0.1.
Command: python launch.py --config=configs/mime_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("mime")
    config.client.sgd.momentum = 0.0
    config.client.lr = 0.1
    return config
