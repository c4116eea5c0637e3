"""KD3A on DomainNet, 345 classes: clipart, infograph, painting, quickdraw, real, sketch.

Paper: arXiv 2011.09757, whose settings these are: ResNet-101 from ImageNet weights (a PyTorch file), batch 50, 80 epochs of
30,000 samples, lr 0.01 -> 0.0001, gate 0.8 to 0.95. Data: the folder of the domains, config.data.domains.
Command: python launch.py --config=configs/kd3a_domainnet.py:kd3a-clipart --config.data.domains.path=<folder>
--config.model.weights=<resnet101.pth> (methods: configs/kd3a.py).
Published (target accuracy): clipart 72.5, infograph 23.4, painting 60.9, quickdraw 16.4, real 72.7, sketch 60.6.
Measured: not yet run; too much for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import base, kd3a

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

VARIANTS = kd3a.words(DOMAINS)


def get_config(variant: str = "kd3a-clipart") -> ConfigDict:
    config = base.get_config()
    kd3a.pictures(config, "resnet101", batch=50, samples=30000, epochs=80, lr=0.01)
    config.data.domains.domains = DOMAINS
    config.kd3a.gate = (0.8, 0.95)
    return kd3a.variant(config, variant, DOMAINS, {})
