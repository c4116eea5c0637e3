"""FedBN. Li, Jiang, Zhang, Kamp, Dou, ICLR 2021, arXiv 2102.07623, Algorithm 1."""

from fedjax_pfl import tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, compose
from fedjax_pfl.local import Training


def fedbn(training: Training, *, weighting: str = "uniform") -> Algorithm:
    """FedAvg in which every batch-norm entry (scale, bias, running mean and variance) never leaves the client.

    A network without batch norm makes it FedAvg with uniform weights. A new client has no entries to inherit but the
    initial ones.

    Args:
        weighting: 'uniform' (1/N, the paper's) or 'examples'.
    """
    return compose(
        fedavg.exchange(training, weighting),
        init_server=lambda variables, n: Model(variables),
        keep=tree.batch_norm,
        how=training.how,
        observe=training.observe,
    )
