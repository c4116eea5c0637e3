"""The label-mask transformer equals its PyTorch counterpart; masks are uniform; the loss counts what is unknown."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from test_models import assert_near, counterparts, quick_jit, torch_dtype

from fedjax_pfl import losses, problem
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch
from fedjax_pfl.models import MODELS, build, weights
from fedjax_pfl.models.ctran import UNKNOWN, LabelMaskTransformer, draw_states, sine
from fedjax_pfl.models.mlp import MLP
from fedjax_pfl.models.resnet import ResNet

C, WIDTH = 5, 8
SHAPE = (16, 24, 3)  # to 2 x 3 maps of 8 channels
STATES = np.array([[-1, 0, 1, -1, 1], [-1, -1, -1, -1, -1], [0, 1, 0, 1, 0], [1, -1, 0, -1, -1]], np.int8)


def tables(width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Frozen embeddings of the labels [C, d] and of 'negative' and 'positive' [2, d]."""
    rng = np.random.default_rng(5)
    return rng.normal(size=(C, width)), rng.normal(size=(2, width))


def network(backbone: Any = None, **changes: Any) -> LabelMaskTransformer:
    """Two encoder layers on a ResNet of two blocks, with frozen tables, without dropout."""
    u, e = tables(changes.get("width", WIDTH))
    options = {
        **{"labels": "text", "states": "text", "label_table": u, "state_table": e, "position": "none"},
        **{"width": WIDTH, "depth": 2, "heads": 2, "feedforward": 6, "dropout": 0.0, "known": 0.75},
        "swapped_states": False,
    }
    backbone = backbone or ResNet(C, (1, 1), False, "imagenet", "batch", "auto", width=4)
    return LabelMaskTransformer(C, backbone, **{**options, **changes})


def quick(**changes: Any) -> LabelMaskTransformer:
    """One encoder layer on a multilayer perceptron, whose features are one visual token: compiled in no time."""
    return network(MLP(C, (6,), "batch"), **{"depth": 1, **changes})


def abstract(model: LabelMaskTransformer, shape: tuple[int, ...] = SHAPE) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def random_variables(model: LabelMaskTransformer, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float64) -> Any:
    """Variables that are no special values; activations keep their size."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1])), dtype)
        value = rng.uniform(0.5, 1.5, leaf.shape) * (0.3 if path[-1].key in ("bias", "mean") else 1)
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(model, shape))


def inputs(rows: int = 4, shape: tuple[int, ...] = SHAPE) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).normal(size=(rows, *shape)))


# -- the network against PyTorch ----------------------------------------------------------------------------------------


def torch_name(name: str) -> str:
    """PyTorch's attention has its packed weights not in a layer of their own."""
    return name.replace("in_proj.", "in_proj_")


def check_parity(model: LabelMaskTransformer, train: bool, dtype: str, tolerance: float) -> None:
    """Logits, gradients of a scalar by parameters and image, and running statistics."""
    torch = pytest.importorskip("torch")
    from reference import fedlgt as reference

    variables = random_variables(model, SHAPE, dtype)
    x = np.asarray(inputs(), dtype)
    r = np.random.default_rng(3).normal(size=(len(x), C)).astype(dtype)

    def loss(params, x):
        full = {**variables, "params": params}
        if train:
            z, new = model.apply(full, x, train=True, states=jnp.asarray(STATES), mutable=["batch_stats"])
        else:
            z, new = model.apply(full, x, states=jnp.asarray(STATES)), {"batch_stats": variables["batch_stats"]}
        return (z * r).sum(), (z, new)

    gradient = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (z, new)), (params, dx) = gradient(variables["params"], jnp.asarray(x))

    with torch_dtype(torch, getattr(torch, dtype)):
        resnet = counterparts(torch)(model.backbone, SHAPE)
        maps = torch.nn.Sequential()  # all but the pool over positions and the classifier
        for name, module in resnet.named_children():
            if name in ("avgpool", "flatten", "fc"):
                continue
            maps.add_module(name, module)
        frozen = [
            None if getattr(model, kind) == "learned" else table
            for kind, table in zip(("labels", "states"), tables(model.width), strict=True)
        ]
        frozen = [None if table is None else torch.from_numpy(table.astype(dtype)) for table in frozen]
        options = {name: getattr(model, name) for name in ("width", "depth", "heads", "feedforward")}
        counterpart = reference.Network(maps, 8, C, *frozen, **options, swapped=model.swapped_states)
    state = {torch_name(k): torch.from_numpy(v.copy()) for k, v in weights.from_variables(variables, model).items()}
    missing, unexpected = counterpart.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    counterpart.train(train)
    tx = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()
    expected = counterpart(tx, torch.from_numpy(STATES.astype(int)))
    (expected * torch.from_numpy(r)).sum().backward()

    assert_near([z], [expected.detach().numpy()], tolerance, ["logits"])
    gradients = {torch_name(k): v for k, v in weights.from_variables({"params": params}, model).items()}
    wanted = {name: p.grad.numpy() for name, p in counterpart.named_parameters()}
    assert set(gradients) == set(wanted)
    assert_near([gradients[name] for name in wanted], list(wanted.values()), tolerance, wanted)
    assert_near([dx], [tx.grad.numpy().transpose(0, 2, 3, 1)], tolerance, ["x"])
    buffers, statistics = dict(counterpart.named_buffers()), weights.from_variables(new, model)
    assert statistics
    for name, value in statistics.items():
        assert_near([value], [buffers[name].numpy()], tolerance, [name])


@pytest.mark.parity
@pytest.mark.parametrize(
    ("changes", "train", "dtype", "tolerance"),
    [
        ({}, True, "float64", 1e-9),
        ({"width": 12, "heads": 3, "labels": "learned", "states": "learned"}, False, "float64", 1e-9),
        pytest.param({}, False, "float64", 1e-9, marks=pytest.mark.slow),
        pytest.param({"width": 12, "heads": 3, "swapped_states": True}, True, "float64", 1e-9, marks=pytest.mark.slow),
        pytest.param({}, True, "float32", 1e-4, marks=pytest.mark.slow),
    ],
    ids=["train", "projection-learned-eval", "eval", "projection-swapped-train", "float32"],
)
def test_equals_pytorch(changes, train, dtype, tolerance):
    check_parity(network(**changes), train, dtype, tolerance)


def test_published_numbers():
    """METHODS.md 1.2: 3 encoder layers, ResNet-18 without its classifier, 8 x 8 positions of an image of 256 x 256."""
    model = build("ctran", 17)
    u, e = np.zeros((17, 512)), np.zeros((2, 512))
    model = model.clone(label_table=u, state_table=e)
    variables = abstract(model, (256, 256, 3))
    count = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layer))
        for name, layer in variables["params"].items()
    }
    assert sum(count.pop(f"encoder{i}") for i in range(3)) == 4_733_952
    assert count == {"backbone": 11_176_512, "norm": 2 * 512, "output": 17 * 512 + 17}
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    tokens = jax.eval_shape(functools.partial(model.apply, method="visual_tokens"), variables, x)
    assert tokens.shape == (1, 64, 512)


@pytest.mark.parametrize("backbone", [name for name in MODELS if name not in ("ctran", "resnet34", "resnet101")])
def test_every_model_can_be_the_backbone(backbone):
    """Its classifier is never made, nor what a convolutional network has behind its maps."""
    model = build("ctran", C, backbone=backbone, labels="learned", states="learned", width=16, heads=2)
    variables = abstract(model, (32, 32, 3))
    made = tuple(name for name in model.backbone.layers if name in variables["params"]["backbone"])
    assert made
    assert made == model.backbone.layers[: len(made)] != model.backbone.layers
    assert set(variables["params"]) <= set(model.layers)
    assert jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)).shape == (2, C)


def test_initial_values():
    """METHODS.md 1.2: +-1 / sqrt(second dimension) but for the packed projection, which is Xavier's of the whole matrix."""
    width, feedforward = 64, 36
    model = quick(width=width, feedforward=feedforward, labels="learned", states="learned")
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 7), jnp.float32))["params"]
    layer = params["encoder0"]
    bounds = [
        (layer["self_attn"]["in_proj"]["kernel"], math.sqrt(6 / (width + 3 * width))),
        (layer["self_attn"]["out_proj"], 1 / math.sqrt(width)),
        (layer["linear1"], 1 / math.sqrt(width)),
        (layer["linear2"], 1 / math.sqrt(feedforward)),
        (params["output"], 1 / math.sqrt(width)),
        (params["labels_embedding"], 1 / math.sqrt(width)),
        (params["states_embedding"], 1 / math.sqrt(width)),
        (params["projection"], 1 / math.sqrt(6)),
    ]
    for part, bound in bounds:
        for leaf in jax.tree.leaves(part):
            assert np.abs(leaf).max() <= bound
            if leaf.size > 50:
                assert np.abs(leaf).max() > 0.95 * bound
                np.testing.assert_allclose(leaf.std(), bound / math.sqrt(3), rtol=0.15)
            assert np.all(leaf != 0)
    assert not layer["self_attn"]["in_proj"]["bias"].any()
    for norm in (params["norm"], layer["norm1"], layer["norm2"]):
        assert np.all(norm["scale"] == 1)
        assert not norm["bias"].any()


# -- label tokens -------------------------------------------------------------------------------------------------------


def label_tokens(model: LabelMaskTransformer, variables: Any, states: np.ndarray) -> np.ndarray:
    return np.asarray(model.apply(variables, jnp.asarray(states), np.float64, method="label_tokens"))


@pytest.mark.parametrize("labels", ["clip", "text", "onehot"])
def test_frozen_tables_are_no_variables(labels):
    model = quick(labels=labels)
    variables = random_variables(model, (7,))
    assert set(variables) == {"params", "batch_stats"}
    assert not {"labels_embedding", "states_embedding"} & set(variables["params"])
    assert not {"labels_embedding", "states_embedding"} & set(model.layers)
    u, e = tables()
    table = [np.zeros(WIDTH), *e]  # unknown, known negative, known positive
    expected = [[u[c] + table[s + 1] for c, s in enumerate(row)] for row in STATES]
    np.testing.assert_array_equal(label_tokens(model, variables, STATES), expected)


def test_learned_tables_are_variables():
    model = quick(labels="learned", states="learned", label_table=None, state_table=None)
    variables = random_variables(model, (7,))
    assert {"labels_embedding", "states_embedding"} <= set(model.layers)
    shapes = weights.shapes(variables)
    assert shapes["labels_embedding.weight"] == (C, WIDTH)
    assert shapes["states_embedding.weight"] == (2, WIDTH)
    state = weights.from_variables(variables, model)
    table = [np.zeros(WIDTH), *state["states_embedding.weight"]]
    expected = [[state["labels_embedding.weight"][c] + table[s + 1] for c, s in enumerate(row)] for row in STATES]
    np.testing.assert_array_equal(label_tokens(model, variables, STATES), expected)
    # Every row of a trained table has a gradient of its own; an unknown label's none of the states'.
    gradient = jax.grad(lambda v: model.apply(v, jnp.asarray(STATES), np.float64, method="label_tokens").sum())(
        variables
    )
    np.testing.assert_array_equal(gradient["params"]["labels_embedding"]["kernel"], np.full((WIDTH, C), len(STATES)))
    times = [np.sum(s == STATES) for s in (0, 1)]
    np.testing.assert_array_equal(gradient["params"]["states_embedding"]["kernel"], np.tile(times, (WIDTH, 1)))


def test_swapped_states_exchange_the_words():
    model = quick()
    variables = random_variables(model, (7,))
    other = np.where(STATES == UNKNOWN, UNKNOWN, 1 - STATES)
    swapped = label_tokens(model.clone(swapped_states=True), variables, STATES)
    np.testing.assert_array_equal(swapped, label_tokens(model, variables, other))
    assert np.any(swapped != label_tokens(model, variables, STATES))


def test_without_states_all_labels_are_unknown():
    model = quick()
    variables, x = random_variables(model, (7,)), inputs(shape=(7,))
    apply = quick_jit(model.apply)
    unknown = np.full((4, C), UNKNOWN, np.int8)
    np.testing.assert_array_equal(apply(variables, x), apply(variables, x, states=unknown))
    assert np.abs(apply(variables, x, states=STATES) - apply(variables, x))[0].max() > 1e-3
    np.testing.assert_array_equal(apply(variables, x, states=STATES)[1], apply(variables, x)[1])


def test_sine_positions():
    """Channel 2i and 2i + 1 are sine and cosine at the rate 10000^(-2i / half); rows in one half, columns in the other."""
    h, w, width = 3, 4, 8
    found, half = sine(h, w, width), width // 2
    for row, column, i in itertools.product(range(h), range(w), range(half // 2)):
        rate = 10_000 ** (-2 * i / half)
        for start, angle in ((0, 2 * np.pi * (row + 1) / h), (half, 2 * np.pi * (column + 1) / w)):
            pair = found[row * w + column, start + 2 * i : start + 2 * i + 2]
            np.testing.assert_allclose(pair, [np.sin(angle * rate), np.cos(angle * rate)], atol=1e-12)
    model = network()
    variables, x = random_variables(model), inputs(1)
    tokens = [m.apply(variables, x, method="visual_tokens") for m in (model.clone(position="sine"), model)]
    np.testing.assert_allclose(tokens[0] - tokens[1], sine(2, 3, WIDTH)[None], atol=1e-12)


# -- label-mask training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "share"), [(5, 0.75), (4, 0.75), (4, 1.0), (3, 0.3)])
def test_the_revealed_are_uniform_in_number_and_in_kind(labels, share):
    """Number uniform on 0 ... floor(share C), both ends included; then each subset of that size as likely as any other."""
    draws, most = 20_000, math.floor(share * labels)
    y = np.arange(labels) % 2
    draw = jax.jit(jax.vmap(lambda key: draw_states(key, jnp.asarray(y, jnp.uint8), share)))
    states = np.asarray(draw(jax.random.split(jax.random.key(0), draws)))
    known = states != UNKNOWN
    np.testing.assert_array_equal(states, np.where(known, y, UNKNOWN))
    expected = {
        subset: draws / (most + 1) / math.comb(labels, k)
        for k in range(most + 1)
        for subset in itertools.combinations(range(labels), k)
    }
    found = dict.fromkeys(expected, 0)
    for row in known:
        found[tuple(np.flatnonzero(row).tolist())] += 1
    # Pearson's statistic has mean f and variance 2 f, f the number of subsets less one: five deviations off is an error.
    f = len(expected) - 1
    statistic = sum((found[subset] - e) ** 2 / e for subset, e in expected.items())
    assert statistic <= f + 5 * math.sqrt(2 * f)


def test_nothing_is_revealed_without_a_share():
    for labels, share in ((5, 0.0), (1, 0.75)):
        draw = jax.jit(jax.vmap(lambda key, n=labels, s=share: draw_states(key, jnp.ones(n, jnp.uint8), s)))
        assert np.all(draw(jax.random.split(jax.random.key(0), 100)) == UNKNOWN)


SUM = functools.partial(losses.for_task, "multi", reduction="sum")
GIVEN = (0.5, 1.0, 2.0, 3.0, 0.25)
# name -> (loss, whether of a batch the sum, whether of an example the sum, weight of each label)
LOSSES = {
    "sums": (SUM(), True, True, (1,) * C),
    "means": (losses.for_task("multi"), False, False, (1,) * C),
    "weights": (SUM(weighting="given", weights=GIVEN), False, True, GIVEN),
}


@pytest.mark.parametrize("name", LOSSES)
def test_only_unknown_labels_count(name):
    """States by the documented keys, one example at a time; padding rows hold what would be noticed."""
    loss, over_batch, over_labels, w = LOSSES[name]
    model = quick()
    built = problem.build(model, np.zeros(7), "multi", loss=loss, summed=over_batch, dtype=jnp.float64)
    assert built.summed == over_batch
    variables = random_variables(model, (7,))
    x, y = inputs(5, (7,)).at[3].set(jnp.nan), np.random.default_rng(8).integers(0, 2, (5, C)).astype(np.uint8)
    mask = np.array([1, 1, 1, 0, 1], bool)
    batch = Batch(x, jnp.asarray(y), jnp.asarray(mask), jnp.float32(0), jnp.arange(5, dtype=jnp.int32))
    key = jax.random.key(11)
    found, changed = quick_jit(built.loss)(variables, batch, key)

    _, _, _, key_states = jax.random.split(key, 4)
    keys = jax.random.split(key_states, 5)
    states = np.stack([draw_states(keys[b], jnp.asarray(y[b]), 0.75) for b in range(5)])
    assert len({tuple(row) for row in (states == UNKNOWN)[mask]}) > 2  # each example has its own
    z, new = model.apply(variables, x, train=True, mask=batch.mask, states=states, mutable=["batch_stats"])
    total = 0.0
    for b in np.flatnonzero(mask):
        each = [
            w[c] * (np.log1p(np.exp(-z[b, c])) if y[b, c] else np.log1p(np.exp(z[b, c])))
            for c in range(C)
            if states[b, c] == UNKNOWN
        ]
        total += sum(each) if over_labels else sum(each) / len(each)
    np.testing.assert_allclose(found, total if over_batch else total / mask.sum(), rtol=1e-9)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), changed, new)


def test_remasking_sees_what_the_network_sees_and_decides_what_counts():
    model = quick()
    built = problem.build(model, np.zeros(7), "multi", loss=SUM(), summed=True, dtype=jnp.float64)
    variables, x = random_variables(model, (7,)), inputs(3, (7,))
    y = np.tile(STATES[2], (3, 1))
    batch = Batch(x, jnp.asarray(y, jnp.uint8), jnp.ones(3, bool), jnp.float32(0), jnp.arange(3, dtype=jnp.int32))
    assert built.label_mask is not None
    loss_of = built.label_mask.loss

    @quick_jit
    def loss(key):
        seen = []

        def remask(*arguments):
            seen.append(arguments)
            return jnp.asarray(STATES[:3])

        value, _ = loss_of(variables, batch, key, remask=remask)
        return value, seen

    found, ((seen, states, given),) = loss(jax.random.key(0))
    np.testing.assert_array_equal(seen, x)
    np.testing.assert_array_equal(given.index, batch.index)
    states = np.asarray(states)
    assert np.all((states == UNKNOWN) | (states == y))
    z, _ = model.apply(variables, x, train=True, states=jnp.asarray(STATES[:3]), mutable=["batch_stats"])
    each = np.where(y == 1, np.log1p(np.exp(-z)), np.log1p(np.exp(z)))
    np.testing.assert_allclose(found, each[STATES[:3] == UNKNOWN].sum(), rtol=1e-9)


def test_an_example_all_of_whose_labels_are_known_has_no_loss():
    z, y = jnp.asarray([3.0, -2.0]), jnp.asarray([0, 1], jnp.uint8)
    for reduction in losses.REDUCTIONS:
        loss = losses.for_task("multi", reduction=reduction)
        value, gradient = jax.value_and_grad(loss)(z, y, jnp.zeros(2, bool))
        assert value == 0
        assert not gradient.any()


def test_weights_of_inverse_frequency():
    """Proportional to 1 / count with mean 1; a label without a positive counts as if it had one."""
    counts = np.array([10, 5, 1, 0])
    found = np.array(losses.inverse_frequency(counts))
    np.testing.assert_allclose(found / found[0], [1, 10 / 5, 10 / 1, 10 / 1])
    np.testing.assert_allclose(found.mean(), 1)
    z, y = jnp.asarray([1.0, -1.0, 0.5, 2.0]), jnp.asarray([0, 1, 1, 0], jnp.uint8)
    weighted = losses.for_task("multi", weighting="inverse_frequency", weights=tuple(found), reduction="sum")
    each = [losses.for_task("multi", reduction="sum")(z[c : c + 1], y[c : c + 1]) for c in range(4)]
    np.testing.assert_allclose(weighted(z, y), sum(w * v for w, v in zip(found, each, strict=True)), rtol=1e-12)


# -- training mode ------------------------------------------------------------------------------------------------------


def test_dropout_is_drawn_in_training_only():
    model = quick(dropout=0.25)
    variables, x = random_variables(model, (7,)), inputs(shape=(7,))

    @quick_jit
    def train(key):
        return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]

    assert np.abs(train(jax.random.key(0)) - train(jax.random.key(1))).max() > 1e-3
    with pytest.raises(InvalidRngError):
        jax.eval_shape(functools.partial(model.apply, train=True, mutable=["batch_stats"]), variables, x)
    # In evaluation it asks for no key, and what is dropped in training makes no difference.
    np.testing.assert_array_equal(model.apply(variables, x), quick().apply(variables, x))


def test_padding_rows_change_nothing():
    model = network(depth=1)
    variables, mask = random_variables(model), np.array([1, 0, 1, 1], bool)
    x = jnp.asarray(np.where(mask[:, None, None, None], inputs(), 1e3))
    r = jnp.asarray(np.random.default_rng(3).normal(size=(4, C)) * mask[:, None])

    def loss(params, x, states, r, mask):
        full = {**variables, "params": params}
        z, new = model.apply(full, x, train=True, mask=mask, states=states, mutable=["batch_stats"])
        return (z * r).sum(), (z, new)

    run = quick_jit(jax.value_and_grad(loss, has_aux=True))
    (_, (z, new)), gradient = run(variables["params"], x, STATES, r, mask)
    (_, (z_alone, new_alone)), alone = run(variables["params"], x[mask], STATES[mask], r[mask], np.ones(3, bool))
    np.testing.assert_allclose(z[mask], z_alone, rtol=1e-9, atol=1e-12)
    for found, expected in ((gradient, alone), (new, new_alone)):
        found, expected = (jax.tree.leaves(part) for part in (found, expected))
        assert_near(found, [np.asarray(leaf) for leaf in expected], 1e-9, range(len(expected)))


# -- weights ------------------------------------------------------------------------------------------------------------


def test_weights_of_the_backbone_alone():
    """torchvision's ResNet with its 1000-way classifier, say: that is left out, and the rest of the model left as it is."""
    model = network()
    alone = model.backbone.clone(num_classes=7)
    given = weights.from_variables(random_variables(alone), alone)
    assert {"fc.weight", "fc.bias"} <= set(given)
    variables = jax.tree.map(lambda leaf: leaf + 1, random_variables(model))
    loaded = weights.to_variables(given, variables, model)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    for kind, part in variables.items():
        for layer, before in part.items():
            if layer == "backbone":
                found = weights.from_variables({kind: loaded[kind][layer]}, alone)
                for name, value in found.items():
                    np.testing.assert_array_equal(value, given[name])
            else:
                jax.tree.map(np.testing.assert_array_equal, loaded[kind][layer], before)
    del given["layer1.0.conv1.weight"]
    with pytest.raises(UserError, match=r"missing: layer1\.0\.conv1\.weight"):
        weights.to_variables(given, variables, model)


@pytest.mark.parametrize("backbone", [None, "cnn_digit"])
def test_weights_of_the_whole_model_go_round(backbone):
    """Also those of a backbone that reads flattened maps, whose rows are permuted."""
    model = network(labels="learned", states="learned")
    model = model if backbone is None else model.clone(backbone=build(backbone, C))
    shape = SHAPE if backbone is None else (8, 8, 3)
    variables = random_variables(model, shape)
    state = weights.from_variables(variables, model)
    assert {name.partition(".")[0] for name in state} <= set(model.layers)
    assert all(value.shape == weights.shapes(variables)[name] for name, value in state.items())
    blank = jax.tree.map(jnp.zeros_like, variables)
    jax.tree.map(np.testing.assert_array_equal, weights.to_variables(state, blank, model), variables)
    # Of another number of classes all but the classifier is taken.
    other = weights.to_variables(state, blank, model, ignore_head=True)
    assert not np.asarray(other["params"]["output"]["kernel"]).any()
    jax.tree.map(np.testing.assert_array_equal, other["params"]["backbone"], variables["params"]["backbone"])


# -- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet19"}, "model.ctran.backbone: unknown name 'resnet19'"),
        ({"backbone": "ctran"}, "model.ctran.backbone: unknown name 'ctran'"),
        ({"width": 10, "heads": 4}, "model.ctran.width: 10 found"),
        ({"depth": 0}, "model.ctran"),
        ({"known": 1.5}, "model.ctran.known: 1.5 found"),
        ({"dropout": 1.0}, "model.ctran.dropout: 1.0 found"),
        ({"labels": "learnt"}, "model.ctran.labels: unknown value 'learnt' (did you mean 'learned'?)"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError) as error:
        build("ctran", C, **options)
    assert str(error.value).startswith(message)


def test_a_missing_table_is_named():
    with pytest.raises(UserError, match=r"^model\.ctran: no label table given"):
        abstract(build("ctran", C, backbone="mlp"), (7,))
    with pytest.raises(UserError, match=r"^model\.ctran: no state table given"):
        abstract(build("ctran", C, backbone="mlp", labels="learned"), (7,))


def test_other_tasks_are_refused():
    for task in ("single", "mask"):
        with pytest.raises(UserError, match=f"needs several labels an example, the task is '{task}'"):
            problem.build(quick(), np.zeros(7), task)
