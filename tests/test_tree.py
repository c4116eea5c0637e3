"""Maths on pytrees: the client axis, the split of a model into parts, and the types that come out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_pfl import tree

A = {"x": jnp.array([1.0, -2.0]), "y": {"z": jnp.array([[3.0]])}}
B = {"x": jnp.array([10.0, 20.0]), "y": {"z": jnp.array([[30.0]])}}


def leaves(a):
    return [leaf.tolist() for leaf in jax.tree.leaves(a)]


def test_arithmetic():
    assert leaves(tree.add(A, B)) == [[11, 18], [[33]]]
    assert leaves(tree.sub(A, B)) == [[-9, -22], [[-27]]]
    assert leaves(tree.scale(-2, A)) == [[-2, 4], [[-6]]]
    assert leaves(tree.zeros_like(A)) == [[0, 0], [[0]]]
    assert leaves(tree.where(jnp.array(True), A, B)) == leaves(A)
    assert leaves(tree.where(jnp.array(False), A, B)) == leaves(B)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("factor", [0.5, np.float64(0.5), jnp.float32(0.5), jnp.float64(0.5)])
def test_scale_keeps_the_type(dtype, factor):
    scaled = tree.scale(factor, jnp.ones(3, dtype))
    assert scaled.dtype == dtype
    assert not scaled.weak_type
    assert scaled.tolist() == [0.5] * 3


def test_squared_norm_and_its_gradient():
    assert tree.squared_norm(A) == 14
    np.testing.assert_array_equal(jax.grad(tree.squared_norm)(A)["x"], [2, -4])
    # at 0, where that of norm(a)**2 is NaN
    assert leaves(jax.grad(tree.squared_norm)(tree.zeros_like(A))) == [[0, 0], [[0]]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite(bad):
    assert tree.all_finite(A)
    assert tree.all_finite(())
    assert tree.all_finite({"a": jnp.arange(3)})
    assert not tree.all_finite({**A, "w": jnp.array([[0.0, bad]])})


def test_client_axis():
    """Padding ids are dropped by `put`, and every other row stays as it was."""
    stacked = tree.broadcast(A, 4)
    assert stacked["y"]["z"].shape == (4, 1, 1)
    ids = jnp.array([2, 4, 0])
    changed = tree.put(stacked, ids, tree.broadcast(B, 3))
    assert changed["x"].tolist() == [[10, 20], [1, -2], [10, 20], [1, -2]]
    assert tree.take(changed, ids)["x"].tolist() == [[10, 20], [1, -2], [10, 20]]  # row 4 reads the last one
    assert leaves(tree.take(changed, jnp.int32(1))) == leaves(A)
    assert tree.take((), ids) == tree.put((), ids, ()) == ()


def test_weighted_mean():
    stacked = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0], [7.0, 5.0]]), "y": jnp.array([1.0, 2.0, 3.0], jnp.float32)}
    mean = tree.weighted_mean(stacked, jnp.array([2, 1, 0], jnp.float32))
    np.testing.assert_allclose(mean["x"], [5 / 3, 8 / 3], rtol=1e-14)  # exact counts, so exact shares
    np.testing.assert_allclose(mean["y"], 4 / 3, rtol=1e-6)
    assert (mean["x"].dtype, mean["y"].dtype) == (jnp.float64, jnp.float32)


def names(part):
    return set(toy.flat(part))


def test_split_and_merge():
    variables = toy.variables()
    head, rest = tree.split(variables, tree.top_level(("head",)))
    assert names(head) == {"head.kernel", "head.bias"}
    assert names(rest) == names(variables) - names(head)
    assert jax.tree.structure(tree.merge(rest, head)) == jax.tree.structure(variables)
    other = tree.scale(2, variables)
    merged = tree.merge(other, head)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    np.testing.assert_array_equal(merged["params"]["head"]["kernel"], variables["params"]["head"]["kernel"])
    np.testing.assert_array_equal(merged["params"]["body"]["bias"], other["params"]["body"]["bias"])
    nothing, everything = tree.split(variables, lambda path: False)
    assert nothing == {}
    assert jax.tree.structure(everything) == jax.tree.structure(variables)
    assert jax.tree.structure(tree.merge(variables, nothing)) == jax.tree.structure(variables)


def test_parts_of_a_model():
    variables = toy.variables()
    batch_norm = {"norm.scale", "norm.bias", "norm.mean", "norm.var"}
    assert names(tree.split(variables, tree.batch_norm(variables))[0]) == batch_norm
    assert names(tree.split(variables, tree.statistics)[0]) == {"norm.mean", "norm.var"}
    either = tree.either(tree.statistics, tree.top_level(("head",)))
    assert names(tree.split(variables, either)[0]) == {"norm.mean", "norm.var", "head.kernel", "head.bias"}
    without = toy.variables(batch_norm=False)
    assert tree.split(without, tree.batch_norm(without))[0] == {}


def test_batch_norm_is_found_by_structure():
    """Not by name: a layer called `bn` without statistics is none, a nested one called `x` with statistics is one."""
    one, two = {"scale": jnp.ones(2), "bias": jnp.ones(2)}, {"mean": jnp.ones(2), "var": jnp.ones(2)}
    variables = {"params": {"block": {"x": one, "bn": one}}, "batch_stats": {"block": {"x": two}}}
    found, _ = tree.split(variables, tree.batch_norm(variables))
    assert names(found) == {"block.x.scale", "block.x.bias", "block.x.mean", "block.x.var"}


def test_together():
    """Models put together come out as they were, whichever collections they have."""
    one = {"params": {"w": jnp.ones(2)}, "batch_stats": {"m": jnp.zeros(1)}}
    two = {"params": {"w": jnp.zeros(3)}}
    both = tree.together(one=one, two=two)
    assert jax.tree.structure(both) == jax.tree.structure(
        {"params": {"one": one["params"], "two": two["params"]}, "batch_stats": {"one": one["batch_stats"]}}
    )
    for name, model in (("one", one), ("two", two)):
        found = tree.member(both, name)
        assert jax.tree.structure(found) == jax.tree.structure(model)
        jax.tree.map(np.testing.assert_array_equal, found, model)


def test_dense():
    """The one dense layer of a module, wherever it is; nothing where there is another or none."""
    kernel, bias = jnp.ones((3, 2)), jnp.zeros(2)
    for head, path in (
        ({"kernel": kernel, "bias": bias}, ()),
        ({"kernel": kernel}, ()),
        ({"linear": {"kernel": kernel, "bias": bias}}, ("linear",)),
    ):
        found, entries = tree.dense({"params": {"head": head}}, "head")
        assert found == ("params", "head", *path)
        assert set(entries) == set(head.get("linear", head))
        part = tree.nest(found, entries)
        assert jax.tree.structure(part) == jax.tree.structure({"params": {"head": head}})
    for head in (
        {"a": {"kernel": kernel}, "b": {"kernel": kernel}},
        {"kernel": jnp.ones((1, 1, 3, 2)), "bias": bias},
        {"scale": bias, "bias": bias},
    ):
        assert tree.dense({"params": {"head": head}}, "head") == ((), {})
