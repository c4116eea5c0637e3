"""FedMD on the digits of four made-up hospitals: the first one's examples are public, and all agree on their logits.

Paper: arXiv 1910.03581 (MNIST public, EMNIST letters of 10 parties private, ten different CNNs, 20 rounds, A of 5,000 examples,
digest 1 epoch of batch 256, revisit 2 epochs of batch 5, Adam 1e-3). No download, seconds.
Command: python launch.py --config=configs/fedmd_digits.py
Published: some 20 % of accuracy gained over training alone. Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.method = "fedmd"
    config.fedmd.alignment = 200
    config.fedmd.digest_batch_size = 64
    config.client.optimizer = "adam"
    config.client.lr = 1e-3
    config.client.epochs = 2
    config.client.batch_size = 16
    return config
