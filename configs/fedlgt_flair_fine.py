"""FedLGT on FLAIR's 1,628 fine labels as in its paper: 41,131 users, 50 a round drawn by their number of images.

Paper: arXiv 2312.07165. ResNet-18 with ImageNet weights (torchvision's file as config.model.weights), CLIP ViT-B/16. At
most 512 images of a user (as pfl-research), since a cohort takes as much memory as its largest user's; max_images=0 is all.
Command: python launch.py --config=configs/fedlgt_flair_fine.py --config.data.flair.path=flair_federated.hdf5 \
    --config.data.flair.metadata=labels_and_metadata.json --config.model.weights=resnet18.pth
Measured: not yet run (a GPU and the images are needed); published: C-AP 10.60, C-F1 2.30, O-AP 42.20, O-F1 33.40.
"""

from ml_collections import ConfigDict

from configs import base, multilabel

VARIANTS = multilabel.VARIANTS


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = base.get_config()
    multilabel.published(config)
    config.data.source = "flair"
    config.data.flair.labels = "fine"
    config.data.flair.max_images = 512
    config.split.how = "global"
    config.cohort.sampling = "by_size"
    config.cohort.size = 50
    return multilabel.variant(config, variant)
