"""Centralised training on PRR-FL's dermoscopy: the three hospitals' images pooled.

Paper: (baseline). Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/centralised_dermoscopy.py
Measured (seed 0, 2 CPU cores, 1.4 min of training): best round by validation 9; test, mean over hospitals: macro F1
0.435 (worst 0.418), AUC 0.771, accuracy 0.726; after one more local epoch macro F1 0.340.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("centralised")
