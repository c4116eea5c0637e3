"""linear - batch norm - relu - linear - softmax cross entropy, forward and backward by hand.

A model without the entries of batch norm is the network without batch norm.
"""

from typing import NamedTuple

import numpy as np

EPS, MOMENTUM = 1e-5, 0.1  # PyTorch's
BATCH_NORM_PARAMETERS = ("norm.scale", "norm.bias")
STATISTICS = ("norm.mean", "norm.var")
BATCH_NORM = BATCH_NORM_PARAMETERS + STATISTICS
HEAD = ("head.kernel", "head.bias")
PARAMETERS = ("body.kernel", "body.bias", *BATCH_NORM_PARAMETERS, *HEAD)


class Round(NamedTuple):
    """What is held after a round."""

    server: dict  # the server's model ({} where it has none), and what else it keeps, by name
    clients: list  # what each client keeps, a dict; None where it has none yet
    models: list[dict]  # the model that each client would use now


def parameters(model):
    """The entries of a model that are trained."""
    return {name: value for name, value in model.items() if name not in STATISTICS}


def statistics(model):
    """The batch-norm running statistics of a model."""
    return {name: value for name, value in model.items() if name in STATISTICS}


class Pass(NamedTuple):
    """What the forward pass of a batch in training mode leaves for the backward pass."""

    x: np.ndarray
    normalised: np.ndarray | None
    scale: np.ndarray | None  # batch norm's divisor
    b: np.ndarray  # before the relu
    features: np.ndarray  # after it
    logits: np.ndarray


def forward(model, x):
    """Training mode on one batch of real rows: what it computed, and the new running statistics."""
    n = len(x)
    a = x @ model["body.kernel"] + model["body.bias"]
    changed, normalised, scale = {}, None, None
    if "norm.scale" in model:
        mean, var = a.mean(0), a.var(0)  # biased
        scale = np.sqrt(var + EPS)
        normalised = (a - mean) / scale
        b = model["norm.scale"] * normalised + model["norm.bias"]
        # The running variance is unbiased; one row has none, and leaves it.
        unbiased = var * n / (n - 1) if n > 1 else model["norm.var"]
        changed["norm.mean"] = (1 - MOMENTUM) * model["norm.mean"] + MOMENTUM * mean
        changed["norm.var"] = (1 - MOMENTUM) * model["norm.var"] + MOMENTUM * unbiased
    else:
        b = a
    h = np.maximum(b, 0)
    return Pass(x, normalised, scale, b, h, h @ model["head.kernel"] + model["head.bias"]), changed


def backward(model, seen, d_z, d_h=0):
    """The gradient of a loss with the gradients `d_z` by the logits and `d_h` by the features, besides through the logits."""
    grad = {"head.kernel": seen.features.T @ d_z, "head.bias": d_z.sum(0)}
    d_b = (d_z @ model["head.kernel"].T + d_h) * (seen.b > 0)
    if "norm.scale" in model:
        grad["norm.scale"], grad["norm.bias"] = (d_b * seen.normalised).sum(0), d_b.sum(0)
        d_normalised = d_b * model["norm.scale"]
        # mean and var depend on a as well
        d_a = d_normalised - d_normalised.mean(0) - seen.normalised * (d_normalised * seen.normalised).mean(0)
        d_a /= seen.scale
    else:
        d_a = d_b
    grad["body.kernel"], grad["body.bias"] = seen.x.T @ d_a, d_a.sum(0)
    return grad


def log_softmax(z):
    """Over the last axis."""
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cross_entropy(z, y):
    """Mean over the rows of -log p_y, and its gradient by the logits z."""
    n, rows = len(y), np.arange(len(y))
    log_p = log_softmax(z)
    d_z = np.exp(log_p)
    d_z[rows, y] -= 1
    return -log_p[rows, y].mean(), d_z / n


def train_batch(model, x, y):
    """Training mode on one batch of real rows: mean loss, its gradient, and the new running statistics."""
    seen, changed = forward(model, x)
    loss, d_z = cross_entropy(seen.logits, y)
    return loss, backward(model, seen, d_z), changed


def predict(model, x):
    """Evaluation mode, with the running statistics: logits."""
    a = x @ model["body.kernel"] + model["body.bias"]
    if "norm.scale" in model:
        a = (a - model["norm.mean"]) / np.sqrt(model["norm.var"] + EPS) * model["norm.scale"] + model["norm.bias"]
    return np.maximum(a, 0) @ model["head.kernel"] + model["head.bias"]


def weighted_mean(models, weights):
    """sum_k p_k w_k with p_k = weight_k / sum of weights."""
    total = sum(weights)
    return {name: sum(p / total * model[name] for p, model in zip(weights, models, strict=True)) for name in models[0]}
