"""A run: what it writes, that it goes on bit for bit, and what it says when something is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs import base
from fedjax_pfl import algorithms, benchmark, checkpoint, core, experiment, lanes, metrics, protocol, rounds, train
from fedjax_pfl import config as configuration
from fedjax_pfl.errors import UserError

ROOT = Path(__file__).parents[1]


def small(method: str = "fedavg", **changes):
    """A run of seconds: four hospitals' digits at 8 x 8, one hidden layer with batch norm, 4 rounds."""
    config = base.get_config()
    config.method = method
    config.rounds = 4
    config.data.digits.size = 8
    config.split.max_examples = 240
    config.model.mlp.hidden = (8,)
    config.model.mlp.norm = "batch"
    config.client.sgd.momentum = 0.5
    config.finetune.start = 2
    config.faug.gan_steps = 20
    config.cohort.sampling = "uniform"
    config.cohort.size = 3
    config.cohort.drop_out = 0.2
    config.eval.tuned = "never"
    config.checkpoint.every = 1
    config.plots = config.tensorboard = False
    if method == "fedlgt":
        label_masks(config)
    config.update_from_flattened_dict(changes)
    return config.lock()


def label_masks(config) -> None:
    """A label-mask transformer of the least size, on scenes of digits."""
    config.data.source, config.split.how = "digit_scenes", "within"
    config.model.name, config.model.ctran.backbone = "ctran", "cnn_niid"
    config.model.ctran.labels = "onehot"
    config.text.states = "package"
    config.model.ctran.width = config.model.ctran.feedforward = 8
    config.model.ctran.depth = config.model.ctran.heads = 1


def records(workdir: Path) -> list[dict]:
    """The metrics of a run without its times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def final_state(config, workdir: Path):
    setup = experiment.prepare(config)
    saved = checkpoint.Checkpoints(workdir / "checkpoints")
    state, progress = saved.restore(max(saved.rounds()), setup.init(workdir))
    saved.close()
    return state, progress


# A server's state alone, and the richest state of server and clients; the others among the slow tests (the law that what is
# saved comes back bit for bit is in test_contract.py, for each of them).
QUICK = {"fedavg"}
METHODS = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in sorted(algorithms.METHODS)]


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(method, tmp_path):
    config = small(method)
    train.run(config, tmp_path / "whole", quiet=True)
    assert train.run(config, tmp_path / "parts", stop_at=2, quiet=True) is None
    assert [record["round"] for record in records(tmp_path / "parts")] == [1, 2]
    train.run(config, tmp_path / "parts", quiet=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert _utilisation(tmp_path / "parts") == _utilisation(tmp_path / "whole") == 1  # one after the other
    (one, progress_one), (two, progress_two) = (final_state(config, tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert progress_one._replace(seconds=0) == progress_two._replace(seconds=0)


def _utilisation(workdir: Path) -> float:
    return json.loads((workdir / "summary.json").read_text())["utilisation"]


def test_how_long_the_device_waits(tmp_path):
    """What lies between a call's results and the next call, but for what the device itself has to do there."""

    class Results:  # what `jax.block_until_ready` waits for
        def __init__(self, seconds: float) -> None:
            self.ready = time.perf_counter() + seconds

        def block_until_ready(self) -> None:
            time.sleep(max(0, self.ready - time.perf_counter()))

    def round(work: rounds.Work, device: float, host: float, after: float = 0) -> None:
        work.start(lambda: Results(device))
        time.sleep(host)
        work.finish()
        time.sleep(after)

    with rounds.Work() as work:
        assert work.idle is None
        for _ in range(2):
            round(work, device=0.5, host=0.25)  # done before the device is
        assert work.working >= 1
        assert work.waiting < 0.25
        round(work, device=0.1, host=0.4, after=0.2)
        round(work, device=0.1, host=0)
        assert work.waiting >= 0.4  # 0.5, if its thread is asked at once
        assert work.idle == work.waiting / (work.waiting + work.working)
        before = work.waiting
        time.sleep(0.2)
        work.pause()
        round(work, device=0, host=0)
        assert work.waiting == before

    train.run(small("fedavg", rounds=3, **{"eval.every": 3, "checkpoint.every": 3}), tmp_path / "three", quiet=True)
    assert 0 < json.loads((tmp_path / "three" / "summary.json").read_text())["idle"] < 1
    often = {"eval.every": 1, "eval.best_from": 1.0, "checkpoint.every": 3}  # saved at the end alone
    train.run(small("fedavg", rounds=3, **often), tmp_path / "each", quiet=True)
    assert json.loads((tmp_path / "each" / "summary.json").read_text())["idle"] is None


def test_clients_that_run_together_wait_for_each_other(tmp_path):
    """Four hospitals of different sizes at once: as many steps as four times the largest one's."""
    config = small("fedavg", **{"client.map": "vmap", "cohort.sampling": "all", "rounds": 1, "client.batch_size": 8})
    train.run(config, tmp_path, quiet=True)
    steps = -(-experiment.prepare(config).rows.counts // 8)
    assert _utilisation(tmp_path) == pytest.approx(steps.sum() / (len(steps) * steps.max()))
    assert _utilisation(tmp_path) < 1


def test_lanes_of_clients_as_skewed_as_flairs(tmp_path):
    """Cohorts of 200 clients with FLAIR's quartiles of images: lanes wait for nobody."""
    rng, sizes = np.random.default_rng(0), benchmark.skewed(2000)
    assert np.quantile(sizes, (0.25, 0.5, 0.75)).tolist() == [1, 2, 5]
    assert sizes.max() == 512
    ends = np.cumsum(sizes)
    x, y = rng.normal(size=(ends[-1] + 100, 3)).astype(np.float32), rng.integers(2, size=ends[-1] + 100)
    client = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(100, -1)])
    split = np.where(client < 0, "test", "train")
    client[client < 0] = 0
    np.savez(tmp_path / "skewed.npz", x=x, y=y, client=client, split=split)
    changes = {
        "data.source": "npz", "data.npz.path": str(tmp_path / "skewed.npz"), "split.validation": 0.0, "rounds": 4,
        "cohort.sampling": "uniform", "cohort.size": 200, "client.batch_size": 16, "model.name": "mlp",
        "client.epochs": 1, "eval.every": 4, "split.max_examples": 0,
    }  # fmt: skip
    finals = {}
    for how in ("lanes", "map", "vmap"):
        config = small("fedavg", **changes, **{"client.map": how})
        train.run(config, tmp_path / how, quiet=True)
        finals[how] = final_state(config, tmp_path / how)[0]
    assert _utilisation(tmp_path / "map") == 1
    assert _utilisation(tmp_path / "vmap") < 0.1
    assert _utilisation(tmp_path / "lanes") > 0.9
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), finals["lanes"], finals["map"])


def test_how_many_lanes_is_said_by_the_first_rounds(monkeypatch):
    """By the steps of their cohorts, the largest client first; on two devices by those of each one's part."""
    seen = []
    monkeypatch.setattr(lanes, "number", lambda cohorts: seen.append([each.tolist() for each in cohorts]) or 3)
    changes = {
        "client.map": "lanes",
        "client.epochs": 2,
        "client.batch_size": 16,
        "cohort.sampling": "all",
        "rounds": 2,
    }

    def prepared(**more: Any) -> experiment.Setup:
        return experiment.prepare(small("fedavg", **changes, **more))

    assert prepared().training.how == core.Lanes(3)
    counts = -np.sort(-prepared().rows.counts)
    steps = (2 * -(-counts // 16)).tolist()
    assert len(set(steps)) > 2
    assert seen[-1] == [steps, steps]
    prepared(**{"client.drop_last": True})
    assert seen[-1][0] == (2 * (counts // 16)).tolist() != steps
    assert prepared(devices=2).training.how == core.Sharded(core.mesh(jax.devices()[:2]), core.Lanes(3))
    assert seen[-1] == [steps[::2], steps[1::2]] * 2
    assert prepared(**{"client.lanes": 2}).training.how == core.Lanes(2)


def test_on_two_devices_a_run_is_the_same_but_for_rounding(tmp_path):
    """Three clients a round on two devices, stopped and gone on with; its checkpoints are those of one device."""
    assert train.run(small("scaffold", devices=2), tmp_path / "two", quiet=True, stop_at=2) is None
    two = train.run(small("scaffold", devices=2), tmp_path / "two", quiet=True)
    one = train.run(small("scaffold", devices=1), tmp_path / "one", quiet=True)
    assert two["rounds"] == one["rounds"]
    for a, b in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-4)
    state, _ = final_state(small("scaffold", devices=1), tmp_path / "two")
    expected, _ = final_state(small("scaffold", devices=1), tmp_path / "one")
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "place", "options"),
    [
        ("scaffold", "disk", {"client.map": "3"}),  # two clients and a row of padding
        pytest.param("prrfl", "host", {}, marks=pytest.mark.slow),
    ],
)
def test_states_off_the_device_change_nothing(method, place, options, tmp_path):
    """Stopped and gone on with, with newcomers and every model on everybody's data; and no file stays behind."""
    options = {"eval.held_out": 1, "eval.cross": True, "cohort.size": 2, **options}
    config = small(method, **options, **{"cohort.states": place})
    assert train.run(config, tmp_path / place, stop_at=2, quiet=True) is None
    summary = train.run(config, tmp_path / place, quiet=True)
    expected = train.run(small(method, **options, **{"cohort.states": "device"}), tmp_path / "device", quiet=True)
    assert summary is not None
    assert expected is not None
    for name in ("last", "best", "cross", "communication"):
        assert summary[name] == expected[name]
    assert records(tmp_path / place) == records(tmp_path / "device")
    assert sorted(path.name for path in (tmp_path / place).iterdir()) == sorted(
        path.name for path in (tmp_path / "device").iterdir()
    )


def test_a_checkpoint_holds_the_states_of_those_that_took_part(tmp_path):
    config = small("scaffold", **{"cohort.states": "host", "cohort.size": 1, "rounds": 2})
    train.run(config, tmp_path, quiet=True)
    state, _ = final_state(config, tmp_path)
    took_part = {int(id) for round in range(2) for id in experiment.prepare(config).sampler(round)[0]}
    assert set(state.clients.saved().ids) == took_part
    assert len(took_part) < 4
    nobody = np.array([k for k in range(4) if k not in took_part])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.clients.take(nobody)))  # c_i = 0 in the beginning


def test_states_on_the_host_need_one_architecture(tmp_path):
    config = small("fml", **{"cohort.states": "host", "model.per_client": ("mlp", "mlp(hidden=(4,))")})
    with pytest.raises(
        UserError, match=r"config\.cohort\.states: found 'host', expected 'device' with config\.model\."
    ):
        train.run(config, tmp_path, quiet=True)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"cohort.resident": "never", "cohort.size": 1, "client.map": "2", "seed": 1}, id="streamed"),
        pytest.param({"devices": 2}, id="devices", marks=pytest.mark.slow),
    ],
)
def test_several_rounds_in_a_call_are_the_same_but_for_rounding(options, tmp_path):
    """Stopped and gone on with; clients of different sizes, and in each round others."""
    options = {"eval.every": 2, "checkpoint.every": 2, "split.partition": "quantity", **options}
    several = small("scaffold", rounds_per_call=2, **options)
    assert train.run(several, tmp_path / "several", stop_at=2, quiet=True) is None
    two = train.run(several, tmp_path / "several", quiet=True)
    one = train.run(small("scaffold", **options), tmp_path / "one", quiet=True)
    assert two is not None
    assert one is not None
    assert [record["round"] for record in records(tmp_path / "several")] == [2, 4]
    for a, b in zip(records(tmp_path / "several"), records(tmp_path / "one"), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-5)
    (state, progress), (expected, expected_progress) = (
        final_state(config, tmp_path / name)
        for config, name in ((several, "several"), (small("scaffold", **options), "one"))
    )
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert (progress.examples, progress.steps) == (expected_progress.examples, expected_progress.steps)


@pytest.mark.parametrize(
    ("options", "stop_at", "message"),
    [
        ({"eval.every": 3}, 0, r"config\.rounds_per_call: found 2, expected a divisor of config\.eval\.every, 3"),
        ({}, 3, r"--stop_at: found 3, expected a multiple of config\.rounds_per_call, 2"),
        (
            {"cohort.states": "host"},
            0,
            r"config\.rounds_per_call: found 2, expected 1 with clients' states off the device",
        ),
    ],
)
def test_rounds_that_can_not_be_one_call(options, stop_at, message, tmp_path):
    config = small("scaffold", rounds_per_call=2, **{"eval.every": 2, "checkpoint.every": 2, **options})
    with pytest.raises(UserError, match=f"^{message}$"):
        train.run(config, tmp_path, stop_at=stop_at, quiet=True)


def compilations(action: Callable[[], Any]) -> int:
    """How many programs are compiled, or read from the cache of compiled ones, while this runs."""
    found = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    action()
    jax.monitoring.unregister_event_duration_listener(listen)
    return len(found)


def test_nothing_is_compiled_between_rounds(tmp_path):
    """Other cohorts, lost uploads, evaluations, checkpoints and going on: eight rounds compile what two do."""
    train.run(small("scaffold", rounds=2), tmp_path / "warm", quiet=True)  # small operations that all runs share
    two = compilations(lambda: train.run(small("scaffold", rounds=2), tmp_path / "two", quiet=True))
    assert two > 0
    eight = small("scaffold", rounds=8)
    assert compilations(lambda: train.run(eight, tmp_path / "eight", quiet=True, stop_at=5)) <= two
    assert compilations(lambda: train.run(eight, tmp_path / "eight", quiet=True)) <= two


def test_a_profile_of_some_rounds(tmp_path):
    """From the second round of the start on, so that no compilation is in it."""
    train.run(small(), tmp_path, quiet=True, stop_at=1)
    assert not (tmp_path / "profile").exists()
    train.run(small(), tmp_path, quiet=True, profile=1)
    (recorded,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"round" in recorded.read_bytes()


def test_more_devices_than_there_are(tmp_path):
    with pytest.raises(UserError, match=r"^config\.devices: found 9, expected at most 4, as many as JAX sees$"):
        train.run(small(devices=9), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_learns_and_writes_what_it_should(tmp_path):
    config = small(
        "ditto", **{"eval.held_out": 1, "eval.tuned": "always", "rounds": 6, "plots": True, "tensorboard": True}
    )
    config.unlock()
    config.cohort.size = 0
    summary = train.run(config.lock(), tmp_path, quiet=True)
    assert summary is not None
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert json.loads((tmp_path / "config.json").read_text())["method"] == "ditto"
    assert (tmp_path / "plots" / "training.png").stat().st_size > 10_000
    assert list((tmp_path / "events").iterdir())
    lines = records(tmp_path)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    names = experiment.prepare(config).federation.client_names
    for model in ("personal", "global", "tuned"):
        for split, clients in (("test", names[:3]), ("held_out", names[3:])):
            key = f"{split}/{model}/macro_f1"
            values = [summary["last"][f"{key}/client/{name}"] for name in clients]
            assert summary["last"][key] == pytest.approx(np.mean(values))
            assert summary["last"][f"{key}/worst"] == min(values)
        assert f"test/{model}/accuracy" in lines[0]
    # A newcomer's personal model in Ditto is the initial one, which knows nothing; the global model serves it better.
    assert summary["last"]["held_out/global/loss"] < summary["last"]["held_out/personal/loss"]


def test_best_round_is_chosen_by_validation_alone_and_restored(tmp_path):
    config = small("local", rounds=5)
    summary = train.run(config, tmp_path, quiet=True)
    assert summary is not None
    values = {line["round"]: line["validation/personal/macro_f1"] for line in records(tmp_path)}
    best = max(values, key=lambda round: (values[round], -round))
    assert summary["best"]["round"] == best
    line = next(line for line in records(tmp_path) if line["round"] == best)
    assert {key: value for key, value in line.items() if key != "train/loss"}.items() <= summary["best"].items()


def test_a_changed_config_is_refused_and_named(tmp_path):
    train.run(small(), tmp_path, stop_at=1, quiet=True)
    with pytest.raises(UserError, match=r"config\.client\.lr: 0\.1 -> 0\.2"):
        train.run(small(**{"client.lr": 0.2}), tmp_path, quiet=True)


def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(tmp_path, capsys):
    config = small()
    train.run(config, tmp_path / "whole", quiet=True)
    train.run(config, tmp_path / "run", stop_at=3, quiet=True)
    files = [path for path in (tmp_path / "run" / "checkpoints" / "3").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    train.run(config, tmp_path / "run", quiet=True)
    assert "going back to the checkpoint before it" in capsys.readouterr().out
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_a_nan_update_speaks_and_keeps_what_was_saved(tmp_path):
    with pytest.raises(UserError, match=r"round 1: the update of client .* is not finite.*nothing was saved"):
        train.run(small(**{"client.lr": 1e30}), tmp_path, quiet=True)


def test_a_full_run_is_not_trained_again(tmp_path):
    config = small()
    first = train.run(config, tmp_path, quiet=True)
    again = train.run(config, tmp_path, quiet=True)
    assert first is not None
    assert again is not None
    assert first["last"] == again["last"]
    assert len(records(tmp_path)) == 4


def test_evaluating_a_checkpoint_gives_the_summary_again(tmp_path):
    config = small("fedper")
    summary = train.run(config, tmp_path, quiet=True)
    assert summary is not None
    for which in ("last", "best"):
        assert protocol.evaluate_run(config, tmp_path, which) == summary[which]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fedprx"}, r"config\.method: unknown name 'fedprx' \(did you mean 'fedprox'\?\)"),
        ({"model.name": "resnet19"}, r"config\.model\.name: unknown name 'resnet19' \(did you mean 'resnet"),
        ({"client.batch_size": 0}, r"config\.client\.batch_size: found 0, expected 1 or more"),
        ({"client.map": "pmap"}, r"config\.client\.map: found 'pmap', expected auto, vmap, map, lanes or a number"),
        ({"cohort.size": 5}, r"config\.cohort\.size: found 5 clients a round, expected 1 to 4"),
        ({"cohort.sampling": "fixed", "cohort.ids": (7,)}, r"config\.cohort\.ids: found \(7,\), expected different"),
        ({"cohort.drop_out": 1.5}, r"config\.cohort\.drop_out: found 1\.5"),
        ({"eval.held_out": 4}, r"config\.eval\.held_out: found 4, expected less than the number of clients, 4"),
        ({"eval.metric": "f1"}, r"config\.eval\.metric: found 'f1', expected one of accuracy"),
        ({"method": "local", "eval.model": "global"}, r"config\.eval\.model: found 'global', but this method has no"),
        ({"method": "fedper", "fedper.personal_layers": 9}, r"config\.fedper\.personal_layers: found 9, expected 1 to"),
        ({"model.weights": "/nowhere.npz"}, r"/nowhere\.npz"),
        ({"model.name": "vgg16_slim"}, r"(?i)vgg"),
        ({"split.partition": "dirichlet", "split.dirichlet.beta": 0.0}, r"config\.split\.dirichlet\.beta"),
        ({"split.partition": "homogeneous", "split.homogeneous.clients": 5000}, r"config\.split\.homogeneous\.clients"),
        ({"data.source": "npz", "data.npz.path": "/nowhere.npz"}, r"/nowhere\.npz"),
    ],
    ids=str,
)
def test_impossible_values_get_one_line_and_leave_nothing(change, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        train.run(small(**change), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_rules_name_fields_that_exist():
    assert set(configuration.RULES) <= set(configuration.flat(base.get_config()))
    configuration.validate(base.get_config())
    assert metrics.main("single") == "macro_f1"


def _start(workdir: Path, rounds: int) -> subprocess.Popen:
    flags = [f"--config.rounds={rounds}", "--config.checkpoint.every=1", "--config.plots=False", "--quiet"]
    command = [sys.executable, "launch.py", "--config=configs/fedbn_digits.py", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for_round(workdir: Path, round: int) -> None:
    for _ in range(1200):
        if (workdir / "metrics.jsonl").exists() and len((workdir / "metrics.jsonl").read_text().splitlines()) >= round:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get so far")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_round_saves_and_says_how_to_go_on(number, status, tmp_path):
    process = _start(tmp_path, 100_000)
    _wait_for_round(tmp_path, 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "the same command goes on from there" in errors
    saved = checkpoint.Checkpoints(tmp_path / "checkpoints")
    assert max(saved.rounds()) == len(records(tmp_path))
    saved.close()


@pytest.mark.slow
def test_after_kill_9_the_run_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    whole = _start(tmp_path / "whole", 30)
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = _start(tmp_path / "killed", 30)
        before = len(records(tmp_path / "killed")) if (tmp_path / "killed" / "metrics.jsonl").exists() else 0
        _wait_for_round(tmp_path / "killed", min(29, before + 3))
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.communicate()
        os.sync()
    process = _start(tmp_path / "killed", 30)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
