"""The local update: one client's epochs of mini-batch training, and the corrections that methods add to its gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from fedjax_pfl import lanes, tree
from fedjax_pfl.core import ClientData, How, Metrics, Observe, Round, Variables, number_of_lanes
from fedjax_pfl.errors import UserError


class Batch(NamedTuple):
    """B rows of a client. The last batch of an epoch may hold padding: rows where `mask` is False."""

    x: Array  # [B, ...] as stored
    y: Array  # [B, ...]
    mask: Bool[Array, " B"]
    noise: Float[Array, ""]
    index: Int[Array, " B"]  # which rows of the client's data these are


Loss = Callable[[Variables, Batch, Key[Array, ""]], tuple[Float[Array, ""], Any]]
"""Mean (or, see `Training.summed`, summed) loss over the real rows of a batch, and the collections that training changes
({'batch_stats': ...} or {})."""


class LabelMask(NamedTuple):
    """What a label-mask model offers to methods that decide which labels it is told (see `models.ctran`)."""

    loss: Callable[..., tuple[Float[Array, ""], Any]]
    """As `Loss`, with a keyword `remask(x, states, batch) -> states` that may change label-mask training's states [B, C] of
    the batch whose network inputs are x. The loss counts the labels that end up unknown."""
    logits: Callable[
        [Variables, Array], Float[Array, "B C"]
    ]  # of network inputs x, evaluation mode, all labels unknown
    table: Callable[[Variables, ClientData], Float[Array, "n_max C"]] | None
    """The same of all of a client's rows, where a row always gives the same network input: without augmentation or noise."""


class Network(NamedTuple):
    """The network itself, for methods that read features or logits, or train two networks on the same images."""

    inputs: Callable[
        [Batch, Key[Array, ""]], tuple[Array, Array]
    ]  # of a training batch: what the network sees; targets
    train: Callable[..., tuple[Array, Array, Any]]
    """(variables, inputs x, mask, key) -> features, logits, changed collections; batch statistics, dropout by key."""
    evaluate: Callable[[Variables, Array], tuple[Array, Array]]  # (variables, inputs x) -> features, logits
    plain: Callable[[Array, Array, Key[Array, ""]], Array]  # (x as stored, noise, key) -> inputs without augmentation
    objective: Callable[[Array, Array, Array, Key[Array, ""]], Float[Array, ""]]
    """(logits [B, ...], targets, mask, key) -> the loss of a batch: its examples' losses, put together as the loss says."""
    loss: Callable[
        ..., Any
    ]  # of ONE example's logits and target; see `losses.Loss` for what else it may take and return
    over_batch: Callable[[Array, Array], Float[Array, ""]]  # of the examples' losses [B] and the batch's mask
    classes: int
    shape: tuple[int, ...]  # of one input as stored
    width: int = 0  # of the features, where they aren't what the classifier reads (maps, of a segmentation network)


class Training(NamedTuple):
    """What every method is given: the loss, and how a client trains on it."""

    loss: Loss
    layers: tuple[str, ...]  # the model's top-level modules, in forward order; the last is the classifier
    lr: Callable[[Round], Float[Array, ""]]  # the client learning rate eta of a round
    optimizer: Callable[[Float[Array, ""]], optax.GradientTransformation]  # made anew every round, given eta
    momentum: float | None = None  # of that optimiser, where it is SGD; None: it is another one
    nesterov: bool = False
    epochs: int = 1
    batch_size: int = 32
    drop_last: bool = False  # drop an epoch's last, incomplete batch (a client smaller than a batch then makes no step)
    batch_norm: str = "aggregate"  # aggregate | local | local-statistics
    how: How = "auto"  # see core.client_map
    summed: bool = False  # the loss is a batch's sum, not its mean
    label_mask: LabelMask | None = None  # where the model is a label-mask one
    network: Network | None = None  # where it is any other
    rounds: int = 1  # of the whole run, for schedules and samplers
    seed: int = 0  # the config's, for what all clients and the server draw together
    counts: tuple[int, ...] = ()  # training examples of each class over all clients (of masks: pixels)
    score: Callable[..., Float[Array, ""]] | None = None
    """(variables, a client's data, key=None) -> its metric in evaluation mode; with a key on augmented inputs."""
    observe: Observe | None = None  # for `core.compose`
    sampler: str = "instance"  # a name in `SAMPLERS`: which rows an epoch sees
    clients: tuple[str, ...] = ()  # names of those that train, for methods in which one is special
    sizes: tuple[int, ...] = ()  # and their numbers of training examples
    init: Callable[[Key[Array, ""]], Variables] | None = (
        None  # a fresh model, for what clients begin with by themselves
    )
    members: tuple[int, ...] = ()  # numbers of the clients, where it is the Training of one of several `groups`
    groups: tuple["Training", ...] = ()  # one for each architecture, where clients' models have several

    def order(self, data: ClientData, n_max: int, key: Key[Array, ""]) -> Int[Array, " n_max"]:
        """The rows of one epoch: its batches are the first `count` of them. Without a sampler they need no x and no y."""
        if self.sampler == "instance":
            return permutation(key, data.count, n_max)
        share = {"class_balanced": 0.0, "square_root": 0.5, "progressive": None}[self.sampler]
        if self.network is None or data.y.ndim != 1:
            raise UserError(
                f"config.client.sampler: found '{self.sampler}', expected 'instance' without one label an example"
            )
        if share is not None:
            return draw_classes(key, data, self.network.classes, ((1.0, share),))
        t = jnp.minimum(data.round.astype(jnp.float32) / max(self.rounds - 1, 1), 1)
        return draw_classes(key, data, self.network.classes, ((1 - t, 1.0), (t, 0.0)))

    def steps_per_epoch(self, count: Int[Array, ""]) -> Int[Array, ""]:
        """Number of batches in one epoch over `count` examples."""
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def keep(self, *wheres: tree.Where) -> Callable[[Variables], tree.Where] | None:
        """For `core.compose(keep=...)`: what stays with a client by the batch-norm policy, and the parts named besides."""
        if self.batch_norm == "local":
            return lambda variables: tree.either(tree.batch_norm(variables), *wheres)
        if self.batch_norm == "local-statistics":
            return lambda variables: tree.either(tree.statistics, *wheres)
        return (lambda variables: tree.either(*wheres)) if wheres else None


def permutation(key: Key[Array, ""], count: Int[Array, ""], n_max: int) -> Int[Array, " n_max"]:
    """A random order of rows 0..count-1, then the padding rows. It doesn't depend on how much padding there is."""
    order = jax.random.bits(key, (n_max,), jnp.uint32) >> 1
    return jnp.argsort(jnp.where(jnp.arange(n_max, dtype=count.dtype) < count, order, jnp.uint32(2**32 - 1)))


SAMPLERS = ("instance", "class_balanced", "square_root", "progressive")


def draw_classes(
    key: Key[Array, ""],
    data: ClientData,
    classes: int,
    mixture: tuple[tuple[Any, float], ...],
    number: int | None = None,
) -> Int[Array, " number"]:
    """Rows drawn with replacement: a class c, then one of its rows, all alike. It doesn't depend on the padding.

    The chance of class c is sum_m share_m n_c^q_m / sum_j n_j^q_m over the client's own counts n, so a class that the
    client lacks is never drawn. q = 1 draws all rows alike, 1/2 is square-root sampling, 0 class-balanced sampling. Kang
    et al., ICLR 2020, arXiv 1910.09217, section 4.1 (whose code deals classes from a shuffled deck instead).

    Args:
        mixture: pairs (share, q), the shares summing to 1.
        number: how many rows; None: as many as there are, with padding.
    """
    n_max, dtype = data.y.shape[0], data.count.dtype
    real = jnp.arange(n_max, dtype=dtype) < data.count
    y = jnp.where(real, data.y.astype(dtype), jnp.asarray(classes, dtype))  # padding sorts behind all classes
    sorted_rows = jnp.argsort(y, stable=True)
    ends = jnp.searchsorted(jnp.take(y, sorted_rows), jnp.arange(classes, dtype=dtype), side="right").astype(dtype)
    starts = jnp.concatenate([jnp.zeros((1,), dtype), ends[:-1]])
    n = ends - starts
    # float32 also where float64 is enabled, so that the draws are the same
    powers = [(share, jnp.where(n > 0, n.astype(jnp.float32) ** q, jnp.float32(0))) for share, q in mixture]
    chance = sum(share * power / jnp.maximum(jnp.sum(power), 1) for share, power in powers)
    sums = jnp.cumsum(chance)
    key_class, key_row = jax.random.split(key)
    u, v = (jax.random.uniform(key, (number or n_max,), jnp.float32) for key in (key_class, key_row))
    last = jnp.max(jnp.where(n > 0, jnp.arange(classes, dtype=dtype), jnp.zeros((), dtype)))
    # side='right' passes over classes without a chance; rounding may still go beyond the last one that has any.
    c = jnp.minimum(jnp.searchsorted(sums, u * sums[-1], side="right").astype(dtype), last)
    n_c = jnp.take(n, c)
    within = jnp.minimum((v * n_c.astype(jnp.float32)).astype(dtype), n_c - 1)
    return jnp.take(sorted_rows, jnp.take(starts, c) + within)


def by_class(
    key: Key[Array, ""], data: ClientData, classes: int
) -> tuple[Int[Array, " n_max"], Int[Array, " n_max"], Int[Array, " n_max"]]:
    """A random order of a client's rows, class by class: the rows, their classes (padding: `classes`), and each one's rank
    0, 1, ... within its class."""
    n_max, dtype = data.y.shape[0], data.count.dtype
    place = jnp.arange(n_max, dtype=dtype)
    order = permutation(key, data.count, n_max)
    y = jnp.where(place < data.count, jnp.take(data.y, order).astype(dtype), jnp.asarray(classes, dtype))
    sorted_ = jnp.argsort(y, stable=True)
    y, order = jnp.take(y, sorted_), jnp.take(order, sorted_)
    return order, y, place - jnp.searchsorted(y, y, side="left").astype(dtype)


def with_rows(data: ClientData, x: Array, y: Array, number: Int[Array, ""]) -> ClientData:
    """A client's examples and after them the first `number` rows of x and y; padding stays padding."""
    n_max, added = data.y.shape[0], y.shape[0]
    position = jnp.arange(n_max + added, dtype=data.count.dtype)
    number = number.astype(data.count.dtype)
    chosen = jnp.where(position < n_max, position < data.count, position - n_max < number)
    order = jnp.argsort(~chosen, stable=True)
    x, y = (jnp.take(jnp.concatenate(pair), order, axis=0) for pair in ((data.x, x), (data.y, y)))
    return data._replace(count=jnp.where(data.count > 0, data.count + number, 0), x=x, y=y)


def rows(data: ClientData, index: Int[Array, " B"], mask: Bool[Array, " B"]) -> Batch:
    """The batch of the given rows."""
    return Batch(jnp.take(data.x, index, axis=0), jnp.take(data.y, index, axis=0), mask, data.noise, index)


def train(
    training: Training,
    tx: optax.GradientTransformation,
    variables: Variables,
    data: ClientData,
    key: Key[Array, ""],
    *,
    loss: Loss | None = None,
    epochs: int | None = None,
) -> tuple[Variables, Metrics]:
    """E epochs of mini-batches with a fresh optimiser: see `train_on`.

    Returns:
        The trained variables, and the loss summed over the examples seen, in all and in the last epoch.
    """
    variables, _, metrics = train_on(
        training, tx, variables, tx.init(variables["params"]), data, key, loss=loss, epochs=epochs
    )
    return variables, metrics


def train_on(
    training: Training,
    tx: optax.GradientTransformation,
    variables: Variables,
    opt_state: Any,
    data: ClientData,
    key: Key[Array, ""],
    *,
    loss: Loss | None = None,
    epochs: int | None = None,
    begin: Callable[[Variables, Key[Array, ""]], Variables] = lambda variables, key: variables,
    limit: Callable[[Int[Array, ""]], Any] | None = None,
) -> tuple[Variables, Any, Metrics]:
    """E epochs of mini-batches, each epoch in a fresh random order (or of a fresh draw, by the sampler), from an optimiser's
    state.

    The number of steps is the client's own, tau = E * ceil(count / B): a client's shorter run costs nothing under
    `lax.map`, and under `vmap` only the longest client's. Keys: epoch e uses fold_in(key, e), its order fold_in(., 0),
    step i of it fold_in(fold_in(., 1), i), `begin` fold_in(., 2); so the same key gives the same batches to two models.

    `variables` may hold collections of the method's own besides 'params': the loss reads them and gives back those that it
    changed, as it does with running statistics.

    Args:
        begin: changes the variables before each epoch.
        limit: the most steps of an epoch, given its number 0, 1, ...; None: as many as there are batches.

    Returns:
        The trained variables, the optimiser's state, and the loss summed over the examples seen.
    """
    loss = loss or training.loss

    def value(params: Any, rest: Any, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Any]:
        return loss({"params": params, **rest}, batch, key)

    def step(carry, key, batch):
        params, rest, opt_state = carry
        (value_, changed), grads = jax.value_and_grad(value, has_aux=True)(params, rest, batch, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), {**rest, **changed}, opt_state), value_

    def begin_epoch(carry, key):
        params, rest, opt_state = carry
        return *_parts(begin({"params": params, **rest}, key)), opt_state

    carry = (*_parts(variables), opt_state)
    carry, metrics = steps(training, step, carry, data, key, epochs=epochs, begin=begin_epoch, limit=limit)
    params, rest, opt_state = carry
    return {"params": params, **rest}, opt_state, metrics


def steps(
    training: Training,
    step: Callable[..., tuple[Any, Float[Array, ""]]],
    carry: Any,
    data: ClientData,
    key: Key[Array, ""],
    *,
    epochs: int | None = None,
    begin: Callable[[Any, Key[Array, ""]], Any] = lambda carry, key: carry,
    limit: Callable[[Int[Array, ""]], Any] | None = None,
    draws: int = 1,
) -> tuple[Any, Metrics]:
    """`train_on` with any step in place of an optimiser's: for methods that take several gradients in one.

    Args:
        step: step(carry, key, *batches) -> the new carry, and the loss that is reported, a mean over the last batch.
        begin: changes the carry before each epoch.
        limit: as in `train_on`.
        draws: number of independent batches of each step. Each comes from an order of its own, so that an epoch sees the
            data so many times; orders after the first use fold_in(fold_in(key, e), 3), fold_in(., 4), ...

    Returns:
        The last carry, and the loss summed over the examples of each step's last batch.
    """
    batch_size, n_max = training.batch_size, data.x.shape[0]
    padding = -n_max % batch_size
    epochs = training.epochs if epochs is None else epochs
    some = [rows(data, *_first(batch_size))] * draws
    together = number_of_lanes(training.how)
    # What belongs to this client alone is given to `work`, so that a lane can take another client.
    hoisted_step, of_step = lanes.hoist(step, together, carry, key, *some)
    hoisted_begin, of_begin = lanes.hoist(begin, together, carry, key)
    hoisted_limit, of_limit = lanes.hoist(limit or (lambda e: n_max), together, jnp.zeros((), jnp.int32))
    alone = data._replace(x=(), y=() if training.sampler == "instance" else data.y, validation=(), public=())

    def begin_epoch(held, e, carry):
        data, key, _, of_begin, of_limit, _ = held
        carry, metrics = carry
        metrics = metrics._replace(last_epoch=jnp.zeros_like(metrics.last_epoch))
        key_e = jax.random.fold_in(key, e)
        carry = hoisted_begin(of_begin, carry, jax.random.fold_in(key_e, 2))
        orders = [training.order(data, n_max, jax.random.fold_in(key_e, 2 + d if d else 0)) for d in range(draws)]
        orders = [jnp.concatenate([each.astype(jnp.int32), jnp.zeros((padding,), jnp.int32)]) for each in orders]
        number = training.steps_per_epoch(data.count)
        number = jnp.minimum(number, jnp.asarray(hoisted_limit(of_limit, e), number.dtype))
        return (carry, metrics), (orders, jax.random.fold_in(key_e, 1)), number

    def one_step(held, read, of_epoch, i, carry):
        (data, _, of_step, *_), (orders, key), (carry, metrics) = held, of_epoch, carry
        start = i * batch_size
        mask = start + jnp.arange(batch_size, dtype=start.dtype) < data.count
        index = [jax.lax.dynamic_slice(order, (start,), (batch_size,)) for order in orders]
        batches = [Batch(x, y, mask, data.noise, each) for each, (x, y) in zip(index, map(read, index), strict=True)]
        carry, value = hoisted_step(of_step, carry, jax.random.fold_in(key, i), *batches)
        seen = jnp.sum(mask, dtype=jnp.int32)
        total = value if training.summed else value * seen.astype(value.dtype)
        metrics = Metrics(metrics.loss + total, metrics.examples + seen, metrics.steps + 1, metrics.last_epoch + total)
        return carry, metrics

    value = jax.eval_shape(step, carry, key, *some)[1]
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), value.dtype)
    held = (alone, key, of_step, of_begin, of_limit, () if isinstance(epochs, int) else epochs)
    stages = (lambda held: epochs) if isinstance(epochs, int) else (lambda held: held[-1])
    work = lanes.Work(stages, begin_epoch, one_step)
    return lanes.work(work, held, (data.x, data.y), (carry, Metrics(zero, none, none, zero)), together)


def _parts(variables: Variables) -> tuple[Any, Any]:
    """The parameters, and the other collections."""
    return variables["params"], {name: part for name, part in variables.items() if name != "params"}


def sum_over(
    data: ClientData,
    size: int,
    of: Callable[[Batch, Int[Array, ""]], Any],
    order: Int[Array, " n_max"] | None = None,
    count: Int[Array, ""] | None = None,
) -> Any:
    """The sum of of(batch, its number 0, 1, ...) over all of a client's rows, `size` at a time in stored order.

    Args:
        of: a tree of sums over the real rows of a batch.
        order, count: the first `count` rows of another order instead.
    """
    n_max = data.x.shape[0]
    size, count = min(size, n_max), data.count if count is None else count

    def batch(i: Array) -> Any:
        place = i * size + jnp.arange(size, dtype=count.dtype)
        index = jnp.minimum(place, n_max - 1)
        return of(rows(data, index if order is None else jnp.take(order, index), place < count), i)

    shapes = jax.eval_shape(batch, jnp.zeros((), jnp.int32))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.fori_loop(0, -(-count // size), lambda i, total: tree.add(total, batch(i)), zero)


def mean_loss(
    training: Training,
    variables: Variables,
    data: ClientData,
    key: Key[Array, ""],
    order: Int[Array, " n_max"] | None = None,
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """F_k: the mean loss over a client's rows, evaluation mode, without augmentation; `key` draws its input noise.

    `order` and `count` as in `sum_over`. Not for label-mask models.
    """
    network = training.network
    assert network is not None

    def of(batch: Batch, i: Array) -> Array:
        key_inputs, key_loss = jax.random.split(jax.random.fold_in(key, i + 1))
        _, z = network.evaluate(variables, network.plain(batch.x, batch.noise, key_inputs))
        value = network.objective(z, batch.y, batch.mask, key_loss)
        return value if training.summed else value * jnp.sum(batch.mask, dtype=jnp.int32).astype(value.dtype)

    total = sum_over(data, training.batch_size, of, order, count)
    return total / jnp.maximum(data.count if count is None else count, 1).astype(total.dtype)


def gradient(training: Training, variables: Variables, data: ClientData, key: Key[Array, ""]) -> Any:
    """The gradient of the mean loss over all of a client's examples at fixed variables, batch by batch in stored order.

    Batch norm uses each batch's own statistics, as training does; running statistics don't change. The loss must be a
    batch's mean.
    """
    batch_size = training.batch_size
    rest = {name: part for name, part in variables.items() if name != "params"}

    def add_batch(i, total):
        index = i * batch_size + jnp.arange(batch_size, dtype=data.count.dtype)
        batch = rows(data, index % data.x.shape[0], index < data.count)
        grads = jax.grad(
            lambda params: training.loss({"params": params, **rest}, batch, jax.random.fold_in(key, i))[0]
        )(variables["params"])
        return tree.add(total, tree.scale(jnp.sum(batch.mask, dtype=jnp.int32), grads))

    total = jax.lax.fori_loop(0, -(-data.count // batch_size), add_batch, tree.zeros_like(variables["params"]))
    return tree.scale(1 / jnp.maximum(data.count, 1).astype(jnp.result_type(float)), total)


def _first(batch_size: int) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    return jnp.zeros((batch_size,), jnp.int32), jnp.ones((batch_size,), bool)


def correct(correction: Any) -> optax.GradientTransformation:
    """g <- g + correction, a constant tree: the control variates of SCAFFOLD."""
    return optax.stateless(lambda grads, params: tree.add(grads, correction))


def proximal(mu: float | Float[Array, ""], anchor: Any) -> optax.GradientTransformation:
    """g <- g + mu (w - anchor): the gradient of mu/2 ||w - anchor||^2, of FedProx and Ditto."""
    return optax.stateless(lambda grads, params: tree.add(grads, tree.scale(mu, tree.sub(params, anchor))))


def freeze(where: tree.Where, active: Bool[Array, ""]) -> optax.GradientTransformation:
    """u <- 0 for the parameters named by `where`, while `active`. Chained last, so that decay and momentum rest too."""

    def update(updates, params):
        chosen, _ = tree.split({"params": updates}, where)
        frozen = tree.merge({"params": updates}, tree.zeros_like(chosen))["params"]
        return tree.where(active, frozen, updates)

    return optax.stateless(update)


def each(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` for each top-level entry of the parameters by itself: where they are several models, none shares a norm."""

    def init(params: Any) -> Any:
        return {name: tx.init(part) for name, part in params.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        done = {
            name: tx.update(part, state[name], None if params is None else params[name])
            for name, part in updates.items()
        }
        return {name: part for name, (part, _) in done.items()}, {name: part for name, (_, part) in done.items()}

    return optax.GradientTransformation(init, update)


def clip_norm(limit: float) -> optax.GradientTransformation:
    """g <- g min(1, limit / ||g||) over all parameters: optax's, as one factor, which costs a pass over them less."""

    def update(grads, params):
        norm = jnp.sqrt(tree.squared_norm(grads))
        return tree.scale(jnp.where(norm > limit, limit / norm, jnp.ones_like(norm)), grads)

    return optax.stateless(update)


def scale_by_rate(lr: Float[Array, ""]) -> optax.GradientTransformation:
    """u <- -lr u, with lr a traced number in each leaf's own dtype (optax's would promote it)."""
    return optax.stateless(lambda updates, params: tree.scale(-lr, updates))


def sgd(momentum: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    """Direction of PyTorch's SGD without dampening: b <- momentum b + g; g + momentum b if nesterov, else b."""
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


def optimizer(
    direction: Callable[[], optax.GradientTransformation], *, weight_decay: float = 0.0, clip: float = 0.0
) -> Callable[[Float[Array, ""]], optax.GradientTransformation]:
    """eta -> clip the gradient's norm (0: off), add weight_decay * w, take the direction, step by -eta.

    That is PyTorch's order: decay before momentum, and both a method's correction (chained before this) and the decay
    are part of what momentum carries. Clipping acts on the corrected gradient and excludes the decay.
    """

    def make(lr: Float[Array, ""]) -> optax.GradientTransformation:
        return optax.chain(
            clip_norm(clip) if clip else optax.identity(),
            optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
            direction(),
            scale_by_rate(lr),
        )

    return make


SCHEDULES = ("constant", "step", "exponential", "cosine")


def schedule(
    name: str,
    lr: float,
    *,
    rounds: int,
    every: int = 1,
    factor: float = 0.5,
    final: float = 0.0,
    warmup: int = 0,
    period: int = 0,
    lag: int = 0,
) -> Callable[[Round], Float[Array, ""]]:
    """The client learning rate of round r = 0, 1, ...

    constant: lr. step: lr * factor^floor(r / every). exponential: lr * factor^(r / every). cosine: from lr at round 0 to
    `final` at round `rounds`; or at round `period`, and up again after it. With `warmup` w > 0 round r < w uses (r + 1) / w
    of it. With `lag` l > 0 rounds 0 ... l all have the rate of round 0, and round r that of r - l.
    """

    def rate(round: Round) -> Float[Array, ""]:
        now = jnp.asarray(round, jnp.result_type(float))
        r = jnp.maximum(now - lag, 0)
        past = r / period if period else jnp.minimum(r / rounds, 1.0)
        value = {
            "constant": lambda: jnp.full_like(r, lr),
            "step": lambda: lr * factor ** jnp.floor(r / every),
            "exponential": lambda: lr * factor ** (r / every),
            "cosine": lambda: final + (lr - final) * 0.5 * (1 + jnp.cos(jnp.pi * past)),
        }[name]()
        return value * jnp.minimum((now + 1) / warmup, 1.0) if warmup else value

    return rate
