"""FedRep. Collins, Hassani, Mokhtari, Shakkottai, ICML 2021, arXiv 2102.07078, Algorithm 1."""

import jax
import jax.numpy as jnp
import optax

from fedjax_pfl import local, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


def fedrep(
    training: Training,
    *,
    personal_layers: int = 1,
    head_epochs: int = 10,
    body_epochs: int = 1,
    weighting: str = "uniform",
) -> Algorithm:
    """A shared representation phi and a head h_k per client, trained one after the other: first the head on the phi that
    came, then phi on the new head. Only phi travels.

    Each phase has an optimiser of its own, and what is frozen rests: decay and momentum don't move it, the clipped norm
    leaves it out. (So do the released code's frozen tensors, whose gradients are None.) Batch-norm running statistics follow
    the client's data in both phases. A client that hasn't taken part has the initial head.

    config.client.epochs isn't read: the two phases have numbers of their own.

    Not reproduced from the released code: stored heads that alias the global network's, so that a client begins with the
    average of other clients' heads; heads that go on drifting in the second phase under old PyTorch versions, which fill
    gradients with zeros; weight decay that spares the biases; the extra round of head training after the last.

    Args:
        personal_layers: how many of the last top-level layers are the head, at least 1 and less than all.
        head_epochs: tau_h, epochs of the head in a round, 0 or more.
        body_epochs: tau_phi, epochs of the representation, at least 1.
        weighting: of the phi_k: 'uniform' (the paper's) or 'examples' (the released code's on FEMNIST and Sent140).

    Raises:
        UserError: personal_layers doesn't fit the model.
    """
    if not 0 < personal_layers < len(training.layers):
        raise UserError(
            f"config.fedrep.personal_layers: found {personal_layers}, expected 1 to {len(training.layers) - 1}, "
            f"as the model has the layers {', '.join(training.layers)}"
        )
    head = tree.top_level(training.layers[-personal_layers:])

    def phase(frozen: tree.Where, epochs: int, variables, data, round, key):
        # before, so that clipping sees the trained part alone; after, so that decay moves nothing else
        freeze = local.freeze(frozen, jnp.asarray(True))
        tx = optax.chain(freeze, training.optimizer(training.lr(round)), freeze)
        return local.train(training, tx, variables, data, key, epochs=epochs)

    def local_update(download, client, data, round, key):
        key_h, key_phi = jax.random.split(key)
        # tau_h epochs of h_k with phi fixed
        w_k, of_head = phase(lambda path: not head(path), head_epochs, download.variables, data, round, key_h)
        # tau_phi epochs of phi with h_k fixed
        w_k, of_body = phase(head, body_epochs, w_k, data, round, key_phi)
        return Model(w_k), client, tree.add(of_head, of_body)._replace(last_epoch=of_body.last_epoch)

    return compose(
        fedavg.exchange(training, weighting)._replace(local_update=local_update),
        init_server=lambda variables, n: Model(variables),
        keep=training.keep(head),
        how=training.how,
        observe=training.observe,
    )
