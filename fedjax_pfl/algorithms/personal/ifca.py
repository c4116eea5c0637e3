"""IFCA. Ghosh, Chung, Yin, Ramchandran, NeurIPS 2020, arXiv 2006.04088; as HypCluster: Mansour et al., arXiv 2002.10619."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.core import Algorithm, Exchange, State, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


class Server(NamedTuple):
    models: Variables  # [J, ...] theta_1 ... theta_J


class Client(NamedTuple):
    j: Int[Array, ""]  # the cluster that the client chose last


class Upload(NamedTuple):
    variables: Variables
    j: Int[Array, ""]


def ifca(training: Training, *, clusters: int = 2, shared_layers: int = 0, weighting: str = "examples") -> Algorithm:
    """J global models; in each round a client takes the one with the least loss on its data, trains it, and the server
    averages those who took the same.

        j_k = argmin_j F_k(theta_j);    theta_j <- mean of the w_k with j_k = j    (nobody: theta_j stays)

    The models begin from draws of their own. A client that has not yet taken part, also a newcomer, uses theta_1.

    Args:
        clusters: J.
        shared_layers: how many of the first top-level layers all clusters have in common, averaged over all clients (the
            paper's section 5, weight sharing).
        weighting: 'examples' or 'uniform'.

    Raises:
        UserError: a label-mask model, several labels an example, or a number out of range.
    """
    network = training.network
    if network is None or training.init is None:
        raise UserError("config.method: 'ifca' needs one label an example or masks, and no label-mask model")
    if not 0 <= shared_layers < len(training.layers):
        raise UserError(
            f"config.ifca.shared_layers: found {shared_layers}, expected 0 to {len(training.layers) - 1}, as the model has "
            f"the layers {', '.join(training.layers)}"
        )
    if training.batch_norm != "aggregate":
        raise UserError(f"config.client.batch_norm: found '{training.batch_norm}', 'ifca' needs 'aggregate'")
    if training.observe is not None:
        raise UserError("config.eval.retrogress: not possible with 'ifca', whose clients may change their model")
    common, fresh = tree.top_level(training.layers[:shared_layers]), training.init

    def local_update(server: Server, client: Client, data, round, key):
        losses = jnp.stack(
            # one key: all models see the same input noise
            [local.mean_loss(training, tree.take(server.models, jnp.int32(j)), data, key) for j in range(clusters)]
        )
        j = jnp.argmin(losses).astype(jnp.int32)
        tx = training.optimizer(training.lr(round))
        variables, metrics = local.train(training, tx, tree.take(server.models, j), data, key)
        return Upload(variables, j), Client(j), metrics

    def server_update(server: Server, uploads: Upload, cohort, round) -> Server:
        weight = aggregate.weights(cohort, weighting)
        everybody = tree.weighted_mean(uploads.variables, weight)

        def of_cluster(j: Array, theta: Variables) -> Variables:
            mine = jnp.where(uploads.j == j, weight, jnp.zeros_like(weight))
            some = jnp.sum(mine) > 0
            mean = tree.weighted_mean(uploads.variables, jnp.where(some, mine, weight))
            theta = tree.where(some, mean, theta)
            return tree.merge(theta, tree.split(everybody, common)[0])

        return Server(jax.vmap(of_cluster)(jnp.arange(clusters, dtype=jnp.int32), server.models))

    algorithm = compose(
        Exchange(lambda server, id: server, local_update, server_update),
        init_server=lambda variables, n: Server(tree.broadcast(variables, clusters)),
        init_client=lambda variables: Client(jnp.zeros((), jnp.int32)),
        shared=lambda server, id: server.models,
        own=lambda client, models: tree.take(models, client.j),
        how=training.how,
    )

    def init(variables: Variables, n: int) -> State:
        state = algorithm.init(variables, n)
        key = jax.random.fold_in(jax.random.key(training.seed), 2**31 - 4)  # apart from all other keys
        others: list[Any] = [fresh(jax.random.fold_in(key, j)) for j in range(1, clusters)]
        others = [tree.merge(other, tree.split(variables, common)[0]) for other in others]
        models = jax.tree.map(
            lambda *leaves: jnp.stack([leaf.astype(leaves[0].dtype) for leaf in leaves]), variables, *others
        )
        return state._replace(server=Server(models))

    return algorithm._replace(init=init, shared_model=None)
