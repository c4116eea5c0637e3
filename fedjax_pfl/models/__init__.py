"""Flax models, by name. Each takes images [B, H, W, C] (the MLP anything) and returns logits; see `layers.Classifier`.

Those that return a class for every pixel are `layers.Segmenter`s.
"""

from collections.abc import Callable
from typing import Any

from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.models.cnn import cnn_digit, cnn_fedmd, cnn_niid, cnn_pfl
from fedjax_pfl.models.ctran import LABELS, POSITIONS, STATES, ctran
from fedjax_pfl.models.deeplab import deeplab_resnet18
from fedjax_pfl.models.layers import NORMS, Classifier
from fedjax_pfl.models.mlp import mlp
from fedjax_pfl.models.resnet import STEMS, resnet8, resnet18, resnet20, resnet32, resnet34, resnet50, resnet101
from fedjax_pfl.models.unet import unet
from fedjax_pfl.models.vgg import vgg16_slim
from fedjax_pfl.registry import lookup, options

# name -> factory (num_classes, *, options) -> model
MODELS: dict[str, Callable[..., Classifier]] = {
    "mlp": mlp,
    "cnn_niid": cnn_niid,
    "cnn_pfl": cnn_pfl,
    "cnn_fedmd": cnn_fedmd,
    "cnn_digit": cnn_digit,
    "vgg16_slim": vgg16_slim,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "unet": unet,
    "deeplab_resnet18": deeplab_resnet18,
    "ctran": ctran,
}

# The options that are a choice between words.
CHOICES = {
    "norm": tuple(NORMS),
    "stem": STEMS,
    "impl": ("auto", "xla", "gemm", "eigen"),
    "labels": LABELS,
    "states": STATES,
    "position": POSITIONS,
}


def build(name: str, num_classes: int, **chosen: Any) -> Classifier:
    """The model `name` for `num_classes` classes, with the options of its factory in `MODELS`.

    Raises:
        UserError: no such model, option or value of an option.
    """
    factory = lookup(MODELS, name, "model.name")
    known = options(factory)
    for option, value in chosen.items():
        if option not in known:
            raise UserError(f"model.{name}: unknown option '{option}'{nearest(option, known)}")
        if option in CHOICES and value not in CHOICES[option]:
            raise UserError(f"model.{name}.{option}: unknown value '{value}'{nearest(str(value), CHOICES[option])}")
    return factory(num_classes, **chosen)
