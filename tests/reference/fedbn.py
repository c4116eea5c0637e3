"""FedBN (METHODS.md 5.9; arXiv 2102.07623); SiloBN (5.10; arXiv 2008.07424) with kept=STATISTICS and weighting='examples'."""

from .network import BATCH_NORM, Round, parameters, train_batch, weighted_mean


def fedbn(model, data, rounds, batches, solver, weighting="uniform", kept=BATCH_NORM):
    """`kept`: the entries that never leave a client. The server's own stay at their initial values."""
    w = dict(model)
    own = [{name: w[name] for name in kept} for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = {**w, **own[k]}, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    w_k = {**optimizer.step(parameters(w_k), g), **statistics}
            own[k] = {name: w_k[name] for name in kept}
            if arrives:
                uploads.append({name: w_k[name] for name in w_k if name not in kept})
                weights.append(len(y) if weighting == "examples" else 1)
        w = {**w, **weighted_mean(uploads, weights)}
        yield Round(w, list(own), [{**w, **own_k} for own_k in own])
