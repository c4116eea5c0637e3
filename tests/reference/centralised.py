"""Centralised training on the union of the participants' data, clients in the order of their numbers."""

import numpy as np

from .network import Round, parameters, train_batch


def centralised(model, data, rounds, batches, solver):
    """`batches(t, pooled)` takes the number of pooled rows in place of a client."""
    w = dict(model)
    for t, participants in enumerate(rounds):
        chosen = sorted(k for k, _ in participants)
        x = np.concatenate([data[k][0] for k in chosen])
        y = np.concatenate([data[k][1] for k in chosen])
        optimizer = solver(t)
        for epoch in batches(t, len(y)):
            for rows in epoch:
                _, g, statistics = train_batch(w, x[rows], y[rows])
                w = {**optimizer.step(parameters(w), g), **statistics}
        yield Round(w, [{} for _ in data], [w for _ in data])
