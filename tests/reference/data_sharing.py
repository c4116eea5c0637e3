"""Data sharing (METHODS.md 4.11; arXiv 1806.00582)."""

import numpy as np

from .network import Round, parameters, train_batch, weighted_mean


def data_sharing(model, data, rounds, orders, solver, public, part, warmup, batch, weighting="examples"):
    """part(k): the rows of G that client k has. orders(t, exchange, k, count): of each epoch, the order of so many rows."""
    w = dict(model)

    def trained(rows, t, exchange, k):
        x, y = rows
        w_k, optimizer = w, solver(t)
        for order in orders(t, exchange, k, len(y)):
            for i in range(0, len(y), batch):
                some = order[i : i + batch]
                _, g, statistics = train_batch(w_k, x[some], y[some])
                w_k = {**w_k, **optimizer.step(parameters(w_k), g), **statistics}
        return w_k

    for t, participants in enumerate(rounds):
        there = dict(participants)
        if t < warmup:
            if there.get(public):
                w = trained(data[public], t, 0, public)
        else:
            uploads = []
            for k, arrives in participants:
                if k != public:
                    x, y = data[k]
                    if public in there:
                        x, y = (np.concatenate([own, G[part(k)]]) for own, G in zip((x, y), data[public], strict=True))
                    if arrives:
                        uploads.append((trained((x, y), t, 1, k), len(y) if weighting == "examples" else 1))
            if uploads:
                w = weighted_mean([w_k for w_k, _ in uploads], [n for _, n in uploads])
        yield Round(dict(w), [None for _ in data], [w for _ in data])
