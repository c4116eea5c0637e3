"""FedBN on PRR-FL's dermoscopy: batch norm stays with the hospital.

Paper: arXiv 2102.07623. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedbn_dermoscopy.py
Measured (seed 0, 2 CPU cores, 2.2 min of training): best round by validation 10; test, mean over
hospitals: macro F1 0.369 (worst 0.286), AUC 0.671, accuracy 0.698; after one more local epoch
macro F1 0.466.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fedbn")
