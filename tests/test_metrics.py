"""Metrics against scikit-learn, odd cases included, and their summary over clients."""

import warnings

import numpy as np
import pytest
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


@pytest.mark.parametrize("name", MULTI)
def test_multi_label_equals_scikit_learn(name):
    z, y = MULTI[name]
    p = sigmoid(z.astype(np.float64))
    predicted = (p >= 0.5).astype(int)
    some = y.sum(0) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision = sk.precision_score(y, predicted, average="macro", zero_division=0)
        recall = sk.recall_score(y, predicted, average="macro", zero_division=0)
        expected = {
            "c_ap": np.mean([sk.average_precision_score(y[:, j], p[:, j]) for j in np.flatnonzero(some)]),
            "o_ap": sk.average_precision_score(y.ravel(), p.ravel()),
            "cf1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            "of1": sk.f1_score(y, predicted, average="micro", zero_division=0),
            "subset_accuracy": sk.accuracy_score(y, predicted),
            "hamming_accuracy": 1 - sk.hamming_loss(y, predicted),
            "loss": np.mean([sk.log_loss(y[:, j], p[:, j], labels=[0, 1]) for j in range(y.shape[1])]),
        }
    found = metrics.multi_label(z, y)
    assert list(found) == list(expected) == list(metrics.names("multi"))
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6, err_msg=key)


def test_multi_label_by_hand():
    """Three images, two labels. Label 0 ranks (1, 0, 1) by score: AP = (1/1 + 2/3) / 2; label 1 ranks (0, 1, 0): AP = 1/2."""
    p = np.array([[0.9, 0.8], [0.6, 0.7], [0.3, 0.1]])
    y = np.array([[1, 0], [0, 1], [1, 0]])
    found = metrics.multi_label(np.log(p / (1 - p)), y)
    np.testing.assert_allclose(found["c_ap"], ((1 + 2 / 3) / 2 + 1 / 2) / 2)
    np.testing.assert_allclose(found["o_ap"], (1 / 1 + 2 / 3 + 3 / 5) / 3)
    np.testing.assert_allclose(found["cf1"], 2 * 0.5 * 0.75 / (0.5 + 0.75))  # precisions 1/2, 1/2; recalls 1/2, 1
    np.testing.assert_allclose(found["of1"], 2 * 2 / (4 + 3))


def test_no_positive_anywhere_is_undefined():
    found = metrics.multi_label(np.ones((3, 2)), np.zeros((3, 2)))
    assert np.isnan(found["c_ap"])
    assert np.isnan(found["o_ap"])
    assert found["cf1"] == found["of1"] == found["hamming_accuracy"] == 0


def test_mask_equals_dice_of_each_image():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(4, 5, 6, 1)).astype(np.float32), (rng.random((4, 5, 6)) < 0.4).astype(np.uint8)
    z[2], y[2] = -1, 0  # neither mask nor prediction: no Dice, left out
    z[3] = -1  # nothing predicted: 0
    predicted = (z[..., 0] >= 0).astype(int)
    found = metrics.mask(z, y)
    each = [sk.f1_score(y[i].ravel(), predicted[i].ravel(), zero_division=0) for i in (0, 1, 3)]
    np.testing.assert_allclose(found["dice"], np.mean(each))
    np.testing.assert_allclose(found["pixel_accuracy"], np.mean(predicted == y))
    np.testing.assert_allclose(found["loss"], sk.log_loss(y.ravel(), sigmoid(z.astype(np.float64)).ravel()), rtol=1e-6)
    assert metrics.mask(z[..., 0], y) == found
    assert np.isnan(metrics.mask(z[2:3], y[2:3])["dice"])


@pytest.mark.parametrize(("task", "shape"), [("single", (0, 3)), ("multi", (0, 3)), ("mask", (0, 4, 4, 1))])
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
    assert not metrics.lower_is_better("test/personal/auc")
    for call in (metrics.for_task, metrics.names, metrics.main):
        with pytest.raises(UserError, match="task: unknown name 'singel' \\(did you mean 'single'\\?\\)"):
            call("singel")
