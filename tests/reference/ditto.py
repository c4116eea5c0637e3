"""Ditto (METHODS.md 5.4; arXiv 2012.04221, Algorithm 1), with FedAvg as its solver and the two loops interleaved."""

from .network import Round, parameters, train_batch, weighted_mean


def ditto(model, data, rounds, batches, solver, lam, weighting="uniform"):
    w = dict(model)
    v = [dict(model) for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, v_k, for_w, for_v = w, v[k], solver(t), solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    # one mini-batch: first for a step of v_k, drawn to w_t, then for a step of w_k
                    _, g, statistics = train_batch(v_k, x[rows], y[rows])
                    g = {name: g[name] + lam * (v_k[name] - w[name]) for name in g}
                    v_k = {**for_v.step(parameters(v_k), g), **statistics}
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    w_k = {**for_w.step(parameters(w_k), g), **statistics}
            v[k] = v_k
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights)
        yield Round(w, list(v), list(v))
