"""Data sharing on the digits of four made-up hospitals: the first one's examples are the server's, the others get half of them.

Paper: arXiv 1806.00582 (CIFAR-10, one class a client, 5 % of the data shared). No download, seconds.
Command: python launch.py --config=configs/data_sharing_digits.py
Published: about +30 % of accuracy on CIFAR-10. Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.method = "data_sharing"
    config.data_sharing.warmup_rounds = 2
    config.client.lr = 0.05
    config.client.sgd.momentum = 0.9
    return config
