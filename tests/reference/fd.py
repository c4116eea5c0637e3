"""FD (METHODS.md 3.5; arXiv 1811.11479), and PFLlib's port of it."""

import numpy as np

from .network import Round, backward, cross_entropy, forward, log_softmax, parameters


def fd(model, data, rounds, batches, solver, gamma, classes, schedule="constant", port=False):
    """The server holds 'F' [N, C, C] and 'has' [N, C] of the last round, a client its model."""
    v = [dict(model) for _ in data]
    said_before = {}  # client -> {label: mean}
    for t, participants in enumerate(rounds):
        uploads = {}
        for k, arrives in participants:
            x, y = data[k]
            v_k, optimizer = v[k], solver(t)
            target = {}
            for label in range(classes):
                others = [said[label] for j, said in said_before.items() if label in said and (port or j != k)]
                if others:
                    target[label] = np.mean(others, 0)
            said = {}
            for epoch in batches(t, k):
                for rows in epoch:
                    seen, statistics = forward(v_k, x[rows])
                    z, p = seen.logits, np.exp(log_softmax(seen.logits))
                    d_kd = np.zeros_like(z)
                    for i, label in enumerate(y[rows]):
                        said.setdefault(label, []).append(z[i] if port else p[i])
                        g = target.get(label, z[i] if port else None)
                        if g is not None:
                            d_kd[i] = (g.sum() * p[i] - g) / len(rows)
                    a = 1 / (t + 2)
                    ce, kd = (1 - a, a) if schedule == "notes" else (1, gamma)
                    d_z = ce * cross_entropy(z, y[rows])[1] + kd * d_kd
                    v_k = {**optimizer.step(parameters(v_k), backward(v_k, seen, d_z)), **statistics}
            v[k] = v_k
            if arrives:
                uploads[k] = {label: np.mean(rows, 0) for label, rows in said.items()}
        said_before = uploads
        F, has = np.zeros((len(data), classes, classes)), np.zeros((len(data), classes), bool)
        for k, said in uploads.items():
            for label, mean in said.items():
                F[k, label], has[k, label] = mean, True
        yield Round({"F": F, "has": has}, [dict(v_k) for v_k in v], list(v))
