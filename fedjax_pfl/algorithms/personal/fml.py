"""FML, federated mutual learning. Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu, arXiv 2006.16765."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fedjax_pfl import aggregate, local, losses, tree
from fedjax_pfl.core import Algorithm, Exchange, Group, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch, Network, Training


class Client(NamedTuple):
    variables: Variables  # the private model v_k, never overwritten by the server
    opt_state: Any  # of its optimiser, which goes on from round to round


def fml(
    training: Training,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    temperature: float = 1.0,
    weighting: str = "uniform",
) -> Algorithm:
    """A private model v_k per client and a meme model w that travels; each learns from its labels and from the other.

        L(v) = alpha CE + (1 - alpha) KL(p_w || p_v),    L(w) = beta CE + (1 - beta) KL(p_v || p_w)

    Both losses come from one forward pass of each, and teachers are constants. The meme's optimiser is new in each round.
    alpha = beta = 1/2 is, but for a factor 2, deep mutual learning (arXiv 1706.00384) with steps taken at the same time.
    Private models may be of other architectures than the meme (`config.model.per_client`), and all see its inputs.

    Not reproduced from the released code: its script has the exchange commented out, and its server adds the uploads'
    batch-norm statistics to the old ones.

    Args:
        alpha, beta: the labels' share in the two losses, 0 to 1. alpha = beta = 1: local training, and FedAvg.
        temperature: T of the KL terms, which are then multiplied by T^2; 1 in the paper.
        weighting: of the memes: 'uniform' (the released code's) or 'examples'.

    Raises:
        UserError: a label-mask model, or several labels an example.
    """
    network = training.network
    if network is None:
        raise UserError("config.method: 'fml' needs one label an example or masks, and no label-mask model")
    kl = jax.vmap(partial(losses.distillation, temperature=temperature))

    def loss(of_v: Network, variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
        key_inputs, key_v, key_w, key_loss = jax.random.split(key, 4)
        x, y = network.inputs(batch, key_inputs)  # the same images for both
        _, z_v, changed_v = of_v.train(tree.member(variables, "private"), x, batch.mask, key_v)
        _, z_w, changed_w = network.train(tree.member(variables, "meme"), x, batch.mask, key_w)

        def mutual(share: float, z: Array, teacher: Array) -> Array:
            ce = network.objective(z, y, batch.mask, key_loss)
            return share * ce + (1 - share) * network.over_batch(kl(teacher, z), batch.mask)

        L_v, L_w = mutual(alpha, z_v, z_w), mutual(beta, z_w, z_v)
        # The gradient is of both; what is logged is the loss of the model that the client uses.
        return L_v + L_w - jax.lax.stop_gradient(L_w), tree.together(private=changed_v, meme=changed_w)

    def local_update(of_v, download, client, data, round, key):
        if data.y.ndim == 2:
            raise UserError("config.method: 'fml' needs one label an example or masks, found several labels")
        one = training.optimizer(training.lr(round))
        opt_state = {"private": client.opt_state, "meme": one.init(download.variables["params"])}
        both = tree.together(private=client.variables, meme=download.variables)
        both, opt_state, metrics = local.train_on(
            training, local.each(one), both, opt_state, data, key, loss=partial(loss, of_v)
        )
        return Model(tree.member(both, "meme")), Client(tree.member(both, "private"), opt_state["private"]), metrics

    def init_client(variables: Variables) -> Client:
        return Client(variables, training.optimizer(training.lr(jnp.zeros((), jnp.int32))).init(variables["params"]))

    return compose(
        Exchange(
            lambda server, id: server,
            partial(local_update, network),
            lambda server, uploads, cohort, round: Model(aggregate.mean(uploads.variables, cohort, weighting)),
            groups=tuple(Group(each.members, partial(local_update, each.network)) for each in training.groups),
        ),
        init_server=lambda variables, n: Model(variables),
        init_client=init_client,
        own=lambda client, shared: client.variables,
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
