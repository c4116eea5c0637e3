"""The command line: what it prints, what it refuses, and how quickly."""

import importlib
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import base
from fedjax_pfl import algorithms, data, losses, models, registry

ROOT = Path(__file__).parents[1]


def launch(*flags: str, code: str = "") -> subprocess.CompletedProcess:
    start = [sys.executable, "-c", code, *flags] if code else [sys.executable, "launch.py", *flags]
    return subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_help_is_quick_and_names_modes_and_configs():
    began = time.monotonic()
    done = launch("--help")
    assert time.monotonic() - began < 3
    assert done.returncode == 0
    for word in (
        "train",
        "eval",
        "partition",
        "embed",
        "report",
        "benchmark",
        "sweep",
        "configs/quickstart.py",
        "A model per client",
    ):
        assert word in done.stdout


def test_help_with_a_config_lists_its_options():
    done = launch("--help", "--config=configs/quickstart.py")
    assert "--config.client.lr=0.001" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/quickstart.py", "--config.client.lrr=1"], "(did you mean '--config.client.lr'?)"),
        (["--config=configs/quickstart.py", "--config.ditto.lambda=1"], "--config.ditto.lambda: no such option"),
        (["--config=configs/quickstart.py", "--config.client.lr=fast"], "--config.client.lr=fast"),
        (["--config=configs/quickstart.py", "--config.rounds=2.5"], "--config.rounds=2.5"),
        (
            ["--config=configs/quickstrat.py"],
            "no such file: configs/quickstrat.py (did you mean 'configs/quickstart.py'?)",
        ),
        (["--config=README.md"], "README.md"),
        (["--confg=configs/quickstart.py"], "--confg: no such flag (did you mean 'config'?)"),
        (["--config.rounds=3"], "--config.rounds: a config option, but no --config=FILE is given"),
        (["--mode=trian"], "--mode=trian"),
        (["train"], "found 'train', expected only flags"),
        ([], "--config: missing"),
        (["--mode=report"], "--runs: missing"),
        (["--mode=sweep"], "--config: missing"),
        (
            ["--mode=sweep", "--config=configs/sweep_all.py", "--variants=fedavg,fedpr"],
            "'fedpr' (did you mean 'fedper'?)",
        ),
        (["--mode=sweep", "--config=configs/quickstart.py", "--variants=fast"], "has no VARIANTS"),
        (["--mode=sweep", "--config=configs/sweep_all.py:fedavg"], "takes words by --variants=fedavg"),
        (["--mode=sweep", "--config=configs/sweep_all.py", "--config.seeds=0,1"], "config.seeds: only --mode=train"),
        (["--mode=partition", "--config=configs/quickstart.py", "--config.lrs=0.1,1"], "config.lrs: only --mode=train"),
        (["--config=configs/quickstart.py", "--config.seeds=0,0"], "config.seeds: found (0, 0), expected different"),
        (["--mode=sweep", "--config=configs/sweep_all.py", "--seeds=0,one"], "--seeds: found '0,one'"),
        (["--mode=report", "--runs=nowhere"], "nowhere"),
        (["--mode=eval"], "--workdir: missing"),
        (["--mode=eval", "--workdir=tests"], "tests holds no run"),
        (["--config=configs/quickstart.py", "--workdir=/proc/nowhere"], "--workdir: can't write to /proc/nowhere"),
        (
            ["--config=configs/quickstart.py", "--mode=partition", "--config.data.source=digit"],
            "did you mean 'digits'?",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_and_status_2(flags, message):
    done = launch(*flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_config_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    done = launch(f"--config={tmp_path}/broken.py")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/broken.py: ZeroDivisionError: division by zero\n"


def test_every_registry_has_its_section_with_its_options_and_defaults():
    config = base.get_config()
    for functions, section in (
        (algorithms.METHODS, config),
        (models.MODELS, config.model),
        (losses.LOSSES, config.loss),
        (data.SOURCES, config.data),
        (data.PARTITIONS, config.split),
    ):
        for name, function in functions.items():
            assert set(section[name].keys()) == set(registry.options(function)), name
    for name, function in algorithms.METHODS.items():
        defaults = {key: value for key, value in registry.options(function).items() if key != "start"}
        assert {key: config[name][key] for key in defaults} == defaults, name


def test_every_method_has_a_config_with_a_docstring():
    for name in algorithms.METHODS:
        texts = [path.read_text() for path in (ROOT / "configs").glob(f"{name}_*.py")]
        assert texts, name
        for text in texts:
            assert "Command: python launch.py" in text
            assert "Measured" in text


def test_a_config_that_takes_words_lists_them_for_a_sweep():
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        if "variant" not in inspect.signature(getattr(module, "get_config", lambda: None)).parameters:
            continue
        names = [module.get_config(word).name for word in module.VARIANTS]
        assert len(set(names)) == len(names), path.name  # else a report would take two for seeds of one


@pytest.mark.slow
def test_an_npz_run_needs_none_of_the_optional_packages(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 90)
    x = (rng.normal(size=(90, 5)) + y[:, None]).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=y, client=np.repeat(["north", "south", "west"], 30))
    blocked = (
        "transformers",
        "tensorflow_datasets",
        "tensorflow",
        "h5py",
        "matplotlib",
        "torch",
        "sklearn",
        "PIL",
    )
    code = (
        "import sys\n"
        f"for name in {blocked}: sys.modules[name] = None\n"
        "import launch\n"
        "sys.exit(launch.main(['launch.py', *sys.argv[1:]]))\n"
    )
    done = launch(
        "--config=configs/base.py",
        "--config.data.source=npz",
        f"--config.data.npz.path={tmp_path}/mine.npz",
        "--config.rounds=3",
        f"--workdir={tmp_path}/run",
        code=code,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install matplotlib" in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["last"]["test/global/accuracy"] > 0.7
    assert "test/personal/auc/client/north" in summary["last"]


SWEEP = """
from configs import base
VARIANTS = {"a": {"method": "fedavg"}, "b": {"method": "local"}, "c": {"client.lr": 1e30}}
def get_config(word="a"):
    config = base.get_config()
    config.rounds = 7
    config.update_from_flattened_dict({**VARIANTS[word], "name": word})
    return config
"""


def test_several_seeds_as_one_program(tmp_path):
    """A folder for each and a table of all; stopped and gone on with."""
    flags = ["--config=configs/fedbn_digits.py", "--config.seeds=0,3", f"--workdir={tmp_path}", "--config.rounds=2"]
    flags += ["--config.plots=False", "--noconfig.tensorboard", "--config.split.max_examples=120"]
    stopped = launch(*flags, "--stop_at=1")
    assert stopped.returncode == 0, stopped.stderr
    assert f"stopped after round 1 as asked, saved in {tmp_path};" in stopped.stdout
    done = launch(*flags)
    assert done.returncode == 0, done.stderr
    assert "0, 3 (n = 2)" in done.stdout
    for seed in (0, 3):
        summary = json.loads((tmp_path / f"seed{seed}" / "summary.json").read_text())
        assert (summary["seed"], summary["rounds"]) == (seed, 2)
    assert (tmp_path / "report.md").exists()


def test_a_sweep(tmp_path):
    """Words times seeds with the given options; a failed run holds up nothing; what is finished isn't run again."""
    (tmp_path / "few.py").write_text(SWEEP)
    flags = ["--mode=sweep", f"--config={tmp_path}/few.py", "--seeds=0,3", f"--workdir={tmp_path}/runs"]
    flags += ["--config.rounds=2", "--config.plots=False", "--noconfig.tensorboard", "--config.split.max_examples=120"]
    first = launch(*flags)
    assert first.returncode == 2
    failed = [line for line in first.stderr.splitlines() if line.startswith("error: c-seed")]
    assert len(failed) == 2
    assert all("finite" in line for line in failed)
    for name, method in (("a", "fedavg"), ("b", "local")):
        for seed in (0, 3):
            run = tmp_path / "runs" / f"{name}-seed{seed}"
            summary, config = (json.loads((run / file).read_text()) for file in ("summary.json", "config.json"))
            assert (summary["name"], summary["method"], summary["seed"], summary["rounds"]) == (name, method, seed, 2)
            assert not config["tensorboard"]
    rows = [line for line in (tmp_path / "runs" / "report.md").read_text().splitlines() if "0, 3 (n = 2)" in line]
    assert [row.split()[1] for row in rows] == ["b", "b", "a", "a", "a"]  # local stands first in the catalogue

    again = launch(*flags, "--variants=a,b")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 4
    assert "| a " in again.stdout
    changed = launch(*flags, "--variants=a", "--config.client.lr=0.2")
    assert changed.returncode == 2
    assert "holds a run with another config" in changed.stderr
