"""Quickstart: FedBN on the digits of four made-up hospitals, a model for each of them."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.name = "quickstart"
    config.method = "fedbn"
    config.rounds = 20
    config.model.mlp.hidden = (128, 64)
    config.model.mlp.norm = "batch"
    config.client.lr = 0.05
    config.client.sgd.momentum = 0.9
    return config
