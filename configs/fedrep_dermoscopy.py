"""FedRep on PRR-FL's dermoscopy: each hospital trains its classifier, then the representation that all share.

Paper: arXiv 2102.07078. Its CIFAR-10 setting: 10 epochs of the head and 1 of the body, batch 10, SGD lr 0.01 with momentum
0.5, weight decay 1e-4, a tenth of 100 clients in each of 100 rounds, head: the last layer. Setting here, and what differs
from PRR-FL's: configs/dermoscopy.py; 2 epochs of the head, as each costs as much as one of the body.
Command: python launch.py --config=configs/fedrep_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("fedrep")
    config.fedrep.head_epochs = 2
    return config
