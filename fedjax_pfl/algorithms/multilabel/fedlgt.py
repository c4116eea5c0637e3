"""FedLGT. Liu, Lin, Yang, Wang, AAAI 2024, arXiv 2312.07165: FedAvg whose clients mask labels as the global model doubts.

Its other half, the universal label embedding, is part of the model: `models.ctran` with labels 'clip' or 'text'.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.core import Algorithm, Cohort, Exchange, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training
from fedjax_pfl.models.ctran import UNKNOWN


class Upload(NamedTuple):
    """What a client sends."""

    variables: Variables
    loss: Float[Array, ""]  # mean over the examples of the last local epoch


def fedlgt(
    training: Training,
    *,
    tau: float = 0.5,
    epsilon: float = 0.02,
    fidelity: str = "paper",
    first_sample_only: bool | None = None,
    closed_interval: bool | None = None,
    weighting: str = "examples",
) -> Algorithm:
    """Client-aware masked label embedding (CA-MLE) on top of label-mask training, aggregated as FedAvg does.

    A label of which the received global model G, frozen and in evaluation mode, is unsure on an example,
    tau - epsilon < sigma(G(x)) < tau + epsilon with all labels unknown, is not revealed there; the loss is over the labels
    that are unknown in the end. epsilon = 0 is FedAvg with the label-mask transformer (FedC-Tran).

    Where inputs don't change from draw to draw (no augmentation, no input noise) G runs once per example and round; else on
    each batch as augmented, since a label may be in doubt on one view of an image and not on another.

    Departures of the released code, each a switch; `fidelity='reference'` turns on those that are left None:
        first_sample_only: only element 0 of each mini-batch is re-masked.
        closed_interval: tau - epsilon <= sigma(G(x)) <= tau + epsilon.
    Others of its departures are options elsewhere: config.model.ctran.swapped_states, config.cohort.sampling='uniform' (the
    paper draws clients by their number of examples), weighting='loss'. Not reproduced: in its first round G is in training
    mode, its masks can't be repeated (seeded anew from the system), and it averages the frozen tables too.

    Args:
        weighting: 'examples' (n_k / n), 'uniform', or 'loss': softmax over clients of the last local epoch's mean loss, so
            that clients with a larger loss count more.

    Raises:
        UserError: the model is no label-mask model.
    """
    label_mask = training.label_mask
    if label_mask is None:
        raise UserError("config.method: 'fedlgt' needs a label-mask model, expected config.model.name='ctran'")
    reference = fidelity == "reference"
    first_only = reference if first_sample_only is None else first_sample_only
    closed = reference if closed_interval is None else closed_interval

    def unsure(z: Array) -> Array:
        p = jax.nn.sigmoid(z)
        return (tau - epsilon <= p) & (p <= tau + epsilon) if closed else (tau - epsilon < p) & (p < tau + epsilon)

    def local_update(download, client, data, round, key):
        G = download.variables
        table = None if label_mask.table is None else unsure(label_mask.table(G, data))

        def remask(x, states, batch):
            doubt = unsure(label_mask.logits(G, x)) if table is None else jnp.take(table, batch.index, axis=0)
            if first_only:
                doubt = doubt & (jnp.arange(doubt.shape[0]) == 0)[:, None]
            return jnp.where(doubt, jnp.int8(UNKNOWN), states)

        loss = partial(label_mask.loss, remask=remask)
        tx = training.optimizer(training.lr(round))
        w_k, metrics = local.train(training, tx, G, data, key, loss=loss)
        seen = data.count // training.batch_size * training.batch_size if training.drop_last else data.count
        mean_loss = metrics.last_epoch / jnp.maximum(seen, 1).astype(metrics.last_epoch.dtype)
        return Upload(w_k, mean_loss), client, metrics

    def server_update(server, uploads, cohort, round):
        if weighting == "loss":
            return Model(tree.weighted_mean(uploads.variables, _softmax(uploads.loss, cohort)))
        return Model(aggregate.mean(uploads.variables, cohort, weighting))

    return compose(
        Exchange(lambda server, id: server, local_update, server_update),
        init_server=lambda variables, n: Model(variables),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )


def _softmax(losses: Float[Array, " K"], cohort: Cohort) -> Any:
    """Weights exp(loss_k), up to a factor; 0 for lost uploads and padding."""
    arrived = cohort.weight > 0
    largest = jnp.max(losses, where=arrived, initial=-jnp.inf)
    return jnp.where(arrived, jnp.exp(losses - largest), jnp.zeros_like(losses))
