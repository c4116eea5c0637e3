"""What a run leaves in its workdir, and what it says while it works."""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import fedjax_pfl
from fedjax_pfl.errors import UserError

METRICS, EVENTS = "metrics.jsonl", "events"


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: NaN and infinities become null, NumPy scalars and arrays plain numbers and lists, paths text."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON to `path` in one step: a reader, or a run killed half-way, sees the old file or the new one."""
    _replace(path, to_json(value, indent=2) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, [] where there is none; a last line torn by `kill -9` is left out.

    Raises:
        UserError: another line is not a JSON object with an integer `round`.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["round"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not a JSON object with an integer 'round'") from None
        records.append(record)
    return records


class Log:
    """The metrics of a run: `metrics.jsonl`, one strict JSON object per evaluated round, and TensorBoard events.

    Args:
        workdir: made where missing; the events go into its folder `events`.
        tensorboard: write events (scalars without the per-client keys).
    """

    def __init__(self, workdir: Path, *, tensorboard: bool = True):
        self.path = Path(workdir) / METRICS
        self._tensorboard = tensorboard
        self._writer: Any = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite(self.records())  # mends a torn last line: what is appended starts on a line of its own

    def records(self) -> list[dict[str, Any]]:
        """All records so far, oldest first. Raises what `read_records` raises."""
        return read_records(self.path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record of flat keys, `round` (int) among them; it is on the disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._tensorboard:
            self._write_events(record)

    def truncate(self, round: int) -> None:
        """Drop the records after `round`: a resumed run writes them again."""
        self.close()
        self._rewrite([record for record in self.records() if record["round"] <= round])

    def close(self) -> None:
        """Finish the event file; a later `append` opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        _replace(self.path, "".join(to_json(record) + "\n" for record in records))

    def _write_events(self, record: Mapping[str, Any]) -> None:
        step = record["round"]
        if self._writer is None:
            if util.find_spec("tensorboardX") is None:
                self._tensorboard = False
                print("no TensorBoard events: tensorboardX is missing (pip install tensorboardX)", file=sys.stderr)
                return
            from tensorboardX import SummaryWriter

            # purge_step hides what an interrupted run wrote from this round on; the suffix keeps two starts within one
            # second from sharing a file.
            self._writer = SummaryWriter(
                str(self.path.parent / EVENTS), purge_step=step, filename_suffix=f".{time.time_ns()}"
            )
        for key, value in record.items():
            if key != "round" and "/client/" not in key and isinstance(value, (int, float, np.number)):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()


class Progress:
    """A bar over rounds on standard error where that is a terminal; elsewhere one line at the start and one at the end.

    Args:
        total: number of rounds of the whole run.
        start: rounds done before this start (a resumed run).
        quiet: neither bar nor lines; `say` still speaks.
        metric: name of the metric given to `update`.
        file: where to write.
    """

    def __init__(
        self, total: int, start: int = 0, quiet: bool = False, *, metric: str = "metric", file: TextIO | None = None
    ):
        self._total, self._start, self._round = total, start, start
        self._quiet, self._name = quiet, metric
        self._file = file or sys.stderr
        self._loss: float | None = None
        self._metric: float | None = None
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        if not self._quiet and self._file.isatty() and util.find_spec("rich") is not None:
            self._bar = _bar(self._file)
            self._task = self._bar.add_task("", total=self._total, completed=self._start, state="compiling")
            self._bar.start()
        elif not self._quiet:
            self.say(f"{self._total - self._start} of {self._total} rounds to go")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet:
            seconds = time.monotonic() - self._began
            self.say(f"round {self._round} of {self._total} done after {seconds:.1f} s{self._state()}")

    def update(self, round: int, loss: float | None, metric: float | None, seconds: float) -> None:
        """Round `round` (1 is the first) took `seconds`. A loss or metric of None keeps the last one in view."""
        self._round = round
        self._loss = self._loss if loss is None else loss
        self._metric = self._metric if metric is None else metric
        if self._bar is not None:
            self._bar.update(self._task, completed=round, state=f"{seconds:.2f} s/round{self._state()}")

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._file, flush=True)

    def _state(self) -> str:
        shown = (("loss", self._loss), (self._name, self._metric))
        return "".join(f", {name} {value:.4f}" for name, value in shown if value is not None)


def columns(rows: list[list[str]]) -> str:
    """Rows of as many cells each as lines of text, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the platform."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "fedjax_pfl": fedjax_pfl.__version__,
        "platform": platform.platform(),
    }


def device() -> str:
    """The devices that JAX uses, e.g. `1 x cpu (2 cores)` or `2 x NVIDIA H200`."""
    import jax

    devices = jax.devices()
    cores = f" ({os.cpu_count()} cores)" if devices[0].platform == "cpu" else ""
    return f"{len(devices)} x {devices[0].device_kind}{cores}"


def _bar(file: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(file=file),
        speed_estimate_period=math.inf,  # the default, 30 s, knows no speed where a round takes longer
    )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
