"""KD3A and KD3A with deputies (METHODS.md 6 and 7; arXiv 2011.09757): one party after the other."""

import itertools
import math
from typing import NamedTuple

import numpy as np

from .network import HEAD, STATISTICS, Round, backward, cross_entropy, forward, log_softmax, parameters, predict
from .prrfl import choose, macro_f1, towards


class Rules(NamedTuple):
    """What the method's options say; the defaults are the released code's."""

    target: int
    gate: tuple = (0.9, 0.95)
    votes: str = "hard"
    train_teachers: bool = True
    mixup_weights: bool = False
    shapley: bool = True
    target_share: str = "confidence"
    by_examples: bool = False
    momentum: float = 0.9
    rounded: bool = True
    own_heads: bool = True
    bn_mmd: bool = True
    second_moments: bool = False
    most: int = 10**9  # batches
    repeats: int = 1
    poisoned: int = -1
    poison: float = 0.0
    batch: int = 4
    # with deputies
    det: bool = False
    sub_epochs: int = 5
    all_data: bool = False
    stages: str = "det"
    lambda1: float = 0.7
    lambda2: float = 0.9
    score_on: str = "train"
    temperature: float = 1.0
    fade: tuple = ("none", "none")  # personal, deputy
    fade_rounds: int = 40
    recover_weights: tuple = (1.0, 1.0)
    upload: str = "deputy"
    target_sub_epochs: int = 0  # 0: no personal target
    target_kl: float = 1.0


class Epoch(NamedTuple):
    """What a round leaves besides the models."""

    round: Round
    alpha: np.ndarray
    focus: np.ndarray  # of the sources, () where the target did not take part
    stages: set


def heard(P, gate, votes):
    """The vote of the models with predictions P [S, C] on one example: pseudo-label, weight, quality."""
    m, y = P.max(1), P.argmax(1)
    if votes == "hard":
        weight = float(m.max() > gate)
        if weight:
            m = np.where(m > gate, m, 0)
        score = np.zeros(P.shape[1])
        for i, c in enumerate(y):
            score[c] += m[i]
        return np.eye(P.shape[1])[score.argmax()], weight, weight * score.max()
    if votes == "soft":
        sure = [i for i in range(len(P)) if m[i] >= gate]
        supporters = [i for i in sure if y[i] == P[sure].sum(0).argmax()]
        label = P[supporters].mean(0) if supporters else P.mean(0)
        weight = len(supporters) or 0.001
        return label, weight, weight * label.max()
    sure = [i for i in range(len(P)) if m[i] > gate]
    some = P[sure] if sure else P
    if votes == "mode":
        value = np.bincount(some.argmax(1), minlength=P.shape[1]).astype(float)
        label = np.eye(P.shape[1])[value.argmax()]
    else:
        value = getattr(np, votes)(some, axis=0)
        label = value / value.sum()
    return label, float(bool(sure)), float(bool(sure)) * value.max()


def focus_of(P, gate, votes, shapley):
    """Each source's focus on one example, P [K, C]."""
    K = len(P)

    def quality(coalition):
        return heard(P[sorted(coalition)], gate, votes)[2] if coalition else 0.0

    if not shapley:
        everybody = set(range(K))
        return np.array([quality(everybody) - quality(everybody - {i}) for i in range(K)])
    known = {c: quality(c) for r in range(K + 1) for c in map(frozenset, itertools.combinations(range(K), r))}
    total = np.zeros(K)
    for order in itertools.permutations(range(K)):
        before = frozenset()
        for i in order:
            total[i] += known[before | {i}] - known[before]
            before |= {i}
    return total / math.factorial(K)


def kd3a(model, heads, personal_heads, data, validation, rounds, batches, draws, solver, rules):
    """
    heads, personal_heads: what each party's head starts from (with own heads). rounds: for each its participants, (id,
    whether the upload arrives). batches(t, k, e): row numbers of all batches of that pass. draws(t, i, n): lambda and the
    other image of each of n rows of the target's batch i.
    """
    N, t0 = len(data), rules.target
    stays = (*(HEAD if rules.own_heads else ()), *(() if rules.bn_mmd else STATISTICS))
    G = dict(model)
    held = [{name: {**model, **heads[k]}[name] for name in stays} for k in range(N)]
    P = [{**model, **personal_heads[k]} for k in range(N)]
    optimizers = [solver(0) for _ in range(N)]
    for_P = [solver(0) for _ in range(N)]
    knowledge = {k: {**model, **heads[k]} for k in range(N) if k != t0}
    alpha, uses_P = np.full(N, 1 / N), [False] * N
    K = N - 1
    for t, participants in enumerate(rounds):
        seen_stages = set()
        lr = solver(t).lr
        for k, arrives in participants:
            if k == t0:
                continue
            optimizers[k].lr = for_P[k].lr = lr
            D = {**G, **held[k]}
            if rules.det:
                D, seen = with_deputy(P, D, k, t, data, validation, batches, (for_P[k], optimizers[k]), rules)
                uses_P[k] = True
                seen_stages |= seen
            else:
                for e in range(rules.repeats):
                    for rows in batches(t, k, e)[: rules.most]:
                        x, y = data[k][0][rows], wrong(data[k][1][rows], k, rules, model)
                        seen, changed = forward(D, x)
                        g = backward(D, seen, cross_entropy(seen.logits, y)[1])
                        D = {**optimizers[k].step(parameters(D), g), **changed}
            held[k] = {name: D[name] for name in stays}
            if arrives:
                knowledge[k] = dict(P[k] if rules.upload == "personal" else D)
        focus = ()
        there = dict(participants)
        if t0 in there:
            optimizers[t0].lr = for_P[t0].lr = lr
            teachers = {k: dict(each) for k, each in knowledge.items()}
            passed = learn({**G, **held[t0]}, P, teachers, t, data[t0][0], batches, draws, (optimizers[t0], for_P[t0]), rules,
                           len(rounds))  # fmt: skip
            w, focus, share, stages = passed
            seen_stages |= stages
            uses_P[t0] = bool(rules.target_sub_epochs)
            held[t0] = {name: w[name] for name in stays}
            if there[t0]:
                knowledge = teachers if rules.train_teachers else knowledge
                alpha = domain_weights(alpha, focus, share, t, [len(y) for _, y in data], rules)
                parties = [w if k == t0 else knowledge[k] for k in range(N)]
                new = {name: sum(a * p[name] for a, p in zip(alpha, parties, strict=True)) for name in G}
                if rules.bn_mmd and rules.second_moments:
                    second = sum(a * (p["norm.var"] + p["norm.mean"] ** 2) for a, p in zip(alpha, parties, strict=True))
                    new["norm.var"] = second - new["norm.mean"] ** 2
                G = {**new, **{name: G[name] for name in stays}}
        if rules.train_teachers and not rules.bn_mmd:
            for k, _ in participants:
                if k != t0:
                    held[k] |= {name: knowledge[k][name] for name in STATISTICS}
        models = [P[k] if uses_P[k] else {**G, **held[k]} for k in range(N)]
        yield Epoch(
            Round(dict(G), [dict(h) for h in held], [dict(m) for m in models]), alpha.copy(), focus, seen_stages
        )
    assert len(knowledge) == K


def wrong(y, k, rules, model):
    """The labels of a batch, the first of them one class too high where the source is poisoned."""
    y = y.copy()
    if k == rules.poisoned:
        first = round(rules.batch * rules.poison)
        y[:first] = (y[:first] + 1) % len(model["head.bias"])
    return y


def with_deputy(P, D, k, t, data, validation, batches, optimizers, rules):
    """A source's sub-epochs: P[k] is replaced, the deputy returned, with the stages that occurred."""
    stage, seen = 0, set()
    number = rules.sub_epochs * rules.repeats
    b = min(len(batches(t, k, 0)), rules.most)
    a = round(1 - t / rules.fade_rounds, 3)
    plain = {"none": (1.0, 1.0), "min": (a, 2 - a), "max": (2 - a, a)}
    for e in range(number):
        if rules.stages in ("det", "recover_exchange"):
            rows = data[k] if rules.score_on == "train" else validation[k]
            classes = len(D["head.bias"])
            f_P, f_D = (macro_f1(predict(m, rows[0]).argmax(1), rows[1], classes) for m in (P[k], D))
            stage = choose(stage, f_P, f_D, rules)
            if rules.stages == "recover_exchange":
                stage = min(stage, 2)
        else:
            stage = {"recover": 1, "exchange": 2, "fixed": min(e + 1, 2)}[rules.stages]
        seen.add(stage)
        steps = b if rules.all_data else (e + 1) * b // number - e * b // number
        for rows in batches(t, k, e)[:steps]:
            x, y = data[k][0][rows], wrong(data[k][1][rows], k, rules, D)
            (s_P, c_P), (s_D, c_D) = forward(P[k], x), forward(D, x)
            d_P, d_D = (cross_entropy(s.logits, y)[1] for s in (s_P, s_D))
            T = rules.temperature
            if stage >= 2:
                ce, kl = plain[rules.fade[0]]
                new_P = ce * d_P + kl * towards(s_D.logits, s_P.logits, T)
            else:
                new_P = d_P
            if stage <= 2:
                ce, kl = plain[rules.fade[1]]
                if stage == 1 and rules.recover_weights != (1.0, 1.0):
                    ce, kl = rules.recover_weights
                d_D = ce * d_D + kl * towards(s_P.logits, s_D.logits, T)
            g_P, g_D = backward(P[k], s_P, new_P), backward(D, s_D, d_D)
            P[k] = {**optimizers[0].step(parameters(P[k]), g_P), **c_P}
            D = {**optimizers[1].step(parameters(D), g_D), **c_D}
    return D, seen


def learn(w, P_all, teachers, t, x_all, batches, draws, optimizers, rules, total):
    """The target's epoch; teachers' statistics move in place where they train. Its model, the focus, its share, stages."""
    g = rules.gate[0] + (rules.gate[1] - rules.gate[0]) * t / total
    order = sorted(teachers)
    focus, confident, seen = np.zeros(len(order)), 0.0, 0
    number = max(rules.target_sub_epochs, 1)
    b = min(len(batches(t, rules.target, 0)), rules.most)
    stage, stages, claims = 0, set(), [[], [], []]
    classes = len(w["head.bias"])
    for e in range(number):
        if rules.target_sub_epochs:
            agreed, by_P, by_D = (np.array(c, int) for c in claims)
            f_P, f_D = (macro_f1(by, agreed, classes) if len(agreed) else 0.0 for by in (by_P, by_D))
            stage = choose(stage, f_P, f_D, rules)
            stages.add(stage)
            claims = [[], [], []]
        for i, rows in enumerate(batches(t, rules.target, e)[: (e + 1) * b // number - e * b // number]):
            x = x_all[rows]
            logits = []
            for k in order:
                if rules.train_teachers:
                    passed, changed = forward(teachers[k], x)
                    teachers[k] |= changed
                    logits.append(passed.logits)
                else:
                    logits.append(predict(teachers[k], x))
            P = np.exp(log_softmax(np.stack(logits, 1)))  # [B, K, C]
            said = [heard(p, g, rules.votes) for p in P]
            for p in P:
                focus += focus_of(p, g, rules.votes, rules.shapley)
                top = p.max()
                confident += top >= g if rules.votes == "soft" else top > g
            seen += len(rows)
            lam, other = draws(t, e, i, len(rows))
            mixed = lam * x + (1 - lam) * x[other]
            label, weight = np.array([s[0] for s in said]), np.array([s[1] for s in said])
            second = weight[other] if rules.mixup_weights else weight
            y = lam * weight[:, None] * label + (1 - lam) * second[:, None] * label[other]

            passed, changed = forward(w, mixed)
            d_z = by_vote(passed, y)
            if rules.target_sub_epochs:
                mine = P_all[rules.target]
                passed_P, changed_P = forward(mine, mixed)
                d_P = by_vote(passed_P, y)
                if stage >= 2:
                    d_P = d_P + rules.target_kl * towards(passed.logits, passed_P.logits, rules.temperature)
                if stage <= 2:
                    d_z = d_z + rules.target_kl * towards(passed_P.logits, passed.logits, rules.temperature)
                for row in np.flatnonzero(y.sum(1) > 0):
                    for claim, z in zip(claims, (y, passed_P.logits, passed.logits), strict=True):
                        claim.append(z[row].argmax())
                stepped = optimizers[1].step(parameters(mine), backward(mine, passed_P, d_P))
                P_all[rules.target] = {**stepped, **changed_P}
            w = {**optimizers[0].step(parameters(w), backward(w, passed, d_z)), **changed}
    return w, focus, confident / seen, stages


def by_vote(passed, y):
    """The gradient by the logits of the mean of -sum_c y_c log p_c, whose y need not sum to 1."""
    return (y.sum(1, keepdims=True) * np.exp(log_softmax(passed.logits)) - y) / len(y)


def domain_weights(old, focus, share, t, sizes, rules):
    def digits(a):
        return np.round(a, 4) if rules.rounded else a

    N, t0 = len(old), rules.target
    first = digits(sizes[t0] / sum(sizes) if rules.target_share == "examples" else share / N)
    focus = np.maximum(focus, 0)
    if focus.sum() == 0:
        focus = focus + 1e-3
    others = [k for k in range(N) if k != t0]
    if rules.by_examples:
        focus = focus * np.array([sizes[k] for k in others])
    new = np.zeros(N)
    new[t0], new[others] = first, digits((1 - first) * focus / focus.sum())
    return new if t == 0 else digits(rules.momentum * old + (1 - rules.momentum) * new)
