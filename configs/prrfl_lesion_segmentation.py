"""Lesion outlines in HAM10000's dermoscopic images, three sites, 64 x 64."""

from ml_collections import ConfigDict

from configs import base, segmentation


def get_config(variant: str = "fedavg") -> ConfigDict:
    config = base.get_config()
    segmentation.small(config)
    config.data.source = "npz"
    config.data.npz.path = "../shared/data/ham10000/ham10000_prrfl_64x64_sub.npz"
    config.data.npz.y = "mask"
    config.data.npz.client = "site"
    config.data.npz.group = "lesion"
    config.split.max_examples = 600
    config.rounds = 6
    config.client.epochs = 1
    config.client.lr = 5e-3
    config.eval.every = 3
    return segmentation.variant(config, variant)
