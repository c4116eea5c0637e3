"""FedLGT on MS-COCO 2014 as in its paper: 80 labels, 256 x 256, a random equal split, all clients in every round.

Paper: arXiv 2312.07165. ResNet-18 with ImageNet weights (torchvision's file as config.model.weights), CLIP ViT-B/16. The
number of clients and the rounds on COCO aren't published; here 50 and 50, as on FLAIR.
Command: python launch.py --config=configs/fedlgt_coco.py \
    --config.data.coco.path=COCO --config.model.weights=resnet18.pth
Measured: not yet run (a GPU and the images are needed); published: O-F1 76.8, FedC-Tran 75.3.
"""

from ml_collections import ConfigDict

from configs import base, multilabel

VARIANTS = multilabel.VARIANTS


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = base.get_config()
    multilabel.published(config)
    config.data.source = "coco"
    config.split.partition = "homogeneous"
    config.split.homogeneous.clients = 50
    config.split.how = "global"
    config.split.validation = 0.0
    return multilabel.variant(config, variant)
