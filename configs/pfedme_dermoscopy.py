"""pFedMe on PRR-FL's dermoscopy: personal models on a leash of length 1 / lambda, and a global one that follows them.

Paper: arXiv 2006.08848. Its released CIFAR-10 setting: eta = eta_p = 0.01, lambda 15, beta 1, 5 plain steps on each of 20
batches of 20 a round, l2 term 0.001, 5 of 20 clients with 3 labels each, 800 rounds. Setting here, and what differs from
PRR-FL's: configs/dermoscopy.py; plain steps, eta = eta_p = 0.01. Each batch costs 5 of another method's.
Command: python launch.py --config=configs/pfedme_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("pfedme")
    config.client.lr = 0.01
    config.client.sgd.momentum = 0.0
    config.client.weight_decay = 0.001
    return config
