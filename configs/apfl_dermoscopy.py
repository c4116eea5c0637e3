"""APFL on PRR-FL's dermoscopy: each hospital mixes a private model with the global one, and learns in what share.

Paper: arXiv 2003.13461. Its released code: share 0.5 at the start, SGD with weight decay 5e-4, all steps at one rate,
uniform mean. Setting here, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/apfl_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("apfl")
