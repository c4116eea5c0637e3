"""VHL on PRR-FL's dermoscopy: virtual images made of noise, the same at all hospitals, to which features are laid by class.

Paper: arXiv 2206.02465. Its setting is CIFAR-10 among 10 clients (Dirichlet 0.1), 5 a round, 1,000 rounds, ResNet-18, batch 128
of real and of virtual images, lr 0.01 x 0.992 per round, momentum 0.9, weight decay 1e-4. Setting here: configs/dermoscopy.py.
Command: python launch.py --config=configs/vhl_dermoscopy.py
Published (CIFAR-10, from memory): FedAvg 79.98 -> 87.82. Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("vhl")
