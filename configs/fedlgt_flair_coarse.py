"""FedLGT on FLAIR's 17 coarse labels as in its paper: 41,131 users, 50 a round drawn by their number of images.

Paper: arXiv 2312.07165. ResNet-18 with ImageNet weights (torchvision's file as config.model.weights), CLIP ViT-B/16. The
prompt of a class names its commonest fine labels: config.text.subclasses is FLAIR's label_relationship.txt,
config.text.counts the HDF5 file again. At most 512 images of a user (as pfl-research), since a cohort takes as much memory
as its largest user's; max_images=0 is all.
Command: python launch.py --config=configs/fedlgt_flair_coarse.py --config.data.flair.path=flair_federated.hdf5 \
    --config.data.flair.metadata=labels_and_metadata.json --config.model.weights=resnet18.pth \
    --config.text.subclasses=label_relationship.txt --config.text.counts=flair_federated.hdf5
Measured: not yet run (a GPU and the images are needed); published: C-AP 60.90, C-F1 55.10, O-AP 88.70, O-F1 79.70.
"""

from ml_collections import ConfigDict

from configs import base, multilabel

VARIANTS = multilabel.VARIANTS


def get_config(variant: str = "fedlgt") -> ConfigDict:
    config = base.get_config()
    multilabel.published(config)
    config.data.source = "flair"
    config.data.flair.labels = "coarse"
    config.data.flair.max_images = 512
    config.split.how = "global"
    config.cohort.sampling = "by_size"
    config.cohort.size = 50
    config.text.construction = "concat"  # the 20 commonest fine labels of the class; :avg and :plain are the others
    return multilabel.variant(config, variant)
