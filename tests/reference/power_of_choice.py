"""Power-of-choice, pow-d (METHODS.md 4.12; arXiv 2010.01243), on FedAvg's clients."""

from .network import Round, cross_entropy, parameters, predict, train_batch, weighted_mean


def power_of_choice(model, data, rounds, batches, solver, m, weighting="uniform"):
    """A round's candidates are its participants."""
    w = dict(model)
    for t, candidates in enumerate(rounds):
        loss = {k: cross_entropy(predict(w, data[k][0]), data[k][1])[0] for k, _ in candidates}
        worst = sorted(candidates, key=lambda one: -loss[one[0]])[:m]
        uploads, weights = [], []
        for k, arrives in worst:
            x, y = data[k]
            w_k, optimizer = w, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    w_k = {**optimizer.step(parameters(w_k), g), **statistics}
            if arrives:
                uploads.append(w_k)
                weights.append(len(y) if weighting == "examples" else 1)
        w = weighted_mean(uploads, weights) if uploads else w
        yield Round(w, [{} for _ in data], [w for _ in data])
