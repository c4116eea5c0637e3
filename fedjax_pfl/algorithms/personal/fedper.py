"""FedPer. Arivazhagan, Aggarwal, Singh, Choudhary, arXiv 1912.00818, Algorithms 1 and 2."""

from fedjax_pfl import tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


def fedper(training: Training, *, personal_layers: int = 1, weighting: str = "examples") -> Algorithm:
    """FedAvg on the base layers; the last K_P top-level layers are each client's own. Both are trained jointly.

    Args:
        personal_layers: K_P, at least 1 (the classifier) and less than the number of layers.
        weighting: 'examples' (n_k / n, the paper's) or 'uniform'.
    """
    if not 0 < personal_layers < len(training.layers):
        raise UserError(
            f"config.fedper.personal_layers: found {personal_layers}, expected 1 to {len(training.layers) - 1}, "
            f"as the model has the layers {', '.join(training.layers)}"
        )
    head = tree.top_level(training.layers[-personal_layers:])
    return compose(
        fedavg.exchange(training, weighting),
        init_server=lambda variables, n: Model(variables),
        keep=training.keep(head),
        how=training.how,
        observe=training.observe,
    )
