"""Local training: every client alone with its own data. What a federation must beat."""

import functools
from typing import NamedTuple

from fedjax_pfl import local
from fedjax_pfl.core import Algorithm, Exchange, Group, Variables, compose
from fedjax_pfl.local import Training


class Client(NamedTuple):
    variables: Variables


def local_only(training: Training) -> Algorithm:
    """Nothing is exchanged; all clients start from one initial model. A round is E local epochs with a fresh optimiser.

    Clients' models may be of several architectures; those of one start from the same.
    """

    def local_update(training, download, client, data, round, key):
        tx = training.optimizer(training.lr(round))
        variables, metrics = local.train(training, tx, client.variables, data, key)
        return (), Client(variables), metrics

    return compose(
        Exchange(
            lambda server, id: (),
            functools.partial(local_update, training),
            lambda server, uploads, cohort, round: server,
            groups=tuple(Group(each.members, functools.partial(local_update, each)) for each in training.groups),
        ),
        init_server=lambda variables, n: (),
        init_client=Client,
        shared=None,
        own=lambda client, shared: client.variables,
        how=training.how,
        observe=training.observe,
    )
