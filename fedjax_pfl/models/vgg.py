"""The slim VGG16 of PRR-FL."""

import flax.linen as nn
import jax

from fedjax_pfl.models.conv import max_pool
from fedjax_pfl.models.layers import Classifier, ConvNormReLU, Dense, DenseNormReLU, check_images

# Output channels of each convolution, by block, in units of the width of the first.
BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (4, 4, 4), (8, 8, 8))


class VGGBlock(nn.Module):
    """Convolutions `0`, `1`, ... and a 2x2 pool."""

    widths: tuple[int, ...]
    norm: str
    impl: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """x [B, H, W, I] -> [B, H / 2, W / 2, widths[-1]]."""
        for i, width in enumerate(self.widths):
            x = ConvNormReLU(width, self.norm, self.impl, name=str(i))(x, train, mask)
        return max_pool(x, 2)


class Linear(nn.Module):
    """A dense layer one level down, named `linear`."""

    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(self.features, use_bias=self.use_bias, name="linear")(x)


class VGG16Slim(Classifier):
    """`layer<b>.<i>.conv` and `.bn`, mean over all positions, `fc1.linear` and `.bn`, `fc2.linear`. Features: 64."""

    bias_fc2: bool
    norm: str
    impl: str
    width: int = 32

    @property
    def layers(self) -> tuple[str, ...]:
        return *(f"layer{b + 1}" for b in range(len(BLOCKS))), "fc1", "fc2"

    def setup(self) -> None:
        for name, block in zip(self.layers, BLOCKS, strict=False):
            setattr(self, name, VGGBlock(tuple(self.width * m for m in block), self.norm, self.impl))
        self.fc1 = DenseNormReLU(2 * self.width, self.norm, use_bias=False)
        self.fc2 = Linear(self.num_classes, self.bias_fc2)

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        check_images(x, "vgg16_slim", least=2 ** len(BLOCKS))
        for name in self.layers[: len(BLOCKS)]:
            x = getattr(self, name)(x, train, mask)
        return x

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.fc1(self.maps(x, train, mask).mean((1, 2)), train, mask)


def vgg16_slim(num_classes: int, *, bias_fc2: bool = False, norm: str = "batch", impl: str = "auto") -> VGG16Slim:
    """`VGG16_Slim_Checked` of PRR-FL (CityU-AIM-Group/PRR-FL), for images of 32x32 and more; no biases at all.

    `bias_fc2=True` is its `Biased` variant, where only the classifier has one.
    """
    return VGG16Slim(num_classes, bias_fc2, norm, impl)
