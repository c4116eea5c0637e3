"""Class means of features: batch by batch, over clients, and where a class is missing."""

import jax
import jax.numpy as jnp
import numpy as np
import toy

from fedjax_pfl import prototypes
from fedjax_pfl.prototypes import Prototypes, Sums

C, D = 4, 3
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(7, D))
Y = np.array([0, 2, 2, 0, 3, 2, 0], np.int32)  # nobody is of class 1


def collected(batches, features=FEATURES, y=Y):
    """The sums over batches of 4 with padding."""
    total = prototypes.zeros(C, D, np.float64)
    for rows in batches:
        padding = 4 - len(rows)
        # a padding row holds what would be noticed: a NaN, and a class that has no rows
        f = np.concatenate([features[rows], np.full((padding, D), np.nan)])
        y_ = np.concatenate([y[rows], np.ones(padding, np.int32)]).astype(np.int32)
        total = prototypes.add(total, jnp.asarray(f), jnp.asarray(y_), jnp.arange(4) < len(rows))
    return total


def test_means_of_the_real_rows():
    total = collected([[0, 1, 2, 3], [4, 5, 6]])
    found = prototypes.means(total)
    assert found.has.tolist() == [True, False, True, True]
    assert total.counts.tolist() == [3, 0, 3, 1]
    for c in (0, 2, 3):
        np.testing.assert_allclose(found.mean[c], FEATURES[c == Y].mean(0), rtol=1e-12)
    assert np.all(found.mean[1] == 0)


def test_how_rows_are_batched_changes_nothing():
    one, two = collected([[0, 1, 2, 3], [4, 5, 6]]), collected([[6, 2], [5, 0, 1], [3, 4]])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), one, two)


def test_over_clients():
    """Client 1 has no class 0; a lost upload is zeros and owns nothing."""
    clients = [collected([[0, 1, 4]]), collected([[2, 5, 4]]), collected([])]
    uploads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clients)
    rows = {0: [0], 2: [1, 2, 5], 3: [4, 4]}
    examples = prototypes.over_clients(uploads, "examples")
    uniform = prototypes.over_clients(uploads, "uniform")
    for found in (examples, uniform):
        assert found.has.tolist() == [True, False, True, True]
        assert np.all(np.isfinite(found.mean))
    for c, of_class in rows.items():
        np.testing.assert_allclose(examples.mean[c], FEATURES[of_class].mean(0), rtol=1e-12)
    np.testing.assert_allclose(uniform.mean[2], (FEATURES[1] + FEATURES[[2, 5]].mean(0)) / 2, rtol=1e-12)
    np.testing.assert_allclose(uniform.mean[0], FEATURES[0], rtol=1e-12)


def test_update_keeps_a_class_that_nobody_has_now():
    old = Prototypes(jnp.ones((2, D)), jnp.array([True, True]))
    new = Prototypes(jnp.full((2, D), 5.0), jnp.array([False, True]))
    found = prototypes.update(old, new)
    assert found.has.tolist() == [True, True]
    np.testing.assert_array_equal(found.mean, [[1.0] * D, [5.0] * D])


def test_squared_distance_and_its_gradient():
    """The prototype is a constant; a row without one adds nothing, and no NaN to the gradient."""
    known = prototypes.means(collected([[0, 1, 2, 3], [4, 5, 6]]))
    x, y = jnp.asarray(FEATURES[:2]), jnp.array([2, 1], jnp.int32)
    distance, has = prototypes.squared_distance(known, x, y)
    assert has.tolist() == [True, False]
    np.testing.assert_allclose(distance, [((FEATURES[0] - known.mean[2]) ** 2).sum(), 0], rtol=1e-12)
    gradient = jax.grad(lambda x: jnp.sum(prototypes.squared_distance(known, x, y)[0]))(x)
    np.testing.assert_allclose(gradient, [2 * (FEATURES[0] - known.mean[2]), np.zeros(D)], rtol=1e-12)
    to_prototype = jax.grad(lambda m: jnp.sum(prototypes.squared_distance(known._replace(mean=m), x, y)[0]))(known.mean)
    assert np.all(to_prototype == 0)


def test_float32_stays():
    one = Sums(jnp.zeros((C, D), jnp.float32), jnp.zeros(C, jnp.float32))
    total = prototypes.add(one, jnp.ones((2, D), jnp.float32), jnp.array([1, 2]), jnp.array([True, True]))
    found = prototypes.over_clients(jax.tree.map(lambda leaf: leaf[None], total), "uniform")
    assert {leaf.dtype for leaf in (*total, found.mean)} == {np.dtype(np.float32)}


def test_width():
    width, dtype = prototypes.width(toy.variables(dtype=np.float32), toy.LAYERS)
    assert (width, dtype) == (toy.HIDDEN, np.float32)
    nothing = prototypes.none(toy.variables(), toy.LAYERS, C)
    assert nothing.mean.shape == (C, toy.HIDDEN)
    assert not np.any(nothing.has)
