"""FedProto (METHODS.md 3.7; arXiv 2105.00243)."""

import numpy as np

from .network import Round, backward, cross_entropy, forward, parameters


def fedproto(model, data, rounds, batches, solver, lam, classes, weighting="uniform", inference="head"):
    """The server holds 'mean' [C, d] and 'has' [C], a client its model and 'owns' [C]."""
    v = [dict(model) for _ in data]
    shared = {}  # class -> prototype
    owned = [set() for _ in data]
    d = model["head.kernel"].shape[0]
    for t, participants in enumerate(rounds):
        uploads = []
        for k, arrives in participants:
            x, y = data[k]
            v_k, optimizer = v[k], solver(t)
            for epoch in batches(t, k):
                features = {}  # of the last epoch, before each step
                for rows in epoch:
                    seen, statistics = forward(v_k, x[rows])
                    d_h = np.zeros_like(seen.features)
                    for i, label in enumerate(y[rows]):
                        features.setdefault(label, []).append(seen.features[i])
                        if label in shared:
                            d_h[i] = lam * 2 / d * (seen.features[i] - shared[label]) / len(rows)
                    g = backward(v_k, seen, cross_entropy(seen.logits, y[rows])[1], d_h)
                    v_k = {**optimizer.step(parameters(v_k), g), **statistics}
            v[k], owned[k] = v_k, set(features)
            if arrives:
                uploads.append({j: (np.mean(f, 0), len(f)) for j, f in features.items()})
        for j in range(classes):
            of_class = [upload[j] for upload in uploads if j in upload]
            if of_class:
                weights = [n if weighting == "examples" else 1 for _, n in of_class]
                shared[j] = sum(p * c for p, (c, _) in zip(weights, of_class, strict=True)) / sum(weights)
        mean = np.stack([shared.get(j, np.zeros(d)) for j in range(classes)])
        server = {"mean": mean, "has": np.array([j in shared for j in range(classes)])}
        held = [
            {**v_k, "owns": np.array([j in own for j in range(classes)])} for v_k, own in zip(v, owned, strict=True)
        ]
        yield Round(server, held, list(v))
