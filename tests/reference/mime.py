"""Mime and MimeLite (arXiv 2008.03606, Algorithm 1)."""

import numpy as np

from .network import Round, parameters, train_batch, weighted_mean
from .scaffold import full_gradient


def mime(
    model, data, rounds, batches, solver, batch_size, base, lite, b1=0.9, b2=0.99, eps=1e-3, v0=1.0, weighting="uniform"
):
    """The server holds 'm.<name>' (momentum, adam), 'v.<name>' (adam) and 'c.<name>' (not lite)."""
    x = dict(model)
    names = parameters(model)
    m = {name: np.zeros_like(model[name]) for name in names}
    v = {name: np.full_like(model[name], v0) for name in names}

    def direction(g):
        if base == "sgd":
            return g
        moved = {name: b1 * m[name] + (1 - b1) * g[name] for name in g}
        if base == "momentum":
            return moved
        return {name: moved[name] / (eps + v[name] ** 0.5) for name in g}

    for t, participants in enumerate(rounds):
        heard = [k for k, arrives in participants if arrives]
        weights = [len(data[k][1]) if weighting == "examples" else 1 for k in heard]
        c = weighted_mean([full_gradient(x, *data[k], batch_size) for k in heard], weights)
        uploads = {}
        for k, _ in participants:
            inputs, labels = data[k]
            y, optimizer = x, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(y, inputs[rows], labels[rows])
                    if not lite:
                        _, at_x, _ = train_batch(x, inputs[rows], labels[rows])
                        g = {name: g[name] - at_x[name] + c[name] for name in g}
                    y = {**optimizer.step(parameters(y), direction(g)), **statistics}
            uploads[k] = y
        x = weighted_mean([uploads[k] for k in heard], weights)
        m = {name: b1 * m[name] + (1 - b1) * c[name] for name in m}
        v = {name: b2 * v[name] + (1 - b2) * c[name] ** 2 for name in v}
        held = {"m": m if base != "sgd" else {}, "v": v if base == "adam" else {}, "c": {} if lite else c}
        server = {**x, **{f"{what}.{name}": value for what, part in held.items() for name, value in part.items()}}
        yield Round(server, [{} for _ in data], [x for _ in data])
