"""KD3A, with and without deputies, on five domains of digits, each the unlabelled target in turn: kd3a_digits.py:kd3a-usps.

Papers: KD3A arXiv 2011.09757; deputies: see configs/kd3a.py, which lists the methods. Targets: mnist, mnist_m, svhn, synth,
usps.
Data: MNIST, MNIST-M (a sample) and USPS; for SVHN photographs of digits in the street (Chars74K, 885 images, many of the same
signs, so that train and test are not independent); for SynthDigits computer fonts on BSDS500 patches. Setting: 1,000 training
and 1,000 test images of a domain at most, a quarter of the network's width, 15 epochs, batch 32, lr 0.02 -> 0.001. The paper's,
on a GPU: --config.data.digit5.path=<DigitFive> and the five files' options empty, --config.data.digit5.train=25000
--config.data.digit5.test=9000 --config.model.cnn_digit.width=1 --config.client.batch_size=128 --config.client.lr=0.05
--config.rounds=100 --config.data.digit5.tile_usps=True
Command: python launch.py --config=configs/kd3a_digits.py:det-usps
Published (Digit-5, not comparable: other data and sizes), target accuracy of KD3A: MNIST 99.2, MNIST-M 87.3, SVHN 85.6, Synth
89.4, USPS 98.5.
Measured (seed 0, 2 CPU cores beside other work), target USPS: kd3a 0.909, det 0.891, local with labels 0.961, another domain's
model 0.584 on average, 0.713 at best; the sources' own models, mean: kd3a 0.802, det 0.886, local 0.894.
Target MNIST-M: kd3a 0.598, det 0.617, labels 0.879, another domain's model 0.343 on average, 0.552 at best; the
sources' own models: kd3a 0.845, det 0.906, local 0.915; malicious50 0.554, irrelevant 0.621. kd3a on
mnist 0.951, svhn 0.665, synth 0.495 (best other domain's model 0.885, 0.520, 0.386), det 0.945, 0.697, 0.506. FedAvg on the
sources (pooled): mnist 0.959 (0.958), mnist_m 0.709 (0.698), svhn 0.593 (0.656), synth 0.532 (0.580), usps 0.860 (0.852).
Seed 1, kd3a and fedavg: usps 0.911, 0.867, mnist_m 0.670, 0.718, mnist 0.949, 0.951, svhn 0.729, 0.579, synth 0.539, 0.487;
malicious30-mnist_m (seed 0) 0.556. The others: not yet run.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base, kd3a

DOMAINS = ("mnist", "mnist_m", "svhn", "synth", "usps")
DATA = "../shared/data"
EXTRA: dict[str, Mapping[str, Any]] = {
    # a source whose labels are wrong, or that has nothing to do with digits (where it isn't the target)
    "malicious30": {"kd3a.poisoned": "synth", "kd3a.poison": 0.3},
    "malicious50": {"kd3a.poisoned": "synth", "kd3a.poison": 0.5},
    "irrelevant": {"data.digit5.svhn": f"{DATA}/cifar10/cifar10_sub.npz"},
}

VARIANTS = kd3a.words(DOMAINS, EXTRA)


def get_config(variant: str = "kd3a-usps") -> ConfigDict:
    config = base.get_config()
    data = config.data.digit5
    config.data.source = "digit5"
    data.mnist = f"{DATA}/mnist/mnist.npz"
    data.mnist_m = f"{DATA}/mnist_m/mnist_m_sub.npz"
    data.usps = f"{DATA}/usps/usps_16x16.npz"
    data.svhn = f"{DATA}/chars74k_natural/natural_digits_32x32.npz"
    data.synth = "made"
    data.fonts = f"{DATA}/chars74k_fonts/font_digits_28x28.npz"
    data.backgrounds = f"{DATA}/bsds500_patches/bsds500_train_patches_64x64.npz"
    data.domains = DOMAINS
    data.train = data.test = 1000
    config.augment.mean = config.augment.std = (0.5,)
    config.model.name = "cnn_digit"
    config.model.cnn_digit.width = 0.25
    config.rounds = 15
    config.client.batch_size = 32
    config.client.lr = 0.02
    config.client.schedule.final = 0.001
    config.eval.every = 5
    config.checkpoint.every = 5
    return kd3a.variant(config, variant, DOMAINS, EXTRA)
