"""A run: sample -> round -> evaluate -> log -> checkpoint, in a folder from which it can go on."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl import checkpoint, cohort, core, data, evaluate, log, metrics, multilabel, segmentation, tree
from fedjax_pfl import config as configuration
from fedjax_pfl.core import Algorithm, Cohort, State
from fedjax_pfl.data import Federation
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.local import Training
from fedjax_pfl.problem import Problem


class Setup(NamedTuple):
    """Everything that a config describes, ready to run. Clients 0..trainers-1 train; the others are held out."""

    federation: Federation
    trainers: int
    problem: Problem
    training: Training
    algorithm: Algorithm
    sampler: cohort.Sampler
    rows: cohort.Rows  # the training rows of the trainers
    validation: cohort.Rows | None  # their validation rows, where rounds read them
    evaluator: evaluate.Evaluator
    candidates: dict[str, evaluate.Candidate]
    key: jax.Array  # of the rounds
    init: Callable[[], State]


def load_federation(config: Any) -> Federation:
    """The data that a config names, split among its clients."""
    return data.federate(data.load(config.data), config.split, config.seed)


def prepare(config: Any) -> Setup:
    """Read the data and build the method.

    Raises:
        UserError: whatever in the config or its files can't be.
    """
    configuration.validate(config)
    federation, trainers = _hold_out(load_federation(config), config)
    problem = configuration.build_problem(config, federation, trainers)
    training = configuration.build_training(config, problem, federation, trainers)
    algorithm = configuration.build_algorithm(config, training)
    resident = {"auto": "auto", "always": True, "never": False}[config.cohort.resident]
    pool = cohort.Pool(federation.x, federation.y, resident)
    rows = cohort.Rows(pool, federation.train[:trainers], federation.noise)
    longest = max(len(index) for index in (*federation.validation, *federation.test))
    splits = {
        "train": cohort.Rows(pool, federation.train, federation.noise),
        "validation": cohort.Rows(pool, federation.validation, federation.noise, longest),
        "test": cohort.Rows(pool, federation.test, federation.noise, longest),
    }
    if algorithm.validates and (without := np.flatnonzero(splits["validation"].counts[:trainers] == 0)).size:
        raise UserError(
            f"config.split: client {federation.client_names[without[0]]} has no validation examples, but models are scored "
            "on them in each round"
        )
    options = {name: value for name, value in config.cohort.items() if name != "resident"}
    key_init, key_rounds, key_eval = jax.random.split(jax.random.key(config.seed), 3)
    return Setup(
        federation,
        trainers,
        problem,
        training,
        algorithm,
        cohort.Sampler(rows.counts, seed=config.seed, **options),
        rows,
        splits["validation"] if algorithm.validates else None,
        evaluate.Evaluator(
            problem,
            federation.task,
            federation.client_names,
            splits,
            batch_size=config.eval.batch_size,
            how=config.client.map,
            key=key_eval,
        ),
        evaluate.candidates(algorithm, training, key_eval, config.eval.tune_epochs),
        key_rounds,
        lambda: algorithm.init(problem.init(key_init), trainers),
    )


def run(config: Any, workdir: str | Path, *, stop_at: int = 0, quiet: bool = False) -> dict[str, Any] | None:
    """Train, or go on training, in `workdir`, and write all that a run leaves there.

    Args:
        config: as `configs/base.py` makes it.
        stop_at: save and return after this round (0: run to the end); the same call goes on from there.
        quiet: no progress on the terminal.

    Returns:
        The summary, as in `summary.json`, or None where it stopped before the end.

    Raises:
        UserError: bad input; a changed config; an update that is not finite.
        Interrupted: SIGINT or SIGTERM came; the last round was finished and saved.
    """
    workdir, config_json = Path(workdir), configuration.to_json(config)
    _check_same_config(workdir, config_json)
    setup = prepare(config)
    main = f"{config.eval.model}/{config.eval.metric or metrics.main(setup.federation.task)}"
    _check_main(main, setup)
    _claim(workdir, config_json)
    if not quiet and (notes := getattr(setup.problem.model, "notes", "")):
        print(notes, flush=True)
    with Interrupt() as interrupt, log.Log(workdir, tensorboard=config.tensorboard) as records:
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        try:
            state = setup.init()
            found = checkpoints.restore_latest(state, print)
            progress = checkpoint.Progress(0)
            if found is not None:
                state, progress = found
                if not quiet:
                    print(f"going on from round {progress.round} in {workdir}", flush=True)
            records.truncate(progress.round)
            end = min(stop_at or config.rounds, config.rounds)
            state, progress, compile_seconds = _rounds(
                config, setup, state, progress, end, main, records, checkpoints, interrupt, quiet
            )
            checkpoints.wait()
            if interrupt.signal is not None and progress.round < config.rounds:
                raise Interrupted(interrupt.signal, progress.round, workdir)
            if progress.round < config.rounds:
                return None
            summary = summarise(config, setup, state, progress, checkpoints, main)
            summary["compile_seconds"] = compile_seconds
            if setup.federation.task == "multi":
                _write_classes(config, setup, state, workdir)
            if setup.federation.task == "mask" and config.plots:
                _draw_masks(setup, state, workdir)
        finally:
            checkpoints.close()
        log.write_json(workdir / "summary.json", summary)
        if config.plots:
            from fedjax_pfl import plots

            plots.training(records.records(), workdir / "plots" / "training.png", f"validation/{main}")
            plots.described(records.records(), workdir / "plots")
            name = config.name or config.method
            plots.retrogress(
                {name: records.records()}, workdir / "plots" / "retrogress.png", config.score.metric or main
            )
    return summary


def _rounds(
    config: Any,
    setup: Setup,
    state: State,
    progress: checkpoint.Progress,
    end: int,
    main: str,
    records: log.Log,
    checkpoints: checkpoint.Checkpoints,
    interrupt: "Interrupt",
    quiet: bool,
) -> tuple[State, checkpoint.Progress, float]:
    """Rounds progress.round + 1 ... end; returns the last state, the progress and the seconds of compilation."""
    if progress.round >= end:
        return state, progress, 0.0
    multiple = cohort.chunk(config.client.map)

    def next_cohort(round: int) -> Cohort:
        return cohort.assemble(setup.rows, *setup.sampler(round), multiple=multiple, validation=setup.validation)

    some = next_cohort(progress.round)
    compiled = _Compiled(setup.algorithm)
    saved = progress.round
    with log.Progress(config.rounds, progress.round, quiet, metric=main) as bar:
        for round in range(progress.round + 1, end + 1):
            if interrupt.signal is not None:
                break
            one_round = compiled.round(state, some, setup.key)
            began = time.perf_counter()
            state, report = one_round(state, some, setup.key)
            if round < end:
                some = next_cohort(round)  # the host reads and gathers the next cohort while the device works
            report = jax.device_get(report)
            seconds = time.perf_counter() - began
            _check_finite(report, round, setup, config, saved)
            examples = int(report.train.examples.sum())
            loss = float(report.train.loss.sum() / max(1, examples))
            progress = progress._replace(
                round=round, seconds=progress.seconds + seconds, examples=progress.examples + examples
            )
            improved, value = False, None
            if round % config.eval.every == 0 or round == config.rounds:
                always = ("tuned",) if config.eval.tuned == "always" else ()
                record = evaluation(setup, state, ("validation", "test"), ("personal", "global", "shared", *always))
                record |= _curve(report, setup.federation.client_names)
                record |= _described(setup, state)
                value = record.get(f"validation/{main}")
                record = {"round": round, "train/loss": loss, "seconds": progress.seconds, **record}
                records.append(record)
                if not quiet and (line := multilabel.line(record, round, config.rounds)):
                    bar.say(line)
                if round >= config.eval.best_from * config.rounds and _better(value, progress.best_value, main):
                    progress, improved = progress._replace(best_round=round, best_value=value), True
            if improved or round % config.checkpoint.every == 0 or round == end or interrupt.signal is not None:
                checkpoints.save(state, progress)
                saved = round
            bar.update(round, loss, value, seconds)
    return state, progress, compiled.seconds


class _Compiled:
    """The round, compiled once for each number of rows that cohorts are padded to: once where the data are resident."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._jitted, self._by_rows = core.jit_round(algorithm), {}
        self.seconds = 0.0  # of all compilations

    def round(self, state: State, some: Cohort, key: jax.Array) -> Callable[..., Any]:
        n_max = some.data.x.shape[1]
        if n_max not in self._by_rows:
            began = time.perf_counter()
            self._by_rows[n_max] = self._jitted.lower(state, some, key).compile()
            self.seconds += time.perf_counter() - began
        return self._by_rows[n_max]


def _one_model(setup: Setup, state: State) -> bool:
    """Whether clients keep nothing and there is one model for all: then personal and global model are that one."""
    return "global" in setup.candidates and not jax.tree.leaves(state.clients)


def _write_classes(config: Any, setup: Setup, state: State, workdir: Path) -> None:
    """The classes of a multi-label run, after its last round."""
    multilabel.write(
        setup.problem,
        setup.evaluator,
        setup.candidates["global" if _one_model(setup, state) else "personal"],
        state,
        np.arange(setup.trainers),
        setup.federation.class_names,
        workdir,
        draw=config.plots,
    )


def _draw_masks(setup: Setup, state: State, workdir: Path) -> None:
    """Some outlines of a segmentation run, after its last round."""
    segmentation.draw(
        setup.evaluator,
        setup.candidates["global" if _one_model(setup, state) else "personal"],
        state,
        np.arange(setup.trainers),
        setup.federation,
        workdir / "plots" / "segmentation.png",
    )


def evaluation(
    setup: Setup,
    state: State,
    splits: tuple[str, ...],
    models: tuple[str, ...],
    *,
    held_out: bool = False,
    known: evaluate.Known | None = None,
) -> dict[str, float | None]:
    """Flat keys `<split>/<model>/<metric>...` of the clients that train.

    Args:
        held_out: besides, `held_out/<model>/...`: the test split of the clients that never trained, each as a newcomer.
        known: labels that a label-mask model is told.
    """
    trainers, everybody = np.arange(setup.trainers), np.arange(len(setup.federation.client_names))
    one = _one_model(setup, state)
    found: dict[str, float | None] = {}
    for model in models:
        if model not in setup.candidates:
            continue
        for split in splits:
            same = f"{split}/personal/"
            if model == "global" and one and "personal" in models:
                found |= {f"{split}/global/{k.removeprefix(same)}": v for k, v in found.items() if k.startswith(same)}
                continue
            candidate = setup.candidates["global" if model == "personal" and one else model]
            values = setup.evaluator(candidate, state, split, trainers, known=known)
            found |= {f"{split}/{model}/{key}": value for key, value in values.items()}
        if held_out and len(everybody) > setup.trainers:
            newcomer = jax.tree.map(lambda leaf: leaf[0], setup.init().clients)
            values = setup.evaluator(
                setup.candidates[model], state, "test", everybody[setup.trainers :], newcomer, known
            )
            found |= {f"held_out/{model}/{key}": value for key, value in values.items()}
    return found


def summarise(
    config: Any,
    setup: Setup,
    state: State,
    progress: checkpoint.Progress,
    checkpoints: checkpoint.Checkpoints,
    main: str,
) -> dict[str, Any]:
    """The whole evaluation protocol at the last and at the best round, and what the run cost."""
    models = _models(config)

    def protocol(state: State, round: int) -> dict[str, Any]:
        return {"round": round, **evaluation(setup, state, ("validation", "test"), models, held_out=True)}

    last, best = protocol(state, progress.round), None
    if progress.best_round == progress.round:
        best = last
    elif progress.best_round:
        best = protocol(checkpoints.restore(progress.best_round, state)[0], progress.best_round)
    return {
        "name": config.name or config.method,
        "method": config.method,
        "model": config.model.name,
        **({"labels": notes} if (notes := getattr(setup.problem.model, "notes", "")) else {}),
        "seed": config.seed,
        **({"target": config.kd3a.target} if config.kd3a.target else {}),
        "rounds": progress.round,
        "data": setup.federation.name,
        "fingerprint": data.fingerprint(setup.federation),
        "clients": len(setup.federation.client_names),
        "main_metric": f"validation/{main}",
        "seconds": progress.seconds,
        "examples_per_second": progress.examples / progress.seconds,
        "device": log.device(),
        "versions": log.versions(),
        "last": last,
        "best": best,
        **({"cross": cross(setup, state)} if config.eval.cross else {}),
    }


def cross(setup: Setup, state: State) -> dict[str, dict[str, dict[str, float | None]]]:
    """Every client's model on every client's test split: {metric: {whose model: {whose data: value}}}.

    A row without its diagonal says how a model trained at one client does elsewhere (source-only transfer).
    """
    names, everybody = setup.federation.client_names[: setup.trainers], np.arange(setup.trainers)
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for i, name in enumerate(names):

        def of_one(state: State, client: Any, data: core.ClientData, i: int = i) -> core.Variables:
            id = jnp.int32(i)
            return setup.algorithm.client_model(state.server, tree.take(state.clients, id), id)

        values = setup.evaluator(evaluate.Candidate(of_one), state, "test", everybody)
        for key, value in values.items():
            metric, _, client = key.partition("/client/")
            if client:
                found.setdefault(metric, {}).setdefault(name, {})[client] = value
    return found


def evaluate_run(
    config: Any, workdir: str | Path, which: str = "last", known_labels: Sequence[str] = ()
) -> dict[str, Any]:
    """The evaluation protocol on a checkpoint of a run: its 'last' or its 'best'.

    Args:
        known_labels: what a label-mask model is told of each example: one number (so many labels), or names of labels.

    Raises:
        UserError: the run has no such checkpoint, or labels that can't be told.
    """
    workdir = Path(workdir)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"--workdir: no checkpoints in {workdir}")
    setup = prepare(config)
    known = _known(known_labels, setup, config.seed) if known_labels else None
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    try:
        found = checkpoints.restore_latest(setup.init(), print)
        if found is None:
            raise UserError(f"--workdir: no checkpoints in {workdir}")
        state, progress = found
        if which == "best":
            if not progress.best_round:
                raise UserError(f"--which: {workdir} has no best round (no validation data, or none evaluated yet)")
            state, progress = checkpoints.restore(progress.best_round, state)
    finally:
        checkpoints.close()
    models = _models(config)
    splits = ("validation", "test")
    return {"round": progress.round, **evaluation(setup, state, splits, models, held_out=True, known=known)}


def _models(config: Any) -> tuple[str, ...]:
    """The models that the evaluation protocol looks at, of those that a method has."""
    return ("personal", "global", "shared", *(() if config.eval.tuned == "never" else ("tuned",)))


def _curve(report: core.Report, names: Sequence[str]) -> dict[str, float]:
    """Flat keys `curve/<received|trained|own_before|own_after>/client/<name>` of the clients that trained, and means."""
    curve, found = report.train.curve, {}
    for field, values in curve._asdict().items() if isinstance(curve, core.Curve) else ():
        if not isinstance(values, tuple):
            some = {names[i]: float(v) for i, v in zip(report.ids, values, strict=True) if i < len(names)}
            found[f"curve/{field}"] = float(np.mean(list(some.values())))
            found |= {f"curve/{field}/client/{name}": value for name, value in some.items()}
    return found


def _described(setup: Setup, state: State) -> dict[str, float]:
    """Flat keys `server/<what>/client/<name>`: what the server thinks of each client that trains."""
    found = {}
    for what, values in jax.device_get(setup.algorithm.describe(state.server)).items():
        names = setup.federation.client_names[: setup.trainers]
        found |= {f"server/{what}/client/{name}": float(v) for name, v in zip(names, values, strict=True)}
    return found


def _known(labels: Sequence[str], setup: Setup, seed: int) -> evaluate.Known:
    """What `--known_labels` says."""
    names = setup.federation.class_names
    if setup.problem.label_mask is None:
        raise UserError("--known_labels: only a label-mask model (config.model.name='ctran') can be told labels")
    if len(labels) == 1 and labels[0].isdigit():
        number = int(labels[0])
        if number >= len(names):
            raise UserError(f"--known_labels: found {number}, expected less than the number of labels, {len(names)}")
        return evaluate.Known(number, seed=seed)
    for label in labels:
        if label not in names:
            raise UserError(f"--known_labels: no label '{label}'{nearest(label, names)}")
    if len(set(labels)) == len(names):
        raise UserError("--known_labels: all labels are known, none is left to predict")
    return evaluate.Known(labels=tuple(names.index(label) for label in labels))


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


def _hold_out(federation: Federation, config: Any) -> tuple[Federation, int]:
    """The federation with the held-out clients last, and the number of the others."""
    n, held_out = len(federation.client_names), config.eval.held_out
    if held_out >= n:
        raise UserError(f"config.eval.held_out: found {held_out}, expected less than the number of clients, {n}")
    out = np.random.default_rng([config.seed, 2]).choice(n, held_out, replace=False)
    order = [k for k in range(n) if k not in out] + sorted(out)
    each = ("client_names", "train", "validation", "test")
    parts = {name: tuple(getattr(federation, name)[k] for k in order) for name in each}
    return federation._replace(**parts, noise=federation.noise[order]), n - held_out


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


def _check_main(main: str, setup: Setup) -> None:
    model, metric = main.split("/")
    names = metrics.names(setup.federation.task)
    if metric not in names:
        raise UserError(f"config.eval.metric: found '{metric}', expected one of {', '.join(names)}")
    if model not in setup.candidates:
        raise UserError("config.eval.model: found 'global', but this method has no global model")


def _check_finite(report: Any, round: int, setup: Setup, config: Any, saved: int) -> None:
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
