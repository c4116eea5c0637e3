"""Power-of-choice on PRR-FL's dermoscopy: those hospitals train on which the model does worst.

Paper: arXiv 2010.01243, whose federations have many clients, of which d candidates are drawn by size and m train. Setting
here: configs/dermoscopy.py; all three hospitals are candidates and two of them train.
Command: python launch.py --config=configs/power_of_choice_dermoscopy.py
Measured: not yet run.
"""

from ml_collections import ConfigDict

from configs import dermoscopy


def get_config() -> ConfigDict:
    config = dermoscopy.get_config("power_of_choice")
    config.power_of_choice.chosen = 2
    return config
