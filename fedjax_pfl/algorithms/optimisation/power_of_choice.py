"""Power-of-choice client selection. Cho, Wang, Joshi, arXiv 2010.01243, section 4."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fedjax_pfl import traffic, tree
from fedjax_pfl.algorithms.optimisation.fedavg import fedavg
from fedjax_pfl.core import Algorithm, Client, ClientData, Cohort, Report, Server, State, Variables, client_map
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training, mean_loss, permutation


def power_of_choice(training: Training, *, chosen: int = 2, sample: int = 0, weighting: str = "uniform") -> Algorithm:
    """FedAvg of those m clients, of the d in the cohort, on whose examples the received model does worst.

    A is the cohort: d = config.cohort.size, and config.cohort.sampling = 'by_size' draws it as the paper does. Each of A
    returns F_k(w), its mean loss in evaluation mode without augmentation; S_t are the m clients with the largest, ties at
    random. m = d is FedAvg. A client may be chosen whose upload is then lost.

    Not reproduced: rpow-d, which takes the last known training loss for F_k(w).

    Args:
        chosen: m, at least 1 and at most d.
        sample: 0: F_k is over all of a client's examples (pow-d); b > 0: over b of them (cpow-d).
        weighting: of the m models: 'uniform' (the paper's) or 'examples'.

    Raises:
        UserError: a label-mask model, or m is not in 1 ... d.
    """
    if training.network is None:
        raise UserError("config.method: 'power_of_choice' found a label-mask model, expected any other")
    if chosen < 1:
        raise UserError(f"config.power_of_choice.chosen: found {chosen}, expected 1 or more")
    algorithm = fedavg(training, weighting=weighting)

    def F_k(w: Variables, data: ClientData, key: Key[Array, ""]) -> Float[Array, ""]:  # noqa: N802
        if not sample:
            return mean_loss(training, w, data, key)
        order = permutation(jax.random.fold_in(key, 0), data.count, data.x.shape[0])
        return mean_loss(training, w, data, key, order, jnp.minimum(data.count, sample))

    def round(state: State, cohort: Cohort, key: Key[Array, ""]) -> tuple[State, Report]:
        d = len(cohort.ids)
        if chosen > d:
            raise UserError(
                f"config.power_of_choice.chosen: found {chosen}, expected at most {d}, the cohort's clients"
            )
        key_A = jax.random.fold_in(jax.random.fold_in(key, state.round), 1)  # FedAvg's communication has 0

        def candidate(server: Server, key_A: Key[Array, ""], client: Client, data: ClientData) -> tuple[Array, Array]:
            w, key_k = algorithm.client_model(server, client, data.id), jax.random.fold_in(key_A, data.id)
            return F_k(w, data, key_k), jax.random.bits(jax.random.fold_in(key_k, 0))

        mapped = client_map(candidate, training.how, (state.server, key_A))
        loss, tie = mapped(tree.take(state.clients, cohort.places), cohort.data)
        loss = jnp.where(cohort.data.count > 0, loss, -jnp.inf)
        S_t = jnp.lexsort((tie, -loss))[:chosen]
        return algorithm.round(state, tree.take(cohort, S_t), key)

    def of_candidates(state: State, cohort: Cohort) -> traffic.Traffic:
        d = len(cohort.ids)
        of_m = traffic.of(algorithm, state, tree.take(cohort, jnp.arange(min(chosen, d))))
        number = jax.tree.leaves(state.server.variables)[0].dtype.itemsize
        return traffic.Traffic(of_m.down, of_m.up * min(chosen, d) / d + number)  # all d get w and send F_k, m send w_k

    return algorithm._replace(round=round, traffic=of_candidates)
