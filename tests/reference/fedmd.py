"""FedMD (METHODS.md 3.6; arXiv 1910.03581, Algorithm 1), with fixed numbers of epochs."""

import numpy as np

from .network import Round, backward, forward, parameters, predict, train_batch


def trained(w, x, y, epochs, optimizer):
    """Cross entropy."""
    for epoch in epochs:
        for rows in epoch:
            _, g, statistics = train_batch(w, x[rows], y[rows])
            w = {**optimizer.step(parameters(w), g), **statistics}
    return w


def digested(w, x, Z, epochs, optimizer):
    """Mean absolute error of the logits."""
    for epoch in epochs:
        for rows in epoch:
            seen, statistics = forward(w, x[rows])
            d_z = np.sign(seen.logits - Z[rows]) / Z[rows].size
            w = {**optimizer.step(parameters(w), backward(w, seen, d_z)), **statistics}
    return w


def fedmd(model, data, rounds, batches, solver, *, public, alignment, m, epochs, models=None):
    """`alignment(t)`: rows of the public data; `epochs(t, k, part, count)`: batches of the 'pretrain' and 'private' epochs of a
    first training, and of 'digest'; `batches(t, k)`: those of the revisit; `models`: each client's
    initial one, where they aren't all `model`."""
    C = len(model["head.bias"])
    w = [dict(model) for _ in data] if models is None else models
    began, optimizers = set(), [(solver(0), solver(0)) for _ in data]
    D_x, D_y = data[public]
    for t, participants in enumerate(rounds):
        there = any(k == public for k, _ in participants)
        A = alignment(t)
        said = []
        for k, arrives in participants:
            x, y = data[k]
            if there and k not in began:
                began.add(k)
                w[k] = trained(w[k], D_x, D_y, epochs(t, k, "pretrain", len(D_y)), solver(t))
                w[k] = trained(w[k], x, y, epochs(t, k, "private", len(y)), solver(t))
            Z_k = np.zeros((m, C))
            if there:
                Z_k[: len(A)] = predict(w[k], D_x[A])
            if arrives:
                said.append(Z_k)
        Z = sum(said) / len(said)
        for k, _ in participants:
            x, y = data[k]
            digest, revisit = optimizers[k]
            digest.lr = revisit.lr = solver(t).lr
            if there:
                w[k] = digested(w[k], D_x[A], Z, epochs(t, k, "digest", len(A)), digest)
            w[k] = trained(w[k], x, y, batches(t, k), revisit)
        yield Round({"Z": Z, "of": np.array(t)}, [dict(each) for each in w], [dict(each) for each in w])
