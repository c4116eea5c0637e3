"""`Conv` equals XLA's and Flax's convolution, pools equal PyTorch's, dropout keeps what it says."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_pfl import compiler
from fedjax_pfl.errors import UserError
from fedjax_pfl.models import conv
from fedjax_pfl.models.conv import Conv, Dropout, avg_pool, max_pool

CHANNELS, FEATURES = 4, 8
SHAPE = (2, 9, 8, CHANNELS)  # neither square nor a multiple of anything
OURS = ("gemm", "eigen")
PADDINGS = ("SAME", "VALID", 1, ((1, 0), (2, 1)))

# kernel, strides, padding, groups: every kernel size, padding and number of groups at both strides
CASES = [((k, k), s, p, 1) for k in (1, 3) for s in (1, 2) for p in PADDINGS]
CASES += [((k, k), s, p, 1) for k in (5, 7) for s, p in ((1, "SAME"), (2, 3), (1, "VALID"))]
CASES += [((3, 3), s, p, g) for g in (2, CHANNELS) for s, p in ((1, "SAME"), (2, 1), (1, "VALID"))]
CASES += [((2, 3), 1, "SAME", 1), ((3, 3), (1, 2), 1, 1), ((3, 3), 1, 4, 1)]


def random(*shape: int, seed: int = 0, dtype: Any = np.float64) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


def value_and_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The output, and the gradients of the sum of its cubes (by every argument) times a constant."""

    def cubes(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = function(*args)
        return jnp.sum(y**3), y

    def both(*args: jax.Array) -> Any:
        (_, y), gradients = jax.value_and_grad(cubes, argnums=tuple(range(len(args))), has_aux=True)(*args)
        return y, gradients

    return both


def convolution(impl: str, strides: Any, padding: Any, groups: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layer = Conv(kernel.shape[-1], kernel.shape[:2], strides, padding, groups, use_bias=False, impl=impl)
        return layer.apply({"params": {"kernel": kernel}}, x)  # type: ignore[return-value]

    return apply


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize(("size", "strides", "padding", "groups"), CASES)
def test_forward_and_gradients_equal_xla(impl, size, strides, padding, groups):
    x, kernel = random(*SHAPE), random(*size, CHANNELS // groups, FEATURES, seed=1)
    pairs = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    steps = (strides, strides) if isinstance(strides, int) else strides

    def expected(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, steps, pairs, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    ours = value_and_gradients(convolution(impl, strides, padding, groups))
    close(jax.jit(ours)(x, kernel), jax.jit(value_and_gradients(expected))(x, kernel))


@pytest.mark.parametrize("impl", ["xla", *OURS])
@pytest.mark.parametrize(("padding", "strides", "groups"), [("SAME", 1, 1), (3, 2, 1), ("VALID", 1, 2)])
def test_dilated_kernels_are_kernels_with_zeros_between(impl, padding, strides, groups):
    x, kernel = random(*SHAPE), random(3, 2, CHANNELS // groups, FEATURES, seed=1)
    wide = jnp.zeros((7, 4, *kernel.shape[2:])).at[::3, ::3].set(kernel)
    options = dict(strides=strides, padding=padding, groups=groups, use_bias=False)

    def narrow(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layer = Conv(FEATURES, (3, 2), dilation=3, impl=impl, **options)
        return layer.apply({"params": {"kernel": kernel}}, x)  # type: ignore[return-value]

    y, (dx, dkernel) = jax.jit(value_and_gradients(narrow))(x, kernel)
    with_zeros = lambda x, wide: Conv(FEATURES, (7, 4), impl="gemm", **options).apply(  # noqa: E731
        {"params": {"kernel": wide}}, x
    )
    expected, (dx_wide, dwide) = jax.jit(value_and_gradients(with_zeros))(x, wide)
    close((y, dx, dkernel), (expected, dx_wide, dwide[::3, ::3]))


@pytest.mark.parametrize("impl", ["auto", "xla", *OURS])
def test_same_parameters_as_flax(impl):
    x = random(*SHAPE, dtype=np.float32)
    ours = Conv(FEATURES, (3, 3), strides=2, padding=1, groups=2, impl=impl)
    flax = nn.Conv(FEATURES, (3, 3), 2, 1, feature_group_count=2)
    variables = ours.init(jax.random.key(0), x)
    shapes = [jax.tree.map(jnp.shape, v) for v in (variables, flax.init(jax.random.key(0), x))]
    assert shapes[0] == shapes[1]
    close(ours.apply(variables, x), flax.apply(variables, x), 1e-5)


@pytest.mark.parametrize("impl", OURS)
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_vmap_and_map_over_clients(impl, axes):
    """A kernel per client, images per client, or both; and one client after the other."""
    x, kernel = random(3, *SHAPE), random(3, 3, 3, CHANNELS, FEATURES, seed=1)
    args = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)]
    one = value_and_gradients(convolution(impl, 1, "SAME", 1))
    alone = [one(*(a[k] if axis == 0 else a for a, axis in zip(args, axes, strict=True))) for k in range(3)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    close(jax.jit(jax.vmap(one, axes))(*args), expected)
    if axes == (0, 0):
        close(jax.jit(lambda *args: jax.lax.map(lambda each: one(*each), args))(*args), expected)


def test_pool_before_the_bias_is_the_pool_after_it():
    x, layer = random(*SHAPE, dtype=np.float32), Conv(FEATURES, (3, 3))
    variables = layer.init(jax.random.key(0), x)
    pooled = layer.apply(variables, x, pool=2)
    np.testing.assert_array_equal(pooled, max_pool(layer.apply(variables, x), 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", ["xla", *OURS])
def test_float32_stays_float32(impl):
    x = random(*SHAPE, dtype=np.float32)
    layer = Conv(FEATURES, (3, 3), impl=impl)
    variables = layer.init(jax.random.key(0), x)
    y, gradients = jax.value_and_grad(lambda v: jnp.sum(layer.apply(v, x)))(variables)  # type: ignore[arg-type]
    assert {leaf.dtype for leaf in jax.tree.leaves((y, gradients))} == {np.dtype(np.float32)}


def test_initial_values_are_torch_s():
    fan_in = 5 * 5 * 2
    params = Conv(64, (5, 5), groups=2).init(jax.random.key(0), random(1, 9, 9, 4, dtype=np.float32))["params"]
    for values in params.values():
        assert np.abs(values).max() <= fan_in**-0.5
    np.testing.assert_allclose(np.std(params["kernel"]), fan_in**-0.5 / 3**0.5, rtol=0.05)


def test_unknown_implementation():
    with pytest.raises(UserError, match=r"Conv.impl: unknown name 'gem' \(did you mean 'gemm'"):
        Conv(FEATURES, (3, 3), impl="gem").init(jax.random.key(0), random(*SHAPE, dtype=np.float32))


@pytest.mark.parametrize(
    ("backend", "size", "channels", "dtype", "expected"),
    [
        ("cpu", 8, 16, np.float32, conv.conv_eigen),
        ("cpu", 8, 15, np.float32, conv.conv_gemm),
        ("cpu", 7, 16, np.float32, conv.conv_gemm),
        ("cpu", 8, 16, np.float64, conv.conv_gemm),
        ("gpu", 8, 16, np.float32, conv.conv_xla),
    ],
)
def test_auto_on_a_cpu_is_not_plain_xla(monkeypatch, backend, size, channels, dtype, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert conv._implementation("auto", random(1, size, size, channels, dtype=dtype), 16) is expected
    assert conv._implementation("auto", random(1, size, size, 16, dtype=dtype), channels) is expected


@pytest.mark.parametrize("impl", OURS)
def test_gradients_of_gradients(impl):
    """Reverse over reverse, by both arguments; the padding is uneven, so that a mix-up of its sides shows."""
    x, kernel = random(*SHAPE), random(3, 3, CHANNELS, FEATURES, seed=1)

    def norm(impl: str) -> Callable[..., Any]:
        def gradients(x: jax.Array, kernel: jax.Array) -> jax.Array:
            _, (by_x, by_kernel) = value_and_gradients(convolution(impl, 1, ((1, 0), (2, 1)), 1))(x, kernel)
            return jnp.sum(jnp.sin(by_x)) + jnp.sum(jnp.sin(by_kernel))

        return jax.jit(jax.grad(gradients, argnums=(0, 1)))

    close(norm(impl)(x, kernel), norm("xla")(x, kernel), 1e-8)


def test_eigen_in_a_loop_equals_xla():
    """Where it is used: float32, inside of a loop, compiled with the round's own options."""
    x, kernel = random(*SHAPE, dtype=np.float32), random(3, 3, CHANNELS, CHANNELS, seed=1, dtype=np.float32) / 6

    def steps(impl: str) -> Any:
        step = value_and_gradients(convolution(impl, 1, "SAME", 1))

        def body(_, carry):
            y, (by_x, by_kernel) = step(*carry)
            return carry[0] - 0.001 * by_x + 0.1 * y, carry[1] - 0.0001 * by_kernel

        loop = jax.jit(lambda *args: jax.lax.fori_loop(0, 3, body, args), compiler_options=compiler.options())
        return loop(x, kernel)

    close(steps("eigen"), steps("xla"), 1e-4)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (2, 3)])
@pytest.mark.parametrize("window", [2, (2, 3)])
def test_pools_of_windows_that_do_not_overlap(size, window):
    """Equal to reduce_window, which the other pools are; the remainder is cropped."""
    x = random(2, *size, 3)
    kh, kw = (window, window) if isinstance(window, int) else window
    spans = (1, kh, kw, 1)
    close(max_pool(x, window), jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, spans, spans, "VALID"))
    close(avg_pool(x, window), jax.lax.reduce_window(x, 0.0, jax.lax.add, spans, spans, "VALID") / (kh * kw))


@pytest.mark.parity
@pytest.mark.parametrize("options", [(2, None, 0), (3, None, 0), (3, 2, 1), (2, 1, 0), ((2, 3), None, 0)])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pools_equal_torch(kind, options):
    """Values and gradients, of images that went through a ReLU and so hold many equal values."""
    torch = pytest.importorskip("torch")
    window, strides, padding = options
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 3))
    pool = {"max": max_pool, "avg": avg_pool}[kind]

    def ours(x: jax.Array) -> jax.Array:
        return pool(nn.relu(x), window, strides, padding)

    y, (gradient,) = value_and_gradients(ours)(jnp.asarray(x))
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    theirs = {"max": torch.nn.functional.max_pool2d, "avg": torch.nn.functional.avg_pool2d}[kind]
    y_torch = theirs(torch.relu(x_torch), window, strides, padding)
    (y_torch**3).sum().backward()
    close(y, y_torch.detach().numpy().transpose(0, 2, 3, 1), 1e-9)
    close(gradient, x_torch.grad.numpy().transpose(0, 2, 3, 1), 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_pool_is_linear_in_its_tangent(dtype):
    """Forward mode, and a gradient of a gradient; a NaN in a window is its maximum."""
    x, t = random(2, 5, 6, 3, dtype=dtype), random(2, 5, 6, 3, seed=1, dtype=dtype)
    y, dy = jax.jvp(lambda x: max_pool(x, 2), (x,), (t,))
    gradient = jax.grad(lambda x: jnp.vdot(max_pool(x, 2), y))(x)
    np.testing.assert_allclose(jnp.vdot(gradient, t), jnp.vdot(dy, y), rtol=1e-5)
    second = jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(max_pool(x, 2) ** 3))(x)))(x)
    close(second, jax.grad(lambda x: jnp.sum(max_pool(x, 2) ** 2 * 3))(x), 1e-5)
    bad = max_pool(x.at[0, 1, 0, 0].set(jnp.nan), 2)
    assert np.isnan(bad[0, 0, 0, 0])
    assert np.isnan(bad).sum() == 1


def test_first_of_equal_maxima_gets_the_gradient():
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2)))(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient.reshape(-1), [1, 0, 0, 0])


@pytest.mark.parametrize("rate", [0.5, 0.25, 1 / 16, 3 / 256, 0.3])
def test_dropout_keeps_the_fraction_and_the_mean(rate):
    x = jnp.ones((101, 7, 143), np.float32)  # an odd number of values
    y = np.asarray(Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    assert y.dtype == np.float32
    assert y.shape == x.shape
    error = (rate * (1 - rate) / x.size) ** 0.5
    assert abs((y == 0).mean() - rate) < 4 * error
    assert abs(((y[:, 0] == 0) & (y[:, 1] == 0)).mean() - rate**2) < 4 * error  # no two places share their bits
    assert abs(((y[1:] == 0) & (y[:-1] == 0)).mean() - rate**2) < 4 * error
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=1e-4)  # 0.3 is rounded to a multiple of 1/65536


def test_dropout_depends_on_the_key_alone():
    x = random(3, 5, 7)
    keys = jax.random.split(jax.random.key(0), 3)

    def drop(x: jax.Array, key: jax.Array) -> jax.Array:
        return Dropout(0.5).apply({}, x, True, rngs={"dropout": key})  # type: ignore[return-value]

    alone = jnp.stack([drop(each, key) for each, key in zip(x, keys, strict=True)])
    close(jax.vmap(drop)(x, keys), alone)
    close(jax.lax.map(lambda each: drop(*each), (x, keys)), alone)
    assert (np.asarray(drop(x[0], keys[0])) != np.asarray(drop(x[0], keys[1]))).any()


@pytest.mark.parametrize(("rate", "train"), [(0.5, False), (0.0, True)])
def test_dropout_off(rate, train):
    x = random(3, 5)
    close(Dropout(rate).apply({}, x, train), x, 0)


def test_dropout_of_everything():
    x = random(3, 5)
    close(Dropout(1.0).apply({}, x, True, rngs={"dropout": jax.random.key(0)}), jnp.zeros_like(x), 0)
