"""FedVC on PRR-FL's dermoscopy: hospitals of equal size, drawn by their size.

Paper: arXiv 2003.08082, whose data are iNaturalist and Landmarks by user, with server momentum. Setting here:
configs/dermoscopy.py; two of the three hospitals in a round, drawn by their number of images, 512 images each.
Command: python launch.py --config=configs/fedvc_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("fedvc")
    config.fedvc.n_vc = 512
    config.cohort.sampling = "by_size"
    config.cohort.size = 2
    return config
