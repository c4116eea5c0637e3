"""Metrics of one client's split, on the host in NumPy, and their summary over clients.

Each equals scikit-learn's on the same scores. What can't be computed is NaN, never a guess.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedjax_pfl.registry import lookup

Metrics = dict[str, float]
NAMES: dict[str, tuple[str, ...]] = {
    "single": ("accuracy", "balanced_accuracy", "macro_f1", "auc", "loss"),
    "multi": ("c_ap", "o_ap", "cf1", "of1", "subset_accuracy", "hamming_accuracy", "loss"),
    "mask": ("dice", "pixel_accuracy", "loss"),
}
MAIN = {"single": "macro_f1", "multi": "c_ap", "mask": "dice"}


def single_label(scores: np.ndarray, y: np.ndarray) -> Metrics:
    """Metrics of logits [m, C] with labels [m] in 0..C-1; all NaN for m = 0.

    `balanced_accuracy` is the mean recall over the classes present in `y`; `macro_f1` the mean over the classes that
    occur in targets or predictions; `auc` the macro one-vs-rest area over all C classes on softmax scores (for C = 2
    that of class 1), NaN when a class is absent from `y`; `loss` the mean cross entropy in nats.
    """
    m, n_classes = scores.shape
    if m == 0:
        return _undefined("single")
    y = np.asarray(y, np.int64)
    z = _finite(scores)
    predicted = z.argmax(1)
    confusion = np.bincount(y * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    hits, actual, claimed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    seen = actual + claimed > 0
    return {
        "accuracy": float(hits.sum() / m),
        "balanced_accuracy": float(np.mean(hits[actual > 0] / actual[actual > 0])),
        "macro_f1": float(np.mean(2 * hits[seen] / (actual + claimed)[seen])),
        "auc": _macro_auc(_softmax(z), y),
        "loss": _cross_entropy(scores, y),
    }


def multi_label(scores: np.ndarray, y: np.ndarray) -> Metrics:
    """Metrics of logits [m, L] with targets [m, L] in {0, 1}; all NaN for m = 0.

    A label is predicted where sigma(z) >= 0.5. `c_ap` is the mean average precision over labels with a positive (NaN
    when none has one), `o_ap` that of all (example, label) pairs taken together; `cf1` the harmonic mean of the
    class-averaged precision and recall, not the mean of F1s; `of1` the same on totals (both 0 where they are 0/0).
    """
    if len(scores) == 0:
        return _undefined("multi")
    y = np.asarray(y).astype(bool)
    with np.errstate(over="ignore"):
        p = 1 / (1 + np.exp(-_finite(scores)))
    predicted = p >= 0.5
    hits, actual, claimed = (y & predicted).sum(0), y.sum(0), predicted.sum(0)
    ap = _average_precision(p, y)[actual > 0]
    return {
        "c_ap": float(ap.mean()) if ap.size else np.nan,
        "o_ap": float(_average_precision(p.reshape(-1, 1), y.reshape(-1, 1))[0]),
        "cf1": _harmonic(float(_ratio(hits, claimed).mean()), float(_ratio(hits, actual).mean())),
        "of1": float(_ratio(2 * hits.sum(), actual.sum() + claimed.sum())),
        "subset_accuracy": float((y == predicted).all(1).mean()),
        "hamming_accuracy": float((y == predicted).mean()),
        "loss": _binary_cross_entropy(scores, y),
    }


def mask(scores: np.ndarray, y: np.ndarray) -> Metrics:
    """Metrics of foreground logits [m, H, W] or [m, H, W, 1] with masks [m, H, W] in {0, 1}; all NaN for m = 0.

    `dice` is 2|P & G| / (|P| + |G|) averaged over the images that have foreground in mask or prediction; NaN when none
    has.
    """
    if len(scores) == 0:
        return _undefined("mask")
    y = np.asarray(y).astype(bool).reshape(len(y), -1)
    scores = scores.reshape(y.shape)
    predicted = _finite(scores) >= 0
    size = y.sum(1) + predicted.sum(1)
    dice = 2 * (y & predicted).sum(1)[size > 0] / size[size > 0]
    return {
        "dice": float(dice.mean()) if dice.size else np.nan,
        "pixel_accuracy": float((y == predicted).mean()),
        "loss": _binary_cross_entropy(scores, y),
    }


TASKS: dict[str, Callable[[np.ndarray, np.ndarray], Metrics]] = {
    "single": single_label,
    "multi": multi_label,
    "mask": mask,
}


def for_task(task: str) -> Callable[[np.ndarray, np.ndarray], Metrics]:
    """The function (logits, targets) -> metrics of a task: `single`, `multi` or `mask`.

    Raises:
        UserError: an unknown task.
    """
    return lookup(TASKS, task, "task")


def names(task: str) -> tuple[str, ...]:
    """The metrics of a task, in the order in which `for_task(task)` returns them."""
    for_task(task)
    return NAMES[task]


def main(task: str) -> str:
    """The metric that chooses the best round, unless the config names another."""
    for_task(task)
    return MAIN[task]


def lower_is_better(metric: str) -> bool:
    """True for losses, also under a key such as `test/personal/loss`."""
    return metric.rsplit("/", 1)[-1].endswith("loss")


def summarise(per_client: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> dict[str, float | None]:
    """Summarise {client: {metric: value}} over clients, as flat keys for the metrics file.

    For each metric: `<metric>` (unweighted mean over clients), `<metric>/weighted` (by `sizes`, the clients' numbers
    of examples), `<metric>/worst` (the highest loss, the lowest of all else), `<metric>/std` (spread over clients,
    ddof 0), `<metric>/client/<name>` for each, and, where some client's value is undefined (not finite),
    `<metric>/undefined`, the number of such clients. An undefined value is None and left out of the others.
    """
    summary: dict[str, float | None] = {}
    for metric in dict.fromkeys(metric for values in per_client.values() for metric in values):
        values = np.array([values.get(metric, np.nan) for values in per_client.values()], np.float64)
        weights = np.array([sizes[client] for client in per_client], np.float64)
        defined = np.isfinite(values)
        v, w = values[defined], weights[defined]
        worst = np.max if lower_is_better(metric) else np.min
        summary[metric] = float(v.mean()) if v.size else None
        summary[f"{metric}/weighted"] = float(v @ w / w.sum()) if w.sum() > 0 else None
        summary[f"{metric}/worst"] = float(worst(v)) if v.size else None
        summary[f"{metric}/std"] = float(v.std()) if v.size else None
        for client, value in zip(per_client, values, strict=True):
            summary[f"{metric}/client/{client}"] = float(value) if np.isfinite(value) else None
        if not defined.all():
            summary[f"{metric}/undefined"] = int((~defined).sum())
    return summary


def _undefined(task: str) -> Metrics:
    return dict.fromkeys(NAMES[task], np.nan)


def _finite(scores: np.ndarray) -> np.ndarray:
    """Logits of a diverged model still rank: NaN -> 0, infinities -> the largest float.

    The loss is computed on the logits as they are, so it stays undefined and the divergence shows.
    """
    return np.nan_to_num(np.asarray(scores, np.float64))


def _softmax(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the largest floats apart: the difference is -inf, its exponential 0
        e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _cross_entropy(scores: np.ndarray, y: np.ndarray) -> float:
    z = np.asarray(scores, np.float64)
    with np.errstate(invalid="ignore"):  # logits that aren't finite: NaN is the answer, not a warning
        z = z - z.max(1, keepdims=True)
        return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]))


def _binary_cross_entropy(scores: np.ndarray, y: np.ndarray) -> float:
    z = np.asarray(scores, np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.logaddexp(0, np.where(y, -z, z)).mean())


def _ratio(a: Any, b: Any) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(b) != 0)


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def _tie_ends(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last row index of each entry's group of equal neighbours, per column of [m, L] (sorted by column)."""
    m = len(ordered)
    rows = np.broadcast_to(np.arange(m).reshape(m, 1), ordered.shape)
    edge = ordered[1:] != ordered[:-1]
    side = np.ones((1, ordered.shape[1]), bool)
    first = np.maximum.accumulate(np.where(np.vstack([side, edge]), rows, 0), axis=0)
    last = np.minimum.accumulate(np.where(np.vstack([edge, side]), rows, m)[::-1], axis=0)[::-1]
    return first, last


def _macro_auc(p: np.ndarray, y: np.ndarray) -> float:
    """One-vs-rest area by ranks (Mann-Whitney), equal scores sharing their mean rank; mean over the C columns of p."""
    m, n_classes = p.shape
    counts = np.bincount(y, minlength=n_classes)
    if n_classes < 2 or (counts == 0).any():
        return np.nan
    p, classes = (p[:, 1:], np.array([1])) if n_classes == 2 else (p, np.arange(n_classes))
    order = p.argsort(0)
    first, last = _tie_ends(np.take_along_axis(p, order, 0))
    positive = y[order] == classes.reshape(1, -1)
    n = counts[classes]
    u = (((first + last) / 2 + 1) * positive).sum(0) - n * (n + 1) / 2
    return float((u / (n * (m - n))).mean())


def _average_precision(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum over thresholds of (R_n - R_{n-1}) P_n for each column of p [m, L]; equal scores share one threshold.

    NaN for a column without positives.
    """
    order = (-p).argsort(0)
    hits = np.take_along_axis(y, order, 0)
    _, last = _tie_ends(np.take_along_axis(p, order, 0))
    precision = np.take_along_axis(hits.cumsum(0), last, 0) / (last + 1)
    with np.errstate(invalid="ignore"):
        return (precision * hits).sum(0) / y.sum(0)
