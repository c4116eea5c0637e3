"""Fine-tuning after FedAvg. Wang, Mathews, Kiddon, Eichner, Beaufays, Ramage, arXiv 1910.10252."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from fedjax_pfl import local, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Exchange, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


class Client(NamedTuple):
    variables: Variables  # the fine-tuned model
    tuned: Bool[Array, ""]  # whether there is one yet


def finetune(
    training: Training, *, start: int = 40, tuned_layers: int = 0, lr_factor: float = 1.0, weighting: str = "examples"
) -> Algorithm:
    """FedAvg until round `start`; from then on the global model rests and each client trains its own copy of it.

    Args:
        start: number of federated rounds; the rest of the run is fine-tuning.
        tuned_layers: how many of the last top-level layers are fine-tuned, 0 for all. The rest stays as it is, batch-norm
            running statistics aside (they follow the client's data).
        lr_factor: learning rate of the fine-tuning as a multiple of the schedule's.
        weighting: 'examples' or 'uniform'.
    """
    if not 0 <= tuned_layers <= len(training.layers):
        raise UserError(
            f"config.finetune.tuned_layers: found {tuned_layers}, expected 0 (all) to {len(training.layers)}, "
            f"as the model has the layers {', '.join(training.layers)}"
        )
    tuned = tree.top_level(training.layers[-tuned_layers:])  # [-0:] is all of them
    average = fedavg.exchange(training, weighting)

    def local_update(download, client, data, round, key):
        tuning = round >= start
        variables = tree.where(client.tuned, client.variables, download.variables)
        lr = training.lr(round) * jnp.where(tuning, lr_factor, 1.0)
        # before, so that clipping sees the tuned layers alone; after, so that decay moves nothing else
        freeze = local.freeze(lambda path: not tuned(path), tuning)
        tx = optax.chain(freeze, training.optimizer(lr), freeze)
        variables, metrics = local.train(training, tx, variables, data, key)
        return Model(variables), Client(variables, tuning), metrics

    def server_update(server, uploads, cohort, round):
        return tree.where(round < start, average.aggregate(server, uploads, cohort, round), server)

    return compose(
        Exchange(average.download, local_update, server_update),
        init_server=lambda variables, n: Model(variables),
        init_client=lambda variables: Client(variables, jnp.asarray(False)),
        own=lambda client, shared: tree.where(client.tuned, client.variables, shared),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
