"""The metrics file, whatever kills the run, and what is said on the terminal."""

import io
import json
import os
import struct
from importlib import util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_pfl import log
from fedjax_pfl.errors import UserError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def written(workdir: Path, *rounds: int) -> log.Log:
    records = log.Log(workdir, tensorboard=False)
    for round in rounds:
        records.append({"round": round, "test/personal/accuracy": round / 10})
    return records


def test_records_are_strict_json_lines(tmp_path):
    records = log.Log(tmp_path / "a" / "b", tensorboard=False)
    records.append({"round": 1, "x": np.float32(0.5), "y": float("nan"), "z": jnp.float32(np.inf), "n": np.int64(3)})
    line = (tmp_path / "a" / "b" / "metrics.jsonl").read_text()
    assert line == '{"round": 1, "x": 0.5, "y": null, "z": null, "n": 3}\n'
    assert records.records() == [{"round": 1, "x": 0.5, "y": None, "z": None, "n": 3}]


def test_a_value_comes_back_bit_for_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=20)
    records = log.Log(tmp_path, tensorboard=False)
    records.append({"round": 1, **{str(i): v for i, v in enumerate(values)}})
    assert [records.records()[0][str(i)] for i in range(20)] == values.tolist()


def test_truncate_drops_what_a_resumed_run_writes_again(tmp_path):
    records = written(tmp_path, 1, 2, 3, 4)
    records.truncate(2)
    records.append({"round": 3, "x": 1})
    assert [(r["round"], r.get("x")) for r in records.records()] == [(1, None), (2, None), (3, 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]  # no temporary file stays


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_a_torn_last_line_is_dropped_and_the_next_record_has_a_line_of_its_own(tmp_path, cut):
    written(tmp_path, 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    left = [1, 2] if cut == 1 else [1]  # only the line's end is missing: nothing is lost
    assert [r["round"] for r in log.read_records(path)] == left
    records = written(tmp_path, 3)
    assert [r["round"] for r in records.records()] == [*left, 3]
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [*left, 3]


@pytest.mark.parametrize("line", ["{torn", "[1]", '{"x": 1}', '{"round": "1"}', "3"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"round": 1}}\n{line}\n{{"round": 3}}\n')
    with pytest.raises(UserError) as error:
        log.read_records(path)
    assert str(error.value) == f"{path}: line 2 is not a JSON object with an integer 'round'"


def test_no_file_no_records(tmp_path):
    assert log.read_records(tmp_path / "metrics.jsonl") == []


def test_write_json_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    log.write_json(path, {"lr": 0.1, "sizes": (1, 2), "clip": float("inf"), "file": Path("a/b"), "array": np.arange(2)})
    before = path.read_text()
    assert json.loads(before) == {"lr": 0.1, "sizes": [1, 2], "clip": None, "file": "a/b", "array": [0, 1]}

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        log.write_json(path, {"lr": 0.2})
    assert path.read_text() == before


def events(folder: Path) -> list:
    """The events of a folder in the order of their files: length, check sum, message, check sum (TFRecord)."""
    from tensorboardX.proto import event_pb2

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_tensorboard_gets_the_scalars_but_not_every_client(tmp_path):
    record = {"round": 1, "test/personal/auc": 0.5, "test/personal/auc/client/A": 0.1, "test/personal/loss": None}
    with log.Log(tmp_path) as records:
        records.append(record)
        records.append({**record, "round": 2})
        records.truncate(1)
        records.append({**record, "round": 2, "test/personal/auc": 0.75})
    found = events(tmp_path / "events")
    scalars = [(event.step, v.tag, v.simple_value) for event in found for v in event.summary.value]
    assert scalars == [(step, "test/personal/auc", value) for step, value in [(1, 0.5), (2, 0.5), (2, 0.75)]]
    starts = [event.step for event in found if event.HasField("session_log")]
    assert starts == [1, 2]  # TensorBoard hides what an earlier file holds from that step on


def test_without_tensorboardx_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with log.Log(tmp_path) as records:
        records.append({"round": 1})
        records.append({"round": 2})
    assert capsys.readouterr().err == ("no TensorBoard events: tensorboardX is missing (pip install tensorboardX)\n")
    assert len(records.records()) == 2


def test_away_from_a_terminal_progress_is_two_lines():
    file = io.StringIO()
    with log.Progress(5, 2, metric="macro_f1", file=file) as bar:
        bar.update(3, 0.5, 0.25, 1.0)
        bar.say("a checkpoint is damaged")
        bar.update(4, 0.4, None, 1.0)
    first, said, last = file.getvalue().splitlines()
    assert first == "3 of 5 rounds to go"
    assert said == "a checkpoint is damaged"
    assert last.startswith("round 4 of 5 done after ")
    assert last.endswith(" s, loss 0.4000, macro_f1 0.2500")


def test_quiet_progress_says_only_what_it_is_told_to():
    file = Terminal()
    with log.Progress(5, quiet=True, file=file) as bar:
        bar.update(1, 0.5, None, 1.0)
        bar.say("hello")
    assert file.getvalue() == "hello\n"


def test_on_a_terminal_a_bar_shows_round_time_loss_and_metric(terminal):
    with log.Progress(5, metric="macro_f1", file=terminal) as bar:
        bar.update(1, 0.5, 0.25, 1.5)
        bar.update(2, 0.4, None, 1.5)
        bar.say("[b]not markup[/b] " + "x" * 150)
    shown = terminal.getvalue()
    assert "2/5" in shown
    assert "1.50 s/round, loss 0.4000, macro_f1 0.2500" in shown
    assert "left" in shown
    assert "[b]not markup[/b] " + "x" * 150 in shown


def test_the_time_left_is_known_even_where_a_round_takes_minutes(terminal):
    bar = log._bar(terminal)
    clock = iter(range(0, 10_000, 100))
    bar.get_time = lambda: float(next(clock))
    task = bar.add_task("", total=10, state="")
    for round in range(1, 5):
        bar.update(task, completed=round)
    remaining = bar.tasks[0].time_remaining
    assert remaining is not None
    assert remaining > 100


def test_versions_and_device():
    found = log.versions()
    assert list(found) == ["python", "jax", "jaxlib", "flax", "optax", "numpy", "fedjax_pfl", "platform"]
    assert found["numpy"] == np.__version__
    assert log.device().split(" x ")[0].isdigit()
