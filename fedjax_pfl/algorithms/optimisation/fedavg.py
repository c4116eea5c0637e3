"""FedAvg. McMahan, Moore, Ramage, Hampson, Agüera y Arcas, AISTATS 2017, arXiv 1602.05629, Algorithm 1."""

from fedjax_pfl import aggregate, local
from fedjax_pfl.core import Algorithm, Exchange, Model, compose
from fedjax_pfl.local import Training


def exchange(training: Training, weighting: str) -> Exchange:
    """FedAvg's communication, on which others build: w down, w_k up, the weighted mean of the uploads."""

    def local_update(download, client, data, round, key):
        # ClientUpdate(k, w): E epochs of mini-batches of size B
        w_k, metrics = local.train(training, training.optimizer(training.lr(round)), download.variables, data, key)
        return Model(w_k), client, metrics

    def server_update(server, uploads, cohort, round):
        # w <- sum_k n_k / n w_k, over the clients that took part
        return Model(aggregate.mean(uploads.variables, cohort, weighting))

    return Exchange(lambda server, id: server, local_update, server_update)


def fedavg(training: Training, *, weighting: str = "examples") -> Algorithm:
    """Federated averaging; running statistics of batch norm are averaged with the rest unless the policy says otherwise.

    Args:
        weighting: 'examples' (n_k / n, the paper's) or 'uniform'.
    """
    return compose(
        exchange(training, weighting),
        init_server=lambda variables, n: Model(variables),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
