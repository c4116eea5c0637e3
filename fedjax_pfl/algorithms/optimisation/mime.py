"""Mime and MimeLite. Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, NeurIPS 2021, arXiv 2008.03606, Algorithm 1."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.core import Algorithm, Exchange, Metrics, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch, Training

BASES = ("sgd", "momentum", "adam")


class Base(NamedTuple):
    """The centralised optimiser that is mimicked: x <- x - eta U(g, s), s <- V(g, s)."""

    init: Callable[[Any], Any]  # s, given the parameters
    U: Callable[[Any, Any], Any]
    V: Callable[[Any, Any], Any]


class Moments(NamedTuple):
    m: Any
    v: Any


class Server(NamedTuple):
    variables: Variables  # x
    s: Any  # the base optimiser's statistics, which clients read and only the server changes
    c: Any  # mean of the participants' gradients at x; () for MimeLite


class Upload(NamedTuple):
    variables: Variables  # y_i (in Mime's first communication x, as it came)
    gradient: Any  # of f_i at x


def base_optimizer(name: str, beta1: float, beta2: float, epsilon: float, v0: float) -> Base:
    """sgd: U = g. momentum: U = V = (1 - beta1) g + beta1 m. adam: U = ((1 - beta1) g + beta1 m) / (sqrt(v) + epsilon), with
    V the usual means of g and g^2, no bias correction, and v starting at v0."""

    def mean(beta: float, new: Any, old: Any) -> Any:
        return tree.add(tree.scale(1 - beta, new), tree.scale(beta, old))

    if name == "sgd":
        return Base(lambda x: (), lambda g, s: g, lambda g, s: s)
    if name == "momentum":
        return Base(tree.zeros_like, lambda g, m: mean(beta1, g, m), lambda g, m: mean(beta1, g, m))
    return Base(
        lambda x: Moments(tree.zeros_like(x), jax.tree.map(lambda leaf: jnp.full_like(leaf, v0), x)),
        lambda g, s: jax.tree.map(lambda u, v: u / (jnp.sqrt(v) + epsilon), mean(beta1, g, s.m), s.v),
        lambda g, s: Moments(mean(beta1, g, s.m), mean(beta2, jax.tree.map(jnp.square, g), s.v)),
    )


def _mime(method: str, training: Training, base: Base, weighting: str, lite: bool) -> Algorithm:
    if training.summed:
        raise UserError(f"config.loss.over_batch: found 'sum', but the gradients of '{method}' need 'mean'")
    keep = training.keep()

    def shared(x: Variables, a: Any, otherwise: Any) -> Any:
        """a for the parameters that travel; `otherwise` for those that stay with the client, which nobody mimics."""
        if keep is None:
            return a
        own, _ = tree.split({"params": otherwise}, keep(x))
        return tree.merge({"params": a}, own)["params"]

    def gradient(x: Variables, data, key) -> Any:
        g = local.gradient(training, x, data, key)
        return shared(x, g, tree.zeros_like(g))

    def report_gradient(download, client, data, round, key):
        """grad f_i(x) over all of a client's examples."""
        g, none = gradient(download.variables, data, key), jnp.zeros((), jnp.int32)
        zero = jnp.zeros((), jax.tree.leaves(g)[0].dtype)
        return Upload(download.variables, g), client, Metrics(zero, none, none, zero)

    def take_gradient(server, uploads, cohort, round):
        return server._replace(c=aggregate.mean(uploads.gradient, cohort, weighting))

    def local_update(download, client, data, round, key):
        x, s, c = download
        rest = {name: part for name, part in x.items() if name != "params"}

        def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
            """Its gradient is grad f_i(y; zeta) - grad f_i(x; zeta) + c, its value f_i(y; zeta)."""
            value, changed = training.loss(variables, batch, key)
            g_x = jax.grad(lambda params: training.loss({"params": params, **rest}, batch, key)[0])(x["params"])
            correction = shared(x, tree.sub(c, g_x), tree.zeros_like(g_x))
            products = jax.tree.map(lambda a, b: jnp.sum(a * b), correction, variables["params"])
            linear = sum(jax.tree.leaves(products), jnp.zeros_like(value))
            return value + (linear - jax.lax.stop_gradient(linear)), changed

        # y_i <- y_i - eta U(g, s), with s as it came
        direction = optax.stateless(lambda g, params: shared(x, base.U(g, s), g))
        tx = optax.chain(direction, training.optimizer(training.lr(round)))
        y_i, metrics = local.train(training, tx, x, data, key, loss=None if lite else loss)
        return Upload(y_i, gradient(x, data, key) if lite else ()), client, metrics

    def server_update(server, uploads, cohort, round):
        # x <- mean of y_i,  s <- V(mean of grad f_i(x), s)
        c = aggregate.mean(uploads.gradient, cohort, weighting) if lite else server.c
        return Server(aggregate.mean(uploads.variables, cohort, weighting), base.V(c, server.s), server.c)

    def init_server(variables, n):
        params = variables["params"]
        return Server(variables, base.init(params), () if lite else tree.zeros_like(params))

    first = Exchange(lambda server, id: Model(server.variables), report_gradient, take_gradient)
    second = Exchange(lambda server, id: server, local_update, server_update)
    return compose(
        *((second,) if lite else (first, second)),
        init_server=init_server,
        global_model=lambda server: server.variables,
        keep=keep,
        how=training.how,
        observe=training.observe,
    )


def mime(
    training: Training,
    *,
    base: str = "momentum",
    beta1: float = 0.9,
    beta2: float = 0.99,
    epsilon: float = 1e-3,
    v0: float = 1.0,
    weighting: str = "uniform",
) -> Algorithm:
    """Clients that step as a centralised optimiser would: with its statistics, held still, and a corrected gradient.

        c <- mean of grad f_i(x) over S                        (a communication of its own)
        y_i <- y_i - eta U(grad f_i(y_i; zeta) - grad f_i(x; zeta) + c, s)
        x <- mean of y_i over S,  s <- V(c, s)

    Clipping, weight decay and momentum of config.client act on what U gives; the paper has none of them there. grad f_i(x)
    is over all of a client's examples, without weight decay. Batch-norm statistics are averaged. What stays with a client
    follows its own plain gradient.

    Args:
        base: 'sgd', 'momentum' or 'adam', see `base_optimizer`.
        beta1, beta2, epsilon, v0: its; the smaller v0, the longer adam's first steps.
        weighting: of models and gradients: 'uniform' (1 / |S|) or 'examples'.

    Raises:
        UserError: the loss is a batch's sum; statistics are of the gradients of a mean.
    """
    return _mime("mime", training, base_optimizer(base, beta1, beta2, epsilon, v0), weighting, lite=False)


def mimelite(
    training: Training,
    *,
    base: str = "momentum",
    beta1: float = 0.9,
    beta2: float = 0.99,
    epsilon: float = 1e-3,
    v0: float = 1.0,
    weighting: str = "uniform",
) -> Algorithm:
    """Mime without its correction: U sees the client's own gradient, and one communication is enough.

    With base='sgd' it is FedAvg. Arguments and errors as in `mime`.
    """
    return _mime("mimelite", training, base_optimizer(base, beta1, beta2, epsilon, v0), weighting, lite=True)
