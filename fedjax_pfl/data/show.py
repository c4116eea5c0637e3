"""A federation as a text table, as a picture, and as a short fingerprint."""

import hashlib
from pathlib import Path

import numpy as np

from fedjax_pfl.data.types import Federation

WIDTH = 120
MOST_LINES = 100
MOST_COLUMNS = 200


def describe(federation: Federation) -> str:
    """The table of clients x classes with the sizes of train, validation and test.

    A cell says how many of the client's rows have the class: in train/validation/test where the line has room, else in
    train. With more classes than fit a line says how many of them the client has, and which is the largest. Multi-label
    data count positives, masks the images that show the class.
    """
    f = federation
    splits = (f.train, f.validation, f.test)
    sizes = np.array([[len(rows) for rows in split] for split in splits])  # [3, N]
    counts = np.stack([tally(f, split) for split in splits])  # [3, N, L]
    # The last line is the sum over the clients; a set that all of them share counts once.
    once = [1 if _shared(split) else None for split in splits]
    total = np.stack([np.append(v, v[:m].sum()) for v, m in zip(sizes, once, strict=True)])
    counts = np.stack([np.vstack([v, v[:m].sum(0)]) for v, m in zip(counts, once, strict=True)])

    numbers = [[str(v) for v in line] for line in total.T]
    if f.noise.any():
        numbers = [line + [std] for line, std in zip(numbers, [*(f"{v:.3f}" for v in f.noise), ""], strict=True)]
    head = ["client", "train", "valid", "test", *(["noise"] if f.noise.any() else [])]
    lines = [[name, *line] for name, line in zip([*f.client_names, "all"], numbers, strict=True)]
    names = [name if len(name) <= 16 else name[:15] + "…" for name in f.class_names]
    cells = [["/".join(map(str, cell)) for cell in line] for line in counts.transpose(1, 2, 0)]
    note = "train/valid/test"
    rows = [head + names, *(a + b for a, b in zip(lines, cells, strict=True))]
    if _width(rows) > WIDTH:
        note = "train"
        rows = [head + names, *(a + list(map(str, b)) for a, b in zip(lines, counts[0], strict=True))]
    if _width(rows) > WIDTH:
        summary = [[str((line > 0).sum()), _largest(line, f.class_names)] for line in counts[0]]
        rows = [[*head, "classes", "largest"], *(a + b for a, b in zip(lines, summary, strict=True))]

    text = _aligned(rows)
    if len(f.train) > MOST_LINES:
        order = np.argsort(-sizes[0], kind="stable")
        half = MOST_LINES // 4
        text = [text[0], *(text[1 + k] for k in order[:half]), f"... {len(order) - 2 * half} clients between ..."] + [
            text[k] for k in [*(1 + order[-half:]), -1]
        ]
    what = {"single": "rows", "multi": "positives", "mask": "images with the class"}[f.task]
    held = (counts[0, :-1] > 0).sum(1)
    about = [
        f"{f.name}: {len(f.train)} clients, {total[0, -1]} train, {total[1, -1]} validation, {total[2, -1]} test rows; "
        f"{len(f.class_names)} classes; cells: {what}, {note}",
        f"train rows of a client: {_range(sizes[0])}; classes of a client: {_range(held)}",
    ]
    if once[2]:
        about.append(f"every client is tested on the same {sizes[2, 0]} rows")
    return "\n".join([*about, "", *text])


def draw(federation: Federation, path: str | Path) -> None:
    """Write the picture of clients x classes (areas: training rows), under bars of each client's sizes.

    With more than 200 clients, 200 of them from the largest to the smallest.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    f = federation
    n, classes = len(f.train), len(f.class_names)
    shown = np.arange(n)
    if n > MOST_COLUMNS:
        order = np.argsort([-len(rows) for rows in f.train], kind="stable")
        shown = order[np.linspace(0, n - 1, MOST_COLUMNS).round().astype(int)]
    counts = tally(f, f.train)[shown]
    shared = _shared(f.test)
    splits = [("train", f.train), ("validation", f.validation), *([] if shared else [("test", f.test)])]

    width = float(np.clip(2.4 + 0.55 * len(shown), 7.5, 18))
    height = float(np.clip(3.0 + 0.4 * classes, 4.5, 14))
    figure, (top, main) = plt.subplots(
        2, 1, sharex=True, figsize=(width, height), height_ratios=[1, max(2.0, 0.3 * classes)], layout="constrained"
    )
    base = np.zeros(len(shown))
    for (label, split), colour in zip(splits, ("#1f5f8b", "#79b4d9", "#e0a458"), strict=False):
        size = np.array([len(split[k]) for k in shown])
        if size.any():
            top.bar(np.arange(len(shown)), size, 0.7, base, label=label, color=colour)
        base += size
    top.set_ylabel("rows")
    top.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    top.set_title(
        f"{f.name}: {n} clients, {sum(map(len, f.train))} training rows"
        + (f" ({len(shown)} clients shown, by size)" if len(shown) < n else "")
        + (f", one test set of {len(f.test[0])} for all" if shared else "")
    )

    main.set_xlim(-0.6, len(shown) - 0.4)
    main.set_ylim(classes - 0.4, -0.6)
    few = len(shown) <= 30
    short = [f.client_names[k] for k in shown]
    slanted = few and sum(len(name) + 2 for name in short) * 0.075 > width - 2.4
    step = 1 if few else int(np.ceil(len(shown) / 20))
    main.set_xticks(
        np.arange(0, len(shown), step),
        short[::step],
        rotation=30 if slanted or not few else 0,
        ha="right" if slanted or not few else "center",
    )
    every = int(np.ceil(classes / 40))
    main.set_yticks(np.arange(0, classes, every), f.class_names[::every])
    main.set_ylabel({"single": "class", "multi": "label", "mask": "class shown"}[f.task])
    main.grid(alpha=0.25)
    main.set_axisbelow(True)
    figure.canvas.draw()  # lays the axes out, so that a cell's size in points is known
    box = main.get_window_extent()
    cell = 72 / figure.dpi * min(box.width / len(shown), box.height / classes)
    largest = max(int(counts.max(initial=0)), 1)
    full = np.pi / 4 * (0.92 * min(cell, 60)) ** 2  # area of the largest bubble
    k, c = np.nonzero(counts)
    main.scatter(k, c, s=full * counts[k, c] / largest, color="#1f5f8b", alpha=0.85, linewidths=0)
    for value in sorted({largest, max(largest // 4, 1), max(largest // 20, 1)}, reverse=True):
        main.scatter([], [], s=full * value / largest, color="#1f5f8b", label=str(value), linewidths=0)
    main.legend(
        title="train rows", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, labelspacing=max(0.5, cell / 24)
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def fingerprint(federation: Federation) -> str:
    """16 hexadecimal digits that change with any input, label, name, split or noise: what a run was trained on."""
    f = federation
    digest = hashlib.sha256(repr((f.task, f.class_names, f.client_names)).encode())
    rows = [part for split in (f.train, f.validation, f.test) for part in split]
    for array in (f.x, f.y, f.noise, *rows):
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
            done[id(part)] = np.bincount(y[part], minlength=classes) if single else y[part].sum(0, dtype=np.int64)
    return np.stack([done[id(part)] for part in rows])


def _shared(test: tuple[np.ndarray, ...]) -> bool:
    return len(test) > 1 and len(test[0]) > 0 and all(rows is test[0] for rows in test)


def _largest(counts: np.ndarray, names: tuple[str, ...]) -> str:
    c = int(counts.argmax())
    return f"{names[c]} {counts[c] / max(counts.sum(), 1):.0%}"


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
