"""pFedHN on PRR-FL's dermoscopy: the server's hypernetwork makes each hospital's model from an embedding of it.

Paper: arXiv 2103.04628. Its CIFAR-10 setting: a LeNet-like network, one of 50 clients a round, 50 local steps of batch 64 (SGD
lr 0.005, momentum 0.9, weight decay 5e-5, norm clip 50), server SGD lr 0.01 (pFedHN-PC: 0.05), momentum 0.9, weight decay
1e-3, norm clip 50, embeddings of 1 + N / 4, 3 hidden layers of 100, 5000 rounds. Setting here, and what differs from PRR-FL's:
configs/dermoscopy.py; a LeNet-like network, since each of its parameters takes 101 of the hypernetwork's. pFedHN-PC:
--config.pfedhn.personal_layers=1 --config.pfedhn.server_lr=0.05.
Command: python launch.py --config=configs/pfedhn_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("pfedhn")
    config.model.name = "cnn_niid"
    config.client.lr = 0.005
    config.client.clip = 50.0
    config.client.schedule.name = "constant"
    config.rounds = 60
    config.eval.every = 10
    return config
