"""Fine-tuning after FedAvg on PRR-FL's dermoscopy: FedAvg for most rounds, then each hospital on its own.

Paper: arXiv 1910.10252. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/finetune_dermoscopy.py
Measured (seed 0, 2 CPU cores, 1.6 min of training): best round by validation 12; test, mean over hospitals: macro F1
0.494 (worst 0.390), AUC 0.726, accuracy 0.764; after one more local epoch macro F1 0.504.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("finetune")
    config.finetune.start = 7
    return config
