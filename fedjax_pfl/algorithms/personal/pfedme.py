"""pFedMe. Dinh, Tran, Nguyen, NeurIPS 2020, arXiv 2006.08848, Algorithm 1."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.core import Algorithm, Exchange, Model, Variables, compose
from fedjax_pfl.local import Training


class Client(NamedTuple):
    theta: Variables  # the personal model of its last round, only for use: training begins at w
    own: Bool[Array, ""]  # whether there is one yet; before, the client uses w


def pfedme(
    training: Training,
    *,
    lam: float = 15.0,
    inner_steps: int = 5,
    personal_lr: float = 0.01,
    beta: float = 1.0,
    weighting: str = "uniform",
) -> Algorithm:
    """Personal models by Moreau envelopes: w minimises the mean of F_k(w) = min_theta f_k(theta) + lambda/2 ||theta - w||^2.

        each of a client's R mini-batches:  theta: K steps  theta <- theta - eta_p (grad f_k(theta) + lambda (theta - w_k))
                                            w_k <- w_k - eta lambda (w_k - theta)
        server:                             w <- (1 - beta) w + beta mean of w_k

    theta begins a round at w and goes on from batch to batch. Its steps are the client optimiser's at the rate eta_p, whose
    momentum goes on too; the paper's are plain. eta is config.client.lr with its schedule, the released code's l2 term mu is
    config.client.weight_decay (0.001), R is the number of batches in config.client.epochs. In the paper all clients train in
    each round and some uploads are used: with all clients in the cohort that is config.cohort.drop_out.

    Batch-norm running statistics are those of theta's forward passes, for theta and w_k alike; beta leaves them alone: the
    server takes their mean.

    Not reproduced from the released code: its 'personalised' evaluation, which measures w_k after the round, as its list of
    personal models aliases it.

    Args:
        lam: lambda >= 0. 0 leaves w where it is.
        inner_steps: K, gradient steps on each mini-batch, at least 1.
        personal_lr: eta_p.
        beta: of the server's step; the paper's runs have 1 or 2.
        weighting: of the w_k: 'uniform' (the paper's) or 'examples' (the released code's).
    """

    def local_update(download, client, data, round, key):
        eta, eta_p = training.lr(round), jnp.asarray(personal_lr, jnp.result_type(float))
        w = download.variables

        def tx(w_k):
            return optax.chain(local.proximal(lam, w_k), training.optimizer(eta_p))

        def step(carry, key, batch):
            theta, w_k, opt_state = carry

            def inner(carry, _):
                theta, opt_state = carry
                rest = {name: part for name, part in theta.items() if name != "params"}
                (value, changed), grads = jax.value_and_grad(
                    lambda params: training.loss({**rest, "params": params}, batch, key), has_aux=True
                )(theta["params"])
                updates, opt_state = tx(w_k).update(grads, opt_state, theta["params"])
                theta = {**theta, **changed, "params": optax.apply_updates(theta["params"], updates)}
                return (theta, opt_state), value

            (theta, opt_state), values = jax.lax.scan(inner, (theta, opt_state), length=inner_steps)
            w_k = tree.sub(w_k, tree.scale(eta * lam, tree.sub(w_k, theta["params"])))
            return (theta, w_k, opt_state), values[-1]

        carry = (w, w["params"], tx(w["params"]).init(w["params"]))
        (theta, w_k, _), metrics = local.steps(training, step, carry, data, key)
        return Model({**theta, "params": w_k}), Client(theta, jnp.asarray(True)), metrics

    def server_update(server, uploads, cohort, round):
        w, mean = server.variables, aggregate.mean(uploads.variables, cohort, weighting)
        params = tree.add(tree.scale(1 - beta, w["params"]), tree.scale(beta, mean["params"]))
        return Model({**mean, "params": params})

    return compose(
        Exchange(lambda server, id: server, local_update, server_update),
        init_server=lambda variables, n: Model(variables),
        init_client=lambda variables: Client(variables, jnp.asarray(False)),
        own=lambda client, shared: tree.where(client.own, client.theta, shared),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
