"""A run: sample -> round -> evaluate -> log -> checkpoint, in a folder from which it can go on."""

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl import (
    checkpoint,
    cohort,
    core,
    data,
    experiment,
    hosts,
    log,
    metrics,
    multilabel,
    protocol,
    segmentation,
)
from fedjax_pfl import config as configuration
from fedjax_pfl.core import Algorithm, Cohort, State
from fedjax_pfl.errors import UserError
from fedjax_pfl.store import Clients, Store


def run(
    config: Any, workdir: str | Path, *, stop_at: int = 0, quiet: bool = False, profile: int = 0
) -> dict[str, Any] | None:
    """Train, or go on training, in `workdir`, and write all that a run leaves there (of several hosts the first one does).

    Args:
        config: as `configs/base.py` makes it.
        stop_at: save and return after this round (0: run to the end); the same call goes on from there.
        quiet: no progress on the terminal.
        profile: record so many rounds by `jax.profiler`, from the second of this start on, into `workdir`/profile.

    Returns:
        The summary, as in `summary.json`, or None where it stopped before the end.

    Raises:
        UserError: bad input; a changed config; an update that is not finite.
        Interrupted: SIGINT or SIGTERM came; the last round was finished and saved.
    """
    workdir, config_json = Path(workdir), configuration.to_json(config)
    _check_same_config(workdir, config_json)
    setup = experiment.prepare(config)
    main = f"{config.eval.model}/{config.eval.metric or metrics.main(setup.federation.task)}"
    _check_main(main, setup)
    hosts.check_alike("configs", json.dumps(config_json, sort_keys=True))
    hosts.check_alike("data", data.fingerprint(setup.federation))
    quiet = quiet or not hosts.first()
    if hosts.first():
        _claim(workdir, config_json)
    if not quiet and (notes := getattr(setup.problem.model, "notes", "")):
        print(notes, flush=True)
    with _own(workdir) as folder, Interrupt() as interrupt, log.Log(folder, tensorboard=config.tensorboard) as records:
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        try:
            state = setup.init(workdir)
            found = checkpoints.restore_latest(state, print)
            progress = checkpoint.Progress(0)
            if found is not None:
                state, progress = found
                if not quiet:
                    print(f"going on from round {progress.round} in {workdir}", flush=True)
            records.truncate(progress.round)
            end = min(stop_at or config.rounds, config.rounds)
            with Profile(workdir / "profile", min(progress.round + 2, end), profile) as recording:
                state, progress, compile_seconds = _rounds(
                    config, setup, state, progress, end, main, records, checkpoints, interrupt, recording, quiet
                )
            checkpoints.wait()
            if progress.round < config.rounds:
                if (signal := hosts.any_of(interrupt.signal)) is not None:
                    raise Interrupted(signal, progress.round, workdir)
                return None
            summary = protocol.summarise(config, setup, state, progress, checkpoints, main)
            summary["compile_seconds"] = compile_seconds
            if setup.federation.task == "multi":
                _write_classes(config, setup, hosts.here(state), folder)
            if setup.federation.task == "mask" and config.plots:
                _draw_masks(setup, hosts.here(state), folder)
        finally:
            checkpoints.close()
        log.write_json(folder / "summary.json", summary)
        if config.plots and hosts.first():
            from fedjax_pfl import plots

            plots.training(records.records(), workdir / "plots" / "training.png", f"validation/{main}")
            plots.described(records.records(), workdir / "plots")
            name = config.name or config.method
            plots.retrogress(
                {name: records.records()}, workdir / "plots" / "retrogress.png", config.score.metric or main
            )
    return summary


def finished(workdir: Path, config: Any) -> bool:
    """Whether this config's run in `workdir` is done. Raises UserError where another config's run is there."""
    _check_same_config(workdir, configuration.to_json(config))
    try:
        return json.loads((workdir / "summary.json").read_text())["rounds"] >= config.rounds
    except (OSError, json.JSONDecodeError, KeyError):
        return False


def _rounds(
    config: Any,
    setup: experiment.Setup,
    state: State,
    progress: checkpoint.Progress,
    end: int,
    main: str,
    records: log.Log,
    checkpoints: checkpoint.Checkpoints,
    interrupt: "Interrupt",
    recording: "Profile",
    quiet: bool,
) -> tuple[State, checkpoint.Progress, float]:
    """Rounds progress.round + 1 ... end; returns the last state, the progress and the seconds of compilation."""
    if progress.round >= end:
        return state, progress, 0.0
    how, each = setup.training.how, config.rounds_per_call
    stored = state.clients if isinstance(state.clients, Store) else None
    _check_call(each, stored is not None, progress.round, end)
    clients = Clients(stored)
    state = core.everywhere(state if stored is None else state._replace(clients=()), how)

    def next_cohort(round: int) -> Cohort:
        """Of the rounds of the next call."""
        draws = [setup.sampler(round + i) for i in range(each)]
        among = np.concatenate([ids for ids, _ in draws])
        cohorts = [
            cohort.assemble(setup.rows, *draw, how, setup.validation, stored=stored is not None, among=among)
            for draw in draws
        ]
        return cohorts[0] if each == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *cohorts)

    some = next_cohort(progress.round)
    clients.read(some)
    stopping = hosts.any_of(interrupt.signal)
    compiled = _Compiled(setup.algorithm, how, several=each > 1)
    saved = progress.round
    with log.Progress(config.rounds, progress.round, quiet, metric=main) as bar:
        for round in range(progress.round + each, end + 1, each):  # the last one of each call
            if stopping is not None:
                break
            state = clients.of_cohort(state)
            rounds = compiled.rounds(state, some, setup.key)
            began = time.perf_counter()
            with recording.of(round - each + 1):
                state, reports = rounds(state, some, setup.key)
            if round < end:
                some = next_cohort(round)  # the host reads and gathers the next cohort while the device works
                clients.read(some)
            state = clients.put_back(state)
            reports = jax.device_get(reports)
            seconds, loss = (time.perf_counter() - began) / each, 0.0
            for i in range(each):
                report = reports if each == 1 else jax.tree.map(lambda leaf, i=i: leaf[i], reports)
                _check_finite(report, round - each + 1 + i, setup, config, saved)
                examples = int(report.train.examples.sum())
                loss = float(report.train.loss.sum() / max(1, examples))
                progress = progress._replace(
                    round=round - each + 1 + i,
                    seconds=progress.seconds + seconds,
                    examples=progress.examples + examples,
                    steps=progress.steps + int(report.train.steps.sum()),
                    executed=progress.executed + cohort.executed(report.train.steps, how),
                )
            improved, value = False, None
            if round % config.eval.every == 0 or round == config.rounds:
                always = ("tuned",) if config.eval.tuned == "always" else ()
                record = protocol.evaluation(
                    setup, state, ("validation", "test"), ("personal", "global", "shared", *always)
                )
                record |= protocol.curve(report, setup.federation.client_names)
                record |= protocol.described(setup, state)
                value = record.get(f"validation/{main}")
                record = {"round": round, "train/loss": loss, "seconds": progress.seconds, **record}
                records.append(record)
                if not quiet and (line := multilabel.line(record, round, config.rounds)):
                    bar.say(line)
                if round >= config.eval.best_from * config.rounds and _better(value, progress.best_value, main):
                    progress, improved = progress._replace(best_round=round, best_value=value), True
            stopping = hosts.any_of(interrupt.signal)
            if improved or round % config.checkpoint.every == 0 or round == end or stopping is not None:
                checkpoints.save(state, progress)
                saved = round
            bar.update(round, loss, value, seconds)
    return state, progress, compiled.seconds


class Profile:
    """Records `rounds` rounds from `first` on; while entered, for as long as the run goes."""

    def __init__(self, folder: Path, first: int, rounds: int) -> None:
        self._folder, self._rounds, self._open = folder, range(first, first + rounds), contextlib.ExitStack()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, round: int) -> contextlib.AbstractContextManager[Any]:
        """Before a round; it, and what the host does until the next one, is recorded where it is one of those."""
        if round not in self._rounds:
            self._open.close()
            return contextlib.nullcontext()
        if round == self._rounds.start:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # what Python does would be most of the file
            self._open.enter_context(jax.profiler.trace(self._folder, profiler_options=options))
        return jax.profiler.StepTraceAnnotation("round", step_num=round)


class _Compiled:
    """The rounds of a call, compiled once for each number of rows that cohorts are padded to: once with resident data."""

    def __init__(self, algorithm: Algorithm, how: core.How, several: bool) -> None:
        self._jitted, self._by_shape = core.jit_round(algorithm, how, several=several), {}
        self.seconds = 0.0  # of all compilations

    def rounds(self, state: State, some: Cohort, key: jax.Array) -> Callable[..., Any]:
        shape = some.data.x.shape
        if shape not in self._by_shape:
            began = time.perf_counter()
            self._by_shape[shape] = self._jitted.lower(state, some, key).compile()
            self.seconds += time.perf_counter() - began
        return self._by_shape[shape]


def _check_call(each: int, stored: bool, done: int, end: int) -> None:
    """Raises UserError where so many rounds can't be one call."""
    if each > 1 and (stored or hosts.several()):
        raise UserError(
            f"config.rounds_per_call: found {each}, expected 1 with "
            + ("clients' states off the device" if stored else "several hosts")
        )
    if (end - done) % each:
        raise UserError(f"--stop_at: found {end}, expected a multiple of config.rounds_per_call, {each}")


def _write_classes(config: Any, setup: experiment.Setup, state: State, workdir: Path) -> None:
    """The classes of a multi-label run, after its last round."""
    multilabel.write(
        setup.problem,
        setup.evaluator,
        setup.candidates["global" if protocol.one_model(setup, state) else "personal"],
        state,
        np.arange(setup.trainers),
        setup.federation.class_names,
        workdir,
        draw=config.plots,
    )


def _draw_masks(setup: experiment.Setup, state: State, workdir: Path) -> None:
    """Some outlines of a segmentation run, after its last round."""
    segmentation.draw(
        setup.evaluator,
        setup.candidates["global" if protocol.one_model(setup, state) else "personal"],
        state,
        np.arange(setup.trainers),
        setup.federation,
        workdir / "plots" / "segmentation.png",
    )


class Interrupted(Exception):  # noqa: N818, it is no error
    """A signal stopped the run after a whole round, which is saved."""

    def __init__(self, number: int, round: int, workdir: Path) -> None:
        super().__init__(f"stopped after round {round}, saved in {workdir}; the same command goes on from there")
        self.exit_status = 128 + number


class Interrupt:
    """While entered: the first SIGINT or SIGTERM is noted in `signal`; the second ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "Interrupt":
        try:
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever runs us there handles signals
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        os.write(2, b"\nstopping after this round (once more: at once)\n")


def _check_same_config(workdir: Path, new: dict[str, Any]) -> None:
    """Raises UserError where the folder has checkpoints of a run with another config."""
    path = workdir / "config.json"
    if not path.exists() or not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    try:
        changed = configuration.difference(json.loads(path.read_text()), new)
    except (json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"{path}: not a config ({error})") from None
    if changed:
        raise UserError(
            f"--workdir: {workdir} holds a run with another config ({'; '.join(changed[:5])}); "
            "give another --workdir, or the old config to go on"
        )


@contextlib.contextmanager
def _own(workdir: Path) -> Iterator[Path]:
    """Where this host writes: the first one in the run's folder, any other where nobody looks."""
    if hosts.first():
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _claim(workdir: Path, config: dict[str, Any]) -> None:
    """Make the folder this run's own."""
    make_folder(workdir)
    log.write_json(workdir / "config.json", config)


def make_folder(folder: Path) -> None:
    """Raises UserError where the folder can't be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--workdir: can't write to {folder} ({error.strerror})") from None


def _check_main(main: str, setup: experiment.Setup) -> None:
    model, metric = main.split("/")
    names = metrics.names(setup.federation.task)
    if metric not in names:
        raise UserError(f"config.eval.metric: found '{metric}', expected one of {', '.join(names)}")
    if model not in setup.candidates:
        raise UserError("config.eval.model: found 'global', but this method has no global model")


def _check_finite(report: Any, round: int, setup: experiment.Setup, config: Any, saved: int) -> None:
    """A NaN update must speak."""
    if report.finite.all() and report.server_finite:
        return
    names = setup.federation.client_names
    bad = [names[i] for i, finite in zip(report.ids, report.finite, strict=True) if not finite and i < len(names)]
    who = f"the update of client {', '.join(bad[:5])}" if bad else "the server's model"
    kept = f"round {saved} is saved" if saved else "nothing was saved"
    raise UserError(
        f"round {round}: {who} is not finite (NaN or infinity); lower config.client.lr (found {config.client.lr}) "
        f"or set config.client.clip; {kept}"
    )


def _better(value: float | None, best: float | None, main: str) -> bool:
    if value is None:
        return False
    if best is None:
        return True
    return value < best if metrics.lower_is_better(main) else value > best
