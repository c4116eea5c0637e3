"""The local update: orders, batches, keys, schedules, the optimiser, and the corrections of the gradient."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from reference.network import train_batch

from fedjax_pfl import local, tree
from fedjax_pfl.core import ClientData
from fedjax_pfl.errors import UserError

# -- the order of the rows ----------------------------------------------------------------------------------------------


_permutation = jax.jit(lambda count, n_max: local.permutation(jax.random.key(5), count, n_max), static_argnums=1)


def permutation(count, n_max):
    return np.asarray(_permutation(jnp.int32(count), n_max))


@pytest.mark.parametrize("count", [0, 1, 7, 10])
def test_permutation(count):
    """Rows first, in any order; then the padding. How much padding there is changes nothing."""
    order = permutation(count, 10)
    assert sorted(order[:count]) == list(range(count))
    assert sorted(order[count:]) == list(range(count, 10))
    np.testing.assert_array_equal(permutation(count, 23)[:count], order[:count])


def test_permutation_is_uniform():
    """All orders of 3 rows out of 5 are as frequent: chi-square with 5 degrees of freedom, 20.5 at p = 0.001."""
    n = 3000
    orders = jax.vmap(lambda key: local.permutation(key, jnp.int32(3), 5))(jax.random.split(jax.random.key(0), n))
    counts = [np.sum(np.all(np.asarray(orders)[:, :3] == order, 1)) for order in itertools.permutations(range(3))]
    assert sum(counts) == n
    assert sum((c - n / 6) ** 2 / (n / 6) for c in counts) < 20.5


# -- drawing rows by class ----------------------------------------------------------------------------------------------

LABELS = np.array([0] * 24 + [3] * 12 + [1] * 4, np.int32)  # of 5 classes, two of which the client lacks


@functools.cache
def draws(mixture, n, padding=0):
    """n epochs' draws of that client, [n, rows]; its padding is of a class that it lacks."""
    y = jnp.asarray(np.concatenate([LABELS, np.full(padding, 2, np.int32)]))
    data = ClientData(jnp.int32(0), jnp.int32(len(LABELS)), y[:, None], y, jnp.float32(0))
    draw = toy.jit(jax.vmap(lambda key: local.draw_classes(key, data, 5, mixture)))
    return np.asarray(draw(jax.random.split(jax.random.key(1), n)))


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (((1.0, 0.0),), (1 / 3, 1 / 3, 1 / 3)),
        (((1.0, 0.5),), np.sqrt((24, 4, 12)) / np.sqrt((24, 4, 12)).sum()),
        (((1.0, 1.0),), (0.6, 0.1, 0.3)),
        (((0.75, 1.0), (0.25, 0.0)), 0.75 * np.array((0.6, 0.1, 0.3)) + 0.25 / 3),
    ],
)
def test_classes_are_drawn_by_their_chance(mixture, expected):
    """And the rows of a class alike: chi-square with 2 and with 39 degrees of freedom, 13.8 and 72.1 at p = 0.001."""
    drawn = draws(mixture, 500).reshape(-1)
    classes = np.bincount(LABELS[drawn], minlength=5)
    assert classes[2] == classes[4] == 0
    expected = len(drawn) * np.asarray(expected)
    assert (((classes[[0, 1, 3]] - expected) ** 2) / expected).sum() < 13.8
    of_row = dict(zip((0, 1, 3), expected / (24, 4, 12), strict=True))
    of_row = np.array([of_row[label] for label in LABELS])
    assert (((np.bincount(drawn, minlength=40) - of_row) ** 2) / of_row).sum() < 72.1


def test_draws_come_from_the_key_and_not_from_the_padding():
    some = draws(((1.0, 0.0),), 3)
    np.testing.assert_array_equal(draws.__wrapped__(((1.0, 0.0),), 3), some)
    np.testing.assert_array_equal(draws(((1.0, 0.0),), 3, 9)[:, :40], some)
    assert draws(((1.0, 0.0),), 500, 9).max() < 40, "a padding row"
    assert not np.array_equal(some[0], some[1])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_drawing_of_hardly_any_rows(count):
    y = jnp.array([1, 1, 4, 4], jnp.int32)
    data = ClientData(jnp.int32(0), jnp.int32(count), y[:, None], y, jnp.float32(0))
    drawn = np.asarray(local.draw_classes(jax.random.key(0), data, 5, ((1.0, 0.0),)))
    assert drawn.shape == (4,)
    assert drawn.min() >= 0
    assert drawn.max() < (count or 4)


def test_rounding_never_draws_a_class_that_a_client_lacks(monkeypatch):
    """Neither before the first class that it has nor behind the last."""
    y = jnp.array([1, 1, 2], jnp.int32)
    data = ClientData(jnp.int32(0), jnp.int32(3), y[:, None], y, jnp.float32(0))
    for u, row in [(0.0, 0), (1.0, 2)]:  # 1.0 is what rounding may make of u times the sum
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype, u=u: jnp.full(shape, u, dtype))
        drawn = local.draw_classes(jax.random.key(0), data, 5, ((1.0, 0.0),))
        np.testing.assert_array_equal(drawn, row)


@pytest.mark.parametrize(
    ("sampler", "round", "mixture"),
    [
        ("class_balanced", 0, ((1.0, 0.0),)),
        ("square_root", 0, ((1.0, 0.5),)),
        ("progressive", 0, ((1.0, 1.0),)),
        ("progressive", 1, ((0.75, 1.0), (0.25, 0.0))),
        ("progressive", 4, ((1.0, 0.0),)),
        ("progressive", 7, ((1.0, 0.0),)),
    ],
)
def test_samplers(sampler, round, mixture):
    y = jnp.asarray(np.where(LABELS == 3, 2, LABELS))
    data = ClientData(jnp.int32(0), jnp.int32(40), y[:, None], y, jnp.float32(0), round=jnp.int32(round))
    found = toy.training(sampler=sampler, rounds=5).order(data, 14, jax.random.key(2))
    np.testing.assert_array_equal(found, local.draw_classes(jax.random.key(2), data, toy.CLASSES, mixture))


def test_the_instance_sampler_is_the_permutation():
    data = client(0)
    found = toy.training().order(data, 14, jax.random.key(2))
    np.testing.assert_array_equal(found, local.permutation(jax.random.key(2), data.count, 14))


def test_samplers_need_one_label_an_example():
    data = client(0)
    with pytest.raises(UserError, match=r"^config\.client\.sampler: found 'square_root', expected 'instance' without"):
        toy.training(sampler="square_root").order(data._replace(y=jnp.zeros((14, 2))), 14, jax.random.key(2))


# -- which batches, with which keys -------------------------------------------------------------------------------------

EPOCHS, BATCH = 3, 4


@functools.cache
def logging(drop_last, epochs):
    """Jitted training, of (data, key), that changes nothing but its log: which rows, and which key, in which step."""

    def loss(variables, batch, key):
        log, t = variables["log"], variables["log"]["t"]
        rows = log["rows"].at[t].set(jnp.where(batch.mask, batch.x[:, 0], -1))
        bits = log["bits"].at[t].set(jax.random.bits(key, dtype=jnp.uint32))
        return 2.0 + 0 * variables["params"]["w"], {"log": {"rows": rows, "bits": bits, "t": t + 1}}

    training = toy.training(loss=loss, epochs=EPOCHS, batch_size=BATCH, drop_last=drop_last)
    log = {"rows": jnp.zeros((20, BATCH), jnp.int32), "bits": jnp.zeros(20, jnp.uint32), "t": jnp.int32(0)}
    variables = {"params": {"w": jnp.float64(1.0)}, "log": log}
    tx = training.optimizer(jnp.float64(0.1))
    return toy.jit(lambda data, key: local.train(training, tx, variables, data, key, epochs=epochs))


def logged(count, drop_last=False, epochs=None):
    """The steps of one client's training: their rows [steps, B] (-1: padding), their keys' bits [steps], and the metrics."""
    rows = jnp.arange(11, dtype=jnp.int32)
    data = ClientData(jnp.int32(0), jnp.int32(count), rows[:, None], rows, jnp.float32(0))
    after, metrics = logging(drop_last, epochs)(data, jax.random.key(1))
    steps = int(after["log"]["t"])
    return np.asarray(after["log"]["rows"])[:steps], np.asarray(after["log"]["bits"])[:steps], jax.device_get(metrics)


@pytest.mark.parametrize(
    ("count", "drop_last"), [(11, False), (11, True), (8, False), (3, False), (3, True), (1, False)]
)
def test_batches(count, drop_last):
    """Each epoch sees each row once (but those of a dropped batch), in the order and with the keys that are documented."""
    seen, bits, metrics = logged(count, drop_last)
    per_epoch = count // BATCH if drop_last else math.ceil(count / BATCH)
    assert len(seen) == EPOCHS * per_epoch == metrics.steps
    assert metrics.examples == EPOCHS * (per_epoch * BATCH if drop_last else count)
    assert metrics.loss == 2 * metrics.examples
    for e in range(EPOCHS):
        key = jax.random.fold_in(jax.random.key(1), e)
        order = local.permutation(jax.random.fold_in(key, 0), jnp.int32(count), count)
        steps = slice(e * per_epoch, (e + 1) * per_epoch)
        rows = seen[steps][seen[steps] >= 0]
        np.testing.assert_array_equal(rows, order[: len(rows)])
        assert len(rows) == metrics.examples // EPOCHS
        step_key = jax.random.fold_in(key, 1)
        assert bits[steps].tolist() == [
            int(jax.random.bits(jax.random.fold_in(step_key, i), dtype=jnp.uint32)) for i in range(per_epoch)
        ]
    epochs = seen.reshape(EPOCHS, -1)
    assert count < 8 or len({tuple(epoch) for epoch in epochs}) == EPOCHS, "a fresh order in each epoch"


def test_number_of_epochs_may_be_given():
    assert logged(11, epochs=1)[2].steps == 3
    assert logged(11, epochs=0)[2].steps == 0


def test_independent_batches():
    """Each draw sees all of an epoch's rows in an order of its own, as documented; the padding changes nothing."""
    training = toy.training(epochs=2, batch_size=BATCH)

    def step(carry, key, *batches):
        seen, t = carry
        for d, batch in enumerate(batches):
            seen = seen.at[d, t].set(jnp.where(batch.mask, batch.x[:, 0], -1))
        return (seen, t + 1), jnp.float64(0.5)

    def run(n_max):
        rows = jnp.arange(n_max, dtype=jnp.int32)
        data = ClientData(jnp.int32(0), jnp.int32(9), rows[:, None], rows, jnp.float32(0))
        carry = (jnp.full((3, 8, BATCH), -1, jnp.int32), jnp.int32(0))
        jitted = toy.jit(lambda data, key: local.steps(training, step, carry, data, key, draws=3))
        return jax.device_get(jitted(data, jax.random.key(1)))

    (seen, t), metrics = run(9)
    assert t == metrics.steps == 6
    assert (metrics.examples, metrics.loss) == (18, 9.0)
    for e in range(2):
        for d, data in enumerate((0, 3, 4)):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), e), data)
            rows = seen[d, 3 * e : 3 * e + 3].reshape(-1)
            np.testing.assert_array_equal(rows[rows >= 0], local.permutation(key, jnp.int32(9), 9))
    assert len({tuple(rows.reshape(-1)) for rows in seen}) == 3
    np.testing.assert_array_equal(run(14)[0][0], seen)


def test_steps_per_epoch():
    counts = jnp.array([0, 1, 4, 5, 8], jnp.int32)
    assert toy.training().steps_per_epoch(counts).tolist() == [0, 1, 1, 2, 2]
    assert toy.training(drop_last=True).steps_per_epoch(counts).tolist() == [0, 0, 1, 1, 2]


def client(k):
    return toy.row(toy.cohort([k], n_max=14).data, 0)


def test_gradient():
    """That of the mean over all of the client's rows, whatever the batch size."""
    net, variables = toy.Net(batch_norm=False), toy.variables(batch_norm=False)
    gradient = toy.jit(lambda data: local.gradient(toy.training(net), variables, data, jax.random.key(0)))
    for k in (0, 1, 5):
        _, expected, _ = train_batch(toy.flat(variables), *toy.rows()[k])
        actual = toy.flat({"params": gradient(client(k))})
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-10, atol=1e-14)


def test_gradient_of_a_client_without_rows_is_zero():
    data = client(toy.PAD)
    grads = local.gradient(toy.training(), toy.variables(), data, jax.random.key(0))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads))


# -- the optimiser ------------------------------------------------------------------------------------------------------


def descend(tx, params, grads):
    """The parameters after each step along the given gradients."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        yield params


@pytest.mark.parity
@pytest.mark.parametrize("clip", [0.0, 2.0])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_pytorchs(momentum, nesterov, clip):
    """Clipping, decay, momentum, in this order. PyTorch's clipping adds 1e-6 to the norm, hence the tolerance then."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}
    # some of the gradients are longer than 2, some are not
    grads = [{name: s * rng.normal(size=value.shape) for name, value in start.items()} for s in (3, 0.1, 1, 5, 0.3)]
    make = local.optimizer(lambda: local.sgd(momentum, nesterov), weight_decay=0.1, clip=clip)
    ours = descend(
        make(jnp.float64(0.2)), jax.tree.map(jnp.asarray, start), [jax.tree.map(jnp.asarray, g) for g in grads]
    )

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    sgd = torch.optim.SGD(theirs.values(), lr=0.2, momentum=momentum, nesterov=nesterov, weight_decay=0.1)
    for params, g in zip(ours, grads, strict=True):
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(g[name])
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        sgd.step()
        for name, parameter in theirs.items():
            np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=1e-5 if clip else 1e-12)


def test_optimizer_keeps_float32():
    make = local.optimizer(lambda: local.sgd(0.9, True), weight_decay=0.1, clip=1.0)
    params = {"a": jnp.ones(3, jnp.float32)}
    for after in descend(make(jnp.float64(0.2)), params, [params, params]):
        assert after["a"].dtype == jnp.float32
        assert not after["a"].weak_type


W = {"l1": {"kernel": jnp.array([1.0, 2.0])}, "l2": {"kernel": jnp.array([3.0, 4.0])}}
G = {"l1": {"kernel": jnp.array([0.1, 0.2])}, "l2": {"kernel": jnp.array([0.3, 0.4])}}


def updates_of(tx, grads=G, params=W):
    return tx.update(grads, tx.init(params), params)[0]


def test_correct():
    corrected = updates_of(local.correct(W))
    np.testing.assert_allclose(corrected["l1"]["kernel"], [1.1, 2.2])


def test_proximal():
    """The gradient of mu/2 ||w - anchor||^2 is added."""
    anchor = tree.scale(0.25, W)
    penalty = jax.grad(lambda w: 0.3 / 2 * tree.squared_norm(tree.sub(w, anchor)))(W)
    jax.tree.map(np.testing.assert_allclose, updates_of(local.proximal(0.3, anchor)), tree.add(G, penalty))


@pytest.mark.parametrize("active", [True, False])
def test_freeze(active):
    """Chained last, neither decay nor momentum moves what is frozen."""
    make = local.optimizer(lambda: local.sgd(0.9), weight_decay=0.1)
    tx = optax.chain(make(jnp.float64(0.1)), local.freeze(tree.top_level(("l1",)), jnp.asarray(active)))
    free = list(descend(make(jnp.float64(0.1)), W, [G, G]))[-1]
    after = list(descend(tx, W, [G, G]))[-1]
    np.testing.assert_array_equal(after["l1"]["kernel"], (W if active else free)["l1"]["kernel"])
    np.testing.assert_array_equal(after["l2"]["kernel"], free["l2"]["kernel"])
    assert not np.any(free["l1"]["kernel"] == W["l1"]["kernel"])


def test_each():
    """Two models under one optimiser move as each does alone: clipping, decay and momentum are their own."""
    tx = local.optimizer(lambda: local.sgd(0.9), weight_decay=0.1, clip=0.3)(jnp.float64(0.1))  # clips l2 alone
    together = list(descend(local.each(tx), W, [G, G, G]))[-1]
    for name in W:
        alone = list(descend(tx, W[name], [G[name]] * 3))[-1]
        np.testing.assert_array_equal(together[name]["kernel"], alone["kernel"])
    assert not np.array_equal(together["l1"]["kernel"], list(descend(tx, W, [G, G, G]))[-1]["l1"]["kernel"])


# -- the learning rate over the rounds ----------------------------------------------------------------------------------

FORMULAS = {
    "constant": lambda r: 0.4,
    "step": lambda r: 0.4 * 0.3 ** (r // 3),
    "exponential": lambda r: 0.4 * 0.3 ** (r / 3),
    "cosine": lambda r: 0.05 + 0.35 * (1 + math.cos(math.pi * min(r, 10) / 10)) / 2,
}


@pytest.mark.parametrize(
    ("period", "round", "expected"),
    [(100, 0, 0.05), (100, 1, 0.05), (100, 2, 0.0499879), (100, 99, 0.0010483), (100, 101, 0.001), (100, 199, 0.0499517),
     (100, 19, 0.046186)],
)  # fmt: skip
def test_kd3a_s_learning_rate(period, round, expected):
    """METHODS.md 6.7: a round late, and with the configured epochs as its half period whatever the number of rounds."""
    rate = local.schedule("cosine", 0.05, rounds=200, final=0.001, lag=1, period=period)
    np.testing.assert_allclose(rate(jnp.int32(round)), expected, atol=5e-8)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("name", local.SCHEDULES)
def test_schedules(name, warmup):
    rate = jax.jit(local.schedule(name, 0.4, rounds=10, every=3, factor=0.3, final=0.05, warmup=warmup))
    for r in range(13):
        expected = FORMULAS[name](r) * (min(1, (r + 1) / warmup) if warmup else 1)
        np.testing.assert_allclose(rate(jnp.int32(r)), expected, rtol=1e-12, err_msg=f"round {r}")


# -- what stays with a client -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "alone"),
    [
        ("aggregate", None),
        ("local", {"norm.scale", "norm.bias", "norm.mean", "norm.var"}),
        ("local-statistics", {"norm.mean", "norm.var"}),
    ],
)
def test_keep(policy, alone):
    """By the batch-norm policy, and the parts that a method names besides."""
    training, variables = toy.training(batch_norm=policy), toy.variables()

    def kept(keep):
        return None if keep is None else set(toy.flat(tree.split(variables, keep(variables))[0]))

    assert kept(training.keep()) == alone
    assert kept(training.keep(tree.top_level(("head",)))) == (alone or set()) | {"head.kernel", "head.bias"}
