"""SCAFFOLD on PRR-FL's dermoscopy: control variates against client drift.

Paper: arXiv 1910.06378. Setting, and what differs from PRR-FL's: configs/dermoscopy.py; and lr 0.1 without
momentum, since SCAFFOLD reads a client's gradient off the way it went, which momentum 0.9 makes ten times too long (with
--config.client.sgd.momentum=0.9 --config.client.lr=0.02 it got macro F1 0.267, AUC 0.518).
Command: python launch.py --config=configs/scaffold_dermoscopy.py
Measured (seed 0, 2 CPU cores, 1.6 min of training): best round by validation 9; test, mean over hospitals: macro F1
0.395 (worst 0.327), AUC 0.674, accuracy 0.729; after one more local epoch macro F1 0.481.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("scaffold")
    config.client.sgd.momentum = 0.0
    config.client.lr = 0.1
    return config
