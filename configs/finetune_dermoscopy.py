"""Fine-tuning after FedAvg on PRR-FL's dermoscopy: FedAvg for most rounds, then each hospital on its own.

Paper: arXiv 1910.10252. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/finetune_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("finetune")
    config.finetune.start = 7
    return config
