"""The U-Net (Ronneberger, Fischer, Brox 2015, arXiv 1505.04597), for masks."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_pfl.errors import UserError
from fedjax_pfl.models.conv import Conv, max_pool, torch_bias_init, torch_kernel_init
from fedjax_pfl.models.layers import ConvNormReLU, Segmenter, along, check_images

HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # the paper's, section 3


class UpConv(nn.Module):
    """PyTorch's `ConvTranspose2d(I, features, 2, stride=2)`: each pixel becomes four, by one matrix product.

    With its gradients that takes a tenth of the time of a bilinear upsampling and a 3x3 convolution (two CPU cores, 16 and
    32 pixels, 64 and 32 channels).

    Params `kernel` [2, 2, features, I], `bias` [features].
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, h, w, I] -> [B, 2 h, 2 w, features]."""
        b, h, w, channels = x.shape
        kernel = self.param("kernel", torch_kernel_init, (2, 2, self.features, channels), jnp.float32)
        bias = self.param("bias", torch_bias_init(4 * self.features), (self.features,), jnp.float32)
        y = x.reshape(-1, channels) @ kernel.transpose(3, 0, 1, 2).reshape(channels, -1)
        y = y.reshape(b, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(b, 2 * h, 2 * w, self.features)
        return y + along(bias, y)


class Pair(nn.Module):
    """Two 3x3 convolutions, `0` and `1`."""

    features: int
    norm: str
    impl: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        for i in range(2):
            biased = self.norm == "none"  # else the norm's shift takes its place
            conv = ConvNormReLU(self.features, self.norm, self.impl, use_bias=biased, kernel_init=HE, name=str(i))
            x = conv(x, train, mask)
        return x


class Up(nn.Module):
    """`up`, the maps of the way down beside it, and `convs`."""

    features: int
    norm: str
    impl: str

    @nn.compact
    def __call__(self, x: jax.Array, beside: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """x [B, h, w, 2 features], beside [B, H, W, features], H and W 2 h and 2 w or one more -> as beside."""
        x = UpConv(self.features, name="up")(x)
        rest = (beside.shape[1] - x.shape[1], beside.shape[2] - x.shape[2])  # of an odd size, pooling left one out
        x = jnp.pad(x, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0)))
        return Pair(self.features, self.norm, self.impl, name="convs")(jnp.concatenate([beside, x], -1), train, mask)


class UNet(Segmenter):
    """`down<i>.<j>.conv` and `.bn`, `bottom.<j>`, `up<i>.up`, `up<i>.convs.<j>`, `out`. Features: `bottom`'s maps.

    Attributes:
        depth: number of poolings; level 1 has the image's size.
        width: channels of level 1; each level has twice those of the one above.
        norm: 'batch', 'group' or 'none'; without a norm the convolutions get a bias in its place.
        impl: of the convolutions.
    """

    depth: int
    width: int
    norm: str
    impl: str

    @property
    def layers(self) -> tuple[str, ...]:
        levels = range(1, self.depth + 1)
        return *(f"down{i}" for i in levels), "bottom", *(f"up{i}" for i in reversed(levels)), "out"

    def setup(self) -> None:
        for i in range(self.depth):
            setattr(self, f"down{i + 1}", Pair(self.width * 2**i, self.norm, self.impl))
            setattr(self, f"up{i + 1}", Up(self.width * 2**i, self.norm, self.impl))
        self.bottom = Pair(self.width * 2**self.depth, self.norm, self.impl)
        self.out = Conv(self.num_classes, (1, 1), impl=self.impl)

    def encode(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        check_images(x, "unet", least=2**self.depth)
        beside = []
        for i in range(self.depth):
            x = getattr(self, f"down{i + 1}")(x, train, mask)
            beside.append(x)
            x = max_pool(x, 2)
        return self.bottom(x, train, mask), tuple(beside)

    def decode(
        self,
        maps: jax.Array,
        earlier: tuple[jax.Array, ...],
        size: tuple[int, int],
        train: bool = False,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        x = maps
        for i in reversed(range(self.depth)):
            x = getattr(self, f"up{i + 1}")(x, earlier[i], train, mask)
        return self.out(x)


def unet(num_classes: int, *, depth: int = 4, width: int = 64, norm: str = "batch", impl: str = "auto") -> UNet:
    """The paper's network (depth 4, width 64), its convolutions padded so that logits have the image's size, with a norm.

    Images may have any size from 2^depth pixels up. Parameters of the paper's size, for one input channel: 31 million.
    """
    for option, value in (("depth", depth), ("width", width)):
        if value < 1:
            raise UserError(f"model.unet.{option}: {value} found, 1 or more expected")
    return UNet(num_classes, depth, width, norm, impl)
