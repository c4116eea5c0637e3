"""VHL, virtual homogeneity learning. Tang, Zhang, Shi, He, Han, Chu, ICML 2022, arXiv 2206.02465."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fedjax_pfl import aggregate, local, losses, prototypes, tree
from fedjax_pfl.core import Algorithm, Exchange, Variables, compose
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch, Training

LATENT, SPREAD, WIDTH = (
    64,
    0.3,
    32,
)  # of latent vectors: length, deviation from the class's mode; the generator's channels


class Server(NamedTuple):
    variables: Variables
    head: Any  # {'kernel': [d, C], 'bias': [C]} of the virtual classes' outputs; {} where they share the real ones


Generate = Callable[[Int[Array, " B"], Int[Array, " B"]], Array]


def generator(key: Key[Array, ""], classes: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Generate:
    """(classes, numbers) -> the virtual examples, [B, *shape] of this dtype, each of mean 0 and variance 1.

    An untrained network turns a latent vector into an example. Each class has a mode, around which the latent vectors of its
    examples lie. `key` draws network, modes and examples, so that all who know it make the same ones.
    """
    key_modes, key_z, key_G = jax.random.split(key, 3)

    def draw(key: Key[Array, ""], *size: int) -> Array:
        return jax.random.normal(key, size, jnp.float32).astype(dtype)  # the same numbers whatever the dtype

    modes = draw(key_modes, classes, LATENT)

    def weights(i: int, *size: int) -> Array:
        """They keep the variance of what has passed a ReLU."""
        return draw(jax.random.fold_in(key_G, i), *size) * math.sqrt(2 / math.prod(size[:-1]))

    # from 4 x 4 pixels on, twice as many by each convolution; an example that is no image passes dense layers alone
    image = len(shape) == 3
    doublings = max(0, math.ceil(math.log2(max(shape[:2]) / 4))) if image else 0
    first = weights(0, LATENT, 16 * WIDTH)
    kernels = [weights(i + 1, 3, 3, WIDTH, WIDTH) for i in range(doublings)]
    last = weights(doublings + 1, WIDTH, shape[2]) if image else weights(1, 16 * WIDTH, math.prod(shape))

    def generate(labels: Array, index: Array) -> Array:
        near = jax.vmap(lambda i: draw(jax.random.fold_in(key_z, i), LATENT))(index)
        h = jax.nn.relu((jnp.take(modes, labels, axis=0) + SPREAD * near) @ first)
        if image:
            h = h.reshape(-1, 4, 4, WIDTH)
            for kernel in kernels:
                h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
                h = jax.nn.relu(h)
            x = jax.image.resize(h @ last, (len(labels), *shape), "linear")
        else:
            x = (h @ last).reshape(-1, *shape)
        axes = tuple(range(1, x.ndim))
        return (x - jnp.mean(x, axes, keepdims=True)) / (jnp.std(x, axes, keepdims=True) + 1e-6)

    return generate


def supervised_contrastive(
    f: Float[Array, "B d"], labels: Int[Array, " B"], mask: Bool[Array, " B"], temperature: float
) -> Float[Array, ""]:
    """-mean over the rows of the mean over its positives, the other rows of its class, of log p, with p the softmax of
    f_i . f_j / T over all other rows j. A row without a positive adds 0 and is counted. f have length 1; at least two rows.
    """
    S = f @ f.T / jnp.asarray(temperature, f.dtype)
    others = mask[None, :] & ~jnp.eye(len(labels), dtype=bool)
    log_p = S - jax.nn.logsumexp(jnp.where(others, S, -jnp.inf), axis=1, keepdims=True)
    positive = others & (labels[:, None] == labels[None, :])
    number = jnp.sum(positive.astype(f.dtype), 1)
    each = jnp.sum(jnp.where(positive, log_p, jnp.zeros_like(log_p)), 1) / jnp.maximum(number, 1)
    return -jnp.sum(jnp.where(mask, each, jnp.zeros_like(each))) / jnp.sum(mask.astype(f.dtype))


def vhl(
    training: Training,
    *,
    alpha: float = 1.0,
    lambda_a: float = 1.0,
    lambda_v: float = 0.1,
    temperature: float = 0.07,
    align_epochs: int = 5,
    labels: str = "extra",
    examples: int = 2000,
    batch_size: int = 0,
    weighting: str = "examples",
) -> Algorithm:
    """FedAvg whose clients also learn one labelled virtual data set, made of noise and the same for all, and lay their
    features by class to those of the virtual examples.

        L = CE(real) + alpha CE(virtual) + lambda_a L_align([real; sg(virtual)]) + lambda_v L_align(virtual)

    L_align is the supervised contrastive loss of the features that the classifier reads, scaled to length 1. One forward pass
    sees the batch and the virtual batch together, so batch norm does. Virtual class c is laid to real class c. A virtual
    example is made from its number and the config's seed when a step needs it, so nothing is sent or stored.

    Args:
        alpha, lambda_a, lambda_v: >= 0; all 0 is FedAvg but for batch norm.
        temperature: T > 0 of L_align.
        align_epochs: L_align counts in so many first local epochs of a round.
        labels: 'extra' (the released code's: the virtual classes have outputs of their own, which both cross entropies see and
            which travel) or 'shared' (virtual class c is class c).
        examples: in the virtual data set, over all classes.
        batch_size: of the virtual batch, drawn with replacement; 0: config.client.batch_size. At least 2.
        weighting: 'examples' or 'uniform'.

    Raises:
        UserError: a number out of range, a loss that fits only the real classes with labels='extra', several labels or masks.
    """
    network = training.network
    if network is None:
        raise UserError("config.method: 'vhl' needs one label an example, and no label-mask model")
    C, extra, B_v = network.classes, labels == "extra", batch_size or training.batch_size
    if B_v < 2 or examples < C:
        raise UserError(
            f"config.vhl: found batch_size={B_v}, examples={examples}, expected at least 2, and one of each of {C} classes"
        )
    if training.summed:
        raise UserError("config.loss.over_batch: found 'sum', but 'vhl' needs 'mean'")
    if extra:
        none = jnp.zeros((1, 2 * C)), jnp.zeros((1,), jnp.int32), jnp.ones((1,), bool), jax.random.key(0)
        try:
            jax.eval_shape(network.objective, *none)
        except (TypeError, ValueError):
            raise UserError(
                "config.vhl.labels: found 'extra', expected 'shared' with a loss of the real classes"
            ) from None

    def local_update(download: Server, client, data, round, key):
        if data.y.ndim != 1:
            raise UserError("config.method: 'vhl' needs one label an example, found several or masks")
        seen = jax.eval_shape(network.plain, data.x, data.noise, key)
        generate = generator(jax.random.key(training.seed), C, seen.shape[1:], seen.dtype)

        def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
            key_inputs, key_virtual, key_network, key_loss = jax.random.split(key, 4)
            x, y = network.inputs(batch, key_inputs)
            index = jax.random.randint(key_virtual, (B_v,), 0, examples, jnp.int32)
            y_v = (index % C).astype(y.dtype)
            x_v = generate(y_v, index)
            both = jnp.concatenate([batch.mask, jnp.ones((B_v,), bool)])
            model = tree.member(variables, "model")
            features, z, changed = network.train(model, jnp.concatenate([x, x_v]), both, key_network)
            if extra:
                head = variables["params"]["head"]
                z = jnp.concatenate([z, features @ head["kernel"] + head["bias"][None]], axis=1)
            real, virtual = slice(None, len(y)), slice(len(y), None)
            L = network.objective(z[real], y, batch.mask, key_loss)
            L_v = network.objective(
                z[virtual], y_v + (C if extra else 0), both[virtual], jax.random.fold_in(key_loss, 1)
            )

            f, classes = losses.unit(features), jnp.concatenate([y, y_v])
            fixed = jnp.concatenate([f[real], jax.lax.stop_gradient(f[virtual])])
            L_align = lambda_a * supervised_contrastive(fixed, classes, both, temperature)
            L_align += lambda_v * supervised_contrastive(f[virtual], y_v, both[virtual], temperature)
            L_align = jnp.where(variables["epoch"]["number"] <= align_epochs, L_align, jnp.zeros_like(L_align))
            return L + alpha * L_v + L_align, tree.together(model=changed)

        def begin(variables: Variables, key: Key[Array, ""]) -> Variables:
            return {**variables, "epoch": {"number": variables["epoch"]["number"] + 1}}

        start = tree.together(model=download.variables, head={"params": download.head})
        start["epoch"] = {"number": jnp.zeros((), jnp.int32)}
        tx = training.optimizer(training.lr(round))
        w, _, metrics = local.train_on(training, tx, start, tx.init(start["params"]), data, key, loss=loss, begin=begin)
        return Server(tree.member(w, "model"), w["params"]["head"]), client, metrics

    def init_server(variables: Variables, n: int) -> Server:
        if not extra:
            return Server(variables, {})
        d, dtype = prototypes.width(variables, training.layers)
        bound = 1 / jnp.sqrt(jnp.asarray(d, dtype))  # PyTorch's initial values of a dense layer
        keys = jax.random.split(jax.random.fold_in(jax.random.key(training.seed), 2**31 - 7))
        kernel, bias = (
            jax.random.uniform(k, s, dtype, -bound, bound) for k, s in zip(keys, ((d, C), (C,)), strict=True)
        )
        return Server(variables, {"kernel": kernel, "bias": bias})

    return compose(
        Exchange(
            lambda server, id: server,
            local_update,
            lambda server, uploads, cohort, round: Server(*aggregate.mean(tuple(uploads), cohort, weighting)),
        ),
        init_server=init_server,
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )
