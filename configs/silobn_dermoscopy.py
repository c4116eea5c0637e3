"""SiloBN on PRR-FL's dermoscopy: batch norm's running statistics stay with the hospital, its scale and bias are shared.

Paper: arXiv 2008.07424. Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/silobn_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("silobn")
