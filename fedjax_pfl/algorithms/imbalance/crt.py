"""Decoupled training: cRT and tau-norm. Kang, Xie, Rohrbach, Yan, Gordo, Feng, Kalantidis, ICLR 2020, arXiv 1910.09217."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from fedjax_pfl import local, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Exchange, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch, Training


class Server(NamedTuple):
    variables: Variables
    head: Variables  # the classifier of the initial model: what the second stage starts from
    restarted: Bool[Array, ""]  # whether the second stage has begun


class Client(NamedTuple):
    part: Variables  # its own classifier, and what else its second stage changes
    tuned: Bool[Array, ""]  # whether there is one yet


def crt(
    training: Training,
    *,
    start: int = 40,
    classifier: str = "retrain",
    retrain: str = "federated",
    sampler: str = "class_balanced",
    tau: float = 0.7,
    fidelity: str = "paper",
    weighting: str = "examples",
) -> Algorithm:
    """FedAvg until round `start`; then the backbone rests, and a new classifier is trained on class-balanced samples.

    The new classifier starts from that of the initial model. start >= rounds is FedAvg.

    Args:
        start: rounds of the first stage.
        classifier: 'retrain' (cRT), or 'normalise' (tau-norm: FedAvg all along, its clients using w_c / ||w_c||^tau
            without bias for each class's row w_c of the classifier).
        retrain: 'federated' (one classifier, averaged) or 'local' (one for each client, which stays there).
        sampler: of the second stage, a name of `local.SAMPLERS`.
        tau: of tau-norm, 0 to 1; 0 leaves the weights as they are.
        fidelity: of the second stage. 'paper': the backbone is in evaluation mode, so that nothing of it changes.
            'reference' (the released code): it stays in training mode, so that its batch-norm running statistics go on
            drifting under the new sampling, and batches are normalised by their own.
        weighting: 'examples' (n_k / n) or 'uniform'.

    Raises:
        UserError: a label-mask model, no single labels, or (tau-norm) a classifier that is no dense layer.
    """
    network = training.network
    if network is None:
        raise UserError("config.method: 'crt' needs one label an example, and no label-mask model")
    drifts, alone = fidelity == "reference", retrain == "local"
    is_head = tree.top_level(training.layers[-1:])
    changes = tree.either(is_head, tree.statistics) if drifts else is_head
    average, second_training = fedavg.exchange(training, weighting), training._replace(sampler=sampler)

    def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
        key_inputs, key_network, key_loss = jax.random.split(key, 3)
        x, y = network.inputs(batch, key_inputs)
        head, _ = tree.split(variables, is_head)
        variables = tree.merge(jax.lax.stop_gradient(variables), {"params": head["params"]})
        if drifts:
            _, z, changed = network.train(variables, x, batch.mask, key_network)
        else:
            (_, z), changed = network.evaluate(variables, x), {}
        return network.objective(z, y, batch.mask, key_loss), changed

    def first_stage(download, client, data, round, key):
        upload, _, metrics = average.local_update(download, (), data, round, key)
        return upload, client, metrics

    def second_stage(download, client, data, round, key):
        fresh = ~client.tuned if alone else ~download.restarted
        w = tree.where(fresh, tree.merge(download.variables, download.head), download.variables)
        if alone:
            w = tree.where(fresh, w, tree.merge(w, client.part))
        # decay must not move what is frozen; its gradient is 0
        tx = optax.chain(
            training.optimizer(training.lr(round)), local.freeze(lambda path: not is_head(path), jnp.asarray(True))
        )
        w, metrics = local.train(second_training, tx, w, data, key, loss=loss)
        if alone:
            client = Client(tree.split(w, changes)[0], jnp.asarray(True))
        return Model(w), client, metrics

    def local_update(download, client, data, round, key):
        operands = (download, client, data, round, key)
        if classifier == "normalise":
            return first_stage(*operands)
        if data.y.ndim != 1:
            raise UserError("config.method: 'crt' needs one label an example, found several or masks")
        return jax.lax.cond(round >= start, second_stage, first_stage, *operands)

    def server_update(server, uploads, cohort, round):
        mean = average.aggregate(server, uploads, cohort, round).variables
        second = jnp.asarray(classifier == "retrain") & (round >= start)
        rested = server.variables if alone else tree.merge(server.variables, tree.split(mean, changes)[0])
        return Server(tree.where(second, rested, mean), server.head, second)

    def used(variables: Variables) -> Variables:
        """The model that predicts."""
        return _normalised(variables, training.layers[-1], tau) if classifier == "normalise" else variables

    def init_client(variables: Variables) -> Any:
        return Client(tree.split(variables, changes)[0], jnp.asarray(False)) if alone else ()

    def init_server(variables: Variables, n: int) -> Server:
        # copied, since a round gives up the memory of each part of the state
        head = jax.tree.map(jnp.copy, tree.split(variables, is_head)[0])
        return Server(variables, head, jnp.asarray(False))

    return compose(
        Exchange(lambda server, id: server, local_update, server_update),
        init_server=init_server,
        init_client=init_client,
        shared=lambda server, id: used(server.variables),
        own=(lambda client, shared: tree.where(client.tuned, tree.merge(shared, client.part), shared))
        if alone
        else None,
        global_model=lambda server: used(server.variables),
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )


def _normalised(variables: Variables, head: str, tau: float) -> Variables:
    """tau-norm: each class's weights [d] divided by the tau-th power of their length, the bias 0."""
    path, layer = tree.dense(variables, head)
    if not layer:
        raise UserError(
            "config.crt.classifier: found 'normalise', expected 'retrain', as the classifier is no dense layer"
        )
    kernel = layer["kernel"]
    length = jnp.sqrt(jnp.sum(jnp.square(kernel), 0, keepdims=True))
    length = jnp.where(length > 0, length, jnp.ones_like(length))
    new = {name: jnp.zeros_like(part) for name, part in layer.items()} | {"kernel": kernel / length**tau}
    return tree.merge(variables, tree.nest(path, new))
