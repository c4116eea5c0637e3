"""What `launch.py` does in each of its modes, on the terminal. Each returns the exit status."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fedjax_pfl import config as configuration
from fedjax_pfl import data, experiment, hosts, log, metrics, protocol
from fedjax_pfl import train as training
from fedjax_pfl.data.files import cache_folder
from fedjax_pfl.errors import UserError


def train(config: Any, workdir: str, stop_at: int = 0, quiet: bool = False, profile: int = 0) -> int:
    """Train, or go on training, and print the result."""
    _cache_compilations()
    try:
        summary = training.run(config, workdir, stop_at=stop_at, quiet=quiet, profile=profile)
    except training.Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_status
    if not hosts.first():
        return 0
    if profile and Path(workdir, "profile").exists():
        print(f"profile of {profile} rounds in {workdir}/profile: look at it with xprof or https://ui.perfetto.dev")
    if summary is None:
        print(f"stopped after round {stop_at} as asked, saved in {workdir}; without --stop_at the same command goes on")
        return 0
    print(table(summary))
    print(f"\nwritten to {workdir}: summary.json, metrics.jsonl, checkpoints/" + (", plots/" if config.plots else ""))
    return 0


def train_together(
    config: Any, workdir: str, which: str, names: Sequence[str], stop_at: int = 0, quiet: bool = False
) -> int:
    """Train the runs of config.seeds and config.lrs as one program, or go on with them, and print their table."""
    from fedjax_pfl import report as reports

    _cache_compilations()
    root = Path(workdir)
    runs = [(own, root / name) for name, own in configuration.runs(config)]
    try:
        summaries = training.run_together(runs, stop_at=stop_at, quiet=quiet)
    except training.Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_status
    if summaries is None:
        print(f"stopped after round {stop_at} as asked, saved in {root}; without --stop_at the same command goes on")
        return 0
    print(reports.run([folder for _, folder in runs], output=root, metrics=list(names) or None, which=which))
    print(f"\nwritten to {root}: report.md, report.csv, report_runs.csv, curves.png, and a folder for each run")
    return 0


def sweep(runs: Sequence[tuple[Path, Any]], root: Path, which: str, names: Sequence[str], mix: bool) -> int:
    """Train each config in its folder, or go on with it, then print the table of all; a finished run is left as it is.

    A run that fails is named in the end and doesn't hold up the others.
    """
    _cache_compilations()
    failed = []
    for i, (workdir, config) in enumerate(runs, 1):
        began, done = time.perf_counter(), f"[{i}/{len(runs)}] {workdir.name}"
        try:
            if training.finished(workdir, config):
                print(f"{done}: finished before", flush=True)
                continue
            summary = training.run(config, workdir, quiet=True)
        except training.Interrupted as interrupted:
            print(f"{done}: {interrupted}", file=sys.stderr)
            return interrupted.exit_status
        except KeyboardInterrupt:  # while the run's data were read
            print(f"{done}: interrupted before its first round; the same command goes on from there", file=sys.stderr)
            return 130
        except UserError as error:
            failed.append(f"{workdir.name}: {error}")
            print(f"{done}: error: {error}", file=sys.stderr, flush=True)
            continue
        finally:
            jax.clear_caches()  # the next run has other programs; theirs would only take memory
        assert summary is not None
        main = summary["main_metric"].removeprefix("validation/")
        value = _number((summary["best"] or summary["last"]).get(f"test/{main}"))
        print(f"{done}: {time.perf_counter() - began:.0f} s, test {main} {value}", flush=True)
    if len(failed) < len(runs):
        from fedjax_pfl import report as reports

        finished = [workdir for workdir, _ in runs if (workdir / "summary.json").exists()]
        print("\n" + reports.run(finished, output=root, mix=mix, metrics=list(names) or None, which=which))
        print(f"written to {root}: report.md, report.csv, report_runs.csv, curves.png")
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 2 if failed else 0


def evaluate(config: Any, workdir: str | None, which: str, known_labels: Sequence[str] = ()) -> int:
    """Evaluate a checkpoint of a run; the config is the run's own. Known labels: see `protocol.evaluate_run`."""
    if workdir is None:
        raise UserError("--workdir: missing, --mode=eval needs the folder of a run")
    path = Path(workdir) / "config.json"
    try:
        own: Any = ConfigDict(json.loads(path.read_text()))
    except OSError:
        raise UserError(f"--workdir: {workdir} holds no run (no config.json)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if config is not None:
        raise UserError("--config: --mode=eval uses the config in the run's folder; leave --config out")
    _cache_compilations()
    found = protocol.evaluate_run(own, workdir, which, known_labels)
    file = Path(workdir) / ("_".join(["eval", which, *(["known", *known_labels] if known_labels else [])]) + ".json")
    log.write_json(file, found)
    print(table({"name": own.name or own.method, "main_metric": own.eval.metric, which: found}, which))
    if known_labels:
        print(f"\nknown labels: {', '.join(known_labels)}; only the others count")
    print(f"\nwritten to {file}")
    return 0


def partition(config: Any, workdir: str) -> int:
    """Print and draw who holds what; train nothing."""
    federation = experiment.load_federation(config)
    print(data.describe(federation))
    path = Path(workdir) / "plots" / "partition.png"
    training.make_folder(path.parent)
    data.draw(federation, path)
    print(f"\ndrawn in {path}")
    return 0


def embed(config: Any, workdir: str) -> int:
    """Write the label embeddings of the config's classes, for `config.text.embeddings` of runs elsewhere."""
    from fedjax_pfl import text

    path = Path(workdir) / "label_embeddings.npz"
    names = data.load(config.data).class_names
    training.make_folder(path.parent)
    table = text.label_table(config.text, names)
    text.save(path, table, config.text)
    states = "and no states" if table.states is None else "and 2 states"
    print(f"{len(names)} labels of width {table.embeddings.shape[1]} {states} from {table.source}, in {path}", end="")
    print(f"; nearest: {text.nearest_pairs(table)}" if len(names) > 1 else "")
    return 0


def report(runs: Sequence[str], workdir: str | None, names: Sequence[str], which: str, mix: bool) -> int:
    """A table and curves over finished runs."""
    if not runs:
        raise UserError("--runs: missing, --mode=report needs folders of runs, such as --runs=runs/a,runs/b")
    from fedjax_pfl import report as reports

    output = Path(workdir) if workdir else None
    print(reports.run(list(runs), output=output, mix=mix, metrics=list(names) or None, which=which))
    return 0


def benchmark(config: Any, workdir: str | None) -> int:
    """Measure the round."""
    from fedjax_pfl import benchmark as bench

    bench.run(config, workdir)
    return 0


def table(summary: dict[str, Any], which: str | None = None) -> str:
    """The test metrics of each model, mean over clients, worst client, and each client's main metric, as text."""
    which = which or ("best" if summary.get("best") else "last")
    values: dict[str, Any] = summary[which]
    kinds = list(dict.fromkeys(tuple(key.split("/")[:2]) for key in values if "/" in key))
    kinds = [kind for kind in kinds if kind[0] in ("test", "held_out")]
    names = [
        name
        for name in dict.fromkeys(name for task in metrics.NAMES.values() for name in task)
        if any(f"{'/'.join(kind)}/{name}" in values for kind in kinds)
    ]
    main = next((n for n in names if n == summary["main_metric"].split("/")[-1]), None)
    main = main or next(name for name in names if name in metrics.MAIN.values())
    rows = [["", *names, f"worst {main}"]]
    clients: list[list[str]] = []
    for kind in kinds:
        prefix = "/".join(kind)
        rows.append(
            [
                prefix,
                *(_number(values.get(f"{prefix}/{name}")) for name in names),
                _number(values.get(f"{prefix}/{main}/worst")),
            ]
        )
        start = f"{prefix}/{main}/client/"
        clients += [
            [f"{prefix}/{main}", key.removeprefix(start), _number(v)]
            for key, v in values.items()
            if key.startswith(start)
        ]
    lines = [f"{summary['name']}: {which} round, {values['round']}; mean over clients", log.columns(rows)]
    if len(clients) <= 40:
        lines += ["", log.columns(clients)]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _cache_compilations() -> None:
    """JAX's persistent compilation cache in the user's cache folder, so that a second start is quick."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = cache_folder().parent / "jax"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
