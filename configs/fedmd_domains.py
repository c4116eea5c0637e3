"""FedMD among five domains of digits, each with a CNN of its own: MNIST is public, and all agree on logits.

Paper: arXiv 1910.03581. Theirs: MNIST public, EMNIST letters of ten parties private, ten CNNs (`models.cnn_fedmd` names them;
here are five), 20 rounds, A of 5,000 examples, digest 1 epoch of batch 256, revisit 2 epochs of batch 5, Adam 1e-3.
Data: configs/kd3a_digits.py's, with at most 200 training images of a domain, 400 of MNIST; a quarter of theirs as A in a round.
Words: fedmd (the default), local (the same five CNNs, each alone).
Command: python launch.py --config=configs/fedmd_domains.py
Published (other data): some 20 % of accuracy gained over training alone. Measured (seed 0, one CPU core, 4 min a run), test
accuracy of mnist, mnist_m, svhn, synth, usps: fedmd 0.762, 0.676, 0.674, 0.405, 0.891, mean 0.682; local 0.713, 0.631, 0.548,
0.331, 0.883, mean 0.621. FedMD also trains 10 epochs on the public images first.
"""

from ml_collections import ConfigDict

from configs import kd3a_digits

VARIANTS = ("fedmd", "local")
CNNS = (
    "cnn_fedmd(widths=(128, 256))",
    "cnn_fedmd(widths=(64, 128, 256))",
    "cnn_fedmd(widths=(64, 128, 192))",
    "cnn_fedmd(widths=(128, 128, 128), dropout=0.3)",
    "cnn_fedmd(widths=(128, 192, 256))",
)


def get_config(variant: str = "fedmd") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"no variant '{variant}' (one of: {', '.join(VARIANTS)})")
    config = kd3a_digits.get_config("fedavg-usps")
    config.name = variant
    config.method = variant
    config.cohort.sampling, config.cohort.ids = "all", ()
    config.client.weight_decay = 0.0
    config.model.per_client = CNNS
    config.data.digit5.train = 200
    config.fedmd.public = "mnist"
    config.fedmd.alignment = 100
    config.fedmd.pretrain_epochs = 10
    config.fedmd.private_epochs = 10
    config.fedmd.digest_batch_size = 32
    config.client.optimizer = "adam"
    config.client.lr = 1e-3
    config.client.schedule.name = "constant"
    config.client.epochs = 2 if variant == "fedmd" else 4  # 20 epochs on the private data in all, for either
    config.client.batch_size = 10
    config.rounds = 5
    config.eval.every = 1
    return config
