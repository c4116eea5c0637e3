"""DeepLabv3 (Chen et al. 2017, arXiv 1706.05587) on a ResNet-18, for masks: the network of PRR-FL's segmentation."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_pfl.errors import UserError
from fedjax_pfl.models.conv import Conv
from fedjax_pfl.models.layers import ConvNormReLU, Segmenter
from fedjax_pfl.models.resnet import ResNet

STRIDES = (8, 16, 32)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (section 3.3): `0` a 1x1 convolution, `1`, ... a 3x3 one for each rate, `pool` the
    mean over the image with a 1x1 convolution, side by side; then `project`, a 1x1 convolution of them all."""

    features: int
    rates: tuple[int, ...]
    norm: str
    impl: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """x [B, h, w, d] -> [B, h, w, features]."""

        def conv(name: str, size: int = 1, dilation: int = 1) -> ConvNormReLU:
            biased = self.norm == "none"  # else the norm's shift takes its place
            return ConvNormReLU(self.features, self.norm, self.impl, size, dilation, biased, name=name)

        branches = [conv("0")(x, train, mask)]
        branches += [conv(str(i), 3, rate)(x, train, mask) for i, rate in enumerate(self.rates, 1)]
        pooled = conv("pool")(x.mean((1, 2), keepdims=True), train, mask)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        return conv("project")(jnp.concatenate(branches, -1), train, mask)


class DeepLab(Segmenter):
    """`backbone`, `aspp`, `out` (1x1), then bilinear upsampling to the image's size. Features: the backbone's maps.

    Attributes:
        backbone: its classifier is never made.
        rates: of the `ASPP`.
        width: channels of the `ASPP`.
        norm, impl: of the head.
    """

    backbone: ResNet
    rates: tuple[int, ...]
    width: int
    norm: str
    impl: str

    @property
    def layers(self) -> tuple[str, ...]:
        return "backbone", "aspp", "out"

    def setup(self) -> None:
        self.aspp = ASPP(self.width, self.rates, self.norm, self.impl)
        self.out = Conv(self.num_classes, (1, 1), impl=self.impl)

    def encode(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return self.backbone.maps(x, train, mask), ()

    def decode(
        self,
        maps: jax.Array,
        earlier: tuple[jax.Array, ...],
        size: tuple[int, int],
        train: bool = False,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        z = self.out(self.aspp(maps, train, mask))
        return jax.image.resize(z, (z.shape[0], *size, z.shape[3]), "bilinear")  # PyTorch's, align_corners=False


def deeplab_resnet18(
    num_classes: int,
    *,
    output_stride: int = 16,
    rates: Sequence[int] = (6, 12, 18),
    width: int = 256,
    norm: str = "batch",
    stem: str = "imagenet",
    impl: str = "auto",
) -> DeepLab:
    """DeepLabv3 on torchvision's ResNet-18: features 512, images of any size.

    `output_stride` (8, 16 or 32) is what the maps are smaller than the image by at most; the paper halves it and doubles
    the rates together. The head is the paper's: one 1x1 convolution between the pyramid and the classifier.
    """
    if output_stride not in STRIDES:
        expected = ", ".join(map(str, STRIDES))
        raise UserError(f"model.deeplab_resnet18.output_stride: {output_stride} found, one of {expected} expected")
    if width < 1 or any(rate < 1 for rate in rates):
        raise UserError(
            f"model.deeplab_resnet18: width {width}, rates {tuple(rates)} found, numbers from 1 up expected"
        )
    backbone = ResNet(num_classes, (2, 2, 2, 2), False, stem, norm, impl, output_stride=output_stride)
    return DeepLab(num_classes, backbone, tuple(rates), width, norm, impl)
