"""SiloBN. Andreux, du Terrail, Beguier, Tramel, DCL workshop at MICCAI 2020, arXiv 2008.07424."""

from fedjax_pfl import tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, compose
from fedjax_pfl.local import Training


def silobn(training: Training, *, weighting: str = "examples") -> Algorithm:
    """FedAvg in which the running mean and variance of batch norm never leave the client; scale and bias are shared.

    Training uses the batch's statistics, so the parameters follow FedAvg's path and only evaluation differs. A new client has
    no statistics but the initial ones.

    Args:
        weighting: 'examples' (n_k / n) or 'uniform'.
    """
    return compose(
        fedavg.exchange(training, weighting),
        init_server=lambda variables, n: Model(variables),
        keep=training.keep(tree.statistics),
        how=training.how,
        observe=training.observe,
    )
