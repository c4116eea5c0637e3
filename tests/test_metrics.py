"""Metrics against scikit-learn, odd cases included, and their summary over clients."""

import functools
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sk

from fedjax_pfl import metrics
from fedjax_pfl.errors import UserError


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def case(seed: int, m: int, classes: int, *, ties: bool, present: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits [m, C], rounded so that most scores are tied if asked, and labels from the first `present` classes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(m, classes)).astype(np.float32)
    y = rng.integers(present or classes, size=m)
    if m >= classes and present is None:
        y[:classes] = np.arange(classes)
    return (np.round(z) if ties else z), y


SINGLE = {
    "plain": case(0, 60, 5, ties=False),
    "ties": case(1, 60, 5, ties=True),
    "all scores equal": (np.zeros((9, 3), np.float32), np.arange(9) % 3),
    "two classes": case(2, 40, 2, ties=False),
    "two classes, ties": case(3, 40, 2, ties=True),
    "a class absent": case(4, 40, 4, ties=False, present=3),
    "predicted but absent": (np.eye(3, dtype=np.float32)[[0, 2, 2, 1]] * 4, np.array([0, 0, 1, 1])),
    "one class only": case(5, 10, 3, ties=True, present=1),
    "one class of two only": case(6, 10, 2, ties=False, present=1),
    "one example": case(7, 1, 4, ties=False),
    "a class that is never predicted": (np.array([[1, 0, 0], [2, 0, 1], [1, 3, 0]], np.float32), np.array([0, 1, 2])),
    "large logits": tuple(part * 4 if i == 0 else part for i, part in enumerate(case(8, 30, 4, ties=False))),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_label_equals_scikit_learn(name):
    z, y = SINGLE[name]
    p, classes = softmax(z.astype(np.float64)), np.arange(z.shape[1])
    predicted = z.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says, by warning, what it can't compute
        if len(np.unique(y)) < len(classes):
            auc = np.nan
        elif len(classes) == 2:
            auc = sk.roc_auc_score(y, p[:, 1])
        else:
            auc = sk.roc_auc_score(y, p, multi_class="ovr", average="macro", labels=classes)
        expected = {
            "accuracy": sk.accuracy_score(y, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
            "macro_f1": sk.f1_score(y, predicted, average="macro", zero_division=0),
            "auc": auc,
            "loss": sk.log_loss(y, p, labels=classes) if len(classes) > 1 else 0,
        }
    found = metrics.single_label(z, y)
    assert list(found) == list(expected) == list(metrics.names("single"))
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6, err_msg=key)
        assert type(found[key]) is float


def test_auc_is_undefined_where_scikit_learn_says_so():
    z, y = SINGLE["a class absent"]
    with pytest.warns(sk._ranking.UndefinedMetricWarning):
        theirs = sk.roc_auc_score(y, softmax(z.astype(np.float64)), multi_class="ovr", labels=np.arange(4))
    assert np.isnan(theirs)
    assert np.isnan(metrics.single_label(z, y)["auc"])


def labels(seed: int, m: int, n: int, share: float, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(m, n)).astype(np.float32)
    return (np.round(z) if ties else z), (rng.random((m, n)) < share).astype(np.uint8)


MULTI = {
    "plain": labels(0, 50, 6, 0.3, ties=False),
    "ties": labels(1, 50, 6, 0.3, ties=True),
    "labels without positives": labels(2, 12, 8, 0.08, ties=False),
    "nothing predicted": (-np.ones((5, 3), np.float32), np.eye(5, 3, dtype=np.uint8)),
    "all positive": (np.ones((4, 3), np.float32), np.ones((4, 3), np.uint8)),
    "one example": labels(3, 1, 5, 0.5, ties=False),
    "score exactly one half": (np.zeros((4, 2), np.float32), np.array([[1, 0], [0, 0], [1, 1], [0, 1]])),
}


def reference(z: np.ndarray, y: np.ndarray, unknown: np.ndarray) -> dict[str, float]:
    """Scikit-learn on the unknown entries, class by class and image by image where they differ in number."""
    predicted = (sigmoid(z.astype(np.float64)) >= 0.5).astype(int)
    y = y.astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = [(y[u, j], predicted[u, j], z[u, j]) for j, u in enumerate(unknown.T)]
        images = [(y[i, u], predicted[i, u]) for i, u in enumerate(unknown) if u.any()]
        precision = np.mean([sk.precision_score(a, b, zero_division=0) if a.size else 0 for a, b, _ in classes])
        recall = np.mean([sk.recall_score(a, b, zero_division=0) if a.size else 0 for a, b, _ in classes])
        flat = (y[unknown], predicted[unknown])
        return {
            "c_ap": np.mean([sk.average_precision_score(a, s) for a, _, s in classes if a.any()]),
            "c_p": precision,
            "c_r": recall,
            "c_f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            "o_ap": sk.average_precision_score(y[unknown], z[unknown]),
            "o_p": sk.precision_score(*flat, zero_division=0),
            "o_r": sk.recall_score(*flat, zero_division=0),
            "o_f1": sk.f1_score(*flat, zero_division=0),
            "subset_accuracy": np.mean([(a == b).all() for a, b in images]),
            "hamming_accuracy": sk.accuracy_score(*flat),
            "example_f1": np.mean([sk.f1_score(a, b) for a, b in images if a.any() or b.any()]),
            "loss": sk.log_loss(y[unknown], sigmoid(z.astype(np.float64))[unknown], labels=[0, 1]),
        }


@pytest.mark.parametrize("known", [0, 0.4])
@pytest.mark.parametrize("name", MULTI)
def test_multi_label_equals_scikit_learn(name, known):
    z, y = MULTI[name]
    unknown = np.random.default_rng(9).random(y.shape) >= known
    expected = reference(z, y, unknown)
    found = metrics.multi_label(z, y, unknown if known else None)
    assert list(found) == list(expected) == list(metrics.names("multi"))
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6, err_msg=key)
        assert type(found[key]) is float


def test_known_labels_may_hold_anything():
    z, y = (part.copy() for part in MULTI["plain"])
    known = np.random.default_rng(1).random(y.shape) < 0.3
    known[3] = known[:, 2] = True  # an image and a class of which nothing is asked
    expected = metrics.multi_label(z, y, ~known)
    z[known], y[known] = np.nan, 1 - y[known]
    assert metrics.multi_label(z, y, ~known) == expected
    assert np.isnan(list(metrics.multi_label(z, y, np.zeros_like(known)).values())).all()


def test_multi_label_of_four_images_and_four_classes():
    """The last class has no positive: it counts in the averages of precision and recall, not in that of the AP."""
    p = np.array([[0.9, 0.2, 0.7, 0.1], [0.4, 0.6, 0.3, 0.2], [0.5, 0.5, 0.6, 0.3], [0.2, 0.1, 0.8, 0.4]])
    y = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
    precision, recall = (1 + 1 / 2 + 2 / 3 + 0) / 4, (1 + 1 + 2 / 3 + 0) / 4
    expected = {
        "c_ap": (1 + 1 + (1 + 1 + 3 / 4) / 3) / 3,
        "c_p": precision,
        "c_r": recall,
        "c_f1": 2 * precision * recall / (precision + recall),
        "o_ap": (1 + 1 + 1 + 4 / 5 + 5 / 7 + 6 / 11) / 6,  # 0.5 twice, 0.3 twice
        "o_p": 5 / 7,
        "o_r": 5 / 6,
        "o_f1": 10 / 13,
        "subset_accuracy": 2 / 4,
        "hamming_accuracy": 13 / 16,
        "example_f1": (1 + 2 / 3 + 2 / 4 + 1) / 4,
        "loss": -np.mean(np.log(np.where(y, p, 1 - p))),
    }
    assert metrics.multi_label(np.log(p / (1 - p)), y) == pytest.approx(expected, rel=1e-12)
    each = metrics.per_class(np.log(p / (1 - p)), y)
    np.testing.assert_allclose(each["ap"], [1, 1, 11 / 12, np.nan], rtol=1e-12)
    np.testing.assert_allclose(each["precision"], [1, 1 / 2, 2 / 3, 0], rtol=1e-12)
    np.testing.assert_allclose(each["recall"], [1, 1, 2 / 3, 0], rtol=1e-12)
    np.testing.assert_allclose(each["f1"], [1, 2 / 3, 2 / 3, 0], rtol=1e-12)
    np.testing.assert_array_equal(each["positives"], [2, 1, 3, 0])


def test_per_class_averages_to_multi_label():
    z, y = labels(4, 40, 70, 0.1, ties=True)  # more classes than are ranked at a time
    unknown = np.random.default_rng(0).random(y.shape) < 0.5
    found, each = metrics.multi_label(z, y, unknown), metrics.per_class(z, y, unknown)
    assert list(each) == ["ap", "precision", "recall", "f1", "positives"]
    assert {len(values) for values in each.values()} == {70}
    assert found["c_ap"] == pytest.approx(np.nanmean(each["ap"]))
    assert (found["c_p"], found["c_r"]) == pytest.approx((each["precision"].mean(), each["recall"].mean()))
    np.testing.assert_array_equal(each["positives"], (y & unknown).sum(0))


def test_no_positive_anywhere_is_undefined():
    found = metrics.multi_label(np.ones((3, 2)), np.zeros((3, 2)))
    assert np.isnan(found["c_ap"])
    assert np.isnan(found["o_ap"])
    assert all(
        found[key] == 0 for key in ("c_p", "c_r", "c_f1", "o_p", "o_r", "o_f1", "hamming_accuracy", "example_f1")
    )
    found = metrics.multi_label(-np.ones((3, 2)), np.zeros((3, 2)))
    assert found["subset_accuracy"] == found["hamming_accuracy"] == 1
    assert np.isnan(found["example_f1"])


def test_scores_are_ranked_before_a_sigmoid_would_tie_them():
    z, y = np.array([[30.0], [20.0], [40.0]], np.float32), np.array([[0], [0], [1]])
    assert (sigmoid(z) == 1).all()
    assert metrics.multi_label(z, y)["c_ap"] == 1
    zeros = np.array([[0.0], [-0.0]], np.float32)
    assert metrics.multi_label(zeros, np.array([[1], [0]]))["c_ap"] == 1 / 2  # both zeros are one score


def test_a_score_that_is_no_number_ranks_as_zero():
    z, y = np.array([[2.0], [np.nan], [-1.0], [np.inf]]), np.array([[0], [1], [0], [0]])
    found = metrics.multi_label(z, y)
    assert found["c_ap"] == found["o_ap"] == 1 / 3
    assert (found["c_p"], found["c_r"]) == (1 / 3, 1)
    assert np.isnan(found["loss"])


def test_other_types_of_numbers():
    z, y = MULTI["ties"]
    expected = metrics.multi_label(z, y)
    for other in (z.astype(int), z.astype(np.float16), z.astype(np.float64), np.asarray(jnp.asarray(z, jnp.bfloat16))):
        assert metrics.multi_label(other, y.astype(np.float32)) == expected


@functools.partial(jax.jit, static_argnames="batch")
def counted_on_the_device(z, y, mask, batch: int) -> metrics.Counts:
    """Summed batch by batch; the last one is filled with rows of NaN."""
    fill = ((0, -len(z) % batch), (0, 0))
    z, y = jnp.pad(z, fill, constant_values=jnp.nan), jnp.pad(y, fill, constant_values=7)
    mask = jnp.pad(mask, fill[: mask.ndim])
    split = [part.reshape(-1, batch, *part.shape[1:]) for part in (z, y, mask)]
    first = metrics.counts(*(part[0] for part in split))
    return jax.lax.scan(
        lambda sums, one: (metrics.merge(sums, metrics.counts(*one)), None), first, tuple(map(_rest, split))
    )[0]


def _rest(part):
    return part[1:]


@pytest.mark.parametrize("kind", ["all", "rows", "entries"])
@pytest.mark.parametrize("name", MULTI)
def test_the_device_counts_what_the_host_does(name, kind):
    z, y = MULTI[name]
    rng = np.random.default_rng(3)
    mask = {"all": np.ones(len(z), bool), "rows": rng.random(len(z)) < 0.7, "entries": rng.random(z.shape) < 0.7}[kind]
    unknown = np.broadcast_to(mask if kind == "entries" else mask[:, None], z.shape)
    expected = metrics.multi_label(z, y, unknown)
    with jax.enable_x64(False):
        sums = counted_on_the_device(z, y, mask, 7)
        assert {str(x.dtype) for x in sums} == {"int32", "float32"}
    found = metrics.from_counts(sums)
    assert set(found) == set(expected) - {"c_ap", "o_ap"}
    for key, value in found.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-6, atol=1e-7, err_msg=key)
        assert type(value) is float
    jax.tree.map(np.testing.assert_array_equal, sums[:4], metrics.counts(z, y, mask)[:4])


def test_counts_of_clients_are_counted_side_by_side():
    z, y = (np.stack([part, part[::-1]]) for part in MULTI["plain"])
    together = jax.tree.map(lambda x: x.sum(0), jax.vmap(metrics.counts)(z, y))
    expected = metrics.multi_label(z.reshape(-1, 6), y.reshape(-1, 6))
    for key, value in metrics.from_counts(together).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-6, err_msg=key)


def test_counts_stay_exact_where_float32_and_int32_totals_would_not():
    z = np.full((100, 1628), 1, np.float32)
    y = np.ones((100, 1628), np.uint8)
    y[0, 0] = 0
    with jax.enable_x64(False):
        one = metrics.counts(jnp.asarray(z), jnp.asarray(y))
        sums = jax.jit(lambda one: jax.lax.fori_loop(0, 439, lambda _, sums: metrics.merge(sums, one), one))(one)
    assert np.asarray(sums.hits).tolist() == [43_560] + [44_000] * 1627
    found = metrics.from_counts(sums)
    assert found["o_p"] == (44_000 * 1628 - 440) / (44_000 * 1628)
    assert found["subset_accuracy"] == 43_560 / 44_000
    np.testing.assert_allclose(found["loss"], np.mean(np.logaddexp(0, np.where(y, -1.0, 1.0))), rtol=1e-5)
    most = np.full(1628, 2**31 - 1, np.int32)
    sums = metrics.Counts(most, most, most, most, np.ones(1628), most[0], most[0], most[0], np.float32(2**31 - 1))
    assert metrics.from_counts(sums)["o_f1"] == metrics.from_counts(sums)["hamming_accuracy"] == 1


LARGE = """
import time
import numpy as np
from fedjax_pfl import metrics

rng = np.random.default_rng(0)
z, y = np.empty((44_000, 1628), np.float32), np.empty((44_000, 1628), np.uint8)
for rows in range(0, 44_000, 1000):
    y[rows : rows + 1000] = rng.random((1000, 1628), np.float32) < 0.05
    z[rows : rows + 1000] = rng.standard_normal((1000, 1628), np.float32) + y[rows : rows + 1000]
began = time.perf_counter()
found = metrics.multi_label(z, y)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.perf_counter() - began, int(peak) / 1e6, found["c_ap"], found["o_ap"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_thousands_of_classes_take_seconds_and_little_memory():
    root = Path(metrics.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", LARGE], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    seconds, gigabytes, c_ap, o_ap = map(float, done.stdout.split())
    assert seconds < 30
    assert gigabytes < 2
    np.testing.assert_allclose([c_ap, o_ap], 0.18, atol=0.05)


def blobs(seed: int, m: int, size: tuple[int, int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [m, H, W, C] float32 and masks [m, H, W] of connected regions, that agree in part."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, m, *size, classes)), (0, 0, 1.5, 1.5, 0)) * 8
    return (fields[0] + 0.7 * fields[1]).astype(np.float32), fields[0].argmax(-1).astype(np.int32)


def mask_case() -> tuple[np.ndarray, np.ndarray]:
    """Three classes, with images that lack one in mask, prediction, or both."""
    z, y = blobs(0, 6, (9, 12), 3)
    z[2, ..., 1:], y[2] = -9, 0  # neither mask nor prediction has foreground
    z[3, ..., 2] = -9  # class 2 is in the mask alone
    y[4][y[4] == 1] = 0  # class 1 is predicted alone
    z[5] = np.eye(3)[y[5]]  # all right
    return z, y


def brute_hausdorff95(a: np.ndarray, b: np.ndarray) -> float:
    """All pairs of boundary points, from the definition."""

    def edge(mask: np.ndarray) -> np.ndarray:
        wide = np.pad(mask, 1)
        inside = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
        return np.argwhere(mask & ~inside).astype(float)

    pairs = np.linalg.norm(edge(a)[:, None] - edge(b)[None], axis=-1)
    both = np.sort(np.concatenate([pairs.min(1), pairs.min(0)]))
    place = 0.95 * (len(both) - 1)
    low = int(place)
    return both[low] + (place - low) * (both[min(low + 1, len(both) - 1)] - both[low])


def test_mask_equals_each_image_by_itself():
    z, y = mask_case()
    predicted = z.argmax(-1)
    dice, iou, far = ({1: [], 2: []} for _ in range(3))
    for i in range(len(y)):
        for c in (1, 2):
            p, g = predicted[i] == c, y[i] == c
            if p.any() or g.any():
                dice[c].append(sk.f1_score(g.ravel(), p.ravel(), zero_division=0))
                iou[c].append(sk.jaccard_score(g.ravel(), p.ravel(), zero_division=0))
            if p.any() and g.any():
                far[c].append(brute_hausdorff95(p, g))
    assert {len(values) for values in (*dice.values(), *far.values())} >= {4, 5}  # some are undefined
    found = metrics.mask(z, y)
    for name, values in (("dice", dice), ("iou", iou), ("hausdorff95", far)):
        np.testing.assert_allclose(found[name], np.mean([np.mean(v) for v in values.values()]), rtol=1e-12)
    np.testing.assert_allclose(found["pixel_accuracy"], np.mean(predicted == y))
    p = softmax(z.reshape(-1, 3).astype(np.float64))
    np.testing.assert_allclose(found["loss"], sk.log_loss(y.ravel(), p, labels=range(3)), rtol=1e-6)
    assert list(found) == list(metrics.names("mask"))


def test_masks_without_foreground_have_no_dice():
    z, y = mask_case()
    found = metrics.mask(z[2:3], y[2:3])
    assert found.pop("pixel_accuracy") == 1
    assert 0 < found.pop("loss") < 0.1
    assert np.isnan(list(found.values())).all()
    missed = metrics.mask(np.stack([np.ones((1, 4, 4)), np.zeros((1, 4, 4))], -1), np.eye(4, dtype=int)[None])
    assert missed["dice"] == missed["iou"] == 0
    assert np.isnan(missed["hausdorff95"])


@pytest.mark.parametrize("seed", range(6))
def test_hausdorff_distance_by_brute_force(seed):
    z, y = blobs(seed, 4, (17, 23), 2)
    z, y = z[..., 1] > 1.0, y > 0
    y[1] = np.roll(y[1], 7, 1)  # far apart
    y[2] = True  # its boundary is the image's edge
    z[3], y[3] = False, False
    z[3, 0, 0] = y[3, -1, -1] = True  # single pixels in opposite corners
    for a, b in zip(z, y, strict=True):
        np.testing.assert_allclose(metrics.hausdorff95(a, b), brute_hausdorff95(a, b), rtol=1e-12)
        assert metrics.hausdorff95(b, a) == metrics.hausdorff95(a, b)
    np.testing.assert_allclose(metrics.hausdorff95(z[3], y[3]), np.hypot(16, 22))
    assert metrics.hausdorff95(y[0], y[0]) == 0


def test_reduced_masks_score_as_their_logits():
    z, y = mask_case()
    small = jax.jit(metrics.masks)(jnp.asarray(z), jnp.asarray(y))
    assert (small.predicted.dtype, small.loss.dtype) == (jnp.uint8, jnp.float32)
    found, expected = metrics.mask(small, y), metrics.mask(z, y)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    z[0, 0, 0] = [np.nan, 1, -np.inf]
    found = metrics.mask(z, y)
    assert np.isfinite(found["dice"])
    assert np.isnan(found["loss"])


@pytest.mark.parametrize("library", [np, jnp])
def test_dice_counts_add_up_to_the_dice(library):
    z, y = mask_case()
    real = np.array([1, 1, 1, 0, 1, 1], bool)
    z[3] = np.nan
    parts = [slice(0, 4), slice(4, 6)]
    counts = metrics.dice_counts if library is np else jax.jit(metrics.dice_counts)
    sums = [counts(library.asarray(z[p]), library.asarray(y[p]), library.asarray(real[p])) for p in parts]
    total = jax.tree.map(lambda a, b: a + b, *sums)
    np.testing.assert_allclose(metrics.mean_dice(total), metrics.mask(z[real], y[real])["dice"], rtol=1e-6)
    assert total.dice.dtype == np.float32
    whole = metrics.mean_dice(metrics.dice_counts(z[real], y[real]))
    np.testing.assert_allclose(whole, metrics.mean_dice(total), rtol=1e-6)


@pytest.mark.parametrize(("task", "shape"), [("single", (0, 3)), ("multi", (0, 3)), ("mask", (0, 4, 4, 2))])
def test_no_examples_leave_everything_undefined(task, shape):
    y = np.zeros(shape[:1] if task == "single" else shape[:3], np.int32)
    found = metrics.for_task(task)(np.zeros(shape, np.float32), y)
    assert list(found) == list(metrics.names(task))
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_diverged_model_scores_like_a_constant_one_and_its_loss_is_undefined(value):
    found = metrics.single_label(np.full((4, 3), value, np.float32), np.array([0, 0, 1, 2]))
    assert found["accuracy"] == found["auc"] == 0.5
    assert np.isnan(found["loss"])
    found = metrics.multi_label(np.full((4, 2), value, np.float32), np.array([[0, 1], [1, 1], [0, 0], [0, 0]]))
    assert found["o_ap"] == 3 / 8
    assert not np.isfinite(found["loss"])


def test_many_rows_are_quick_and_right():
    z, y = case(0, 20_000, 10, ties=True)
    found = metrics.single_label(z, y)
    p = softmax(z.astype(np.float64))
    np.testing.assert_allclose(found["auc"], sk.roc_auc_score(y, p, multi_class="ovr"), atol=1e-9)


def test_summary_over_clients():
    per_client = {
        "A": {"accuracy": 0.5, "auc": np.nan, "loss": 2.0},
        "B": {"accuracy": 0.9, "auc": 0.8, "loss": 1.0},
        "C": {"accuracy": 0.7, "auc": 0.6, "loss": np.inf},
    }
    found = metrics.summarise(per_client, {"A": 10, "B": 30, "C": 60})
    expected = {
        "accuracy": 0.7,
        "accuracy/weighted": 0.5 * 0.1 + 0.9 * 0.3 + 0.7 * 0.6,
        "accuracy/worst": 0.5,
        "accuracy/std": np.std([0.5, 0.9, 0.7]),
        "accuracy/client/A": 0.5,
        "accuracy/client/B": 0.9,
        "accuracy/client/C": 0.7,
        "auc": 0.7,
        "auc/weighted": (0.8 * 30 + 0.6 * 60) / 90,
        "auc/worst": 0.6,
        "auc/std": 0.1,
        "auc/client/A": None,
        "auc/client/B": 0.8,
        "auc/client/C": 0.6,
        "auc/undefined": 1,
        "loss": 1.5,
        "loss/weighted": (2 * 10 + 1 * 30) / 40,
        "loss/worst": 2.0,
        "loss/std": 0.5,
        "loss/client/A": 2.0,
        "loss/client/B": 1.0,
        "loss/client/C": None,
        "loss/undefined": 1,
    }
    assert list(found) == list(expected)
    assert {k: v if v is None else pytest.approx(v) for k, v in expected.items()} == found


def test_summary_without_any_defined_value_is_null():
    found = metrics.summarise({"A": {"auc": np.nan}}, {"A": 3})
    assert found == dict.fromkeys(["auc", "auc/weighted", "auc/worst", "auc/std", "auc/client/A"]) | {
        "auc/undefined": 1
    }
    assert metrics.summarise({}, {}) == {}


def test_tasks():
    assert [metrics.main(task) for task in ("single", "multi", "mask")] == ["macro_f1", "c_ap", "dice"]
    assert all(metrics.main(task) in metrics.names(task) for task in metrics.TASKS)
    assert metrics.lower_is_better("test/personal/loss")
    assert metrics.lower_is_better("test/personal/hausdorff95")
    assert not metrics.lower_is_better("test/personal/auc")
    for call in (metrics.for_task, metrics.names, metrics.main):
        with pytest.raises(UserError, match="task: unknown name 'singel' \\(did you mean 'single'\\?\\)"):
            call("singel")
