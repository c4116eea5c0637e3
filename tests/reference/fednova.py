"""FedNova (METHODS.md 4.3; arXiv 2007.07481, Algorithm 1)."""

import numpy as np

from .network import Round, parameters, statistics, train_batch, weighted_mean
from .sgd import SGD


def defined(steps, lr, momentum, nesterov, mu):
    """||a||_1 by its definition: the way that the solver goes if every stochastic gradient is 1, divided by eta."""
    optimizer, w = SGD(lr, momentum, nesterov), {"w": np.zeros(())}
    for _ in range(steps):
        w = optimizer.step(w, {"w": 1 + mu * w["w"]})
    return -w["w"] / lr


def official(steps, lr, momentum, mu):
    """The released code's count."""
    vector, counter = 0.0, 0.0
    for _ in range(steps):
        if momentum != 0:
            counter = counter * momentum + 1
            vector += counter
        if mu != 0:
            vector = vector * (1 - lr * mu) + 1
        if momentum == 0 and mu == 0:
            vector += 1
    return vector


def fednova(
    model, data, rounds, batches, solver, mu=0.0, gamma=0.0, weighting="examples", count="defined", tau_eff="norms"
):
    """With gamma the server holds its momentum as 'b.<name>'."""
    w = dict(model)
    b = {name: np.zeros_like(value) for name, value in parameters(model).items()}
    for t, participants in enumerate(rounds):
        arrived, lr = [], solver(t).lr
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer, steps = w, solver(t), 0
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, changed = train_batch(w_k, x[rows], y[rows])
                    g = {name: g[name] + mu * (w_k[name] - w[name]) for name in g}
                    w_k = {**optimizer.step(parameters(w_k), g), **changed}
                    steps += 1
            if count == "defined":
                a = defined(steps, lr, optimizer.momentum, optimizer.nesterov, mu)
            else:
                a = official(steps, lr, optimizer.momentum, mu)
            if arrives:
                arrived.append((len(y) if weighting == "examples" else 1, w_k, a, steps))
        weights, uploads, _, _ = zip(*arrived, strict=True)
        mean = weighted_mean(uploads, weights)
        moved = [one for one in arrived if one[3] > 0]
        total = sum(p for p, *_ in moved)
        tau = sum(p / total * (a if tau_eff == "norms" else steps) for p, _, a, steps in moved)
        u = {}
        for name in b:
            d = sum(p / total * (w[name] - w_k[name]) / (lr * a) for p, w_k, a, _ in moved)
            u[name] = tau * lr * d
        b = {name: gamma * b[name] + u[name] / lr for name in b}
        w = {**{name: w[name] - lr * b[name] for name in b}, **statistics(mean)}
        server = {**w, **{"b." + name: value for name, value in b.items()}} if gamma else w
        yield Round(server, [{} for _ in data], [w for _ in data])
