"""SCAFFOLD, options I and II (METHODS.md 4.4; arXiv 1910.06378, Algorithm 1)."""

import numpy as np

from .network import Round, parameters, statistics, train_batch, weighted_mean


def full_gradient(model, x, y, batch_size):
    """Gradient of the mean loss over all rows, taken in stored order batch by batch (which matters to batch norm)."""
    total = dict.fromkeys(parameters(model), 0.0)
    for start in range(0, len(y), batch_size):
        rows = slice(start, start + batch_size)
        _, g, _ = train_batch(model, x[rows], y[rows])
        total = {name: total[name] + len(y[rows]) / len(y) * g[name] for name in total}
    return total


def scaffold(
    model,
    data,
    rounds,
    batches,
    solver,
    option,
    corrected="gradient",
    server_lr=1.0,
    weighting="uniform",
    batch_size=None,
):
    n = len(data)
    x_, statistics_ = parameters(model), statistics(model)
    c = {name: np.zeros_like(value) for name, value in x_.items()}
    c_k = [c for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights, delta_c = [], [], []
        for k, arrives in participants:
            x, y = data[k]
            y_k, s_k, optimizer, steps = x_, statistics_, solver(t), 0
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, s_k = train_batch({**y_k, **s_k}, x[rows], y[rows])
                    correction = {name: c[name] - c_k[k][name] for name in g}
                    if corrected == "gradient":
                        y_k = optimizer.step(y_k, {name: g[name] + correction[name] for name in g})
                    else:
                        y_k = optimizer.step(y_k, g)
                        y_k = {name: y_k[name] - optimizer.lr * correction[name] for name in y_k}
                    steps += 1
            if steps == 0:
                c_plus = c_k[k]
            elif option == 1:
                c_plus = full_gradient({**x_, **statistics_}, x, y, batch_size)
            else:
                c_plus = {name: c_k[k][name] - c[name] + (x_[name] - y_k[name]) / (steps * optimizer.lr) for name in c}
            if arrives:
                uploads.append({**y_k, **s_k})
                weights.append(len(y) if weighting == "examples" else 1)  # the paper's mean is uniform
                delta_c.append({name: c_plus[name] - c_k[k][name] for name in c})
            c_k[k] = c_plus
        mean = weighted_mean(uploads, weights)
        x_ = {name: x_[name] + server_lr * (mean[name] - x_[name]) for name in x_}
        statistics_ = statistics(mean)
        c = {name: c[name] + sum(delta[name] for delta in delta_c) / n for name in c}
        w = {**x_, **statistics_}
        yield Round({**w, **{"c." + name: value for name, value in c.items()}}, list(c_k), [w for _ in data])
