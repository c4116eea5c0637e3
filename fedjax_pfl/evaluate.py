"""Every client's model on its own data: scores on the device, metrics per client on the host."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fedjax_pfl import compiler, local, metrics, tree
from fedjax_pfl.cohort import Rows
from fedjax_pfl.core import Algorithm, Client, ClientData, How, State, Variables, client_map
from fedjax_pfl.local import Training
from fedjax_pfl.problem import Problem


class Candidate(NamedTuple):
    """A kind of model to evaluate."""

    model: Callable[[State, Client, ClientData], Variables]  # of ONE client, given its own state
    trains: bool = False  # whether it reads the client's training data (else it gets the data to be scored)


def candidates(
    algorithm: Algorithm, training: Training, key: Key[Array, ""], tune_epochs: int = 0
) -> dict[str, Candidate]:
    """The models that an algorithm offers.

    personal: what the client would use now. global: the one model for everybody, where the method has one. tuned: the
    personal model after `tune_epochs` (0: training.epochs) more of local training at the round's learning rate; personal
    against tuned is 'before and after local training', whose difference is what a communication takes away (retrogress).
    """

    def personal(state: State, client: Client, data: ClientData) -> Variables:
        return algorithm.client_model(state.server, client, data.id)

    def tuned(state: State, client: Client, data: ClientData) -> Variables:
        tx = training.optimizer(training.lr(state.round))
        key_client = jax.random.fold_in(key, data.id)
        variables = personal(state, client, data)
        return local.train(training, tx, variables, data, key_client, epochs=tune_epochs or training.epochs)[0]

    found = {"personal": Candidate(personal), "tuned": Candidate(tuned, trains=True)}
    global_model = algorithm.global_model
    if global_model is not None:
        found["global"] = Candidate(lambda state, client, data: global_model(state.server))
    return found


class Evaluator:
    """Scores of each client's model on splits of its data, in groups of clients whose rows fit in memory together.

    Args:
        problem: whose `predict` gives the scores.
        task, client_names: for the metrics and their keys.
        splits: split name ('train' among them, for models that tune themselves) -> the rows of each client.
        how: see `core.client_map`.
    """

    GROUP_BYTES = 256 * 2**20

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
    ) -> None:
        self._problem, self._task, self._names = problem, task, tuple(client_names)
        self._splits, self._how, self._key = dict(splits), how, key
        self._batch_size = min(batch_size, max(rows.n_max for rows in self._splits.values()))
        self._compiled: dict[tuple[Candidate, bool], Callable[..., Any]] = {}

    def __call__(
        self, candidate: Candidate, state: State, split: str, ids: np.ndarray, new_client: Client | None = None
    ) -> dict[str, float | None]:
        """Flat keys `<metric>`, `<metric>/worst`, `<metric>/client/<name>` ... of one model on one split.

        See `metrics.summarise` for the keys. Clients without rows in the split are left out.

        Args:
            ids: the clients to evaluate.
            new_client: the state of one client that never trained, used for all `ids`; None: each has its own in `state`.
        """
        rows = self._splits[split]
        ids = np.asarray([id for id in ids if rows.counts[id] > 0], np.int32)
        metric = metrics.for_task(self._task)
        per_client = {
            self._names[id]: metric(scores, rows.targets(id))
            for id, scores in self._scores(candidate, state, rows, ids, new_client)
        }
        return metrics.summarise(per_client, {self._names[id]: int(rows.counts[id]) for id in ids})

    def _scores(
        self, candidate: Candidate, state: State, rows: Rows, ids: np.ndarray, new_client: Client | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(id, logits [count, ...]) for each of the clients, a group of equal shape at a time."""
        group = int(np.clip(self.GROUP_BYTES // (rows.pool.row_bytes * rows.n_max), 1, max(1, len(ids))))
        own_state = new_client is None
        scorer = jax.jit(self._scorer(candidate, own_state), compiler_options=compiler.options())
        compiled = self._compiled.setdefault((candidate, own_state), scorer)
        clients = state.clients if own_state else new_client
        for start in range(0, len(ids), group):
            some = ids[start : start + group]
            padded = np.concatenate([some, np.full(group - len(some), rows.n)]).astype(np.int32)
            train = self._splits["train"](padded) if candidate.trains else None
            scores = np.asarray(compiled(state._replace(clients=clients), rows(padded), train))
            for k, id in enumerate(some):
                yield int(id), scores[k, : rows.counts[id]]

    def _scorer(self, candidate: Candidate, own_state: bool) -> Callable[..., Array]:
        batch_size, predict = self._batch_size, self._problem.predict

        def scores(state: State, data: ClientData, train: ClientData | None) -> Float[Array, "G n ..."]:
            n_max = data.x.shape[1]

            def one_client(data: ClientData, train: ClientData) -> Float[Array, "n ..."]:
                client = tree.take(state.clients, data.id) if own_state else state.clients
                variables = candidate.model(state, client, train)
                key = jax.random.fold_in(self._key, data.id)

                def batch(i: Array, out: Array) -> Array:
                    start = i * batch_size
                    index = jnp.minimum(start + jnp.arange(batch_size, dtype=start.dtype), n_max - 1)
                    x = jnp.take(data.x, index, axis=0)
                    some = predict(variables, x, data.noise, jax.random.fold_in(key, i))
                    return jax.lax.dynamic_update_slice_in_dim(out, some, start, axis=0)

                shape = jax.eval_shape(predict, variables, data.x[:1], data.noise, key)
                out = jnp.zeros((n_max + -n_max % batch_size, *shape.shape[1:]), shape.dtype)
                return jax.lax.fori_loop(0, -(-data.count // batch_size), batch, out)[:n_max]

            return client_map(one_client, self._how)(data, data if train is None else train)

        return scores
