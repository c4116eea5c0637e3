"""Per-FedAvg (METHODS.md 5.7; arXiv 2002.07948, Algorithm 1), first-order and Hessian-free."""

from .network import Round, parameters, train_batch, weighted_mean


def per_fedavg(model, data, rounds, batches, solver, alpha, hessian_free, delta=None, weighting="uniform"):
    """
    batches: batches(t, k) -> for each epoch its steps, each the rows of D, D' and D''.
    """
    w = dict(model)
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = w, solver(t)
            for epoch in batches(t, k):
                for D, D1, D2 in epoch:
                    at = parameters(w_k)
                    _, inner, changed = train_batch(w_k, x[D], y[D])
                    adapted = {**w_k, **{name: at[name] - alpha * inner[name] for name in at}, **changed}
                    _, g, changed = train_batch(adapted, x[D1], y[D1])
                    direction = g
                    if hessian_free:
                        _, ahead, _ = train_batch({**w_k, **{n: at[n] + delta * g[n] for n in at}}, x[D2], y[D2])
                        _, behind, _ = train_batch({**w_k, **{n: at[n] - delta * g[n] for n in at}}, x[D2], y[D2])
                        direction = {n: g[n] - alpha * (ahead[n] - behind[n]) / (2 * delta) for n in g}
                    w_k = {**adapted, **optimizer.step(at, direction), **changed}
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights)
        yield Round(w, [{} for _ in data], [w for _ in data])


def adapted(model, x, y, alpha, steps, size):
    """After gradient steps on the mean loss over all rows; batch norm sees `size` of them at a time, in stored order."""
    for _ in range(steps):
        total = dict.fromkeys(parameters(model), 0.0)
        for i in range(0, len(y), size):
            rows = slice(i, i + size)
            _, g, _ = train_batch(model, x[rows], y[rows])
            total = {name: total[name] + len(y[rows]) * g[name] for name in total}
        model = {**model, **{name: model[name] - alpha * total[name] / len(y) for name in total}}
    return model
