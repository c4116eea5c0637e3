"""What is to be learnt: a model, its inputs as the network sees them, and the loss of a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key

from fedjax_pfl import compiler, losses
from fedjax_pfl.core import ClientData, Variables
from fedjax_pfl.data import augment
from fedjax_pfl.errors import UserError
from fedjax_pfl.imbalance import Weighted
from fedjax_pfl.local import Batch, LabelMask, Loss, Network
from fedjax_pfl.models import weights
from fedjax_pfl.models.ctran import UNKNOWN, LabelMaskTransformer, draw_states
from fedjax_pfl.models.layers import Classifier, Segmenter

Remask = Callable[[Array, Array, Batch], Array]


class Problem(NamedTuple):
    """A model and its loss, as pure functions of the variables."""

    model: Classifier
    init: Callable[[Key[Array, ""]], Variables]
    loss: Loss  # training mode: augmented inputs, batch statistics, dropout
    predict: Callable[..., Any]
    """(variables, x, noise, key, states=None) -> logits [B, ...], evaluation mode; of a label-mask model with the labels of
    `states` [B, C] known, or none."""
    summed: bool = False  # the loss is a batch's sum, not its mean
    label_mask: LabelMask | None = None  # where the model is a label-mask one
    network: Network | None = None  # where it is any other


def build(
    model: Classifier,
    example: np.ndarray,
    task: str,
    *,
    loss: Callable[..., Array] | None = None,
    summed: bool = False,
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
        loss: of one example's logits and target, see `losses.Loss`; the task's default where None. A label-mask model's
            also takes which labels count.
        summed: put a batch's losses together as their sum (FedLGT's), not their mean.
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
        first = jnp.zeros((1, *example.shape), dtype)
        options = None if isinstance(key, Tracer) else compiler.once()  # within a program it is part of that
        variables = jax.jit(lambda key: model.init(key, first, train=False), compiler_options=options)(key)
        if given is None:
            return variables
        try:
            return weights.to_variables(given, variables, model, ignore_head=new_head)
        except UserError as error:
            raise UserError(f"{weights_file}: {error}") from None

    def inputs(batch: Batch, key_augment: Key[Array, ""], key_noise: Key[Array, ""]) -> tuple[Array, Array]:
        """What the network sees of a training batch: augmented, with noise, normalised; and the targets."""
        x, y = scaled(batch.x), batch.y
        if change is not None:
            keys = jax.random.split(key_augment, x.shape[0])
            x, y = jax.vmap(change)(keys, x, y) if task == "mask" else (jax.vmap(change)(keys, x), y)
        return normalise(add_noise(x, batch.noise, key_noise)), y

    def over_batch(each: Any, mask: Array) -> Array:
        value, weight = each if isinstance(each, Weighted) else (each, jnp.ones_like(each))
        # where, not a product: what a padding row holds must not matter, not even a NaN
        total, number = (jnp.sum(jnp.where(mask, leaf, jnp.zeros_like(leaf))) for leaf in (value, weight))
        return total if summed else total / jnp.where(number > 0, number, jnp.ones_like(number))

    def objective(logits: Array, y: Array, mask: Array, key: Key[Array, ""]) -> Array:
        keys = {"key": jax.random.split(key, mask.shape[0])} if losses.takes(loss, "key") else {}
        return over_batch(jax.vmap(loss)(logits, y, **keys), mask)

    def network_train(variables: Variables, x: Array, mask: Array, key: Key[Array, ""]) -> tuple[Array, Array, Any]:
        (features, logits), changed = model.apply(
            variables,
            x,
            train=True,
            mask=mask,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            method="features_and_logits",
        )
        return features, logits, changed

    def network_evaluate(variables: Variables, x: Array) -> Any:
        return model.apply(variables, x, train=False, method="features_and_logits")

    def batch_loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
        key_augment, key_noise, key_dropout, key_loss = jax.random.split(key, 4)
        x, y = inputs(batch, key_augment, key_noise)
        _, logits, changed = network_train(variables, x, batch.mask, key_dropout)
        return objective(logits, y, batch.mask, key_loss), changed

    def masked_loss(
        variables: Variables, batch: Batch, key: Key[Array, ""], remask: Remask | None = None
    ) -> tuple[Array, Any]:
        key_augment, key_noise, key_dropout, key_states = jax.random.split(key, 4)
        x, y = inputs(batch, key_augment, key_noise)
        draw = partial(draw_states, share=model.known)
        states = jax.vmap(draw)(jax.random.split(key_states, x.shape[0]), y)
        states = states if remask is None else remask(x, states, batch)
        logits, changed = model.apply(
            variables,
            x,
            train=True,
            mask=batch.mask,
            states=states,
            mutable=["batch_stats"],
            rngs={"dropout": key_dropout},
        )
        return over_batch(jax.vmap(loss)(logits, y, states == UNKNOWN), batch.mask), changed

    def predict(variables: Variables, x: Array, noise: Array, key: Key[Array, ""], states: Array | None = None) -> Any:
        known: dict[str, Any] = {} if states is None else {"states": states}
        return model.apply(variables, normalise(add_noise(scaled(x), noise, key)), train=False, **known)

    if not isinstance(model, LabelMaskTransformer):
        network = Network(
            inputs=lambda batch, key: inputs(batch, *jax.random.split(key)),
            train=network_train,
            evaluate=network_evaluate,
            plain=lambda x, noise, key: normalise(add_noise(scaled(x), noise, key)),
            objective=objective,
            loss=loss,
            over_batch=over_batch,
            classes=model.num_classes,
            shape=example.shape,
            width=_width(model, example.shape, dtype) if isinstance(model, Segmenter) else 0,
        )
        return Problem(model, init, batch_loss, predict, summed, network=network)
    if task != "multi":
        raise UserError(f"config.model.name: a label-mask model needs several labels an example, the task is '{task}'")
    fixed = not noisy and (augmentation is None or not augment.active(augmentation))

    def unknown_logits(variables: Variables, x: Array) -> Any:
        return model.apply(variables, x, train=False)

    label_mask = LabelMask(
        masked_loss,
        unknown_logits,
        partial(_table, predict) if fixed else None,
    )
    return Problem(model, init, masked_loss, predict, summed, label_mask)


def _width(model: Segmenter, shape: tuple[int, ...], dtype: Any) -> int:
    """Channels of a segmentation network's maps."""

    def maps(key: Array) -> Any:
        return model.init_with_output(key, jnp.zeros((1, *shape), dtype), train=False, method="maps")[0]

    return jax.eval_shape(maps, jax.random.key(0)).shape[-1]


def _table(predict: Callable[..., Array], variables: Variables, data: ClientData, size: int = 64) -> Array:
    """Logits [n_max, C] of all of a client's rows, `size` at a time; padding rows have any."""
    n_max = data.x.shape[0]
    size, key = min(size, n_max), jax.random.key(0)

    def some(i: Array, out: Array) -> Array:
        start = i * size
        index = jnp.minimum(start + jnp.arange(size, dtype=start.dtype), n_max - 1)
        logits = predict(variables, jnp.take(data.x, index, axis=0), data.noise, key)
        return jax.lax.dynamic_update_slice_in_dim(out, logits, start, axis=0)

    shape = jax.eval_shape(predict, variables, data.x[:1], data.noise, key)
    out = jnp.zeros((n_max + -n_max % size, *shape.shape[1:]), shape.dtype)
    return jax.lax.fori_loop(0, -(-data.count // size), some, out)[:n_max]


def check(problem: Problem, example: np.ndarray, target: np.ndarray, classes: int) -> None:
    """Raises UserError where the model's output has another shape than the targets ask for.

    A mask [H, W] needs logits [H, W, C], class 0 being the background.
    """
    if np.ndim(target) > 1 and classes < 2:
        raise UserError("data: masks of one class found, background and at least one more expected")
    key = jax.random.key(0)

    def logits(key: Array) -> Array:
        return problem.predict(problem.init(key), jnp.zeros((1, *example.shape), example.dtype), jnp.float32(0), key)

    shape = jax.eval_shape(logits, key).shape[1:]
    wanted = (*(np.shape(target) if np.ndim(target) > 1 else ()), classes)
    if shape != wanted:
        name = type(problem.model).__name__
        raise UserError(f"config.model.name: {name} gives {shape} per example, the data's targets need {wanted}")
