"""MOON on PRR-FL's dermoscopy: a client's features stay near the global model's.

Paper: arXiv 2103.16257. Its setting is CIFAR-10 among 10 clients (Dirichlet 0.5), 100 rounds of 10 epochs, batch 64, lr 0.01
with momentum 0.9, weight decay 1e-5, T 0.5, mu 5 (1 for CIFAR-100 and Tiny-ImageNet), and a projection head. Setting here:
configs/dermoscopy.py.
Command: python launch.py --config=configs/moon_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("moon")
    config.moon.mu = 1.0
    config.moon.temperature = 0.5
    return config
