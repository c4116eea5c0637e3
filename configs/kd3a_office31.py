"""KD3A on Office-31: amazon, dslr, webcam.

Paper: arXiv 2011.09757, whose settings these are: ResNet-50 from ImageNet weights (a PyTorch file), batch 32, 100 epochs of
5,000 samples, lr 0.005 -> 0.0001. Data: the folder of the domains, see config.data.domains in configs/base.py.
Command: python launch.py --config=configs/kd3a_office31.py:kd3a-amazon --config.data.domains.path=<folder>
--config.model.weights=<resnet50.pth> (methods: configs/kd3a.py).
Published: not verified. Measured: not yet run; too much for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import base, kd3a

DOMAINS = ("amazon", "dslr", "webcam")

VARIANTS = kd3a.words(DOMAINS)


def get_config(variant: str = "kd3a-amazon") -> ConfigDict:
    config = base.get_config()
    kd3a.pictures(config, "resnet50", batch=32, samples=5000, epochs=100, lr=0.005)
    config.data.domains.domains = DOMAINS
    return kd3a.variant(config, variant, DOMAINS, {})
