"""Local training: every client alone with its own data. What a federation must beat."""

from typing import NamedTuple

from fedjax_pfl import local
from fedjax_pfl.core import Algorithm, Exchange, Variables, compose
from fedjax_pfl.local import Training


class Client(NamedTuple):
    variables: Variables


def local_only(training: Training) -> Algorithm:
    """Nothing is exchanged; all clients start from one initial model. A round is E local epochs with a fresh optimiser."""

    def local_update(download, client, data, round, key):
        tx = training.optimizer(training.lr(round))
        variables, metrics = local.train(training, tx, client.variables, data, key)
        return (), Client(variables), metrics

    return compose(
        Exchange(lambda server, id: (), local_update, lambda server, uploads, cohort, round: server),
        init_server=lambda variables, n: (),
        init_client=Client,
        shared=None,
        own=lambda client, shared: client.variables,
        how=training.how,
        observe=training.observe,
    )
