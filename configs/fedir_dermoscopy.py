"""FedIR on PRR-FL's dermoscopy: examples weigh as if each hospital had everybody's diagnoses.

Paper: arXiv 2003.08082, whose data are iNaturalist and Landmarks by user, with server momentum. Setting here:
configs/dermoscopy.py, with the server of FedAvg (config.fedir.momentum=0.9 is FedAvgM's).
Command: python launch.py --config=configs/fedir_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("fedir")
