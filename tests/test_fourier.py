"""Progressive Fourier aggregation against its NumPy loop and METHODS.md's vectors."""

import itertools
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import fourier as oracle

from fedjax_pfl import fourier, models, tree
from fedjax_pfl.errors import UserError

LAST = "fc2"  # the classifier of the models here
REFERENCE = dict(symmetric=False, circular=False, share_short=False, share_dc=False, divisor=4)
K = 4
RATES = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.95, 1.0)


def kernels(seed: int = 0, clients: int = K, **shapes: tuple[int, ...]) -> dict[str, Any]:
    """Variables with a random `kernel` of each shape, [K, ...]."""
    rng = np.random.default_rng(seed)
    return {"params": {name: {"kernel": rng.normal(size=(clients, *shape))} for name, shape in shapes.items()}}


def network(seed: int = 0, clients: int = K) -> dict[str, Any]:
    """Every kind of entry: three kernels of one matrix shape (6 x 12), one with a short axis, the classifier, biases, both
    norms, an embedding table."""
    shapes = dict(conv1=(3, 3, 2, 4), conv2=(3, 3, 2, 4), point=(1, 1, 4, 2), fc1=(6, 12), fc2=(12, 3))
    variables = kernels(seed, clients, **shapes, words_embedding=(5, 6))
    rng = np.random.default_rng(seed + 1)
    draw = lambda *shape: rng.normal(size=(clients, *shape))  # noqa: E731
    variables["params"]["conv1"]["bias"] = draw(4)
    variables["params"]["fc2"]["bias"] = draw(3)
    variables["params"]["norm"] = {"scale": draw(12), "bias": draw(12)}
    variables["params"]["bn1"] = {"scale": draw(4), "bias": draw(4)}
    variables["batch_stats"] = {"bn1": {"mean": draw(4), "var": draw(4) ** 2}}
    return variables


def torch_layout(variables: Any) -> list[dict[str, np.ndarray]]:
    """What the oracle takes: a dict per client, names and axes as PyTorch's."""
    flat = traverse_util.flatten_dict(variables)
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    clients = len(next(iter(flat.values())))
    return [{".".join(path): x[k].transpose(axes[x[k].ndim]) for path, x in flat.items()} for k in range(clients)]


@cache
def step(rates: tuple[float, ...] = RATES, **options: Any) -> Any:
    """The compiled aggregation."""
    return jax.jit(fourier.pfa(rates, **{"classifier": LAST, **options}))


def ours(variables: Any, rate: float, weights: Any = None, **options: Any) -> Any:
    """One aggregation at one of RATES, on the host; with everybody's weight 1, if not given."""
    weights = np.ones(len(jax.tree.leaves(variables)[0])) if weights is None else weights
    return jax.device_get(step(**options)(variables, jnp.asarray(weights), RATES.index(rate)))


def theirs(variables: Any, rate: float, weights: Any, **rules: Any) -> list[dict[str, np.ndarray]]:
    return oracle.pfa(torch_layout(variables), weights, rate, f"params.{LAST}", oracle.Rules(**rules))


def same(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=0, atol=1e-12, err_msg=name)


def close(a: Any, b: Any, atol: float = 1e-12) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


# -- METHODS.md's vectors (12.2) ----------------------------------------------------------------------------------------

V1 = """0.037790 0.429147 0.765904 0.970288 0.239666 0.543925
        0.780308 0.535759 0.216775 0.921159 0.746278 0.486443
        0.409739 0.664161 0.834755 0.941197 0.155894 0.395031
        1.067221 0.757550 0.383885 0.990327 0.649283 0.252513"""
V2 = """0.287631 0.641687 0.651898 0.823432 0.230888 0.605299
        1.077485 0.699228 0.144736 0.774813 0.657790 0.605971
        0.469253 0.711412 0.766078 0.724553 0.038001 0.437367
        1.079399 0.853871 0.273240 0.773172 0.611100 0.236695"""
V2_LAST = """0.441798 0.662411 0.714507 0.777599 0.726612 0.742908
             1.048319 0.690895 0.190570 0.728979 0.116123 0.635138
             0.623420 0.811522 0.749302 0.678719 0.613110 0.495591
             0.316899 0.983038 0.273240 0.727339 0.023600 0.403361"""
CLASSWISE = """0.726150 0.801481 0.819004 0.277305 0.487749 0.693949 0.729596 1.089765
               0.866629 1.136802 0.790337 0.083648 0.986643 0.668372 0.956392 0.611178
               1.059167 0.738565 0.884249 0.509838 0.741936 0.272832 0.777148 0.941265"""


def printed(text: str) -> np.ndarray:
    return np.array([[float(x) for x in line.split()] for line in text.splitlines()])


def inputs() -> np.ndarray:
    """W_k of vector (a), [4, 4, 6]."""
    k, i, j = np.ogrid[:4, :4, :6]
    return (7 * i + 3 * j * (k + 1) + 5 * i * j + k) % 11 / 10 + 0.05 * k


@pytest.mark.parametrize(
    ("components", "client", "expected"),
    [("amplitude", 0, V1), ("amplitude_phase", 0, V2), ("amplitude_phase", 3, V2_LAST)],
)
def test_vectors_of_matrices(components, client, expected):
    W = {"params": {"fc1": {"kernel": inputs()}, "fc2": {"kernel": np.ones((4, 1, 1))}}}
    found = ours(W, 0.7, components=components, fidelity="reference")["params"]["fc1"]["kernel"]
    np.testing.assert_allclose(found[client], printed(expected), rtol=0, atol=6e-7)


def test_vector_of_a_classifier():
    k, c, j = np.ogrid[:4, :3, :8]
    V = (c + 1) * (j + 1) * (j + k + 2) % 13 / 10 + 0.05 * k
    found = ours({"params": {LAST: {"kernel": V.transpose(0, 2, 1)}}}, 0.7, fidelity="reference")
    np.testing.assert_allclose(found["params"][LAST]["kernel"][0].T, printed(CLASSWISE), rtol=0, atol=6e-7)


def test_rates():
    found = fourier.rates(50)
    assert len(found) == 50
    np.testing.assert_allclose(found[[0, 1, 10, 25, 49]], [0.7, 0.705, 0.75, 0.825, 0.945], rtol=1e-15)
    np.testing.assert_allclose(fourier.rates(4, r0=0.2, final=1.0), [0.2, 0.4, 0.6, 0.8], rtol=1e-15)


def test_bounds_of_the_slim_vgg():
    """METHODS.md 2.3: from b the first shared place c - b of each axis of its layers."""
    table = {9: (1, 1, 0), 96: (15, 9, 3), 192: (29, 17, 6), 384: (58, 34, 11), 768: (116, 68, 22)}
    table |= {64: (10, 6, 2), 256: (39, 23, 8)}
    model = models.build("vgg16_slim", 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    lengths = set()
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        view = fourier._view(path, jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), LAST)  # pyright: ignore
        lengths |= set() if view is None else {view.columns} | (set() if view.classwise else {view.rows})
    assert lengths == table.keys()
    for n, first in table.items():
        found = fourier.bounds(n, fourier.rates(50))
        assert found.dtype == np.int32
        assert tuple(n // 2 - found[[0, 25, 49]]) == first, n


@pytest.mark.parametrize("n", [150, 300, 600])
def test_bounds_are_exact(n):
    """Round 28 of 50 has rate 0.84, and n 0.84 / 2 is whole: in float32 it falls short of it, others do in float64."""
    rates = fourier.rates(50)
    assert np.floor(n * np.float32(rates[28]) / np.float32(2)) == n * 84 // 200 - 1
    with jax.enable_x64(False):
        axis = jax.jit(fourier._Band(rates, True, True, True)._axis, static_argnums=0)
        shared = [int(axis(n, jnp.int32(a))[0].sum()) for a in range(50)]
    np.testing.assert_array_equal(shared, [2 * (n * (700 + 5 * a) // 2000) + 1 for a in range(50)])


# -- against the loop ---------------------------------------------------------------------------------------------------

SWITCHES = [
    {},
    {"components": "amplitude"},
    {"components": "complex"},
    {"symmetric": False},
    {"symmetric": False, "components": "complex"},
    {"circular": False},
    {"share_short": False},
    {"share_dc": False},
    {"share_short": False, "share_dc": False},
    {"divisor": 5},
    {"classwise": False},
    {"symmetric": False, "circular": False},
    {"symmetric": False, "share_short": False, "share_dc": False},
    REFERENCE,
    {**REFERENCE, "components": "amplitude"},
    {**REFERENCE, "components": "complex"},
    {**REFERENCE, "share_dc": True},
    {**REFERENCE, "classwise": False},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()) or "paper")
def test_is_the_loop(switches):
    variables, weights = network(), np.array([3.0, 1.0, 2.5, 4.0])
    for rate in (0.0, 0.3, 0.7, 0.95):
        found = ours(variables, rate, weights, **switches)
        same(torch_layout(found), theirs(variables, rate, weights, **switches))


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_is_the_loop_at_every_shape(fidelity):
    shapes = [(1, 1), (1, 2), (2, 1), (1, 7), (2, 5), (3, 2), (3, 3), (5, 8), (9, 96)]
    variables = kernels(3, clients=5, fc2=(5, 2), **{f"layer{i}": shape for i, shape in enumerate(shapes)})
    weights = np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    for rate in (0.5, 0.8, 1.0):
        if rate == 1 and fidelity == "reference":
            continue  # the angle of a real coefficient at half the sampling rate depends on a rounding error's sign
        found = ours(variables, rate, weights, fidelity=fidelity)
        same(torch_layout(found), theirs(variables, rate, weights, **(REFERENCE if fidelity == "reference" else {})))


SHORT = dict(fc1=(2, 9), fc2=(6, 9))


@pytest.mark.parametrize(
    ("switch", "other", "layer", "rate"),
    [
        ("symmetric", False, "fc2", 0.7),
        ("circular", False, "fc2", 0.7),
        ("share_short", False, "fc1", 0.7),
        ("share_dc", False, "fc2", 0.3),
        ("divisor", 3, "fc2", 0.7),
    ],
)
def test_each_switch_changes_something(switch, other, layer, rate):
    variables = kernels(4, **SHORT)
    usual, changed = ours(variables, rate, classwise=False), ours(variables, rate, classwise=False, **{switch: other})
    assert not np.allclose(usual["params"][layer]["kernel"], changed["params"][layer]["kernel"])


def test_fidelities_are_the_two_sides_of_all_switches():
    variables, options = kernels(4, **SHORT), dict(classwise=False)
    paper = dict(symmetric=True, circular=True, share_short=True, share_dc=True, divisor=0)
    for rate in (0.3, 0.7):
        reference = ours(variables, rate, fidelity="reference", **options)
        close(reference, ours(variables, rate, **REFERENCE, **options), 0)
        close(ours(variables, rate, **options), ours(variables, rate, fidelity="reference", **paper, **options), 0)


# -- what is shared, and with whom --------------------------------------------------------------------------------------


def kept(rate: float, **options: Any) -> dict[tuple[int, ...], np.ndarray]:
    """Which coefficients of the first client's kernels are still its own, by shape."""
    shapes = [(1, 8), (8, 2), (2, 8), (5, 7)]
    variables = kernels(5, fc2=(4, 2), **{f"layer{i}": shape for i, shape in enumerate(shapes)})
    found = ours(variables, rate, components="complex", **options)
    pairs = ((x["params"][f"layer{i}"]["kernel"][0] for x in (variables, found)) for i in range(len(shapes)))
    return {
        shape: np.isclose(np.fft.fft2(before), np.fft.fft2(after), rtol=0, atol=1e-9)
        for shape, (before, after) in zip(shapes, pairs, strict=True)
    }


@pytest.mark.parametrize("shape", [(1, 8), (8, 2), (2, 8)])
def test_short_axes(shape):
    """Of an axis of length 1 or 2 all is shared, or the zero frequency, or nothing."""
    short = min(shape)
    high = np.abs(np.fft.fftfreq(8, 1 / 8)) > 2  # floor(8 * 0.6 / 2)
    wholly = np.broadcast_to(high, (short, 8))
    zero_alone = wholly | (np.arange(short) > 0)[:, None]

    def turn(own: np.ndarray) -> np.ndarray:
        return own if own.shape == shape else own.T

    np.testing.assert_array_equal(kept(0.6)[shape], turn(wholly))
    np.testing.assert_array_equal(kept(0.6, share_short=False)[shape], turn(zero_alone))
    for symmetric in (True, False):
        assert kept(0.6, symmetric=symmetric, share_short=False, share_dc=False)[shape].all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_frequency(symmetric):
    """Where b = 0 the mean is shared, or nothing."""
    dc = np.zeros((5, 7), bool)
    dc[0, 0] = True
    np.testing.assert_array_equal(kept(0.1, symmetric=symmetric)[5, 7], ~dc)
    assert kept(0.1, symmetric=symmetric, share_short=False, share_dc=False)[5, 7].all()


def test_classes_do_not_mix():
    """Another class's weights change nothing of a class, or they do."""
    variables = kernels(7, fc2=(8, 3))
    other = jax.tree.map(np.copy, variables)
    other["params"]["fc2"]["kernel"][:, :, 0] += 1.5
    for classwise in (True, False):
        a, b = (ours(x, 0.7, classwise=classwise)["params"]["fc2"]["kernel"] for x in (variables, other))
        assert np.allclose(a[..., 1:], b[..., 1:]) == classwise
        assert not np.allclose(a[..., 0], b[..., 0])


def test_discarded_imaginary_part():
    """METHODS.md 12.2 has the released code's; with the symmetric band there is none, so nothing is discarded."""
    first = oracle.share(inputs(), np.ones(4), 0.7, (0, 1), oracle.REFERENCE._replace(components="amplitude"))[0]
    np.testing.assert_allclose(np.abs(first.imag).max(), 0.081165, rtol=0, atol=6e-7)
    for components in fourier.COMPONENTS:
        for shape in ((4, 6), (5, 7), (2, 9), (9, 96)):
            x = np.random.default_rng(0).normal(size=(4, *shape))
            for new in oracle.share(x, np.ones(4), 0.7, (0, 1), oracle.PAPER._replace(components=components)):
                assert np.abs(new.imag).max() < 1e-14


def test_opposite_signs():
    """Two clients whose sums have opposite signs: their phases cancel out, each keeps its own sign and the mean size.

    The mean of the angles 0 and pi is pi / 2: nothing real is left.
    """
    x = np.stack([np.full((3, 4), 2.0), np.full((3, 4), -6.0)])
    variables = {"params": {"fc1": {"kernel": x}, "fc2": {"kernel": x}}}
    for name in ("fc1", "fc2"):
        found = ours(variables, 0.7)["params"][name]["kernel"]
        np.testing.assert_allclose(found, np.stack([np.full((3, 4), 4.0), np.full((3, 4), -4.0)]), rtol=0, atol=1e-12)
        found = ours(variables, 0.7, circular=False)["params"][name]["kernel"]
        np.testing.assert_allclose(found, np.zeros((2, 3, 4)), rtol=0, atol=1e-12)
    # One more of one sign decides.
    found = ours(variables, 0.7, [1.0, 1.01])["params"]["fc1"]["kernel"]
    assert (found < 0).all()


def test_cancelling_weights_in_float32():
    """Shares need not add up in float32: what cancels out up to rounding counts as cancelled."""
    signs = np.array([1, 1, 1, -1], np.float32)
    x = signs[:, None, None] * np.ones((4, 4, 4), np.float32)
    with jax.enable_x64(False):
        for a, b, c in itertools.product((1, 3, 7, 10, 19), repeat=3):
            weights = np.array([a, b, c, a + b + c], np.float32)
            found = ours({"params": {"fc2": {"kernel": x}}}, 0.7, weights)["params"]["fc2"]["kernel"]
            np.testing.assert_allclose(found, x, rtol=1e-6)


def test_zero_amplitude():
    """The angle of 0 is 0: a client without a frequency gets the mean amplitude there, as a cosine."""
    cosine = np.cos(2 * np.pi * np.arange(8) / 8)[None]
    x = np.stack([np.zeros((1, 8)), 2 * cosine])
    found = ours({"params": {"fc1": {"kernel": x}, "fc2": {"kernel": x}}}, 0.7, components="amplitude")
    np.testing.assert_allclose(found["params"]["fc1"]["kernel"][0], cosine, rtol=0, atol=1e-12)


# -- properties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", ["amplitude", "amplitude_phase"])
@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_identical_clients_stay(components, fidelity):
    """As many as the constant divisor, with positive sums: PFA changes nothing."""
    one = jax.tree.map(lambda x: np.abs(x[:1]), network())
    variables = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), one)
    close(ours(variables, 0.8, components=components, fidelity=fidelity), variables)


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_order_of_the_clients(fidelity):
    order, weights = np.array([1, 2, 3, 0]), np.array([3.0, 1.0, 2.5, 4.0])
    row = lambda x: x[order]  # noqa: E731
    found = ours(jax.tree.map(row, network()), 0.7, weights[order], fidelity=fidelity)
    close(found, jax.tree.map(row, ours(network(), 0.7, weights, fidelity=fidelity)))


@pytest.mark.parametrize(
    ("components", "fidelity"),
    [("amplitude", "paper"), ("amplitude_phase", "paper"), ("amplitude_phase", "reference"), ("complex", "paper")],
)
@pytest.mark.parametrize("held", [0.0, 7.0, np.nan, np.inf])
def test_rows_without_weight_change_nothing(components, fidelity, held):
    options = dict(components=components, fidelity=fidelity)
    padded = jax.tree.map(lambda x: np.insert(x, 1, held, axis=0), network())
    found = ours(padded, 0.7, [2.0, 0.0, 1.0, 1.0, 3.0], **options)
    close(jax.tree.map(lambda x: np.delete(x, 1, axis=0), found), ours(network(), 0.7, [2.0, 1.0, 1.0, 3.0], **options))
    if np.isfinite(held):
        assert tree.all_finite(found)


def test_nobody_has_weight():
    close(ours(network(), 0.7, np.zeros(K)), network())


def test_one_client():
    """It agrees with itself."""
    close(ours(network(clients=1), 0.7, [5.0]), network(clients=1))


def test_coefficients_of_all_frequencies_are_the_weighted_mean():
    variables, weights = network(), np.array([3.0, 1.0, 2.5, 4.0])
    mean = tree.broadcast(tree.weighted_mean(variables, jnp.asarray(weights)), K)
    own = tree.batch_norm(variables)
    found = ours(variables, 1.0, weights, components="complex")
    close(tree.split(found, own)[1], tree.split(mean, own)[1])
    for components in ("amplitude", "amplitude_phase"):
        found = ours(variables, 1.0, weights, components=components)
        assert not np.allclose(found["params"]["conv2"]["kernel"], mean["params"]["conv2"]["kernel"])


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_what_is_no_kernel(fidelity):
    """Batch norm is nobody else's business; anything else is averaged by weight."""
    variables, weights = network(), np.array([3.0, 1.0, 2.5, 4.0])
    found = ours(variables, 0.7, weights, fidelity=fidelity)
    for part in ("params", "batch_stats"):
        for name, value in variables[part]["bn1"].items():
            np.testing.assert_array_equal(found[part]["bn1"][name], value)
    for module, name in (("conv1", "bias"), ("fc2", "bias"), ("norm", "scale"), ("words_embedding", "kernel")):
        x = variables["params"][module][name]
        mean = np.broadcast_to(np.average(x, axis=0, weights=weights), x.shape)
        np.testing.assert_allclose(found["params"][module][name], mean, rtol=1e-12)


def test_a_model_of_the_zoo():
    """The slim VGG's classifier is a module with a dense layer in it."""
    model = models.build("vgg16_slim", 3).clone(width=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    rng = np.random.default_rng(8)
    stacked = jax.tree.map(lambda leaf: rng.normal(size=(3, *leaf.shape)), shapes)
    weights = np.array([1.0, 2.0, 1.0])
    found = ours(stacked, 0.7, weights, classifier=model.layers[-1])
    same(torch_layout(found), theirs(stacked, 0.7, weights))


# -- as a program -------------------------------------------------------------------------------------------------------


def test_one_trace_for_all_rounds():
    traces = []
    aggregate = fourier.pfa(RATES, classifier=LAST)

    @jax.jit
    def once(*args):
        traces.append(1)
        return aggregate(*args)

    weights = jnp.ones(K)
    for a, rate in enumerate(RATES):
        close(jax.device_get(once(network(), weights, jnp.int32(a))), ours(network(), rate), 0)
    close(jax.device_get(once(network(), weights, jnp.int32(a + 1))), ours(network(), rate), 0)  # after the last
    assert len(traces) == 1


@pytest.mark.parametrize(("components", "fidelity"), [("amplitude_phase", "reference"), ("amplitude_phase", "paper")])
def test_float32_stays(components, fidelity):
    """Whatever the weights' type, and near the result in float64."""
    single = jax.tree.map(lambda x: x.astype(np.float32), network())
    found = ours(single, 0.7, np.ones(K, np.float32), components=components, fidelity=fidelity)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(found))
    close(found, ours(network(), 0.7, components=components, fidelity=fidelity), 2e-5)


def test_one_transform_per_shape():
    """Forward for the votes, forward and back for the results."""
    text = step().lower(network(), jnp.ones(K), 0).compile().as_text()
    shapes = 3  # conv1 with conv2 and fc1; point; fc2
    assert text.count(" fft(") == 3 * shapes


# -- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(components="amplitud"), "components: unknown name 'amplitud' (did you mean 'amplitude'?)"),
        (dict(fidelity="papers"), "fidelity: unknown name 'papers' (did you mean 'paper'?)"),
        (dict(rates=[0.5, 1.5]), "rates: 0.5, 1.5, expected numbers in [0, 1]"),
        (dict(rates=[-0.1]), "rates: -0.1, expected"),
        (dict(rates=[float("nan")]), "rates: nan, expected"),
        (dict(rates=[]), "rates: none, expected"),
        (dict(divisor=-1), "divisor=-1, expected"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(UserError) as error:
        fourier.pfa(**{"rates": [0.7], "classifier": LAST, **options})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_classifier():
    with pytest.raises(UserError, match=r"classifier: the model has no module 'fc3' \(did you mean 'fc[12]'\?\)"):
        ours(network(), 0.7, classifier="fc3")


def test_no_rounds():
    with pytest.raises(UserError, match="rounds=0"):
        fourier.rates(0)
