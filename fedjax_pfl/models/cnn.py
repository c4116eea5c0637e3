"""The small convolutional networks of NIID-Bench, pfl-research, FedMD and KD3A.

Where theirs pool after the bias and a ReLU, these pool before: the same function and gradient, on a quarter of the values.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_pfl.errors import UserError
from fedjax_pfl.models.conv import Conv, Dropout, avg_pool, max_pool
from fedjax_pfl.models.layers import Classifier, Dense, check_images, check_rate, norm

GLOROT = nn.initializers.glorot_uniform()


class CNNNiid(Classifier):
    """conv 5x5 6 - pool - conv 5x5 16 - pool - fc 120 - fc 84 - C. Features: 84."""

    impl: str

    @property
    def layers(self) -> tuple[str, ...]:
        return "conv1", "conv2", "fc1", "fc2", "fc3"

    @property
    def flatten(self) -> dict[str, int]:
        return {"fc1": 16}

    def setup(self) -> None:
        self.conv1 = Conv(6, (5, 5), padding="VALID", impl=self.impl)
        self.conv2 = Conv(16, (5, 5), padding="VALID", impl=self.impl)
        self.fc1 = Dense(120)
        self.fc2 = Dense(84)
        self.fc3 = Dense(self.num_classes)

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        check_images(x, "cnn_niid", least=16)
        return nn.relu(self.conv2(nn.relu(self.conv1(x, pool=2)), pool=2))

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = nn.relu(self.fc1(self.maps(x).reshape(x.shape[0], -1)))
        return nn.relu(self.fc2(x))


def cnn_niid(num_classes: int, *, impl: str = "auto") -> CNNNiid:
    """`simple-cnn` of NIID-Bench (Li et al., ICDE 2022, arXiv 2102.02079), for images of 16x16 and more."""
    return CNNNiid(num_classes, impl)


class CNNPfl(Classifier):
    """conv 3x3 32 - conv 3x3 64 - pool - dropout - fc 128 - dropout - C. Features: 128."""

    dropout_conv: float
    dropout_dense: float
    impl: str

    @property
    def layers(self) -> tuple[str, ...]:
        return "conv1", "conv2", "fc1", "fc2"

    @property
    def flatten(self) -> dict[str, int]:
        return {"fc1": 64}

    def setup(self) -> None:
        self.conv1 = Conv(32, (3, 3), padding="VALID", kernel_init=GLOROT, impl=self.impl)
        self.conv2 = Conv(64, (3, 3), padding="VALID", kernel_init=GLOROT, impl=self.impl)
        self.fc1 = Dense(128, kernel_init=GLOROT)
        self.fc2 = Dense(self.num_classes, kernel_init=GLOROT)
        self.drop1 = Dropout(self.dropout_conv)
        self.drop2 = Dropout(self.dropout_dense)

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        check_images(x, "cnn_pfl", least=6)
        return self.drop1(nn.relu(self.conv2(nn.relu(self.conv1(x)), pool=2)), train)

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.drop2(nn.relu(self.fc1(self.maps(x, train).reshape(x.shape[0], -1))), train)


def cnn_pfl(num_classes: int, *, dropout_conv: float = 0.25, dropout_dense: float = 0.5, impl: str = "auto") -> CNNPfl:
    """`simple_cnn` of apple/pfl-research's CIFAR-10 benchmark (arXiv 2404.06430), Glorot kernels as there."""
    check_rate(dropout_conv, "model.cnn_pfl.dropout_conv")
    check_rate(dropout_dense, "model.cnn_pfl.dropout_dense")
    return CNNPfl(num_classes, dropout_conv, dropout_dense, impl)


class CNNFedMD(Classifier):
    """Two or three convolutions, each with norm, ReLU and dropout, and a classifier without bias. Features: the last maps."""

    widths: tuple[int, ...]
    dropout: float
    norm: str
    impl: str

    @property
    def layers(self) -> tuple[str, ...]:
        blocks = [f"{kind}{i}" for i in range(1, len(self.widths) + 1) for kind in ("conv", "bn")]
        return *(name for name in blocks if self.norm != "none" or name.startswith("conv")), "fc"

    @property
    def flatten(self) -> dict[str, int]:
        return {"fc": self.widths[-1]}

    def setup(self) -> None:
        # The first one keeps the image's size, the others halve it.
        sizes = [3, 3] if len(self.widths) == 2 else [3, 2, 3]
        for i, (width, size) in enumerate(zip(self.widths, sizes, strict=True), start=1):
            first = i == 1
            conv = Conv(
                width, (size, size), 1 if first else 2, "SAME" if first else "VALID", kernel_init=GLOROT,
                bias_init=nn.initializers.zeros, impl=self.impl,
            )  # fmt: skip
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", norm(self.norm)())
        self.drop = Dropout(self.dropout)
        self.fc = Dense(self.num_classes, use_bias=False, kernel_init=GLOROT)

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        check_images(x, "cnn_fedmd", least=3 if len(self.widths) == 2 else 12)
        for i in range(1, len(self.widths) + 1):
            x = getattr(self, f"conv{i}")(x)
            x = self.drop(nn.relu(getattr(self, f"bn{i}")(x, train, mask)), train)
            if i == 1:  # a 2x2 mean at stride 1; at the lower and the right edge of what there is
                x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
                x = (x[:, :-1] + x[:, 1:]) / 2
                x = (x[:, :, :-1] + x[:, :, 1:]) / 2
            elif i < len(self.widths):
                x = avg_pool(x, 2)
        return x

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.maps(x, train, mask).reshape(x.shape[0], -1)


def cnn_fedmd(
    num_classes: int,
    *,
    widths: Sequence[int] = (128, 256),
    dropout: float = 0.2,
    norm: str = "batch",
    impl: str = "auto",
) -> CNNFedMD:
    """The parties' networks of FedMD (Li and Wang, arXiv 1910.03581), told apart by widths and dropout.

    Two convolutions: 128-256, 128-384, 128-512 (0.2), 256-256 (0.3), 256-512 (0.4); three: 64-128-256, 64-128-192, 128-192-256
    (0.2), 128-128-128, 128-128-192 (0.3). Theirs have Keras' batch norm (epsilon 1e-3, momentum 0.99), these PyTorch's.
    """
    check_rate(dropout, "model.cnn_fedmd.dropout")
    if len(widths) not in (2, 3) or any(width < 1 for width in widths):
        raise UserError(f"model.cnn_fedmd.widths: {tuple(widths)} found, two or three positive numbers expected")
    return CNNFedMD(num_classes, tuple(widths), dropout, norm, impl)


class DigitEncoder(nn.Module):
    """Three 5x5 convolutions with norm and ReLU, the first two followed by a 3x3 pool of stride 2."""

    widths: tuple[int, int, int]
    norm: str
    impl: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """x [B, H, W, I] -> [B, H / 4, W / 4, widths[2]]."""
        for i, width in enumerate(self.widths, start=1):
            x = Conv(width, (5, 5), padding=2, impl=self.impl, name=f"conv{i}")(x)
            x = nn.relu(norm(self.norm)(name=f"bn{i}")(x, train, mask))
            if i < 3:
                x = max_pool(x, 3, strides=2, padding=1)
        return x


class DigitLinear(nn.Module):
    """Two dense layers with norm and ReLU, dropout between them."""

    widths: tuple[int, int]
    norm: str
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """x [B, in] -> [B, widths[1]]."""
        x = nn.relu(norm(self.norm)(name="bn4")(Dense(self.widths[0], name="fc1")(x), train, mask))
        x = Dropout(self.dropout)(x, train)
        return nn.relu(norm(self.norm)(name="bn5")(Dense(self.widths[1], name="fc2")(x), train, mask))


class CNNDigit(Classifier):
    """`encoder` (conv1, bn1, ..., bn3), `linear` (fc1, bn4, fc2, bn5) and the classifier `fc`. Features: 2048."""

    norm: str
    dropout: float
    impl: str
    conv_widths: tuple[int, int, int] = (64, 64, 128)
    dense_widths: tuple[int, int] = (3072, 2048)

    @property
    def layers(self) -> tuple[str, ...]:
        return "encoder", "linear", "fc"

    @property
    def flatten(self) -> dict[str, int]:
        return {"linear.fc1": self.conv_widths[2]}

    def setup(self) -> None:
        self.encoder = DigitEncoder(self.conv_widths, self.norm, self.impl)
        self.linear = DigitLinear(self.dense_widths, self.norm, self.dropout)
        self.fc = Dense(self.num_classes)

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        check_images(x, "cnn_digit")
        return self.encoder(x, train, mask)

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.linear(self.maps(x, train, mask).reshape(x.shape[0], -1), train, mask)


def cnn_digit(
    num_classes: int, *, width: float = 1.0, norm: str = "batch", dropout: float = 0.5, impl: str = "auto"
) -> CNNDigit:
    """The Digit-5 network of KD3A (Feng et al., ICML 2021, arXiv 2011.09757).

    Their classifier is a network of its own with the one entry `linear.fc`; here it is `fc`.
    """
    check_rate(dropout, "model.cnn_digit.dropout")
    if width <= 0:
        raise UserError(f"config.model.cnn_digit.width: found {width}, expected more than 0")
    a, b, c, d, e = (max(1, round(width * full)) for full in (64, 64, 128, 3072, 2048))
    return CNNDigit(num_classes, norm, dropout, impl, (a, b, c), (d, e))
