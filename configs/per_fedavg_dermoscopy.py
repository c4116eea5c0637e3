"""Per-FedAvg on PRR-FL's dermoscopy: one model that is good after a gradient step on a hospital's own images.

Paper: arXiv 2002.07948. Settings of the released codes: inner step 0.03 and outer 0.003 (MNIST, logistic, in
CharlieDinh/pFedMe: 20 steps a round, batch 20, 5 of 20 clients, 800 rounds, first-order); Hessian-free with delta 0.001 and
outer step 0.01 (litian96/ditto). Setting here, and what differs from PRR-FL's: configs/dermoscopy.py; Hessian-free, so each
step costs 4 of another method's.
Command: python launch.py --config=configs/per_fedavg_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("per_fedavg")
