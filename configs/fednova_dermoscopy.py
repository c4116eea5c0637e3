"""FedNova on PRR-FL's dermoscopy: clients with more local steps have no larger say.

Paper: arXiv 2007.07481. Its setting is CIFAR-10 among 16 clients (Dirichlet 0.1), VGG-11, 100 rounds of 2 epochs, batch 32,
lr 0.02 divided by 10 after half of the rounds and by 100 after three quarters, weight decay 1e-4, all clients in every
round; SGD, momentum 0.9, or a proximal term (config.fednova.mu). Setting here: configs/dermoscopy.py, whose hospitals differ
in their number of images and so of steps.
Command: python launch.py --config=configs/fednova_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fednova")
