"""Centralised training on PRR-FL's dermoscopy: the three hospitals' images pooled.

Paper: (baseline). Setting, and what differs from PRR-FL's: configs/dermoscopy.py.
Command: python launch.py --config=configs/centralised_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    return dermoscopy.get_config("centralised")
