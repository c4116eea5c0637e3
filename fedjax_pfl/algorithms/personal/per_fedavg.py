"""Per-FedAvg. Fallah, Mokhtari, Ozdaglar, NeurIPS 2020, arXiv 2002.07948, Algorithm 1, in its forms FO and HF."""

import jax
import optax

from fedjax_pfl import local, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Model, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training

DRAWS = {"fo": 2, "hf": 3}  # independent batches of a step


def per_fedavg(
    training: Training,
    *,
    alpha: float = 0.01,
    form: str = "hf",
    delta: float = 0.001,
    adapt_steps: int = 1,
    weighting: str = "uniform",
) -> Algorithm:
    """A model w that is good after one gradient step on a client's data: the mean of f_k(w - alpha grad f_k(w)) is minimised.

        w' = w - alpha grad f(w; D)
        FO:  w <- w - beta g,  g = grad f(w'; D')
        HF:  w <- w - beta (g - alpha d),  d = (grad f(w + delta g; D'') - grad f(w - delta g; D'')) / (2 delta)

    beta is config.client.lr, and the step with it the client optimiser's. D, D', D'' are drawn independently: an epoch sees
    the data two or three times, each time in an order of its own, and has as many steps as another method's. Batch-norm
    running statistics follow the passes at w and w', in turn.

    A client uses the w that it adapts when it is to be used (`Algorithm.adapt`): gradient steps of length alpha on all of its
    training examples. The global model is w itself.

    Not reproduced from CharlieDinh/pFedMe: the step from w' instead of w (until March 2021, so presumably in the pFedMe
    paper's figures), and its adaptation on batches of the test set, by two steps.

    Args:
        alpha: of the inner step, >= 0.
        form: 'fo' (first order: the Hessian is dropped) or 'hf' (its product with g by a difference of gradients).
        delta: of that difference.
        adapt_steps: of a client before use; 0: it uses w.
        weighting: of the w_k: 'uniform' or 'examples'.

    Raises:
        UserError: the loss is a batch's sum; a client adapts by the gradient of a mean.
    """
    if training.summed:
        raise UserError("config.loss.over_batch: found 'sum', but the adaptation of 'per_fedavg' needs 'mean'")
    gradient = jax.value_and_grad(
        lambda params, rest, batch, key: training.loss({**rest, "params": params}, batch, key), has_aux=True
    )

    def local_update(download, client, data, round, key):
        tx = training.optimizer(training.lr(round))

        def step(carry, key, D, D_1, D_2=None):
            w, rest, opt_state = carry
            key, key_1, key_2 = jax.random.split(key, 3)
            (_, changed), inner = gradient(w, rest, D, key)
            w_1 = tree.sub(w, tree.scale(alpha, inner))
            rest = {**rest, **changed}
            (value, changed), g = gradient(w_1, rest, D_1, key_1)
            if form == "hf":
                ahead, behind = (
                    gradient(tree.add(w, tree.scale(sign * delta, g)), rest, D_2, key_2)[1] for sign in (1, -1)
                )
                d = tree.scale(1 / (2 * delta), tree.sub(ahead, behind))
                g = tree.sub(g, tree.scale(alpha, d))
            updates, opt_state = tx.update(g, opt_state, w)
            return (optax.apply_updates(w, updates), {**rest, **changed}, opt_state), value

        variables = dict(download.variables)
        w = variables.pop("params")
        carry, metrics = local.steps(training, step, (w, variables, tx.init(w)), data, key, draws=DRAWS[form])
        w_k, rest, _ = carry
        return Model({**rest, "params": w_k}), client, metrics

    def adapt(variables, data, key):
        for i in range(adapt_steps):
            g = local.gradient(training, variables, data, jax.random.fold_in(key, i))
            variables = {**variables, "params": tree.sub(variables["params"], tree.scale(alpha, g))}
        return variables

    algorithm = compose(
        fedavg.exchange(training, weighting)._replace(local_update=local_update),
        init_server=lambda variables, n: Model(variables),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
    return algorithm._replace(adapt=adapt)
