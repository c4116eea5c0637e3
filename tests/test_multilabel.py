"""Multi-label runs end to end: the published settings on small files in the true layouts, known labels, what a run leaves."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import (
    fedlgt_coco,
    fedlgt_coco_tiny,
    fedlgt_digit_scenes,
    fedlgt_flair_coarse,
    fedlgt_flair_fine,
    fedlgt_miml_scene,
    fedlgt_voc,
    fedlgt_voc2007,
    multilabel,
)
from fedjax_pfl import config as configuration
from fedjax_pfl import evaluate, experiment, metrics, protocol, train
from fedjax_pfl import multilabel as outputs
from fedjax_pfl.data.digit_scenes import NAMES
from fedjax_pfl.data.voc import CLASSES
from fedjax_pfl.errors import UserError
from fedjax_pfl.models.ctran import UNKNOWN
from tests import test_data_multilabel as files
from tests import test_flair as flair


def table(path: Path, names, width: int = 12) -> str:
    """An embeddings file for these labels."""
    rng = np.random.default_rng(0)
    arrays = {"embeddings": rng.normal(size=(len(names), width)), "states": rng.normal(size=(2, width))}
    arrays = {key: value.astype(np.float32) for key, value in arrays.items()}
    np.savez(path, names=np.array(names), states_names=np.array(["negative", "positive"]), **arrays)
    return str(path)


def small(config, **changes):
    """The same config with a network and a length that a test can afford."""
    config.model.weights = ""
    config.model.ctran.backbone = "cnn_niid"
    config.model.ctran.width = config.model.ctran.feedforward = 8
    config.model.ctran.depth, config.model.ctran.heads = 1, 2
    config.rounds = config.client.epochs = 1
    config.eval.every, config.eval.tuned = 1, "never"
    config.plots = config.tensorboard = False
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir: Path):
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction promotes
        return train.run(config, workdir, quiet=True)


def files_of(name: str, folder: Path):
    """The config of a data set at its published setting, and changes that point it to a small one in `folder`."""
    if name.startswith("flair"):
        made = flair.Made(folder)
        config = {"flair_coarse": fedlgt_flair_coarse, "flair_fine": fedlgt_flair_fine}[name].get_config()
        labels = {"flair_coarse": flair.COARSE, "flair_fine": flair.FINE}[name]
        changes = {"data.flair.path": str(made.path), "data.flair.metadata": str(made.metadata), "cohort.size": 4}
    elif name == "coco":
        numbers = list(range(1, 9))
        files.write_coco(folder, "train2014", numbers, [(n, 1 + 17 * (n % 2)) for n in numbers])
        files.write_coco(folder, "val2014", [11, 12], [(11, 1), (12, 90)])
        config, labels = fedlgt_coco.get_config(), ("person", "dog", "toothbrush")
        changes = {"data.coco.path": str(folder), "data.coco.size": 16, "split.homogeneous.clients": 3}
    else:
        ids = [f"00000{n}" for n in range(1, 7)]
        objects = {image: [("dog", 0), (("person", "tvmonitor")[i % 2], 0)] for i, image in enumerate(ids)}
        files.write_voc(folder, "2007", {"trainval": ids[:4], "test": ids[4:]}, objects)
        config, labels = fedlgt_voc2007.get_config(), CLASSES
        changes = {"data.voc.path": str(folder), "data.voc.size": 16, "split.homogeneous.clients": 2}
    return config, {**changes, "text.embeddings": table(folder / "labels.npz", labels)}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("flair_coarse", "flair_fine", "coco", "voc2007")]


@pytest.mark.parametrize("name", SLOW)
def test_published_settings_on_small_files(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, changes = files_of(name, tmp_path)
    assert (config.client.lr, config.client.batch_size, config.client.clip) == (1e-4, 16, 10.0)
    assert (config.rounds, config.client.epochs, config.cohort.size or 50) == (50, 5, 50)
    summary = run(small(config, **changes), tmp_path / "run")
    assert set(metrics.NAMES["multi"]) <= {
        key.split("/")[2] for key in summary["last"] if key.startswith("test/global/")
    }
    assert "test/global/o_f1/pooled" in summary["last"]


@pytest.mark.slow
@pytest.mark.parametrize("word", multilabel.VARIANTS)
def test_every_variant_can_be_built(word):
    config = fedlgt_digit_scenes.get_config(word)
    config.text.construction = "plain"
    setup = experiment.prepare(config)
    shape = jax.eval_shape(setup.init)
    assert config.name == word
    assert jax.tree.leaves(shape)


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"no variant 'ul'.*ule"):
        fedlgt_voc.get_config("ul")


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("module", [fedlgt_voc, fedlgt_miml_scene, fedlgt_coco_tiny])
def test_real_images_with_real_embeddings(module, tmp_path, real_data: Callable[[str], Path]):
    config = module.get_config()
    for field in ("data.npz.path", "text.embeddings", "model.weights"):
        section, name = field.rsplit(".", 1)
        holder = config
        for part in section.split("."):
            holder = holder[part]
        holder[name] = str(real_data(holder[name].removeprefix("../shared/data/")))
    if module is not fedlgt_coco_tiny:
        config.split.max_examples = 120
    config.rounds = config.client.epochs = config.eval.every = 1
    summary = run(config, tmp_path)
    assert summary["last"]["test/global/c_ap/pooled"] > 0
    # The weights of the file are in the model (one round moves them by 1e-3 at most).
    assert summary["rounds"] == 1
    assert (tmp_path / "plots" / "attention.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of FedLGT on scenes of digits, with everything that it leaves."""
    workdir = tmp_path_factory.mktemp("run")
    config = fedlgt_digit_scenes.get_config()
    changes = {"data.digit_scenes.examples": 24, "data.digit_scenes.test_examples": 12, "plots": True, "rounds": 2}
    changes |= {"client.epochs": 1, "split.validation": 0.2, "data.digit_scenes.size": 16}
    run(small(config, **changes), workdir)
    return workdir


def test_what_a_run_leaves(finished):
    summary = json.loads((finished / "summary.json").read_text())
    with open(finished / "per_class.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows][:2] == ["zero", "one"]
    assert sum(int(row["positives"]) for row in rows) > 0
    mean = np.mean([float(row["AP"]) for row in rows if row["AP"]])
    np.testing.assert_allclose(mean, summary["last"]["test/global/c_ap/pooled"], rtol=1e-6)
    for name in ("per_class_ap.png", "attention.png", "training.png"):
        assert (finished / "plots" / name).stat().st_size > 5000
    # One model on one test set: all clients' values and the pooled one are the same.
    last = summary["last"]
    assert last["test/personal/c_ap"] == last["test/global/c_ap/pooled"] == last["test/global/c_ap/client/client_3"]


def test_a_round_is_said_in_a_line(finished):
    record = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    line = outputs.line(record, 1, 2)
    assert line.startswith("round 1 of 2: loss ")
    for word in ("C-AP", "C-F1", "O-AP", "O-F1"):
        assert word in line
    assert outputs.line({"train/loss": 1.0, "test/personal/accuracy": 0.5}, 1, 2) == ""


def own(workdir: Path):
    from ml_collections import ConfigDict

    return ConfigDict(json.loads((workdir / "config.json").read_text()))


@pytest.mark.slow
def test_known_labels_change_what_is_said_of_the_others(finished):
    config = own(finished)
    none = protocol.evaluate_run(config, finished, "last")
    some = protocol.evaluate_run(config, finished, "last", ["4"])
    again = protocol.evaluate_run(config, finished, "last", ["4"])
    assert some == again
    assert some["test/global/c_ap"] != none["test/global/c_ap"]
    named = protocol.evaluate_run(config, finished, "last", ["one", "nine"])
    assert named["test/global/loss"] not in (none["test/global/loss"], some["test/global/loss"])


@pytest.mark.slow
def test_known_labels_leave_their_entries_out(finished):
    """Against the metric computed here from the model's logits with these states."""
    setup = experiment.prepare(own(finished))
    state = setup.init()
    known = evaluate.Known(labels=(1, 9))
    candidate = setup.candidates["global"]
    found = setup.evaluator(candidate, state, "test", np.arange(setup.trainers), known=known)
    rows = setup.federation.test[0]
    x, y = setup.federation.x[rows], setup.federation.y[rows]
    states = np.full(y.shape, UNKNOWN, np.int8)
    states[:, [1, 9]] = y[:, [1, 9]]
    logits = setup.problem.predict(state.server.variables, x, np.float32(0), jax.random.key(0), states)
    unknown = states == UNKNOWN
    expected = metrics.multi_label(np.asarray(logits), y, unknown)
    for name in ("c_ap", "o_ap", "c_f1", "loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def test_known_labels_are_drawn_by_row():
    y = np.zeros((40, 10), np.uint8)
    known = evaluate.Known(number=3, seed=1)
    states = known.states(y, np.arange(40))
    assert ((states != UNKNOWN).sum(1) == 3).all()
    assert len({tuple(row) for row in states}) > 20
    np.testing.assert_array_equal(states[5:9], known.states(y[5:9], np.arange(5, 9)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["elven"], "--known_labels: no label 'elven' (did you mean"),
        (["10"], "--known_labels: found 10, expected less than the number of labels, 10"),
        (list(NAMES), "all labels are known"),
    ],
)
def test_labels_that_cannot_be_told(finished, labels, message):
    with pytest.raises(UserError) as error:
        protocol.evaluate_run(own(finished), finished, "last", labels)
    assert message in str(error.value)


@pytest.mark.slow
def test_a_plain_classifier_cannot_be_told_labels(tmp_path):
    config = fedlgt_digit_scenes.get_config("fedavg")
    config.update_from_flattened_dict({"model.name": "cnn_niid", "data.digit_scenes.examples": 12})
    config.update_from_flattened_dict({"data.digit_scenes.test_examples": 5, "plots": False, "tensorboard": False})
    config.rounds = config.client.epochs = 1
    run(config, tmp_path)
    with pytest.raises(UserError, match="only a label-mask model"):
        protocol.evaluate_run(config, tmp_path, "last", ["2"])


@pytest.mark.slow
def test_slices_score_as_the_whole(finished, monkeypatch):
    setup = experiment.prepare(own(finished))
    state, ids = setup.init(), np.arange(setup.trainers)
    for known in (None, evaluate.Known(number=2)):
        for split in ("test", "validation"):
            whole = setup.evaluator(setup.candidates["personal"], state, split, ids, known=known)
            monkeypatch.setattr(evaluate.Evaluator, "GROUP_BYTES", 5 * setup.rows.pool.row_bytes)
            sliced = setup.evaluator(setup.candidates["personal"], state, split, ids, known=known)
            monkeypatch.undo()
            assert whole.keys() == sliced.keys()
            for key, value in whole.items():
                np.testing.assert_allclose(sliced[key], value, rtol=1e-5, err_msg=key)


@pytest.mark.slow
def test_pooled_is_of_all_rows_together(finished):
    setup = experiment.prepare(own(finished))
    state, ids = setup.init(), np.arange(setup.trainers)
    found = setup.evaluator(setup.candidates["personal"], state, "validation", ids)
    rows = np.concatenate(setup.federation.validation)
    x, y = setup.federation.x[rows], setup.federation.y[rows]
    logits = setup.problem.predict(state.server.variables, x, np.float32(0), jax.random.key(0))
    for name, value in metrics.multi_label(np.asarray(logits), y).items():
        np.testing.assert_allclose(found[f"{name}/pooled"], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_attention_is_the_last_layers(finished):
    """With one layer: softmax of the queries and keys of the normed tokens, computed here in NumPy."""
    setup = experiment.prepare(own(finished))
    variables, model = setup.init().server.variables, setup.problem.model
    x = setup.federation.x[0]
    weights, p = outputs.attention(setup.problem, variables, x)
    p_ = variables["params"]["encoder0"]["self_attn"]["in_proj"]
    network_input = (x[None] / 255 - 0.5) / 0.25
    visual = np.asarray(model.apply(variables, np.float32(network_input), method="visual_tokens"))[0]
    tokens = np.concatenate([visual, model.label_table])
    tokens = (tokens - tokens.mean(1, keepdims=True)) / np.sqrt(tokens.var(1, keepdims=True) + 1e-5)
    packed = (tokens @ np.asarray(p_["kernel"]) + np.asarray(p_["bias"])).reshape(len(tokens), 3, 2, 4)
    q, k = packed[:, 0], packed[:, 1]
    z = np.exp(np.einsum("qhd,khd->hqk", q, k) / 2)
    expected = (z / z.sum(-1, keepdims=True)).mean(0)[-10:, -10:]
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    assert p.shape == (10,)


def test_frozen_tables_are_what_the_config_says(tmp_path):
    """Rows in the order of the classes; another width is mapped, and said so; learned labels have no table."""
    from fedjax_pfl import text

    names = ("dog", "cat", "bird")
    config = fedlgt_digit_scenes.get_config()
    config.text.embeddings, config.text.states = table(tmp_path / "t.npz", names[::-1]), ""
    federation = type("Federation", (), {"class_names": names, "task": "multi"})
    model = configuration.build_model(config, federation)
    stored = text.label_table(config.text, names).embeddings
    np.testing.assert_array_equal(model.label_table, text.project(stored, 64))
    assert "label embeddings of width 12 are mapped to 64 by a fixed orthonormal map" in model.notes
    config.model.ctran.labels = "onehot"
    np.testing.assert_allclose(configuration.build_model(config, federation).label_table @ model.label_table.T, (
        text.project(np.eye(3, dtype=np.float32), 64) @ model.label_table.T), rtol=1e-5)  # fmt: skip
    config.model.ctran.labels = "learned"
    assert configuration.build_model(config, federation).label_table is None
    config.model.ctran.labels, config.text.kind, config.text.embeddings = "clip", "bert", ""
    with pytest.raises(UserError, match=r"config.text.kind: found 'bert', but config.model.ctran.labels is 'clip'"):
        configuration.build_model(config, federation)
