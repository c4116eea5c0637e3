"""FedLGT on PASCAL VOC 2007 as in its paper: 20 labels, 256 x 256, a random equal split, all clients in every round.

Paper: arXiv 2312.07165. ResNet-18 with ImageNet weights (torchvision's file as config.model.weights), CLIP ViT-B/16. The
number of clients and the rounds on VOC aren't published; here 50 and 50, as on FLAIR. Both years:
--config.data.voc.years="('2007','2012')".
Command: python launch.py --config=configs/fedlgt_voc2007.py \
    --config.data.voc.path=VOCdevkit --config.model.weights=resnet18.pth
Measured: not yet run (a GPU and the images are needed); published: C-F1 85.5, FedC-Tran 83.6.
"""

from ml_collections import ConfigDict

from configs import base, multilabel

VARIANTS = multilabel.VARIANTS


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = base.get_config()
    multilabel.published(config)
    config.data.source = "voc"
    config.split.partition = "homogeneous"
    config.split.homogeneous.clients = 50
    config.split.how = "global"
    config.split.validation = 0.0
    config.text.capitalise = True  # The photo contains Aeroplane.
    return multilabel.variant(config, variant)
