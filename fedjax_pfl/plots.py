"""Plots of one run and of several. Where matplotlib is missing, one line says so and nothing is drawn."""

import sys
from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_pfl import metrics

Record = Mapping[str, Any]
Curve = tuple[Sequence[int], Sequence[float]]
"""Rounds, and the value at each."""

# Okabe and Ito's palette, told apart by colour-blind readers too, without its yellow (too pale for a line); past its
# end the line style changes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
GREY = "#9A9A9A"
TRUE, PREDICTED = "#56B4E9", "#F0E442"  # outlines on an image
MAX_LINES, MAX_BARS = 10, 20  # clients drawn one by one
MAX_CLASSES, ENDS, MAX_LABELS = (
    40,
    10,
    30,
)  # classes drawn one by one, else this many best and worst; labels of one image
WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "macro AUC",
    "loss": "loss [nats]",
    **{f"{kind}_{short}": f"{kind}-{short}".upper() for kind in "co" for short in ("ap", "p", "r", "f1")},
    "dice": "Dice",
    "iou": "IoU",
    "hausdorff95": "Hausdorff distance, 95 % [pixels]",
}


def training(records: Sequence[Record], path: Path, metric: str | None = None) -> bool:
    """Draw one run: its training loss, its validation metric over rounds, and its test metric by client.

    The validation panel has the mean over clients, the band from the worst to the best client and, up to ten clients, a
    thin line for each; a run without validation data has its test metric there. The test panel shows the last evaluated
    round, each model in its own colour.

    Args:
        records: the run's metrics, as in `metrics.jsonl`.
        path: the PNG to write; its folder is made.
        metric: key to draw, e.g. `validation/personal/macro_f1`; by default a main metric found in the records.

    Returns:
        Whether it was drawn: False, with a line on standard error, where matplotlib is missing.
    """
    figure = _figure((13, 4))
    if figure is None:
        return False
    loss_axes, metric_axes, client_axes = figure.subplots(1, 3)
    metric = metric or next((k for r in records for k in r if _is_main(k)), "validation/personal/loss")
    short = metric.rsplit("/", 1)[-1]

    key = next((k for r in records for k in r if k.startswith("train/") and k.endswith("loss")), "train/loss")
    _line(loss_axes, curve(records, key), color=COLOURS[0])
    loss_axes.set_xlabel("round")
    _dress(loss_axes, "Training loss", _words(key))

    of_test = metric.replace("validation/", "test/", 1)
    if curve(records, of_test)[0] and not curve(records, metric)[0]:
        metric = of_test
    split, model = metric.split("/")[:2]
    _over_rounds(metric_axes, records, metric)
    _dress(metric_axes, f"{split.capitalize()}, {model} model", _words(short))

    tested = [r for r in records if any(k.startswith("test/") for k in r)]
    _by_client(client_axes, tested[-1] if tested else {}, short)
    title = f"Test by client, round {tested[-1]['round']}" if tested else "Test by client"
    _dress(client_axes, title, _words(short))
    return _save(figure, path)


def compare(runs: Mapping[str, Sequence[Curve]], path: Path, metric: str) -> bool:
    """Draw the curves of several methods: the mean over seeds, and a band of one standard deviation (ddof 1) around it.

    More methods than can be told apart are drawn in panels of some each, in the given order.

    Args:
        runs: for each label one curve per seed; seeds are averaged over the rounds that all of them evaluated.
        path: the PNG to write; its folder is made.
        metric: name of what the curves show, e.g. `macro_f1`.

    Returns:
        Whether it was drawn: False, with a line on standard error, where matplotlib is missing.
    """
    size = len(runs) if len(runs) <= 2 * len(COLOURS) else len(COLOURS)
    panels = [list(runs)[i : i + size] for i in range(0, len(runs), size)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure((8.5, 4.8) if columns == 1 else (13, 3.2 * rows))
    if figure is None:
        return False
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, labels in zip(grid, panels, strict=False):
        banded = [_over_seeds(axes, i, label, runs[label]) for i, label in enumerate(labels)]
        note = "; band: ± one standard deviation over seeds" if any(banded) else ""
        axes.set_xlabel("round")
        _dress(axes, f"Validation, mean over clients{note}", _words(metric))
        _legend(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return _save(figure, path)


def _over_seeds(axes: Any, index: int, label: str, curves: Sequence[Curve]) -> bool:
    """The mean of a method's curves and its band; whether there is a band."""
    by_round = [dict(zip(*points, strict=True)) for points in curves]
    rounds = sorted(set.intersection(*map(set, by_round))) if by_round else []
    if not rounds:
        return False
    values = np.array([[values[r] for r in rounds] for values in by_round], np.float64)
    mean, colour = values.mean(0), COLOURS[index % len(COLOURS)]
    style = STYLES[index // len(COLOURS) % len(STYLES)]
    seeds = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
    _line(axes, (rounds, mean), color=colour, linestyle=style, label=f"{label}{seeds}")
    if len(curves) > 1:
        deviation = values.std(0, ddof=1)
        axes.fill_between(rounds, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
    return len(curves) > 1


def retrogress(runs: Mapping[str, Sequence[Record]], path: Path, metric: str) -> bool:
    """Draw what each communication takes from clients, a row of panels per method, a panel per client.

    Each round is a line from the score before local training to the one after it; a red line goes down to the next round's
    first score where the communication made the model worse, a grey one up where it made it better. A model that the client
    keeps to itself is drawn besides, in one colour.

    Args:
        runs: for each label its records, with keys `curve/...` (config.eval.retrogress).
        path: the PNG to write; its folder is made.
        metric: name of the scores.

    Returns:
        Whether it was drawn: False where no record has such a key, or, with a line on standard error, without matplotlib.
    """
    drops = {name: drop for name, records in runs.items() if (drop := clients_of(records))}
    if not drops:
        return False
    columns = min(max(len(clients) for clients in drops.values()), MAX_LINES)
    figure = _figure((1.5 + 3.4 * columns, 0.8 + 2.5 * len(drops)))
    if figure is None:
        return False
    panels = figure.subplots(len(drops), columns, squeeze=False, sharex=True, sharey=True)
    for row, (name, clients) in zip(panels, drops.items(), strict=True):
        for axes, client in zip(row, clients, strict=False):
            _sawtooth(axes, runs[name], client)
            axes.set_xlabel("round")
            _dress(axes, f"{name}, client {client}", _words(metric))
        for axes in row[len(clients) :]:
            axes.set_axis_off()
    shown: dict[str, Any] = {}  # no panel need have lines of every kind
    for axes in panels.flat:
        shown |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), frameon=False, fontsize=8)
    return _save(figure, path)


def clients_of(records: Sequence[Record]) -> list[str]:
    """The clients that have a curve in these records, by name."""
    prefixes = ("curve/received/client/", "curve/own_before/client/")
    return sorted({k.removeprefix(p) for r in records for p in prefixes for k in r if k.startswith(p)})


def described(records: Sequence[Record], folder: Path) -> bool:
    """Draw what the server thinks of each client over the rounds, such as KD3A's domain weights: a picture for each number.

    Args:
        records: with keys `server/<what>/client/<name>`; what has none is not drawn.
        folder: of `<what>.png`.

    Returns:
        Whether any was drawn.
    """
    keys = dict.fromkeys(key for record in records for key in record if key.startswith("server/"))
    drawn = False
    for what in dict.fromkeys(key.split("/")[1] for key in keys):
        figure = _figure((8, 3.6))
        if figure is None:
            return drawn
        axes = figure.subplots()
        axes.set_xlabel("round")
        prefix = f"server/{what}/client/"
        clients = [key for key in keys if key.startswith(prefix)][:MAX_LINES]
        for index, key in enumerate(clients):
            style = "-" if index < len(COLOURS) else "--"
            label = _short(key.removeprefix(prefix))
            _line(axes, curve(records, key), color=COLOURS[index % len(COLOURS)], linestyle=style, label=label)
        axes.set_ylim(bottom=0)
        _dress(axes, f"{_words(what).capitalize()} of each client", _words(what))
        _legend(axes)
        drawn = _save(figure, folder / f"{what}.png")
    return drawn


def _sawtooth(axes: Any, records: Sequence[Record], client: str) -> None:
    """One client's scores over the rounds, before and after local training, and the steps between rounds."""

    def pairs(before: str, after: str) -> list[tuple[int, float, float]]:
        keys = [f"curve/{field}/client/{client}" for field in (before, after)]
        return [(r["round"], r[keys[0]], r[keys[1]]) for r in records if all(r.get(key) is not None for key in keys)]

    shared, own = pairs("received", "trained"), pairs("own_before", "own_after")
    for i, (round, before, after) in enumerate(shared):
        label = "local training" if i == 0 else None
        axes.plot(
            [round - 0.7, round],
            [before, after],
            color=COLOURS[0],
            linewidth=1.6,
            marker="o",
            markersize=2.5,
            label=label,
        )
    steps = [(a[0], b[0] - 0.7, a[2], b[1]) for a, b in zip(shared, shared[1:], strict=False)]
    for worse, colour, label in ((True, COLOURS[1], "communication, worse"), (False, GREY, "communication, no worse")):
        chosen = [step for step in steps if (step[3] < step[2]) == worse]
        for i, (x0, x1, y0, y1) in enumerate(chosen):
            axes.plot([x0, x1], [y0, y1], color=colour, linewidth=1.4, linestyle=":", label=label if i == 0 else None)
    if own:
        points = [point for round, before, after in own for point in ((round - 0.7, before), (round, after))]
        axes.plot(*zip(*points, strict=True), color=COLOURS[2], linewidth=1.6, label="personal model")


def _over_rounds(axes: Any, records: Sequence[Record], metric: str) -> None:
    clients = {k.rsplit("/client/", 1)[1]: k for r in records for k in r if k.startswith(f"{metric}/client/")}
    curves = {client: curve(records, key) for client, key in clients.items()}
    by_round: dict[int, list[float]] = {}
    for rounds, values in curves.values():
        for r, value in zip(rounds, values, strict=True):
            by_round.setdefault(r, []).append(value)
    if len(curves) > 1:
        rounds = sorted(by_round)
        low, high = [min(by_round[r]) for r in rounds], [max(by_round[r]) for r in rounds]
        axes.fill_between(rounds, low, high, color=COLOURS[0], alpha=0.15, linewidth=0, label="worst to best client")
    if len(curves) <= MAX_LINES:
        for index, (client, points) in enumerate(curves.items(), 1):
            style = STYLES[1:][index // len(COLOURS) % 3]
            _line(axes, points, color=COLOURS[index % len(COLOURS)], linestyle=style, linewidth=1, label=client)
    _line(axes, curve(records, metric), color=COLOURS[0], linewidth=2.4, label="mean over clients")
    axes.set_xlabel("round")
    _legend(axes, below=True)


def _by_client(axes: Any, record: Record, metric: str) -> None:
    models = {k.split("/")[1]: {} for k in record if k.startswith("test/") and f"/{metric}/client/" in k}
    for model, values in models.items():
        prefix = f"test/{model}/{metric}/client/"
        values.update({k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)})
    if not models:
        axes.text(0.5, 0.5, "not evaluated", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set_xticks([])
        return
    clients = list(dict.fromkeys(client for values in models.values() for client in values))
    few = len(clients) <= MAX_BARS
    width = 0.8 / len(models)
    for index, (model, values) in enumerate(models.items()):
        # An undefined value draws nothing, rather than a bar of height 0.
        heights = np.array([values.get(client) for client in clients], np.float64)
        style = {"color": COLOURS[index % len(COLOURS)], "label": f"{model} model"}
        if few:
            axes.bar(np.arange(len(clients)) + (index - (len(models) - 1) / 2) * width, heights, width * 0.92, **style)
        else:
            axes.plot(np.arange(1, len(clients) + 1), np.sort(heights), **style)
    if few:
        crowded = sum(map(len, clients)) > 30
        axes.set_xticks(
            range(len(clients)), clients, rotation=40 if crowded else 0, ha="right" if crowded else "center"
        )
    axes.set_xlabel("client" if few else "clients, sorted by value")
    _legend(axes)


def per_class_ap(names: Sequence[str], ap: np.ndarray, positives: np.ndarray, path: Path) -> bool:
    """Draw the average precision of each class, the best first; with many classes its curve, and the best and worst ten.

    Args:
        names, ap, positives: of each of the C classes: name, average precision (NaN: no positive, not drawn), number of
            positives.
        path: the PNG to write; its folder is made.

    Returns:
        Whether it was drawn: False, with a line on standard error, where matplotlib is missing.
    """
    ap = np.asarray(ap, np.float64)
    order = np.argsort(-ap, kind="stable")[: int(np.isfinite(ap).sum())]
    labels = [f"{_short(str(names[i]))} ({positives[i]:,})" for i in order]
    ranked = ap[order]
    many = len(order) > MAX_CLASSES
    figure = _figure((10, 5) if many else (7, 1.4 + 0.22 * max(4, len(order))))
    if figure is None:
        return False
    mean = (
        f"C-AP {100 * ranked.mean():.1f} %, mean over {len(order)} classes" if len(order) else "no class has positives"
    )
    left_out = f"; {len(ap) - len(order)} without positives left out" if len(order) < len(ap) else ""
    figure.suptitle(f"{mean}{left_out}", fontsize=10, x=0.01, ha="left")
    if many:
        curve_axes, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
        _line(curve_axes, (list(range(1, len(order) + 1)), list(100 * ranked)), color=COLOURS[0])
        curve_axes.axhline(100 * ranked.mean(), color=GREY, linestyle="--", linewidth=1)
        curve_axes.set(xlim=(1, len(order)), ylim=(0, 100), xlabel="rank of the class")
        _dress(curve_axes, "All classes", "average precision [%]")
        labels, ranked = [*labels[:ENDS], "⋮", *labels[-ENDS:]], np.array([*ranked[:ENDS], np.nan, *ranked[-ENDS:]])
        _bars(bars, labels, 100 * ranked, f"The {ENDS} best and the {ENDS} worst (positives)")
    else:
        bars = figure.subplots()
        _bars(bars, labels, 100 * ranked, "Average precision by class (positives)")
        bars.axvline(100 * ranked.mean() if len(order) else 0, color=GREY, linestyle="--", linewidth=1)
    bars.set_xlabel("average precision [%]")
    return _save(figure, path)


def attention(
    image: np.ndarray,
    names: Sequence[str],
    labels_to_labels: np.ndarray,
    path: Path,
    probabilities: np.ndarray,
    targets: np.ndarray | None = None,
) -> bool:
    """Draw one image, how its labels attend to each other, and what is predicted; the most probable 30 labels at most.

    Args:
        image: [H, W], [H, W, 1] or [H, W, 3]; uint8, or numbers that are drawn from their least to their greatest.
        names: of the C labels.
        labels_to_labels: [C, C], the attention weight of the row's label to the column's, e.g. the mean over the heads of
            the last layer.
        path: the PNG to write; its folder is made.
        probabilities: [C], predicted.
        targets: [C] in {0, 1}, drawn as the colour of the bars; None: not known.

    Returns:
        Whether it was drawn: False, with a line on standard error, where matplotlib is missing.
    """
    probabilities = np.asarray(probabilities, np.float64)
    order = np.argsort(-probabilities, kind="stable")[:MAX_LABELS]
    labels, n = [_short(str(names[i])) for i in order], len(order)
    side, text = 0.22 * max(10, n), 0.07 * max(map(len, labels))  # inches: the matrix, and the longest label beside it
    widths = (max(2.6, 0.5 * side), side + text + 1.4, 2.2 + text)
    figure = _figure((sum(widths), side + text + 1.2))
    if figure is None:
        return False
    image_axes, matrix, bars = figure.subplots(1, 3, width_ratios=widths)
    image_axes.imshow(_picture(image), cmap="gray")
    image_axes.set_axis_off()
    image_axes.set_title("Image", fontsize=10, loc="left")

    weights = np.asarray(labels_to_labels, np.float64)[np.ix_(order, order)]
    heat = matrix.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
    matrix.set_xticks(range(n), labels, rotation=90, fontsize=8)
    matrix.set_yticks(range(n), labels, fontsize=8)
    matrix.set(xlabel="attended label", ylabel="attending label")
    of = f", {n} most probable of {len(names)} labels" if n < len(names) else ""
    matrix.set_title(f"Attention between labels{of}", fontsize=10, loc="left")
    figure.colorbar(heat, ax=matrix, shrink=0.8, label="attention weight")

    _bars(bars, labels, 100 * probabilities[order], "Predicted")
    bars.axvline(50, color=GREY, linestyle="--", linewidth=1)
    bars.set_xlabel("probability [%]")
    if targets is not None:
        from matplotlib.patches import Patch

        for bar, target in zip(bars.patches, np.asarray(targets)[order], strict=True):
            bar.set_color(COLOURS[2] if target else GREY)
        keys = [Patch(color=COLOURS[2], label="in the image"), Patch(color=GREY, label="not in it")]
        figure.legend(handles=keys, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return _save(figure, path)


def segmentation(rows: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> bool:
    """Draw images with the outlines of their true and predicted foreground, a row for each client.

    Args:
        rows: client -> images [m, H, W, channels] (of three channels that aren't bytes the middle one is drawn, in grey),
            masks and predicted masks [m, H, W], class 0 being the background.
        path: the PNG to write; its folder is made.

    Returns:
        Whether it was drawn: False, with a line on standard error, where matplotlib is missing.
    """
    columns = max(len(images) for images, _, _ in rows.values())
    figure = _figure((0.6 + 2.2 * columns, 0.6 + 2.35 * len(rows)))
    if figure is None:
        return False
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (client, (images, truths, predictions)) in zip(grid, rows.items(), strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, image, truth, predicted in zip(line, images, truths, predictions, strict=False):
            if image.dtype != np.uint8 or image.shape[-1] != 3:  # slices with their neighbours, grey images
                image = image[..., image.shape[-1] // 2]
            limits = {"vmin": 0, "vmax": 255} if image.dtype == np.uint8 else {}
            axes.imshow(image, cmap="gray", **limits)
            # At half the way from pixel to pixel; the frame closes outlines that touch the image's edge.
            ends = [np.arange(-1, n + 1) for n in truth.shape]
            for mask, colour, style in ((truth, TRUE, "-"), (predicted, PREDICTED, "--")):
                if (mask > 0).any():
                    framed = np.pad((mask > 0).astype(float), 1)
                    axes.contour(ends[1], ends[0], framed, [0.5], colors=colour, linewidths=1.4, linestyles=style)
            size = (truth > 0).sum() + (predicted > 0).sum()
            dice = f"{2 * ((truth > 0) & (truth == predicted)).sum() / size:.2f}" if size else "undefined"
            axes.set_title(f"Dice {dice}", fontsize=8)
        line[0].text(-0.06, 0.5, client, rotation=90, ha="right", va="center", fontsize=9, transform=line[0].transAxes)
    for colour, style, name in ((TRUE, "-", "true"), (PREDICTED, "--", "predicted")):
        grid[0, 0].plot([], [], color=colour, linestyle=style, label=name)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _save(figure, path)


def _bars(axes: Any, labels: Sequence[str], percent: np.ndarray, title: str) -> None:
    """Horizontal bars, the first on top; NaN draws none."""
    axes.barh(np.arange(len(labels)), percent, 0.75, color=COLOURS[0])
    for i, value in enumerate(percent):
        if np.isfinite(value):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # over the dashed line
            axes.text(value + 1.5, i, f"{value:.1f}", va="center", fontsize=7, bbox=box)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(ylim=(max(1, len(labels)) - 0.5, -0.5), xlim=(0, 116), xticks=range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _short(name: str, most: int = 28) -> str:
    """A name that fits beside a bar; matplotlib would read a dollar sign as the start of a formula."""
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")


def _picture(image: np.ndarray) -> np.ndarray:
    """An image as matplotlib draws it: [H, W] or [H, W, 3], uint8 or 0..1."""
    image = np.asarray(image)
    image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    if image.dtype == np.uint8:
        return image
    image = image.astype(np.float64)
    return (image - image.min()) / max(float(np.ptp(image)), 1e-12)


def curve(records: Sequence[Record], key: str) -> Curve:
    """The values of `key` over rounds, where it is defined."""
    defined = [(r["round"], r[key]) for r in records if r.get(key) is not None]
    return [r for r, _ in defined], [value for _, value in defined]


def _is_main(key: str) -> bool:
    return key.startswith("validation/") and key.count("/") == 2 and key.split("/")[2] in metrics.MAIN.values()


def _words(metric: str) -> str:
    short = metric.rsplit("/", 1)[-1]
    return WORDS.get(short, short.replace("_", " "))


def _line(axes: Any, points: Curve, **style: Any) -> None:
    marker = "o" if len(points[0]) <= 15 else ""  # few points, or a single one, must be seen
    axes.plot(*points, **{"linewidth": 1.8, "marker": marker, "markersize": 3, **style})


def _dress(axes: Any, title: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(y)
    if axes.get_xlabel() == "round":  # whole numbers, even where there is a single one
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Any, below: bool = False) -> None:
    """A legend outside the data."""
    if not axes.get_legend_handles_labels()[0]:
        return
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "handlelength": 3}  # long enough to show the dashes
    if below:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, **style)
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), **style)


def _figure(size: tuple[float, float]) -> Any:
    if util.find_spec("matplotlib") is None:
        print("plots not drawn: matplotlib is missing (pip install matplotlib)", file=sys.stderr)
        return None
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # A Figure without pyplot has no global state and needs no display: it is drawn by Agg.
    return Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))


def _save(figure: Any, path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True
