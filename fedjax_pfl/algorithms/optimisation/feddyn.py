"""FedDyn. Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, ICLR 2021, arXiv 2111.04263, Algorithm 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.core import Algorithm, Exchange, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training

ALPHAS = ("equal", "by_size")
EVALUATED = ("server", "mean")


class Server(NamedTuple):
    variables: Variables  # theta_t, where clients start; and batch-norm statistics, the participants' mean
    h: Any
    n: Float[Array, ""]  # number of clients, N
    mean: Variables  # of the participants' models, where that is what is evaluated; else ()


class Client(NamedTuple):
    h_k: Any  # the paper's gradient of the client's loss at its last model


def feddyn(
    training: Training,
    *,
    alpha: float = 0.01,
    fidelity: str = "paper",
    alphas: str | None = None,
    evaluated: str | None = None,
) -> Algorithm:
    """Dynamic regularisation, which makes the clients' optima agree with the server's.

        theta_k = argmin f_k(theta) - <h_k, theta> + alpha_k/2 ||theta - theta_t||^2        (E epochs of SGD)
        h_k <- h_k - alpha_k (theta_k - theta_t)
        h <- h - alpha (1/N) sum_{k in S} (theta_k - theta_t);   theta <- mean of theta_k over S - h / alpha

    h_k and h start at 0, and with equal alphas h is the mean of h_k over all N clients, at any participation, unless an
    upload is lost. Both terms are part of the gradient: momentum carries them and clipping sees them. alpha -> 0 is not
    FedAvg, since h / alpha stays: the server then adds up all updates so far. Batch-norm statistics are averaged.

    Not reproduced from the released code: its quadratic term hides in the weight decay, so that clipping spares it; its
    mean of the last known models of all clients; its independent draws of who takes part (see config.cohort).

    Args:
        alpha: more than 0.
        fidelity: sets the two switches below where they are None: 'paper' (equal, server) or 'reference', the released code
            (by_size, mean).
        alphas: alpha_k: 'equal' (alpha) or 'by_size' (alpha n / (N n_k), so that larger clients are held less).
        evaluated: the global model: 'server' (theta) or 'mean' (the mean of the participants' models; they still start
            from theta).

    Raises:
        UserError: alpha is not positive.
    """
    if alpha <= 0:
        raise UserError(f"config.feddyn.alpha: found {alpha}, expected more than 0")
    alphas = alphas or ("by_size" if fidelity == "reference" else "equal")
    evaluated = evaluated or ("mean" if fidelity == "reference" else "server")
    keep = training.keep()

    def local_update(download, client, data, round, key):
        theta_t, h_k, lr = download.variables, client.h_k, training.lr(round)
        alpha_k = jnp.full_like(lr, alpha)
        if alphas == "by_size":
            alpha_k = alpha_k * float(np.mean(training.sizes)) / jnp.maximum(data.count, 1).astype(lr.dtype)
        # grad f_k(theta) - h_k + alpha_k (theta - theta_t)
        linear, quadratic = local.correct(tree.scale(-1, h_k)), local.proximal(alpha_k, theta_t["params"])
        theta_k, metrics = local.train(
            training, optax.chain(linear, quadratic, training.optimizer(lr)), theta_t, data, key
        )
        h_k = tree.sub(h_k, tree.scale(alpha_k, tree.sub(theta_k["params"], theta_t["params"])))
        if keep is not None:  # what stays with the client has no server to agree with: its h_k stays 0
            own, _ = tree.split({"params": h_k}, keep(theta_t))
            h_k = tree.merge({"params": h_k}, tree.zeros_like(own))["params"]
        return Model(theta_k), Client(h_k), metrics

    def server_update(server, uploads, cohort, round):
        mean = aggregate.mean(uploads.variables, cohort, "uniform")
        real = jnp.result_type(float)  # counts are exact in float32, their shares aren't
        arrived = jnp.sum(aggregate.weights(cohort, "uniform")).astype(real) / server.n.astype(real)  # |S| / N
        drift = tree.sub(mean["params"], server.variables["params"])
        h = tree.sub(server.h, tree.scale(alpha * arrived, drift))
        theta = tree.sub(mean["params"], tree.scale(1 / alpha, h))
        return Server({**mean, "params": theta}, h, server.n, mean if evaluated == "mean" else ())

    def init_server(variables, n):
        zeros = tree.zeros_like(variables["params"])
        mean = jax.tree.map(jnp.array, variables) if evaluated == "mean" else ()  # a copy: a round may take both
        return Server(variables, zeros, jnp.float32(n), mean)

    def model(server: Server) -> Variables:
        return server.mean if evaluated == "mean" else server.variables

    return compose(
        Exchange(lambda server, id: Model(server.variables), local_update, server_update),
        init_server=init_server,
        init_client=lambda variables: Client(tree.zeros_like(variables["params"])),
        shared=lambda server, id: model(server),
        global_model=model,
        keep=keep,
        how=training.how,
        observe=training.observe,
    )
