"""FedLGT on 100 images of COCO 2017 at 32 x 32, 4 clients: that everything fits together, not what it can learn.

Setting: that of configs/fedlgt_voc.py, with the ViT-B/16 embeddings of COCO's 80 names; x_val is the test set.
Command: python launch.py --config=configs/fedlgt_coco_tiny.py
Measured: not yet run to its end (tests run a round of it).
"""

from ml_collections import ConfigDict

from configs import fedlgt_voc, multilabel

VARIANTS = multilabel.VARIANTS


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = fedlgt_voc.get_config()
    config.data.npz.path = "../shared/data/coco_tiny/coco_tiny_96x96.npz"
    config.data.npz.split = "split"
    config.data.npz.val = "test"
    config.split.partition = "homogeneous"
    config.split.homogeneous.clients = 4
    config.split.validation = 0.0
    config.text.key = "coco171_single"
    return multilabel.variant(config, variant)
