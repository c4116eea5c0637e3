"""MOON, model-contrastive federated learning. Li, He, Song, CVPR 2021, arXiv 2103.16257, Algorithm 1."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from fedjax_pfl import local, losses, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch, Training

NEWCOMERS = ("none", "initial", "random")


class Client(NamedTuple):
    previous: Variables  # its model at the end of the last round that it took part in; before that the initial one
    has: Bool[Array, ""]  # whether it took part


def cosine(a: Array, b: Array) -> Float[Array, ""]:
    """Cosine of the angle between two arrays of one shape; 0, with the gradient 0, where one of them is all zeros."""
    return jnp.sum(losses.unit(a.reshape(-1)) * losses.unit(b.reshape(-1)))


def contrastive(z: Array, z_glob: Array, z_prev: Array, *, temperature: float) -> Float[Array, ""]:
    """Equation 3 for one example: -log of the softmax of (cos(z, z_glob), cos(z, z_prev)) / T at the first.

    All three [d] (or maps [h, w, d]); small where z is nearer to the global model's than to the previous one's.
    """
    return jax.nn.softplus((cosine(z, z_prev) - cosine(z, z_glob)) / temperature)


def moon(
    training: Training,
    *,
    mu: float = 1.0,
    temperature: float = 0.5,
    newcomers: str = "none",
    weighting: str = "examples",
) -> Algorithm:
    """FedAvg whose clients draw their features to those of the global model, and away from those of their previous one.

        L = CE(w; x, y) + mu l_con(z, z_glob, z_prev)        (a batch's mean)

    z are the features that the classifier reads; z_glob and z_prev are those of the received and of the client's previous
    model, both frozen and in evaluation mode, on the same inputs. mu = 0 is FedAvg. In round 0 there is no previous model,
    and no term.

    Not reproduced: the projection head (two dense layers, 256 features) that the paper puts before the classifier: here the
    features are the model's own, as in NIID-Bench; a buffer of several previous models.

    Args:
        mu: >= 0; 5 for CIFAR-10, 1 for CIFAR-100 and Tiny-ImageNet in the paper.
        temperature: T > 0.
        newcomers: what is the previous model of a client that takes part for the first time after round 0: 'none' (no
            term, as in round 0), 'initial' (the initial model of all, as in NIID-Bench) or 'random' (a random model of
            each client's own, as in the released code).
        weighting: 'examples' or 'uniform'.

    Raises:
        UserError: a label-mask model.
    """
    network = training.network
    if network is None:
        raise UserError("config.method: 'moon' needs a model with features, found a label-mask model")
    init = training.init
    if newcomers == "random" and init is None:
        raise UserError(
            "config.moon.newcomers: found 'random', expected 'none' or 'initial' without a way to make a model"
        )

    def local_update(download, client, data, round, key):
        w_t, previous = download.variables, client.previous
        has = client.has if newcomers == "none" else client.has | (round > 0)
        if newcomers == "random":
            assert init is not None
            own = init(jax.random.fold_in(jax.random.key(training.seed), data.id))
            own = jax.tree.map(lambda new, old: new.astype(old.dtype), own, previous)
            previous = tree.where(client.has, previous, own)

        def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
            key_inputs, key_network, key_loss = jax.random.split(key, 3)
            x, y = network.inputs(batch, key_inputs)
            z, logits, changed = network.train(variables, x, batch.mask, key_network)
            (z_glob, _), (z_prev, _) = network.evaluate(w_t, x), network.evaluate(previous, x)
            l_con = network.over_batch(
                jax.vmap(partial(contrastive, temperature=temperature))(z, z_glob, z_prev), batch.mask
            )
            l_con = jnp.where(has, l_con, jnp.zeros_like(l_con))
            return network.objective(logits, y, batch.mask, key_loss) + mu * l_con, changed

        tx = training.optimizer(training.lr(round))
        w_k, metrics = local.train(training, tx, w_t, data, key, loss=loss)
        return Model(w_k), Client(w_k, jnp.ones_like(client.has)), metrics

    return compose(
        fedavg.exchange(training, weighting)._replace(local_update=local_update),
        init_server=lambda variables, n: Model(variables),
        init_client=lambda variables: Client(variables, jnp.zeros((), bool)),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
