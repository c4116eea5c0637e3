"""FedAvg on PRR-FL's dermoscopy: federated averaging.

Paper: arXiv 1602.05629. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedavg_dermoscopy.py
Measured (seed 0, 2 CPU cores, 1.5 min of training): best round by validation 9; test, mean over hospitals: macro F1
0.378 (worst 0.325), AUC 0.650, accuracy 0.712; after one more local epoch macro F1 0.398. Little is learnt beyond the
commonest class in so few steps.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("fedavg")
    config.fedavg.weighting = "uniform"  # PRR-FL averages with 1/N
    return config
