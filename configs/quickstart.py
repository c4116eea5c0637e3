"""Quickstart: FedLGT on scenes of handwritten digits at four clients, one model that names every digit it sees."""

from ml_collections import ConfigDict

from configs import fedlgt_digit_scenes


def get_config() -> ConfigDict:
    config = fedlgt_digit_scenes.get_config()
    config.name = "quickstart"
    config.rounds = 10
    return config
