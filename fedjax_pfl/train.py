"""A run: sample -> round -> evaluate -> log -> checkpoint, in a folder from which it can go on."""

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
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
    rounds,
    segmentation,
)
from fedjax_pfl import config as configuration
from fedjax_pfl.core import Report, State
from fedjax_pfl.errors import UserError


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
    found = run_together([(config, workdir)], stop_at=stop_at, quiet=quiet, profile=profile)
    return None if found is None else found[0]


def run_together(
    configs: Sequence[tuple[Any, str | Path]], *, stop_at: int = 0, quiet: bool = False, profile: int = 0
) -> list[dict[str, Any]] | None:
    """`run` of several configs, each in its folder, as one program (see `together`); each leaves what it leaves by itself.

    Returns:
        The summaries, or None where they stopped before the end.
    """
    runs = [_Run(config, Path(workdir)) for config, workdir in configs]
    first, quiet = runs[0], quiet or not hosts.first()
    if len(runs) > 1:
        for each in runs:
            each.label = f"{each.workdir.name}: "
    lanes = {core.number_of_lanes(each.setup.training.how) for each in runs}
    if len(lanes) > 1:  # one program has one number of them
        for each in runs:
            each.prepare(lanes=max(number or 0 for number in lanes))
    for each in runs:
        each.setup.evaluator.pad_as([other.setup.evaluator for other in runs])
    if hosts.first():
        for each in runs:
            _claim(each.workdir, configuration.to_json(each.config))
    if not quiet and (notes := getattr(first.setup.problem.model, "notes", "")):
        print(notes, flush=True)
    with contextlib.ExitStack() as stack, Interrupt() as interrupt:
        for each in runs:
            each.open(stack)
        states = _last_states(runs, quiet)
        done, end = first.progress.round, min(stop_at or first.config.rounds, first.config.rounds)
        with Profile(first.workdir / "profile", min(done + 2, end), profile) as recording:
            states, measured = _play(runs, states, end, interrupt, recording, quiet)
        for each in runs:
            each.checkpoints.wait()
        if first.progress.round < first.config.rounds:
            if (signal := hosts.any_of(interrupt.signal)) is not None:
                raise Interrupted(
                    signal, first.progress.round, first.workdir if len(runs) == 1 else first.workdir.parent
                )
            return None
        summaries = [each.summarise(state) | measured for each, state in zip(runs, states, strict=True)]
    for each, summary in zip(runs, summaries, strict=True):
        each.write(summary)
    return summaries


class _Run:
    """One run: what was built of its config, its folder, how far it is.

    Raises:
        UserError: bad input; the folder holds another run.
    """

    def __init__(self, config: Any, workdir: Path) -> None:
        self.config, self.workdir = config, workdir
        config_json = configuration.to_json(config)
        _check_same_config(workdir, config_json)
        self.prepare()
        self.main = f"{config.eval.model}/{config.eval.metric or metrics.main(self.setup.federation.task)}"
        _check_main(self.main, self.setup)
        hosts.check_alike("configs", json.dumps(config_json, sort_keys=True))
        hosts.check_alike("data", data.fingerprint(self.setup.federation))
        self.progress, self.saved = checkpoint.Progress(0), 0
        self.label = ""  # what errors call it, where it is one of several

    def prepare(self, lanes: int = 0) -> None:
        """Build what the config describes, with so many lanes (0: as many as it says)."""
        config = self.config
        if lanes:
            config = config.copy_and_resolve_references().unlock()
            config.client.lanes = lanes
        self.setup = experiment.prepare(config)

    def open(self, stack: contextlib.ExitStack) -> None:
        """Open the log and the checkpoints, until the stack is left."""
        self.folder = stack.enter_context(_own(self.workdir))
        self.records = stack.enter_context(log.Log(self.folder, tensorboard=self.config.tensorboard))
        self.checkpoints = checkpoint.Checkpoints(self.workdir / "checkpoints", self.config.checkpoint.keep)
        stack.callback(self.checkpoints.close)

    def count(self, reports: Sequence[Report], seconds: float) -> float:
        """Count these rounds' work; the last one's mean loss."""
        loss = 0.0
        for report in reports:
            round, examples = self.progress.round + 1, int(report.train.examples.sum())
            _check_finite(report, f"{self.label}round {round}", self.setup, self.config, self.saved)
            loss = float(report.train.loss.sum() / max(1, examples))
            self.progress = self.progress._replace(
                round=round,
                seconds=self.progress.seconds + seconds,
                examples=self.progress.examples + examples,
                steps=self.progress.steps + int(report.train.steps.sum()),
                executed=self.progress.executed
                + cohort.executed(np.asarray(report.train.steps), self.setup.training.how),
            )
        return loss

    def evaluate(self, state: State, report: Report, loss: float) -> tuple[float | None, bool, str]:
        """Score the models and log it: the main metric, whether it is the best so far, and a line to show."""
        config, setup, round = self.config, self.setup, self.progress.round
        always = ("tuned",) if config.eval.tuned == "always" else ()
        record = protocol.evaluation(setup, state, ("validation", "test"), ("personal", "global", "shared", *always))
        record |= protocol.curve(report, setup.federation.client_names)
        record |= protocol.described(setup, state)
        value = record.get(f"validation/{self.main}")
        record = {"round": round, "train/loss": loss, "seconds": self.progress.seconds, **record}
        self.records.append(record)
        improved = round >= config.eval.best_from * config.rounds and _better(
            value, self.progress.best_value, self.main
        )
        if improved:
            self.progress = self.progress._replace(best_round=round, best_value=value)
        return value, improved, multilabel.line(record, round, config.rounds)

    def save(self, state: State) -> None:
        """Save the state and how far the run is."""
        self.checkpoints.save(state, self.progress)
        self.saved = self.progress.round

    def summarise(self, state: State) -> dict[str, Any]:
        """The summary, and what is written of the last models."""
        config, setup = self.config, self.setup
        summary = protocol.summarise(config, setup, state, self.progress, self.checkpoints, self.main)
        if setup.federation.task == "multi":
            _write_classes(config, setup, state, self.folder)
        if setup.federation.task == "mask" and config.plots:
            _draw_masks(setup, state, self.folder)
        return summary

    def write(self, summary: dict[str, Any]) -> None:
        """Write the summary, and draw the run."""
        config, folder = self.config, self.workdir / "plots"
        if not hosts.first():
            return
        log.write_json(self.workdir / "summary.json", summary)
        if config.plots:
            from fedjax_pfl import plots

            records = self.records.records()
            plots.training(records, folder / "training.png", f"validation/{self.main}")
            plots.described(records, folder)
            plots.retrogress(
                {config.name or config.method: records}, folder / "retrogress.png", config.score.metric or self.main
            )


def _last_states(runs: Sequence[_Run], quiet: bool) -> list[State]:
    """The states that runs were saved with last, all of them after the same round; where nothing was, the initial ones."""
    states = [each.setup.init(each.workdir) for each in runs]
    if len(runs) == 1:
        found = [runs[0].checkpoints.restore_latest(states[0], print)]
    else:
        saved = [set(each.checkpoints.rounds()) for each in runs]
        last = max(set.intersection(*saved), default=0)
        if any(saved) and not last:
            raise UserError(
                f"--workdir: the runs in {runs[0].workdir.parent} have no checkpoint of the same round, expected one from "
                "which all of them can go on; give another --workdir"
            )
        found = [
            each.checkpoints.restore(last, state) if last else None for each, state in zip(runs, states, strict=True)
        ]
    for i, (each, one) in enumerate(zip(runs, found, strict=True)):
        if one is not None:
            states[i], each.progress = one
            each.saved = each.progress.round
            if not quiet:
                print(f"going on from round {each.progress.round} in {each.workdir}", flush=True)
        each.records.truncate(each.progress.round)
    return states


def _play(
    runs: Sequence[_Run],
    states: list[State],
    end: int,
    interrupt: "Interrupt",
    recording: "Profile",
    quiet: bool,
) -> tuple[list[State], dict[str, float | None]]:
    """The rounds up to `end`; returns the last states and what was measured, for the summary."""
    first, config = runs[0], runs[0].config
    done = first.progress.round
    if done >= end:
        return states, {"compile_seconds": 0.0, "idle": None}
    if len(runs) == 1:
        played = rounds.Alone(config, first.setup, states[0], done, end)
    else:
        played = rounds.Together(
            [(each.config, each.setup, state) for each, state in zip(runs, states, strict=True)], done
        )
    stopping = hosts.any_of(interrupt.signal)
    with log.Progress(config.rounds, done, quiet, metric=first.main) as bar, rounds.Work() as work:
        for round in range(done + played.each, end + 1, played.each):  # the last one of each call
            if stopping is not None:
                break
            if played.compile():
                work.pause()
            began = time.perf_counter()
            with recording.of(round - played.each + 1):
                work.start(played.start)
            if round < end:
                played.gather(round)  # the host reads and gathers the next cohort while the device works
            work.finish()
            reports = played.finish()
            seconds = (time.perf_counter() - began) / played.each
            losses = [each.count(own, seconds / len(runs)) for each, own in zip(runs, reports, strict=True)]
            values: list[float | None] = [None]
            improved = False
            if round % config.eval.every == 0 or round == config.rounds:
                work.pause()
                found = [each.evaluate(played.state(i), reports[i][-1], losses[i]) for i, each in enumerate(runs)]
                values, improved = [value for value, *_ in found], any(better for _, better, _ in found)
                for *_, line in found:
                    if line and not quiet:
                        bar.say(line)
            stopping = hosts.any_of(interrupt.signal)
            # All of them or none, so that they can go on together.
            if improved or round % config.checkpoint.every == 0 or round == end or stopping is not None:
                work.pause()
                for i, each in enumerate(runs):
                    each.save(played.state(i))
            known = [value for value in values if value is not None]
            bar.update(round, float(np.mean(losses)), float(np.mean(known)) if known else None, seconds)
    measured = {"compile_seconds": played.compile_seconds, "idle": work.idle}
    return [played.state(i) for i in range(len(runs))], measured


def finished(workdir: Path, config: Any) -> bool:
    """Whether this config's run in `workdir` is done. Raises UserError where another config's run is there."""
    _check_same_config(workdir, configuration.to_json(config))
    try:
        return json.loads((workdir / "summary.json").read_text())["rounds"] >= config.rounds
    except (OSError, json.JSONDecodeError, KeyError):
        return False


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


def _check_finite(report: Any, when: str, setup: experiment.Setup, config: Any, saved: int) -> None:
    """A NaN update must speak."""
    if report.finite.all() and report.server_finite:
        return
    names = setup.federation.client_names
    bad = [names[i] for i, finite in zip(report.ids, report.finite, strict=True) if not finite and i < len(names)]
    who = f"the update of client {', '.join(bad[:5])}" if bad else "the server's model"
    kept = f"round {saved} is saved" if saved else "nothing was saved"
    raise UserError(
        f"{when}: {who} is not finite (NaN or infinity); lower config.client.lr (found {config.client.lr}) "
        f"or set config.client.clip; {kept}"
    )


def _better(value: float | None, best: float | None, main: str) -> bool:
    if value is None:
        return False
    if best is None:
        return True
    return value < best if metrics.lower_is_better(main) else value > best
