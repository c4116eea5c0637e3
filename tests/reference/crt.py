"""Decoupled training in a federation (METHODS.md 8.6; arXiv 1910.09217): FedAvg, then a new classifier on a frozen backbone."""

import numpy as np

from .network import (
    EPS,
    HEAD,
    STATISTICS,
    Round,
    cross_entropy,
    forward,
    parameters,
    train_batch,
    weighted_mean,
)


def crt(model, data, rounds, batches, solver, start, alone=False, drifts=False):
    """`batches(t, k)`: from round `start` on, of the second stage's sampler.

    Args:
        alone: each client trains and keeps a classifier of its own.
        drifts: the backbone stays in training mode.
    """
    w = dict(model)
    own = [None for _ in data]
    changes = HEAD + STATISTICS if drifts else HEAD
    first_head, restarted = {name: model[name] for name in HEAD}, False
    for t, participants in enumerate(rounds):
        second = t >= start
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = dict(w), solver(t)
            if second and alone:
                w_k = {**w, **(own[k] or first_head)}
            elif second and not restarted:
                w_k = {**w, **first_head}
            for epoch in batches(t, k):
                for rows in epoch:
                    if not second:
                        _, g, statistics = train_batch(w_k, x[rows], y[rows])
                        w_k = {**optimizer.step(parameters(w_k), g), **statistics}
                        continue
                    if drifts:
                        seen, statistics = forward(w_k, x[rows])
                        features = seen.features
                    else:
                        features, statistics = evaluate(w_k, x[rows]), {}
                    head = {name: w_k[name] for name in HEAD}
                    _, d_z = cross_entropy(features @ head["head.kernel"] + head["head.bias"], y[rows])
                    g = {"head.kernel": features.T @ d_z, "head.bias": d_z.sum(0)}
                    w_k = {**w_k, **optimizer.step(head, g), **statistics}
            if second and alone:
                own[k] = {name: w_k[name] for name in changes}
            if arrives:
                uploads.append(w_k)
                weights.append(len(y))
        mean = weighted_mean(uploads, weights)
        if not second:
            w = mean
        elif not alone:
            w = {**w, **{name: mean[name] for name in changes}}
        restarted = second
        server = {**w, "restarted": np.array(restarted)}
        yield Round(server, list(own) if alone else [{} for _ in data], [{**w, **(own_k or {})} for own_k in own])


def evaluate(model, x):
    """Features, in evaluation mode."""
    a = x @ model["body.kernel"] + model["body.bias"]
    a = (a - model["norm.mean"]) / np.sqrt(model["norm.var"] + EPS) * model["norm.scale"] + model["norm.bias"]
    return np.maximum(a, 0)
