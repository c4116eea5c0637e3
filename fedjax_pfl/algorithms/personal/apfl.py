"""APFL, adaptive personalised federated learning. Deng, Kamani, Mahdavi, arXiv 2003.13461, Algorithm 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from fedjax_pfl import local, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, Variables, compose
from fedjax_pfl.local import Batch, Training


class Client(NamedTuple):
    v_k: Variables  # private model; its running statistics are those of the mixture
    alpha_k: Float[Array, ""]  # share of v_k in the mixture
    w_k: Any  # the client's own w_k of its last round, where the mixture is made of that; else ()


def mixture(alpha: Float[Array, ""], v: Any, w: Any) -> Any:
    """alpha v + (1 - alpha) w."""
    return tree.add(tree.scale(alpha, v), tree.scale(1 - alpha, w))


def apfl(
    training: Training,
    *,
    alpha: float = 0.5,
    adaptive: bool = True,
    alpha_decay: float = 0.0,
    mix_with: str = "global",
    weighting: str = "uniform",
) -> Algorithm:
    """A global model w by FedAvg, a private v_k per client, and the client uses v' = alpha_k v_k + (1 - alpha_k) w.

        w_k <- w_k - eta grad f_k(w_k)
        v_k <- v_k - eta alpha_k grad f_k(v')                      (the gradient of f_k(v') by v)
        alpha_k <- alpha_k - eta <v_k - w_k, grad f_k(v')>         (that by alpha; clipped to [0, 1])

    All right-hand sides have the values before the step, on the same mini-batch. w_k is averaged; v_k and alpha_k stay. The
    steps of w_k and v_k are the client optimiser's, each with a norm of its own to clip; alpha's is plain. Parameters are
    mixed; the running statistics of v' are those of its own forward passes, and are kept with v_k.

    Not reproduced from the released code: logits that are mixed instead of parameters, with the w_k already stepped; alpha
    that is updated once a round, with a gradient made of both networks'; batches of one example that are left out.

    Args:
        alpha: alpha_k at the start, 0 to 1. Without adaptation 0 is FedAvg, 1 local training.
        adaptive: False: alpha stays (the released code's default).
        alpha_decay: added to alpha's gradient, times alpha, 'to make it more stable'; the released code's 0.02.
        mix_with: the client's model between rounds is made with the 'global' w, or with the client's 'own' w_k of its last
            round (the released code).
        weighting: of the w_k: 'uniform' or 'examples'.
    """

    def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
        w, v, alpha_k = tree.member(variables, "w"), tree.member(variables, "v"), variables["params"]["alpha"]
        mixed = mixture(alpha_k, v["params"], jax.lax.stop_gradient(w["params"]))
        L_w, changed_w = training.loss(w, batch, key)
        L_v, changed_v = training.loss({**v, "params": mixed}, batch, key)
        # The gradient is of both; what is logged is the loss of the model that the client uses.
        return L_v + L_w - jax.lax.stop_gradient(L_w), tree.together(w=changed_w, v=changed_v)

    def alpha_step(lr: Float[Array, ""]) -> optax.GradientTransformation:
        def update(grad: Array, alpha_k: Any) -> Array:
            new = alpha_k - lr.astype(alpha_k.dtype) * (grad + alpha_decay * alpha_k)
            return jnp.clip(new, 0, 1) - alpha_k

        return optax.stateless(lambda grads, params: jax.tree.map(update, grads, params))

    def local_update(download, client, data, round, key):
        lr = training.lr(round)
        rules: dict[Any, Any] = {"w": training.optimizer(lr), "v": training.optimizer(lr)}
        rules["alpha"] = alpha_step(lr) if adaptive else optax.set_to_zero()
        tx = optax.multi_transform(rules, {name: name for name in rules})
        all_three = tree.together(w=download.variables, v=client.v_k)
        all_three["params"]["alpha"] = client.alpha_k
        all_three, metrics = local.train(training, tx, all_three, data, key, loss=loss)
        w_k, v_k = tree.member(all_three, "w"), tree.member(all_three, "v")
        own = w_k if mix_with == "own" else ()
        return Model(w_k), Client(v_k, all_three["params"]["alpha"], own), metrics

    def init_client(variables: Variables) -> Client:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        return Client(variables, jnp.asarray(alpha, dtype), variables if mix_with == "own" else ())

    def own(client: Client, shared: Variables) -> Variables:
        w = client.w_k if mix_with == "own" else shared
        return {**client.v_k, "params": mixture(client.alpha_k, client.v_k["params"], w["params"])}

    return compose(
        fedavg.exchange(training, weighting)._replace(local_update=local_update),
        init_server=lambda variables, n: Model(variables),
        init_client=init_client,
        own=own,
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
