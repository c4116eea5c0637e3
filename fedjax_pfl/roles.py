"""Parts of a cohort, for methods in which one client is special; each is a `select` of an `Exchange`."""

import jax
import jax.numpy as jnp

from fedjax_pfl.core import Cohort, Report, only


def one(cohort: Cohort, id: int, n: int) -> Cohort:
    """A cohort of one row: the client `id` of n, or padding where it isn't there."""
    row = jnp.argmax(cohort.ids == id)[None]
    cohort = jax.tree.map(lambda leaf: jnp.take(leaf, row, axis=0), cohort)
    return only(cohort, cohort.ids == id, n)


def others(cohort: Cohort, id: int, n: int) -> Cohort:
    """The cohort without the client `id` of n: its row becomes padding. There are never more than n - 1 rows."""
    order = jnp.argsort((cohort.ids == id) | (cohort.ids >= n), stable=True)[: min(cohort.ids.shape[0], n - 1)]
    cohort = jax.tree.map(lambda leaf: jnp.take(leaf, order, axis=0), cohort)
    return only(cohort, cohort.ids != id, n)


def with_public(cohort: Cohort, id: int, n: int) -> Cohort:
    """The cohort, each client with the examples of client `id` of n as `data.public`: none, where that one isn't there."""
    data = one(cohort, id, n).data._replace(validation=())
    public = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(cohort.ids), *leaf.shape[1:])), data)
    return cohort._replace(data=cohort.data._replace(public=public))


def both(some: Report, rest: Report) -> Report:
    """The report of a round in which these were two exchanges' clients."""
    ids, train, finite = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves),
        *((report.ids, report.train, report.finite) for report in (some, rest)),
    )
    return Report(ids, train, finite, some.server_finite & rest.server_finite)
