"""MOON (METHODS.md 4.5; arXiv 2103.16257, Algorithm 1), whose projection is the features."""

import numpy as np

from .network import EPS, Round, backward, cross_entropy, forward, parameters, weighted_mean


def evaluated(model, x):
    """Features in evaluation mode."""
    a = x @ model["body.kernel"] + model["body.bias"]
    if "norm.scale" in model:
        a = (a - model["norm.mean"]) / np.sqrt(model["norm.var"] + EPS) * model["norm.scale"] + model["norm.bias"]
    return np.maximum(a, 0)


def cosine(a, b):
    """Of two vectors, and its gradient by the first; both 0 where one is."""
    long_a, long_b = np.linalg.norm(a), np.linalg.norm(b)
    if long_a == 0 or long_b == 0:
        return 0.0, np.zeros_like(a)
    value = a @ b / (long_a * long_b)
    return value, b / (long_a * long_b) - value * a / long_a**2


def contrast(z, z_glob, z_prev, temperature):
    """-log(e^(g/T) / (e^(g/T) + e^(p/T))) of one example with the cosines g and p; and its gradient by z."""
    g, d_g = cosine(z, z_glob)
    p, d_p = cosine(z, z_prev)
    to_glob, to_prev = np.exp(g / temperature), np.exp(p / temperature)
    wrong = to_prev / (to_glob + to_prev)
    return -np.log(1 - wrong), wrong * (d_p - d_g) / temperature


def moon(model, data, rounds, batches, solver, mu, temperature, weighting="examples", first=None):
    """`first(k)`: the previous model of a client that first takes part after round 0; None: there is no term."""
    w = dict(model)
    previous = [None for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            old = previous[k]
            if old is None and t > 0 and first is not None:
                old = first(k)
            w_k, optimizer = w, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    seen, statistics = forward(w_k, x[rows])
                    _, d_z = cross_entropy(seen.logits, y[rows])
                    d_h = np.zeros_like(seen.features)
                    if old is not None:
                        z_glob, z_prev = evaluated(w, x[rows]), evaluated(old, x[rows])
                        for i in range(len(rows)):
                            d_h[i] = mu * contrast(seen.features[i], z_glob[i], z_prev[i], temperature)[1] / len(rows)
                    g = backward(w_k, seen, d_z, d_h)
                    w_k = {**optimizer.step(parameters(w_k), g), **statistics}
            previous[k] = w_k
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights)
        yield Round(w, list(previous), [w for _ in data])
