"""FedPer (METHODS.md 5.1; arXiv 1912.00818, Algorithms 1 and 2)."""

from .network import HEAD, Round, parameters, train_batch, weighted_mean


def fedper(model, data, rounds, batches, solver, personal=HEAD, weighting="examples"):
    """phi is shared, h_k (the entries named by `personal`) stays with its client; both are trained jointly."""
    phi = {name: value for name, value in model.items() if name not in personal}
    h = [{name: model[name] for name in personal} for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = {**phi, **h[k]}, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    w_k = {**optimizer.step(parameters(w_k), g), **statistics}
            h[k] = {name: w_k[name] for name in personal}
            if arrives:
                uploads.append({name: w_k[name] for name in phi})
                weights.append(len(y) if weighting == "examples" else 1)
        phi = weighted_mean(uploads, weights)
        yield Round(phi, list(h), [{**phi, **h_k} for h_k in h])
