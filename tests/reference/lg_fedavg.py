"""LG-FedAvg (METHODS.md 5.3; arXiv 2001.01523)."""

from .network import Round, parameters, train_batch, weighted_mean


def lg_fedavg(model, data, rounds, batches, solver, local, start=0, weighting="uniform"):
    """FedAvg for `start` rounds; then the entries named by `local` are the clients' own, each from where FedAvg ended."""
    w = dict(model)
    own = [None for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = {**w, **(own[k] or {})}, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    w_k = {**optimizer.step(parameters(w_k), g), **statistics}
            if t >= start:
                own[k] = {name: w_k[name] for name in local}
            if arrives:
                travels = w if t < start else [name for name in w if name not in local]
                uploads.append({name: w_k[name] for name in travels})
                weights.append(len(y) if weighting == "examples" else 1)
        w = {**w, **weighted_mean(uploads, weights)}
        yield Round(w, list(own), [{**w, **(mine or {})} for mine in own])
