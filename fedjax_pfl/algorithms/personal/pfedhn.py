"""pFedHN and pFedHN-PC. Shamsian, Navon, Fetaya, Chechik, ICML 2021, arXiv 2103.04628, Algorithm 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fedjax_pfl import aggregate, local, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, ClientId, Exchange, Model, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Training


class Linear(NamedTuple):
    kernel: Any  # [in, *out]; of the last one a tree of them, one for each target tensor
    bias: Any  # [*out]


class Hyper(NamedTuple):
    """What the server learns."""

    psi: tuple[Linear, ...]  # the hypernetwork, the last entry its output heads
    e: Float[Array, "N d"]  # one embedding per client


class Server(NamedTuple):
    hyper: Hyper
    opt_state: Any
    rest: Variables  # what the hypernetwork doesn't make: running statistics, their mean; entries that stay with the clients


def make(psi: tuple[Linear, ...], e_k: Float[Array, " d"]) -> Any:
    """theta_k = H_psi(e_k): linear, then (relu, linear) for each further layer, then a linear head per target tensor."""
    *hidden, heads = psi
    for i, layer in enumerate(hidden):
        e_k = (jax.nn.relu(e_k) if i else e_k) @ layer.kernel + layer.bias
    return jax.tree.map(lambda kernel, bias: jnp.tensordot(e_k, kernel, 1) + bias, heads.kernel, heads.bias)


def pfedhn(
    training: Training,
    *,
    personal_layers: int = 0,
    embedding: int = 0,
    hidden: int = 100,
    hidden_layers: int = 3,
    start: str = "hypernetwork",
    server_lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    clip: float = 50.0,
    weighting: str = "uniform",
) -> Algorithm:
    """A hypernetwork at the server makes each client's parameters from the client's embedding.

        theta_k = H_psi(e_k) goes to client k, which trains it to theta'_k
        psi, e_k <- a step of SGD along (d theta_k / d psi)^T Delta_k and (d theta_k / d e_k)^T Delta_k,
                    where Delta_k = theta_k - theta'_k

    The paper draws one client a round (config.cohort.size=1); of several the mean of the Delta_k's products is taken. The
    optimiser sees the whole table of embeddings: its momentum and decay move those of absent clients too, as in the
    released code. The norm that is clipped is that of psi and e together.

    pFedHN-PC: the last `personal_layers` stay with the client, trained at the same time. The released code's momentum of
    that layer between visits isn't kept, and what clips the others' gradient clips its too.

    A client that the server doesn't know uses the mean embedding (the paper trains a new one on its data, with psi fixed).

    Args:
        personal_layers: 0 (pFedHN), or how many of the last top-level layers are the client's own (pFedHN-PC: 1).
        embedding: width d of e_k; 0: floor(1 + N / 4).
        hidden, hidden_layers: width, and number of linear layers after the first.
        start: 'hypernetwork' (all layers as PyTorch's, the released code's; scales of norms then begin near 0) or 'model'
            (the output heads' biases are the initial model).
        server_lr, momentum, weight_decay, clip: of the server's SGD. The released code has server_lr 0.05 for pFedHN-PC.
        weighting: of several clients: 'uniform' or 'examples'.

    Raises:
        UserError: personal_layers doesn't fit the model.
    """
    if not 0 <= personal_layers < len(training.layers):
        raise UserError(
            f"config.pfedhn.personal_layers: found {personal_layers}, expected 0 to {len(training.layers) - 1}, "
            f"as the model has the layers {', '.join(training.layers)}"
        )
    head = tree.top_level(training.layers[len(training.layers) - personal_layers :])
    keep = training.keep(*([head] if personal_layers else []))
    tx = local.optimizer(lambda: local.sgd(momentum), weight_decay=weight_decay, clip=clip)
    average = fedavg.exchange(training, weighting)

    def made(variables: Variables) -> tuple[Any, Any]:
        """What the hypernetwork makes, and the rest."""
        stays = keep(variables) if keep else lambda path: False
        return tree.split(variables, lambda path: path[0] == "params" and not stays(path))

    def init_server(variables: Variables, n: int) -> Server:
        theta, rest = made(variables)
        dtype = jax.tree.leaves(theta)[0].dtype
        d = embedding or 1 + n // 4

        def linear(key: Key[Array, ""], fan_in: int, out: Any) -> Linear:
            """PyTorch's initial values: U(-1, 1) / sqrt(fan_in)."""
            keys = jax.random.split(key, 2 * len(jax.tree.leaves(out)))
            leaves, structure = jax.tree.flatten(out)

            def draw(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
                return jax.random.uniform(key, shape, dtype, -1, 1) / jnp.sqrt(jnp.asarray(fan_in, dtype))

            kernel = [draw(key, (fan_in, *leaf.shape)) for key, leaf in zip(keys[::2], leaves, strict=True)]
            bias = [draw(key, leaf.shape) for key, leaf in zip(keys[1::2], leaves, strict=True)]
            return Linear(jax.tree.unflatten(structure, kernel), jax.tree.unflatten(structure, bias))

        def begin(theta: Any, key: Key[Array, ""]) -> Hyper:
            keys = jax.random.split(key, hidden_layers + 3)
            widths = [d] + [hidden] * hidden_layers
            inner = [linear(key, width, jnp.zeros(hidden)) for key, width in zip(keys[2:], widths, strict=True)]
            heads = linear(keys[1], hidden, theta)
            heads = heads._replace(bias=theta) if start == "model" else heads
            return Hyper((*inner, heads), jax.random.normal(keys[0], (n, d), dtype))

        hyper = jax.jit(begin)(theta, jax.random.key(training.seed))  # so many numbers are quicker drawn together
        return Server(hyper, tx(jnp.asarray(server_lr, dtype)).init(hyper), rest)

    def model(server: Server, id: ClientId) -> Variables:
        e = server.hyper.e
        e_k = jnp.where(id < e.shape[0], tree.take(e, id), jnp.mean(e, 0))
        return tree.merge(server.rest, make(server.hyper.psi, e_k))

    def server_update(server: Server, uploads: Model, cohort, round):
        weight = aggregate.weights(cohort, weighting).astype(server.hyper.e.dtype)
        p = weight / jnp.sum(weight)
        trained = jax.vmap(lambda variables: made(variables)[0])(uploads.variables)

        def thetas(hyper: Hyper) -> Any:
            return jax.vmap(lambda e_k: make(hyper.psi, e_k))(tree.take(hyper.e, cohort.ids))

        theta, transposed = jax.vjp(thetas, server.hyper)
        # Delta_k, of which a lost upload or a padding row has the share 0
        delta = jax.tree.map(lambda a, b: (a - b) * p.reshape(-1, *[1] * (a.ndim - 1)), theta, trained)
        (grads,) = transposed(delta)
        rate = jnp.asarray(server_lr, server.hyper.e.dtype)
        updates, opt_state = tx(rate).update(grads, server.opt_state, server.hyper)
        rest = made(aggregate.mean(uploads.variables, cohort, weighting))[1]
        return Server(tree.add(server.hyper, updates), opt_state, rest)

    return compose(
        Exchange(lambda server, id: Model(model(server, id)), average.local_update, server_update),
        init_server=init_server,
        shared=model,
        keep=keep,
        how=training.how,
        observe=training.observe,
    )
