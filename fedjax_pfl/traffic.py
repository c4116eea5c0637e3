"""What a round's messages cost, counted from the pytrees that are exchanged."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_pfl import tree
from fedjax_pfl.core import Algorithm, Cohort, Exchange, Part, State, parts_of


class Traffic(NamedTuple):
    """Bytes of the messages of one round, for each client of the cohort on average."""

    down: float  # from the server
    up: float


def of(algorithm: Algorithm, state: State, cohort: Cohort) -> Traffic:
    """Of a round with such a cohort, as the exchanges stand: also where a method pauses some of them in some rounds.

    Counted where local training is traced, not run: a part of a download that nothing reads doesn't travel, nor a part of an
    upload that is the download's own, such as what `core.compose(keep=...)` names.
    """
    if algorithm.traffic is not None:
        return algorithm.traffic(state, cohort)
    down = up = 0
    for exchange in algorithm.exchanges:
        for i, number in enumerate(_participants(exchange, state, cohort)):
            one_down, one_up = _of_one(exchange, i, state, cohort)
            down, up = down + number * one_down, up + number * one_up
    clients = max(1, int(jnp.sum(cohort.data.count > 0)))
    return Traffic(down / clients, up / clients)


def _participants(exchange: Exchange, state: State, cohort: Cohort) -> list[int]:
    """How many clients of each group (or of all) take part."""

    def count(state: State, cohort: Cohort) -> list[Any]:
        parts = parts_of(exchange, state.clients, exchange.select(cohort))
        return [jnp.sum(part.cohort.data.count > 0) for part in parts]

    return [int(number) for number in jax.jit(count)(state, cohort)]


def _of_one(exchange: Exchange, i: int, state: State, cohort: Cohort) -> tuple[int, int]:
    """Bytes that one client of the i-th group gets and sends."""

    def arguments(state: State, cohort: Cohort) -> Any:
        """Of its local update."""
        part: Part = parts_of(exchange, state.clients, exchange.select(cohort))[i]
        id, row, data = jax.tree.map(lambda leaf: leaf[0], (part.cohort.ids, part.rows, part.cohort.data))
        data, client = data._replace(round=state.round), tree.take(part.clients, row)
        return exchange.download(state.server, id), client, data, state.round, jax.random.key(0)

    local_update = exchange.groups[i].local_update if exchange.groups else exchange.local_update
    shapes = jax.eval_shape(arguments, state, cohort)
    closed, (upload, *_) = jax.make_jaxpr(local_update, return_shape=True)(*shapes)
    program, n = closed.jaxpr, len(jax.tree.leaves(upload))
    came = {id(var): var for var in program.invars[: len(jax.tree.leaves(shapes[0]))]}
    goes = {id(var): var for var in program.outvars[:n]}
    read = {id(var) for equation in program.eqns for var in equation.invars} | set(map(id, program.outvars[n:]))
    down = sum(_nbytes(var) for key, var in came.items() if key in read)
    return down, sum(_nbytes(var) for key, var in goes.items() if key not in came)


def _nbytes(var: Any) -> int:
    return math.prod(var.aval.shape) * var.aval.dtype.itemsize
