"""ResNets (He et al. 2016, arXiv 1512.03385): torchvision's layout, and the CIFAR ones with parameter-free shortcuts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_pfl.models.conv import Conv, max_pool
from fedjax_pfl.models.layers import Classifier, Dense, check_images, norm

HE_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
HE_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

STEMS = ("imagenet", "cifar")

Module = Callable[..., Any]  # makes a layer from its options and its name


class Projection(nn.Module):
    """The shortcut where the shape changes: `0` a strided 1x1 convolution, `1` its norm (option B of the paper)."""

    features: int
    stride: int
    conv: Module
    norm: Module

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        x = self.conv(self.features, (1, 1), strides=self.stride, padding=0, name="0")(x)
        return self.norm(name="1")(x, train, mask)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width (`bottleneck`).

    Attributes:
        width: channels of the convolutions.
        stride: of the 3x3 convolution that has it.
        dilation: of the 3x3 convolutions.
        bottleneck: which of the two.
        projection: shortcuts that change shape are a `Projection`; otherwise every `stride`-th position with zero
            channels on both sides (option A).
        conv, norm: make the layers.
    """

    width: int
    stride: int
    bottleneck: bool
    projection: bool
    conv: Module
    norm: Module
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """x [B, H, W, I] -> [B, H / stride, W / stride, width or 4 * width]."""
        w, s = self.width, self.stride
        # (channels, kernel size, stride) of each convolution; torchvision strides the 3x3 one.
        plan = [(w, 1, 1), (w, 3, s), (4 * w, 1, 1)] if self.bottleneck else [(w, 3, s), (w, 3, 1)]
        y = x
        for i, (features, size, stride) in enumerate(plan, start=1):
            apart = self.dilation if size > 1 else 1
            options = dict(strides=stride, padding=apart * (size // 2), dilation=apart)
            y = self.conv(features, (size, size), **options, name=f"conv{i}")(y)
            y = self.norm(name=f"bn{i}")(y, train, mask)
            if i < len(plan):
                y = nn.relu(y)
        if x.shape != y.shape:
            x = self._shortcut(x, y.shape[-1], train, mask)
        return nn.relu(x + y)

    def _shortcut(self, x: jax.Array, features: int, train: bool, mask: jax.Array | None) -> jax.Array:
        if self.projection:
            return Projection(features, self.stride, self.conv, self.norm, name="downsample")(x, train, mask)
        extra = features - x.shape[-1]
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


class Stage(nn.Module):
    """Blocks `0`, `1`, ... of one width; the first has the stride, and the dilation of what came before."""

    blocks: int
    stride: int
    block: Module
    before: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        for i in range(self.blocks):
            stride, dilation = (self.stride, self.before) if i == 0 else (1, self.dilation)
            x = self.block(stride=stride, dilation=dilation, name=str(i))(x, train, mask)
        return x


class ResNet(Classifier):
    """`conv1`, `bn1`, `layer<s>.<i>.conv<j>` and `bn<j>`, `layer<s>.<i>.downsample.0` and `.1`, mean, `fc`.

    Attributes:
        blocks: number of blocks of each stage; the width doubles and the image halves from one to the next.
        bottleneck: three-convolution blocks.
        stem: 'imagenet' (7x7 convolution and 3x3 pool, both of stride 2) or 'cifar' (3x3 convolution).
        norm: 'batch', 'group' or 'none'; without a norm the convolutions get a bias in its place.
        impl: of the convolutions.
        width: channels of the first stage.
        option_a: the CIFAR network of the paper's section 4.2: shortcuts without parameters, classifier `linear`.
        output_stride: the image shrinks by no more than this; later stages are dilated in place of strided, with the same
            parameters (DeepLab, arXiv 1706.05587, section 3.2). None: all strides.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    stem: str
    norm: str
    impl: str
    width: int = 64
    option_a: bool = False
    output_stride: int | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        stem = ("conv1",) if self.norm == "none" else ("conv1", "bn1")
        stages = (f"layer{s + 1}" for s in range(len(self.blocks)))
        return *stem, *stages, "linear" if self.option_a else "fc"

    def setup(self) -> None:
        # The initial values are those of the networks that are followed: akamaster's and torchvision's.
        init = HE_IN if self.option_a else HE_OUT
        conv = partial(Conv, use_bias=self.norm == "none", kernel_init=init, impl=self.impl)
        make_norm = norm(self.norm)
        block = partial(Block, bottleneck=self.bottleneck, projection=not self.option_a, conv=conv, norm=make_norm)
        if self.stem == "imagenet":
            self.conv1 = conv(self.width, (7, 7), strides=2, padding=3)
        else:
            self.conv1 = conv(self.width, (3, 3), padding=1)
        self.bn1 = make_norm()
        shrunk, dilation = 4 if self.stem == "imagenet" else 1, 1
        for s, blocks in enumerate(self.blocks):
            stride, before = 1 if s == 0 else 2, dilation
            if self.output_stride is not None and shrunk * stride > self.output_stride:
                dilation, stride = dilation * stride, 1
            shrunk *= stride
            stage = Stage(blocks, stride, partial(block, width=self.width * 2**s), before, dilation)
            setattr(self, f"layer{s + 1}", stage)
        if self.option_a:
            self.linear = Dense(self.num_classes, kernel_init=HE_IN)
        else:
            self.fc = Dense(self.num_classes)

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        check_images(x, "resnet")
        x = nn.relu(self.bn1(self.conv1(x), train, mask))
        if self.stem == "imagenet":
            x = max_pool(x, 3, strides=2, padding=1)
        for s in range(len(self.blocks)):
            x = getattr(self, f"layer{s + 1}")(x, train, mask)
        return x

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.maps(x, train, mask).mean((1, 2))


def _cifar(blocks: int) -> Callable[..., ResNet]:
    def factory(num_classes: int, *, norm: str = "batch", impl: str = "auto") -> ResNet:
        """CIFAR ResNet with option-A shortcuts, in the layout of akamaster/pytorch_resnet_cifar10. Features: 64."""
        return ResNet(num_classes, (blocks,) * 3, False, "cifar", norm, impl, width=16, option_a=True)

    return factory


def _torchvision(blocks: tuple[int, ...], bottleneck: bool) -> Callable[..., ResNet]:
    def factory(num_classes: int, *, norm: str = "batch", stem: str = "imagenet", impl: str = "auto") -> ResNet:
        """ResNet in torchvision's layout; `stem='cifar'` for small images. Features: 512, with bottlenecks 2048."""
        return ResNet(num_classes, blocks, bottleneck, stem, norm, impl)

    return factory


resnet8 = _cifar(1)
resnet20 = _cifar(3)
resnet32 = _cifar(5)
resnet18 = _torchvision((2, 2, 2, 2), bottleneck=False)
resnet34 = _torchvision((3, 4, 6, 3), bottleneck=False)
resnet50 = _torchvision((3, 4, 6, 3), bottleneck=True)
resnet101 = _torchvision((3, 4, 23, 3), bottleneck=True)
