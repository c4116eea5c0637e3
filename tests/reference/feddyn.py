"""FedDyn (METHODS.md 4.6; arXiv 2111.04263, Algorithm 1), in the released code's form with the memories -h_k / alpha_k."""

import numpy as np

from .network import Round, parameters, statistics, train_batch, weighted_mean


def feddyn(model, data, rounds, batches, solver, alpha, by_size=False, mean_model=False):
    """The server holds h as 'h.<name>' and with `mean_model` the participants' mean as 'mean.<name>', a client h_k."""
    N, n = len(data), sum(len(y) for _, y in data)
    cloud, statistics_ = parameters(model), statistics(model)
    memory = [{name: np.zeros_like(value) for name, value in cloud.items()} for _ in data]
    of_server = {name: np.zeros_like(value) for name, value in cloud.items()}
    alphas = [alpha * n / (N * len(y)) if by_size else alpha for _, y in data]
    for t, participants in enumerate(rounds):
        uploads = []
        for k, arrives in participants:
            x, y = data[k]
            theta, s_k, optimizer = cloud, statistics_, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, s_k = train_batch({**theta, **s_k}, x[rows], y[rows])
                    # f_k(theta) + alpha_k <theta, memory_k - cloud> + alpha_k / 2 ||theta||^2
                    g = {name: g[name] + alphas[k] * (memory[k][name] - cloud[name] + theta[name]) for name in g}
                    theta = optimizer.step(theta, g)
            drift = {name: theta[name] - cloud[name] for name in theta}
            memory[k] = {name: memory[k][name] + drift[name] for name in drift}
            if arrives:
                uploads.append({**theta, **s_k})
                of_server = {name: of_server[name] + drift[name] / N for name in drift}
        mean = weighted_mean(uploads, [1] * len(uploads))
        cloud = {name: mean[name] + of_server[name] for name in cloud}
        statistics_ = statistics(mean)
        w = {**cloud, **statistics_}
        server = {**w, **{f"h.{name}": -alpha * value for name, value in of_server.items()}}
        if mean_model:
            server |= {f"mean.{name}": value for name, value in mean.items()}
        held = [{name: -a * value for name, value in m.items()} for a, m in zip(alphas, memory, strict=True)]
        yield Round(server, held, [mean if mean_model else w for _ in data])
