"""FedRep (METHODS.md 5.2; arXiv 2102.07078, Algorithm 1)."""

from .network import HEAD, Round, parameters, train_batch, weighted_mean


def fedrep(model, data, rounds, batches, solver, personal=HEAD, weighting="uniform"):
    """
    personal: the entries that stay with the clients; of them the trained ones are the head h_k.
    batches: batches(t, k) -> the epochs of the head, and those of the body.
    """
    phi = {name: value for name, value in model.items() if name not in personal}
    stays = [{name: model[name] for name in personal} for _ in data]
    for t, participants in enumerate(rounds):
        uploads, weights = [], []
        for k, arrives in participants:
            x, y = data[k]
            w_k = {**phi, **stays[k]}
            of_head, of_body = batches(t, k)
            for epochs, trains_head in ((of_head, True), (of_body, False)):
                optimizer = solver(t)
                for epoch in epochs:
                    for rows in epoch:
                        _, g, statistics = train_batch(w_k, x[rows], y[rows])
                        trained = {n: v for n, v in parameters(w_k).items() if (n in HEAD) == trains_head}
                        w_k = {**w_k, **optimizer.step(trained, g), **statistics}
            stays[k] = {name: w_k[name] for name in personal}
            if arrives:
                uploads.append({name: w_k[name] for name in phi})
                weights.append(len(y) if weighting == "examples" else 1)
        phi = weighted_mean(uploads, weights)
        yield Round(phi, list(stays), [{**phi, **mine} for mine in stays])
