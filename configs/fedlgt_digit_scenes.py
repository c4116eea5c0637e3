"""FedLGT on scenes of handwritten digits, 4 clients whose digits go together differently; no download.

Paper: arXiv 2312.07165. Here a ResNet-8 and a transformer of width 64 with 2 layers, both from random weights, learn from
1,200 scenes in 12 rounds of 2 epochs with Adam 1e-3, batch 8; label embeddings of MiniLM (in the package).
Command: python launch.py --config=configs/fedlgt_digit_scenes.py (or :fedctran, :ule, :camle, :fedavg)
Measured (2 CPU cores, under 3 minutes each, pooled test set, mean over seeds 0, 1, 2): C-AP FedAvg 48.3, FedC-Tran 43.4,
+ CA-MLE 43.2, + ULE 42.4, FedLGT 44.3; C-F1 27.2, 23.2, 24.5, 29.8, 33.6. All metrics and a reading: README.
"""

from ml_collections import ConfigDict

from configs import base, multilabel

VARIANTS = multilabel.VARIANTS


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = base.get_config()
    multilabel.published(config)
    config.data.source = "digit_scenes"
    config.data.digit_scenes.clients = 4
    config.data.digit_scenes.skew = 0.5
    config.split.how = "global"
    config.text.embeddings = "package"
    config.model.ctran.backbone = "resnet8"
    config.model.ctran.width = config.model.ctran.feedforward = 64
    config.model.ctran.depth = 2
    config.model.ctran.dropout = 0.0
    config.rounds = 12
    config.client.epochs = 2
    config.client.batch_size = 8
    config.client.lr = 1e-3
    config.augment.flip_horizontal = 0.0
    config.augment.mean = (0.5,)
    config.augment.std = (0.25,)
    config.eval.every = 1
    return multilabel.variant(config, variant)
