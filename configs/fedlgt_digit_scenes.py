"""FedLGT on scenes of handwritten digits, 8 clients whose digits go together differently; no download."""

from ml_collections import ConfigDict

from configs import base, multilabel


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = base.get_config()
    multilabel.published(config)
    config.data.source = "digit_scenes"
    config.split.how = "global"
    config.text.embeddings = "package"
    config.model.ctran.backbone = "cnn_digit"
    config.model.ctran.width = config.model.ctran.feedforward = 128
    config.rounds = 10
    config.client.epochs = 2
    config.client.lr = 1e-3
    config.augment.flip_horizontal = 0.0
    config.augment.mean = (0.5,)
    config.augment.std = (0.25,)
    config.eval.every = 1
    return multilabel.variant(config, variant)
