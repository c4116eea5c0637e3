"""FedNova. Wang, Liu, Liang, Joshi, Poor, NeurIPS 2020, arXiv 2007.07481, Algorithm 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.core import Algorithm, Exchange, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training

NORMALISERS = ("consistent", "official")
TAU_EFF = ("norms", "steps")


class Server(NamedTuple):
    variables: Variables
    b: Any  # momentum of u / eta; () without it


class Upload(NamedTuple):
    variables: Variables  # w_k
    a: Float[Array, ""]  # ||a_k||_1
    tau: Int[Array, ""]  # local steps


def norm_of_a(
    tau: Int[Array, ""],
    eta_mu: Float[Array, ""],
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    normaliser: str = "consistent",
) -> Float[Array, ""]:
    """||a_k||_1: what (w - w_k) / eta is after tau local steps if every stochastic gradient is 1.

    Args:
        eta_mu: the learning rate times the strength of the proximal term.
        normaliser: 'consistent', by that definition: c <- rho c + 1 - eta mu a; a <- a + c. Or 'official', the released
            code's, where momentum and proximal term together count each step twice: c <- rho c + 1;
            a <- (a + c) (1 - eta mu) + 1. They agree unless both are there; the official one does not know Nesterov's form.
    """
    one, rho = jnp.ones_like(eta_mu), momentum

    def consistent(_, carry):
        c, a = carry
        g = one - eta_mu * a
        c = rho * c + g
        return c, a + (g + rho * c if nesterov else c)

    def official(_, carry):
        c, a = carry
        c = rho * c + one
        proximal = (a + c if rho else a) * (one - eta_mu) + one
        return c, jnp.where(eta_mu > 0, proximal, a + c)

    step = consistent if normaliser == "consistent" else official
    return jax.lax.fori_loop(0, tau, step, (jnp.zeros_like(one), jnp.zeros_like(one)))[1]


def fednova(
    training: Training,
    *,
    mu: float = 0.0,
    server_momentum: float = 0.0,
    fidelity: str = "paper",
    normaliser: str | None = None,
    tau_eff: str | None = None,
    weighting: str = "examples",
) -> Algorithm:
    """Averages the clients' updates per effective local step, so that who makes more of them has no larger say.

        d_k = (w - w_k) / (eta ||a_k||_1)        w <- w - tau_eff eta sum_k p_k d_k

    The local solver is the client's SGD with its momentum, and with mu > 0 FedProx's. Weight decay and clipping are part
    of a gradient and leave a_k alone (with mu > 0 and clipping, which then acts on the proximal term as well, the
    consistent a_k is that of steps that are not clipped). A client that made no step has no direction and no share in p.
    Running statistics of batch norm are averaged as in FedAvg.

    With equal ||a_k||_1 and tau_eff 'norms' it is FedAvg with the same local solver. p_k is over those that take part,
    all in the paper. Not reproduced: a number of local epochs that is random in each round; NIID-Bench's variant, which
    treats running statistics and step counters as it does the parameters.

    Args:
        mu: proximal term mu/2 ||w - w_t||^2 of the clients, >= 0.
        server_momentum: gamma of b <- gamma b + u / eta, w <- w - eta b, with u the update above.
        fidelity: sets the two switches below where they are None: 'paper' (consistent, norms) or 'reference', the released
            code (official, and with mu > 0 steps).
        normaliser: see `norm_of_a`.
        tau_eff: 'norms' (sum_k p_k ||a_k||_1) or 'steps' (sum_k p_k tau_k).
        weighting: of p_k: 'examples' (n_k / n) or 'uniform'.

    Raises:
        UserError: a client optimiser other than SGD.
    """
    if training.momentum is None:
        raise UserError(
            "config.client.optimizer: found another optimiser, expected 'sgd', as 'fednova' counts its steps"
        )
    rho, reference = training.momentum, fidelity == "reference"
    normaliser = normaliser or ("official" if reference else "consistent")
    tau_eff = tau_eff or ("steps" if reference and mu else "norms")

    def local_update(download, client, data, round, key):
        w, lr = download.variables, training.lr(round)
        tx = training.optimizer(lr)
        if mu:
            tx = optax.chain(local.proximal(mu, w["params"]), tx)
        w_k, metrics = local.train(training, tx, w, data, key)
        a = norm_of_a(metrics.steps, mu * lr, momentum=rho, nesterov=training.nesterov, normaliser=normaliser)
        return Upload(w_k, a, metrics.steps), client, metrics

    def server_update(server, uploads, cohort, round):
        w, w_k, lr = server.variables["params"], uploads.variables["params"], training.lr(round)
        moved = uploads.a > 0
        p = jnp.where(moved, aggregate.weights(cohort, weighting).astype(lr.dtype), 0)
        p = p / jnp.where(jnp.any(p > 0), jnp.sum(p), 1)
        a = jnp.where(moved, uploads.a, 1)
        tau = jnp.sum(p * (a if tau_eff == "norms" else uploads.tau.astype(a.dtype)))
        # u = tau_eff eta sum_k p_k d_k = sum_k share_k (w - w_k)
        share = tau * p / a
        u = tree.sub(tree.scale(jnp.sum(share), w), tree.weighted_sum(w_k, share))
        b = ()
        if server_momentum:
            b = tree.add(tree.scale(server_momentum, server.b), tree.scale(1 / lr, u))
            u = tree.scale(lr, b)
        statistics = aggregate.mean(uploads.variables, cohort, weighting)
        return Server({**statistics, "params": tree.sub(w, u)}, b)

    def init_server(variables, n):
        return Server(variables, tree.zeros_like(variables["params"]) if server_momentum else ())

    return compose(
        Exchange(lambda server, id: Model(server.variables), local_update, server_update),
        init_server=init_server,
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
