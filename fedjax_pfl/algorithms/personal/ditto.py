"""Ditto. Li, Hu, Beirami, Smith, ICML 2021, arXiv 2012.04221, Algorithm 1 (with FedAvg as its global solver)."""

from typing import NamedTuple

import optax

from fedjax_pfl import local
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, Variables, compose
from fedjax_pfl.local import Training


class Client(NamedTuple):
    v_k: Variables  # personal model, never overwritten by the server


def ditto(training: Training, *, lam: float = 1.0, weighting: str = "uniform") -> Algorithm:
    """A global model w by FedAvg, and a personal model v_k per client that is drawn to w.

    v_k never feeds back into w, and both see the same batches in the same order, so training one after the other
    equals the paper's interleaved loop. lam = 0 is local training.

    Args:
        lam: lambda, the strength of the pull to w_t, >= 0.
        weighting: of the global updates: 'uniform' (the authors' code) or 'examples'.
    """
    average = fedavg.exchange(training, weighting)

    def local_update(download, client, data, round, key):
        w_t = download.variables
        upload, _, metrics = average.local_update(download, (), data, round, key)
        # v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w_t)), w_t the global model at the start of the round
        tx = optax.chain(local.proximal(lam, w_t["params"]), training.optimizer(training.lr(round)))
        v_k, _ = local.train(training, tx, client.v_k, data, key)
        return upload, Client(v_k), metrics

    return compose(
        average._replace(local_update=local_update),
        init_server=lambda variables, n: Model(variables),
        init_client=Client,
        own=lambda client, shared: client.v_k,
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
