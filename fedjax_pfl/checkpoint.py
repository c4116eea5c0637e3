"""Checkpoints by orbax: the whole State and what the loop knows beside it, whole or not at all."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjax_pfl.core import State
from fedjax_pfl.errors import UserError
from fedjax_pfl.store import Store


class Progress(NamedTuple):
    """What the loop knows beside the State."""

    round: int  # rounds done
    best_round: int = 0  # the evaluated round with the best main metric so far; 0: none
    best_value: float | None = None
    seconds: float = 0.0  # of training so far, without compilation
    examples: int = 0  # seen by local training so far
    steps: int = 0  # of local training so far
    executed: int = 0  # the same with those in which a client waited for those that run together with it


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and that of the best round.

    A save is written aside and renamed, so that whatever stops the process leaves complete checkpoints only. Each carries a
    checksum of every array, so that one damaged later is found.

    Args:
        folder: made where missing.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._keep = keep
        options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def rounds(self) -> list[int]:
        """Rounds that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, progress: Progress) -> None:
        """Save; the arrays are copied before this returns, the writing goes on in the background."""
        meta: dict[str, Any] = {"progress": progress._asdict()}
        if isinstance(state.clients, Store):
            state = state._replace(clients=state.clients.saved())
            meta["put"] = len(state.clients.ids)
        meta["checksums"] = checksums(state)
        if progress.round in self.rounds():  # a damaged one, skipped when the run resumed
            self._manager.delete(progress.round)
        self._manager.save(
            progress.round, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        )
        for round in self.rounds()[: -self._keep]:
            if round != progress.best_round:
                self._manager.delete(round)

    def restore(self, round: int, like: State) -> tuple[State, Progress]:
        """The state and progress saved after `round`.

        Args:
            like: a State of the same structure, shapes and dtypes (its values don't matter). Its `Store`, where it has one,
                stays as it is: the state that is returned has another.

        Raises:
            UserError: the checkpoint is damaged or belongs to another state.
        """
        path = self._manager.directory / str(round)
        store = like.clients if isinstance(like.clients, Store) else None
        try:
            meta = self._manager.restore(round, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            progress = Progress(**meta["progress"])
            abstract = like if store is None else like._replace(clients=store.like(meta["put"]))
            abstract = jax.tree.map(_abstract, abstract)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(round, args=args)["state"]
        except Exception as error:  # whatever a reader of damaged bytes may raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: can't be read ({type(error).__name__}: {reason})") from None
        if checksums(state) != meta["checksums"]:
            raise UserError(f"{path}: damaged (its arrays don't have the checksums written with them)")
        return state if store is None else state._replace(clients=store.filled(state.clients)), progress

    def restore_latest(self, like: State, warn: Callable[[str], None]) -> tuple[State, Progress] | None:
        """The newest checkpoint that is whole, or None where there is none at all; `warn` hears of each one skipped.

        Raises:
            UserError: there are checkpoints, but none is whole.
        """
        rounds = self.rounds()
        for round in reversed(rounds):
            try:
                return self.restore(round, like)
            except UserError as error:
                warn(f"warning: {error}; going back to the checkpoint before it")
        if rounds:
            raise UserError(
                f"{self._manager.directory}: none of the checkpoints (rounds {rounds}) is whole; give another --workdir"
            )
        return None

    def wait(self) -> None:
        """Return when everything saved is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and release the folder."""
        self._manager.close()


def _abstract(leaf: Any) -> Any:
    """What orbax is to restore: arrays of the host there, others on the device."""
    return leaf if isinstance(leaf, np.ndarray) else ocp.utils.to_shape_dtype_struct(leaf)


def checksums(state: Any) -> dict[str, int]:
    """CRC-32 of the bytes of every array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): zlib.crc32(
            np.ascontiguousarray(jax.device_get(leaf)).reshape(-1).view(np.uint8).data
        )
        for path, leaf in leaves
    }
