"""FML (METHODS.md 3.4; arXiv 2006.16765)."""

import numpy as np

from .network import Round, backward, cross_entropy, forward, log_softmax, parameters, weighted_mean


def fml(model, data, rounds, batches, solver, alpha, beta, temperature=1.0, weighting="uniform", models=None):
    """A client holds its private model, and its optimiser's momentum as 'momentum.<name>'; `models`: the initial ones."""
    w = dict(model)
    v = [dict(model) for _ in data] if models is None else models
    momentum = [{name: np.zeros_like(value) for name, value in parameters(each).items()} for each in v]

    def softened(z):
        return np.exp(log_softmax(z / temperature))

    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, v_k, for_w, for_v = w, v[k], solver(t), solver(t)
            for_v.buffer = momentum[k]
            for epoch in batches(t, k):
                for rows in epoch:
                    seen_v, statistics_v = forward(v_k, x[rows])
                    seen_w, statistics_w = forward(w_k, x[rows])
                    p_v, p_w = softened(seen_v.logits), softened(seen_w.logits)
                    # T^2 KL(q || p) has the gradient T (p - q) by the student's logits
                    pull = temperature * (p_v - p_w) / len(rows)
                    d_v = alpha * cross_entropy(seen_v.logits, y[rows])[1] + (1 - alpha) * pull
                    d_w = beta * cross_entropy(seen_w.logits, y[rows])[1] - (1 - beta) * pull
                    g_v, g_w = backward(v_k, seen_v, d_v), backward(w_k, seen_w, d_w)
                    v_k = {**for_v.step(parameters(v_k), g_v), **statistics_v}
                    w_k = {**for_w.step(parameters(w_k), g_w), **statistics_w}
            v[k], momentum[k] = v_k, for_v.buffer
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights)
        held = [{**v_k, **{f"momentum.{name}": b for name, b in m.items()}} for v_k, m in zip(v, momentum, strict=True)]
        yield Round(w, held, list(v))
