"""Lanes: what clients come to doesn't depend on how many of them run together, nor on who runs beside whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_pfl import lanes

# Seven clients with so many stages, and in stage e of client k so many steps.
STAGES = np.array([4, 2, 0, 3, 1, 2, 1], np.int32)
STEPS = np.array(
    [[5, 0, 2, 1], [6, 1, 0, 0], [0, 0, 0, 0], [9, 9, 9, 9], [4, 0, 0, 0], [1, 1, 0, 0], [0, 3, 0, 0]], np.int32
)
ROWS = np.arange(7 * 6 * 2.0).reshape(7, 6, 2)
COMMON = np.arange(6.0) ** 2  # rows that all clients have


def one_client(k: int) -> tuple[list[float], list[float]]:
    """The loop: (one carry, the other), each of them a sum over all steps in which nothing commutes."""
    a, b = np.full(2, 0.5), np.full(3, k + 1.0)
    for e in range(STAGES[k]):
        a, factor = a + 10.0 * e, 1.0 + e + 0.1 * k
        for i in range(STEPS[k, e]):
            index = [i % 6, (i + e) % 6]
            a, b = 0.9 * a + factor * ROWS[k, index].sum(0) + COMMON[index].sum(), 0.5 * b + i + k + 7.0
    return a.tolist(), b.tolist()


def work(number: int | None):
    """The same as a program for one client, of the arrays of all of them."""

    def begin(held, e, carry):
        k, _, steps, _ = held
        return (carry[0] + 10.0 * e.astype(float), carry[1]), 1.0 + e.astype(float) + 0.1 * k.astype(float), steps[e]

    def step(held, read, factor, i, carry):
        k, _, _, shared = held
        (a, b), e = carry, jnp.round(factor - 1 - 0.1 * k.astype(float)).astype(jnp.int32)
        rows, common = read(jnp.stack([i % 6, (i + e) % 6]))
        return 0.9 * a + factor * rows.sum(0) + common.sum(), 0.5 * b + i.astype(float) + k.astype(float) + shared

    def client(k, stages, steps, rows, b):
        of = lanes.Work(lambda held: held[1], begin, step)
        return lanes.work(of, (k, stages, steps, jnp.float64(7)), (rows, COMMON), (jnp.full(2, 0.5), b), number)

    return client


@pytest.mark.parametrize("number", [None, 1, 2, 3, 6, 7, 50])
def test_lanes_are_clients_one_after_the_other(number):
    k = np.arange(7, dtype=np.int32)
    found = jax.jit(jax.vmap(work(number)))(k, STAGES, STEPS, ROWS, (k + 1.0)[:, None] * np.ones(3))
    for client in range(7):
        for array, expected in zip(found, one_client(client), strict=True):
            np.testing.assert_allclose(array[client], expected, rtol=1e-13)
    assert one_client(0) != one_client(1)


def test_work_that_is_not_mapped():
    found = jax.jit(work(2))(np.int32(1), STAGES[1], STEPS[1], ROWS[1], np.full(3, 2.0))
    np.testing.assert_allclose(found[0], one_client(1)[0], rtol=1e-13)


def test_what_a_function_closes_over():
    """Seen as an argument: of each client its own, where it is mapped over clients."""

    def client(x):
        function, closed_over = lanes.hoist(lambda y: {"sum": x + 2 * y}, 3, jnp.float64(0))
        assert len(closed_over) == 1
        return function([10 * closed_over[0]], jnp.float64(1))

    np.testing.assert_array_equal(jax.vmap(client)(np.arange(3.0))["sum"], [2, 12, 22])
    function, closed_over = lanes.hoist(lambda y: y + 1, None, jnp.float64(0))
    assert (function(closed_over, 1), closed_over) == (2, [])


def test_the_number_of_lanes():
    """By hand: 12 steps in all, the longest client's 6. Two lanes take 6 (all useful), three take 6 (12 of 18)."""
    cohort = np.array([6, 3, 2, 1])
    assert [lanes.executed(cohort, n) for n in (1, 2, 3, 4, 9)] == [12, 12, 18, 24, 24]
    assert lanes.number([cohort]) == 2
    assert lanes.number([cohort], at_least=0.6) == 3
    assert lanes.number([np.array([5, 5, 5])]) == 3
    assert lanes.number([cohort, np.array([6, 6, 6, 6])]) == 2  # 36 useful: two execute 36, three 54, four 48
    assert lanes.number([np.array([], int)]) == 1
