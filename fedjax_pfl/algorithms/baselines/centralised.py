"""Centralised training: the data of all clients pooled in one place. The bound that federation is measured against."""

import jax
import jax.numpy as jnp

from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, ClientData, Cohort, Model, compose
from fedjax_pfl.local import Training
from fedjax_pfl.traffic import Traffic


def pool(cohort: Cohort) -> Cohort:
    """The cohort as one client that holds everybody's rows, clients in the order of their ids."""
    order = jnp.argsort(cohort.ids)  # so that the order of the cohort changes nothing
    data = jax.tree.map(lambda leaf: jnp.take(leaf, order, axis=0), cohort.data)
    k, n_max = data.y.shape[:2]
    valid = jnp.arange(n_max, dtype=data.count.dtype)[None, :] < jnp.broadcast_to(data.count[:, None], (k, n_max))
    rows = jnp.argsort(~valid.reshape(-1), stable=True)
    one = ClientData(
        id=jnp.zeros((1,), cohort.ids.dtype),
        count=jnp.sum(data.count, dtype=data.count.dtype)[None],
        x=jnp.take(data.x.reshape(k * n_max, *data.x.shape[2:]), rows, axis=0)[None],
        y=jnp.take(data.y.reshape(k * n_max, *data.y.shape[2:]), rows, axis=0)[None],
        noise=jnp.zeros((1,), data.noise.dtype),
    )
    return Cohort(one.id, jnp.sum(cohort.weight)[None], one)


def centralised(training: Training) -> Algorithm:
    """Plain training on the union of the cohort's data; a round is E epochs over it with a fresh optimiser.

    No messages are counted: it is the examples that travelled, once.

    Per-client input noise (NIID-Bench's feature skew) is not applied to the pooled rows.
    """
    return compose(
        fedavg.exchange(training, "examples")._replace(select=pool),
        init_server=lambda variables, n: Model(variables),
        global_model=lambda server: server.variables,
        how=training.how,
    )._replace(traffic=lambda state, cohort: Traffic(0.0, 0.0))
