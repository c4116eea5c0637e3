"""Data: sources, partitions into clients, splits, augmentation, and what a federation looks like.

`load(config.data)` gives a `Dataset`, `federate(dataset, config.split, seed)` a `Federation`.
"""

from collections.abc import Callable
from typing import Any

from fedjax_pfl.data import (
    amazon_reviews,
    arrays,
    coco,
    dermoscopy,
    digit5,
    digit_scenes,
    digits,
    domains,
    fcube,
    flair,
    ham10000,
    medmnist,
    npz,
    office_features,
    prostate,
    tfds,
    voc,
)
from fedjax_pfl.data.augment import normalise, pipeline
from fedjax_pfl.data.partition import PARTITIONS
from fedjax_pfl.data.show import describe, draw, fingerprint
from fedjax_pfl.data.split import federate
from fedjax_pfl.data.types import Dataset, Federation
from fedjax_pfl.registry import lookup

SOURCES: dict[str, Callable[..., Dataset]] = {
    "digits": digits.digits,
    "npz": npz.npz,
    "ham10000": ham10000.ham10000,
    "dermoscopy": dermoscopy.dermoscopy,
    "medmnist": medmnist.medmnist,
    "tfds": tfds.tfds,
    "mnist": arrays.mnist,
    "usps": arrays.usps,
    "mnist_m": arrays.mnist_m,
    "cifar10": arrays.cifar10,
    "fcube": fcube.fcube,
    "coco": coco.coco,
    "voc": voc.voc,
    "digit_scenes": digit_scenes.digit_scenes,
    "flair": flair.flair,
    "prostate": prostate.prostate,
    "digit5": digit5.digit5,
    "domains": domains.domains,
    "office_features": office_features.office_features,
    "amazon_reviews": amazon_reviews.amazon_reviews,
}


def load(section: Any) -> Dataset:
    """Read the data that `config.data` names: `source`, and a sub-section of options for each source.

    Raises:
        UserError: an unknown source, or whatever is wrong with its files.
    """
    source = lookup(SOURCES, section.source, "config.data.source")
    return source(**dict(section[section.source]))


__all__ = [
    "PARTITIONS",
    "SOURCES",
    "Dataset",
    "Federation",
    "describe",
    "draw",
    "federate",
    "fingerprint",
    "load",
    "normalise",
    "pipeline",
]
