"""The evaluation protocol: which models of a run are scored on which data, and what is said of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl import checkpoint, cohort, core, data, evaluate, hosts, log, store, traffic
from fedjax_pfl.core import State
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.experiment import Setup, prepare


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
    one = one_model(setup, state)
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
            fresh = hosts.here(setup.init())
            newcomer = jax.tree.map(lambda leaf: leaf[0], store.take(fresh.clients, np.zeros(1, np.int32)))
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
        "model": "+".join(dict.fromkeys(config.model.per_client)) or config.model.name,
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
        "utilisation": progress.steps / max(1, progress.executed),
        "communication": _communication(setup, state),
        "device": log.device(),
        "versions": log.versions(),
        "last": last,
        "best": best,
        **({"cross": cross(setup, state)} if config.eval.cross else {}),
    }


def _communication(setup: Setup, state: State) -> dict[str, float]:
    """Bytes that a client gets and sends in a round, on average over the first cohort."""
    state, stored = hosts.here(state), isinstance(state.clients, store.Store)
    some = cohort.assemble(setup.rows, *setup.sampler(0), validation=setup.validation, stored=stored)
    if stored:
        state = state._replace(clients=store.take(state.clients, np.asarray(some.ids)))
    return traffic.of(setup.algorithm, state, some)._asdict()


def cross(setup: Setup, state: State) -> dict[str, dict[str, dict[str, float | None]]]:
    """Every client's model on every client's test split: {metric: {whose model: {whose data: value}}}.

    A row without its diagonal says how a model trained at one client does elsewhere (source-only transfer). Models that
    adapt to a client's data are here as they were before.
    """
    names, everybody = setup.federation.client_names[: setup.trainers], np.arange(setup.trainers)
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for i, name in enumerate(names):

        def of_one(state: State, client: Any, data: core.ClientData, key: Any, i: int = i) -> core.Variables:
            return setup.algorithm.client_model(state.server, client, jnp.int32(i))

        client = jax.tree.map(lambda leaf: leaf[0], store.take(hosts.here(state.clients), np.array([i], np.int32)))
        values = setup.evaluator(evaluate.Candidate(of_one), state, "test", everybody, client)
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
        found = checkpoints.restore_latest(setup.init(workdir), print)
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


def one_model(setup: Setup, state: State) -> bool:
    """Whether clients keep and adapt nothing and there is one model for all: then personal and global model are that one."""
    alone = setup.algorithm.adapt is not None or jax.tree.leaves(state.clients)
    return "global" in setup.candidates and not alone


def _models(config: Any) -> tuple[str, ...]:
    """The models that the evaluation protocol looks at, of those that a method has."""
    return ("personal", "global", "shared", *(() if config.eval.tuned == "never" else ("tuned",)))


def curve(report: core.Report, names: Sequence[str]) -> dict[str, float]:
    """Flat keys `curve/<received|trained|own_before|own_after>/client/<name>` of the clients that trained, and means."""
    curve, found = report.train.curve, {}
    for field, values in curve._asdict().items() if isinstance(curve, core.Curve) else ():
        if not isinstance(values, tuple):
            some = {names[i]: float(v) for i, v in zip(report.ids, values, strict=True) if i < len(names)}
            found[f"curve/{field}"] = float(np.mean(list(some.values())))
            found |= {f"curve/{field}/client/{name}": value for name, value in some.items()}
    return found


def described(setup: Setup, state: State) -> dict[str, float]:
    """Flat keys `server/<what>/client/<name>`: what the server thinks of each client that trains."""
    found = {}
    for what, values in jax.device_get(setup.algorithm.describe(hosts.here(state.server))).items():
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
