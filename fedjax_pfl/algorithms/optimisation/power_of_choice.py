"""Power-of-choice client selection. Cho, Wang, Joshi, arXiv 2010.01243, section 4."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fedjax_pfl import tree
from fedjax_pfl.algorithms.optimisation.fedavg import fedavg
from fedjax_pfl.core import Algorithm, Client, ClientData, Cohort, Report, State, Variables, client_map
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training, permutation


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
    network = training.network
    if network is None:
        raise UserError("config.method: 'power_of_choice' found a label-mask model, expected any other")
    if chosen < 1:
        raise UserError(f"config.power_of_choice.chosen: found {chosen}, expected 1 or more")
    algorithm, B = fedavg(training, weighting=weighting), training.batch_size

    def F_k(w: Variables, data: ClientData, key: Key[Array, ""]) -> Float[Array, ""]:  # noqa: N802
        n_max, n = data.x.shape[0], data.count
        order = jnp.arange(n_max, dtype=n.dtype)
        if sample:
            order, n = permutation(jax.random.fold_in(key, 0), n, n_max).astype(n.dtype), jnp.minimum(n, sample)

        def add_batch(i, total):
            place = i * B + jnp.arange(B, dtype=n.dtype)
            rows, mask = jnp.take(order, place, mode="clip"), place < n
            key_inputs, key_loss = jax.random.split(jax.random.fold_in(key, i + 1))
            x = network.plain(jnp.take(data.x, rows, axis=0), data.noise, key_inputs)
            _, logits = network.evaluate(w, x)
            loss = network.objective(logits, jnp.take(data.y, rows, axis=0), mask, key_loss)
            return total + (loss if training.summed else loss * jnp.sum(mask).astype(loss.dtype))

        zero = jnp.zeros((), jax.tree.leaves(w["params"])[0].dtype)
        total = jax.lax.fori_loop(0, -(-n // B), add_batch, zero)
        return total / jnp.maximum(n, 1).astype(total.dtype)

    def round(state: State, cohort: Cohort, key: Key[Array, ""]) -> tuple[State, Report]:
        d = len(cohort.ids)
        if chosen > d:
            raise UserError(
                f"config.power_of_choice.chosen: found {chosen}, expected at most {d}, the cohort's clients"
            )
        key_A = jax.random.fold_in(jax.random.fold_in(key, state.round), 1)  # FedAvg's communication has 0

        def candidate(client: Client, data: ClientData) -> tuple[Array, Array]:
            w, key_k = algorithm.client_model(state.server, client, data.id), jax.random.fold_in(key_A, data.id)
            return F_k(w, data, key_k), jax.random.bits(jax.random.fold_in(key_k, 0))

        loss, tie = client_map(candidate, training.how)(tree.take(state.clients, cohort.ids), cohort.data)
        loss = jnp.where(cohort.data.count > 0, loss, -jnp.inf)
        S_t = jnp.lexsort((tie, -loss))[:chosen]
        return algorithm.round(state, tree.take(cohort, S_t), key)

    return algorithm._replace(round=round)
