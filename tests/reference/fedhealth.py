"""FedHealth (METHODS.md 5.11; arXiv 1907.09173): the public data at the server, then one user after the other."""

import numpy as np

from .network import (
    BATCH_NORM,
    EPS,
    HEAD,
    Round,
    backward,
    cross_entropy,
    forward,
    parameters,
    train_batch,
    weighted_mean,
)


def fedhealth(model, data, rounds, batches, solver, public, cloud_rounds, eta, tuned):
    """
    batches(t, k, exchange): row numbers by epoch of the users' training (0), the server's (1) and transfer (2).
    tuned: names of the entries that transfer trains, running statistics among them.
    """
    w, C_S = dict(model), np.zeros((len(model["head.kernel"]),) * 2)
    own = [None for _ in data]
    for t, participants in enumerate(rounds):
        there = dict(participants)
        uploads, weights = [], []
        for k, arrives in participants:
            if k != public and t >= cloud_rounds and arrives:
                uploads.append(plain(w, data[k], batches(t, k, 0), solver(t)))
                weights.append(len(data[k][1]))
        if uploads:
            w = weighted_mean(uploads, weights)
        if there.get(public):
            if t < cloud_rounds:
                w = plain(w, data[public], batches(t, public, 1), solver(t))
            C_S = np.cov(features(w, data[public][0]), rowvar=False)
        for k, _ in participants:
            if k != public:
                own[k] = transfer(w, C_S, data[k], batches(t, k, 2), solver(t), eta, tuned)
        yield Round({**w, "covariance": C_S}, list(own), [w if v is None else v for v in own])


def plain(w, rows, epochs, optimizer):
    x, y = rows
    for epoch in epochs:
        for some in epoch:
            _, g, statistics = train_batch(w, x[some], y[some])
            w = {**w, **optimizer.step(parameters(w), g), **statistics}
    return w


def features(w, x):
    """In evaluation mode."""
    a = x @ w["body.kernel"] + w["body.bias"]
    a = (a - w["norm.mean"]) / np.sqrt(w["norm.var"] + EPS) * w["norm.scale"] + w["norm.bias"]
    return np.maximum(a, 0)


def transfer(w, C_S, rows, epochs, optimizer, eta, tuned):
    x, y = rows
    for epoch in epochs:
        for some in epoch:
            seen, statistics = forward(w, x[some])
            n, d = seen.features.shape
            d_h = np.zeros_like(seen.features)
            if n > 1:
                difference = np.cov(seen.features, rowvar=False) - C_S
                d_h = eta * (seen.features - seen.features.mean(0)) @ difference / (d**2 * (n - 1))
            g = backward(w, seen, cross_entropy(seen.logits, y[some])[1], d_h)
            trained = {name: w[name] for name in parameters(w) if name in tuned}
            kept = {name: value for name, value in statistics.items() if name in tuned}
            w = {**w, **optimizer.step(trained, g), **kept}
    return w


TUNED = {1: HEAD, 2: (*HEAD, *BATCH_NORM), 3: (*HEAD, *BATCH_NORM, "body.kernel", "body.bias")}
