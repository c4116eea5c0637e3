"""LG-FedAvg on PRR-FL's dermoscopy: after some rounds of FedAvg each hospital has lower layers of its own.

Paper: arXiv 2001.01523. Its released CIFAR-10 setting: SGD lr 0.1 with momentum 0.5, batch 50, 1 local epoch, a tenth of 100
clients with 2 shards each in a round, 200 rounds after 1200 of FedAvg. Setting here, and what differs from PRR-FL's:
configs/dermoscopy.py; 6 of 12 rounds are FedAvg's, then the convolutions are local and the dense layers global.
Command: python launch.py --config=configs/lg_fedavg_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("lg_fedavg")
    config.lg_fedavg.start = 6
    config.lg_fedavg.local_layers = 5  # of 7
    return config
