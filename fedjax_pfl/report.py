"""Tables and curves over runs and seeds: `launch.py --mode=report --runs=DIR,DIR,...`."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_pfl import catalogue, log, plots
from fedjax_pfl import config as configuration
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.metrics import lower_is_better

FIELDS = ("name", "method", "model", "seed", "rounds", "data", "fingerprint", "clients", "main_metric", "seconds")
SPLITS = {"test": "Test", "held_out": "Held-out clients"}
MODELS = ("personal", "tuned", "global")
PAPERS = tuple(f"{kind}_{short}" for kind in "co" for short in ("ap", "p", "r", "f1"))  # multi-label papers' columns
COSTS = ("KiB down", "KiB up", "seconds")  # of a client in a round, and of all rounds
MAX_CLIENTS = 10  # with more, the clients get no columns of their own; report_runs.csv has them all


class Run(NamedTuple):
    """One finished run: its folder and its summary.json."""

    path: Path
    summary: dict[str, Any]


class Row(NamedTuple):
    """One model of one method on one split, and its columns of numbers, one value per run (NaN where undefined)."""

    split: str
    name: str
    model: str
    runs: list[Run]
    values: dict[str, np.ndarray]


def run(
    runs: Sequence[str | Path],
    *,
    output: Path | None = None,
    mix: bool = False,
    metrics: Sequence[str] | None = None,
    which: str = "best",
) -> str:
    """Compare finished runs; write `report.md`, `report.csv`, `report_runs.csv`, `curves.png` and, of runs with
    config.eval.retrogress, `retrogress.png`.

    Runs of one `name` are the seeds of one method: their configs may differ in nothing else. Each row is a method's
    personal, tuned or global model, each number the mean ± standard deviation (ddof 1) over its seeds. `report.csv`
    holds the tables' raw numbers, `report_runs.csv` every value of every run. Multi-label runs get a second table, laid
    out as their papers do: one row per method, C-AP to O-F1 in percent.

    Args:
        runs: run folders, or folders that hold any number of them at any depth.
        output: folder for the files; by default the runs' common parent.
        mix: compare runs on different data, splits or numbers of clients nevertheless, and let the configs of one name
            differ.
        metrics: the metrics to show, by default all.
        which: `best` (the round that is best by validation) or `last`.

    Returns:
        The table and its notes in Markdown.

    Raises:
        UserError: a folder without runs, an unfinished run, a damaged summary.json, two runs with the same name and
            seed, runs that can't be compared, an unknown metric, or a folder that can't be written.
    """
    if which not in ("best", "last"):
        raise UserError(f"which: unknown name '{which}' (one of: best, last)")
    found = _load(_find(runs), which)
    _check(found, mix)
    rows = [row for split in SPLITS for row in _rows(found, split, metrics, which)]
    if not rows:
        raise UserError(f"--runs: no run in {found[0].path.parent} was evaluated on a test split")
    text = _markdown(rows, which) + _transfer(found, which)
    folder = Path(output or os.path.commonpath([run.path for run in found]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _draw(found, folder / "curves.png"):
            text += "\n![validation metric over rounds](curves.png)\n"
        if (table := _retrogress(found)) and _draw_retrogress(found, folder / "retrogress.png"):
            text += f"\n{table}\n\n![scores before and after each communication](retrogress.png)\n"
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "report.csv").write_text(_csv([_raw(row) for row in rows]), encoding="utf-8")
        (folder / "report_runs.csv").write_text(_csv(_long(found, which)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report can't be written into {folder}: {error.strerror}") from None
    return text


def write_per_class(path: Path, names: Sequence[str], values: Mapping[str, np.ndarray]) -> None:
    """Write `per_class.csv`: class, positives, AP, P, R, F1, a line per class; the AP is empty where it is undefined.

    Args:
        path: the file; its folder is made.
        names: of the L classes.
        values: as `metrics.per_class` returns them, [L] each.

    Raises:
        UserError: the file can't be written.
    """
    columns = {"positives": "positives", "AP": "ap", "P": "precision", "R": "recall", "F1": "f1"}
    numbers = zip(*(np.asarray(values[key]).tolist() for key in columns.values()), strict=True)
    lines = [{"class": name, **dict(zip(columns, row, strict=True))} for name, row in zip(names, numbers, strict=True)]
    lines = [{key: "" if value != value else value for key, value in line.items()} for line in lines]  # NaN: undefined
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_csv(lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from None


def _find(folders: Sequence[str | Path]) -> list[Path]:
    """The run folders in or under `folders`, each once: in the given order, by path within a folder."""
    found: dict[Path, None] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--runs: no folder '{folder}'")
        inside = []
        for at, below, files in os.walk(folder):
            if not {"summary.json", log.METRICS}.isdisjoint(files):
                inside.append(Path(at).resolve())
                below.clear()
        if not inside:
            raise UserError(f"--runs: no run in '{folder}' (the folder of a run holds summary.json)")
        found.update(dict.fromkeys(sorted(inside)))
    if not found:
        raise UserError("--runs: no folder given, expected --runs=DIR,DIR,...")
    return list(found)


def _load(paths: Sequence[Path], which: str) -> list[Run]:
    runs, unfinished = [], []
    for path in paths:
        file = path / "summary.json"
        if not file.exists():
            unfinished.append(str(path))
            continue
        summary = _read(file)
        missing = [field for field in (*FIELDS, which) if field not in summary]
        if missing:
            raise UserError(f"{file}: no field '{missing[0]}'")
        if summary[which] is None:
            raise UserError(
                f"{path}: the run has no best round (no validation data); --which=last reports the last one"
            )
        if not isinstance(summary[which], dict) or not isinstance(summary[which].get("round"), int):
            raise UserError(f"{file}: field '{which}' is not an object with an integer 'round'")
        runs.append(Run(path, summary))
    if unfinished:
        raise UserError(f"--runs: unfinished (no summary.json), resume or leave out: {', '.join(unfinished)}")
    return runs


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def _check(runs: Sequence[Run], mix: bool) -> None:
    """Refuse runs that can't be compared, and runs of one name that differ in more than the seed."""
    seeds: dict[tuple[str, Any], Run] = {}
    for run in runs:
        name, seed = run.summary["name"], run.summary["seed"]
        if (twin := seeds.setdefault((name, seed), run)) is not run:
            raise UserError(f"--runs: {twin.path} and {run.path} both have the name '{name}' and the seed {seed}")
    groups = _by_name(runs)
    # Each seed may draw a split of its own: a method must have run on no split that the one with most runs didn't see.
    most = max(groups.values(), key=len)
    splits = {run.summary["fingerprint"] for run in most}
    for run in runs:
        twin = next((other for other in most if other.summary["seed"] == run.summary["seed"]), most[0])
        unseen = run.summary["fingerprint"] not in splits
        fields = ("data", "clients", *(["fingerprint"] if unseen else []))
        if not mix and (differing := _difference(twin, run, fields)):
            raise UserError(f"--runs: {differing}; --mix compares them nevertheless")
    for name, (first, *others) in groups.items():
        for run in others:
            differing = _difference(first, run, ("method", "model", "rounds", "data"))
            if differing := differing or (None if mix else _config_difference(first, run)):
                raise UserError(f"--runs: {differing}, yet both have the name '{name}': give each its own config.name")


def _by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each name, methods in the order of the catalogue."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: catalogue.order(run.summary["method"])):
        groups.setdefault(run.summary["name"], []).append(run)
    return groups


def _difference(a: Run, b: Run, fields: Sequence[str]) -> str | None:
    for field in fields:
        x, y = a.summary[field], b.summary[field]
        if x != y:
            return f"{a.path} and {b.path} differ in {field} ({x}, {y})"
    return None


def _config_difference(a: Run, b: Run) -> str | None:
    """What else than the seed the two configs differ in; None where a run has no config.json."""
    files = [run.path / "config.json" for run in (a, b)]
    if not all(file.exists() for file in files):
        return None
    old, new = (_read(file) for file in files)
    changed = configuration.difference({**old, "seed": None}, {**new, "seed": None})
    return f"{a.path} and {b.path} differ in {changed[0]}" if changed else None


def _rows(runs: Sequence[Run], split: str, wanted: Sequence[str] | None, which: str) -> list[Row]:
    """The rows of one split. Columns: metrics, worst client and spread of the main one, clients, pooled ones, costs."""
    flat = [key for run in runs for key in run.summary[which] if key.startswith(f"{split}/")]
    keys = list(dict.fromkeys(key.split("/", 2)[2] for key in flat if key.count("/") >= 2))
    if not keys:
        return []
    known = [key for key in keys if "/" not in key]
    main = runs[0].summary["main_metric"].rsplit("/", 1)[-1]
    for metric in wanted or ():
        if metric not in known:
            raise UserError(f"metrics: unknown name '{metric}'{nearest(metric, known)}")
    columns = list(wanted or sorted(known, key=lambda metric: metric != main))
    clients = [key for key in keys if key.startswith(f"{main}/client/")]
    pooled = [f"{metric}/pooled" for metric in columns if f"{metric}/pooled" in keys]
    columns += [f"{main}/worst", f"{main}/std", *(clients if len(clients) <= MAX_CLIENTS else ()), *pooled]
    rows = []
    for name, group in _by_name(runs).items():
        for model in MODELS:
            prefix = f"{split}/{model}/"
            if not any(key.startswith(prefix) for run in group for key in run.summary[which]):
                continue
            values = {c: [run.summary[which].get(prefix + c) for run in group] for c in columns}
            values |= _costs(group, runs)
            rows.append(Row(split, name, model, group, {c: np.array(v, np.float64) for c, v in values.items()}))
    return rows


def _costs(group: Sequence[Run], runs: Sequence[Run]) -> dict[str, list[float]]:
    """KiB that a client got and sent in a round, where any run has them, and seconds of all rounds."""
    ways = ("down", "up") if any("communication" in run.summary for run in runs) else ()
    kib = {
        f"KiB {way}": [run.summary.get("communication", {}).get(way, np.nan) / 1024 for run in group] for way in ways
    }
    return {**kib, "seconds": [run.summary["seconds"] for run in group]}


def _markdown(rows: Sequence[Row], which: str) -> str:
    parts = [f"# Report: {'best round by validation' if which == 'best' else 'last round'}\n"]
    for split, title in SPLITS.items():
        if table := [row for row in rows if row.split == split]:
            columns = [column for column in table[0].values if not _is_pooled(column)]
            parts += [f"## {title}\n", _table(table, columns, _number, _title), *_as_in_papers(table)]
    parts.append("Mean over clients, then mean ± standard deviation (ddof 1) over seeds; loss in nats; best in bold.\n")
    if any("KiB down" in row.values for row in rows):
        parts.append("KiB: what a client gets and sends in a round.\n")
    parts += _undefined(rows, which)
    for field in ("data", "fingerprint", "clients"):
        values = dict.fromkeys(str(run.summary[field]) for row in rows for run in row.runs)
        if len(values) > 1:
            parts.append(f"- Mixed: the runs differ in {field} ({', '.join(values)}).")
    if (most := max(run.summary["clients"] for row in rows for run in row.runs)) > MAX_CLIENTS:
        parts.append(f"- {_count(most, 'client')}: each one's values are in report_runs.csv.")
    return "\n".join(parts) + "\n"


def _as_in_papers(rows: Sequence[Row]) -> list[str]:
    """The multi-label table and its note, [] for other tasks: for each method the global model, else the personal one."""
    metrics = [metric for metric in PAPERS if metric in rows[0].values]
    if not metrics:
        return []
    chosen: dict[str, Row] = {}
    for row in rows:
        if row.model in ("personal", "global"):
            chosen[row.name] = row  # global comes last
    table = list(chosen.values())
    pooled = [f"{metric}/pooled" for metric in metrics]
    # Never some rows on one and some on the other: they differ by much where clients are small.
    everywhere = all(_has(row, column) for row in table for column in pooled)
    note = (
        "on the test examples of all clients taken together"
        if everywhere
        else "on each client's test examples, then the mean over clients"
    )
    heading = f"### Multi-label, in percent: {note}\n"
    names = "C: averaged over classes, O: over all pairs of example and class.\n"
    return [heading, _table(table, pooled if everywhere else metrics, _percent, _paper_title), names] if table else []


def _has(row: Row, column: str) -> bool:
    """Whether each of the row's runs has the column, with a number where its mean over clients has one."""
    mean = row.values[column.partition("/")[0]]
    return column in row.values and bool((np.isfinite(row.values[column]) | ~np.isfinite(mean)).all())


def _is_pooled(column: str) -> bool:
    return column.partition("/")[2] == "pooled"  # a client of that name is <metric>/client/pooled


def _paper_title(column: str) -> str:
    return column.partition("/")[0].upper().replace("_", "-")


def _percent(value: float, column: str) -> str:
    return f"{100 * value:.2f}" if np.isfinite(value) else "undefined"


def _undefined(rows: Sequence[Row], which: str) -> list[str]:
    """One note for each split's metric that some client leaves undefined."""
    notes = []
    for split, metric in dict.fromkeys((row.split, column) for row in rows for column in row.values):
        table = [row for row in rows if row.split == split]
        counts: dict[str, int] = {}
        for row in table:
            found = [run.summary[which].get(f"{split}/{row.model}/{metric}/undefined", 0) for run in row.runs]
            if max(found):
                counts[f"{row.name} {row.model}"] = max(found)
        if counts:
            low, high = min(counts.values()), max(counts.values())
            clients = _count(high, "client") if low == high else f"{low} to {high} clients"
            where = "every row" if len(counts) == len(table) else ", ".join(counts)
            notes.append(f"- {SPLITS[split]}: `{metric}` is undefined for {clients}, left out of the mean, in {where}.")
    return notes


def _table(
    rows: Sequence[Row], columns: Sequence[str], number: Callable[[float, str], str], title: Callable[[str], str]
) -> str:
    header = ["method", "model", "seeds", *map(title, columns)]
    cells = [[row.name.replace("|", r"\|"), row.model, _seeds(row)] for row in rows]
    for column in columns:
        means = [_mean(row.values[column]) for row in rows]
        shown = [number(mean, column) for mean in means]
        best = None
        if len(rows) > 1 and np.isfinite(means).any():
            best = shown[int(np.nanargmin(means) if _lower(column) else np.nanargmax(means))]
        for line, row, text in zip(cells, rows, shown, strict=True):
            values = row.values[column]
            defined = values[np.isfinite(values)]
            if len(defined) > 1:
                text += f" ± {number(defined.std(ddof=1), column)}"
            bold = f"**{text}**" if number(_mean(values), column) == best else text
            line.append(bold + (f" ({len(defined)} of {len(values)})" if 0 < len(defined) < len(values) else ""))
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]  # readable in a terminal too
    rule = ["-" * width if i < 3 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in (header, rule, *cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else np.nan


def _number(value: float, column: str) -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{value:.1f}" if column in COSTS else f"{value:.3f}"


def _lower(column: str) -> bool:
    return column in COSTS or column.endswith("/std") or lower_is_better(column.split("/")[0])


def _title(column: str) -> str:
    metric, _, rest = column.partition("/")
    titles = {"": metric, "worst": f"{metric}, worst client", "std": f"{metric}, spread over clients"}
    return titles.get(rest, rest.removeprefix("client/").replace("|", r"\|"))


def _seeds(row: Row) -> str:
    return f"{', '.join(str(run.summary['seed']) for run in row.runs)} (n = {len(row.runs)})"


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _raw(row: Row) -> dict[str, Any]:
    """A row's raw numbers: each column's mean, deviation (ddof 1) and number of runs where it is defined."""
    seeds = " ".join(str(run.summary["seed"]) for run in row.runs)
    raw: dict[str, Any] = {
        "split": row.split,
        "method": row.name,
        "model": row.model,
        "n": len(row.runs),
        "seeds": seeds,
    }
    for column, values in row.values.items():
        defined = values[np.isfinite(values)]
        raw[column] = _mean(values) if defined.size else ""
        raw[f"{column} deviation"] = float(defined.std(ddof=1)) if defined.size > 1 else ""
        raw[f"{column} n"] = defined.size
    return raw


def _long(runs: Sequence[Run], which: str) -> list[dict[str, Any]]:
    """One line for every value of every run."""
    lines = []
    for run in runs:
        run_fields = {"run": str(run.path), **{k: run.summary[k] for k in ("name", "method", "seed")}, "which": which}
        values = {**run.summary[which], "seconds": run.summary["seconds"]}
        lines += [
            {**run_fields, "round": values["round"], "key": k, "value": v} for k, v in values.items() if k != "round"
        ]
    return lines


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _draw(runs: Sequence[Run], path: Path) -> bool:
    curves = {
        name: [plots.curve(log.read_records(run.path / log.METRICS), run.summary["main_metric"]) for run in group]
        for name, group in _by_name(runs).items()
    }
    if not any(rounds for group in curves.values() for rounds, _ in group):
        return False  # never evaluated on validation data
    return plots.compare(curves, path, runs[0].summary["main_metric"])


def _retrogress(runs: Sequence[Run]) -> str:
    """What communications took from clients, in runs that scored models before and after training; '' without such runs.

    The mean over clients and communications of (score before it) - (score after it), of the model that travels and of the
    one that the client uses. Only rounds that follow each other count.
    """
    lines = []
    for name, group in _by_name(runs).items():
        found = [_drops(log.read_records(run.path / log.METRICS)) for run in group]
        found = [drops for drops in found if drops is not None]
        if found:
            shared, used, share = (np.array(column) for column in zip(*found, strict=True))
            lines.append(f"| {name} | {_spread(shared)} | {_spread(share)} | {_spread(used)} |")
    if not lines:
        return ""
    return "\n".join(
        [
            "Loss at a communication (validation score before it minus after it, mean over clients and rounds):\n",
            "| method | of the model that travels | share of communications that lose | of the model in use |",
            "| --- | --- | --- | --- |",
            *lines,
        ]
    )


def _transfer(runs: Sequence[Run], which: str) -> str:
    """Of runs with an unlabelled client (config.kd3a.target): how well it does, and the mean over the others; else ''.

    A run's method is its name without '-<target>'. Runs with a cross table stand for every target at once: its diagonal is a
    model trained with the target's labels, the rest of a column what other clients' models do there.
    """
    targets = dict.fromkeys(run.summary["target"] for run in runs if run.summary.get("target"))
    if not targets:
        return ""
    metric = runs[0].summary["main_metric"].rsplit("/", 1)[-1]
    prefix = f"test/personal/{metric}/client/"
    at: dict[str, dict[str, list[float]]] = {}  # method -> target -> a value for each run
    others: dict[str, dict[str, list[float]]] = {}

    def add(table: dict[str, dict[str, list[float]]], method: str, target: str, value: float) -> None:
        table.setdefault(method, {}).setdefault(target, []).append(value)

    for run in runs:
        values = {k.removeprefix(prefix): v for k, v in run.summary[which].items() if k.startswith(prefix)}
        name, target, matrix = run.summary["name"], run.summary.get("target", ""), run.summary.get("cross")
        method = name.removesuffix(f"-{target}")
        if matrix:
            for target in (t for t in targets if t in values):
                elsewhere = [row[target] for model, row in matrix[metric].items() if model != target]
                add(at, f"{method}, with the target's labels", target, values[target])
                add(at, f"{method}, another client's model, mean", target, float(np.mean(elsewhere)))
                add(at, f"{method}, another client's model, best", target, max(elsewhere))
                add(others, method, target, float(np.mean([v for k, v in values.items() if k != target])))
        elif target in values:
            add(at, method, target, values[target])
            add(others, method, target, float(np.mean([v for k, v in values.items() if k != target])))

    def table(of: dict[str, dict[str, list[float]]]) -> str:
        lines = [f"| method | {' | '.join(targets)} | mean |", "| --- |" + " ---: |" * (len(targets) + 1)]
        for method, row in of.items():
            cells = [_spread(np.array(row[t])) if t in row else "" for t in targets]
            mean = (
                _number(float(np.mean([np.mean(v) for v in row.values()])), metric) if len(row) == len(targets) else ""
            )
            lines.append(f"| {method} | {' | '.join(cells)} | {mean} |")
        return "\n".join(lines)

    return (
        f"\n## Transfer: test {metric} of the unlabelled client, each column a target\n\n{table(at)}\n"
        f"\n### and of the other clients' own models, their mean\n\n{table(others)}\n"
    )


def _spread(values: np.ndarray) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def _drops(records: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """Mean drop of the model that travels, that of the model in use, and the share of communications with a drop."""
    shared, used = [], []
    for a, b in zip(records, records[1:], strict=False):
        if b["round"] != a["round"] + 1:
            continue
        for client in plots.clients_of([b]):
            ends = {
                field: f"curve/{field}/client/{client}" for field in ("received", "trained", "own_before", "own_after")
            }
            if ends["trained"] in a and ends["received"] in b:
                shared.append(a[ends["trained"]] - b[ends["received"]])
            if ends["own_after"] in a and ends["own_before"] in b:
                used.append(a[ends["own_after"]] - b[ends["own_before"]])
    if not shared and not used:
        return None
    shared = shared or [0.0]  # nothing travels: nothing is lost
    return float(np.mean(shared)), float(np.mean(used or shared)), float(np.mean([drop > 0 for drop in shared]))


def _draw_retrogress(runs: Sequence[Run], path: Path) -> bool:
    """Each method's first run."""
    records = {name: log.read_records(group[0].path / log.METRICS) for name, group in _by_name(runs).items()}
    return plots.retrogress(records, path, runs[0].summary["main_metric"])
