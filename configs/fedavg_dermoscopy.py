"""FedAvg on PRR-FL's dermoscopy: federated averaging.

Paper: arXiv 1602.05629. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/fedavg_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("fedavg")
    config.fedavg.weighting = "uniform"  # PRR-FL averages with 1/N
    return config
