"""Every model equals its PyTorch counterpart; padding rows change nothing; parameters are as many as published."""

import contextlib
import functools
import math
from collections import OrderedDict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from fedjax_pfl.errors import UserError
from fedjax_pfl.models import MODELS, build, layers, weights
from fedjax_pfl.models.cnn import CNNDigit, CNNFedMD
from fedjax_pfl.models.conv import max_pool
from fedjax_pfl.models.deeplab import DeepLab
from fedjax_pfl.models.layers import Segmenter
from fedjax_pfl.models.mlp import MLP
from fedjax_pfl.models.resnet import ResNet
from fedjax_pfl.models.unet import UNet
from fedjax_pfl.models.vgg import VGG16Slim

# -- the models under test: as wide and as large as it takes to find an error ------------------------------------------

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
    "cnn_fedmd": (build("cnn_fedmd", 3, widths=(4, 5, 6), dropout=0.0), (13, 15, 2)),
    "cnn_fedmd_two": (build("cnn_fedmd", 3, widths=(4, 5), dropout=0.0), (4, 7, 2)),
    "cnn_digit": (CNNDigit(3, "batch", 0.0, "auto", (4, 5, 6), (10, 8)), (7, 12, 2)),
    "vgg16_slim": (VGG16Slim(3, False, "batch", "auto", width=4), (32, 64, 3)),
    "resnet20": (ResNet(3, (3, 3, 3), False, "cifar", **CIFAR), (8, 12, 3)),
    "resnet32": (ResNet(3, (5, 5, 5), False, "cifar", **CIFAR), (8, 8, 3)),
    "resnet18": (ResNet(3, (2, 2, 2, 2), False, "imagenet", **BASIC), (33, 40, 3)),
    "resnet34": (ResNet(3, (3, 4, 6, 3), False, "cifar", **BASIC), (16, 16, 3)),
    "resnet50": (ResNet(3, (3, 4, 6, 3), True, "imagenet", **BOTTLENECK), (33, 64, 3)),
    "resnet101": (ResNet(3, (3, 4, 23, 3), True, "cifar", **BOTTLENECK), (16, 16, 3)),
    "unet": (UNet(3, 2, 4, "batch", "auto"), (13, 18, 2)),
    "deeplab": (DeepLab(3, ResNet(3, (1, 2, 2), False, "imagenet", **BASIC, output_stride=4), (1, 3), 5, "batch", "auto"),
        (25, 34, 3)),
}  # fmt: skip
SLOW = {"vgg16_slim", "resnet20", "resnet32", "resnet18", "resnet34", "resnet50", "resnet101", "deeplab"}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SMALL]

# Each kind of layer and block once, for what doesn't depend on the depth: norm -> model, with the shape of one image.
SHORT = {
    "mlp": (lambda norm: MLP(3, (32,), norm), (2, 3, 2)),
    "cnn_fedmd": (lambda norm: CNNFedMD(3, (4, 5, 6), 0.0, norm, "auto"), (12, 13, 2)),
    "cnn_digit": (lambda norm: CNNDigit(3, norm, 0.0, "auto", (4, 5, 6), (10, 8)), (7, 12, 2)),
    "vgg16_slim": (lambda norm: VGG16Slim(3, False, norm, "auto", width=4), (32, 32, 3)),
    "option_a": (lambda norm: ResNet(3, (1, 1), False, "cifar", **{**CIFAR, "norm": norm}), (8, 8, 3)),
    "bottleneck": (lambda norm: ResNet(3, (1, 1), True, "imagenet", **{**BASIC, "norm": norm}), (16, 16, 3)),
    "unet": (lambda norm: UNet(3, 1, 4, norm, "auto"), (5, 6, 2)),
    "deeplab": (
        lambda norm: DeepLab(3, ResNet(3, (1, 1), False, "cifar", **{**BASIC, "norm": norm}), (2,), 5, norm, "auto"),
        (6, 5, 3),
    ),
}


@functools.cache
def quick_options():
    """Compiler options that halve the compile time, as far as this version of jaxlib knows them."""
    known = {}
    for name, value in {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(jnp.sin, compiler_options={name: value}).lower(1.0).compile()
            known[name] = value
    return known


def shape_of_logits(model, shape, n):
    """Of n images of `shape`: a class for each pixel, or for each image."""
    return (n, *shape[:2], model.num_classes) if isinstance(model, Segmenter) else (n, model.num_classes)


def quick_jit(function):
    return jax.jit(function, compiler_options=quick_options())


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

    def cnn_fedmd(model, shape):
        (h, w, c), (a, b, *more) = shape, model.widths
        k = 2 if more else 3
        parts = dict(conv1=tnn.Conv2d(c, a, 3, padding=1), bn1=tnn.BatchNorm2d(a), r1=tnn.ReLU())
        parts |= dict(edge=tnn.ReplicationPad2d((0, 1, 0, 1)), p1=tnn.AvgPool2d(2, 1))
        parts |= dict(conv2=tnn.Conv2d(a, b, k, 2), bn2=tnn.BatchNorm2d(b), r2=tnn.ReLU())
        h, w = (h - k) // 2 + 1, (w - k) // 2 + 1
        if more:
            parts |= dict(p2=tnn.AvgPool2d(2), conv3=tnn.Conv2d(b, *more, 3, 2), bn3=tnn.BatchNorm2d(*more))
            parts |= dict(r3=tnn.ReLU())
            h, w = (h // 2 - 3) // 2 + 1, (w // 2 - 3) // 2 + 1
        fc = tnn.Linear(model.widths[-1] * h * w, model.num_classes, bias=False)
        return seq(**parts, flatten=tnn.Flatten(), fc=fc)

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
        def __init__(self, before, width, stride, bottleneck, option_a, dilation=1):
            super().__init__()
            self.bottleneck, self.stride, after = bottleneck, stride, 4 * width if bottleneck else width
            if bottleneck:
                self.conv1 = tnn.Conv2d(before, width, 1, bias=False)
                self.conv2 = tnn.Conv2d(width, width, 3, stride, 1, bias=False)
                self.conv3, self.bn3 = tnn.Conv2d(width, after, 1, bias=False), tnn.BatchNorm2d(after)
            else:
                self.conv1 = tnn.Conv2d(before, width, 3, stride, dilation, dilation, bias=False)
                self.conv2 = tnn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
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
        before, total, dilation = width, 4 if model.stem == "imagenet" else 1, 1
        for s, count in enumerate(model.blocks):
            blocks = []
            for i in range(count):
                stride, earlier = 2 if s > 0 and i == 0 else 1, dilation
                if total * stride > (model.output_stride or 99):
                    stride, dilation = 1, 2 * dilation
                total *= stride
                rate = earlier if i == 0 else dilation
                blocks.append(Block(before, width * 2**s, stride, model.bottleneck, model.option_a, rate))
                before = width * 2**s * (4 if model.bottleneck else 1)
            parts[f"layer{s + 1}"] = tnn.Sequential(*blocks)
        head = {"linear" if model.option_a else "fc": tnn.Linear(before, model.num_classes)}
        return seq(**parts, avgpool=tnn.AdaptiveAvgPool2d(1), flatten=tnn.Flatten(), **head)

    def conv_norm_relu(before, after, size=3, dilation=1):
        conv = tnn.Conv2d(before, after, size, 1, dilation * (size // 2), dilation, bias=False)
        return seq(conv=conv, bn=tnn.BatchNorm2d(after), relu=tnn.ReLU())

    def pair(before, after):
        return tnn.Sequential(conv_norm_relu(before, after), conv_norm_relu(after, after))

    class Up(tnn.Module):
        def __init__(self, width):
            super().__init__()
            self.up, self.convs = tnn.ConvTranspose2d(2 * width, width, 2, 2), pair(2 * width, width)

        def forward(self, x, beside):
            x = self.up(x)
            x = func.pad(x, (0, beside.shape[3] - x.shape[3], 0, beside.shape[2] - x.shape[2]))
            return self.convs(torch.cat([beside, x], 1))

    class UNetTorch(tnn.Module):
        def __init__(self, channels, classes, depth, width):
            super().__init__()
            self.depth = depth
            for i in range(1, depth + 1):
                w = width * 2 ** (i - 1)
                setattr(self, f"down{i}", pair(channels if i == 1 else w // 2, w))
                setattr(self, f"up{i}", Up(w))
            self.bottom = pair(width * 2 ** (depth - 1), width * 2**depth)
            self.out = tnn.Conv2d(width, classes, 1)

        def forward(self, x):
            down = []
            for i in range(1, self.depth + 1):
                down.append(getattr(self, f"down{i}")(x))
                x = func.max_pool2d(down[-1], 2)
            x = self.bottom(x)
            for i in range(self.depth, 0, -1):
                x = getattr(self, f"up{i}")(x, down[i - 1])
            return self.out(x)

    def unet(model, shape):
        return UNetTorch(shape[2], model.num_classes, model.depth, model.width)

    class Pyramid(tnn.Module):
        def __init__(self, before, width, rates):
            super().__init__()
            self.rates = rates
            setattr(self, "0", conv_norm_relu(before, width, 1))
            for i, rate in enumerate(rates, 1):
                setattr(self, str(i), conv_norm_relu(before, width, 3, rate))
            self.pool = conv_norm_relu(before, width, 1)
            self.project = conv_norm_relu((2 + len(rates)) * width, width, 1)

        def forward(self, x):
            branches = [getattr(self, str(i))(x) for i in range(1 + len(self.rates))]
            mean = self.pool(func.adaptive_avg_pool2d(x, 1))
            mean = func.interpolate(mean, x.shape[2:], mode="bilinear", align_corners=False)
            return self.project(torch.cat([*branches, mean], 1))

    class DeepLabTorch(tnn.Module):
        def __init__(self, backbone, d, model):
            super().__init__()
            self.backbone = tnn.Sequential(OrderedDict(list(backbone.named_children())[:-3]))
            self.aspp = Pyramid(d, model.width, model.rates)
            self.out = tnn.Conv2d(model.width, model.num_classes, 1)

        def forward(self, x):
            z = self.out(self.aspp(self.backbone(x)))
            return func.interpolate(z, x.shape[2:], mode="bilinear", align_corners=False)

    def deeplab(model, shape):
        net = model.backbone
        return DeepLabTorch(resnet(net, shape), net.width * 2 ** (len(net.blocks) - 1), model)

    kinds = {MLP: mlp, CNNDigit: cnn_digit, VGG16Slim: vgg16_slim, ResNet: resnet, UNet: unet, DeepLab: deeplab}
    kinds |= {type(build("cnn_niid", 2)): cnn_niid, type(build("cnn_pfl", 2)): cnn_pfl, CNNFedMD: cnn_fedmd}
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

    gradient = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (logits, stats)), (params, dx) = gradient(variables["params"], x)
    return SimpleNamespace(logits=logits, params=params, x=dx, batch_stats=stats)


def assert_near(found, expected, tolerance, names):
    """Each array within `tolerance` of its largest value (those that are 0 but for rounding: of 1 % of the largest)."""
    largest = max(np.abs(value).max() for value in expected)
    for name, a, b in zip(names, found, expected, strict=True):
        error, scale = np.abs(np.asarray(a) - b).max(), np.abs(b).max()
        assert error <= tolerance * max(scale, 0.01 * largest), f"{name}: {error} of {scale}"


@pytest.mark.parity
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_pytorch(name, train):
    check_parity(name, train, "float64", 1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["cnn_niid", "cnn_digit"])
def test_equals_pytorch_in_float32(name):
    check_parity(name, True, "float32", 1e-4)


def check_parity(name, train, dtype, tolerance):
    model, shape = SMALL[name]
    torch, counterpart, variables = torch_counterpart(model, shape, dtype)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, *shape)).astype(dtype)
    r = rng.normal(size=shape_of_logits(model, shape, 6)).astype(dtype)
    found = run_flax(model, variables, jnp.asarray(x), jnp.asarray(r), train)

    counterpart.train(train)
    tx = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()
    logits = counterpart(tx)
    logits = logits.permute(0, 2, 3, 1) if logits.ndim == 4 else logits
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


@pytest.mark.parity
def test_group_norm_equals_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(3, 2, size=(2, 3, 5, 64))
    # 16 channels a group, or 18 where that doesn't divide.
    for channels, groups in ((64, 4), (36, 2)):
        part = x[..., :channels]
        expected = torch.nn.functional.group_norm(torch.from_numpy(part.transpose(0, 3, 1, 2).copy()), groups)
        params = {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}
        found = layers.GroupNorm().apply({"params": params}, jnp.asarray(part))
        np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-9, atol=1e-12)


# -- masks -------------------------------------------------------------------------------------------------------------

MASK = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "vgg16_slim" else n for n in SHORT])
def test_padding_rows_change_nothing(name):
    make, shape = SHORT[name]
    model = make("batch")
    variables = random_variables(model, shape)
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(8, *shape)) * np.where(MASK, 1, 1e3).reshape(-1, 1, 1, 1))
    r = rng.normal(size=shape_of_logits(model, shape, 8))
    r = jnp.asarray(r * MASK.reshape(-1, *[1] * (r.ndim - 1)))  # the loss is masked, as the training loop does
    padded = run_flax(model, variables, x, r, True, jnp.asarray(MASK))
    alone = run_flax(model, variables, x[MASK], r[MASK], True)
    np.testing.assert_allclose(padded.logits[MASK], alone.logits, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(padded.x[MASK], alone.x, rtol=1e-9, atol=1e-12 * np.abs(alone.x).max())
    assert not np.asarray(padded.x[~MASK]).any()
    for name in ("params", "batch_stats"):
        found, expected = (jax.tree.leaves(getattr(run, name)) for run in (padded, alone))
        assert_near(found, [np.asarray(leaf) for leaf in expected], 1e-9, range(len(expected)))


def test_a_batch_without_real_rows_changes_nothing():
    make, shape = SHORT["bottleneck"]
    model = make("batch")
    variables = random_variables(model, shape)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, *shape)))
    run = run_flax(model, variables, x, jnp.zeros((4, 3)), True, jnp.zeros(4, bool))
    assert np.isfinite(run.logits).all()
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves((run.params, run.x)))
    jax.tree.map(np.testing.assert_array_equal, run.batch_stats, variables["batch_stats"])


def test_one_value_per_channel_has_no_variance():
    x = jnp.asarray([[2.0, -4.0], [9.0, 9.0]])
    variables = layers.BatchNorm().init(jax.random.key(0), x.astype(jnp.float32))
    variables = jax.tree.map(lambda leaf: leaf.astype(x.dtype), variables)
    mask = jnp.asarray([True, False])
    y, new = layers.BatchNorm().apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
    np.testing.assert_array_equal(y[0], [0, 0])
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.2, -0.4])
    np.testing.assert_array_equal(new["batch_stats"]["var"], [1, 1])


@jax.numpy_rank_promotion("allow")
def plain_batch_norm(variables, x, mask):
    """BatchNorm's training step, whose gradient autodiff finds: outputs and new statistics."""
    stats, axes = variables["batch_stats"], tuple(range(x.ndim - 1))
    rows = mask.reshape(-1, *[1] * (x.ndim - 1))
    n = int(mask.sum()) * math.prod(x.shape[1:-1])
    mean, var = stats["mean"], stats["var"]
    if n:
        mean = jnp.where(rows, x, 0).sum(axes) / n
        var = jnp.where(rows, (x - mean) ** 2, 0).sum(axes) / n
    unbiased = var * n / (n - 1) if n > 1 else stats["var"]
    y = (x - mean) / jnp.sqrt(var + layers.EPS) * variables["params"]["scale"] + variables["params"]["bias"]
    return y, {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * unbiased}


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 5)])
@pytest.mark.parametrize("real", ["1111", "0110", "0100", "0000"])
def test_gradients_of_batch_norm(real, shape):
    """By everything, outputs of padding and new statistics included, and once more the gradient of the gradient."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))  # noqa: E731
    mask = jnp.asarray([c == "1" for c in real])
    x, weights, of_mean, of_var = draw(*shape), draw(*shape), draw(5), draw(5)
    variables = {
        "params": {"scale": draw(5), "bias": draw(5)},
        "batch_stats": {"mean": draw(5), "var": 1 + draw(5) ** 2},
    }

    def apply(variables, x, mask):
        y, new = layers.BatchNorm().apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])
        return y, new["batch_stats"]

    def gradients(step):
        def loss(args):
            y, new = step(*args, mask)
            return (weights * y**2).sum() + of_mean @ new["mean"] ** 2 + of_var @ new["var"] ** 2

        def steepness(args):
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(jax.grad(loss)(args)))

        return jax.value_and_grad(loss)((variables, x)), jax.grad(steepness)((variables, x))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9),
        gradients(apply),
        gradients(plain_batch_norm),
    )


def test_pool_gradient_survives_the_optimiser():
    """A batch norm that is computed again in a fused gradient may round otherwise; the pool must still find its maxima."""
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.normal(size=(6, 2, 4, 32))), jnp.asarray(rng.normal(size=(32, 32)))
    r = jnp.asarray(rng.normal(size=(6, 1, 2, 32)))
    variables = {
        "params": {"scale": jnp.asarray(rng.normal(size=32)), "bias": jnp.asarray(rng.normal(size=32))},
        "batch_stats": {"mean": jnp.zeros(32), "var": jnp.ones(32)},
    }

    def loss(kernel):
        z = (x.reshape(-1, 32) @ kernel).reshape(x.shape)
        y, _ = layers.BatchNorm().apply(variables, z, train=True, mutable=["batch_stats"])
        return (max_pool(y, 2) * r).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(kernel), jax.grad(loss)(kernel), rtol=1e-9, atol=1e-9)


# -- shapes, types, names, options -------------------------------------------------------------------------------------


@functools.cache
def published(name, num_classes):
    """The registered model and its abstract variables for 32x32x3 images."""
    model = build(name, num_classes)
    return model, abstract(model, (32, 32, 3))


PARAMETERS = [
    ("mlp", 10, 3072 * 200 + 200 + 200 * 10 + 10),
    ("cnn_niid", 10, 62_006),
    ("cnn_pfl", 10, 1_626_442),
    # 32x32 images leave 15x15 positions.
    ("cnn_fedmd", 16, 3 * 9 * 128 + 128 * 9 * 256 + 3 * (128 + 256) + 225 * 256 * 16),
    # Section by section from the paper's appendix: convolutions, dense layers, norms, classifier.
    ("cnn_digit", 10, (4_864 + 102_464 + 204_928) + (25_168_896 + 6_293_504) + 2 * (256 + 3072 + 2048) + 20_490),
    ("vgg16_slim", 3, 2_371_104),
    ("resnet8", 10, 75_290),
    ("resnet20", 10, 269_722),
    ("resnet32", 10, 464_154),
    ("resnet18", 1000, 11_689_512),
    ("resnet34", 1000, 21_797_672),
    ("resnet50", 1000, 25_557_032),
    ("resnet101", 1000, 44_549_160),
    ("unet", 2, 31_037_698),
    # torchvision's backbone; the pyramid's convolutions, their norms, the classifier.
    ("deeplab_resnet18", 2, 11_176_512 + 512 * 256 * (1 + 3 * 9 + 1) + 5 * 256 * 256 + 6 * 2 * 256 + 256 * 2 + 2),
]


def test_every_model_is_counted():
    assert [name for name, _, _ in PARAMETERS] == [name for name in MODELS if name != "ctran"]  # see test_ctran.py


@pytest.mark.parametrize(("name", "num_classes", "count"), PARAMETERS)
def test_number_of_parameters_and_names_of_layers(name, num_classes, count):
    model, variables = published(name, num_classes)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == count
    assert set(model.layers) == set(variables["params"])
    if isinstance(model, Segmenter):
        return
    # The features feed the last layer.
    head = jax.tree.leaves(variables["params"][model.layers[-1]])
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    features = jax.eval_shape(functools.partial(model.apply, method="features"), variables, x)
    assert {leaf.shape for leaf in head} <= {(num_classes,), (features.shape[1], num_classes)}
    assert features.shape[0] == 2


@pytest.mark.parity
@pytest.mark.parametrize(("name", "num_classes"), [entry[:2] for entry in PARAMETERS])
def test_names_and_shapes_are_pytorchs(name, num_classes):
    torch = pytest.importorskip("torch")
    model, variables = published(name, num_classes)
    with torch.device("meta"):
        expected = counterparts(torch)(model, (32, 32, 3)).state_dict()
    found = weights.shapes(variables)
    assert found == {k: tuple(v.shape) for k, v in expected.items() if not k.endswith("num_batches_tracked")}


SHALLOW = {name: SMALL[name] for name in ("linear", "cnn_niid", "cnn_pfl")} | {
    name: (make("batch"), shape) for name, (make, shape) in SHORT.items()
}


@pytest.mark.parametrize("name", SHALLOW)
def test_float32_stays(name):
    model, shape = SHALLOW[name]
    variables = random_variables(model, shape, "float32")

    def loss(params, x, mask):
        logits, new = model.apply({**variables, "params": params}, x, train=True, mask=mask, mutable=["batch_stats"])
        return logits.sum(), (logits, new)

    x, mask = jax.ShapeDtypeStruct((4, *shape), jnp.float32), jax.ShapeDtypeStruct((4,), bool)
    made = jax.eval_shape(jax.grad(loss, (0, 1), has_aux=True), variables["params"], x, mask)
    assert {leaf.dtype for leaf in jax.tree.leaves((abstract(model, shape), made))} == {np.dtype("float32")}


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("name", SHORT)
def test_without_batch_norm(name, norm):
    make, shape = SHORT[name]
    model = make(norm)
    variables = random_variables(model, shape)
    assert set(variables) == {"params"}
    assert set(model.layers) == set(variables["params"])
    norms = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables) if path[-1].key == "scale"]
    assert bool(norms) == (norm == "group")
    if isinstance(model, ResNet):
        assert ("bias" in variables["params"]["conv1"]) == (norm == "none")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)))
    apply = quick_jit(functools.partial(model.apply, train=True))
    logits, others = apply(variables, x), apply(variables, x.at[1].add(10))
    assert np.isfinite(logits).all()
    # An example's logits are its own affair.
    np.testing.assert_array_equal(logits[0], others[0])
    assert np.abs(logits[1] - others[1]).max() > 1e-6


@pytest.mark.parametrize("name", ["mlp_batch", "vgg16_slim"])
def test_logits_are_the_head_of_the_features(name):
    model, shape = SMALL[name]
    variables = random_variables(model, shape)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *shape)))

    @quick_jit
    def both(variables, x):
        features = model.apply(variables, x, method="features")
        return model.apply(variables, x), model.apply(variables, features, method="head")

    np.testing.assert_array_equal(*both(variables, x))


@pytest.mark.parametrize(
    "model",
    [
        build("cnn_pfl", 3, dropout_conv=0.5, dropout_dense=0.0),
        build("cnn_pfl", 3, dropout_conv=0.0, dropout_dense=0.5),
        build("cnn_fedmd", 3, widths=(4, 5), dropout=0.5, norm="none"),
        CNNDigit(3, "none", 0.5, "auto", (4, 5, 6), (10, 8)),
    ],
    ids=["conv", "dense", "fedmd", "digit"],
)
def test_dropout_is_drawn_in_training_only(model):
    variables = random_variables(model, (8, 8, 1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)))
    train = quick_jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    assert np.abs(train(jax.random.key(0)) - train(jax.random.key(1))).max() > 1e-3
    with pytest.raises(InvalidRngError):
        jax.eval_shape(functools.partial(model.apply, train=True), variables, x)
    jax.eval_shape(model.apply, variables, x)  # asks for no key


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("mlp", "resnet34", "resnet50", "resnet101", "ctran")])
def test_every_convolution_is_of_the_chosen_kind(name):
    for impl in ("xla", "gemm"):
        model = build(name, 3, impl=impl)
        variables = abstract(model, (32, 32, 3))
        leaves = jax.tree_util.tree_leaves_with_path(variables)
        kernels = [path for path, leaf in leaves if leaf.ndim == 4 and path[-2].key != "up"]  # a U-Net's way up
        jaxpr = str(jax.make_jaxpr(model.apply)(variables, jnp.zeros((1, 32, 32, 3), jnp.float32)))
        assert jaxpr.count("conv_general_dilated[") == (len(kernels) if impl == "xla" else 0)


def test_initial_values_are_pytorchs():
    params = layers.Dense(400).init(jax.random.key(0), jnp.zeros((1, 25), jnp.float32))["params"]
    for leaf in params.values():
        assert 0.195 < np.abs(leaf).max() <= 0.2  # 1 / sqrt(25)
        np.testing.assert_allclose(leaf.std(), 0.2 / math.sqrt(3), rtol=0.1)
    # torchvision's He initialisation by fan out, akamaster's by fan in, also of the classifier; pfl-research's Glorot.
    for model, layer, std in (
        (ResNet(50, (1,), False, "imagenet", "batch", "auto"), "conv1", math.sqrt(2 / (49 * 64))),
        (ResNet(50, (1,), False, "cifar", "batch", "auto", option_a=True), "conv1", math.sqrt(2 / 27)),
        (ResNet(50, (1,), False, "cifar", "batch", "auto", option_a=True), "linear", math.sqrt(2 / 64)),
        (build("cnn_pfl", 3), "conv2", math.sqrt(2 / (9 * 96))),
    ):
        kernel = draw_kernel(model, layer)
        np.testing.assert_allclose(kernel.mean(), 0, atol=std / 10)
        np.testing.assert_allclose(kernel.std(), std, rtol=0.1)


def draw_kernel(model, layer):
    x = jnp.zeros((1, 32, 32, 3), jnp.float32)
    # XLA leaves out what isn't returned, so this compiles one layer.
    return quick_jit(lambda key: model.init(key, x)["params"][layer]["kernel"])(jax.random.key(0))


def test_vgg_takes_any_size_from_32():
    model, variables = published("vgg16_slim", 3)
    for size in ((32, 32), (33, 47), (128, 128)):
        x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        assert jax.eval_shape(model.apply, variables, x).shape == (2, 3)
    with pytest.raises(UserError, match="model vgg16_slim: images of 28x28 found, at least 32x32 expected"):
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.float32))
    with pytest.raises(UserError, match=r"examples of shape \(20,\) found, images"):
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((2, 20), jnp.float32))


@pytest.mark.parametrize("name", ["unet", "deeplab_resnet18"])
def test_segmenters_take_any_size_and_give_their_maps(name):
    model, variables = published(name, 2)
    for size, maps in (((32, 32), (2, 2)), ((47, 33), (2, 2) if name == "unet" else (3, 3)), ((64, 128), (4, 8))):
        x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        both = jax.eval_shape(functools.partial(model.apply, method="features_and_logits"), variables, x)
        assert [each.shape for each in both] == [(2, *maps, 1024 if name == "unet" else 512), (2, *size, 2)]
        alone = [jax.eval_shape(functools.partial(model.apply, method=m), variables, x) for m in ("maps", "__call__")]
        assert alone == list(both)


@pytest.mark.parametrize("name", ["unet", "deeplab"])
def test_maps_and_logits_of_one_pass(name):
    make, shape = SHORT[name]
    model = make("batch")
    variables = random_variables(model, shape)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)))
    maps, logits = quick_jit(functools.partial(model.apply, method="features_and_logits"))(variables, x)
    np.testing.assert_allclose(maps, quick_jit(functools.partial(model.apply, method="maps"))(variables, x), rtol=1e-9)
    np.testing.assert_allclose(logits, quick_jit(model.apply)(variables, x), rtol=1e-9)


def test_output_stride_of_a_resnet():
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for stem, stride, size in (("imagenet", None, 2), ("imagenet", 32, 2), ("imagenet", 16, 4), ("imagenet", 8, 8),
                               ("cifar", 16, 8), ("cifar", 8, 8), ("cifar", 2, 32)):  # fmt: skip
        model = ResNet(3, (1, 1, 1, 1), False, stem, "none", "auto", width=2, output_stride=stride)
        variables = abstract(model, (64, 64, 3))
        maps = jax.eval_shape(functools.partial(model.apply, method="maps"), variables, x)
        assert maps.shape == (1, size, size, 16), (stem, stride)


def test_unet_needs_a_pixel_at_the_bottom():
    model, variables = published("unet", 2)
    with pytest.raises(UserError, match="model unet: images of 15x40 found, at least 16x16 expected"):
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((1, 15, 40, 3), jnp.float32))


def test_mlp_takes_any_shape():
    for shape in ((3,), (5, 2), (4, 4, 3)):
        params = abstract(build("mlp", 2, hidden=()), shape)["params"]
        assert params["fc1"]["kernel"].shape == (math.prod(shape), 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "model.name: unknown name 'resnet19' (did you mean 'resnet1"),
        ("cnn_digit", {"drop": 0.1}, "model.cnn_digit: unknown option 'drop' (did you mean 'dropout'?)"),
        ("vgg16_slim", {"norm": "bacth"}, "model.vgg16_slim.norm: unknown value 'bacth' (did you mean 'batch'?)"),
        ("resnet18", {"stem": "cifra"}, "model.resnet18.stem: unknown value 'cifra' (did you mean 'cifar'?)"),
        ("resnet18", {"impl": "gem"}, "model.resnet18.impl: unknown value 'gem' (did you mean 'gemm'?)"),
        ("cnn_pfl", {"dropout_conv": 1.5}, "model.cnn_pfl.dropout_conv: 1.5 found"),
        ("cnn_digit", {"dropout": -0.1}, "model.cnn_digit.dropout: -0.1 found"),
        ("cnn_fedmd", {"widths": (5,)}, "model.cnn_fedmd.widths: (5,) found, two or three positive numbers expected"),
        ("mlp", {"hidden": (5, 0)}, "model.mlp.hidden: (5, 0) found, positive numbers"),
        ("unet", {"depth": 0}, "model.unet.depth: 0 found, 1 or more expected"),
        ("deeplab_resnet18", {"output_stride": 4}, "model.deeplab_resnet18.output_stride: 4 found, one of 8, 16, 32"),
        (
            "deeplab_resnet18",
            {"rates": (6, 0)},
            "model.deeplab_resnet18: width 256, rates (6, 0) found, numbers from 1",
        ),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(UserError) as error:
        build(name, 3, **options)
    assert str(error.value).startswith(message)
