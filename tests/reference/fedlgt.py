"""FedLGT (METHODS.md 1; arXiv 2312.07165) in PyTorch and float64: the one oracle that needs automatic differentiation.

It differs from the other oracles in what it takes and yields: see `fedlgt`.
"""

from typing import NamedTuple

import torch
from torch import nn

UNKNOWN = -1  # 0: known negative, 1: known positive


class Network(nn.Module):
    """The label-mask transformer (METHODS.md 1.2) without dropout, on a backbone [B, 3, H, W] -> [B, channels, h, w].

    `labels` [C, d] and `states` [2, d] (of 'negative', 'positive') are frozen tables, or None for tables that are trained.
    """

    def __init__(self, backbone, channels, classes, labels, states, *, width, depth, heads, feedforward, swapped=False):
        super().__init__()
        self.backbone = backbone
        if channels != width:
            self.projection = nn.Linear(channels, width)
        if labels is None:
            self.labels_embedding = nn.Embedding(classes, width)
        if states is None:
            self.states_embedding = nn.Embedding(2, width)
        self.tables, self.swapped = (labels, states), swapped
        self.norm = nn.LayerNorm(width)
        self.encoders = [f"encoder{i}" for i in range(depth)]
        for name in self.encoders:
            layer = nn.TransformerEncoderLayer(width, heads, feedforward, 0.0, batch_first=True, norm_first=False)
            setattr(self, name, layer)
        self.output = nn.Linear(width, classes)

    def forward(self, x, states):
        maps = self.backbone(x)
        visual = maps.flatten(2).transpose(1, 2)  # position by position, row by row
        if hasattr(self, "projection"):
            visual = self.projection(visual)
        labels, words = self.tables
        u = self.labels_embedding.weight if labels is None else labels
        words = self.states_embedding.weight if words is None else words
        negative, positive = words.flip(0) if self.swapped else words
        e = torch.stack([torch.zeros_like(negative), negative, positive])  # unknown, known negative, known positive
        h = self.norm(torch.cat([visual, u + e[states + 1]], dim=1))
        for name in self.encoders:
            h = getattr(self, name)(h)
        # The C x C matrix of every read-out at every label's token, of which only the diagonal is meant.
        return self.output(h[:, visual.shape[1] :]).diagonal(dim1=1, dim2=2)


class Backbone(nn.Module):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, channels, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return self.bn1(self.conv1(x)).relu()


class Round(NamedTuple):
    """What is held after a round, and how often what is tested happened in it."""

    server: dict  # the server's model, a state dict
    losses: dict  # of each participant, the mean loss over the examples of its last epoch
    revealed: int  # labels that label-mask training revealed to the participants
    masked: int  # those of them that the global model's doubt made unknown again
    steps: int
    clipped: int  # steps whose gradient was longer than allowed


def fedlgt(
    network,
    w,
    data,
    rounds,
    batches,
    masks,
    lr,
    *,
    tau,
    epsilon,
    clip,
    first_sample_only=False,
    closed_interval=False,
    weighting="examples",
):
    """Yields a `Round` after each round.

    Args:
        network: () -> a `Network`.
        w: its initial state dict.
        data: for each of the N clients x [n, 3, H, W] and y [n, C] in {0, 1}.
        rounds: for each round its participants: (client, whether its upload arrives).
        batches: batches(t, k) -> for each epoch the list of its batches, each an array of row numbers of client k.
        masks: masks(t, k, e, i, y) -> the states [B, C] that label-mask training draws in round t for client k in epoch e
            for its i-th batch, whose targets are y.
        lr: lr(t) -> the learning rate of round t.
        clip: largest norm of a batch's gradient.
    """
    for t, participants in enumerate(rounds):
        revealed = masked = steps = clipped = 0
        uploads, sizes, losses = [], [], {}
        for k, arrives in participants:
            x_k, y_k = data[k]
            G, f = network(), network()
            G.load_state_dict(w)
            f.load_state_dict(w)
            G.eval()
            f.train()
            adam = torch.optim.Adam(f.parameters(), lr=lr(t))
            for e, epoch in enumerate(batches(t, k)):
                total = seen = 0
                for i, rows in enumerate(map(torch.tensor, epoch)):
                    x, y = x_k[rows], y_k[rows]
                    s = masks(t, k, e, i, y)
                    doubt = unsure(G, x, s, tau, epsilon, closed_interval)
                    if first_sample_only:
                        doubt[1:] = False
                    revealed += int((s != UNKNOWN).sum())
                    masked += int((doubt & (s != UNKNOWN)).sum())
                    s = torch.where(doubt, UNKNOWN, s)

                    z = f(x, s)
                    each = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
                    loss = each[s == UNKNOWN].sum()  # over batch and labels
                    adam.zero_grad()
                    loss.backward()
                    clipped += step(adam, list(f.parameters()), clip)
                    steps += 1
                    total, seen = total + loss.item(), seen + len(rows)
                losses[k] = total / max(seen, 1)  # a client that drops all its examples made no loss
            if arrives:
                uploads.append((k, {name: value.clone() for name, value in f.state_dict().items()}))
                sizes.append(len(y_k))
        w = mean([w_k for _, w_k in uploads], shares(weighting, sizes, [losses[k] for k, _ in uploads]))
        yield Round(w, losses, revealed, masked, steps, clipped)


@torch.no_grad()
def unsure(G, x, s, tau, epsilon, closed):
    """[B, C]: the labels of which G, told none, is undecided."""
    p = torch.sigmoid(G(x, torch.full_like(s, UNKNOWN)))
    low, high = tau - epsilon, tau + epsilon
    return (low <= p) & (p <= high) if closed else (low < p) & (p < high)


def step(adam, parameters, clip):
    """One step along the clipped gradient; whether it was too long.

    PyTorch's own clipping multiplies by clip / (norm + 1e-6); here it is the norm itself.
    """
    norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
    for p in parameters:
        p.grad *= min(1.0, clip / norm.item())
    adam.step()
    return norm.item() > clip


def shares(weighting, sizes, losses):
    """p_k of the uploads that arrived."""
    weights = {
        "examples": torch.tensor(sizes, dtype=torch.float64),
        "uniform": torch.ones(len(sizes), dtype=torch.float64),
        "loss": torch.softmax(torch.tensor(losses, dtype=torch.float64), 0),
    }[weighting]
    return weights / weights.sum()


def mean(models, weights):
    """sum_k p_k w_k over the whole state, but for the counters of batches, which nothing reads."""
    names = [name for name in models[0] if not name.endswith("num_batches_tracked")]
    means = {name: sum(p * w[name] for p, w in zip(weights, models, strict=True)) for name in names}
    return {**models[0], **means}
