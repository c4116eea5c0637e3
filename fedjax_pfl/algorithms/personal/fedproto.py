"""FedProto. Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, AAAI 2022, arXiv 2105.00243, Algorithm 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from fedjax_pfl import local, prototypes, tree
from fedjax_pfl.core import Algorithm, ClientId, Exchange, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch, Training
from fedjax_pfl.prototypes import Prototypes, Sums


class Client(NamedTuple):
    variables: Variables
    owns: Bool[Array, " C"]  # the classes of the examples that it trained on


def fedproto(training: Training, *, lam: float = 1.0, weighting: str = "uniform", inference: str = "head") -> Algorithm:
    """Clients send the mean features of their classes, and no weights; each draws its features to the global ones.

        L_k = CE(z, y) + lambda (1/d) ||f_k(x) - C_y||^2    (a batch's mean; an example of a class without C_y adds 0)

    Prototypes are collected while the last local epoch trains, each batch before its step, as in the released code. The
    server's are made anew each round from those of the participants; a class that none of them has keeps the one it had (all
    clients take part in the paper). In round 0 there are none. The features are what the classifier reads.

    Args:
        lam: lambda >= 0; 0 is local training.
        weighting: of the clients that have a class, in its prototype: 'uniform' (the released code's) or 'examples' (the
            |D_kj| of the paper's Equation 6, whose further factor 1/|N_j| would shrink it).
        inference: 'head' (the classifier), or 'prototype': the class whose prototype is nearest, among those that the
            client has examples of, written as a classifier (f . C_j - |C_j|^2 / 2); until there is any, the head.

    Raises:
        UserError: the targets are no single labels, or inference='prototype' with a classifier that has no bias.
    """
    network = training.network
    if network is None:
        raise UserError("config.method: 'fedproto' needs one label an example, and no label-mask model")

    def local_update(download, client, data, round, key):
        if data.y.ndim != 1:
            raise UserError("config.method: 'fedproto' needs one label an example, found several")

        def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
            key_inputs, key_network, key_loss = jax.random.split(key, 3)
            x, y = network.inputs(batch, key_inputs)
            model = {name: part for name, part in variables.items() if name != "sums"}
            f, z, changed = network.train(model, x, batch.mask, key_network)
            distance, _ = prototypes.squared_distance(download, f, y)
            L_R = network.over_batch(distance / f.shape[-1], batch.mask)
            L = network.objective(z, y, batch.mask, key_loss) + lam * L_R
            return L, {**changed, "sums": prototypes.add(variables["sums"], f, y, batch.mask)}

        tx = training.optimizer(training.lr(round))
        none = prototypes.zeros(network.classes, *prototypes.width(client.variables, training.layers))
        variables, _, metrics = local.train_on(
            training,
            tx,
            {**client.variables, "sums": none},
            tx.init(client.variables["params"]),
            data,
            key,
            loss=loss,
            begin=lambda variables, key: {**variables, "sums": none},  # so that the last epoch's remain
        )
        sums: Sums = variables.pop("sums")
        return sums, Client(variables, sums.counts > 0), metrics

    def server_update(server: Prototypes, uploads: Sums, cohort, round) -> Prototypes:
        return prototypes.update(server, prototypes.over_clients(uploads, weighting))

    def nearest(server: Prototypes, client: Client, id: ClientId) -> Variables:
        """The client's model with the prototypes as its classifier."""
        path, _ = tree.dense(client.variables, training.layers[-1])
        known, C = server.has & client.owns, server.mean
        never = jnp.full_like(C[:, 0], jnp.finfo(C.dtype).min / 2)  # finite, and below any other logit
        bias = jnp.where(known, -jnp.sum(jnp.square(C), -1) / 2, never)
        kernel = jnp.where(known[:, None], C, jnp.zeros_like(C)).T
        model = tree.merge(client.variables, tree.nest(path, {"kernel": kernel, "bias": bias}))
        return tree.where(jnp.any(known), model, client.variables)

    def init_client(variables: Variables) -> Client:
        if inference == "prototype" and "bias" not in tree.dense(variables, training.layers[-1])[1]:
            raise UserError(
                "config.fedproto.inference: found 'prototype', expected 'head', as the model's classifier has no bias"
            )
        return Client(variables, jnp.zeros((network.classes,), bool))

    algorithm = compose(
        Exchange(lambda server, id: server, local_update, server_update),
        init_server=lambda variables, n: prototypes.none(variables, training.layers, network.classes),
        init_client=init_client,
        shared=None,
        own=lambda client, shared: client.variables,
        how=training.how,
        observe=training.observe,
    )
    return algorithm._replace(client_model=nearest) if inference == "prototype" else algorithm
