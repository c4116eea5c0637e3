"""The rounds of a run, or of several runs at once: cohorts gathered ahead, the compiled program, states lent and put back."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl import cohort, core, hosts, together
from fedjax_pfl.core import Cohort, Report, State
from fedjax_pfl.errors import UserError
from fedjax_pfl.experiment import Setup
from fedjax_pfl.store import Clients, Store


class Work:
    """While entered: how long the device works on calls, and how long it waits for the host between two of them.

    Attributes:
        working, waiting: seconds. A call's work ends when its results are there, whatever the host does then.
    """

    def __init__(self) -> None:
        self.working = self.waiting = 0.0
        self._ended: float | None = None  # the last call, if the next one follows it directly

    def __enter__(self) -> "Work":
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def start(self, call: Callable[[], Any]) -> Any:
        """`call()`, which begins a call on the device and returns what will be its results."""
        self._began = time.perf_counter()
        if self._ended is not None:
            self.waiting += self._began - self._ended
        results = call()

        def end() -> float:
            jax.block_until_ready(results)
            return time.perf_counter()

        self._end: Future[float] = self._thread.submit(end)
        return results

    def finish(self) -> None:
        """Wait for the call."""
        self._ended = self._end.result()
        self.working += self._ended - self._began

    def pause(self) -> None:
        """The time until the next call doesn't count: the device has something else to do."""
        self._ended = None

    @property
    def idle(self) -> float | None:
        """The share of the time that the device waited; None before a second call."""
        return self.waiting / (self.waiting + self.working) if self.waiting else None


class Alone:
    """The rounds of one run, `config.rounds_per_call` in a call.

    Args:
        state: after the last round that was played.
        done: how many were; the run stops after round `end`.

    Raises:
        UserError: so many rounds can't be one call.
    """

    def __init__(self, config: Any, setup: Setup, state: State, done: int, end: int) -> None:
        self.each, self._setup, self._how = config.rounds_per_call, setup, setup.training.how
        stored = state.clients if isinstance(state.clients, Store) else None
        _check_call(self.each, stored is not None, done, end)
        self._stored, self._clients = stored is not None, Clients(stored)
        self._state = core.everywhere(state if stored is None else state._replace(clients=()), self._how)
        self._compiled = Compiled(core.jit_round(setup.algorithm, self._how, several=self.each > 1))
        self.gather(done)

    @property
    def compile_seconds(self) -> float:
        """Of all compilations so far."""
        return self._compiled.seconds

    def gather(self, round: int) -> None:
        """Read the examples and states of the cohorts that come after this round."""
        draws = [self._setup.sampler(round + i) for i in range(self.each)]
        among = np.concatenate([ids for ids, _ in draws])
        cohorts = [
            cohort.assemble(
                self._setup.rows, *draw, self._how, self._setup.validation, stored=self._stored, among=among
            )
            for draw in draws
        ]
        self._some = cohorts[0] if self.each == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *cohorts)
        self._clients.read(self._some)

    def compile(self) -> bool:
        """Compile the next call; whether that was not yet done."""
        self._state, before = self._clients.of_cohort(self._state), self._compiled.seconds
        self._call = self._compiled(self._state, self._some, self._setup.key)
        return self._compiled.seconds > before

    def start(self) -> list[Report]:
        """Begin the next call; the device works on it while the host goes on."""
        self._state, self._reports = self._call(self._state, self._some, self._setup.key)
        return [self._reports]

    def finish(self) -> list[list[Report]]:
        """Wait for the call: for each run the reports of its rounds."""
        self._state = self._clients.put_back(self._state)
        reports = jax.device_get(self._reports)
        return [[reports] if self.each == 1 else [_row(reports, i) for i in range(self.each)]]

    def state(self, run: int = 0) -> State:
        """Of a run, now."""
        return self._state


class Together:
    """The rounds of several runs that are one program (see `together`), one round of each in a call.

    Args:
        runs: each one's config and setup, and its state after round `done`.

    Raises:
        UserError: the runs can't be played side by side.
    """

    def __init__(self, runs: Sequence[tuple[Any, Setup, State]], done: int) -> None:
        self.each = 1
        self._setups, states = [setup for _, setup, _ in runs], [state for *_, state in runs]
        _check_together(runs)
        # All runs' clients are padded alike.
        for rows in [[setup.rows for setup in self._setups], [setup.validation for setup in self._setups]]:
            for each in rows:
                if each is not None:
                    each.pad_to(max(one.n_max for one in rows if one is not None))
        self._state = _stacked(states)
        self._key = _stacked([setup.key for setup in self._setups])
        self._compiled = Compiled(together.jit_rounds([setup.algorithm for setup in self._setups]))
        self._data: tuple[list[Any], Any] = ([], None)
        self.gather(done)

    @property
    def compile_seconds(self) -> float:
        """Of all compilations so far."""
        return self._compiled.seconds

    def gather(self, round: int) -> None:
        """Read the examples of the cohorts that come after this round."""
        cohorts = [
            cohort.assemble(setup.rows, *setup.sampler(round), setup.training.how, setup.validation)
            for setup in self._setups
        ]
        each = [one.data for one in cohorts]
        if len(self._data[0]) != len(each) or any(new is not old for new, old in zip(each, self._data[0], strict=True)):
            self._data = each, _stacked(each)
        self._some = _stacked([one._replace(data=()) for one in cohorts])._replace(data=self._data[1])

    def compile(self) -> bool:
        """Compile the next call; whether that was not yet done."""
        before = self._compiled.seconds
        self._call = self._compiled(self._state, self._some, self._key)
        return self._compiled.seconds > before

    def start(self) -> list[Report]:
        """Begin the next call; the device works on it while the host goes on."""
        self._state, self._reports = self._call(self._state, self._some, self._key)
        return [self._reports]

    def finish(self) -> list[list[Report]]:
        """Wait for the call: for each run the reports of its rounds."""
        reports = jax.device_get(self._reports)
        return [[_row(reports, run)] for run in range(len(self._setups))]

    def state(self, run: int = 0) -> State:
        """Of a run, now."""
        return _row(self._state, run)


class Compiled:
    """A jitted round, compiled once for each number of rows that cohorts are padded to: once with resident data."""

    def __init__(self, jitted: Any) -> None:
        self._jitted, self._by_shape = jitted, {}
        self.seconds = 0.0  # of all compilations

    def __call__(self, state: State, some: Cohort, key: jax.Array) -> Callable[..., Any]:
        shape = some.data.x.shape
        if shape not in self._by_shape:
            began = time.perf_counter()
            self._by_shape[shape] = self._jitted.lower(state, some, key).compile()
            self.seconds += time.perf_counter() - began
        return self._by_shape[shape]


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _check_call(each: int, stored: bool, done: int, end: int) -> None:
    """Raises UserError where so many rounds can't be one call."""
    if each > 1 and (stored or hosts.several()):
        raise UserError(
            f"config.rounds_per_call: found {each}, expected 1 with "
            + ("clients' states off the device" if stored else "several hosts")
        )
    if (end - done) % each:
        raise UserError(f"--stop_at: found {end}, expected a multiple of config.rounds_per_call, {each}")


def _check_together(runs: Sequence[tuple[Any, Setup, State]]) -> None:
    """Raises UserError where these runs can't be played side by side."""
    with_several = "expected {} with config.seeds or config.lrs"
    config, setup, state = runs[0]
    for found, expected, name in (
        (config.rounds_per_call, 1, "config.rounds_per_call"),
        (isinstance(setup.training.how, core.Sharded), False, "several devices"),
        (isinstance(state.clients, Store), False, "config.cohort.states off the device"),
    ):
        if found != expected:
            raise UserError(f"{name}: found {found}, {with_several.format(expected)}")
    for what, each in (
        ("clients a round", [setup.sampler.size for _, setup, _ in runs]),
        ("clients", [setup.trainers for _, setup, _ in runs]),
    ):
        if len(set(each)) > 1:
            raise UserError(
                f"config.seeds: the runs have {each} {what}, expected as many as each other; --mode=sweep trains them one "
                "after the other"
            )
