"""What the segmentation configs share: a small U-Net, and the methods, each a word after the file's name."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# `--config=configs/prrfl_vessels.py:fedbn`: the word, and what it changes.
VARIANTS: dict[str, Mapping[str, Any]] = {
    "local": {"method": "local"},
    "fedavg": {"method": "fedavg"},
    "fedbn": {"method": "fedbn"},
    # PRR-FL as its segmentation script has it: half of the cross entropy with prototypes, softmax maps that are drawn together
    "prrfl": {
        "method": "prrfl",
        "prrfl.cpa_weight": 0.5,
        "prrfl.plain_weight": 1.0,
        "loss.dice_cross_entropy.cross_entropy_weight": 0.5,
        "prrfl.distill": "mse",
        "prrfl.distill_weight": 10.0,
        "prrfl.tau": 1.0,
        "prrfl.start": 1,
        "prrfl.global_prototype": "avg",
        "prrfl.classwise": False,
    },
}


def small(config: ConfigDict) -> None:
    """What two CPU cores manage in a few minutes: a U-Net of depth 3 and width 16, Adam.

    PRR-FL's released code has for its five prostate sites DeepLab on a ResNet-18 at 256 x 256, batch 8, SGD without momentum,
    lr 1e-3 halved every 5 rounds, weight decay 1e-6, 20 rounds of 5 epochs, no augmentation. On a GPU, with data source
    `prostate`: --config.model.name=deeplab_resnet18 --config.data.prostate.size=256 --config.client.optimizer=sgd
    --config.client.lr=1e-3 --config.client.schedule.name=step --config.client.schedule.every=5
    --config.client.weight_decay=1e-6 --config.client.epochs=5 --config.rounds=20
    """
    config.model.name = "unet"
    config.model.unet.depth = 3
    config.model.unet.width = 16
    config.client.optimizer = "adam"
    config.client.lr = 2e-3
    config.client.schedule.name = "cosine"
    config.client.batch_size = 8
    config.augment.flip_horizontal = 0.5
    config.augment.flip_vertical = 0.5
    config.augment.mean = (0.5,)
    config.augment.std = (0.25,)
    config.eval.batch_size = 32
    config.eval.tuned = "never"


def variant(config: ConfigDict, word: str) -> ConfigDict:
    """The config of one of `VARIANTS`, named after it; call it last."""
    if word not in VARIANTS:
        raise ValueError(f"no variant '{word}' (one of: {', '.join(VARIANTS)})")
    config.update_from_flattened_dict(dict(VARIANTS[word]))
    config.name = word
    return config
