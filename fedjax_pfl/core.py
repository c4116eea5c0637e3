"""The core: a cohort of clients, the state of a federation, and the one compiled round that takes state to state.

An algorithm is one or more `Exchange`s: what a client downloads, how ONE client trains, how the server aggregates. `run`
maps the client's side over the cohort and `compose` makes the `Algorithm` that training, evaluation and checkpoints see.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from fedjax_pfl import compiler, hosts, tree

Variables = Any  # Flax linen variables: {'params': ..., 'batch_stats': ...}
Server = Any
Client = Any
Download = Any
Upload = Any
ClientId = Int[Array, ""]
Round = Int[Array, ""]


class Lanes(NamedTuple):
    """All clients at once, but so many of them in their local steps: see `lanes`."""

    number: int


class Sharded(NamedTuple):
    """The clients dealt out to several devices, and how each device maps over its own."""

    mesh: Mesh  # of one axis, CLIENTS
    how: str | int | Lanes


How = str | int | Lanes | Sharded
Observe = Callable[[Variables, "ClientData"], Float[Array, ""]]


class ClientData(NamedTuple):
    """One client's training examples, padded to the longest client; stacked [K, ...] in a cohort."""

    id: Int[Array, ""]
    count: Int[Array, ""]  # rows at and after count are padding
    x: Array  # [n_max, ...] as stored
    y: Array  # [n_max, ...]
    noise: Float[Array, ""]  # standard deviation of the noise on inputs scaled to [0, 1]
    validation: Any = ()  # the client's validation examples (another ClientData), where a round scores models on them
    round: Any = ()  # the round in which the client trains, for samplers that change over the rounds
    public: Any = ()  # examples that all clients have (another ClientData), where a method shares some: `roles.with_public`


class Cohort(NamedTuple):
    """The K clients of one round. Padding rows have id N (the number of clients), weight 0 and count 0."""

    ids: Int[Array, " K"]
    weight: Float[Array, " K"]  # number of training examples; 0 where the upload is lost, or for padding
    data: ClientData  # leaves [K, ...]
    rows: Any = ()  # where in `State.clients` each client's state is, [K], padding's beyond its end; (): at the ids

    @property
    def places(self) -> Int[Array, " K"]:
        """Which rows of `State.clients` are these clients'."""
        return self.ids if isinstance(self.rows, tuple) else self.rows


class Curve(NamedTuple):
    """Scores of one client's models on its validation examples, before and after its local training.

    What a communication takes from a client (retrogress) is the step from `trained` of a round to `received` of the next.
    """

    received: Any  # of the model that came from the server, as the client uses it; () where none does
    trained: Any  # of the same after local training
    own_before: Any  # of the model that the client keeps to itself; () where it keeps none
    own_after: Any


class Metrics(NamedTuple):
    """What one client's local training reports: mergeable sums, and the curve where it is asked for."""

    loss: Float[Array, ""]  # summed over examples seen
    examples: Int[Array, ""]
    steps: Int[Array, ""]
    last_epoch: Float[Array, ""]  # the loss of the last epoch alone
    curve: Any = ()  # Curve, or () where `compose` has nothing to observe with


class Report(NamedTuple):
    """What a round reports of each client of the cohort, [K, ...]."""

    ids: Int[Array, " K"]
    train: Metrics
    finite: Bool[Array, " K"]  # whether the client's upload and loss hold only finite numbers
    server_finite: Bool[Array, ""]  # the same of the server's new state


class State(NamedTuple):
    """All that a round reads and writes, and all that a checkpoint holds."""

    round: Round
    server: Server  # each algorithm's own NamedTuple
    clients: Client  # leaves [N, ...], or of the cohort alone (see `store`); () where clients keep nothing


class Algorithm(NamedTuple):
    """All that launch, train, evaluate and checkpoint see of a method."""

    init: Callable[[Variables, int], State]
    round: Callable[[State, Cohort, Key[Array, ""]], tuple[State, Report]]
    client_model: Callable[[Server, Client, ClientId], Variables]  # the model that this client would use now
    global_model: Callable[[Server], Variables] | None  # the one model for everybody, where the method has one
    shared_model: Callable[[Server, Client, ClientId], Variables] | None = None
    """What travels, as this client would use it, where the client uses a model of its own instead (PRR-FL's deputy)."""
    validates: bool = False  # whether a round reads the clients' validation examples
    describe: Callable[[Server], dict[str, Array]] = lambda server: {}  # numbers of each client to log, {name: [N]}
    adapt: Callable[[Variables, "ClientData", Key[Array, ""]], Variables] | None = None
    """What a client makes of its model when it is to be used, from its training examples (Per-FedAvg); None: nothing."""
    exchanges: "tuple[Exchange, ...]" = ()
    traffic: Callable[[State, Cohort], Any] | None = None  # see `traffic.of`, where the exchanges alone don't say it


class Model(NamedTuple):
    """A message, or a server, that is a whole model and nothing else."""

    variables: Variables


class Group(NamedTuple):
    """Clients whose models have one architecture, where others have another.

    `State.clients` is then a tuple with a stack for each group, its rows in the order of `members`.
    """

    members: tuple[int, ...]  # their numbers
    local_update: Callable[["Download", Client, ClientData, Round, Key[Array, ""]], tuple["Upload", Client, Metrics]]


class Exchange(NamedTuple):
    """One communication, as one client and the server see it.

    `local_update` is written for ONE client; `aggregate` sees the uploads stacked [K, ...]. A field called `variables` in
    Server, Download or Upload is a whole model: that is how `compose(keep=...)` finds it.
    """

    download: Callable[[Server, ClientId], Download]
    local_update: Callable[[Download, Client, ClientData, Round, Key[Array, ""]], tuple[Upload, Client, Metrics]]
    aggregate: Callable[[Server, Upload, Cohort, Round], Server]
    select: Callable[[Cohort], Cohort] = lambda cohort: cohort
    groups: tuple[Group, ...] = ()  # all clients, where architectures differ; each group's `local_update` then counts


NOWHERE = np.int32(2**31 - 1)  # a row beyond the end of any stack


def only(cohort: Cohort, chosen: Bool[Array, " K"], n: int) -> Cohort:
    """The rows that aren't chosen as padding: number n, weight 0, no examples."""
    ids = jnp.where(chosen, cohort.ids, n)
    count = jnp.where(chosen, cohort.data.count, 0)
    rows = jax.tree.map(lambda rows: jnp.where(chosen, rows, NOWHERE), cohort.rows)
    return Cohort(ids, jnp.where(chosen, cohort.weight, 0), cohort.data._replace(id=ids, count=count), rows)


def client_map(function: Callable[..., Any], how: How = "auto", alike: tuple[Any, ...] = ()) -> Callable[..., Any]:
    """`function`, written for one client, mapped over the first axis of all arguments.

    Args:
        how: 'vmap' all clients at once; 'map' one after the other; a number: that many at once; 'auto': one after the
            other on a CPU, where per-client weights make batched products slow (`--mode=benchmark` measures it), all at
            once elsewhere. `Lanes`: all at once, but for their local steps. `Sharded`: dealt out to several devices.
        alike: what all clients get, before their own arguments. Over several devices `function` can't use arrays of the
            program around it in another way.
    """
    if isinstance(how, Sharded):
        return lambda *args: _over_devices(function, how, alike, args)
    function, together = partial(function, *alike), at_once(how)
    if together is None:
        return jax.vmap(function)
    batch_size = None if together == 1 else together
    return lambda *args: jax.lax.map(lambda each: function(*each), args, batch_size=batch_size)


def at_once(how: str | int | Lanes) -> int | None:
    """How many clients run together on a device; None: all of them."""
    if how == "auto":
        how = "map" if jax.default_backend() == "cpu" else "vmap"
    if how == "vmap" or isinstance(how, Lanes):
        return None
    return 1 if how == "map" else int(how)


def number_of_lanes(how: How) -> int | None:
    """In how many lanes clients make their local steps, where they make them in lanes."""
    how = how.how if isinstance(how, Sharded) else how
    return how.number if isinstance(how, Lanes) else None


CLIENTS = "clients"  # the one axis of the devices' mesh


def mesh(devices: Sequence[Any]) -> Mesh:
    """These devices as the mesh of `Sharded`."""
    return jax.make_mesh((len(devices),), (CLIENTS,), devices=devices, axis_types=(AxisType.Auto,))


def _over_devices(function: Callable[..., Any], how: Sharded, alike: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """Each device maps over its part of the clients; padding makes the parts equal."""

    def of_one_device(alike: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        return client_map(function, how.how, alike)(*args)

    if CLIENTS in jax.sharding.get_abstract_mesh().manual_axes:  # this is within what one device does
        return of_one_device(alike, args)
    rows = len(jax.tree.leaves(args)[0])
    padding = -rows % how.mesh.shape[CLIENTS]

    def padded(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.zeros((padding, *leaf.shape[1:]), leaf.dtype)]) if padding else leaf

    everywhere, dealt = PartitionSpec(), PartitionSpec(CLIENTS)
    dealt_out = jax.shard_map(
        of_one_device, mesh=how.mesh, in_specs=(everywhere, dealt), out_specs=dealt, check_vma=False
    )
    return jax.tree.map(lambda leaf: leaf[:rows], dealt_out(alike, jax.tree.map(padded, args)))


def run(
    exchange: Exchange, state: State, cohort: Cohort, key: Key[Array, ""], how: How = "auto"
) -> tuple[State, Report]:
    """One communication: download, train every client of the cohort, aggregate, put the clients' states back.

    Each client's key comes from its id, so neither the order of the cohort nor its padding changes anything. The server
    sees zeros in place of an upload that is lost, whatever it held; when all are lost it stays as it was.
    """
    parts = parts_of(exchange, state.clients, exchange.select(cohort))

    def train(part: "Part") -> tuple[Upload, Client, Metrics, Bool[Array, " K"]]:
        def one_client(
            server: Server,
            round: Round,
            key: Key[Array, ""],
            client: Client,
            data: ClientData,
            arrives: Bool[Array, ""],
        ) -> tuple[Upload, Client, Metrics, Bool[Array, ""]]:
            data = data._replace(round=round)
            download = exchange.download(server, data.id)
            upload, client, metrics = part.local_update(download, client, data, round, jax.random.fold_in(key, data.id))
            finite = tree.all_finite((upload, metrics.loss))
            return tree.where(arrives, upload, tree.zeros_like(upload)), client, metrics, finite

        clients = tree.take(part.clients, part.rows)
        uploads, clients, metrics, finite = client_map(one_client, how, (state.server, state.round, key))(
            clients, part.cohort.data, part.cohort.weight > 0
        )
        return uploads, tree.put(part.clients, part.rows, clients), metrics, finite

    done = [train(part) for part in parts]
    clients = tuple(each[1] for each in done) if exchange.groups else done[0][1]
    cohort, uploads, metrics, finite = (
        _one_after_the_other([part.cohort for part in parts]),
        *(_one_after_the_other([each[i] for each in done]) for i in (0, 2, 3)),
    )
    server = exchange.aggregate(state.server, uploads, cohort, state.round)
    server = tree.where(jnp.any(cohort.weight > 0), server, state.server)
    state = state._replace(server=server, clients=clients)
    return state, Report(cohort.ids, metrics, finite, tree.all_finite(server))


def in_turn(
    exchanges: Sequence[Exchange],
    how: How = "auto",
    summary: Callable[[Sequence[Report]], Report] = lambda reports: reports[-1],
) -> Callable[[State, Cohort, Key[Array, ""]], tuple[State, Report]]:
    """The round that consists of these exchanges."""

    def round(state: State, cohort: Cohort, key: Key[Array, ""]) -> tuple[State, Report]:
        key = jax.random.fold_in(key, state.round)
        reports = []
        for i, exchange in enumerate(exchanges):
            state, report = run(exchange, state, cohort, jax.random.fold_in(key, i), how)
            reports.append(report)
        return state._replace(round=state.round + 1), summary(reports)

    return round


class Part(NamedTuple):
    """Clients of a cohort that train alike: all of them, or those of one group."""

    local_update: Callable[..., tuple[Upload, Client, Metrics]]
    clients: Client  # the stack that holds their states
    rows: Int[Array, " K"]  # where in it; beyond its end for padding
    cohort: Cohort


def parts_of(exchange: Exchange, clients: Any, cohort: Cohort) -> list[Part]:
    """The clients of a cohort by group; `clients` as in `State`."""
    if not exchange.groups:
        return [Part(exchange.local_update, clients, cohort.places, cohort)]
    n, parts = sum(len(group.members) for group in exchange.groups), []
    for group, stack in zip(exchange.groups, clients, strict=True):
        row = np.full(n + 1, len(group.members), np.int32)  # of each client in the stack; beyond its end for the others
        row[list(group.members)] = np.arange(len(group.members))
        rows = jnp.take(jnp.asarray(row), cohort.ids)
        first = jnp.argsort(rows >= len(group.members), stable=True)[: len(group.members)]
        some = tree.take(cohort, first)
        rows = jnp.take(rows, first)
        parts.append(Part(group.local_update, stack, rows, only(some, rows < len(group.members), n)))
    return parts


def _one_after_the_other(stacks: list[Any]) -> Any:
    return stacks[0] if len(stacks) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)


def compose(
    *exchanges: Exchange,
    init_server: Callable[[Variables, int], Server],
    shared: Callable[[Server, ClientId], Variables] | None = lambda server, id: server.variables,
    own: Callable[[Client, Variables], Variables] | None = None,
    init_client: Callable[[Variables], Client] = lambda variables: (),
    global_model: Callable[[Server], Variables] | None = None,
    keep: Callable[[Variables], tree.Where] | None = None,
    how: How = "auto",
    observe: Observe | None = None,
    validates: bool = False,
    summary: Callable[[Sequence[Report]], Report] = lambda reports: reports[-1],
    describe: Callable[[Server], dict[str, Array]] = lambda server: {},
) -> Algorithm:
    """The algorithm whose round is these exchanges, one after the other.

    Args:
        init_server: the server's state, given the initial model (of the server's architecture, where there are several) and
            the number of clients N.
        shared: the model that the server has for a client; None: it has none.
        own: the model that a client uses instead, given its state and the shared model.
        init_client: the state of ONE client, given the initial model.
        keep: names the entries of the shared model that stay with the client (batch norm, a head). They are never taken
            from the server: a download carries the client's own. A method that keeps any has no global model.
        how: see `client_map`.
        observe: scores a model on a client's validation examples; each client then reports a `Curve`.
        validates: the exchanges read validation examples themselves.
        summary: the round's report, from those of the exchanges.
        describe: what the server thinks of each client, to be logged.
    """
    inner_own = own
    if observe is not None:
        exchanges = tuple(_observed(exchange, observe, own) for exchange in exchanges)
    if keep is not None:
        exchanges = tuple(_keep_local(exchange, keep) for exchange in exchanges)
        init_client, global_model = _keep_client(init_client, keep), None
        inner_own = None if own is None else lambda client, variables: own(client.client, variables)

    def shared_model(server: Server, client: Client, id: ClientId) -> Variables:
        variables = () if shared is None else shared(server, id)
        return variables if keep is None else tree.merge(variables, client.part)

    def client_model(server: Server, client: Client, id: ClientId) -> Variables:
        variables = shared_model(server, client, id)
        return variables if inner_own is None else inner_own(client, variables)

    def init(variables: Variables, n: int) -> State:
        if groups := exchanges[0].groups:  # then these are the server's initial model, and that of each group
            variables, *models = variables
            clients = tuple(
                tree.broadcast(init_client(model), len(group.members))
                for model, group in zip(models, groups, strict=True)
            )
        else:
            clients = tree.broadcast(init_client(variables), n)
        return State(jnp.zeros((), jnp.int32), init_server(variables, n), clients)

    return Algorithm(
        init,
        in_turn(exchanges, how, summary),
        client_model,
        global_model,
        None if own is None or shared is None else shared_model,
        validates or observe is not None,
        describe,
        exchanges=exchanges,
    )


def jit_round(algorithm: Algorithm, how: How = "auto", *, several: bool = False) -> Any:
    """`algorithm.round` under `jax.jit`: the state given is used up, its memory holds the new one.

    Where `how` is `Sharded` the state is on every device and the cohort's rows are dealt out. Where `several`, it is one round
    after the other: the cohorts are stacked [R, K, ...], and so are the reports.
    """
    placed: dict[str, Any] = {}
    if isinstance(how, Sharded):
        rows = PartitionSpec(None, CLIENTS) if several else PartitionSpec(CLIENTS)
        everywhere, dealt = (NamedSharding(how.mesh, spec) for spec in (PartitionSpec(), rows))
        placed = {"in_shardings": (everywhere, dealt, everywhere), "out_shardings": everywhere}

    def rounds(state: State, cohorts: Cohort, key: Key[Array, ""]) -> tuple[State, Report]:
        return jax.lax.scan(lambda state, cohort: algorithm.round(state, cohort, key), state, cohorts)

    function = rounds if several else algorithm.round
    return jax.jit(function, donate_argnums=0, compiler_options=compiler.options(), **placed)


def everywhere(tree_: Any, how: How) -> Any:
    """A state on all devices among which `how` deals out the clients (all hosts give the same)."""
    if not isinstance(how, Sharded):
        return tree_
    whole = NamedSharding(how.mesh, PartitionSpec())
    return hosts.spread(tree_, whole) if hosts.several() else jax.device_put(tree_, whole)


class Kept(NamedTuple):
    """A client's state where part of the shared model stays with it."""

    client: Client
    part: Variables


def _keep_client(init_client: Callable[[Variables], Client], keep: Callable[[Variables], tree.Where]):
    return lambda variables: Kept(init_client(variables), tree.split(variables, keep(variables))[0])


def _keep_local(exchange: Exchange, keep: Callable[[Variables], tree.Where]) -> Exchange:
    """The same exchange, with the named part of the model coming from and going back to the client."""

    def local_update(download, kept: Kept, data, round, key):
        received, _ = tree.split(download.variables, keep(download.variables))
        download = download._replace(variables=tree.merge(download.variables, kept.part))
        upload, client, metrics = exchange.local_update(download, kept.client, data, round, key)
        part, _ = tree.split(upload.variables, keep(upload.variables))
        # What is kept doesn't travel: in its place goes back what came.
        upload = upload._replace(variables=tree.merge(upload.variables, received))
        return upload, Kept(client, part), metrics

    return exchange._replace(local_update=local_update)


def _observed(exchange: Exchange, observe: Observe, own: Callable[[Client, Variables], Variables] | None) -> Exchange:
    """The same exchange, reporting how well a client's models do before and after its local training."""

    def local_update(download, client, data, round, key):
        upload, after, metrics = exchange.local_update(download, client, data, round, key)
        received, trained = getattr(download, "variables", ()), getattr(upload, "variables", ())

        def score(variables: Variables) -> Any:
            return observe(variables, data.validation) if variables else ()

        curve = Curve(
            score(received),
            score(trained),
            score(own(client, received)) if own else (),
            score(own(after, trained)) if own else (),
        )
        return upload, after, metrics._replace(curve=curve)

    return exchange._replace(local_update=local_update)
