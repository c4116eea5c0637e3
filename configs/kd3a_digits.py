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
Measured (mean of seeds 0, 1, 2; CPU cores beside other work; README has spreads and each source's accuracy), accuracy on the
target mnist, mnist_m, svhn, synth, usps: kd3a 0.953, 0.630, 0.698, 0.522, 0.907; det 0.951, 0.631, 0.692, 0.518, 0.897; fedavg
0.958, 0.707, 0.588, 0.513, 0.859; pooled 0.963, 0.683, 0.649, 0.569, 0.858; source-only, mean of the other domains' models
(best) 0.737 (0.891), 0.345 (0.534), 0.355 (0.544), 0.269 (0.380), 0.597 (0.705); with labels 0.971, 0.872, 0.926, 0.801, 0.962.
The sources' own models, mean over sources, for these targets: alone 0.890, 0.915, 0.902, 0.933, 0.893; kd3a 0.785, 0.849,
0.860, 0.896, 0.783; det 0.884, 0.906, 0.899, 0.926, 0.887. Seed 0, on mnist_m: malicious30 0.556, malicious50 0.554, irrelevant
0.621. The others (kd3a_paper, further variants of the deputies, fedhealth): not yet run.
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
