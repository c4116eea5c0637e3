"""Several runs as one program: each comes to what it comes to by itself."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap

from configs import base
from fedjax_pfl import checkpoint, core, experiment, lanes, rounds, together, train
from fedjax_pfl import config as configuration
from fedjax_pfl.core import Algorithm
from fedjax_pfl.errors import UserError

# -- programs ----------------------------------------------------------------------------------------------------------


def program(seed: int, rate: float, by: int = 3, power: int = 2):
    """Numbers of a run's own in all places that a program has: literals, arrays, keys, in loops, branches and calls."""
    table, key, limit = np.arange(3.0) * seed, jax.random.key(seed), 2.0 + seed

    @jax.custom_jvp
    def bent(x):
        return x * rate + seed

    bent.defjvp(lambda x, t: (bent(*x), t[0]))

    @custom_vmap
    def stretched(x):
        return x * table

    @stretched.def_vmap
    def _(size, batched, x):
        return x * table, True

    def round(x, k):
        def one(i, c):
            return c - rate * jnp.sin(c) + jnp.asarray(table) * jax.random.normal(jax.random.fold_in(key, i), (3,))

        x = jax.lax.fori_loop(0, by, one, x)
        x = jax.lax.while_loop(lambda c: c.max() < limit, lambda c: c * 1.5 + rate, x)
        x, all_ = jax.lax.scan(lambda c, y: (c + y * rate, c.sum() - seed), x, jnp.arange(4.0))
        x = jax.lax.cond(x[0] > 3 * limit, lambda x: x * rate, lambda x: x - seed, x)
        x = jax.lax.switch(k.astype(jnp.int32) % 2, [lambda x: x**power, lambda x: bent(x) + limit], x)
        return jax.nn.relu(x) + stretched(x) + jax.jit(lambda x: x * seed)(k) + all_.sum(), jax.random.bits(key)

    return round


def algorithm(round) -> Algorithm:
    return Algorithm(lambda variables, n: (), round, lambda *_: (), None)


@pytest.mark.parametrize("how", ["map", "vmap"])
def test_programs_that_differ_in_numbers(how, monkeypatch):
    monkeypatch.setattr(together, "client_map", lambda function: lambda *args: mapped(function)(*args))
    mapped = (
        jax.vmap if how == "vmap" else lambda function: lambda *args: jax.lax.map(lambda each: function(*each), args)
    )
    programs = [program(1, 0.1), program(2, 0.3), program(5, 0.5)]
    x, k = np.arange(9.0).reshape(3, 3) / 10, np.array([1.0, 2.0, 3.0])
    # `rounds` has three arguments: states, cohorts, keys
    round = together.jit_rounds([algorithm(lambda x, k, _, each=each: each(x, k)) for each in programs])
    found, bits = round(jnp.asarray(x), jnp.asarray(k), jnp.zeros(3))
    for i, each in enumerate(programs):
        expected, expected_bits = each(jnp.asarray(x[i]), jnp.asarray(k[i]))
        np.testing.assert_allclose(found[i], expected, rtol=1e-12)
        assert bits[i] == expected_bits
    assert len({int(each) for each in bits}) == 3


def test_what_is_alike_is_no_array_of_the_runs():
    """Equal numbers stay numbers: the program of equal runs looks nothing up."""
    trace = jax.make_jaxpr(program(1, 0.1))(jnp.zeros(3), 1.0)
    alike = jax.make_jaxpr(lambda run: together._closed([trace, trace], [jnp.zeros(3), 1.0], run))(jnp.int32(0))
    assert "dynamic_slice" not in str(alike).replace("dynamic_slice_", "")
    assert "gather" not in str(alike)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda x, k, key: (x * 2 + k, key), "a sub here is a mul there"),
        (lambda x, k, key: (x - 2, key), "they have other steps"),
        (lambda x, k, key: (x - 2 + x, key), "they compute from other values"),
        (lambda x, k, key: (x - k + k, key), "a number here is computed there"),
        (lambda x, k, key: (jax.lax.fori_loop(0, 3, lambda i, x: x + 2, x) + k, key), "a sub here is a"),
    ],
)
def test_other_programs_are_refused(other, reason):
    round = together.jit_rounds([algorithm(lambda x, k, key: (x - 2 + k, key)), algorithm(other)])
    with pytest.raises(UserError) as caught:
        round(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
    assert reason in str(caught.value)
    assert "--mode=sweep trains them one after the other" in str(caught.value)


def test_parameters_of_an_equation_are_refused():
    first = algorithm(lambda x, k, key: (jnp.cumsum(x), key))
    round = together.jit_rounds([first, algorithm(lambda x, k, key: (jnp.flip(jnp.cumsum(jnp.flip(x))), key))])
    with pytest.raises(UserError, match=r"config\.seeds, config\.lrs: these runs can't be one program"):
        round(jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(2))
    powers = [algorithm(lambda x, k, key, p=p: (x**p, key)) for p in (2, 3)]
    with pytest.raises(UserError, match=r"y of a integer_pow is 2 here and 3 there|here is a"):
        together.jit_rounds(powers)(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))


# -- runs --------------------------------------------------------------------------------------------------------------


def config(**changes: Any):
    """Hospitals of sizes that differ from seed to seed."""
    config = base.get_config()
    config.method, config.rounds = "scaffold", 4
    config.data.digits.size = 8
    config.split.update(max_examples=240, partition="quantity")
    config.split.quantity.update(clients=5, beta=0.5)
    config.model.mlp.hidden = (8,)
    config.client.batch_size = 16
    config.cohort.update(sampling="uniform", size=3, drop_out=0.2)
    config.eval.update(tuned="never", every=2)
    config.checkpoint.every = 2
    config.plots = config.tensorboard = False
    config.update_from_flattened_dict(changes)
    return config.lock()


def metrics(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_runs_of_one_program_are_runs_alone(tmp_path, capsys):
    """Two seeds with two learning rates each, stopped and gone on with: their folders hold what four runs leave."""
    runs = configuration.runs(config(seeds=(0, 3), lrs=(0.1, 0.02)))
    assert [name for name, _ in runs] == ["lr0.1-seed0", "lr0.1-seed3", "lr0.02-seed0", "lr0.02-seed3"]
    assert [own.name for _, own in runs] == ["scaffold, lr 0.1"] * 2 + ["scaffold, lr 0.02"] * 2
    folders = [(own, tmp_path / "together" / name) for name, own in runs]
    assert train.run_together(folders, stop_at=2, quiet=True) is None
    summaries = train.run_together(folders)
    assert capsys.readouterr().out.count("going on from round 2") == 4
    assert summaries is not None
    sizes = set()
    for (own, folder), summary in zip(folders, summaries, strict=True):
        alone = train.run(own, tmp_path / "alone" / folder.name, quiet=True)
        assert alone is not None
        assert json.loads((folder / "config.json").read_text()) == configuration.to_json(own)
        assert summary["fingerprint"] == alone["fingerprint"]
        for ours, theirs in zip(metrics(folder), metrics(tmp_path / "alone" / folder.name), strict=True):
            assert ours.keys() == theirs.keys()
            pairs = np.array([(a, theirs[key]) for key, a in ours.items()], float)  # None becomes NaN
            np.testing.assert_allclose(*pairs.T, rtol=1e-4, atol=1e-6)
        setup, states = experiment.prepare(own), []
        sizes.add(setup.rows.n_max)
        for where in ("together", "alone"):
            saved = checkpoint.Checkpoints(tmp_path / where / folder.name / "checkpoints")
            states.append(saved.restore(4, setup.init())[0])
            saved.close()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *states)
        assert summary["utilisation"] == 1
    assert len(sizes) == 2, "the seeds' largest clients are alike, so that their padding is never tried"


def test_runs_are_evaluated_by_the_same_program(tmp_path, monkeypatch):
    """To the last constant, so that one compilation, which JAX keeps, does for all of them."""
    jit, programs = jax.jit, []

    def recording(function, **options):
        jitted = jit(function, **options)
        if getattr(function, "__name__", "") != "scores":
            return jitted

        def call(*args):
            programs.append(jitted.lower(*args).as_text())
            return jitted(*args)

        return call

    monkeypatch.setattr(jax, "jit", recording)
    settings = {"rounds": 1, "method": "per_fedavg", "per_fedavg.adapt_steps": 1, "per_fedavg.alpha": 0.1}
    runs = configuration.runs(config(seeds=(0, 3), **settings))
    train.run(runs[0][1], tmp_path, quiet=True)
    alone = len(set(programs))
    programs.clear()
    train.run_together([(own, tmp_path / name) for name, own in runs], quiet=True)
    assert len(set(programs)) == alone > 1


def test_all_runs_are_saved_when_one_of_them_is_better(tmp_path):
    """So that there is always a round from which all go on; where there is none, that is said."""
    own = config(**{"eval.every": 1, "checkpoint.every": 100, "checkpoint.keep": 10, "seeds": (0, 1, 2)})
    runs = [(each, tmp_path / name) for name, each in configuration.runs(own)]
    assert train.run_together(runs, stop_at=3, quiet=True) is None
    saved = [checkpoint.Checkpoints(folder / "checkpoints") for _, folder in runs]
    best = {
        one.restore(3, experiment.prepare(each).init())[1].best_round
        for one, (each, _) in zip(saved, runs, strict=True)
    }
    assert len(best) > 1, "all runs were best after the same round, which tries nothing"
    rounds = saved[0].rounds()
    assert [each.rounds() for each in saved] == [rounds] * 3
    for round in rounds:
        saved[0]._manager.delete(round)
    for each in saved:
        each.close()
    with pytest.raises(
        UserError, match=r"^--workdir: the runs in .* have no checkpoint of the same round, expected one"
    ):
        train.run_together(runs, quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (0, 0)}, "config.seeds: found (0, 0), expected different whole numbers"),
        ({"seeds": (0, 0.5)}, "config.seeds: found (0, 0.5), expected different whole numbers"),
        ({"seeds": (0, True)}, "config.seeds: found (0, True), expected different whole numbers"),
        ({"lrs": ("a",)}, "config.lrs: found ('a',), expected different numbers"),
        (
            {"seeds": (0, 1), "rounds_per_call": 2},
            "config.rounds_per_call: found 2, expected 1 with config.seeds or config.lrs",
        ),
        ({"seeds": (0, 1), "devices": 2}, "several devices: found True, expected False with config.seeds or config.lrs"),
        (
            {"seeds": (0, 1), "cohort.states": "host"},
            "config.cohort.states off the device: found True, expected False with config.seeds or config.lrs",
        ),
        (
            {"seeds": (0, 1, -1)},
            "config.seed: found -1, expected 0 or more",
        ),
    ],
)  # fmt: skip
def test_impossible_runs(changes, message, tmp_path):
    with pytest.raises(UserError) as caught:
        train.run_together([(own, tmp_path / name) for name, own in configuration.runs(config(**changes))], quiet=True)
    assert str(caught.value) == message


def test_runs_get_one_number_of_lanes(monkeypatch, tmp_path):
    """Each would choose its own: seeds have other sizes. The most that one of them chooses are for all."""
    chosen = iter((2, 3))
    monkeypatch.setattr(lanes, "number", lambda cohorts: next(chosen))
    built = []
    monkeypatch.setattr(rounds.Together, "__init__", lambda self, runs, done: built.extend(runs) or skip())

    def skip() -> None:
        raise UserError("far enough")

    runs = configuration.runs(config(**{"seeds": (0, 3), "client.map": "lanes"}))
    with pytest.raises(UserError, match="far enough"):
        train.run_together([(own, tmp_path / name) for name, own in runs], quiet=True)
    assert [core.number_of_lanes(setup.training.how) for _, setup, _ in built] == [3, 3]
    assert [own.client.lanes for own, *_ in built] == [0, 0]


def test_a_run_that_diverges_is_named(tmp_path):
    runs = configuration.runs(config(lrs=(0.1, 1e30)))
    with pytest.raises(UserError, match=r"^lr1e\+30-seed0: round \d: the (update|server)"):
        train.run_together([(own, tmp_path / name) for name, own in runs], quiet=True)


def test_cohorts_of_other_sizes(tmp_path):
    """A fifth of the clients: their number differs between these runs, though not between seeds."""
    runs = [(config(**{"cohort.size": size}), tmp_path / str(size)) for size in (2, 3)]
    with pytest.raises(
        UserError, match=r"^config\.seeds: the runs have \[2, 3\] clients a round, expected as many as each"
    ):
        train.run_together(runs, quiet=True)


def test_one_run_is_not_given_several_seeds(tmp_path):
    with pytest.raises(UserError, match=r"^config\.seeds: found \(0, 1\), expected \(\) except with --mode=train$"):
        train.run(config(seeds=(0, 1)), tmp_path, quiet=True)
    with pytest.raises(UserError, match=r"^config\.lrs: found \(0\.5,\), expected \(\) except with --mode=train$"):
        train.run(config(lrs=(0.5,)), tmp_path, quiet=True)
