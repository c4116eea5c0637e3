"""Every client's model on its own data: scores on the device, metrics per client on the host."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from fedjax_pfl import compiler, hosts, local, metrics, store, tree
from fedjax_pfl.cohort import Rows, dealt, of_this_host
from fedjax_pfl.core import Algorithm, Client, ClientData, How, Sharded, State, Variables, client_map, everywhere
from fedjax_pfl.local import Training
from fedjax_pfl.models.ctran import UNKNOWN
from fedjax_pfl.problem import Problem

T = TypeVar("T")
POOLED = ("single", "multi")  # tasks whose metrics are also computed on the rows of all clients together
MOST_NAMED = 1000  # clients with a key of their own, where one model on one test set makes all their values equal


class Candidate(NamedTuple):
    """A kind of model to evaluate."""

    # Of ONE client, given its own state, its data and the evaluation's key.
    model: Callable[[State, Client, ClientData, Key[Array, ""]], Variables]
    trains: bool = False  # whether it reads the client's training data (else it gets the data to be scored)
    shared: bool = False  # whether all clients have one and the same


class Known(NamedTuple):
    """Labels that a label-mask model is told when it is tested (C-Tran's inference with partial labels)."""

    number: int = 0  # so many of each example's labels, drawn by the example's row
    labels: tuple[int, ...] = ()  # or these, in every example
    seed: int = 0

    def states(self, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """States [m, C] int8 of the targets y [m, C] of these rows [m] of the pool."""
        known = np.zeros(y.shape, bool)
        known[:, list(self.labels)] = True
        for i, row in enumerate(rows if self.number else ()):
            rng = np.random.default_rng([self.seed, 3, int(row)])
            known[i, rng.choice(y.shape[1], self.number, replace=False)] = True
        return np.where(known, y, UNKNOWN).astype(np.int8)


class Scores(NamedTuple):
    """What a model says of one client's rows."""

    id: int
    logits: Any  # [m, ...]; of masks `metrics.Masks`, a byte a pixel in place of C floats
    y: np.ndarray  # [m, ...]
    unknown: np.ndarray | None  # [m, C] the labels that the model was not told; None: it was told none


def candidates(algorithm: Algorithm, training: Training, tune_epochs: int = 0) -> dict[str, Candidate]:
    """The models that an algorithm offers.

    personal: what the client would use now, adapted to its training data where the method does so. global: the one model for
    everybody, where the method has one. shared: the model that travels, where clients use another and it differs from client
    to client (PRR-FL's deputies). tuned: the personal model after `tune_epochs` (0: training.epochs) more of local training
    at the round's learning rate; personal against tuned is 'before and after local training', whose difference is what a
    communication takes away (retrogress). It isn't there where models have several architectures.
    """
    adapt = algorithm.adapt

    def personal(state: State, client: Client, data: ClientData, key: Key[Array, ""]) -> Variables:
        variables = algorithm.client_model(state.server, client, data.id)
        return variables if adapt is None else adapt(variables, data, jax.random.fold_in(key, data.id))

    def tuned(state: State, client: Client, data: ClientData, key: Key[Array, ""]) -> Variables:
        tx = training.optimizer(training.lr(state.round))
        key_client = jax.random.fold_in(key, data.id)
        data = data._replace(round=state.round)
        variables = personal(state, client, data, key)
        return local.train(training, tx, variables, data, key_client, epochs=tune_epochs or training.epochs)[0]

    found = {"personal": Candidate(personal, trains=adapt is not None)}
    if not training.groups:
        found["tuned"] = Candidate(tuned, trains=True)
    global_model = algorithm.global_model
    if global_model is not None:
        found["global"] = Candidate(lambda state, client, data, key: global_model(state.server), shared=True)
    shared_model = algorithm.shared_model
    if shared_model is not None and global_model is None:
        found["shared"] = Candidate(lambda state, client, data, key: shared_model(state.server, client, data.id))
    return found


class Evaluator:
    """Scores of each client's model on splits of its data, in groups of clients whose rows fit in memory together.

    Args:
        problem: whose `predict` gives the scores.
        task, client_names: for the metrics and their keys.
        splits: split name ('train' among them, for models that tune themselves) -> the rows of each client.
        how: see `core.client_map`.
        key: for noise and for models that are adapted; an argument of the compiled programs, so that they are those of other
            seeds, too.
        groups: where clients' models are of several architectures: the problem of each, and its members.
    """

    GROUP_BYTES = 256 * 2**20  # of rows that are scored together; as much is read meanwhile

    def __init__(
        self,
        problem: Problem,
        task: str,
        client_names: Sequence[str],
        splits: Mapping[str, Rows],
        *,
        batch_size: int = 256,
        how: How = "auto",
        key: Key[Array, ""],
        groups: Sequence[tuple[Problem, tuple[int, ...]]] = (),
    ) -> None:
        self._problem, self._task, self._names = problem, task, tuple(client_names)
        self._splits, self._how, self._key = dict(splits), how, key
        self._batch_size = batch_size
        self._compiled: dict[Candidate, Callable[..., Any]] = {}
        self._rows_of: dict[int, int] = {}  # of the clients' state, by a client's number, where it isn't that
        self._groups: list[Evaluator] = []
        for one, members in groups:
            each = Evaluator(one, task, client_names, splits, batch_size=batch_size, how=how, key=key)
            each._rows_of = {id: row for row, id in enumerate(members)}
            self._groups.append(each)

    def pad_as(self, others: Sequence["Evaluator"]) -> None:
        """From now on pad as these do, this one among them: what scores the same model is the same program for all."""
        for split, rows in self._splits.items():
            if rows.pool.resident:  # streamed clients are padded to powers of two
                rows.pad_to(max(other._splits[split].n_max for other in others))

    def __call__(
        self,
        candidate: Candidate,
        state: State,
        split: str,
        ids: np.ndarray,
        new_client: Client | None = None,
        known: Known | None = None,
    ) -> dict[str, float | None]:
        """Flat keys `<metric>`, `<metric>/worst`, `<metric>/client/<name>` ... of one model on one split.

        See `metrics.summarise` for the keys; `<metric>/pooled` is of the rows of all clients together. Clients without
        rows in the split are left out. One model for all on one test set for all is scored once.

        Args:
            ids: the clients to evaluate.
            new_client: the state of one client that never trained, used for all `ids`; None: each has its own in `state`.
            known: labels that a label-mask model is told; they don't count in the metrics.
        """
        rows = self._splits[split]
        ids = np.asarray([id for id in ids if rows.counts[id] > 0], np.int32)
        alike = candidate.shared and rows.shared and len(ids) > 1
        scored = list(self.scores(candidate, state, split, ids[:1] if alike else ids, new_client, known))
        per_client = {self._names[each.id]: self._metrics(each) for each in scored}
        if alike:
            (values,) = per_client.values()
            per_client = {self._names[id]: values for id in ids[:MOST_NAMED]}
        sizes = dict(zip(self._names, map(int, rows.counts), strict=False))
        found = metrics.summarise(per_client, sizes)
        if alike and len(ids) > MOST_NAMED:
            found = {key: value for key, value in found.items() if "/client/" not in key}
        if scored and self._task in POOLED:
            values = self._metrics(pool(scored)) if len(scored) > 1 else self._metrics(scored[0])
            found |= {f"{name}/pooled": value if np.isfinite(value) else None for name, value in values.items()}
        return found

    def _metrics(self, scores: Scores) -> metrics.Metrics:
        told = {} if scores.unknown is None else {"unknown": scores.unknown}
        return metrics.for_task(self._task)(scores.logits, scores.y, **told)

    def scores(
        self,
        candidate: Candidate,
        state: State,
        split: str,
        ids: np.ndarray,
        new_client: Client | None = None,
        known: Known | None = None,
    ) -> Iterator[Scores]:
        """The scores of each of these clients, which all have rows in the split; arguments as in `__call__`."""
        if self._groups and not candidate.shared:  # what all share is of the server's architecture
            found = []
            for each, clients in zip(self._groups, state.clients, strict=True):
                mine = np.array([id for id in ids if int(id) in each._rows_of], np.int32)
                found += each.scores(candidate, state._replace(clients=clients), split, mine, new_client, known)
            yield from sorted(found, key=lambda scores: scores.id)
            return
        rows, devices = self._splits[split], self._how.mesh.size if isinstance(self._how, Sharded) else 1
        # Where devices outnumber clients they share a client's rows; a model that is trained first is trained once.
        size = self._rows_at_once(rows, 1 if candidate.trains else -(-devices // max(1, len(ids))))
        pieces = [(id, start) for id in map(int, ids) for start in range(0, int(rows.counts[id]), size)]
        group = max(1, min(self.GROUP_BYTES // (rows.pool.row_bytes * size), len(pieces)))
        group += -group % devices

        def dispatched() -> Iterator[tuple[list[tuple[int, int]], Any]]:
            for i in range(0, len(pieces), group):
                some = pieces[i : i + group]
                padded = some + [(rows.n, 0)] * (group - len(some))
                yield some, self._dispatch(candidate, state, rows, np.array(padded, np.int32), size, new_client, known)

        parts: list[Any] = []  # of the client whose rows are being scored
        for some, logits in _one_ahead(dispatched()):
            logits = jax.device_get(logits)
            for k, (id, start) in enumerate(some):
                count = min(size, int(rows.counts[id]) - start)
                parts.append(jax.tree.map(lambda leaf, k=k, count=count: leaf[k, :count], logits))
                if start + count == rows.counts[id]:
                    yield self._said(rows, id, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts), known)
                    parts.clear()

    def _rows_at_once(self, rows: Rows, parts: int) -> int:
        """How many rows of a client are scored together: of what fits in memory a whole number of batches, if it is one."""
        fit, share = max(1, self.GROUP_BYTES // rows.pool.row_bytes), -(-rows.n_max // parts)
        fit -= fit % self._batch_size if fit > self._batch_size else 0
        return min(fit, share + -share % self._batch_size, rows.n_max)

    def _dispatch(
        self,
        candidate: Candidate,
        state: State,
        rows: Rows,
        pieces: np.ndarray,
        size: int,
        new_client: Client | None,
        known: Known | None,
    ) -> Any:
        """What the model says of at most `size` rows of each of these [G, 2] (client, first row), [G, size, ...].

        Each host reads those that its devices score; all get all scores.
        """
        if candidate not in self._compiled:
            placed: dict[str, Any] = {}
            if isinstance(self._how, Sharded) and hosts.several():
                placed = {"out_shardings": NamedSharding(self._how.mesh, PartitionSpec())}
            self._compiled[candidate] = jax.jit(self._scorer(candidate), compiler_options=compiler.options(), **placed)
        theirs, places = self._clients(state, new_client, pieces[:, 0])
        mine = of_this_host(len(pieces), self._how)
        ids, starts = pieces[mine].T
        data = rows(ids, pieces[:, 0], starts=starts, most=size)
        train = self._splits["train"](ids, pieces[:, 0]) if candidate.trains else None
        states = None if known is None else self._states(rows, ids, starts, known, data.x.shape[1])
        of_clients = dealt((data, train, states, jnp.asarray(places[mine]), jnp.asarray(starts)), self._how)
        return self._compiled[candidate](theirs, *of_clients, self._key)

    def pooled(self, candidate: Candidate, state: State, split: str, ids: np.ndarray) -> Scores | None:
        """The scores of the rows of all these clients together (of a set that all share: once); None without rows."""
        rows = self._splits[split]
        ids = np.asarray([id for id in ids if rows.counts[id] > 0], np.int32)
        alike = candidate.shared and rows.shared
        scored = list(self.scores(candidate, state, split, ids[:1] if alike else ids))
        return pool(scored) if scored else None

    def example(
        self, candidate: Candidate, state: State, split: str, id: int, choose: Callable[[np.ndarray], int]
    ) -> tuple[np.ndarray, np.ndarray, Variables]:
        """One row of a client, as stored, its target and the client's model; `choose` names it by the client's targets."""
        state, rows = hosts.here(state), self._splits[split]
        row = rows.index(id)[choose(rows.targets(id))]
        one = np.array([id], np.int32)
        data = self._splits["train"](one) if candidate.trains else ClientData(jnp.asarray(one), *[jnp.zeros(1)] * 4)
        client, data = jax.tree.map(lambda leaf: leaf[0], (store.take(state.clients, one), data))
        variables = candidate.model(state, client, data, hosts.here(self._key))
        x, y = rows.pool.take(np.array([row]))
        return np.asarray(x[0]), np.asarray(y[0]), variables

    def _clients(self, state: State, new_client: Client | None, ids: np.ndarray) -> tuple[State, np.ndarray]:
        """A state that holds these clients' states, and which row is each one's [G] int32."""
        if new_client is not None:
            only = everywhere(tree.broadcast(new_client, 1), self._how)
            return state._replace(clients=only), np.zeros(len(ids), np.int32)
        if isinstance(state.clients, store.Store):
            return state._replace(clients=state.clients.take(ids)), np.arange(len(ids), dtype=np.int32)
        if self._rows_of:
            ids = np.array([self._rows_of.get(int(id), 0) for id in ids], np.int32)
        return state, ids

    def _said(self, rows: Rows, id: int, logits: Any, known: Known | None) -> Scores:
        y = rows.targets(id)
        unknown = None if known is None else known.states(y, rows.index(id)) == UNKNOWN
        return Scores(id, logits, y, unknown)

    def _states(self, rows: Rows, ids: np.ndarray, starts: np.ndarray, known: Known, size: int) -> Array:
        """[G, size, C] int8 states of rows starts ... starts + size of each client; padding is unknown."""
        labels = rows.pool.y.shape[1]
        states = np.full((len(ids), size, labels), UNKNOWN, np.int8)
        for k, (id, start) in enumerate(zip(ids, starts, strict=True)):
            if id < rows.n:
                index = rows.index(id)[start : start + size]
                states[k, : len(index)] = known.states(rows.pool.y[index], index)
        return jnp.asarray(states)

    def _scorer(self, candidate: Candidate) -> Callable[..., Any]:
        batch_size, predict = self._batch_size, self._problem.predict

        def said(variables: Variables, x: Array, y: Array, *more: Any, **told: Array) -> Any:
            logits = predict(variables, x, *more, **told)
            return metrics.masks(logits, y) if self._task == "mask" else logits

        def scores(
            state: State,
            data: ClientData,
            train: ClientData | None,
            states: Array | None,
            clients: Array,
            starts: Array,
            key: Array,
        ) -> Any:  # [G, n, ...]
            n_max = data.x.shape[1]
            size = min(batch_size, n_max)

            def one_client(
                state: State,
                key: Array,
                data: ClientData,
                train: ClientData,
                states: Array | None,
                client: Array,
                begin: Array,
            ) -> Any:
                variables = candidate.model(state, tree.take(state.clients, client), train, key)
                key = jax.random.fold_in(key, data.id)

                def batch(i: Array, out: Any) -> Any:
                    start = i * size
                    index = jnp.minimum(start + jnp.arange(size, dtype=start.dtype), n_max - 1)
                    told = {} if states is None else {"states": jnp.take(states, index, axis=0)}
                    x, y = jnp.take(data.x, index, axis=0), jnp.take(data.y, index, axis=0)
                    key_batch = jax.random.fold_in(key, begin // size + i)
                    some = said(variables, x, y, data.noise, key_batch, **told)
                    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
                    return jax.tree.map(put, out, some)

                shapes = jax.eval_shape(said, variables, data.x[:1], data.y[:1], data.noise, key)
                rows = n_max + -n_max % size
                out = jax.tree.map(lambda one: jnp.zeros((rows, *one.shape[1:]), one.dtype), shapes)
                out = jax.lax.fori_loop(0, -(-data.count // size), batch, out)
                return jax.tree.map(lambda leaf: leaf[:n_max], out)

            return client_map(one_client, self._how, (state, key))(
                data, data if train is None else train, states, clients, starts
            )

        return scores


def _one_ahead(these: Iterator[T]) -> Iterator[T]:
    """The same, each asked for before the one before it is given away: the device works on it meanwhile."""
    before = list(islice(these, 1))
    for one in these:
        yield before[0]
        before = [one]
    yield from before


def pool(scores: Sequence[Scores]) -> Scores:
    """The rows of all clients together."""
    unknown = [each.unknown for each in scores if each.unknown is not None]
    return Scores(
        -1,
        jax.tree.map(lambda *parts: np.concatenate(parts), *[each.logits for each in scores]),
        np.concatenate([each.y for each in scores]),
        np.concatenate(unknown) if unknown else None,
    )
