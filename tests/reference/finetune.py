"""Fine-tuning after FedAvg (METHODS.md 5.12; arXiv 1910.10252)."""

from .network import Round, parameters, train_batch, weighted_mean


def finetune(model, data, rounds, batches, solver, start, tuned=None):
    """FedAvg for `start` rounds; then the server rests and each client tunes its copy of w.

    Args:
        solver: solver(t); with the fine-tuning's learning rate from round `start` on.
        tuned: names of the parameters that are tuned, the others being no parameters any more; None: all.
    """
    w = dict(model)
    own = [None for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k, optimizer = own[k] or w, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w_k, x[rows], y[rows])
                    trained = parameters(w_k)
                    if t >= start and tuned is not None:
                        trained = {name: trained[name] for name in tuned}
                    w_k = {**w_k, **optimizer.step(trained, g), **statistics}
            if t >= start:
                own[k] = w_k
            elif arrives:
                uploads.append(w_k)
                weights.append(len(y))
        if t < start:
            w = weighted_mean(uploads, weights)
        models = [w_k or w for w_k in own]
        yield Round(w, list(own), models)
