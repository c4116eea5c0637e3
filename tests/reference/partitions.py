"""NIID-Bench's partitions (METHODS.md section 9), written from the text: lists of row numbers for each of n parties.

Two legacy generators, both started with the seed: Python's for choices of classes and points, NumPy's for the rest.
"""

import math
import random

import numpy as np


def pieces(rows, cuts):
    """rows[:cuts[0]], rows[cuts[0]:cuts[1]], ..., as lists."""
    ends = [0, *cuts, len(rows)]
    return [list(rows[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def evenly(rows, n):
    """n nearly equal consecutive parts; the first len(rows) mod n get one extra."""
    small, extra = divmod(len(rows), n)
    cuts, end = [], 0
    for i in range(n - 1):
        end += small + (i < extra)
        cuts.append(end)
    return pieces(rows, cuts)


def homogeneous(y, n, seed):
    return evenly(np.random.RandomState(seed).permutation(len(y)), n)


def label_quantity(y, classes, n, k, seed):
    choose = random.Random(seed)
    held = []
    for i in range(n):
        mine = {i % classes}
        while len(mine) < k:
            mine.add(choose.randint(0, classes - 1))
        held.append(mine)
    shuffle = np.random.RandomState(seed).shuffle
    parties = [[] for _ in range(n)]
    for c in range(classes):
        rows = np.array([r for r in range(len(y)) if y[r] == c], int)
        shuffle(rows)
        owners = [i for i in range(n) if c in held[i]]
        if owners:
            for i, part in zip(owners, evenly(rows, len(owners)), strict=True):
                parties[i] += part
    return parties


def dirichlet(y, classes, n, beta, seed, least=10):
    rng = np.random.RandomState(seed)
    while True:
        parties = [[] for _ in range(n)]
        for c in range(classes):
            rows = np.array([r for r in range(len(y)) if y[r] == c], int)
            rng.shuffle(rows)
            q = rng.dirichlet([beta] * n)
            q = np.array([q[j] if len(parties[j]) < len(y) / n else 0.0 for j in range(n)])
            q = q / q.sum()
            cuts = [math.floor(v) for v in np.cumsum(q) * len(rows)][:-1]
            parties = [old + new for old, new in zip(parties, pieces(rows, cuts), strict=True)]
        if min(map(len, parties)) >= least:
            for party in parties:
                rng.shuffle(party)
            return parties


def quantity(y, n, beta, seed, least=10):
    rng = np.random.RandomState(seed)
    rows = rng.permutation(len(y))
    while True:
        q = rng.dirichlet([beta] * n)
        q = q / q.sum()
        if min(q * len(y)) >= least:
            return pieces(rows, [math.floor(v) for v in np.cumsum(q) * len(y)][:-1])


def real(per_writer, n, seed):
    """`per_writer`: number of samples of each writer, in storage order."""
    first = [sum(per_writer[:w]) for w in range(len(per_writer))]
    order = np.random.RandomState(seed).permutation(len(per_writer))
    return [[r for w in group for r in range(first[w], first[w] + per_writer[w])] for group in evenly(order, n)]


def fcube(seed):
    """Points and labels of the 4,000 training and the 1,000 test samples."""
    u = random.Random(seed).random
    x, y, x_test, y_test = [], [], [], []
    for pair in range(4):
        for i in range(1000):
            p = [u(), u(), u()]
            if pair > 1:
                p[1] = -p[1]
            if pair % 2 == 1:
                p[2] = -p[2]
            x.append(p if i % 2 == 0 else [-v for v in p])
            y.append(i % 2)
    for _ in range(1000):
        p = [u() * 2 - 1, u() * 2 - 1, u() * 2 - 1]
        x_test.append(p)
        y_test.append(0 if p[0] > 0 else 1)
    return x, y, x_test, y_test
