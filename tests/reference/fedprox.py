"""FedProx (METHODS.md 4.2; arXiv 1812.06127), without stragglers."""

from .network import Round, parameters, train_batch, weighted_mean


def fedprox(model, data, rounds, batches, solver, mu, weighting="examples"):
    w = dict(model)
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = w, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    # gradient of F_k(w) + mu/2 ||w - w_t||^2, over the trained parameters
                    g = {name: g[name] + mu * (w_k[name] - w[name]) for name in g}
                    w_k = {**optimizer.step(parameters(w_k), g), **statistics}
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights)
        yield Round(w, [{} for _ in data], [w for _ in data])
