"""FedHealth on the digits of configs/kd3a_digits.py: MNIST is the server's, the other four domains are users with labels.

Paper: arXiv 1907.09173 (its data, UCI's smartphone activities of 30 people, come in by config.data.source=npz). Setting: 15
rounds, the first 5 at the server; the dense layers are transferred, eta 0.01.
Command: python launch.py --config=configs/fedhealth_digits.py
Published: +5.3 % accuracy over conventional training, on activities. Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import kd3a_digits


def get_config() -> ConfigDict:
    config = kd3a_digits.get_config("fedhealth-usps")
    config.name = "fedhealth"
    config.kd3a.target = ""
    config.fedhealth.public = "mnist"
    config.fedhealth.cloud_rounds = 5
    return config
