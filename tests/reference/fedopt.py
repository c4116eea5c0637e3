"""Server optimisers: FedAvgM (METHODS.md 4.7; arXiv 1909.06335) and FedOpt (METHODS.md 4.8; arXiv 2003.00295)."""

import numpy as np

from .network import Round, parameters, statistics, train_batch, weighted_mean


def _mean_of_clients(w, t, participants, data, batches, solver, weighting):
    """FedAvg's sum_k p_k w_k of one round."""
    uploads, weights = [], []
    for k, arrives in participants:
        x, y = data[k]
        w_k, optimizer = w, solver(t)
        for epoch in batches(t, k):
            for rows in epoch:
                _, g, changed = train_batch(w_k, x[rows], y[rows])
                w_k = {**optimizer.step(parameters(w_k), g), **changed}
        if arrives:
            uploads.append(w_k)
            weights.append(len(y) if weighting == "examples" else 1)
    return weighted_mean(uploads, weights)


def fedavgm(model, data, rounds, batches, solver, server_lr, momentum, nesterov=False, weighting="examples"):
    w = dict(model)
    v = {name: np.zeros_like(value) for name, value in parameters(model).items()}
    for t, participants in enumerate(rounds):
        mean = _mean_of_clients(w, t, participants, data, batches, solver, weighting)
        new = {}
        for name in v:
            delta = w[name] - mean[name]  # old minus new
            v[name] = momentum * v[name] + delta
            new[name] = w[name] - server_lr * (momentum * v[name] + delta if nesterov else v[name])
        w = {**new, **statistics(mean)}
        yield Round(w, [{} for _ in data], [w for _ in data])


def fedopt(
    model,
    data,
    rounds,
    batches,
    solver,
    name,
    server_lr,
    tau,
    v0,
    beta1=0.9,
    beta2=0.99,
    correct=False,
    weighting="examples",
):
    """FedAdagrad, FedAdam or FedYogi; `correct`: the released trainer's factor sqrt(1 - beta2^t) / (1 - beta1^t)."""
    w = dict(model)
    m = {key: np.zeros_like(value) for key, value in parameters(model).items()}
    v = {key: np.full_like(value, v0) for key, value in parameters(model).items()}
    if name == "adagrad":
        beta1 = 0.0
    for t, participants in enumerate(rounds):
        mean = _mean_of_clients(w, t, participants, data, batches, solver, weighting)
        factor = np.sqrt(1 - beta2 ** (t + 1)) / (1 - beta1 ** (t + 1)) if correct else 1.0
        new = {}
        for key in m:
            delta = mean[key] - w[key]  # new minus old
            m[key] = beta1 * m[key] + (1 - beta1) * delta
            if name == "adagrad":
                v[key] = v[key] + delta**2
            elif name == "yogi":
                v[key] = v[key] - (1 - beta2) * delta**2 * np.sign(v[key] - delta**2)
            else:
                v[key] = beta2 * v[key] + (1 - beta2) * delta**2
            new[key] = w[key] + server_lr * factor * m[key] / (np.sqrt(v[key]) + tau)
        w = {**new, **statistics(mean)}
        moments = {**{"m." + key: m[key] for key in m}, **{"v." + key: v[key] for key in v}}
        yield Round({**w, **moments}, [{} for _ in data], [w for _ in data])
