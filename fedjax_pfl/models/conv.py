"""Convolution, pooling and dropout that stay quick when every client has weights of its own.

`Conv` has the parameters of `flax.linen.Conv` and three ways to compute itself, because XLA's own is the slowest thing in
a round on a CPU, in two ways:

- Under `vmap` a kernel per client makes a grouped convolution, which is slow everywhere on a CPU. `conv_gemm` is a matrix
  product over shifted slices of the image, and so stays one under `vmap`.
- XLA brings the gradients of a convolution into the form that Eigen computes only outside of loops, and a client's steps
  are a loop: inside it the gradient of the kernel takes a hundred times longer. `conv_eigen` writes all three in that form.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_pfl.compiler import apart
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


def conv_xla(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Pairs,
    groups: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """XLA's own convolution: x [B, H, W, I], kernel [kh, kw, I / groups, O] -> [B, H', W', O].

    `dilation`: pixels from one tap of the kernel to the next.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _patches(x: jax.Array, window: tuple[int, int], strides: tuple[int, int], dilation: int = 1) -> list[jax.Array]:
    """The kh * kw shifted and strided slices [B, H', W', I] of x [B, H, W, I], in the order of the kernel's taps."""
    (kh, kw), (sh, sw), (b, h, w, c) = window, strides, x.shape
    rows, columns = (h - 1 - (kh - 1) * dilation) // sh, (w - 1 - (kw - 1) * dilation) // sw
    return [
        lax.slice(x, (0, i, j, 0), (b, i + rows * sh + 1, j + columns * sw + 1, c), (1, sh, sw, 1))
        for i in range(0, kh * dilation, dilation)
        for j in range(0, kw * dilation, dilation)
    ]


FEW_CHANNELS = 16


def _stacked_patches(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int] = (1, 1), dilation: int = 1
) -> jax.Array:
    """The slices of `_patches` as one array [B, H', W', kh * kw, I]."""
    if x.shape[-1] >= FEW_CHANNELS:
        return jnp.stack(_patches(x, window, strides, dilation), axis=3)
    # A copy of few channels at a time is slow (1.4 to 2.5 times, on a CPU): first the taps of one row side by side, then
    # these, which are wider, below each other.
    (kh, kw), (sh, sw) = window, strides
    rows = jnp.concatenate(_patches(x, (1, kw), (1, sw), dilation), axis=3)
    patches = jnp.stack(_patches(rows, (kh, 1), (sh, 1), dilation), axis=3)
    return patches.reshape(*patches.shape[:3], kh * kw, x.shape[-1])


def conv_gemm(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Pairs,
    groups: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """The same as `conv_xla`, as one matrix product over shifted slices of `x`."""
    kh, kw, fan, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    patches = _stacked_patches(x, (kh, kw), strides, dilation)
    outside = patches.shape[:3]
    if groups == 1:
        return (patches.reshape(-1, kh * kw * fan) @ kernel.reshape(-1, features)).reshape(*outside, features)
    patches = patches.reshape(*outside, kh * kw, groups, fan)
    y = jnp.einsum("bhwtgi,tigo->bhwgo", patches, kernel.reshape(kh * kw, fan, groups, features // groups))
    return y.reshape(*outside, features)


def conv_eigen(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Pairs,
    groups: int = 1,
    dilation: int = 1,
) -> jax.Array:
    """`conv_xla` such that XLA on a CPU gives it and both its gradients to Eigen, also inside of loops.

    Where that can't be (groups, strides, dilation, padding wider than the kernel) or where a kernel is one pixel it is
    `conv_gemm`.
    It has gradients of any order in reverse mode; `jax.jvp` of it is refused, `conv_gemm` and `conv_xla` have both.
    """
    kh, kw = kernel.shape[:2]
    simple = groups == 1 and dilation == 1 and strides == (1, 1) and (kh, kw) != (1, 1)
    if not simple or max(padding[0]) >= kh or max(padding[1]) >= kw:
        return conv_gemm(x, kernel, strides, padding, groups, dilation)
    return _conv(x, kernel, padding)


# A convolution at stride 1 is bilinear, and the gradients of it and of its own gradients are two functions: `_conv`, and
# `_kernel_gradient`. So both can be differentiated any number of times in reverse mode.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, padding: Pairs) -> jax.Array:
    @jax.custom_batching.custom_vmap
    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv_xla(x, kernel, (1, 1), padding)

    @conv.def_vmap
    def _(size: int, batched: list[bool], x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, bool]:
        if not batched[1]:  # one kernel for all: a larger batch
            y = conv(x.reshape(-1, *x.shape[2:]), kernel)
            return y.reshape(*x.shape[:2], *y.shape[1:]), True
        axes = (0 if batched[0] else None, 0)
        return jax.vmap(lambda x, kernel: conv_gemm(x, kernel, (1, 1), padding), axes)(x, kernel), True

    return conv(x, kernel)


def _image_gradient(g: jax.Array, kernel: jax.Array, padding: Pairs) -> jax.Array:
    """Gradient of `_conv` by x, given that by its output: a convolution with the flipped kernel."""
    kh, kw = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    rest = (kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)
    return _conv(g, kernel[::-1, ::-1].swapaxes(2, 3), rest)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x: jax.Array, g: jax.Array, padding: Pairs) -> jax.Array:
    """Gradient [kh, kw, I, O] of `_conv` by its kernel: x [B, H, W, I] convolved with g [B, H', W', O], B being summed."""

    @jax.custom_batching.custom_vmap
    def gradient(x: jax.Array, g: jax.Array) -> jax.Array:
        x = jnp.pad(x.transpose(3, 1, 2, 0), ((0, 0), *padding, (0, 0)))
        return conv_xla(x, g.transpose(1, 2, 0, 3), (1, 1), ((0, 0), (0, 0))).transpose(1, 2, 0, 3)

    @gradient.def_vmap
    def _(size: int, batched: list[bool], x: jax.Array, g: jax.Array) -> tuple[jax.Array, bool]:
        axes = (0 if batched[0] else None, 0 if batched[1] else None)

        def gemm(x: jax.Array, g: jax.Array) -> jax.Array:
            x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
            window = x.shape[1] - g.shape[1] + 1, x.shape[2] - g.shape[2] + 1
            patches = _stacked_patches(x, window)
            return jnp.tensordot(patches, g, ((0, 1, 2), (0, 1, 2))).reshape(*window, x.shape[-1], g.shape[-1])

        return jax.vmap(gemm, axes)(x, g), True

    return gradient(x, g)


_conv.defvjp(
    lambda x, kernel, padding: (_conv(x, kernel, padding), (x, kernel)),
    lambda padding, saved, g: (_image_gradient(g, saved[1], padding), _kernel_gradient(saved[0], g, padding)),
)
_kernel_gradient.defvjp(
    lambda x, g, padding: (_kernel_gradient(x, g, padding), (x, g)),
    lambda padding, saved, k: (_image_gradient(saved[1], k, padding), _conv(saved[0], k, padding)),
)


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
        dilation: pixels from one tap of the kernel to the next.
        use_bias: whether to add `bias`.
        kernel_init: initialiser of the kernel; PyTorch's default.
        bias_init: initialiser of the bias; None for PyTorch's default, which depends on the kernel's size.
        impl: 'xla', 'gemm' or 'eigen' (see above), or 'auto': on a CPU the quicker of the latter two, 'xla' elsewhere.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    groups: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = torch_kernel_init
    bias_init: Callable[..., jax.Array] | None = None
    impl: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, pool: int = 1) -> jax.Array:
        """x [B, H, W, I] -> [B, H' / pool, W' / pool, features].

        Args:
            pool: followed by `max_pool(., pool)`, but before the bias is added: the same, with fewer additions.
        """
        kh, kw = self.kernel_size
        fan = x.shape[-1] // self.groups
        strides = _pair(self.strides)
        extent = ((kh - 1) * self.dilation + 1, (kw - 1) * self.dilation + 1)
        padding = _pad_pairs(self.padding, x.shape[1:3], extent, strides)
        kernel = self.param("kernel", self.kernel_init, (kh, kw, fan, self.features), jnp.float32)
        y = _implementation(self.impl, x, self.features)(x, kernel, strides, padding, self.groups, self.dilation)
        y = y if pool == 1 else max_pool(y, pool)
        if self.use_bias:
            bias_init = self.bias_init or torch_bias_init(kh * kw * fan)
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            y = y + bias.reshape(1, 1, 1, -1)
        return y


_IMPLEMENTATIONS = {"xla": conv_xla, "gemm": conv_gemm, "eigen": conv_eigen}


def _implementation(impl: str, x: jax.Array, features: int) -> Callable[..., jax.Array]:
    """The function that `impl` names; for 'auto' by what was measured: Eigen's packing pays off for larger images and
    more channels, and it has float32 only."""
    if impl == "auto":
        large = x.shape[1] * x.shape[2] >= 64 and min(x.shape[3], features) >= 16
        on_cpu = "eigen" if large and x.dtype == jnp.float32 else "gemm"
        impl = on_cpu if jax.default_backend() == "cpu" else "xla"
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
        return _largest(_windows(x, window))
    return _overlapping(x, window, strides, pads)


@jax.custom_jvp
def _largest(windows: jax.Array) -> jax.Array:
    """The maximum [B, H', W', C] of each window of [B, H', kh, W', kw, C]; NaN where there is one."""
    return _argmax(windows)[0]


@_largest.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The place of the maximum, kept from the forward pass, takes the whole gradient. Autodiff of max(axis=...) would compare
    # the input with the stored maximum instead, and XLA may recompute that input inside a fusion with another rounding, so
    # that no element is the maximum and its gradient is lost, or becomes 0 / 0.
    (windows,), (tangent,) = primals, tangents
    largest, place = apart(_argmax)(windows)
    kh, kw = windows.shape[2], windows.shape[4]
    places = jnp.arange(kh * kw, dtype=place.dtype).reshape(1, 1, kh, 1, kw, 1)
    chosen = place[:, :, None, :, None, :] == places
    return largest, jnp.sum(jnp.where(chosen, tangent, 0), axis=(2, 4))


def _argmax(windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first maximum of each window and its place in it, row by row."""
    kh, kw = windows.shape[2], windows.shape[4]

    def element(n: int) -> jax.Array:
        return lax.index_in_dim(lax.index_in_dim(windows, n // kw, 2, keepdims=False), n % kw, 3, keepdims=False)

    return _first_largest([element(n) for n in range(kh * kw)])


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _overlapping(x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Pairs) -> jax.Array:
    """The maximum of windows that overlap or are padded; its gradient is that of `_largest`, some ten times as quick as
    that of `lax.reduce_window` on a CPU."""
    return _place(x, window, strides, padding)[0]


def _place(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Pairs
) -> tuple[jax.Array, jax.Array]:
    """The first maximum of each window and its place in it, row by row."""
    x = lax.pad(x, lax.full((), -np.inf, x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
    return _first_largest(_patches(x, window, strides))


def _first_largest(elements: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The first maximum of these arrays, position by position, and which of them has it; a NaN counts as the largest."""
    largest, *others = elements
    place = lax.full_like(largest, 0, jnp.uint8 if len(elements) <= 256 else jnp.int32)
    for n, each in enumerate(others, start=1):
        better = lax.bitwise_or(lax.gt(each, largest), lax.ne(each, each))
        largest, place = lax.select(better, each, largest), lax.select(better, lax.full_like(place, n), place)
    return largest, place


def _overlapping_forward(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Pairs
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    largest, place = apart(lambda x: _place(x, window, strides, padding))(x)
    return largest, (place, jnp.zeros((x.shape[1], x.shape[2], 0)))  # the shape alone


def _overlapping_backward(
    window: tuple[int, int], strides: tuple[int, int], padding: Pairs, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array]:
    place, image = saved
    size = image.shape[:2]
    total = None
    for n in range(math.prod(window)):
        at = divmod(n, window[1])
        part = jnp.where(place == n, g, jnp.zeros_like(g))
        # Each value goes back to where its window's place n was: the stride apart, in the middle of the padded image.
        sides = []
        for axis in range(2):
            low = at[axis] - padding[axis][0]
            reach = (g.shape[1 + axis] - 1) * strides[axis] + 1
            sides.append((low, size[axis] - low - reach, strides[axis] - 1))
        part = lax.pad(part, jnp.zeros((), g.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
        total = part if total is None else total + part
    assert total is not None
    return (total,)


_overlapping.defvjp(_overlapping_forward, _overlapping_backward)


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
    """Dropout by random integers of as few bits as the rate needs, so many of them from each random word.

    A full word for each value costs more than the layer it drops. Rates that are multiples of 1/2, 1/4, 1/16 or 1/256 are
    exact; others are rounded to a multiple of 1/65536, and the scale is that of the rounded rate, so that the mean is
    kept exactly. The mask is drawn from the key collection 'dropout'.

    Attributes:
        rate: probability that a value becomes 0.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x [B, ...] -> the same shape; the identity unless `train`."""
        if not train or self.rate == 0:
            return x
        bits = next((bits for bits in (1, 2, 4, 8) if float(self.rate * 2**bits).is_integer()), 16)
        dropped = round(self.rate * 2**bits)
        if dropped == 2**bits:
            return jnp.zeros_like(x)
        size, lanes = math.prod(x.shape[1:]), 32 // bits
        words = jax.random.bits(self.make_rng("dropout"), (x.shape[0], 1, -(-size // lanes)), jnp.uint32)

        def keep(words: jax.Array) -> jax.Array:
            shifts = lax.broadcasted_iota(jnp.uint32, (x.shape[0], lanes, words.shape[2]), 1) * np.uint32(bits)
            lane = (jnp.broadcast_to(words, shifts.shape) >> shifts) & np.uint32(2**bits - 1)
            kept = (lane >= np.uint32(dropped)).reshape(x.shape[0], -1)
            return lax.slice_in_dim(kept, 0, size, axis=1).reshape(x.shape)

        scale = 2**bits / (2**bits - dropped)
        return jnp.where(apart(keep)(words), x * scale, jnp.zeros((), x.dtype))
