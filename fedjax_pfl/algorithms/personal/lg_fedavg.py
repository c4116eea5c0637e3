"""LG-FedAvg. Liang, Liu, Liu, Allen, Auerbach, Brent, Salakhutdinov, Morency, arXiv 2001.01523, Algorithm 1."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from fedjax_pfl import tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Exchange, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


class Client(NamedTuple):
    l_k: Variables  # the local part, representations of its own data
    own: Bool[Array, ""]  # whether it has one yet; before, it uses the server's


def lg_fedavg(training: Training, *, local_layers: int = 1, start: int = 0, weighting: str = "uniform") -> Algorithm:
    """FedPer's mirror image: the lower layers l_k are the client's own, the upper ones g are averaged. Both are trained
    jointly, and everybody has the new g after each round.

    The reported runs start from a FedAvg checkpoint: so do the rounds from `start` on, in which clients begin with the local
    part that FedAvg arrived at. A newcomer uses that too (the paper's ensemble of all local models isn't here; evaluation
    after extra local training is its other way with new clients).

    Not reproduced from the released code: each user's best model by accuracy on the test set, of whose global parts the
    reported model is made; a softmax before the cross entropy. Its CIFAR runs share the convolutions, not the upper layers:
    that is `fedper` with uniform weights.

    Args:
        local_layers: how many of the first top-level layers are local, at least 1 and less than all.
        start: rounds of FedAvg before, with the same weighting.
        weighting: of the g_k: 'uniform' (the released code's) or 'examples'.

    Raises:
        UserError: local_layers doesn't fit the model.
    """
    if not 0 < local_layers < len(training.layers):
        raise UserError(
            f"config.lg_fedavg.local_layers: found {local_layers}, expected 1 to {len(training.layers) - 1}, "
            f"as the model has the layers {', '.join(training.layers)}"
        )
    local_part = tree.top_level(training.layers[:local_layers])
    average = fedavg.exchange(training, weighting)

    def used(client: Client, shared: Variables) -> Variables:
        return tree.where(client.own, tree.merge(shared, client.l_k), shared)

    def local_update(download, client, data, round, key):
        # (l_k, g_k) <- E epochs from (l_k, g)
        w_k, _, metrics = average.local_update(Model(used(client, download.variables)), (), data, round, key)
        return w_k, Client(tree.split(w_k.variables, local_part)[0], round >= start), metrics

    def server_update(server, uploads, cohort, round):
        # g <- mean of g_k. From round `start` on the server doesn't look at the local parts.
        averaged = average.aggregate(server, uploads, cohort, round)
        rests, _ = tree.split(server.variables, local_part)
        return tree.where(round < start, averaged, Model(tree.merge(averaged.variables, rests)))

    return compose(
        Exchange(average.download, local_update, server_update),
        init_server=lambda variables, n: Model(variables),
        init_client=lambda variables: Client(tree.split(variables, local_part)[0], jnp.asarray(False)),
        own=used,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
