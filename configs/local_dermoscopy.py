"""Local training on PRR-FL's dermoscopy: every hospital alone.

Paper: (baseline). Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/local_dermoscopy.py
Measured (seed 0, 2 CPU cores, 2.0 min of training): best round by validation 12; test, mean over hospitals: macro F1
0.439 (worst 0.327), AUC 0.807, accuracy 0.759; after one more local epoch macro F1 0.435.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("local")
