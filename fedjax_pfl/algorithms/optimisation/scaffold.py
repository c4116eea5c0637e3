"""SCAFFOLD. Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, ICML 2020, arXiv 1910.06378, Algorithm 1, options I and II."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.core import Algorithm, Exchange, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


class Server(NamedTuple):
    variables: Variables  # x, and batch-norm statistics, which no control variate corrects
    c: Any  # control variate, the mean of all c_i
    n: Float[Array, ""]  # number of clients, N


class Client(NamedTuple):
    c_i: Any


class Download(NamedTuple):
    variables: Variables
    c: Any


class Upload(NamedTuple):
    variables: Variables  # y_i; the server forms the paper's Delta y_i = y_i - x
    delta_c: Any


CORRECTED = ("gradient", "step")


def scaffold(
    training: Training,
    *,
    option: int = 2,
    corrected: str = "gradient",
    server_lr: float = 1.0,
    weighting: str = "uniform",
) -> Algorithm:
    """Stochastic controlled averaging.

    c = mean of c_i over all N clients, at every round and any participation, unless an upload is lost. Control variates
    start at 0. Option II equals the mean of the raw gradients along the path for plain SGD only (not with momentum).

    Args:
        option: 1 (gradient at the server's point over all of the client's examples, without weight decay) or 2.
        corrected: what c - c_i is added to: 'gradient', as in the paper, or 'step', y_i <- y_i - eta_l (c - c_i) after the
            optimiser's, as in NIID-Bench's code. The same for plain SGD. With momentum the control variates of option II
            grow as the steps do, so that through the gradient momentum counts twice and long local training diverges.
        server_lr: eta_g.
        weighting: of the model updates: 'uniform' (the paper's) or 'examples'.

    Raises:
        UserError: the loss is a batch's sum; control variates are gradients of a mean.
    """
    if training.summed:
        raise UserError("config.loss.over_batch: found 'sum', but the control variates of 'scaffold' need 'mean'")
    keep = training.keep()

    def local_update(download, client, data, round, key):
        (x, c), c_i = download, client.c_i
        lr = training.lr(round)
        # Lines 7-11: y_i <- y_i - eta_l (g_i(y_i) - c_i + c)
        if corrected == "gradient":
            tx = optax.chain(local.correct(tree.sub(c, c_i)), training.optimizer(lr))
        else:
            tx = optax.chain(training.optimizer(lr), local.correct(tree.scale(lr, tree.sub(c_i, c))))
        y_i, metrics = local.train(training, tx, x, data, key)
        # Line 12, with K the client's own number of steps
        if option == 1:
            c_i_plus = local.gradient(training, x, data, key)
        else:
            k = jnp.maximum(metrics.steps, 1).astype(lr.dtype)
            drift = tree.scale(1 / (k * lr), tree.sub(x["params"], y_i["params"]))
            c_i_plus = tree.add(tree.sub(c_i, c), drift)
        # A client too small for a single step has learnt nothing about its gradient: it keeps its control variate.
        c_i_plus = tree.where(metrics.steps > 0, c_i_plus, c_i)
        if keep is not None:  # what stays with the client follows its own gradient: its control variates stay 0
            own, _ = tree.split({"params": c_i_plus}, keep(x))
            c_i_plus = tree.merge({"params": c_i_plus}, tree.zeros_like(own))["params"]
        return Upload(y_i, tree.sub(c_i_plus, c_i)), Client(c_i_plus), metrics

    def server_update(server, uploads, cohort, round):
        # Lines 16-17: x <- x + eta_g mean(Delta y_i),  c <- c + |S|/N mean(Delta c_i)
        y = aggregate.mean(uploads.variables, cohort, weighting)
        x, delta_y = server.variables["params"], tree.sub(y["params"], server.variables["params"])
        share = jnp.result_type(float)
        arrived = aggregate.weights(cohort, "uniform")
        delta_c = aggregate.mean(uploads.delta_c, cohort, "uniform")
        return Server(
            {**y, "params": tree.add(x, tree.scale(server_lr, delta_y))},
            tree.add(server.c, tree.scale(jnp.sum(arrived).astype(share) / server.n.astype(share), delta_c)),
            server.n,
        )

    return compose(
        Exchange(lambda server, id: Download(server.variables, server.c), local_update, server_update),
        init_server=lambda variables, n: Server(variables, tree.zeros_like(variables["params"]), jnp.float32(n)),
        init_client=lambda variables: Client(tree.zeros_like(variables["params"])),
        global_model=lambda server: server.variables,
        keep=keep,
        how=training.how,
        observe=training.observe,
    )
