"""FedHealth. Chen, Qin, Wang, Yu, Gao, IEEE Intelligent Systems 2020, arXiv 1907.09173."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from fedjax_pfl import aggregate, local, prototypes, roles, tree
from fedjax_pfl.core import Algorithm, Exchange, Report, Variables, compose
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.local import Batch, Training


class Server(NamedTuple):
    variables: Variables  # the cloud model
    covariance: Float[Array, "d d"]  # C_S, of its features of the public data


class Client(NamedTuple):
    variables: Variables  # a user's transferred model
    own: Bool[Array, ""]  # whether there is one yet


class Upload(NamedTuple):
    variables: Variables
    covariance: Any = ()


class Moments(NamedTuple):
    """Mergeable sums of features x."""

    n: Float[Array, ""]
    sum: Float[Array, " d"]
    products: Float[Array, "d d"]  # of x x^T


def covariance(x: Float[Array, "B d"], mask: Bool[Array, " B"]) -> Float[Array, "d d"]:
    """Of the real rows: (X^T X - (1^T X)^T (1^T X) / n) / (n - 1); zeros where n < 2."""
    return _covariance(_moments(x, mask))


def _moments(x: Array, mask: Array) -> Moments:
    x = jnp.where(mask[:, None], x, 0)
    return Moments(jnp.sum(mask.astype(x.dtype)), jnp.sum(x, 0), x.T @ x)


def _covariance(of: Moments) -> Array:
    centred = of.products - jnp.outer(of.sum, of.sum) / jnp.maximum(of.n, 1)
    return jnp.where(of.n > 1, centred / jnp.maximum(of.n - 1, 1), jnp.zeros_like(centred))


def coral(C_S: Float[Array, "d d"], C_T: Float[Array, "d d"]) -> Float[Array, ""]:
    """L_CORAL = ||C_S - C_T||_F^2 / (4 d^2)."""
    return jnp.sum(jnp.square(C_S - C_T)) / (4 * C_S.shape[0] ** 2)


def fedhealth(
    training: Training,
    *,
    public: str = "",
    cloud_rounds: int = 5,
    eta: float = 0.01,
    tuned_layers: int = 1,
    transfer_epochs: int = 0,
    weighting: str = "examples",
) -> Algorithm:
    """A cloud model from public data, averaged over the users from then on; each user keeps a copy that is transferred to
    its data by CORAL.

    1. In the first `cloud_rounds` rounds the server trains on the public data.
    2. Later the users train the cloud model on their data, and the server averages it.
    3. In each round the server computes C_S, the covariance of its model's features of the public data; each user takes the
       model anew, freezes the lower layers and trains the others with CE + eta L_CORAL between C_S and its batch's features.

    The paper aggregates under homomorphic encryption, which changes no number; it isn't simulated. C_S is downloaded, not
    public images. Running statistics of frozen layers stay as they came.

    Args:
        public: name of the client whose data are the server's public ones; '': the first.
        eta: weight of L_CORAL.
        tuned_layers: how many of the last top-level layers are transferred, the classifier among them; the features are what
            the classifier reads, so with 1 they are frozen and L_CORAL is constant.
        transfer_epochs: of step 3; 0: config.client.epochs.
        weighting: of the users: 'examples' or 'uniform'.

    Raises:
        UserError: an unknown client, a number out of range, a label-mask model, or several labels an example.
    """
    network = training.network
    if network is None:
        raise UserError("config.method: 'fedhealth' needs one label an example, and no label-mask model")
    if public not in ("", *training.clients):
        raise UserError(f"config.fedhealth.public: unknown name '{public}'{nearest(public, training.clients)}")
    if len(training.clients) < 2:
        raise UserError("config.fedhealth.public: found no other client, expected at least one user")
    if not 1 <= tuned_layers <= len(training.layers):
        raise UserError(
            f"config.fedhealth.tuned_layers: found {tuned_layers}, expected 1 to {len(training.layers)}, as the model has the "
            f"layers {', '.join(training.layers)}"
        )
    N = len(training.clients)
    s = training.clients.index(public) if public else 0
    epochs = training.epochs
    tuned = tree.top_level(training.layers[-tuned_layers:])

    def trained(download: Server, data, round, key, number: Any):
        tx = training.optimizer(training.lr(round))
        return local.train(training, tx, download.variables, data, key, epochs=number)

    def of_public(variables: Variables, data) -> Array:
        """C_S, in evaluation mode."""

        def moments(batch: Batch, i: Array) -> Moments:
            x, _ = network.evaluate(variables, network.plain(batch.x, batch.noise, jax.random.key(0)))
            return _moments(x, batch.mask)

        return _covariance(local.sum_over(data, training.batch_size, moments))

    # 1. and C_S: the public data
    def at_the_server(download: Server, client: Client, data, round, key):
        if data.y.ndim != 1:
            raise UserError("config.method: 'fedhealth' needs one label an example, found several or masks")
        variables, metrics = trained(download, data, round, key, jnp.where(round < cloud_rounds, epochs, 0))
        return Upload(variables, of_public(variables, data)), client, metrics

    def to_the_cloud(server: Server, uploads: Upload, cohort, round):
        return Server(*jax.tree.map(lambda leaf: leaf[0], (uploads.variables, uploads.covariance)))

    # 2. the users
    def at_a_user(download: Server, client: Client, data, round, key):
        variables, metrics = trained(download, data, round, key, jnp.where(round < cloud_rounds, 0, epochs))
        return Upload(variables), client, metrics

    def averaged(server: Server, uploads: Upload, cohort, round):
        return server._replace(variables=aggregate.mean(uploads.variables, cohort, weighting))

    # 3. transfer
    def transfer(download: Server, client: Client, data, round, key):
        def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
            key_inputs, key_network, key_loss = jax.random.split(key, 3)
            x, y = network.inputs(batch, key_inputs)
            features, z, changed = network.train(variables, x, batch.mask, key_network)
            L = network.objective(z, y, batch.mask, key_loss)
            L = L + eta * coral(download.covariance, covariance(features, batch.mask))
            frozen = tree.split({"batch_stats": variables.get("batch_stats", {})}, tuned)[1]
            return L, tree.merge(changed, frozen)

        freeze = local.freeze(lambda path: not tuned(path), jnp.asarray(True))
        # before, so that clipping sees the tuned layers alone; after, so that decay moves nothing else
        tx = optax.chain(freeze, training.optimizer(training.lr(round)), freeze)
        variables, metrics = local.train(
            training, tx, download.variables, data, key, loss=loss, epochs=transfer_epochs or epochs
        )
        return Upload(download.variables), Client(variables, jnp.asarray(True)), metrics

    def init_server(variables: Variables, n: int) -> Server:
        d, dtype = prototypes.width(variables, training.layers)
        return Server(variables, jnp.zeros((d, d), dtype))

    def download(server: Server, id: Array) -> Server:
        return server

    users = functools.partial(roles.others, id=s, n=N)
    return compose(
        Exchange(download, at_a_user, averaged, users),
        Exchange(download, at_the_server, to_the_cloud, functools.partial(roles.one, id=s, n=N)),
        Exchange(download, transfer, lambda server, uploads, cohort, round: server, users),
        init_server=init_server,
        init_client=lambda variables: Client(variables, jnp.asarray(False)),
        own=lambda client, shared: tree.where(client.own, client.variables, shared),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        summary=_summary,
    )


def _summary(reports: Sequence[Report]) -> Report:
    """The users' and the server's training of the cloud model; a transfer that is not finite counts as well."""
    users, cloud, transferred = reports
    return roles.both(users._replace(finite=users.finite & transferred.finite), cloud)
