"""IFCA (arXiv 2006.04088), by model averaging."""

import numpy as np

from .network import Round, cross_entropy, parameters, predict, train_batch, weighted_mean


def ifca(models, data, rounds, batches, solver, common=(), weighting="examples"):
    """models: the J initial ones; common: names of entries that all of them share. The server holds '<j>.<name>'."""
    theta = [dict(model) for model in models]
    cluster = [0 for _ in data]
    for t, participants in enumerate(rounds):
        uploads = []
        for k, arrives in participants:
            x, y = data[k]
            cluster[k] = int(np.argmin([cross_entropy(predict(model, x), y)[0] for model in theta]))
            w_k, optimizer = theta[cluster[k]], solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    w_k = {**w_k, **optimizer.step(parameters(w_k), g), **statistics}
            if arrives:
                uploads.append((cluster[k], w_k, len(y) if weighting == "examples" else 1))
        everybody = weighted_mean([w for _, w, _ in uploads], [n for *_, n in uploads])
        for j in range(len(theta)):
            mine = [(w, n) for chosen, w, n in uploads if chosen == j]
            if mine:
                theta[j] = weighted_mean([w for w, _ in mine], [n for _, n in mine])
            theta[j] = {**theta[j], **{name: everybody[name] for name in common}}
        server = {f"{j}.{name}": value for j, model in enumerate(theta) for name, value in model.items()}
        yield Round(server, [{"j": np.array(j)} for j in cluster], [dict(theta[j]) for j in cluster])
