"""FedMD: equal to its plain NumPy loop, and the draw of its alignment sets."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from reference import fedmd
from test_equivalence import check, model

from fedjax_pfl import algorithms, local
from fedjax_pfl.algorithms.personal.fedmd import stratified
from fedjax_pfl.errors import UserError

PUBLIC, M, BATCH = 0, 5, 3  # client 0 isn't there in two of the five rounds
OPTIONS = {"public": "c0", "alignment": M, "pretrain_epochs": 2, "private_epochs": 3, "digest_epochs": 2}
PARTS = {"pretrain": (0, 3, 0, 2, BATCH), "private": (0, 3, 1, 3, toy.BATCH), "digest": (1, 2, 0, 2, BATCH)}


def orders(key: Any, count: int, epochs: int, size: int) -> list[list[np.ndarray]]:
    found = []
    for e in range(epochs):
        key_e = jax.random.fold_in(jax.random.fold_in(key, e), 0)
        order = np.asarray(local.permutation(key_e, np.int32(count), sum(toy.COUNTS)))[:count]
        found.append([order[i : i + size] for i in range(0, count, size)])
    return found


@functools.cache
def epochs(t: int, k: int, part: str, count: int) -> list[list[np.ndarray]]:
    """By the keys that core.compose, core.run and the method take: the exchange, the parts of a key and which of them."""
    exchange, split, which, number, size = PARTS[part]
    key = jax.random.key(toy.KEY)
    for value in (t, exchange, k):
        key = jax.random.fold_in(key, value)
    return orders(jax.random.split(key, split)[which], count, number, size)


@functools.cache
def revisit(t: int, k: int) -> list[list[np.ndarray]]:
    key = jax.random.key(toy.KEY)
    for value in (t, 1, k):
        key = jax.random.fold_in(key, value)
    return orders(jax.random.split(key, 2)[1], toy.COUNTS[k], 2, toy.BATCH)


@functools.cache
def alignment(t: int, m: int = M) -> np.ndarray:
    """The rows of A in round t, of the public client's padded examples."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2**31 - 11), t)
    data = toy.cohort((PUBLIC,)).data
    rows = stratified(key, toy.row(data, 0), toy.CLASSES)
    return np.asarray(rows)[: min(m, toy.COUNTS[PUBLIC])]


@pytest.mark.parametrize("m", [M, pytest.param(13, marks=pytest.mark.slow)], ids=["few", "more than there are"])
def test_fedmd(m):
    options = {**OPTIONS, "alignment": m, "digest_batch_size": BATCH}
    oracle = functools.partial(
        fedmd.fedmd, public=PUBLIC, alignment=functools.partial(alignment, m=m), m=m, epochs=epochs
    )

    def server(held: Any) -> dict[str, np.ndarray]:
        return {"Z": np.asarray(held.Z), "of": np.asarray(held.of)}

    check("fedmd", options, oracle, server, model, batches=revisit)


def test_the_alignment_set_has_the_classes_in_proportion():
    """Of any size; another key, another set; padding last."""
    y = np.repeat([0, 1, 2], [40, 20, 20])
    data = toy.row(toy.cohort((0,)).data, 0)._replace(
        count=jnp.int32(80), y=jnp.asarray(np.concatenate([y, np.zeros(10)]), jnp.int32)
    )
    drawn = [np.asarray(stratified(jax.random.key(seed), data, 3)) for seed in (0, 1)]
    for order in drawn:
        assert sorted(order) == list(range(90))
        assert set(order[80:]) == set(range(80, 90))
        for m in (4, 20, 52):
            np.testing.assert_array_equal(np.bincount(y[order[:m]], minlength=3), [m // 2, m // 4, m // 4])
    assert set(drawn[0][:20]) != set(drawn[1][:20])


def test_when_no_upload_arrives_nobody_digests_an_old_consensus():
    """The server keeps that of an earlier round, whose alignment set was another."""
    options = {**OPTIONS, "digest_batch_size": BATCH}
    algorithm = algorithms.build("fedmd", toy.training(), options)
    without = algorithms.build("fedmd", toy.training(), {**options, "digest_epochs": 0})
    round, alone = toy.jit(algorithm.round), toy.jit(without.round)
    key = jax.random.key(toy.KEY)
    first, _ = round(algorithm.init(toy.variables(), toy.N), toy.cohort((0, 1)), key)
    lost, _ = round(first, toy.cohort((0, 1), lost=(0, 1)), key)
    expected, _ = alone(first, toy.cohort((0, 1)), key)
    for a, b in zip(jax.tree.leaves(lost.clients), jax.tree.leaves(expected.clients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_what_fedmd_refuses():
    with pytest.raises(UserError, match=r"^config\.fedmd\.public: unknown name 'c9'"):
        algorithms.build("fedmd", toy.training(), {"public": "c9"})
    with pytest.raises(UserError, match=r"^config\.fedmd\.alignment: found 0, expected 1 or more"):
        algorithms.build("fedmd", toy.training(), {"alignment": 0})
