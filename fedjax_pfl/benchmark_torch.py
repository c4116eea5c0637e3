"""The rounds of the benchmark as plain PyTorch loops: clients one after the other, then the mean of their models."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_pfl import benchmark_numpy


def fedavg_round(x: np.ndarray, y: np.ndarray, clients: int, *, batch: int, lr: float) -> Callable[[], None]:
    """A FedAvg round of pfl-research's CNN; x [n, 32, 32, 3] uint8, y [n]."""
    net = cnn_pfl()
    return _round(net, clients, sgd(net, *tensors(x, y, clients), batch, lr))


def resnet18_round(x: np.ndarray, y: np.ndarray, clients: int, *, batch: int, lr: float) -> Callable[[], None]:
    """A FedAvg round of ResNet-18 with 10 classes; x [n, H, W, 3] uint8, y [n]."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(_resnet18(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return _round(net, clients, sgd(net, *tensors(x, y, clients), batch, lr))


def sgd(net: Any, images: Any, labels: Any, batch: int, lr: float) -> Callable[[int], None]:
    """An epoch of client k's batches."""
    import torch

    def client(k: int) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr)
        order = torch.randperm(labels.shape[1])
        for start in range(0, labels.shape[1], batch):
            some = order[start : start + batch]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[k, some]), labels[k, some]).backward()
            optimizer.step()

    return client


def cnn_pfl() -> Any:
    """pfl-research's CNN for CIFAR-10, the same at each call."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(12544, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


def tensors(x: np.ndarray, y: np.ndarray, clients: int) -> tuple[Any, Any]:
    """Equal shares of the clients: x [n, H, W, 3] uint8 as [clients, n / clients, 3, H, W] from 0 to 1, and y [n]."""
    import torch

    images = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255).contiguous()
    return images.reshape(clients, -1, *images.shape[1:]), torch.from_numpy(y).long().reshape(clients, -1)


def fedlgt_round(x: np.ndarray, y: np.ndarray, u: np.ndarray, e: np.ndarray, clients: int) -> Callable[[], None]:
    """A FedLGT round with ResNet-18, batch 16, Adam 1e-4, clipping at 10, horizontal flips.

    Args:
        x, y: [n, H, W, 3] uint8 and [n, C] in {0, 1}, n / clients of each client.
        u, e: label embeddings [C, 512], state embeddings [2, 512].
    """
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = _label_mask_transformer(torch.from_numpy(u), torch.from_numpy(e))
    received = _label_mask_transformer(torch.from_numpy(u), torch.from_numpy(e)).eval()
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().reshape(clients, -1, 3, *x.shape[1:3])
    labels = torch.from_numpy(y).reshape(clients, -1, y.shape[1])

    def client(k: int) -> None:
        received.load_state_dict(net.state_dict())
        optimizer = torch.optim.Adam(net.parameters(), 1e-4)
        order = torch.randperm(labels.shape[1])
        for start in range(0, len(order), 16):
            some = order[start : start + 16]
            image, target = images[k, some].float() / 255, labels[k, some].long()
            flips = torch.rand(len(some)) < 0.5
            image[flips] = image[flips].flip(3)
            known = torch.randint(0, math.floor(0.75 * target.shape[1]) + 1, (len(some), 1))
            rank = torch.rand(target.shape).argsort(1).argsort(1)
            states = torch.where(rank < known, target, -1)
            with torch.no_grad():
                p = torch.sigmoid(received(image, torch.full_like(states, -1)))
            states = torch.where((p - 0.5).abs() < 0.02, -1, states)
            optimizer.zero_grad()
            each = nn.functional.binary_cross_entropy_with_logits(net(image, states), target.float(), reduction="none")
            (each * (states == -1)).sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()

    return _round(net, clients, client)


def prrfl_round(
    x: np.ndarray, y: np.ndarray, x_validation: np.ndarray, y_validation: np.ndarray, clients: int, *, epochs: int
) -> Callable[[], None]:
    """A PRR-FL round (v2) with VGG16-slim, 3 classes, batch 16, SGD 0.01, horizontal flips; the server's step in NumPy.

    Args:
        x, y, x_validation, y_validation: [n, H, W, 3] uint8 and [n], an equal share of each client's.
    """
    import torch
    from torch import nn

    functional = nn.functional
    torch.manual_seed(0)
    start = _vgg16_slim()
    pairs = [tuple(copy.deepcopy(start) for _ in range(2)) for _ in range(clients)]

    def tensors(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
        images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().reshape(clients, -1, 3, *x.shape[1:3])
        return images, torch.from_numpy(y).long().reshape(clients, -1)

    images, labels = tensors(x, y)
    held_out, answers = tensors(x_validation, y_validation)
    counts = torch.bincount(labels.reshape(-1), minlength=3).float()
    push = torch.clamp(counts[None, :] / counts[:, None], max=1) ** 0.8
    shared = torch.ones(3, 64)
    own = torch.ones(clients, 3, 64)

    def macro_f1(net: Any, k: int) -> float:
        with torch.no_grad():
            predicted = net.eval()(held_out[k].float() / 255)[1].argmax(1)
        hit = torch.bincount(answers[k][predicted == answers[k]], minlength=3).float()
        total = torch.bincount(predicted, minlength=3) + torch.bincount(answers[k], minlength=3)
        return float((2 * hit / total.clamp(min=1))[total > 0].mean())

    def supervised(z: Any, target: Any, gamma: Any) -> Any:
        e = torch.exp(z - z.max(1, keepdim=True).values)
        sigma = e.gather(1, target[:, None])[:, 0] / ((push[target] * e).sum(1) + 1e-6)
        return -(gamma[target] * torch.log(sigma + 1e-6)).mean()

    def kl(teacher: Any, student: Any) -> Any:
        p = functional.softmax(teacher.detach(), 1)
        return functional.kl_div(functional.log_softmax(student, 1), p, reduction="batchmean")

    def client(k: int) -> None:
        nets, stage = pairs[k], 0
        optimizers = [torch.optim.SGD(net.parameters(), 0.01, weight_decay=1e-6) for net in nets]
        for _ in range(epochs):
            personal, deputy = (macro_f1(net, k) for net in nets)
            recover = stage == 0 or deputy < 0.7 * personal
            stage = 1 if recover else 2 if stage == 1 or deputy < 0.9 * personal else 3
            gamma = 4 / (functional.cosine_similarity(own[k], shared, dim=1) + 3)
            sums, seen = torch.zeros(3, 64), torch.zeros(3)
            order = torch.randperm(labels.shape[1])
            for first in range(0, len(order), 16):
                some = order[first : first + 16]
                image, target = images[k, some].float() / 255, labels[k, some]
                flips = torch.rand(len(some)) < 0.5
                image[flips] = image[flips].flip(3)
                (feature, z_P), (_, z_D) = (net.train()(image) for net in nets)
                loss = supervised(z_P, target, gamma) + supervised(z_D, target, gamma)
                loss = loss + (kl(z_D, z_P) if stage >= 2 else 0) + (kl(z_P, z_D) if stage <= 2 else 0)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                sums.index_add_(0, target, feature.detach())
                seen += torch.bincount(target, minlength=3)
            own[k] = sums / seen.clamp(min=1)[:, None]

    def play() -> None:
        for k in range(clients):
            client(k)
        deviation = own.std(0).clamp(min=1)
        shared.copy_(own.mean(0) + deviation * torch.randn_like(shared))
        states = [deputy.state_dict() for _, deputy in pairs]
        names = [name for name in states[0] if name.endswith("weight") and ".bn." not in name]
        for name in names:
            kernels = [state[name].numpy() for state in states]
            for state, new in zip(states, benchmark_numpy.share_kernels(kernels, 0.7, "fc2" in name), strict=True):
                state[name].copy_(torch.from_numpy(np.ascontiguousarray(new)))

    return play


def kd3a_epoch(x: np.ndarray, y: np.ndarray, clients: int, *, width: float, batch: int) -> Callable[[], None]:
    """An epoch of KD3A by its released code: clients - 1 sources, then the target, the last client; SGD 0.01, momentum 0.9.

    Args:
        x, y: [n, 32, 32, 3] uint8 and [n], an equal share of each client's.
        width: factor of the digit CNN's widths.
    """
    import itertools

    import torch
    from torch import nn

    functional = nn.functional
    torch.manual_seed(0)
    K = clients - 1
    nets = [_cnn_digit(width) for _ in range(clients)]
    optimizers = [torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4) for net in nets]
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().reshape(clients, -1, 3, 32, 32)
    labels = torch.from_numpy(y).long().reshape(clients, -1)
    gate = 0.9
    orders = list(itertools.permutations(range(K)))

    def inputs(k: int, some: Any) -> Any:
        return images[k, some].float() / 127.5 - 1

    def vote(m: Any, own: Any) -> tuple[Any, Any, Any]:
        """Of confidences [S, B] and classes [S, B]: the class, its score and the weight."""
        sure = m > gate
        heard = torch.where(sure.any(0), m * sure, m)
        score = torch.zeros(m.shape[1], 10).scatter_add_(1, own.T, heard.T)
        best, label = score.max(1)
        return label, best, sure.any(0).float()

    def source(k: int) -> None:
        order = torch.randperm(labels.shape[1])
        for first in range(0, len(order), batch):
            some = order[first : first + batch]
            optimizers[k].zero_grad()
            functional.cross_entropy(nets[k](inputs(k, some)), labels[k, some]).backward()
            optimizers[k].step()

    def play() -> None:
        for net in nets:
            net.train()
        for k in range(K):
            source(k)
        focus, confident = torch.zeros(K), 0.0
        order = torch.randperm(labels.shape[1])
        for first in range(0, len(order), batch):
            image = inputs(K, order[first : first + batch])
            with torch.no_grad():
                P = torch.stack([functional.softmax(nets[k](image), 1) for k in range(K)])
            m, own = P.max(2)
            label, _, weight = vote(m, own)
            confident += float(weight.sum())
            quality: dict[tuple[int, ...], float] = {(): 0.0}
            for size in range(1, K + 1):
                for some in itertools.combinations(range(K), size):
                    _, best, counts = vote(m[list(some)], own[list(some)])
                    quality[some] = float((best * counts).sum())
            for permuted in orders:
                for i, k in enumerate(permuted):
                    before, after = tuple(sorted(permuted[:i])), tuple(sorted(permuted[: i + 1]))
                    focus[k] += (quality[after] - quality[before]) / len(orders)
            lam, other = float(np.random.beta(2, 2)), torch.randperm(len(image))
            target = functional.one_hot(label, 10).float()
            target = lam * target + (1 - lam) * target[other]
            optimizers[K].zero_grad()
            z = nets[K](lam * image + (1 - lam) * image[other])
            (-(weight[:, None] * target * functional.log_softmax(z, 1)).sum(1).mean()).backward()
            optimizers[K].step()
        first = confident / len(order) / clients
        focus = focus if focus.sum() > 0 else focus + 1e-3
        alpha = [*((1 - first) * focus / focus.sum()).tolist(), first]
        states = [net.state_dict() for net in nets]
        with torch.no_grad():
            for name, value in states[0].items():
                if value.is_floating_point() and not name.startswith("fc."):
                    mean = sum(a * state[name] for a, state in zip(alpha, states, strict=True))
                    for state in states:
                        state[name].copy_(mean)

    return play


def _cnn_digit(width: float) -> Any:
    """`models.cnn_digit` for 32 x 32 pixels and 10 classes."""
    from collections import OrderedDict

    from torch import nn

    a, b, c, d, e = (round(width * full) for full in (64, 64, 128, 3072, 2048))
    layers: list[tuple[str, Any]] = []
    for i, (inputs, outputs) in enumerate(((3, a), (a, b), (b, c)), start=1):
        layers += [(f"conv{i}", nn.Conv2d(inputs, outputs, 5, padding=2)), (f"bn{i}", nn.BatchNorm2d(outputs))]
        layers.append((f"relu{i}", nn.ReLU()))
        if i < 3:
            layers.append((f"pool{i}", nn.MaxPool2d(3, 2, 1)))
    layers += [
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(64 * c, d)),
        ("bn4", nn.BatchNorm1d(d)),
        ("relu4", nn.ReLU()),
    ]
    layers += [("dropout", nn.Dropout(0.5)), ("fc2", nn.Linear(d, e)), ("bn5", nn.BatchNorm1d(e)), ("relu5", nn.ReLU())]
    return nn.Sequential(OrderedDict([*layers, ("fc", nn.Linear(e, 10))]))


def _vgg16_slim() -> Any:
    """The network of PRR-FL, as `models.vgg16_slim`: features and logits."""
    from collections import OrderedDict

    from torch import nn

    def layer(inputs: int, outputs: int) -> Any:
        parts = ("conv", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)), ("bn", nn.BatchNorm2d(outputs))
        return nn.Sequential(OrderedDict([*parts, ("relu", nn.ReLU())]))

    class Slim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            before, blocks = 3, []
            for widths in ((32, 32), (64, 64), (128,) * 3, (128,) * 3, (256,) * 3):
                for width in widths:
                    blocks.append(layer(before, width))
                    before = width
                blocks.append(nn.MaxPool2d(2))
            self.blocks = nn.Sequential(*blocks)
            parts = ("linear", nn.Linear(256, 64, bias=False)), ("bn", nn.BatchNorm1d(64)), ("relu", nn.ReLU())
            self.fc1 = nn.Sequential(OrderedDict(parts))
            self.fc2 = nn.Linear(64, 3, bias=False)

        def forward(self, image: Any) -> Any:
            feature = self.fc1(self.blocks(image).mean((2, 3)))
            return feature, self.fc2(feature)

    return Slim()


def _round(net: Any, clients: int, client: Callable[[int], None]) -> Callable[[], None]:
    """Every client trains from the server's model; then the model, with its running statistics, is their mean."""
    import torch

    def state() -> list[Any]:
        return [entry for entry in net.state_dict().values() if entry.is_floating_point()]

    def play() -> None:
        with torch.no_grad():
            server = [entry.clone() for entry in state()]
            mean = [torch.zeros_like(entry) for entry in server]
        for k in range(clients):
            with torch.no_grad():
                for entry, value in zip(state(), server, strict=True):
                    entry.copy_(value)
            client(k)
            with torch.no_grad():
                for total, entry in zip(mean, state(), strict=True):
                    total.add_(entry, alpha=1 / clients)
        with torch.no_grad():
            for entry, value in zip(state(), mean, strict=True):
                entry.copy_(value)

    return play


def _resnet18() -> Any:
    """ResNet-18 without its pool and classifier."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.convolutions = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            self.shortcut = nn.Sequential()
            if stride > 1:
                self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

        def forward(self, x: Any) -> Any:
            return torch.relu(self.convolutions(x) + self.shortcut(x))

    layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    widths = [64, 64, 128, 256, 512]
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [Block(inputs, outputs, 1 if inputs == outputs else 2), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers)


def _label_mask_transformer(u: Any, e: Any) -> Any:
    """The network of FedLGT, as `models.ctran`."""
    import torch
    from torch import nn

    table = torch.cat([torch.zeros(1, 512), e])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = _resnet18()
            self.norm = nn.LayerNorm(512)
            layer = nn.TransformerEncoderLayer(512, 4, 512, 0.1, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.output = nn.Linear(512, len(u))

        def forward(self, image: Any, states: Any) -> Any:
            visual = self.backbone(image).flatten(2).transpose(1, 2)
            h = self.norm(torch.cat([visual, u + table[states + 1]], 1))
            h = self.encoder(h)[:, -len(u) :]
            return (h * self.output.weight).sum(-1) + self.output.bias

    return Network()
