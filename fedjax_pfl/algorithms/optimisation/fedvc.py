"""FedVC, virtual clients. Hsu, Qi, Brown, ECCV 2020, arXiv 2003.08082, section 4.2."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from fedjax_pfl import local
from fedjax_pfl.algorithms.optimisation import fedavg, fedir, fedopt
from fedjax_pfl.core import Algorithm, Model
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


def draw(key: Key[Array, ""], count: Int[Array, ""], n_max: int, n_vc: int) -> Int[Array, " n_vc"]:
    """Rows of a virtual client: n_vc different ones where there are as many, else as many drawn with replacement."""
    key_order, key_again = jax.random.split(key)
    order = local.permutation(key_order, count, n_max).astype(jnp.int32)
    different = jnp.take(order, jnp.arange(n_vc, dtype=jnp.int32), mode="clip")
    u = jax.random.uniform(key_again, (n_vc,), jnp.float32)
    again = jnp.clip((u * count.astype(jnp.float32)).astype(jnp.int32), 0, jnp.maximum(count - 1, 0))
    return jnp.where(count >= n_vc, different, again)


def fedvc(
    training: Training,
    *,
    n_vc: int = 256,
    importance: bool = False,
    server_lr: float = 1.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    weighting: str = "uniform",
) -> Algorithm:
    """FedAvg, or FedAvgM, whose clients all train on n_vc examples in a round, and so make as many steps.

    A client with more examples trains on a part of them, drawn anew in each round; one with fewer on as many drawn with
    replacement. In the paper clients are drawn with a chance proportional to their number of examples
    (config.cohort.sampling = 'by_size') and weighed alike. Not reproduced: two virtual clients of one client in a round.

    Args:
        n_vc: N_VC, examples of a virtual client, > 0; client.epochs passes over them.
        importance: reweight them as FedIR does, with q_k of all of the client's examples.
        server_lr, momentum, nesterov: of the server, see `fedopt.fedavgm`.
        weighting: 'uniform' (the paper's) or 'examples' (the clients' own numbers, which counts larger ones twice where they
            are drawn by size).

    Raises:
        UserError: n_vc is not positive, or `importance` with other targets than one label an example, or with a sampler.
    """
    if n_vc < 1:
        raise UserError(f"config.fedvc.n_vc: found {n_vc}, expected 1 or more")
    loss_of = fedir.reweighted(training, "fedvc") if importance else lambda data: training.loss

    def local_update(download, client, data, round, key):
        key_draw, key_train = jax.random.split(key)
        index = draw(key_draw, data.count, data.x.shape[0], n_vc)
        virtual = data._replace(
            x=jnp.take(data.x, index, axis=0),
            y=jnp.take(data.y, index, axis=0),
            count=jnp.where(data.count > 0, jnp.asarray(n_vc, data.count.dtype), jnp.zeros_like(data.count)),
        )
        tx = training.optimizer(training.lr(round))
        w_k, metrics = local.train(training, tx, download.variables, virtual, key_train, loss=loss_of(data))
        return Model(w_k), client, metrics

    tx = optax.chain(optax.trace(momentum, nesterov), optax.scale(server_lr))
    clients = fedavg.exchange(training, weighting)._replace(local_update=local_update)
    return fedopt.server_optimizer(training, tx, weighting, clients)
