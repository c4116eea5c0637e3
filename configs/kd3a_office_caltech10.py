"""KD3A on Office-Caltech10: amazon, caltech, dslr, webcam.

Paper: arXiv 2011.09757, whose settings these are: ResNet-101 from ImageNet weights (a PyTorch file), batch 32, 100 epochs of
2,000 samples, lr 0.005 -> 0.0001. Data: the folder of the domains, see config.data.domains in configs/base.py.
Command: python launch.py --config=configs/kd3a_office_caltech10.py:kd3a-amazon --config.data.domains.path=<folder>
--config.model.weights=<resnet101.pth> (methods: configs/kd3a.py).
Published (unverified): 97.4, 96.4, 98.4, 99.7. Measured: not yet run; too much for two CPU cores.
"""

from ml_collections import ConfigDict

from configs import base, kd3a

DOMAINS = ("amazon", "caltech", "dslr", "webcam")

VARIANTS = kd3a.words(DOMAINS)


def get_config(variant: str = "kd3a-amazon") -> ConfigDict:
    config = base.get_config()
    kd3a.pictures(config, "resnet101", batch=32, samples=2000, epochs=100, lr=0.005)
    config.data.domains.domains = DOMAINS
    return kd3a.variant(config, variant, DOMAINS, {})
