"""pFedMe (METHODS.md 5.5; arXiv 2006.08848, Algorithm 1)."""

from .network import Round, parameters, statistics, train_batch, weighted_mean


def pfedme(model, data, rounds, batches, solver, lam, inner_steps, personal_lr, beta=1.0, weighting="uniform"):
    """
    solver: solver(t, lr=...); its learning rate of round t is eta.
    """
    w = dict(model)
    theta = [None for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            th, w_k, optimizer, eta = w, parameters(w), solver(t, lr=personal_lr), solver(t).lr
            for epoch in batches(t, k):
                for rows in epoch:
                    for _ in range(inner_steps):
                        _, g, changed = train_batch(th, x[rows], y[rows])
                        g = {name: g[name] + lam * (th[name] - w_k[name]) for name in g}
                        th = {**optimizer.step(parameters(th), g), **changed}
                    w_k = {name: w_k[name] - eta * lam * (w_k[name] - th[name]) for name in w_k}
            theta[k] = th
            if arrives:
                uploads.append({**w_k, **statistics(th)})
                weights.append(len(y) if weighting == "examples" else 1)
        mean = weighted_mean(uploads, weights)
        w = {name: (1 - beta) * w[name] + beta * mean[name] for name in parameters(w)} | statistics(mean)
        yield Round(w, list(theta), [th or w for th in theta])
