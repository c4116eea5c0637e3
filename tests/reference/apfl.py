"""APFL (METHODS.md 5.6; arXiv 2003.13461), every step from the values before it."""

import numpy as np

from .network import Round, parameters, statistics, train_batch, weighted_mean


def apfl(
    model, data, rounds, batches, solver, alpha, adaptive=True, alpha_decay=0.0, mix_with="global", weighting="uniform"
):
    """A client holds v_k, 'alpha', and with mix_with='own' its w_k as 'w.<name>'. Statistics of the mixture are with v_k."""
    w = dict(model)
    v, own, alphas = [dict(model) for _ in data], [dict(model) for _ in data], [alpha for _ in data]

    def mix(alpha, v, w):
        mixed = {name: alpha * v[name] + (1 - alpha) * w[name] for name in parameters(v)}
        return {**mixed, **statistics(v)}

    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, v_k, alpha_k, for_w, for_v = w, v[k], alphas[k], solver(t), solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g_w, statistics_w = train_batch(w_k, x[rows], y[rows])
                    _, g, statistics_v = train_batch(mix(alpha_k, v_k, w_k), x[rows], y[rows])
                    by_alpha = sum(((v_k[name] - w_k[name]) * g[name]).sum() for name in g) + alpha_decay * alpha_k
                    by_v = {name: alpha_k * g[name] for name in g}
                    w_k = {**for_w.step(parameters(w_k), g_w), **statistics_w}
                    v_k = {**for_v.step(parameters(v_k), by_v), **statistics_v}
                    if adaptive:
                        alpha_k = np.clip(alpha_k - for_w.lr * by_alpha, 0, 1)
            v[k], own[k], alphas[k] = v_k, w_k, alpha_k
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights)
        held = [{**v_k, "alpha": a} for v_k, a in zip(v, alphas, strict=True)]
        partners = [w for _ in data]
        if mix_with == "own":
            partners = own
            held = [mine | {f"w.{n}": x for n, x in w_k.items()} for mine, w_k in zip(held, own, strict=True)]
        yield Round(w, held, [mix(a, v_k, w_k) for a, v_k, w_k in zip(alphas, v, partners, strict=True)])
