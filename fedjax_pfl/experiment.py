"""An experiment: everything that a config describes, read and built, ready to run."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_pfl import cohort, core, data, evaluate, hosts, store
from fedjax_pfl import config as configuration
from fedjax_pfl.core import Algorithm, State
from fedjax_pfl.data import Federation
from fedjax_pfl.errors import UserError
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
    init: Callable[..., State]  # may be given the folder of the clients' states, for where they are on the disk


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
    groups = configuration.build_groups(config, federation, trainers)
    training = training._replace(groups=tuple(each for _, each in groups))
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
    key_init, key_rounds, key_eval = jax.random.split(jax.random.key(config.seed), 3)

    def init(folder: Path | None = None) -> State:
        each = tuple(of.init(key_init) for of in (problem, *(of for of, _ in groups)))
        variables = each if groups else each[0]
        place = _place(config, algorithm, variables, trainers)
        if place == "device":
            return core.everywhere(algorithm.init(variables, trainers), training.how)
        folder = folder or Path(tempfile.gettempdir())
        return store.init(algorithm, variables, trainers, folder if place == "disk" else None)

    return Setup(
        federation,
        trainers,
        problem,
        training,
        algorithm,
        configuration.build_sampler(config, federation, trainers),
        rows,
        splits["validation"] if algorithm.validates else None,
        evaluate.Evaluator(
            problem,
            federation.task,
            federation.client_names,
            splits,
            batch_size=config.eval.batch_size,
            how=training.how,
            key=core.everywhere(key_eval, training.how),
            groups=[(each, of.members) for each, of in groups],
        ),
        evaluate.candidates(algorithm, training, config.eval.tune_epochs),
        core.everywhere(key_rounds, training.how),
        init,
    )


def _place(config: Any, algorithm: Algorithm, variables: Any, n: int) -> str:
    """Where the clients' states are between rounds: device, host or disk."""
    place, several = config.cohort.states, bool(config.model.per_client)
    if (several or hosts.several()) and place not in ("auto", "device"):
        why = "config.model.per_client" if several else "several hosts"
        raise UserError(f"config.cohort.states: found '{place}', expected 'device' with {why}")
    if place != "auto":
        return place
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if several or hosts.several() or memory is None:  # a CPU's device is the host
        return "device"
    shapes = jax.eval_shape(lambda variables: algorithm.init(variables, n).clients, variables)
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    return "device" if needed <= memory / 4 else "host"


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
