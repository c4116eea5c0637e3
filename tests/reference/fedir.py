"""FedIR and FedVC (METHODS.md 4.9; arXiv 2003.08082), with the server of FedAvgM (METHODS.md 4.7)."""

import numpy as np

from .network import Round, backward, cross_entropy, forward, parameters, statistics, weighted_mean


def fedir(
    model,
    data,
    rounds,
    batches,
    solver,
    importance=True,
    normalise=False,
    server_lr=1.0,
    momentum=0.0,
    nesterov=False,
    weighting="examples",
):
    """FedVC: `batches` deals the virtual clients' rows."""
    labels = [label for _, y in data for label in y.tolist()]
    w = dict(model)
    v = {name: np.zeros_like(value) for name, value in parameters(model).items()}
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            own = y.tolist()
            w_k, optimizer = w, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    seen, changed = forward(w_k, x[rows])
                    _, d_z = cross_entropy(seen.logits, y[rows])
                    ratio = [
                        (labels.count(label) / len(labels)) / (own.count(label) / len(own))
                        for label in y[rows].tolist()
                    ]
                    ratio = np.array(ratio) if importance else np.ones(len(rows))
                    if normalise:
                        ratio = ratio / ratio.mean()
                    g = backward(w_k, seen, ratio[:, None] * d_z)
                    w_k = {**optimizer.step(parameters(w_k), g), **changed}
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        mean = weighted_mean(uploads, weights)
        delta = {name: w[name] - mean[name] for name in v}
        v = {name: momentum * v[name] + delta[name] for name in v}
        step = {name: delta[name] + momentum * v[name] for name in v} if nesterov else v
        w = {**{name: w[name] - server_lr * step[name] for name in v}, **statistics(mean)}
        yield Round(w, [{} for _ in data], [w for _ in data])
