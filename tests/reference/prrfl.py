"""PRR-FL (METHODS.md 2; arXiv 2110.00394 and doi 10.1109/TMI.2022.3192483): the clients one after the other.

The loop is here. What it asks of a network is a class: `ByHand` is `network`'s, with gradients by hand; `Slim` a small VGG16 in
PyTorch with its own gradients. Models are dicts of arrays; batch-norm entries are named in `network.norms`.
"""

from typing import NamedTuple

import numpy as np

from . import fourier
from .network import (
    BATCH_NORM,
    Round,
    backward,
    cross_entropy,
    forward,
    log_softmax,
    parameters,
    predict,
)

TINY = 1e-6


class Rules(NamedTuple):
    """What the method's options say; `cpa=False` is v1's loss."""

    pfa: fourier.Rules = fourier.PAPER
    rates: tuple = ()
    det: bool = True
    lambda1: float = 0.7
    lambda2: float = 0.9
    score_on: str = "validation"
    cpa: bool = True
    counts: tuple = ()
    beta: float = 0.8
    tau: float = 3.0
    start: int = 15
    kind: str = "gaussian"
    exchange: str = "round"
    reset: bool = False
    temperature: float = 1.0


class Prr(NamedTuple):
    """What a round leaves besides the models."""

    round: Round  # server: {}; clients: batch norm of each; models: the personal ones, or what the clients use
    S: list  # of each client
    prototypes: np.ndarray  # the global ones, and
    has: np.ndarray  # which there are
    own: list  # sums and counts of each client's last epoch
    stages: list  # of this round, (client, stage of each epoch)


def macro_f1(predicted, y, classes):
    """Mean over the classes that occur in targets or predictions."""
    scores = []
    for c in range(classes):
        hit, claimed, actual = ((predicted == c) & (y == c)).sum(), (predicted == c).sum(), (y == c).sum()
        if claimed + actual:
            scores.append(2 * hit / (claimed + actual))
    return np.mean(scores)


def choose(stage, f_P, f_D, rules):
    """The stage of the epoch that begins."""
    if f_D < rules.lambda1 * f_P or stage == 0:
        return 1
    if stage == 1 or f_D < rules.lambda2 * f_P:
        return 2
    return 3


def mitigation(counts, beta):
    s = np.ones((len(counts), len(counts)))
    for i, n_i in enumerate(counts):
        for j, n_j in enumerate(counts):
            if n_i > n_j:
                s[i, j] = (n_j / n_i) ** beta
    return s


def refinement(own, has, shared, shared_has, tau):
    gamma = np.ones(len(own))
    for c in range(len(own)):
        if has[c] and shared_has[c]:
            norms = np.linalg.norm(own[c]) * np.linalg.norm(shared[c])
            gamma[c] = (1 + tau) / (own[c] @ shared[c] / (norms + TINY) + tau)
    return gamma


def gather(means, old, old_has, kind, noise):
    """The global prototypes from those of the clients: (mean, has) of each."""
    new, new_has = old.copy(), old_has.copy()
    for c in range(len(old)):
        rows = np.array([mean[c] for mean, has in means if has[c]])
        if len(rows):
            new_has[c], new[c] = True, rows.mean(0)
            if kind == "gaussian":
                deviation = rows.std(0, ddof=1) if len(rows) > 1 else np.zeros(rows.shape[1])
                new[c] = new[c] + np.maximum(deviation, 1) * noise[c]
    return new, new_has


def means_of(own):
    sums, counts = own
    has = counts > 0
    return sums / np.where(has, counts, 1)[:, None], has


def prrfl(network, model, data, validation, rounds, batches, solver, rules, noise, inputs=lambda x, *_: x):
    """
    network: see the module; batches(t, k): for each epoch the row numbers of its batches; solver(t): a new optimiser.
    noise(t, e): the standard normal draw [C, d] of the update after epoch e (the number of epochs: of the initial ones).
    """
    n, classes, width = len(data), network.classes, network.width
    P, S = [dict(model) for _ in data], [dict(model) for _ in data]
    norm = [{name: model[name] for name in network.norms(model)} for _ in data]
    shared, shared_has = np.zeros((classes, width)), np.zeros(classes, bool)
    own = [(np.zeros((classes, width)), np.zeros(classes)) for _ in data]
    for t, participants in enumerate(rounds):
        D = {k: {**S[k], **norm[k]} for k, _ in participants}
        optimizers = {k: (solver(t), solver(t)) for k, _ in participants}
        stage, stages = dict.fromkeys(D, 0), {k: [] for k in D}
        received, received_has = shared, shared_has
        if rules.reset:
            for k in D:
                own[k] = np.ones((classes, width)), np.ones(classes)
            ones = np.ones((classes, width)), np.ones(classes, bool)
            received, received_has = gather([ones], shared, shared_has, rules.kind, noise(t, len(batches(t, 0))))
        epochs = {k: batches(t, k) for k in D}
        number = len(next(iter(epochs.values())))
        for e in range(number):
            for k, _ in participants:
                x, y = data[k]
                if number < 2 or not rules.det:
                    stage[k] = 2
                else:
                    rows = validation[k] if rules.score_on == "validation" else data[k]
                    f_P, f_D = (macro_f1(network.logits(m, rows[0]).argmax(1), rows[1], classes) for m in (P[k], D[k]))
                    stage[k] = choose(stage[k], f_P, f_D, rules)
                stages[k].append(stage[k])
                gamma = np.ones(classes)
                if t >= rules.start:
                    gamma = refinement(*means_of(own[k]), received, received_has, rules.tau)
                sums, counts = np.zeros((classes, width)), np.zeros(classes)
                for some in epochs[k][e]:
                    features, (g_P, s_P), (g_D, s_D) = network.gradients(
                        P[k], D[k], x[some], y[some], stage[k], gamma, rules
                    )
                    if rules.det:
                        P[k] = {**optimizers[k][0].step(network.parameters(P[k]), g_P), **s_P}
                    D[k] = {**optimizers[k][1].step(network.parameters(D[k]), g_D), **s_D}
                    for feature, c in zip(features, y[some], strict=True):
                        sums[c] += feature
                        counts[c] += 1
                own[k] = sums, counts
            if rules.exchange == "epoch" or e == number - 1:
                means = [means_of(own[k]) for k, arrives in participants if arrives]
                shared, shared_has = gather(means, shared, shared_has, rules.kind, noise(t, e))
                received, received_has = shared, shared_has
        for k in D:
            norm[k] = {name: D[k][name] for name in norm[k]}
        there = [k for k, arrives in participants if arrives]
        sent = [network.to_torch({**D[k], **{name: S[k][name] for name in norm[k]}}) for k in there]
        results = fourier.pfa(sent, [1] * len(there), rules.rates[t], network.classifier, rules.pfa)
        for k, result in zip(there, results, strict=True):
            S[k] = network.from_torch(result)
        models = P if rules.det else [{**S[k], **norm[k]} for k in range(n)]
        yield Prr(
            Round({}, list(norm), [dict(m) for m in models]), [dict(s) for s in S], shared, shared_has, list(own),
            [stages[k] for k in stages],
        )  # fmt: skip


def conjoint(z, y, gamma, s):
    """The CPA loss of a batch, and its gradient by the logits."""
    loss, d_z = 0.0, np.zeros_like(z)
    for i, c in enumerate(y):
        top = z[i].argmax()
        e = np.exp(z[i] - z[i].max())
        denominator = (s[c] * e).sum() + TINY
        sigma = e[c] / denominator
        loss -= gamma[c] * np.log(sigma + TINY)
        d_sigma = -sigma * s[c] * e / denominator
        d_sigma[c] += sigma
        d_sigma[top] -= d_sigma.sum()  # through the maximum that is subtracted
        d_z[i] = -gamma[c] / (sigma + TINY) * d_sigma
    return loss / len(y), d_z / len(y)


def towards(teacher, student, temperature):
    """The gradient of T^2 KL(p_teacher || p_student) by the student's logits, mean over the batch."""
    p, q = (np.exp(log_softmax(z / temperature)) for z in (student, teacher))
    return temperature * (p - q) / len(teacher)


class ByHand:
    """`network`: linear - batch norm - relu - linear."""

    classifier = "head"
    parameters = staticmethod(parameters)
    logits = staticmethod(predict)

    def __init__(self, classes, width):
        self.classes, self.width = classes, width

    def norms(self, model):
        return [name for name in model if name in BATCH_NORM]

    def gradients(self, P, D, x, y, stage, gamma, rules):
        (seen_P, s_P), (seen_D, s_D) = forward(P, x), forward(D, x)
        z_P, z_D = seen_P.logits, seen_D.logits
        s = mitigation(rules.counts, rules.beta) if rules.cpa else None
        d_P, d_D = ((conjoint(z, y, gamma, s) if rules.cpa else cross_entropy(z, y))[1] for z in (z_P, z_D))
        if rules.det and stage >= 2:
            d_P = d_P + towards(z_D, z_P, rules.temperature)
        if rules.det and stage <= 2:
            d_D = d_D + towards(z_P, z_D, rules.temperature)
        features = (seen_P if rules.det else seen_D).features
        return features, (backward(P, seen_P, d_P), s_P), (backward(D, seen_D, d_D), s_D)

    def to_torch(self, model):
        return {name.replace("norm", "bn"): value.T if value.ndim == 2 else value for name, value in model.items()}

    def from_torch(self, model):
        return {name.replace("bn", "norm"): value.T if value.ndim == 2 else value for name, value in model.items()}
