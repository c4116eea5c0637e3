"""Dense, batch norm and group norm as PyTorch computes them, and what all models have in common.

Nothing here promotes a type or a rank: parameters must have the type of the input (float32 unless cast), and float32
stays float32 whether or not float64 is enabled.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_pfl.errors import UserError
from fedjax_pfl.models.conv import Conv, torch_bias_init, torch_kernel_init
from fedjax_pfl.registry import lookup

EPS = 1e-5  # PyTorch's, of both norms
MOMENTUM = 0.9  # of the running statistics: PyTorch's momentum 0.1


def along(v: jax.Array, x: jax.Array) -> jax.Array:
    """v [C], shaped to broadcast against x [..., C]."""
    return v.reshape((1,) * (x.ndim - 1) + (-1,))


class Dense(nn.Module):
    """`nn.Dense` (kernel [in, out], bias [out]) with PyTorch's initial values.

    Attributes:
        features: number of outputs.
        use_bias: whether to add `bias`.
        kernel_init: initialiser of the kernel; PyTorch's default U(-1 / sqrt(in), 1 / sqrt(in)).
        bias_init: initialiser of the bias; None: PyTorch's default, the same range.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = torch_kernel_init
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., in] -> [..., features]."""
        fan_in = x.shape[-1]
        y = x @ self.param("kernel", self.kernel_init, (fan_in, self.features), jnp.float32)
        if self.use_bias:
            bias_init = self.bias_init or torch_bias_init(fan_in)
            y = y + along(self.param("bias", bias_init, (self.features,), jnp.float32), y)
        return y


class BatchNorm(nn.Module):
    """PyTorch's batch norm over all axes but the last, which leaves out the rows that `mask` marks as padding.

    Training normalises with the biased variance of the batch and moves the running variance towards the unbiased one
    (Flax moves it towards the biased one). Where the batch can't say, the running statistics speak: a batch without
    real rows is normalised by them and leaves them as they are, and a single value per channel leaves the running
    variance as it is (PyTorch raises an error).

    Params `scale`, `bias` [C]; batch_stats `mean`, `var` [C].
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, ..., C], mask [B] bool or None (all rows are real) -> [B, ..., C].

        Raises:
            flax.errors.ModifyScopeVariableError: `train` without `mutable=['batch_stats']`.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if not train or self.is_initializing():
            return (x - along(mean, x)) * along(scale * jax.lax.rsqrt(var + EPS), x) + along(bias, x)
        rows = jnp.ones(x.shape[0], bool) if mask is None else mask
        n = rows.sum(dtype=x.dtype) * math.prod(x.shape[1:-1])  # values per channel
        y, mean, var = _normalise(x, rows, n, scale, bias, mean, var)
        unbiased = jnp.where(n > 1, var * n / jnp.maximum(n - 1, 1), running_var.value)
        # Written as a step, so that a step of nothing leaves every bit.
        running_mean.value += (1 - MOMENTUM) * (mean - running_mean.value)
        running_var.value += (1 - MOMENTUM) * (unbiased - running_var.value)
        return y


# Its gradient is written by hand, since autodiff's writes and reads whole images some eight times instead of three: two
# thirds of the time of a norm of 16 x 64 x 64 x 32 values on a CPU are left.
@jax.custom_vjp
def _normalise(
    x: jax.Array, rows: jax.Array, n: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, ..., C], normalised by the mean and the biased variance [C] of its rows [B] bool, and these two.

    Args:
        n: how many values of each channel these rows have.
        mean, var: what counts where there are none.
    """
    y, mean, var = _normalise_forward(x, rows, n, scale, bias, mean, var)[0]
    return y, mean, var


def _normalise_forward(
    x: jax.Array, rows: jax.Array, n: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    def batch_mean(values: jax.Array) -> jax.Array:
        each = values.sum(tuple(range(1, x.ndim - 1)))  # of each row first: masking whole images would copy them
        return _of_rows(rows, each).sum(0) / jnp.maximum(n, 1)

    mean = jnp.where(n > 0, batch_mean(x), mean)
    var = jnp.where(n > 0, batch_mean(jnp.square(x - along(mean, x))), var)
    y = (x - along(mean, x)) * along(scale * jax.lax.rsqrt(var + EPS), x) + along(bias, x)
    return (y, mean, var), (x, rows, n, scale, mean, var)


def _normalise_backward(saved: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    x, rows, n, scale, mean, var = saved
    g, g_mean, g_var = gradients
    axes, rsqrt = tuple(range(x.ndim - 1)), jax.lax.rsqrt(var + EPS)
    g_bias, g_scaled = g.sum(axes), (g * (x - along(mean, x))).sum(axes)
    g_mean -= scale * rsqrt * g_bias
    g_var -= 0.5 * scale * rsqrt**3 * g_scaled
    each = along(g_mean, x) + 2 * along(g_var, x) * (x - along(mean, x))  # of these rows' n values, if there are any
    g_x = along(scale * rsqrt, x) * g + _of_rows(rows & (n > 0), each) / jnp.maximum(n, 1)
    g_mean, g_var = (jnp.where(n > 0, 0, each) for each in (g_mean, g_var))
    return g_x, None, jnp.zeros_like(n), g_scaled * rsqrt, g_bias, g_mean, g_var


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _of_rows(rows: jax.Array, values: jax.Array) -> jax.Array:
    """values [B, ...] where rows [B], else 0."""
    return jnp.where(rows.reshape((-1,) + (1,) * (values.ndim - 1)), values, 0)


class GroupNorm(nn.Module):
    """PyTorch's group norm: every example by itself, over its positions and the channels of one group.

    Params `scale`, `bias` [C].

    Attributes:
        groups: number of groups; None for 16 channels a group (Wu and He 2018, table 3) where that divides C, else the
            nearest number of groups below that does. Fewer channels a group would leave nothing of a [B, C] input.
    """

    groups: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, ..., C] -> [B, ..., C]; `train` and `mask` change nothing."""
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        groups = self.groups or next(g for g in range(max(c // 16, 1), 0, -1) if c % g == 0)
        z = x.reshape(x.shape[0], -1, groups, c // groups)
        z = z - z.mean((1, 3), keepdims=True)
        z = z * jax.lax.rsqrt(jnp.square(z).mean((1, 3), keepdims=True) + EPS)
        return z.reshape(x.shape) * along(scale, x) + along(bias, x)


class NoNorm(nn.Module):
    """The identity, called as the norms are."""

    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return x


NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "group": GroupNorm, "none": NoNorm}


def norm(kind: str) -> type[nn.Module]:
    """The module of a `norm` option: `norm('batch')(name='bn1')(x, train, mask)`.

    Raises:
        UserError: `kind` isn't one of `NORMS`.
    """
    lookup(NORMS, kind, "norm")
    return NORMS[kind]


class DenseNormReLU(nn.Module):
    """`linear`, then `bn` (of any kind), then ReLU."""

    features: int
    norm: str
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, in] -> [B, features]."""
        x = Dense(self.features, use_bias=self.use_bias, name="linear")(x)
        return nn.relu(norm(self.norm)(name="bn")(x, train, mask))


class ConvNormReLU(nn.Module):
    """`conv` of stride 1 that keeps the image's size, `bn` (of any kind), ReLU."""

    features: int
    norm: str
    impl: str
    size: int = 3
    dilation: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = torch_kernel_init

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None) -> jax.Array:
        """x [B, H, W, I] -> [B, H, W, features]."""
        conv = Conv(
            self.features,
            (self.size, self.size),
            padding=self.dilation * (self.size // 2),
            dilation=self.dilation,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            impl=self.impl,
            name="conv",
        )
        return nn.relu(norm(self.norm)(name="bn")(conv(x), train, mask))


class Classifier(nn.Module):
    """A model: features, then a classifier. Its subclasses define `layers`, `features`, and `setup`, which makes them.

    Attributes:
        num_classes: number of logits C.
    """

    num_classes: int

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the top-level submodules with parameters in forward order; the classifier is the last."""
        raise NotImplementedError

    @property
    def flatten(self) -> dict[str, int]:
        """PyTorch name of each dense layer that reads flattened feature maps -> their channels.

        PyTorch flattens C, H, W and we H, W, C, so `weights` permutes the rows of these kernels.
        """
        return {}

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, ...] -> the last feature maps [B, h, w, d], as a backbone of another model. Arguments as in `__call__`.

        A model without maps has one position: its features.
        """
        return jnp.expand_dims(self.features(x, train, mask), (1, 2))

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, ...] -> what the classifier reads [B, d]. Arguments as in `__call__`."""
        raise NotImplementedError

    def head(self, z: jax.Array) -> jax.Array:
        """Features [B, d] -> logits [B, C]."""
        return getattr(self, self.layers[-1])(z)

    def features_and_logits(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Both from one forward pass. Arguments as in `__call__`."""
        z = self.features(x, train, mask)
        return z, self.head(z)

    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, ...] -> logits [B, C].

        Args:
            x: images [B, H, W, channels]; the MLP takes any shape.
            train: batch statistics (pass `mutable=['batch_stats']`) and dropout (pass `rngs={'dropout': key}`).
            mask: [B] bool, the real rows; batch norm ignores the others. None: all are real.
        """
        return self.head(self.features(x, train, mask))


class Segmenter(Classifier):
    """A classifier of every pixel: an encoder, whose last maps are the features, and a decoder with the classifier last.

    Subclasses define `layers`, `encode`, `decode`, and `setup`.
    """

    def encode(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """x [B, H, W, channels] -> the last feature maps [B, h, w, d], and earlier ones for `decode`."""
        raise NotImplementedError

    def decode(
        self,
        maps: jax.Array,
        earlier: tuple[jax.Array, ...],
        size: tuple[int, int],
        train: bool = False,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """What `encode` gave of images of `size` (H, W) -> logits [B, H, W, C]."""
        raise NotImplementedError

    def maps(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return self.encode(x, train, mask)[0]

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """The maps [B, h, w, d]."""
        return self.maps(x, train, mask)

    def features_and_logits(
        self, x: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The maps [B, h, w, d] and the logits [B, H, W, C]."""
        maps, earlier = self.encode(x, train, mask)
        return maps, self.decode(maps, earlier, (x.shape[1], x.shape[2]), train, mask)

    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, H, W, channels] -> logits [B, H, W, C]. Arguments as in `Classifier`."""
        return self.features_and_logits(x, train, mask)[1]


def check_images(x: jax.Array, model: str, least: int = 1) -> None:
    """Says in the user's terms that a network can't read its input.

    Raises:
        UserError: x isn't [B, H, W, C], or H or W is under `least`.
    """
    if x.ndim != 4:
        raise UserError(f"model {model}: examples of shape {x.shape[1:]} found, images [H, W, C] expected")
    if min(x.shape[1:3]) < least:
        raise UserError(f"model {model}: images of {x.shape[1]}x{x.shape[2]} found, at least {least}x{least} expected")


def check_rate(rate: float, field: str) -> None:
    """Raises UserError unless a dropout rate lies in [0, 1)."""
    if not 0 <= rate < 1:
        raise UserError(f"{field}: {rate} found, a number from 0 up to, not including, 1 expected")
