"""Lanes: clients with very different numbers of steps trained together, none of them waiting for the others to end.

Under `jax.vmap` a loop over one client's steps goes on for all clients until the longest of them has ended. Here a fixed
number of lanes make the steps, and a lane takes its next client when the one before it has ended, in the order of the cohort
(largest first: list scheduling by longest processing time, Graham, SIAM J. Appl. Math. 17, 1969). Nothing else changes: a
client's numbers are those that it has alone.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Int

Held = Any  # what a client has through all of its work
Rows = Any  # [n, ...] each: of these a step reads a few
Read = Callable[[Int[Array, " B"]], Any]  # some of a client's rows
Begin = Callable[[Held, Int[Array, ""], Any], tuple[Any, Any, Int[Array, ""]]]
Step = Callable[[Held, Read, Any, Int[Array, ""], Any], Any]


class Work(NamedTuple):
    """One client's work: stages (epochs), each of them of a number of steps that it says when it begins."""

    stages: Callable[[Held], Any]  # how many
    begin: Begin  # begin(held, stage, carry) -> the carry, what the stage has besides, and its number of steps
    step: Step  # step(held, read, of the stage, i, carry) -> the carry


def work(work: Work, held: Held, rows: Rows, carry: Any, lanes: int | None = None) -> Any:
    """All stages and steps of one client: the carry after them.

    Args:
        held: what `begin` and `step` need of the client. They may not close over anything else of a client's: see `hoist`.
        rows: the arrays [n, ...] that `step` reads rows of by `read(index)`.
        lanes: how many clients make their steps together where this is mapped over clients; None: all of them.
    """

    def alone(held: Held, rows: Rows, carry: Any) -> Any:
        def read(index: Int[Array, " B"]) -> Any:
            return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), rows)

        def stage(e: Int[Array, ""], carry: Any) -> Any:
            carry, of_stage, number = work.begin(held, e.astype(jnp.int32), carry)
            return jax.lax.fori_loop(0, number, lambda i, carry: work.step(held, read, of_stage, i, carry), carry)

        return jax.lax.fori_loop(0, work.stages(held), stage, carry)

    if lanes is None:
        return alone(held, rows, carry)
    mapped = custom_vmap(alone)

    @mapped.def_vmap
    def _(k: int, batched: Any, held: Held, rows: Rows, carry: Any) -> tuple[Any, Any]:
        if lanes >= k:
            axes = jax.tree.map(lambda batched: 0 if batched else None, batched)
            out = jax.vmap(alone, in_axes=tuple(axes), axis_size=k)(held, rows, carry)
        else:
            out = _in_lanes(work, lanes, k, batched, held, rows, carry)
        return out, jax.tree.map(lambda _: True, out)

    return mapped(held, rows, carry)


class _Lanes(NamedTuple):
    """What L lanes are doing."""

    client: Int[Array, " L"]  # of the K; K or more: the lane has no more work
    stages: Int[Array, " L"]  # that this client has begun
    step: Int[Array, " L"]  # the next one of the stage
    steps: Int[Array, " L"]  # of the stage
    held: Any  # [L, ...], of what differs between clients
    of_stage: Any
    carry: Any
    next: Int[Array, ""]  # the client that nobody has taken yet
    out: Any  # [K, ...]: the carries of the clients that have ended


def _in_lanes(work: Work, lanes: int, k: int, batched: Any, held: Held, rows: Rows, carry: Any) -> Any:
    """`work` of k clients; `batched` says which leaves of held, rows and carry have them as first axis."""
    held_batched, rows_batched, carry_batched = batched
    held_axes = jax.tree.map(lambda batched: 0 if batched else None, held_batched)

    def of(each: Any, batched: Any, clients: Int[Array, " L"]) -> Any:
        """What these clients have."""

        def one(leaf: Array, batched: bool) -> Array:
            return jnp.take(leaf, clients, axis=0, mode="clip") if batched else leaf

        return jax.tree.map(one, each, batched)

    def begin(held: Held, stage: Int[Array, ""], carry: Any) -> tuple[Any, Any, Int[Array, ""]]:
        carry, of_stage, number = work.begin(held, stage, carry)
        return carry, of_stage, number.astype(jnp.int32)

    def one_step(client: Int[Array, ""], held: Held, of_stage: Any, i: Int[Array, ""], carry: Any) -> Any:
        def read(index: Int[Array, " B"]) -> Any:
            def one(leaf: Array, batched: bool) -> Array:
                # Straight from all clients' rows: a lane never copies those of its client.
                return leaf[client, index] if batched else jnp.take(leaf, index, axis=0)

            return jax.tree.map(one, rows, rows_batched)

        return work.step(held, read, of_stage, i, carry)

    stages = jax.vmap(lambda held: jnp.asarray(work.stages(held), jnp.int32), in_axes=(held_axes,), axis_size=lanes)
    begin_all = jax.vmap(begin, in_axes=(held_axes, 0, 0))
    step_all = jax.vmap(one_step, in_axes=(0, held_axes, 0, 0, 0))

    def over(state: _Lanes) -> Array:
        return (state.client < k) & (state.step >= state.steps)

    def turn(state: _Lanes) -> _Lanes:
        """The lanes whose stage is over begin the next one, of their next client where it was the last."""
        ended = over(state) & (state.stages >= stages(state.held))
        places = jnp.where(ended, state.client, k)
        out = jax.tree.map(lambda all, some: all.at[places].set(some, mode="drop"), state.out, state.carry)
        taken = jnp.cumsum(ended, dtype=jnp.int32)
        client = jnp.where(ended, jnp.minimum(state.next + taken - 1, k), state.client)
        # Leaves that are the same for all clients stay as they are.
        held_now = jax.tree.map(
            lambda new, old, batched: _where(ended, new, old) if batched else old,
            of(held, held_batched, client), state.held, held_batched,
        )  # fmt: skip
        carry_now = jax.tree.map(
            lambda new, old: _where(ended, jnp.broadcast_to(new, old.shape), old),
            of(carry, carry_batched, client), state.carry,
        )  # fmt: skip
        begun = jnp.where(ended, 0, state.stages)
        starts = (client < k) & over(state) & (begun < stages(held_now))
        carry_then, of_stage, steps = begin_all(held_now, begun, carry_now)
        return _Lanes(
            client,
            begun + starts.astype(jnp.int32),
            jnp.where(starts | ended, 0, state.step),
            jnp.where(starts, steps, jnp.where(ended, 0, state.steps)),
            held_now,
            _where_all(starts, of_stage, state.of_stage),
            _where_all(starts, carry_then, carry_now),
            state.next + taken[-1],
            out,
        )

    def turns(state: _Lanes) -> _Lanes:
        return jax.lax.while_loop(lambda state: jnp.any(over(state)), turn, state)

    def all_step(state: _Lanes) -> _Lanes:
        carry = step_all(state.client, state.held, state.of_stage, state.step, state.carry)
        return turns(state._replace(step=state.step + 1, carry=carry))

    client = jnp.arange(lanes, dtype=jnp.int32)
    zeros = jnp.zeros((lanes,), jnp.int32)
    first = jax.tree.map(
        lambda leaf, batched: leaf if batched else jnp.broadcast_to(leaf, (lanes, *leaf.shape)),
        of(carry, carry_batched, client), carry_batched,
    )  # fmt: skip
    held_first = of(held, held_batched, client)
    of_stage = begin_all(held_first, zeros, first)[1]  # of these shapes
    out = jax.tree.map(lambda leaf: jnp.zeros((k, *leaf.shape[1:]), leaf.dtype), first)
    state = _Lanes(client, zeros, zeros, zeros, held_first, of_stage, first, jnp.asarray(lanes, jnp.int32), out)
    return jax.lax.while_loop(lambda state: jnp.any(state.client < k), all_step, turns(state)).out


def _where(chosen: Array, new: Array, old: Array) -> Array:
    return jnp.where(jnp.reshape(chosen, chosen.shape + (1,) * (new.ndim - 1)), new, old)


def _where_all(chosen: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: _where(chosen, new, old), new, old)


def hoist(function: Callable[..., Any], lanes: int | None, *args: Any) -> tuple[Callable[..., Any], list[Any]]:
    """`function` with what it closes over given as its first argument: (of (closed over, *args), closed over).

    Args:
        lanes: as for `work`; None: nothing is taken out, since no client is changed for another within the loop.
        args: any arguments of the shapes that it will be called with.
    """
    if lanes is None:
        return lambda _, *args: function(*args), []
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    structure = jax.tree.structure(shapes)

    def hoisted(closed_over: list[Any], *args: Any) -> Any:
        flat = jaxpr_as_fun(ClosedJaxpr(jaxpr.jaxpr, closed_over))
        return jax.tree.unflatten(structure, flat(*jax.tree.leaves(args)))

    return hoisted, jaxpr.consts


def executed(steps: Sequence[int] | np.ndarray, lanes: int) -> int:
    """Steps that so many lanes execute for clients that need `steps` [K], in this order: lanes x the steps of the longest."""
    busy = [0] * min(lanes, max(1, len(steps)))
    for each in steps:
        heapq.heapreplace(busy, busy[0] + int(each))
    return len(busy) * max(busy)


def number(cohorts: Sequence[np.ndarray], at_least: float = 0.9) -> int:
    """The most lanes that are busy for `at_least` of the steps they execute, over cohorts that need such steps [K].

    More lanes than that end hardly sooner, since the largest client's steps come one after the other in any case; fewer
    leave the device with less to do at a time.
    """
    useful = sum(int(steps.sum()) for steps in cohorts)
    most = max([1, *map(len, cohorts)])
    some = np.unique([*np.geomspace(1, most, 100).astype(int), most])
    busy = [int(lanes) for lanes in some if useful >= at_least * sum(executed(s, lanes) for s in cohorts)]
    return max(busy, default=1)
