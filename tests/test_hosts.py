"""Two hosts: two processes with two devices each, which find each other on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import sweep_all
from fedjax_pfl import cohort, data, experiment, hosts, train
from fedjax_pfl.errors import UserError

ROOT = Path(__file__).parents[1]
RUN = (
    "--config=configs/sweep_all.py", "--config.rounds=4", "--config.split.max_examples=300",
    "--config.plots=False", "--config.tensorboard=False", "--config.cohort.sampling=uniform", "--config.cohort.size=3",
    "--config.checkpoint.every=1", "--config.cohort.drop_out=0.2",
)  # fmt: skip


DIFFERENT = "--coordinator_address: the hosts have different {}, expected the same"


def start(workdir: Path, *flags: str, of: int = 2, devices: int = 2) -> list[subprocess.Popen]:
    """The processes of one run; `flags` may have an entry `{i}: ...` that only process i gets."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ["FEDJAX_PFL_TEST_CACHE"],
    }
    started = []
    for i in range(of):
        mine = [flag.removeprefix(f"{i}: ") for flag in flags if flag.startswith((f"{i}: ", "--"))]
        if of > 1:
            mine += [f"--coordinator_address=localhost:{port}", f"--num_processes={of}", f"--process_id={i}"]
        command = [sys.executable, "launch.py", *RUN, f"--workdir={workdir}", *mine]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    return started


def finish(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Each one's exit status, output and errors."""
    found = []
    for process in started:
        output, errors = process.communicate(timeout=240)
        found.append((process.returncode, output, errors))
    return found


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--config.method=scaffold",),
        # clients of very different sizes; newcomers' own states; every model on everybody's data
        ("--config.method=fedbn", "--config.cohort.resident=never", "--config.split.partition=quantity",
         "--config.split.quantity.clients=6", "--config.eval.held_out=1", "--config.eval.cross=True"),
    ],
    ids=["scaffold", "fedbn"],
)  # fmt: skip
def test_two_hosts_are_one(options, tmp_path):
    """Stopped after two rounds and gone on with; the first host writes, and what it writes is what one host would."""
    (status, output, errors), (status_1, output_1, errors_1) = finish(start(tmp_path / "two", *options, "--stop_at=2"))
    assert (status, status_1) == (0, 0), errors + errors_1
    assert "stopped after round 2 as asked" in output
    both = finish(start(tmp_path / "two", *options))
    assert [status for status, *_ in both] == [0, 0], both
    assert "going on from round 2" in both[0][1]
    for said in (output_1, both[1][1]):
        assert not any(word in said for word in ("going on", "stopped", "written", "accuracy"))
    (one,) = finish(start(tmp_path / "one", *options, of=1, devices=1))
    assert one[0] == 0, one
    assert [record["round"] for record in records(tmp_path / "two")] == [1, 2, 3, 4]
    for a, b in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-4)
    last = [json.loads((tmp_path / name / "summary.json").read_text())["last"] for name in ("two", "one")]
    assert last[0].keys() == last[1].keys()
    np.testing.assert_allclose(last[0]["test/personal/accuracy"], last[1]["test/personal/accuracy"], atol=0.03)


@pytest.mark.slow
def test_a_signal_to_one_host_stops_both(tmp_path):
    started = start(tmp_path, "--config.rounds=100000")
    while not (tmp_path / "metrics.jsonl").exists() or not records(tmp_path):
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.2)
    started[1].send_signal(signal.SIGTERM)
    for status, _, errors in finish(started):
        assert status == 143
        assert "the same command goes on from there" in errors


@pytest.mark.slow
def test_hosts_with_different_configs(tmp_path):
    for status, _, errors in finish(start(tmp_path, "1: --config.client.lr=0.5")):
        assert status == 2
        assert errors.splitlines()[-1] == f"error: {DIFFERENT.format('configs')}"
    assert list(tmp_path.iterdir()) == []


def test_one_program_on_all_hosts(monkeypatch):
    """A host pads its clients as the cohort's largest, wherever that one is: else each host would compile its own."""
    pool = cohort.Pool(np.zeros((40, 2), np.float32), np.zeros(40, np.int32), resident=False)
    rows = cohort.Rows(pool, [np.arange(count) for count in (3, 20, 2, 17)])
    shapes = []
    for mine in (slice(0, 2), slice(2, 4)):
        monkeypatch.setattr(cohort, "of_this_host", lambda rows, how, mine=mine: mine)
        shapes.append(cohort.assemble(rows, np.arange(4), validation=rows).data)
    assert shapes[0].x.shape == shapes[1].x.shape == (2, 20, 2)
    assert shapes[0].validation.x.shape == shapes[1].validation.x.shape


def test_hosts_with_different_data(monkeypatch, tmp_path):
    config = sweep_all.get_config("scaffold")
    monkeypatch.setattr(hosts, "check_alike", lambda what, text: said.append((what, text)))
    said: list[tuple[str, str]] = []
    train.run(config, tmp_path, stop_at=1, quiet=True)
    assert [what for what, _ in said] == ["configs", "data"]
    assert said[1][1] == data.fingerprint(experiment.load_federation(config))


@pytest.mark.parametrize(("others", "alike"), [(0, True), (1, False)])
def test_alike(others, alike, monkeypatch):
    """One host among three; the checksums of the others' texts are simulated."""
    monkeypatch.setattr(hosts, "several", lambda: True)
    gather = lambda mine: np.array([[int(mine)], [int(mine)], [int(mine) ^ others]], np.uint32)  # noqa: E731
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gather)
    if alike:
        hosts.check_alike("data", "x")
    else:
        with pytest.raises(UserError, match=f"^{DIFFERENT.format('data')}$"):
            hosts.check_alike("data", "x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost", 2, 0), "--coordinator_address: found 'localhost', expected HOST:PORT or 'auto'"),
        ((None, 2, 0), "--coordinator_address: missing, expected HOST:PORT or 'auto'"),
        (("a:1", 2, 2), "--process_id: found 2 with --num_processes=2, expected 0 to num_processes - 1"),
        (("a:1", None, 0), "--process_id: found 0 with --num_processes=None, expected 0 to num_processes - 1"),
        (
            ("auto", 2, None),
            "--coordinator_address: found 'auto', expected no --num_processes and no --process_id with it",
        ),
    ],
)
def test_impossible_hosts(given, message):
    with pytest.raises(UserError) as caught:
        hosts.join(*given)
    assert str(caught.value) == message
