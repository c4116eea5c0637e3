"""pFedHN and pFedHN-PC (METHODS.md 5.8; arXiv 2103.04628, Algorithm 1)."""

import numpy as np

from .network import Round, parameters, statistics, train_batch, weighted_mean


def forward(hyper, depth, e_k, names):
    """theta_k, and the inputs of all linear layers."""
    inputs, h = [], e_k
    for i in range(depth):
        h = np.maximum(h, 0) if i else h
        inputs.append(h)
        h = h @ hyper[f"{i}.kernel"] + hyper[f"{i}.bias"]
    inputs.append(h)
    theta = {n: np.tensordot(h, hyper[f"heads.kernel.{n}"], 1) + hyper[f"heads.bias.{n}"] for n in names}
    return theta, inputs


def backward(hyper, depth, inputs, delta):
    """(d theta / d psi)^T delta by name, and (d theta / d e)^T delta."""
    grad, h = {}, inputs[-1]
    d_h = np.zeros_like(h)
    for n, d in delta.items():
        grad[f"heads.kernel.{n}"], grad[f"heads.bias.{n}"] = np.multiply.outer(h, d), d
        d_h += hyper[f"heads.kernel.{n}"].reshape(len(h), -1) @ d.reshape(-1)
    for i in reversed(range(depth)):
        grad[f"{i}.kernel"], grad[f"{i}.bias"] = np.outer(inputs[i], d_h), d_h
        d_h = hyper[f"{i}.kernel"] @ d_h
        d_h = d_h * (inputs[i] > 0) if i else d_h
    return grad, d_h


def pfedhn(model, data, rounds, batches, solver, hyper, depth, server, personal=(), weighting="uniform"):
    """
    hyper: initial {'e': [N, d], '0.kernel', ..., 'heads.kernel.<name>', 'heads.bias.<name>'}, with `depth` linear layers.
    server: the server's optimiser, a `reference.sgd.SGD`.
    personal: the entries that stay with the clients.
    """
    names = [name for name in parameters(model) if name not in personal]
    shared_statistics = {n: v for n, v in statistics(model).items() if n not in personal}
    stays = [{name: model[name] for name in personal} for _ in data]
    for t, participants in enumerate(rounds):
        arrived, weights, sums = [], [], {}
        for k, arrives in participants:
            x, y = data[k]
            theta, inputs = forward(hyper, depth, hyper["e"][k], names)
            w_k, optimizer = {**theta, **shared_statistics, **stays[k]}, solver(t)
            for epoch in batches(t, k):
                for rows in epoch:
                    _, g, changed = train_batch(w_k, x[rows], y[rows])
                    w_k = {**optimizer.step(parameters(w_k), g), **changed}
            stays[k] = {name: w_k[name] for name in personal}
            if arrives:
                arrived.append(
                    (k, inputs, {n: theta[n] - w_k[n] for n in names}, {n: w_k[n] for n in shared_statistics})
                )
                weights.append(len(y) if weighting == "examples" else 1)
        sums = {name: np.zeros_like(value) for name, value in hyper.items()}
        for (k, inputs, delta, _), weight in zip(arrived, weights, strict=True):
            p = weight / sum(weights)
            grad, by_e = backward(hyper, depth, inputs, delta)
            for name, g in grad.items():
                sums[name] = sums[name] + p * g
            sums["e"][k] += p * by_e
        hyper = server.step(hyper, sums)  # the whole table of embeddings, by momentum and decay
        shared_statistics = weighted_mean([s for *_, s in arrived], weights) if shared_statistics else {}
        made = [forward(hyper, depth, e_k, names)[0] | shared_statistics for e_k in hyper["e"]]
        yield Round({**hyper, **shared_statistics}, list(stays), [m | s for m, s in zip(made, stays, strict=True)])
