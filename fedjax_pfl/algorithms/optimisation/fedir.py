"""FedIR, importance reweighting. Hsu, Qi, Brown, ECCV 2020, arXiv 2003.08082, section 4.1."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from fedjax_pfl import local, losses
from fedjax_pfl.algorithms.optimisation import fedavg, fedopt
from fedjax_pfl.core import Algorithm, ClientData, Model, Variables
from fedjax_pfl.errors import UserError
from fedjax_pfl.imbalance import Weighted
from fedjax_pfl.local import Batch, Loss, Training


def reweighted(training: Training, method: str, normalise: bool = False) -> Callable[[ClientData], Loss]:
    """A client's data -> its loss, in which an example with the label y counts p(y) / q_k(y) times.

    Raises:
        UserError: other targets than one label an example, or a sampler that changes q_k.
    """
    network = training.network
    if network is None or not training.counts:
        raise UserError(f"config.method: '{method}' needs one label an example, found several or a label-mask model")
    if training.sampler != "instance":
        raise UserError(
            f"config.client.sampler: found '{training.sampler}', expected 'instance', as '{method}' reweights the classes"
        )
    counts = np.asarray(training.counts, np.float64)
    p = counts / counts.sum()

    def of(data: ClientData) -> Loss:
        if data.y.ndim != 1:
            raise UserError(f"config.method: '{method}' needs one label an example, found several or masks")
        real = jnp.arange(data.y.shape[0], dtype=data.count.dtype) < data.count
        classes = jnp.arange(len(p), dtype=data.y.dtype)
        n_k = jnp.sum((data.y[:, None] == classes[None]) & real[:, None], 0, dtype=jnp.int32)  # of each class

        def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
            key_inputs, key_network, key_loss = jax.random.split(key, 3)
            x, y = network.inputs(batch, key_inputs)
            _, logits, changed = network.train(variables, x, batch.mask, key_network)
            keys = {"key": jax.random.split(key_loss, len(y))} if losses.takes(network.loss, "key") else {}
            each: Any = jax.vmap(network.loss)(logits, y, **keys)
            value = each.value if isinstance(each, Weighted) else each
            # p(y) / q_k(y) with q_k = n_k / count
            q = jnp.maximum(n_k, 1).astype(value.dtype) / jnp.maximum(data.count, 1).astype(value.dtype)
            r = jnp.take(jnp.asarray(p, value.dtype) / q, y)
            if normalise:
                r = jnp.where(batch.mask, r, jnp.zeros_like(r))
                number = jnp.sum(batch.mask.astype(r.dtype))
                r = r * (number / jnp.maximum(jnp.sum(r), jnp.finfo(r.dtype).tiny))
            each = each._replace(value=r * value) if isinstance(each, Weighted) else r * value
            return network.over_batch(each, batch.mask), changed

        return loss

    return of


def fedir(
    training: Training,
    *,
    normalise: bool = False,
    server_lr: float = 1.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    weighting: str = "examples",
) -> Algorithm:
    """FedAvg, or FedAvgM, whose clients weigh their examples as if their labels were distributed as everybody's are.

        L_k = mean over a batch of p(y) / q_k(y) loss(w; x, y)

    p: distribution of the labels over all clients that train; q_k: the client's own. It is FedAvg where all clients have the
    same. What a loss with class weights divides by stays.

    Args:
        normalise: divide the weights by their mean over the batch.
        server_lr, momentum, nesterov: of the server, see `fedopt.fedavgm`; FedAvg's with 1 and 0.
        weighting: 'examples' or 'uniform'.

    Raises:
        UserError: other targets than one label an example, or a sampler that changes q_k.
    """
    loss_of = reweighted(training, "fedir", normalise)

    def local_update(download, client, data, round, key):
        tx = training.optimizer(training.lr(round))
        w_k, metrics = local.train(training, tx, download.variables, data, key, loss=loss_of(data))
        return Model(w_k), client, metrics

    tx = optax.chain(optax.trace(momentum, nesterov), optax.scale(server_lr))
    clients = fedavg.exchange(training, weighting)._replace(local_update=local_update)
    return fedopt.server_optimizer(training, tx, weighting, clients)
