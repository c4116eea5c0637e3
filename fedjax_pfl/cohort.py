"""Who takes part in a round and with which examples: sampling on the host, rows gathered on the device."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from fedjax_pfl import hosts, lanes
from fedjax_pfl.core import CLIENTS, NOWHERE, ClientData, Cohort, How, Sharded, at_once, number_of_lanes
from fedjax_pfl.data.lazy import H5Images
from fedjax_pfl.errors import UserError, nearest

SAMPLINGS = ("all", "uniform", "by_size", "by_probability", "fixed")


class Sampler:
    """Draws the clients of round r from (seed, r) alone, so that a resumed run draws the same ones.

    Args:
        sizes: [N] training examples of each client. Clients without any never take part.
        sampling: 'all'; 'uniform', without replacement; 'by_size', the same with probability proportional to the number
            of examples; 'by_probability', the same with the given `probability`; 'fixed', the given `ids`.
        size: clients per round; 0: `fraction` of the clients, at least 1.
        drop_out: probability that a client trains but its upload is lost.
        seed: the config's.

    Raises:
        UserError: values that can't be sampled with.
    """

    def __init__(
        self,
        sizes: Sequence[int] | np.ndarray,
        *,
        sampling: str = "all",
        size: int = 0,
        fraction: float = 1.0,
        probability: Sequence[float] = (),
        ids: Sequence[int] = (),
        drop_out: float = 0.0,
        seed: int = 0,
    ) -> None:
        n = len(sizes)
        eligible = np.flatnonzero(np.asarray(sizes) > 0)
        if sampling not in SAMPLINGS:
            raise UserError(f"config.cohort.sampling: unknown name '{sampling}'{nearest(sampling, SAMPLINGS)}")
        if not 0 <= drop_out < 1:
            raise UserError(f"config.cohort.drop_out: found {drop_out}, expected 0 <= drop_out < 1")
        if not 0 < fraction <= 1:
            raise UserError(f"config.cohort.fraction: found {fraction}, expected 0 < fraction <= 1")
        if sampling == "by_probability" and (len(probability) != n or min(probability) < 0 or sum(probability) <= 0):
            raise UserError(f"config.cohort.probability: found {tuple(probability)}, expected {n} numbers >= 0")
        if sampling == "fixed":
            if not ids or not set(ids) <= set(range(n)) or len(set(ids)) != len(ids):
                raise UserError(
                    f"config.cohort.ids: found {tuple(ids)}, expected different client numbers 0 to {n - 1}"
                )
            eligible = np.intersect1d(eligible, ids)
        weight = {"by_size": sizes, "by_probability": probability}.get(sampling, np.ones(n))
        weight = np.asarray(weight, np.float64)[eligible]
        self.eligible, self.probability = eligible[weight > 0], weight[weight > 0] / weight.sum()
        whole = sampling in ("all", "fixed")
        self.size = len(self.eligible) if whole else size or max(1, int(fraction * len(self.eligible)))
        if not 0 < self.size <= len(self.eligible):
            raise UserError(
                f"config.cohort.size: found {self.size} clients a round, expected 1 to {len(self.eligible)}, "
                "the clients that can take part"
            )
        self.sizes, self.drop_out, self.seed = np.asarray(sizes), drop_out, seed

    def __call__(self, round: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids [m] int32 of the clients of a round, ascending, and whether each one's upload is lost [m] bool."""
        rng = np.random.default_rng([self.seed, 1, round])
        if self.size == len(self.eligible):
            ids = self.eligible
        else:
            ids = np.sort(rng.choice(self.eligible, self.size, replace=False, p=self.probability))
        return ids.astype(np.int32), rng.random(len(ids)) < self.drop_out


class Pool:
    """All rows of a data set: on the device, or on the host or in their file where they are too large for it.

    Args:
        x, y: [n, ...], as stored.
        resident: keep them on the device ('auto': up to 2 GiB, and never images in a file). Otherwise what is asked for
            is copied there each time.
    """

    RESIDENT_BYTES = 2 * 2**30

    def __init__(self, x: np.ndarray | H5Images, y: np.ndarray, resident: str | bool = "auto") -> None:
        self.y = y
        self.row_bytes = max(1, x.nbytes // max(1, len(x)))
        in_memory = isinstance(x, np.ndarray)
        self.resident = in_memory and x.nbytes <= self.RESIDENT_BYTES if resident == "auto" else bool(resident)
        self._arrays = jax.device_put((x[:], y)) if self.resident else (x, y)
        self._gather = jax.jit(lambda arrays, rows: tuple(jnp.take(a, rows, axis=0) for a in arrays))

    def take(self, rows: np.ndarray) -> tuple[Array, Array]:
        """Rows [K, n_max] int32 of x and y, on the device."""
        if self.resident:
            return self._gather(self._arrays, jnp.asarray(rows))
        x, y = (jnp.asarray(a[rows]) for a in self._arrays)
        return x, y


class Rows:
    """Which rows of a pool each client has, in one split of its data.

    From a resident pool every client is padded to `n_max` rows, so that all cohorts have one shape. From any other the
    clients asked for are padded to the largest of themselves, rounded up to a power of two: the memory follows the
    cohort, not the largest client of the population, and there are a dozen shapes at most.

    Args:
        index: for each of the N clients its row numbers.
        noise: [N] standard deviation of each client's input noise.
        n_max: the most rows that a client is padded to; 0: as many as the largest has.
    """

    def __init__(
        self, pool: Pool, index: Sequence[np.ndarray], noise: np.ndarray | None = None, n_max: int = 0
    ) -> None:
        self.pool, self._index, self.n = pool, index, len(index)
        self.counts = np.array([len(rows) for rows in index], np.int32)
        self.n_max = n_max or max(1, int(self.counts.max(initial=0)))
        self.shared = self.n > 1 and all(rows is index[0] for rows in index)  # everybody has the same rows
        self._noise = np.zeros(self.n, np.float32) if noise is None else np.asarray(noise, np.float32)
        self._always = pool.resident  # padded to n_max
        self._last: tuple[tuple[bytes, bytes, int], ClientData] | None = None

    def pad_to(self, n_max: int) -> None:
        """From now on pad every client to so many rows, whatever the pool."""
        self.n_max, self._always = n_max, True

    def index(self, id: int) -> np.ndarray:
        """Which rows [count] of the pool one client has."""
        return self._index[id]

    def targets(self, id: int) -> np.ndarray:
        """The targets [count, ...] of one client, on the host."""
        return np.asarray(self.pool.y[self._index[id]])

    def __call__(
        self, ids: np.ndarray, among: np.ndarray | None = None, *, starts: np.ndarray | None = None, most: int = 0
    ) -> ClientData:
        """The examples of the given clients, [K, n_max, ...]; an id of N or more has none.

        They are padded as those of `among` together would be (None: as they themselves).

        Args:
            starts: [K] the first row to give of each client (None: all its rows).
            most: rows of each at most (0: all).
        """
        ids = np.asarray(ids, np.int32)
        starts = np.zeros(len(ids), np.int32) if starts is None else starts
        n_max = self._padded(ids if among is None else among)
        n_max = min(n_max, most or n_max)
        asked = (ids.tobytes(), starts.tobytes(), n_max)
        if self._last is not None and self._last[0] == asked:
            return self._last[1]  # a cohort of all clients is gathered once
        rows = np.zeros((len(ids), n_max), np.int32)
        counts = np.zeros(len(ids), np.int32)
        noise = np.zeros(len(ids), np.float32)
        for k, (id, start) in enumerate(zip(ids, starts, strict=True)):
            if id < self.n:
                some = self._index[id][start : start + n_max]
                counts[k], noise[k], rows[k, : len(some)] = len(some), self._noise[id], some
        data = ClientData(jnp.asarray(ids), jnp.asarray(counts), *self.pool.take(rows), jnp.asarray(noise))
        self._last = (asked, data)
        return data

    def _padded(self, ids: np.ndarray) -> int:
        """The rows that each of these clients is padded to."""
        if self._always:
            return self.n_max
        largest = int(self.counts[ids[ids < self.n]].max(initial=1))
        return min(1 << (largest - 1).bit_length(), self.n_max)


def assemble(
    rows: Rows,
    ids: np.ndarray,
    lost: np.ndarray | None = None,
    how: How = "auto",
    validation: Rows | None = None,
    stored: bool = False,
    among: np.ndarray | None = None,
) -> Cohort:
    """The cohort of these clients: the largest first, so that a chunk's lanes are even, and padded to whole chunks.

    Args:
        how: see `core.client_map`. Chunks are dealt to several devices in turn, so that each has large and small clients.
        validation: adds these rows of each client, for rounds that score models.
        stored: the round gets the states of this cohort alone, in its order (see `store`).
        among: clients are padded as these together would be (None: as those of the cohort).
    """
    chunk, devices = (_chunk(how.how), how.mesh.size) if isinstance(how, Sharded) else (_chunk(how), 1)
    order = np.argsort(-rows.counts[ids], kind="stable")
    ids, lost = ids[order], np.zeros(len(ids), bool) if lost is None else lost[order]
    weight = np.where(lost, 0, rows.counts[ids]).astype(np.float32)
    padding = -len(ids) % (chunk * devices)
    ids = np.concatenate([ids, np.full(padding, rows.n)]).astype(np.int32)
    weight = np.concatenate([weight, np.zeros(padding, np.float32)])
    order = np.arange(len(ids)).reshape(-1, devices, chunk).swapaxes(0, 1).reshape(-1)
    ids, weight = ids[order], weight[order]
    mine = of_this_host(len(ids), how)  # a host reads the examples of its own clients alone
    among = ids if among is None else among
    data = rows(ids[mine], among)
    if validation is not None:
        data = data._replace(validation=validation(ids[mine], among))
    places = jnp.asarray(np.where(ids < rows.n, np.arange(len(ids), dtype=np.int32), NOWHERE)[mine]) if stored else ()
    cohort = Cohort(jnp.asarray(ids[mine]), jnp.asarray(weight[mine]), data, places)
    return dealt(cohort, how)


def dealt(rows: Any, how: How) -> Any:
    """What each host has of the clients (the first axis), as arrays over all hosts."""
    if not (isinstance(how, Sharded) and hosts.several()):
        return rows
    return hosts.spread(rows, NamedSharding(how.mesh, PartitionSpec(CLIENTS)))


def executed(steps: np.ndarray, how: How) -> int:
    """Local steps that a cohort takes where its clients need `steps` [K]: who runs together takes as long as the longest."""
    parts = np.array_split(steps, how.mesh.size) if isinstance(how, Sharded) else [steps]
    if in_lanes := number_of_lanes(how):
        return sum(lanes.executed(part, in_lanes) for part in parts)
    together = at_once(how.how if isinstance(how, Sharded) else how)
    total = 0
    for part in parts:
        size = together or max(1, len(part))
        chunks = np.concatenate([part, np.zeros(-len(part) % size, part.dtype)]).reshape(-1, size)
        total += size * int(chunks.max(axis=1, initial=0).sum())
    return total


def of_this_host(rows: int, how: How) -> slice:
    """Which of a cohort's rows this host's devices have; the mesh names the devices host by host."""
    if not (isinstance(how, Sharded) and hosts.several()):
        return slice(rows)
    each = rows // how.mesh.size
    mine = [i for i, device in enumerate(how.mesh.devices.flat) if device.process_index == jax.process_index()]
    return slice(mine[0] * each, (mine[-1] + 1) * each)


def _chunk(how: Any) -> int:
    """The number of clients that run together under `core.client_map(how=...)`, of which a cohort is a multiple."""
    return int(how) if str(how).isdigit() else 1
