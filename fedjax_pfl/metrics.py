"""Metrics of one client's split, on the host in NumPy, and their summary over clients.

Each equals scikit-learn's on the same scores. What can't be computed is NaN, never a guess. The multi-label ones that need
no ranking also come as sums (`counts`, `merge`, `from_counts`), which a device can add up batch by batch.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from fedjax_pfl.registry import lookup

Metrics = dict[str, float]
Either = Array | np.ndarray
NAMES: dict[str, tuple[str, ...]] = {
    "single": ("accuracy", "balanced_accuracy", "macro_f1", "auc", "loss"),
    "multi": (
        *("c_ap", "c_p", "c_r", "c_f1", "o_ap", "o_p", "o_r", "o_f1"),
        *("subset_accuracy", "hamming_accuracy", "example_f1", "loss"),
    ),
    "mask": ("dice", "iou", "hausdorff95", "pixel_accuracy", "loss"),
}
MAIN = {"single": "macro_f1", "multi": "c_ap", "mask": "dice"}
BLOCK = 2**20  # entries that the host converts to float64 at a time


class Counts(NamedTuple):
    """Sums over examples, which `from_counts` turns into metrics; those of two sets of examples add up.

    The integers are exact on a device without 64-bit types too: none counts more than the number of examples.
    """

    hits: Int[Either, " L"]  # claimed and actual
    claimed: Int[Either, " L"]  # predicted
    actual: Int[Either, " L"]  # positive
    entries: Int[Either, " L"]  # counted examples of the label
    loss: Float[Either, " L"]  # binary cross entropy, nats
    rows: Int[Either, ""]  # examples with a counted entry
    exact: Int[Either, ""]  # of those, the ones without an error
    claiming: Int[Either, ""]  # of those, the ones with a target or a prediction
    f1: Float[Either, ""]  # the sum of their F1


class Masks(NamedTuple):
    """What the metrics need of pixel logits: a byte a pixel and a number an image in place of C numbers a pixel."""

    predicted: Int[Either, "m H W"]  # uint8, the class with the largest logit
    loss: Float[Either, " m"]  # mean cross entropy over the pixels, nats


class Overlap(NamedTuple):
    """Sums over images for each foreground class 1..C-1; those of two sets of images add up."""

    dice: Float[Either, " C-1"]
    images: Int[Either, " C-1"]  # that have the class in mask or prediction: the others have no Dice


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


def multi_label(scores: np.ndarray, y: np.ndarray, unknown: np.ndarray | None = None) -> Metrics:
    """Metrics of logits [m, L] with targets [m, L] in {0, 1}; all NaN where nothing is counted (m = 0).

    `c_ap` is the mean average precision over the labels with a positive, `o_ap` that of all (example, label) pairs taken
    together; NaN where there is no positive. They rank the logits, so that scores which a sigmoid would round to 1 differ.

    A label is predicted where sigma(z) >= 0.5, that is where z >= 0. `c_p` and `c_r` are precision and recall averaged over
    ALL labels, `c_f1` their harmonic mean (not the mean of F1s); `o_p`, `o_r`, `o_f1` are the same of the totals. All six
    are 0 where they are 0/0. `example_f1` is the mean of 2 |Y & P| / (|Y| + |P|) over the examples with a target or a
    prediction, NaN without one. `subset_accuracy` is the share of examples without an error, `hamming_accuracy` of entries;
    `loss` the mean binary cross entropy in nats.

    Logits that aren't finite count as the finite ones next to them, NaN as 0; the loss stays undefined and shows them.

    Args:
        unknown: [m, L], True where the model did NOT know the label: only these entries are counted, in every metric.
            None: all.

    Source: the multi-label metrics of C-Tran (Lanchantin et al. 2021) and FedLGT (Liu et al. 2024).
    """
    z, y, unknown = _arrays(scores, y, unknown)
    ap = _class_ap(z, y, unknown)
    some = np.isfinite(ap)
    everything = (z.ravel(), y.ravel()) if unknown is None else (z[unknown], y[unknown])
    found = {
        "c_ap": float(ap[some].mean()) if some.any() else np.nan,
        "o_ap": _average_precision(*everything),
        **from_counts(_counts_in_blocks(z, y, unknown)),
    }
    return {name: found[name] for name in NAMES["multi"]}


def per_class(scores: np.ndarray, y: np.ndarray, unknown: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """For each of the L labels: `ap` (NaN without a positive), `precision`, `recall`, `f1` (0 where 0/0), `positives`.

    Arguments as in `multi_label`, whose `c_ap` is the mean of the defined `ap`, `c_p` and `c_r` those of `precision` and
    `recall`.
    """
    z, y, unknown = _arrays(scores, y, unknown)
    c = _counts_in_blocks(z, y, unknown)
    return {
        "ap": _class_ap(z, y, unknown),
        "precision": _ratio(c.hits, c.claimed),
        "recall": _ratio(c.hits, c.actual),
        "f1": _ratio(2 * c.hits, c.claimed + c.actual),
        "positives": np.asarray(c.actual),
    }


def counts(logits: Float[Either, "m L"], y: Shaped[Either, "m L"], mask: Bool[Either, "m ..."] | None = None) -> Counts:
    """The sums behind the metrics of a batch; it runs under `jit` and `vmap`, and on NumPy arrays.

    Args:
        logits, y: as in `multi_label`, y of any type.
        mask: what is counted: rows (False: padding) or entries (False: padding, or known to the model); None: all. What is
            not counted may hold anything.
    """
    xp: Any = np if isinstance(logits, np.ndarray) else jnp
    z: Any = logits.astype(xp.promote_types(logits.dtype, np.float32))
    counted: Any = xp.ones(z.shape, bool)
    if mask is not None:
        counted = counted & (mask if mask.ndim == 2 else mask[:, None])
    target = y.astype(bool) & counted
    claim = ~(z < 0) & counted  # NaN counts as 0
    hit, x = target & claim, xp.where(target, -z, z)
    loss = xp.maximum(x, 0) + xp.log1p(xp.exp(-abs(x)))
    size = (target.sum(1) + claim.sum(1)).astype(z.dtype)
    return Counts(
        hits=hit.sum(0),
        claimed=claim.sum(0),
        actual=target.sum(0),
        entries=counted.sum(0),
        loss=xp.where(counted, loss, 0).sum(0),
        rows=counted.any(1).sum(),
        exact=(counted.any(1) & (target == claim).all(1)).sum(),
        claiming=(size > 0).sum(),
        f1=(2 * hit.sum(1).astype(z.dtype) / xp.maximum(size, 1)).sum(),
    )


def merge(a: Counts, b: Counts) -> Counts:
    """The sums of both sets of examples."""
    return Counts(*(x + y for x, y in zip(a, b, strict=True)))


def from_counts(sums: Counts) -> Metrics:
    """The metrics of `multi_label` but `c_ap` and `o_ap`, on the host."""
    c = Counts(*(np.asarray(x, np.float64 if np.asarray(x).dtype.kind == "f" else np.int64) for x in sums))
    if not c.rows:
        return {name: np.nan for name in NAMES["multi"] if not name.endswith("_ap")}
    hits, claimed, actual, entries = c.hits.sum(), c.claimed.sum(), c.actual.sum(), c.entries.sum()
    precision, recall = float(_ratio(c.hits, c.claimed).mean()), float(_ratio(c.hits, c.actual).mean())
    return {
        "c_p": precision,
        "c_r": recall,
        "c_f1": _harmonic(precision, recall),
        "o_p": float(_ratio(hits, claimed)),
        "o_r": float(_ratio(hits, actual)),
        "o_f1": float(_ratio(2 * hits, actual + claimed)),
        "subset_accuracy": float(c.exact / c.rows),
        "hamming_accuracy": float(1 - (claimed + actual - 2 * hits) / entries),
        "example_f1": float(c.f1 / c.claiming) if c.claiming else np.nan,
        "loss": float(c.loss.sum() / entries),
    }


def masks(logits: Float[Either, "m H W C"], y: Int[Either, "m H W"]) -> Masks:
    """What `mask` needs of the logits of a batch, C <= 256; it runs under `jit` and `vmap`, and on NumPy arrays.

    Logits that aren't finite count as the finite ones next to them, NaN as 0; the loss shows them.
    """
    xp: Any = np if isinstance(logits, np.ndarray) else jnp
    predicted = xp.argmax(xp.nan_to_num(logits), -1).astype(np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        z: Any = logits - logits.max(-1, keepdims=True)
        classes = xp.arange(z.shape[-1], dtype=np.int32).reshape(1, 1, 1, -1)
        chosen = xp.where(y.astype(np.int32)[..., None] == classes, z, xp.zeros_like(z)).sum(-1)
        return Masks(predicted, (xp.log(xp.exp(z).sum(-1)) - chosen).mean((1, 2)))


def mask(scores: Masks | np.ndarray, y: np.ndarray) -> Metrics:
    """Metrics of pixel logits [m, H, W, C], or the `Masks` of them, with masks [m, H, W] in 0..C-1; all NaN for m = 0.

    Class 0 is the background. Of the others each metric is averaged over the images where it is defined, then over the
    classes that have any; NaN where none has.

    - `dice` is 2|P & G| / (|P| + |G|), `iou` |P & G| / |P | G|; undefined, not 1, where mask and prediction are both
      empty: an image without the class says nothing about how well it is outlined.
    - `hausdorff95` is the 95th percentile (linear interpolation) of the distances, in pixels, of each one's boundary
      points to the other's boundary, those of both directions taken together, as MedPy's `hd95` defines it. Boundary points
      have one of their four neighbours, or the image's edge, outside. Undefined where one of the two is empty.

    `pixel_accuracy` is over all pixels, background too; `loss` the mean cross entropy of the pixels in nats.
    """
    if len(y) == 0:
        return _undefined("mask")
    scored = scores if isinstance(scores, Masks) else masks(np.asarray(scores), np.asarray(y))
    predicted, y = np.asarray(scored.predicted), np.asarray(y)
    foreground = range(1, max(int(predicted.max()), int(y.max()), 1) + 1)
    hits, claimed, actual = _areas(predicted, y, foreground)
    defined = claimed + actual > 0
    distances = np.full(hits.shape, np.nan)
    for i, k in zip(*np.nonzero((claimed > 0) & (actual > 0)), strict=True):
        distances[i, k] = hausdorff95(predicted[i] == foreground[k], y[i] == foreground[k])
    return {
        "dice": _over_classes(np.where(defined, 2 * _ratio(hits, claimed + actual), np.nan)),
        "iou": _over_classes(np.where(defined, _ratio(hits, claimed + actual - hits), np.nan)),
        "hausdorff95": _over_classes(distances),
        "pixel_accuracy": float((y == predicted).mean()),
        "loss": float(np.asarray(scored.loss, np.float64).mean()),
    }


def dice_counts(
    logits: Float[Either, "m H W C"], y: Int[Either, "m H W"], mask: Bool[Either, " m"] | None = None
) -> Overlap:
    """The sums behind `mask`'s Dice; it runs under `jit` and `vmap`, and on NumPy arrays. They add up: `jax.tree.map`.

    Args:
        mask: the images that count (False: padding); None: all.
    """
    xp: Any = np if isinstance(logits, np.ndarray) else jnp
    hits, claimed, actual = _areas(xp.argmax(logits, -1), y, range(1, logits.shape[-1]))
    counted: Any = claimed + actual > 0
    if mask is not None:
        counted = counted & mask[:, None]
    size: Any = xp.maximum(claimed + actual, 1).astype(logits.dtype)
    dice = xp.where(counted, 2 * hits.astype(logits.dtype) / size, xp.zeros_like(size))
    return Overlap(dice.sum(0), counted.sum(0))


def mean_dice(sums: Overlap) -> Float[Either, ""]:
    """`mask`'s Dice of these sums: the mean over images, then over classes; NaN where no image has foreground."""
    xp: Any = np if isinstance(sums.dice, np.ndarray) else jnp
    number = sums.images.astype(sums.dice.dtype)
    each = sums.dice / xp.maximum(number, 1)
    return each.sum() / (number > 0).sum().astype(each.dtype)


def hausdorff95(a: Bool[np.ndarray, "H W"], b: Bool[np.ndarray, "H W"]) -> float:
    """The distance of two masks with foreground in pixels; see `mask`."""
    from scipy import ndimage

    # Nothing outside the box around both can be nearer, and the rest of the image needn't be looked at.
    rows, columns = (np.flatnonzero((a | b).any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    edge_a, edge_b = (part & np.invert(ndimage.binary_erosion(part)) for part in (a[box], b[box]))
    to_a, to_b = (np.asarray(ndimage.distance_transform_edt(~edge)) for edge in (edge_a, edge_b))
    return float(np.percentile(np.concatenate([to_b[edge_a], to_a[edge_b]]), 95))


TASKS: dict[str, Callable[[Any, np.ndarray], Metrics]] = {
    "single": single_label,
    "multi": multi_label,
    "mask": mask,
}


def for_task(task: str) -> Callable[[Any, np.ndarray], Metrics]:
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
    """True for losses and distances, also under a key such as `test/personal/loss`."""
    return metric.rsplit("/", 1)[-1].endswith(("loss", "hausdorff95"))


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


def _areas(predicted: Any, y: Any, classes: Iterable[int]) -> tuple[Any, Any, Any]:
    """Pixels [m, number of classes] of each class that are right, predicted and actual."""
    xp: Any = np if isinstance(predicted, np.ndarray) else jnp
    pairs = [(predicted == c, y == c) for c in classes]
    each = [(p & g, p, g) for p, g in pairs]
    hits, claimed, actual = (xp.stack([areas[i].sum((1, 2)) for areas in each], 1) for i in range(3))
    return hits, claimed, actual


def _over_classes(values: np.ndarray) -> float:
    """The mean over classes of the means over images of values [m, classes], NaN left out."""
    defined = np.isfinite(values)
    number = defined.sum(0)
    means = np.where(defined, values, 0).sum(0)[number > 0] / number[number > 0]
    return float(means.mean()) if means.size else np.nan


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


def _arrays(
    scores: np.ndarray, y: np.ndarray, unknown: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores as float32 or float64, the rest as booleans; nothing is copied that is so already."""
    z = np.asarray(scores)
    z = z.astype(np.promote_types(z.dtype, np.float32), copy=False)
    return z, np.asarray(y).astype(bool), None if unknown is None else np.asarray(unknown).astype(bool)


def _counts_in_blocks(z: np.ndarray, y: np.ndarray, unknown: np.ndarray | None) -> Counts:
    """`counts` in float64, a block of rows at a time."""
    rows = max(1, BLOCK // max(1, z.shape[1]))
    blocks = (slice(start, start + rows) for start in range(0, max(1, len(z)), rows))
    parts = (counts(z[b].astype(np.float64), y[b], None if unknown is None else unknown[b]) for b in blocks)
    return functools.reduce(merge, parts)


def _class_ap(z: np.ndarray, y: np.ndarray, unknown: np.ndarray | None, columns: int = 32) -> np.ndarray:
    """Average precision of each column; a few columns are laid out in a row each, since strided reads are slow."""
    ap = []
    for start in range(0, z.shape[1], columns):
        some = slice(start, start + columns)
        block, positive = z[:, some].T.copy(), y[:, some].T.copy()
        counted = [slice(None)] * len(block) if unknown is None else unknown[:, some].T.copy()
        ap += [_average_precision(a[c], b[c]) for a, b, c in zip(block, positive, counted, strict=True)]
    return np.array(ap, np.float64)


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum over thresholds of (R_n - R_{n-1}) P_n; equal scores share one threshold. NaN without a positive.

    It is the mean over the positives of the precision at each one's score, so that two plain sorts do: no permutation of
    the labels. Takes scores [m] and booleans [m].
    """
    scores = np.nan_to_num(scores)  # a copy
    mine = np.sort(scores[positive])
    scores.sort()
    total = 0.0
    for start in range(0, len(mine), BLOCK):
        some = mine[start : start + BLOCK]
        hits, claimed = len(mine) - np.searchsorted(mine, some), len(scores) - np.searchsorted(scores, some)
        total += float((hits / claimed).sum())
    return total / len(mine) if len(mine) else np.nan
