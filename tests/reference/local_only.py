"""Local training: every client alone."""

from .network import Round, parameters, train_batch


def local_only(model, data, rounds, batches, solver):
    models = [dict(model) for _ in data]
    for t, participants in enumerate(rounds):
        for k, _ in participants:
            x, y = data[k]
            w, optimizer = models[k], solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, statistics = train_batch(w, x[rows], y[rows])
                    w = {**optimizer.step(parameters(w), g), **statistics}
            models[k] = w
        yield Round({}, models, models)
