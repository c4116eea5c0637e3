"""Convolution, pooling and dropout that stay quick when every client has weights of its own.

XLA turns a convolution whose kernel differs between clients into a grouped convolution, on a CPU the slowest thing in
the whole program. `Conv` has the parameters of `flax.linen.Conv` and can compute itself as a matrix product instead.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_pfl.registry import lookup

# A padding as a user writes it: 'SAME', 'VALID', one number for all four sides, or ((top, bottom), (left, right)).
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]
Pairs = tuple[tuple[int, int], tuple[int, int]]


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _pad_pairs(padding: Padding, size: Sequence[int], window: Sequence[int], strides: Sequence[int]) -> Pairs:
    """Rows and columns to add on each side of an image of `size`: ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads(size, window, strides, padding)
    elif isinstance(padding, int):
        rows = columns = (padding, padding)
    else:
        rows, columns = ((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding)
    return (rows[0], rows[1]), (columns[0], columns[1])


def conv_xla(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Pairs, groups: int = 1) -> jax.Array:
    """XLA's own convolution: x [B, H, W, I], kernel [kh, kw, I / groups, O] -> [B, H', W', O]."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=dimensions, feature_group_count=groups
    )


def _patches(x: jax.Array, window: tuple[int, int], strides: tuple[int, int]) -> list[jax.Array]:
    """The kh * kw shifted and strided slices [B, H', W', I] of x [B, H, W, I], in the order of the kernel's taps."""
    (kh, kw), (sh, sw), (h, w) = window, strides, x.shape[1:3]
    rows, columns = (h - kh) // sh, (w - kw) // sw
    return [x[:, i : i + rows * sh + 1 : sh, j : j + columns * sw + 1 : sw, :] for i in range(kh) for j in range(kw)]


def conv_gemm(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Pairs, groups: int = 1) -> jax.Array:
    """The same as `conv_xla`, as one matrix product over shifted slices of `x`."""
    kh, kw, fan, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    patches = jnp.stack(_patches(x, (kh, kw), strides), axis=3)  # [B, H', W', kh * kw, I]
    outside = patches.shape[:3]
    if groups == 1:
        return (patches.reshape(-1, kh * kw * fan) @ kernel.reshape(-1, features)).reshape(*outside, features)
    patches = patches.reshape(*outside, kh * kw, groups, fan)
    y = jnp.einsum("bhwtgi,tigo->bhwgo", patches, kernel.reshape(kh * kw, fan, groups, features // groups))
    return y.reshape(*outside, features)


# PyTorch's default, kaiming_uniform_(a=sqrt(5)): U(-b, b) with b = 1 / sqrt(fan_in).
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's default bias of a layer with `fan_in` inputs to each output: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """2-D convolution with the parameters of `nn.Conv`: `kernel` [kh, kw, I / groups, O] and `bias` [O].

    Attributes:
        features: number of output channels O.
        kernel_size: (kh, kw).
        strides: one number or (rows, columns).
        padding: 'SAME', 'VALID', one number for all sides, (rows, columns), or ((top, bottom), (left, right)).
            PyTorch's `padding=1` is `1`; 'SAME' differs from it at stride 2.
        groups: input and output channels are split into so many groups that don't mix.
        use_bias: whether to add `bias`.
        kernel_init: initialiser of the kernel; PyTorch's default.
        bias_init: initialiser of the bias; None for PyTorch's default, which depends on the kernel's size.
        impl: 'xla', 'gemm' (a matrix product over shifted slices), or 'auto': 'gemm' on a CPU and 'xla' elsewhere.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = torch_kernel_init
    bias_init: Callable[..., jax.Array] | None = None
    impl: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, I] -> [B, H', W', features]."""
        kh, kw = self.kernel_size
        fan = x.shape[-1] // self.groups
        strides = _pair(self.strides)
        padding = _pad_pairs(self.padding, x.shape[1:3], (kh, kw), strides)
        kernel = self.param("kernel", self.kernel_init, (kh, kw, fan, self.features), jnp.float32)
        y = _implementation(self.impl)(x, kernel, strides, padding, self.groups)
        if self.use_bias:
            bias_init = self.bias_init or torch_bias_init(kh * kw * fan)
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            y = y + bias.reshape(1, 1, 1, -1)
        return y


_IMPLEMENTATIONS = {"gemm": conv_gemm, "xla": conv_xla}


def _implementation(impl: str) -> Callable[..., jax.Array]:
    if impl == "auto":
        impl = "gemm" if jax.default_backend() == "cpu" else "xla"
    return lookup(_IMPLEMENTATIONS, impl, "Conv.impl")


def max_pool(
    x: jax.Array, window: int | tuple[int, int], strides: int | tuple[int, int] | None = None, padding: Padding = 0
) -> jax.Array:
    """PyTorch's `max_pool2d`: x [B, H, W, C] -> [B, H', W', C].

    The last rows and columns that don't fill a window are left out; padding never wins. `strides` is `window` unless given.
    """
    window = _pair(window)
    strides = window if strides is None else _pair(strides)
    pads = _pad_pairs(padding, x.shape[1:3], window, strides)
    if strides == window and pads == ((0, 0), (0, 0)):
        # Not max(axis=...): its gradient compares the input with the stored maximum, and XLA may recompute that input inside
        # a fusion with another rounding, so that no element is the maximum and its gradient is lost, or becomes 0 / 0.
        windows = _windows(x, window)
        elements = [windows[:, :, i, :, j] for i in range(window[0]) for j in range(window[1])]
        return functools.reduce(lambda a, b: jnp.where((b > a) | jnp.isnan(b), b, a), elements)
    # A Python scalar, so that the gradient recognises the maximum's own identity.
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))


def avg_pool(
    x: jax.Array, window: int | tuple[int, int], strides: int | tuple[int, int] | None = None, padding: Padding = 0
) -> jax.Array:
    """PyTorch's `avg_pool2d`: x [B, H, W, C] -> [B, H', W', C]; padded zeros count in the mean.

    The last rows and columns that don't fill a window are left out. `strides` is `window` unless given.
    """
    window = _pair(window)
    strides = window if strides is None else _pair(strides)
    pads = _pad_pairs(padding, x.shape[1:3], window, strides)
    if strides == window and pads == ((0, 0), (0, 0)):
        return _windows(x, window).mean(axis=(2, 4))
    total = lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))
    return total / math.prod(window)


def _windows(x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """x [B, H, W, C] as its windows that don't overlap [B, H', kh, W', kw, C]; the remainder is cropped."""
    b, h, w, c = x.shape
    (kh, kw), rows, columns = window, h // window[0], w // window[1]
    return x[:, : rows * kh, : columns * kw].reshape(b, rows, kh, columns, kw, c)


class Dropout(nn.Module):
    """Dropout by random integers of 8 or 16 bits, four or two of them from each random word.

    A full word for each value costs more than the layer it drops. Eight bits give the rates that are multiples of 1/256
    exactly; other rates are rounded to a multiple of 1/65536, and the scale is that of the rounded rate, so that the
    mean is kept exactly. The mask is drawn from the key collection 'dropout'.

    Attributes:
        rate: probability that a value becomes 0.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x of any shape -> the same shape; the identity unless `train`."""
        if not train or self.rate == 0:
            return x
        lane = jnp.uint8 if float(self.rate * 256).is_integer() else jnp.uint16
        levels = jnp.iinfo(lane).max + 1
        dropped = round(self.rate * levels)
        if dropped == levels:
            return jnp.zeros_like(x)
        lanes = 4 // jnp.dtype(lane).itemsize
        words = jax.random.bits(self.make_rng("dropout"), (-(-x.size // lanes),), jnp.uint32)
        bits = lax.bitcast_convert_type(words, lane).reshape(-1)[: x.size].reshape(x.shape)
        return jnp.where(bits >= jnp.asarray(dropped, lane), x * (levels / (levels - dropped)), jnp.zeros((), x.dtype))
