"""FedDyn on PRR-FL's dermoscopy: a regulariser that moves with the rounds.

Paper: arXiv 2111.04263. The released code's setting is CIFAR-10 among 100 clients, 1000 rounds of 5 epochs, batch 50, lr
0.1, weight decay 1e-3, clipping to norm 10, alpha 0.01. Setting here: configs/dermoscopy.py; and lr 0.1 without momentum,
clipping and alpha as there.
Command: python launch.py --config=configs/feddyn_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("feddyn")
    config.client.sgd.momentum = 0.0
    config.client.lr = 0.1
    config.client.clip = 10.0
    config.feddyn.alpha = 0.01
    return config
