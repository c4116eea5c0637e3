"""Every model equals its PyTorch counterpart; padding rows change nothing; parameters are as many as published."""

import contextlib
import math
from collections import OrderedDict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_pfl.errors import UserError
from fedjax_pfl.models import MODELS, build, layers, weights
from fedjax_pfl.models.cnn import CNNDigit
from fedjax_pfl.models.mlp import MLP
from fedjax_pfl.models.resnet import ResNet
from fedjax_pfl.models.vgg import VGG16Slim

# -- the models under test: as wide as needed to find an error, no wider -----------------------------------------------

BASIC = {"norm": "batch", "impl": "auto", "width": 4}
BOTTLENECK = {**BASIC, "width": 2}
CIFAR = {**BASIC, "option_a": True}

# name -> (model, shape of one image)
SMALL = {
    "linear": (MLP(3, (), "none"), (2, 3, 2)),
    "mlp": (MLP(3, (7, 5), "none"), (2, 3, 2)),
    "mlp_batch": (MLP(3, (7, 5), "batch"), (2, 3, 2)),
    "cnn_niid": (build("cnn_niid", 3), (20, 24, 2)),
    "cnn_pfl": (build("cnn_pfl", 3, dropout_conv=0.0, dropout_dense=0.0), (8, 10, 2)),
    "cnn_digit": (CNNDigit(3, "batch", 0.0, "auto", (4, 5, 6), (10, 8)), (7, 12, 2)),
    "vgg16_slim": (VGG16Slim(3, False, "batch", "auto", width=4), (32, 64, 3)),
    "vgg16_slim_biased": (VGG16Slim(3, True, "batch", "auto", width=4), (32, 32, 3)),
    "resnet20": (ResNet(3, (3, 3, 3), False, "cifar", **CIFAR), (8, 12, 3)),
    "resnet32": (ResNet(3, (5, 5, 5), False, "cifar", **CIFAR), (8, 8, 3)),
    "resnet18": (ResNet(3, (2, 2, 2, 2), False, "imagenet", **BASIC), (35, 64, 3)),
    "resnet34": (ResNet(3, (3, 4, 6, 3), False, "cifar", **BASIC), (16, 16, 3)),
    "resnet50": (ResNet(3, (3, 4, 6, 3), True, "imagenet", **BOTTLENECK), (64, 64, 3)),
    "resnet101": (ResNet(3, (3, 4, 23, 3), True, "cifar", **BOTTLENECK), (16, 16, 3)),
}
SLOW = {"resnet32", "resnet34", "resnet50", "resnet101"}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SMALL]
WITH_BATCH_NORM = [name for name in SMALL if name not in ("linear", "mlp", "cnn_niid", "cnn_pfl") and name not in SLOW]


def abstract(model, shape):
    """Shapes and types of the variables of `model` for images of `shape`, without computing them."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))


def random_variables(model, shape, dtype="float64"):
    """Variables drawn so that activations keep their size and no scale is 1, no shift 0, no statistic as at the start."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            value = rng.normal(size=leaf.shape) / np.sqrt(math.prod(leaf.shape[:-1]))
        else:
            value = rng.uniform(0.5, 1.5, leaf.shape) * (0.1 if path[-1].key in ("bias", "mean") else 1)
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(model, shape))


# -- PyTorch counterparts, from the papers' descriptions ---------------------------------------------------------------


@contextlib.contextmanager
def torch_dtype(torch, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def counterparts(torch):
    """name of SMALL or MODELS -> function of the same model that makes its torch counterpart."""
    tnn, func = torch.nn, torch.nn.functional

    def seq(**modules):
        """A Sequential with names; '_0' is the name '0'."""
        return tnn.Sequential(OrderedDict((name.lstrip("_"), module) for name, module in modules.items()))

    def mlp(model, shape):
        sizes = [math.prod(shape), *model.hidden]
        body = [tnn.Flatten()]
        names = ["flatten"]
        for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            parts = {"linear": tnn.Linear(a, b)}
            if model.norm == "batch":
                parts["bn"] = tnn.BatchNorm1d(b)
            body.append(seq(**parts, relu=tnn.ReLU()))
            names.append(f"fc{i + 1}")
        body.append(tnn.Linear(sizes[-1], model.num_classes))
        names.append(f"fc{len(sizes)}")
        return seq(**dict(zip(names, body, strict=True)))

    def cnn_niid(model, shape):
        h, w, c = shape
        flat = 16 * (((h - 4) // 2 - 4) // 2) * (((w - 4) // 2 - 4) // 2)
        return seq(
            conv1=tnn.Conv2d(c, 6, 5),
            r1=tnn.ReLU(),
            p1=tnn.MaxPool2d(2),
            conv2=tnn.Conv2d(6, 16, 5),
            r2=tnn.ReLU(),
            p2=tnn.MaxPool2d(2),
            flatten=tnn.Flatten(),
            fc1=tnn.Linear(flat, 120),
            r3=tnn.ReLU(),
            fc2=tnn.Linear(120, 84),
            r4=tnn.ReLU(),
            fc3=tnn.Linear(84, model.num_classes),
        )

    def cnn_pfl(model, shape):
        h, w, c = shape
        return seq(
            conv1=tnn.Conv2d(c, 32, 3),
            r1=tnn.ReLU(),
            conv2=tnn.Conv2d(32, 64, 3),
            r2=tnn.ReLU(),
            p=tnn.MaxPool2d(2),
            flatten=tnn.Flatten(),
            fc1=tnn.Linear(64 * ((h - 4) // 2) * ((w - 4) // 2), 128),
            r3=tnn.ReLU(),
            fc2=tnn.Linear(128, model.num_classes),
        )

    def cnn_digit(model, shape):
        h, w, c = shape
        (a, b, d), (e, f) = model.conv_widths, model.dense_widths
        return seq(
            encoder=seq(
                conv1=tnn.Conv2d(c, a, 5, padding=2),
                bn1=tnn.BatchNorm2d(a),
                r1=tnn.ReLU(),
                p1=tnn.MaxPool2d(3, 2, 1),
                conv2=tnn.Conv2d(a, b, 5, padding=2),
                bn2=tnn.BatchNorm2d(b),
                r2=tnn.ReLU(),
                p2=tnn.MaxPool2d(3, 2, 1),
                conv3=tnn.Conv2d(b, d, 5, padding=2),
                bn3=tnn.BatchNorm2d(d),
                r3=tnn.ReLU(),
            ),
            flatten=tnn.Flatten(),
            linear=seq(
                fc1=tnn.Linear(d * -(-h // 4) * -(-w // 4), e),
                bn4=tnn.BatchNorm1d(e),
                r4=tnn.ReLU(),
                fc2=tnn.Linear(e, f),
                bn5=tnn.BatchNorm1d(f),
                r5=tnn.ReLU(),
            ),
            fc=tnn.Linear(f, model.num_classes),
        )

    def vgg16_slim(model, shape):
        blocks, before = {}, shape[2]
        for b, widths in enumerate(((32, 32), (64, 64), (128, 128, 128), (128, 128, 128), (256, 256, 256))):
            convs = []
            for width in (w * model.width // 32 for w in widths):
                conv = tnn.Conv2d(before, width, 3, padding=1, bias=False)
                convs.append(seq(conv=conv, bn=tnn.BatchNorm2d(width), relu=tnn.ReLU()))
                before = width
            blocks[f"layer{b + 1}"] = tnn.Sequential(*convs, tnn.MaxPool2d(2))
        fc1 = seq(linear=tnn.Linear(before, before // 4, bias=False), bn=tnn.BatchNorm1d(before // 4), r=tnn.ReLU())
        fc2 = seq(linear=tnn.Linear(before // 4, model.num_classes, bias=model.bias_fc2))
        return seq(**blocks, avgpool=tnn.AdaptiveAvgPool2d(1), flatten=tnn.Flatten(), fc1=fc1, fc2=fc2)

    class Block(tnn.Module):
        def __init__(self, before, width, stride, bottleneck, option_a):
            super().__init__()
            self.bottleneck, self.stride, after = bottleneck, stride, 4 * width if bottleneck else width
            if bottleneck:
                self.conv1 = tnn.Conv2d(before, width, 1, bias=False)
                self.conv2 = tnn.Conv2d(width, width, 3, stride, 1, bias=False)
                self.conv3, self.bn3 = tnn.Conv2d(width, after, 1, bias=False), tnn.BatchNorm2d(after)
            else:
                self.conv1 = tnn.Conv2d(before, width, 3, stride, 1, bias=False)
                self.conv2 = tnn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = tnn.BatchNorm2d(width), tnn.BatchNorm2d(width)
            self.downsample = None
            self.pad = (after - before) // 2 if option_a else 0
            if not option_a and (stride != 1 or before != after):
                self.downsample = tnn.Sequential(
                    tnn.Conv2d(before, after, 1, stride, bias=False), tnn.BatchNorm2d(after)
                )

        def forward(self, x):
            y = func.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            if self.bottleneck:
                y = self.bn3(self.conv3(func.relu(y)))
            if self.downsample is not None:
                x = self.downsample(x)
            elif self.pad:
                x = func.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return func.relu(x + y)

    def resnet(model, shape):
        width, parts = model.width, {}
        if model.stem == "imagenet":
            parts["conv1"] = tnn.Conv2d(shape[2], width, 7, 2, 3, bias=False)
        else:
            parts["conv1"] = tnn.Conv2d(shape[2], width, 3, 1, 1, bias=False)
        parts |= {"bn1": tnn.BatchNorm2d(width), "relu": tnn.ReLU()}
        if model.stem == "imagenet":
            parts["maxpool"] = tnn.MaxPool2d(3, 2, 1)
        before = width
        for s, count in enumerate(model.blocks):
            blocks = []
            for i in range(count):
                stride = 2 if s > 0 and i == 0 else 1
                blocks.append(Block(before, width * 2**s, stride, model.bottleneck, model.option_a))
                before = width * 2**s * (4 if model.bottleneck else 1)
            parts[f"layer{s + 1}"] = tnn.Sequential(*blocks)
        head = {"linear" if model.option_a else "fc": tnn.Linear(before, model.num_classes)}
        return seq(**parts, avgpool=tnn.AdaptiveAvgPool2d(1), flatten=tnn.Flatten(), **head)

    kinds = {MLP: mlp, CNNDigit: cnn_digit, VGG16Slim: vgg16_slim, ResNet: resnet}
    kinds |= {type(build("cnn_niid", 2)): cnn_niid, type(build("cnn_pfl", 2)): cnn_pfl}
    return lambda model, shape: kinds[type(model)](model, shape)


def torch_counterpart(model, shape, dtype="float64"):
    """(torch, a counterpart with random weights and statistics, the flax variables with the same ones)."""
    torch = pytest.importorskip("torch")
    with torch_dtype(torch, getattr(torch, dtype)):
        counterpart = counterparts(torch)(model, shape)
    variables = random_variables(model, shape, dtype)
    state = {k: torch.from_numpy(v.copy()) for k, v in weights.from_variables(variables, model).items()}
    missing, unexpected = counterpart.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return torch, counterpart, variables


def run_flax(model, variables, x, r, train, mask=None):
    """Logits, gradient of sum(logits * r) by params and x, and the variables after the step."""

    def loss(params, x):
        full = {**variables, "params": params}
        if not train:
            logits, stats = model.apply(full, x), variables.get("batch_stats", {})
        else:
            logits, new = model.apply(full, x, train=True, mask=mask, mutable=["batch_stats"])
            stats = new.get("batch_stats", {})
        return (logits * r).sum(), (logits, stats)

    gradient = JIT(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (logits, stats)), (params, dx) = gradient(variables["params"], x)
    return SimpleNamespace(logits=logits, params=params, x=dx, batch_stats=stats)


def assert_near(found, expected, tolerance, names):
    """Each array within `tolerance` of its largest value; those that are 0 but for rounding, of the largest of all."""
    largest = max(np.abs(value).max() for value in expected)
    for name, a, b in zip(names, found, expected, strict=True):
        error, scale = np.abs(np.asarray(a) - b).max(), np.abs(b).max()
        assert error <= tolerance * max(scale, 1e-4 * largest), f"{name}: {error} of {scale}"


@pytest.mark.parity
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_pytorch(name, train):
    check_parity(*SMALL[name], train, "float64", 1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["cnn_niid", "cnn_digit", "resnet20"])
def test_equals_pytorch_in_float32(name):
    check_parity(*SMALL[name], True, "float32", 1e-4)


def check_parity(model, shape, train, dtype, tolerance):
    torch, counterpart, variables = torch_counterpart(model, shape, dtype)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, *shape)).astype(dtype)
    r = rng.normal(size=(6, model.num_classes)).astype(dtype)
    found = run_flax(model, variables, jnp.asarray(x), jnp.asarray(r), train)

    counterpart.train(train)
    tx = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()
    logits = counterpart(tx)
    (logits * torch.from_numpy(r)).sum().backward()

    logits = logits.detach().numpy()
    assert np.abs(np.asarray(found.logits) - logits).max() <= tolerance * np.abs(logits).max()
    gradients = weights.from_variables({"params": found.params}, model)
    expected = {name: p.grad.numpy() for name, p in counterpart.named_parameters()}
    assert set(gradients) == set(expected)
    assert_near([gradients[k] for k in expected], list(expected.values()), tolerance, expected)
    assert_near([found.x], [tx.grad.numpy().transpose(0, 2, 3, 1)], tolerance, ["x"])
    statistics = weights.from_variables({"batch_stats": found.batch_stats}, model)
    for name, value in counterpart.named_buffers():
        if name in statistics:
            assert_near([statistics[name]], [value.numpy()], tolerance, [name])
        else:
            assert name.endswith("num_batches_tracked")
