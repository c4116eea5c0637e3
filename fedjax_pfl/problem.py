"""What is to be learnt: a model, its inputs as the network sees them, and the loss of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from fedjax_pfl import losses
from fedjax_pfl.core import Variables
from fedjax_pfl.data import augment
from fedjax_pfl.errors import UserError
from fedjax_pfl.local import Batch, Loss
from fedjax_pfl.models import weights
from fedjax_pfl.models.layers import Classifier


class Problem(NamedTuple):
    """A model and its loss, as pure functions of the variables."""

    model: Classifier
    init: Callable[[Key[Array, ""]], Variables]
    loss: Loss  # training mode: augmented inputs, batch statistics, dropout
    predict: Callable[[Variables, Array, Float[Array, ""], Key[Array, ""]], Any]  # logits [B, ...], evaluation mode


def build(
    model: Classifier,
    example: np.ndarray,
    task: str,
    *,
    loss: Callable[[Array, Array], Array] | None = None,
    augmentation: Any = None,
    noisy: bool = False,
    weights_file: str = "",
    new_head: bool = False,
    dtype: Any = jnp.float32,
) -> Problem:
    """The problem of fitting `model` to examples stored like `example`.

    Inputs stay on the device as stored; there uint8 is scaled to [0, 1], augmented (in training), given the client's
    noise where `noisy`, and normalised.

    Args:
        example: one stored input, [H, W, C] uint8 or float, or [d].
        task: 'single', 'multi' or 'mask'.
        loss: of one example's logits and target; the task's default where None.
        augmentation: the config's section `augment`, or None for neither augmentation nor normalisation.
        weights_file: PyTorch weights to start from; '' for the model's random initial values.
        new_head: take all but the classifier from that file.
        dtype: of parameters and computation.

    Raises:
        UserError: the input or the weights don't fit the model.
    """
    loss = loss or losses.for_task(task)
    change = augment.pipeline(augmentation) if augmentation is not None else None
    given = weights.load(weights_file) if weights_file else None

    def scaled(x: Array) -> Array:
        return x.astype(dtype) / 255 if x.dtype == jnp.uint8 else x.astype(dtype)

    def normalise(x: Array) -> Array:
        return x if augmentation is None else augment.normalise(x, augmentation.mean, augmentation.std)

    def add_noise(x: Array, std: Array, key: Array) -> Array:
        return x + std.astype(dtype) * jax.random.normal(key, x.shape, dtype) if noisy else x

    def init(key: Key[Array, ""]) -> Variables:
        variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *example.shape), dtype), train=False))(key)
        if given is None:
            return variables
        try:
            return weights.to_variables(given, variables, model, ignore_head=new_head)
        except UserError as error:
            raise UserError(f"{weights_file}: {error}") from None

    def batch_loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
        x, y = scaled(batch.x), batch.y
        key_augment, key_noise, key_dropout = jax.random.split(key, 3)
        if change is not None:
            keys = jax.random.split(key_augment, x.shape[0])
            x, y = jax.vmap(change)(keys, x, y) if task == "mask" else (jax.vmap(change)(keys, x), y)
        x = normalise(add_noise(x, batch.noise, key_noise))
        logits, changed = model.apply(
            variables, x, train=True, mask=batch.mask, mutable=["batch_stats"], rngs={"dropout": key_dropout}
        )
        each = jax.vmap(loss)(logits, y)
        real = batch.mask.astype(each.dtype)
        # where, not a product: what a padding row holds must not matter, not even a NaN
        total = jnp.sum(jnp.where(batch.mask, each, jnp.zeros_like(each)))
        return total / jnp.maximum(jnp.sum(real), 1), changed

    def predict(variables: Variables, x: Array, noise: Array, key: Key[Array, ""]) -> Any:
        return model.apply(variables, normalise(add_noise(scaled(x), noise, key)), train=False)

    return Problem(model, init, batch_loss, predict)


def check(problem: Problem, example: np.ndarray, target: np.ndarray, classes: int) -> None:
    """Raises UserError where the model's output has another shape than the targets ask for."""
    key = jax.random.key(0)

    def logits(key: Array) -> Array:
        return problem.predict(problem.init(key), jnp.zeros((1, *example.shape), example.dtype), jnp.float32(0), key)

    shape = jax.eval_shape(logits, key).shape[1:]
    wanted = (*np.shape(target), 1) if np.ndim(target) > 1 else (classes,)
    if shape != wanted:
        name = type(problem.model).__name__
        raise UserError(f"config.model.name: {name} gives {shape} per example, the data's targets need {wanted}")
