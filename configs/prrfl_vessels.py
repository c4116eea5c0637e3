"""Vessels in photographs of the retina, two sites (DRIVE and CHASE_DB1), 80 x 80."""

from ml_collections import ConfigDict

from configs import base, segmentation


def get_config(variant: str = "fedavg") -> ConfigDict:
    config = base.get_config()
    segmentation.small(config)
    config.data.source = "npz"
    config.data.npz.path = "../shared/data/retina_vessels/retina_vessels_160x160.npz"
    config.data.npz.y = "vessel_coverage"
    config.data.npz.threshold = 96
    config.data.npz.size = 80
    config.data.npz.split_names = ("train", "test")
    config.rounds = 12
    config.client.epochs = 5
    config.client.batch_size = 4
    config.client.lr = 5e-3
    config.eval.every = 3
    return segmentation.variant(config, variant)
