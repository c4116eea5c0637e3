"""Scores: the same in whatever parts, on however many devices and hosts; the device works while the host reads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from fedjax_pfl import cohort, evaluate, experiment


def setup(**changes: Any) -> experiment.Setup:
    """Two clients whose scanners are noisy, batches of 8 rows."""
    config = base.get_config()
    config.method = "fedbn"
    config.split.partition = "noise"
    config.split.noise.clients, config.split.noise.level = 2, 0.5
    config.split.max_examples = 770
    config.data.digits.size = 8
    config.model.mlp.hidden = (8,)
    config.eval.batch_size = 8
    config.update_from_flattened_dict(changes)
    return experiment.prepare(config.lock())


def scores(these: experiment.Setup, split: str, model: str = "personal") -> list[evaluate.Scores]:
    return list(these.evaluator.scores(these.candidates[model], these.init(), split, np.arange(2)))


@pytest.mark.parametrize("resident", ["always", "never"])
@pytest.mark.parametrize(("devices", "fit"), [(4, 1000), (4, 20), (1, 20), (1, 1000)])
def test_in_whatever_parts(devices: int, fit: int, resident: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise too: it is drawn for each batch of a client, wherever the batch is scored."""
    whole = {split: scores(setup(), split) for split in ("validation", "test")}
    these = setup(devices=devices, **{"cohort.resident": resident})
    monkeypatch.setattr(evaluate.Evaluator, "GROUP_BYTES", fit * these.rows.pool.row_bytes)
    shapes: list[tuple[int, ...]] = []
    read = cohort.Rows.__call__

    def spy(rows: cohort.Rows, *args: Any, **kwargs: Any) -> Any:
        found = read(rows, *args, **kwargs)
        shapes.append(found.x.shape[:2])
        return found

    monkeypatch.setattr(cohort.Rows, "__call__", spy)
    for split, expected in whole.items():
        shapes.clear()
        found = scores(these, split)
        for one, other in zip(expected, found, strict=True):
            assert one.id == other.id
            assert one.logits.shape == (len(one.y), 10)
            np.testing.assert_array_equal(one.y, other.y)
            np.testing.assert_allclose(other.logits, one.logits, rtol=1e-5, atol=1e-6)
        clients, rows = shapes[0]
        assert clients % devices == 0
        if devices > 2 or fit == 20:  # no device has a whole client
            assert rows < max(len(each.y) for each in whole["test"])
            assert rows % 8 == 0


def test_a_model_that_is_trained_first_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluate.Evaluator, "_rows_at_once", lambda self, rows, parts: asked.append(parts) or rows.n_max
    )
    asked: list[int] = []
    these = setup(devices=4)
    for model in ("personal", "tuned"):
        assert len(scores(these, "test", model)) == 2
    assert asked == [2, 1]


@pytest.mark.parametrize("resident", ["always", "never"])
def test_a_host_reads_what_its_devices_score(resident: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two hosts, where the other one is made up: it says again what this one says."""
    expected = scores(setup(), "test")
    these = setup(**{"cohort.resident": resident})
    read: list[np.ndarray] = []

    def dealt(of_clients: Any, how: Any) -> Any:
        read.append(np.asarray(of_clients[0].id))
        return jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), of_clients)

    monkeypatch.setattr(evaluate, "of_this_host", lambda rows, how: slice(rows // 2))
    monkeypatch.setattr(evaluate, "dealt", dealt)
    found = scores(these, "test")
    assert [list(ids) for ids in read] == [[0]]
    np.testing.assert_allclose(found[0].logits, expected[0].logits, rtol=1e-5, atol=1e-6)


def test_one_ahead() -> None:
    asked = []
    for one in evaluate._one_ahead(asked.append(i) or i for i in range(4)):
        assert asked == list(range(min(one + 2, 4)))
    assert list(evaluate._one_ahead(iter(()))) == []
