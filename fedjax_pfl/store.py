"""The clients' states where they don't fit on the device: in the host's memory, or in files mapped into it.

A `Store` stands in `State.clients` between rounds. A round gets the rows of its cohort alone, [K, ...], with `Cohort.rows`
saying whose is whose, and they are put back after it: so the device's memory follows the cohort.
"""

import math
import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fedjax_pfl import tree
from fedjax_pfl.core import Algorithm, Client, Cohort, State, Variables

First = Callable[[Int[Array, " K"]], Client]


class Saved(NamedTuple):
    """What a checkpoint holds of a store: the clients that ever took part; the others are as they began."""

    ids: np.ndarray  # [T] int32, ascending
    states: Any  # leaves [T, ...]


class Store:
    """The states of N clients. Only those that were ever put take memory.

    Args:
        n: the number of clients N.
        first: the initial states of clients [K], leaves [K, ...].
        folder: where the files are, which no name shows and which vanish with the process; None: in memory.
    """

    def __init__(self, n: int, first: First, folder: Path | None = None) -> None:
        self.n, self._first, self._folder = n, first, folder
        shapes = jax.eval_shape(first, jax.ShapeDtypeStruct((n,), np.int32))
        self._stacked = jax.tree.map(lambda leaf: _empty(leaf.shape, leaf.dtype, folder), shapes)
        self._put = np.zeros(n, bool)

    def take(self, ids: np.ndarray) -> Client:
        """Copies of the states of these clients, leaves [K, ...] on the host; an id of N or more (padding) gets any."""
        ids = np.minimum(np.asarray(ids, np.int32), self.n - 1)
        put = self._put[ids]

        def rows(first: Array, stacked: np.ndarray) -> np.ndarray:
            mine = np.array(first)
            mine[put] = stacked[ids[put]]
            return mine

        if put.all():
            return jax.tree.map(lambda stacked: stacked[ids], self._stacked)
        return jax.tree.map(rows, jax.device_get(self._first(jnp.asarray(ids))), self._stacked)

    def put(self, ids: np.ndarray, states: Client) -> None:
        """Keep these states [K, ...]; those of padding are dropped."""
        real = np.asarray(ids) < self.n
        ids = np.asarray(ids)[real]
        for stacked, rows in zip(jax.tree.leaves(self._stacked), jax.tree.leaves(states), strict=True):
            stacked[ids] = np.asarray(rows)[real]
        self._put[ids] = True

    def saved(self) -> Saved:
        """Copies of what was put, in memory or on the disk as this is."""
        ids = np.flatnonzero(self._put).astype(np.int32)

        def copy(stacked: np.ndarray) -> np.ndarray:
            room = _empty((len(ids), *stacked.shape[1:]), stacked.dtype, self._folder)
            return np.take(stacked, ids, axis=0, out=room, mode="clip")  # any other mode makes one more copy

        return Saved(ids, jax.tree.map(copy, self._stacked))

    def like(self, clients: int) -> Saved:
        """The shapes and dtypes of what so many clients' states are saved as."""
        shapes = jax.tree.map(lambda leaf: np.empty((clients, *leaf.shape[1:]), leaf.dtype), self._stacked)
        return Saved(np.empty(clients, np.int32), shapes)

    def filled(self, saved: Saved) -> "Store":
        """A new store, in which only this was put."""
        store = Store(self.n, self._first, self._folder)
        store.put(saved.ids, saved.states)
        return store


class Clients:
    """Lends a `Store`'s states to one cohort after the other; without a store, states stay where they are."""

    def __init__(self, stored: Store | None) -> None:
        self._store, self._lent, self._read = stored, np.zeros(0, np.int32), (np.zeros(0, np.int32), ())

    def read(self, some: Cohort) -> None:
        """Read the states of the cohort that comes next, while another one's may be out."""
        if self._store is not None:
            ids = np.asarray(some.ids)
            self._read = ids, self._store.take(ids)

    def of_cohort(self, state: State) -> State:
        """The state with what was read last, for the round of that cohort."""
        if self._store is None:
            return state
        self._lent, states = self._read
        return state._replace(clients=states)

    def put_back(self, state: State) -> State:
        """The state with the store again, and in it what the round made of the states that were lent."""
        if self._store is None:
            return state
        self._store.put(self._lent, jax.device_get(state.clients))
        ids, states = self._read
        again = np.isin(ids, self._lent)  # read before the round ended
        if again.any():
            newer = self._store.take(ids[again])
            for old, new in zip(jax.tree.leaves(states), jax.tree.leaves(newer), strict=True):
                old[again] = new
        return state._replace(clients=self._store)


def init(algorithm: Algorithm, variables: Variables, n: int, folder: Path | None) -> State:
    """`algorithm.init(variables, n)` with the clients' states in a store, if clients keep any.

    The states of all clients are never made: under `jit` only those asked for are.
    """
    state = jax.jit(lambda variables: algorithm.init(variables, n)._replace(clients=()))(variables)
    if not jax.tree.leaves(jax.eval_shape(lambda: algorithm.init(variables, n).clients)):
        return state
    first = jax.jit(lambda variables, ids: tree.take(algorithm.init(variables, n).clients, ids))
    return state._replace(clients=Store(n, lambda ids: first(variables, ids), folder))


def take(clients: Any, ids: np.ndarray) -> Client:
    """The states of these clients, leaves [K, ...], out of a store or a stack."""
    return clients.take(ids) if isinstance(clients, Store) else tree.take(clients, jnp.asarray(ids))


def _empty(shape: tuple[int, ...], dtype: Any, folder: Path | None) -> np.ndarray:
    """Room that takes memory, or space on the disk, only where it is written to."""
    if 0 in shape:
        return np.empty(shape, dtype)
    if folder is None:  # not np.empty, which asks for pages of 2 MiB
        memory = mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        return np.frombuffer(memory, dtype).reshape(shape)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)
