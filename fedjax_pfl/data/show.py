"""A federation as a text table, as a picture, and as a short fingerprint."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_pfl.data.lazy import H5Images
from fedjax_pfl.data.types import SPLITS, Federation

WIDTH = 120
MOST_LINES = 100
MOST_COLUMNS = 200
MOST_CLASSES = 40
COLOURS = ("#1f5f8b", "#79b4d9", "#e0a458")


def describe(federation: Federation) -> str:
    """The table of clients x classes with the sizes of train, validation and test.

    A cell says how many of the client's rows have the class: in train/validation/test where the line has room, else in
    train. With more classes than fit a line says how many of them the client has, and which is the largest. Multi-label
    data count positives, masks the images that show the class.
    """
    f = federation
    splits = (f.train, f.validation, f.test)
    sizes = np.array([[len(rows) for rows in split] for split in splits])  # [3, N]
    # Of many clients the largest and the smallest are shown; before the rows of the others no text is made.
    shown = np.arange(len(f.train))
    if len(shown) > MOST_LINES:
        order, half = np.argsort(-sizes[0], kind="stable"), MOST_LINES // 4
        shown = np.concatenate([order[:half], order[-half:]])
    train = tally(f, f.train)
    held = (train > 0).sum(1)
    counts = [train[shown], *(tally(f, tuple(split[k] for k in shown)) for split in splits[1:])]
    # The last line is the sum over the clients; a set that all of them share counts once.
    once = [1 if _shared(split) else None for split in splits]
    whole = [train[: once[0]], *(tally(f, split[:m]) for split, m in zip(splits[1:], once[1:], strict=True))]
    total = np.stack([np.append(v[shown], v[:m].sum()) for v, m in zip(sizes, once, strict=True)])
    counts = np.stack([np.vstack([v, w.sum(0)]) for v, w in zip(counts, whole, strict=True)])  # [3, shown + 1, L]

    numbers = [[str(v) for v in line] for line in total.T]
    if f.noise.any():
        std = [*(f"{f.noise[k]:.3f}" for k in shown), ""]
        numbers = [[*line, value] for line, value in zip(numbers, std, strict=True)]
    head = ["client", "train", "valid", "test", *(["noise"] if f.noise.any() else [])]
    lines = [[name, *line] for name, line in zip([*(f.client_names[k] for k in shown), "all"], numbers, strict=True)]
    names = [name if len(name) <= 16 else name[:15] + "…" for name in f.class_names]
    own = [s for s in range(3) if not once[s]]
    cells = [["/".join(map(str, cell)) for cell in line] for line in counts[own].transpose(1, 2, 0)]
    note = "/".join(head[1 + s] for s in own)
    rows = [head + names, *(a + b for a, b in zip(lines, cells, strict=True))]
    legend = ""
    if _width(rows) > WIDTH:
        note = "train"
        rows = [head + names, *(a + list(map(str, b)) for a, b in zip(lines, counts[0], strict=True))]
    if _width(rows) > WIDTH:  # numbers instead of names
        rows[0] = head + [str(c) for c in range(len(names))]
        legend = "classes: " + ", ".join(f"{c} {name}" for c, name in enumerate(f.class_names))
    if _width(rows) > WIDTH:
        summary = [[str((line > 0).sum()), _largest(line, f.class_names)] for line in counts[0]]
        rows = [[*head, "classes", "largest"], *(a + b for a, b in zip(lines, summary, strict=True))]
        legend = ""

    text = _aligned(rows)
    if len(shown) < len(f.train):
        text.insert(1 + len(shown) // 2, f"... {len(f.train) - len(shown)} clients between ...")
    what = {"single": "rows", "multi": "positives", "mask": "images with the class"}[f.task]
    about = [
        f"{f.name}: {len(f.train)} clients, {total[0, -1]} train, {total[1, -1]} validation, {total[2, -1]} test rows; "
        f"{len(f.class_names)} classes; cells: {what}, {note}",
        f"train rows of a client: {_range(sizes[0])}; classes of a client: {_range(held)}",
    ]
    if once[2]:
        about.append(f"every client is tested on the same {sizes[2, 0]} rows")
    return "\n".join([*about, *([legend] if legend else []), "", *text])


def draw(federation: Federation, path: str | Path) -> None:
    """Write the picture of clients x classes (areas: training rows), under bars of each client's sizes.

    Of more than 200 clients 200 are shown, from the largest to the smallest; of more than 40 classes the 40 commonest.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    f = federation
    shown = np.arange(len(f.train))
    if len(shown) > MOST_COLUMNS:
        order = np.argsort([-len(rows) for rows in f.train], kind="stable")
        shown = order[np.linspace(0, len(order) - 1, MOST_COLUMNS).round().astype(int)]
    counts = tally(f, tuple(f.train[k] for k in shown))
    classes = np.sort(np.argsort(-counts.sum(0), kind="stable")[:MOST_CLASSES])
    counts = counts[:, classes]
    n = len(shown)
    width = float(np.clip(2.4 + 0.55 * n, 7.5, 18))
    height = float(np.clip(3.0 + 0.4 * len(classes), 4.5, 14))
    figure, (top, main) = plt.subplots(
        2,
        1,
        sharex=True,
        figsize=(width, height),
        height_ratios=[1, max(2.0, 0.3 * len(classes))],
        layout="constrained",
    )

    base = np.zeros(n)
    for name, split, colour in zip(SPLITS, (f.train, f.validation, f.test), COLOURS, strict=True):
        size = np.array([len(split[k]) for k in shown])
        if size.any() and not _shared(split):
            top.bar(np.arange(n), size, 0.7, base, label=name, color=colour)
            base += size
    top.set_ylabel("rows")
    top.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    title = [f"{f.name}: {len(f.train)} clients", f"{sum(map(len, f.train))} training rows"]
    title += [f"one test set of {len(f.test[0])} for all"] if _shared(f.test) else []
    title += [f"{n} clients shown, by size"] if n < len(f.train) else []
    title += [f"{len(classes)} of {len(f.class_names)} classes shown"] if len(classes) < len(f.class_names) else []
    top.set_title(", ".join(title))

    names = [f.client_names[k] for k in shown]
    step = int(np.ceil(n / 30))
    slanted = sum(len(name) + 2 for name in names[::step]) * 0.075 > width - 2.4  # inches
    main.set_xticks(
        np.arange(0, n, step), names[::step], rotation=30 if slanted else 0, ha="right" if slanted else "center"
    )
    main.set_yticks(np.arange(len(classes)), [f.class_names[c] for c in classes])
    main.set_xlim(-0.6, n - 0.4)
    main.set_ylim(len(classes) - 0.4, -0.6)
    main.grid(alpha=0.25)
    main.set_axisbelow(True)
    figure.canvas.draw()  # lays the axes out, so that the size of a cell is known
    box = main.get_window_extent()
    cell = np.array([box.width / n, box.height / len(classes)]) * 72 / figure.dpi  # points
    # Where columns are narrow the few largest bubbles may overlap, or all the others would be dots.
    diameter = float(min(np.sqrt(cell.prod()), 1.8 * cell.min(), 42)) * 0.9
    largest = max(int(counts.max(initial=0)), 1)

    def bubbles(x: Any, y: Any, value: np.ndarray, label: str | None = None) -> None:
        area = np.pi / 4 * diameter**2 * value / largest
        main.scatter(x, y, area, color=COLOURS[0], alpha=0.8, linewidths=0, label=label)

    k, c = np.nonzero(counts)
    bubbles(k, c, counts[k, c])
    if n <= 12 and cell[1] > 20:
        for x, y in zip(k, c, strict=True):
            radius = diameter / 2 * np.sqrt(counts[x, y] / largest)
            main.annotate(
                str(counts[x, y]),
                (x, y),
                (radius + 3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="0.3",
            )
    for value in dict.fromkeys(_round(largest / part) for part in (1, 4, 20)):
        bubbles([], [], np.array([value]), f"{value:g}")
    main.legend(
        title="training rows", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False,
        labelspacing=max(0.5, diameter / 20), handletextpad=max(0.5, diameter / 20), borderpad=max(0.5, diameter / 25),
    )  # fmt: skip
    figure.savefig(path, dpi=120)
    plt.close(figure)


def fingerprint(federation: Federation) -> str:
    """16 hexadecimal digits that change with any input, label, name, split or noise: what a run was trained on.

    Images that stay in their file are known by its size, its users and their labels alone.
    """
    f = federation
    digest = hashlib.sha256(repr((f.task, f.class_names, f.client_names)).encode())
    rows = [part for split in (f.train, f.validation, f.test) for part in split]
    if isinstance(f.x, H5Images):
        digest.update(f.x.fingerprint())
        first: dict[int, int] = {}  # tens of thousands of clients may share one test set: it is hashed once
        digest.update(repr([first.setdefault(id(part), i) for i, part in enumerate(rows)]).encode())
        arrays = [f.y, f.noise, *(rows[i] for i in first.values())]
    else:
        arrays = [f.x, f.y, f.noise, *rows]
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def tally(federation: Federation, rows: tuple[np.ndarray, ...]) -> np.ndarray:
    """[N, L]: how many of each client's rows have each class."""
    y, classes = federation.y, len(federation.class_names)
    if federation.task == "mask":
        y = np.stack([(y == c).any((1, 2)) for c in range(classes)], 1)
    done: dict[int, np.ndarray] = {}  # a test set that all clients share is counted once
    for part in rows:
        if id(part) not in done:
            single = federation.task == "single"
            done[id(part)] = np.bincount(y[part], minlength=classes) if single else y[part].sum(0, dtype=np.int32)
    return np.stack([done[id(part)] for part in rows])


def _shared(test: tuple[np.ndarray, ...]) -> bool:
    return len(test) > 1 and len(test[0]) > 0 and all(rows is test[0] for rows in test)


def _largest(counts: np.ndarray, names: tuple[str, ...]) -> str:
    c = int(counts.argmax())
    return f"{names[c]} {counts[c] / max(counts.sum(), 1):.0%}"


def _round(value: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is not above the value (1 at least)."""
    power = 10.0 ** np.floor(np.log10(max(value, 1)))
    return power * max(m for m in (1, 2, 5) if m * power <= max(value, 1))


def _range(values: np.ndarray) -> str:
    return f"{values.min()} ... {values.max()}, median {np.median(values):g}"


def _width(rows: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True))


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
