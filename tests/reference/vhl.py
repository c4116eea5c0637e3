"""VHL (METHODS.md 4.10; arXiv 2206.02465). The virtual examples are given, as data are."""

import numpy as np

from .network import Round, backward, cross_entropy, forward, parameters, weighted_mean


def contrast(f, labels, temperature):
    """The supervised contrastive loss of rows of length 1, and its gradient by each of them."""
    M = len(f)
    loss, gradient = 0.0, np.zeros_like(f)
    for i in range(M):
        others = [j for j in range(M) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if not positives:
            continue
        s = f[others] @ f[i] / temperature
        q = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        for j, q_j in zip(others, q, strict=True):
            share = (j in positives) / len(positives)
            if share:
                loss -= share * np.log(q_j) / M
            d_s = (q_j - share) / M / temperature
            gradient[i] += d_s * f[j]
            gradient[j] += d_s * f[i]
    return loss, gradient


def alignment(h, labels, n, temperature, lambda_a, lambda_v):
    """The gradient by the features h of both terms; rows from n on are virtual, and fixed in the first."""
    length = np.linalg.norm(h, axis=1, keepdims=True)
    f = np.divide(h, length, out=np.zeros_like(h), where=length > 0)
    d_f = lambda_a * contrast(f, labels, temperature)[1]
    d_f[n:] = lambda_v * contrast(f[n:], labels[n:], temperature)[1]
    d_h = d_f - f * (f * d_f).sum(1, keepdims=True)
    return np.divide(d_h, length, out=np.zeros_like(h), where=length > 0)


def vhl(model, data, rounds, batches, solver, virtual, head, alpha, lambda_a, lambda_v, temperature, align_epochs,
        weighting="examples"):  # fmt: skip
    """`virtual(t, k, e, i)`: x and y of the virtual batch of step i; `head`: kernel and bias; None where classes are shared."""
    w = {**model, **({} if head is None else {"extra.kernel": head[0], "extra.bias": head[1]})}
    C = len(model["head.bias"])
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = w, solver(t)
            for e, epoch in enumerate(batches(t, k)):
                for i, rows in enumerate(epoch):
                    x_v, y_v = virtual(t, k, e, i)
                    n = len(rows)
                    seen, statistics = forward(w_k, np.concatenate([x[rows], x_v]))
                    z = seen.logits
                    if head is not None:
                        z = np.concatenate([z, seen.features @ w_k["extra.kernel"] + w_k["extra.bias"]], 1)
                    d_real = cross_entropy(z[:n], y[rows])[1]
                    d_virtual = alpha * cross_entropy(z[n:], y_v + (0 if head is None else C))[1]
                    d_z = np.concatenate([d_real, d_virtual])
                    d_h = np.zeros_like(seen.features)
                    if e < align_epochs:
                        labels = np.concatenate([y[rows], y_v])
                        d_h += alignment(seen.features, labels, n, temperature, lambda_a, lambda_v)
                    g = {}
                    if head is not None:
                        d_h += d_z[:, C:] @ w_k["extra.kernel"].T
                        g = {"extra.kernel": seen.features.T @ d_z[:, C:], "extra.bias": d_z[:, C:].sum(0)}
                    g = {**backward(w_k, seen, d_z[:, :C], d_h), **g}
                    w_k = {**optimizer.step(parameters(w_k), g), **statistics}
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights)
        used = {name: value for name, value in w.items() if not name.startswith("extra.")}
        yield Round(w, [{} for _ in data], [used for _ in data])
