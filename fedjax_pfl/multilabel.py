"""What a multi-label run leaves beside its summary: each class's results, and what a label-mask model attends to."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl import evaluate, metrics, plots, report
from fedjax_pfl.core import State, Variables
from fedjax_pfl.models.ctran import LabelMaskTransformer
from fedjax_pfl.problem import Problem

LINE = ("c_ap", "c_f1", "o_ap", "o_f1")  # the four metrics that a round's line shows


def line(record: dict[str, Any], round: int, rounds: int) -> str:
    """One evaluated round in words, or '' where the record has no multi-label metrics: validation's, else the test's."""
    for split in ("validation", "test"):
        values = {name: record.get(f"{split}/personal/{name}") for name in LINE}
        if any(value is not None for value in values.values()):
            shown = ", ".join(f"{plots.WORDS[name]} {_percent(value)}" for name, value in values.items())
            return f"round {round} of {rounds}: loss {record['train/loss']:.3f}, {split} {shown}"
    return ""


def write(
    problem: Problem,
    evaluator: evaluate.Evaluator,
    candidate: evaluate.Candidate,
    state: State,
    ids: np.ndarray,
    names: tuple[str, ...],
    workdir: Path,
    *,
    draw: bool,
) -> None:
    """per_class.csv of the pooled test rows; with `draw` plots/per_class_ap.png, and for a label-mask model attention.png.

    Args:
        candidate: the model, of each client.
        ids: the clients whose test rows these are.
        names: of the classes.
    """
    scores = evaluator.pooled(candidate, state, "test", ids)
    if scores is None:
        return
    classes = metrics.per_class(scores.logits, scores.y)
    report.write_per_class(workdir / "per_class.csv", names, classes)
    if not draw:
        return
    plots.per_class_ap(names, classes["ap"], classes["positives"], workdir / "plots" / "per_class_ap.png")
    if isinstance(problem.model, LabelMaskTransformer):
        x, y, variables = evaluator.example(candidate, state, "test", int(ids[0]), _most_labels)
        weights, p = attention(problem, variables, x)
        plots.attention(x, names, weights, workdir / "plots" / "attention.png", p, y)


def attention(problem: Problem, variables: Variables, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How the labels of one image attend to each other in the last encoder layer, [C, C], mean over its heads; and their
    probabilities [C]. All labels are unknown.

    Args:
        x: one image as stored, [H, W, channels].
    """
    seen: dict[str, Any] = {}

    def keep(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_function(*args, **kwargs)
        if context.module.name == "self_attn" and context.method_name == "weights":
            seen["last"] = result
        return result

    with nn.intercept_methods(keep):
        logits = problem.predict(variables, jnp.asarray(x)[None], jnp.float32(0), jax.random.key(0))
    labels = logits.shape[1]
    return np.asarray(seen["last"].mean(1)[0, -labels:, -labels:]), np.asarray(jax.nn.sigmoid(logits[0]))


def _most_labels(y: np.ndarray) -> int:
    """The row with most labels: it has the most to show."""
    return int(y.sum(1).argmax())


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"
