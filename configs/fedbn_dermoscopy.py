"""FedBN on PRR-FL's dermoscopy: batch norm stays with the hospital.

Paper: arXiv 2102.07623. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedbn_dermoscopy.py
Measured (seed 0, 2 CPU cores, 3.5 min of training beside other work): best round by validation 9; test, mean over
hospitals: macro F1 0.433 (worst 0.420), AUC 0.723, accuracy 0.730; after one more local epoch macro F1 0.400.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fedbn")
