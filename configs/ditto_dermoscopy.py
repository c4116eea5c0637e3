"""Ditto on PRR-FL's dermoscopy: a personal model drawn to the global one.

Paper: arXiv 2012.04221. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/ditto_dermoscopy.py
Measured (seed 0, 2 CPU cores, 3.3 min of training): best round by validation 12; test, mean over hospitals: macro F1
0.475 (worst 0.401), AUC 0.735, accuracy 0.763; after one more local epoch macro F1 0.468.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("ditto")
