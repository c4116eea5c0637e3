"""FedProx. Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, MLSys 2020, arXiv 1812.06127, Algorithm 2."""

import optax

from fedjax_pfl import local
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, compose
from fedjax_pfl.local import Training


def fedprox(training: Training, *, mu: float = 0.01, weighting: str = "examples") -> Algorithm:
    """FedAvg whose clients minimise F_k(w) + mu/2 ||w - w_t||^2 (Equation 2) over the trainable parameters.

    The proximal term is part of the gradient, so client momentum carries it. mu = 0 is FedAvg.

    Args:
        mu: strength of the proximal term, >= 0.
        weighting: 'examples' (as the authors' experiments) or 'uniform'.
    """

    def local_update(download, client, data, round, key):
        w_t = download.variables
        tx = optax.chain(local.proximal(mu, w_t["params"]), training.optimizer(training.lr(round)))
        w_k, metrics = local.train(training, tx, w_t, data, key)
        return Model(w_k), client, metrics

    return compose(
        fedavg.exchange(training, weighting)._replace(local_update=local_update),
        init_server=lambda variables, n: Model(variables),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
