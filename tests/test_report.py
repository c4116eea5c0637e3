"""Reports over made-up runs: their numbers, their refusals, their pictures."""

import csv
import json
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from fedjax_pfl import log, metrics, plots, report
from fedjax_pfl.errors import UserError

SCORES = {"ditto": (0.70, 0.74, 0.81), "fedavg": (0.60, 0.62, 0.61)}


def made_up(folder: Path, name: str = "fedavg", seed: int = 0, score: float = 0.6, **summary) -> Path:
    """A finished run: macro F1 `score` - 0.1 and `score` + 0.1 for clients A and B, the global model 0.05 below."""

    def values(score: float) -> dict:
        per_client = {
            client: {"macro_f1": score + shift, "auc": auc, "loss": 1 - score}
            for client, shift, auc in (("A", -0.1, 0.9), ("B", 0.1, np.nan))
        }
        return metrics.summarise(per_client, {"A": 10, "B": 30})

    run = folder / f"{name}-{seed}"
    with log.Log(run, tensorboard=False) as records:
        for round in (1, 2, 3):
            record = {"round": round, "train/loss": 1 / round}
            for split in ("validation", "test"):
                for model, less in (("personal", 0.0), ("global", 0.05)):
                    keys = values(score - less + 0.01 * (round - 2)).items()
                    record |= {f"{split}/{model}/{key}": value for key, value in keys}
            records.append(record)
        _, best, last = records.records()
    whole = {
        "name": name,
        "method": name,
        "model": "mlp",
        "seed": seed,
        "rounds": 3,
        "data": "digits",
        "fingerprint": f"split{seed}",
        "clients": 2,
        "main_metric": "validation/personal/macro_f1",
        "seconds": 10.0 + seed,
        "last": last,
        "best": best,
    }
    log.write_json(run / "summary.json", whole | summary)
    log.write_json(run / "config.json", {"seed": seed, "client": {"lr": 0.1}})
    return run


@pytest.fixture
def runs(tmp_path) -> Path:
    for name, scores in SCORES.items():
        for seed, score in enumerate(scores):
            made_up(tmp_path / "runs" / "deep", name, seed, score)
    return tmp_path / "runs"


def cells(text: str) -> list[dict[str, str]]:
    """The rows of the first table."""
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0]]
    return [dict(zip(header, (cell.strip() for cell in line), strict=True)) for line in lines[2:]]


def test_table_over_seeds(runs, tmp_path):
    text = report.run([str(runs)], output=tmp_path / "out")
    rows = cells(text)
    assert [(r["method"], r["model"]) for r in rows] == [
        ("fedavg", "personal"),  # in the order of the catalogue
        ("fedavg", "global"),
        ("ditto", "personal"),
        ("ditto", "global"),
    ]
    assert {r["seeds"] for r in rows} == {"0, 1, 2 (n = 3)"}
    rows = rows[2:] + rows[:2]
    mean, deviation = np.mean(SCORES["ditto"]), np.std(SCORES["ditto"], ddof=1)
    assert rows[0]["macro_f1"] == f"**{mean:.3f} ± {deviation:.3f}**"
    assert rows[1]["macro_f1"] == f"{mean - 0.05:.3f} ± {deviation:.3f}"
    assert rows[0]["macro_f1, worst client"] == rows[0]["A"] == f"**{mean - 0.1:.3f} ± {deviation:.3f}**"
    assert rows[0]["B"] == f"**{mean + 0.1:.3f} ± {deviation:.3f}**"
    assert rows[0]["loss"] == f"**{1 - mean:.3f} ± {deviation:.3f}**"  # the lowest is best
    assert {r["macro_f1, spread over clients"] for r in rows} == {"**0.100 ± 0.000**"}  # ties are all best
    assert {r["seconds"] for r in rows} == {"**11.0 ± 1.0**"}
    assert list(rows[0])[3:5] == ["macro_f1", "auc"]
    assert "`auc` is undefined for 1 client, left out of the mean, in every row" in text
    assert (tmp_path / "out" / "report.md").read_text() == text
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_costs_of_communication(tmp_path):
    """KiB of a client in a round, where a run has them; the least is best."""
    made_up(tmp_path, "fedavg", communication={"down": 2048.0, "up": 1024.0})
    made_up(tmp_path, "ditto", communication={"down": 1024.0, "up": 1536.0})
    made_up(tmp_path, "old")
    text = report.run([tmp_path])
    found = {r["method"]: (r["KiB down"], r["KiB up"]) for r in cells(text) if r["model"] == "personal"}
    assert found == {"fedavg": ("2.0", "**1.0**"), "ditto": ("**1.0**", "1.5"), "old": ("undefined", "undefined")}
    assert "KiB: what a client gets and sends in a round." in text


def test_last_round_and_chosen_metrics(runs, tmp_path):
    text = report.run([str(runs)], output=tmp_path / "out", which="last", metrics=["loss"])
    row = cells(text)[2]
    assert row["loss"].startswith(f"**{1 - np.mean(SCORES['ditto']) - 0.01:.3f}")
    assert "auc" not in row
    assert "macro_f1" not in row
    assert "macro_f1, worst client" in row
    assert text.startswith("# Report: last round")


def test_csv_holds_the_raw_numbers(runs, tmp_path):
    report.run([str(runs)], output=tmp_path / "out")
    table = list(csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()))[2:]
    assert [table[0][k] for k in ("split", "method", "model", "n", "seeds")] == [
        "test",
        "ditto",
        "personal",
        "3",
        "0 1 2",
    ]
    np.testing.assert_allclose(float(table[0]["macro_f1"]), np.mean(SCORES["ditto"]))
    np.testing.assert_allclose(float(table[0]["macro_f1 deviation"]), np.std(SCORES["ditto"], ddof=1))
    assert table[0]["auc n"] == "3"
    lines = list(csv.DictReader((tmp_path / "out" / "report_runs.csv").read_text().splitlines()))
    found = [r["value"] for r in lines if r["name"] == "fedavg" and r["key"] == "test/personal/macro_f1"]
    np.testing.assert_allclose([float(value) for value in found], SCORES["fedavg"])
    assert {r["round"] for r in lines} == {"2"}
    assert {r["key"].split("/")[0] for r in lines} == {"train", "validation", "test", "seconds"}


def test_one_run_has_no_deviation_and_reports_into_its_own_folder(tmp_path):
    run = made_up(tmp_path, score=0.5)
    rows = cells(report.run([run]))
    assert [(r["seeds"], r["loss"]) for r in rows] == [("0 (n = 1)", "**0.500**"), ("0 (n = 1)", "0.550")]
    assert (run / "report.md").exists()
    assert report.run([run]) == report.run([run, tmp_path])  # found twice, counted once


def test_the_common_parent_is_the_default_folder(runs):
    report.run([runs / "deep" / "ditto-0", runs / "deep" / "fedavg-0"])
    assert (runs / "deep" / "report.csv").exists()


def test_a_value_undefined_for_a_seed_is_said(tmp_path):
    for seed in (0, 1):
        made_up(tmp_path, seed=seed)
    path = tmp_path / "fedavg-1" / "summary.json"
    summary = json.loads(path.read_text())
    summary["best"] |= {"test/personal/auc": None, "test/personal/auc/undefined": 2}
    summary["best"] |= {"test/personal/loss": None}
    log.write_json(path, summary)
    text = report.run([tmp_path])
    assert cells(text)[0]["auc"] == "**0.900** (1 of 2)"
    assert "`auc` is undefined for 1 to 2 clients, left out of the mean, in every row" in text
    path = tmp_path / "fedavg-0" / "summary.json"
    summary = json.loads(path.read_text())
    summary["best"]["test/personal/loss"] = None
    log.write_json(path, summary)
    assert cells(report.run([tmp_path]))[0]["loss"] == "undefined"


def test_held_out_clients_have_a_table_of_their_own(tmp_path):
    run = made_up(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    summary["best"] |= {"held_out/personal/macro_f1": 0.25, "held_out/personal/macro_f1/client/C": 0.25}
    log.write_json(run / "summary.json", summary)
    text = report.run([run])
    held_out = cells(text.split("## Held-out clients")[1])
    assert [(r["model"], r["macro_f1"], r["C"]) for r in held_out] == [("personal", "0.250", "0.250")]


EIGHT = ["c_ap", "c_p", "c_r", "c_f1", "o_ap", "o_p", "o_r", "o_f1"]
TITLES = ["C-AP", "C-P", "C-R", "C-F1", "O-AP", "O-P", "O-R", "O-F1"]


def multi_label(
    folder: Path, name: str, seed: int, score: float, *, pooled: bool, models=("personal", "global")
) -> Path:
    """A run whose i-th metric is `score` + i/100 on average over clients, 0.1 more pooled; the global model 0.2 below."""
    run = made_up(folder, name, seed, main_metric="validation/personal/c_ap")
    best = {"round": 2}
    for model in models:
        for i, metric in enumerate(EIGHT):
            value = score + i / 100 - (0.2 if model == "global" else 0)
            each = {client: {metric: value + shift} for client, shift in (("pooled", -0.05), ("B", 0.05))}
            found = metrics.summarise(each, {"pooled": 1, "B": 1})
            best |= {f"test/{model}/{key}": v for key, v in found.items()}
            best |= {f"test/{model}/{metric}/pooled": value + 0.1} if pooled else {}
    log.write_json(run / "summary.json", json.loads((run / "summary.json").read_text()) | {"best": best})
    return run


@pytest.mark.parametrize("pooled", [True, False])
def test_multi_label_runs_get_the_table_of_the_papers(tmp_path, pooled):
    for name, scores in (("fedlgt", (0.6, 0.62)), ("fedavg", (0.5, 0.54))):
        for seed, score in enumerate(scores):
            multi_label(tmp_path, name, seed, score, pooled=pooled)
    text = report.run([tmp_path])
    first, second = text.split("### Multi-label, in percent: ")
    assert second.startswith(
        "on the test examples of all" if pooled else "on each client's test examples, then the mean"
    )
    rows = cells(second)
    assert list(rows[0]) == ["method", "model", "seeds", *TITLES]
    assert [(r["method"], r["model"]) for r in rows] == [("fedavg", "global"), ("fedlgt", "global")]
    more = 10 if pooled else 0
    assert [rows[0][title] for title in TITLES] == [f"{32 + more + i}.00 ± 2.83" for i in range(8)]
    assert [rows[1][title] for title in TITLES] == [f"**{41 + more + i}.00 ± 1.41**" for i in range(8)]
    # The other table is as ever; `pooled` is a column only where it is a client's name.
    head = list(cells(first)[0])
    assert head == ["method", "model", "seeds", *EIGHT, *head[11:13], "pooled", "B", "seconds"]
    assert cells(first)[0]["pooled"] == "0.470 ± 0.028"
    raw = next(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    assert ("c_ap/pooled" in raw) == pooled
    assert float(raw["c_ap/client/pooled"]) == pytest.approx(0.47)
    assert not pooled or float(raw["c_ap/pooled"]) == pytest.approx(0.62)


def test_the_table_of_the_papers_takes_what_there_is(tmp_path):
    """A method without a global model; pooled values only if all rows have them; the metrics asked for; no other task."""
    multi_label(tmp_path / "a", "local", 0, 0.7, pooled=True, models=("personal", "tuned"))
    multi_label(tmp_path / "a", "fedavg", 0, 0.5, pooled=False)
    second = report.run([tmp_path / "a"]).split("### Multi-label, in percent: ")[1]
    assert second.startswith("on each client's")
    assert [(r["method"], r["model"], r["C-AP"]) for r in cells(second)] == [
        ("local", "personal", "**70.00**"),
        ("fedavg", "global", "30.00"),
    ]
    one = report.run([tmp_path / "a"], metrics=["o_f1"]).split("### Multi-label, in percent: ")[1]
    assert list(cells(one)[0]) == ["method", "model", "seeds", "O-F1"]
    assert "Multi-label" not in report.run([made_up(tmp_path / "b")])


def test_an_undefined_ap_stays_undefined_in_the_table_of_the_papers(tmp_path):
    run = multi_label(tmp_path, "fedavg", 0, 0.5, pooled=True)
    summary = json.loads((run / "summary.json").read_text())
    summary["best"] |= {"test/global/c_ap": None, "test/global/c_ap/pooled": None}
    log.write_json(run / "summary.json", summary)
    row = cells(report.run([run]).split("### Multi-label, in percent: on the test examples of all")[1])[0]
    assert (row["C-AP"], row["C-P"]) == ("undefined", "41.00")


def test_per_class_file(tmp_path):
    z, y = np.array([[1.0, -1, -1], [1, 1, -1]]), np.array([[1, 0, 0], [0, 1, 0]])
    path = tmp_path / "deep" / "per_class.csv"
    report.write_per_class(path, ["dog", "cat, small", "none"], metrics.per_class(z, y))
    assert path.read_text().splitlines() == [
        "class,positives,AP,P,R,F1",
        "dog,1,0.5,0.5,1.0,0.6666666666666666",
        '"cat, small",1,1.0,1.0,1.0,1.0',
        "none,0,,0.0,0.0,0.0",
    ]
    with pytest.raises(UserError) as error:
        report.write_per_class(path / "x.csv", ["a", "b", "c"], metrics.per_class(z, y))
    assert str(error.value) in [
        f"{path / 'x.csv'} can't be written: {why}" for why in ("File exists", "Not a directory")
    ]
    with pytest.raises(ValueError, match="zip"):
        report.write_per_class(path, ["one name for three"], metrics.per_class(z, y))


def test_many_clients_get_no_columns(tmp_path):
    run = made_up(tmp_path, clients=11)
    summary = json.loads((run / "summary.json").read_text())
    summary["best"] |= {f"test/personal/macro_f1/client/{i}": 0.5 for i in range(9)}
    log.write_json(run / "summary.json", summary)
    text = report.run([run])
    assert "A" not in cells(text)[0]
    assert "11 clients: each one's values are in report_runs.csv" in text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"data": "mnist"}, "data (digits, mnist)"),
        ({"clients": 3}, "clients (2, 3)"),
        ({"fingerprint": "other"}, "fingerprint (split0, other)"),
    ],
)
def test_other_data_or_splits_are_refused_unless_told(tmp_path, change, field):
    a, b = made_up(tmp_path, "fedavg"), made_up(tmp_path, "ditto", **change)
    with pytest.raises(UserError) as error:
        report.run([a, b])
    assert str(error.value) == f"--runs: {a} and {b} differ in {field}; --mix compares them nevertheless"
    text = report.run([a, b], mix=True)
    assert len(cells(text)) == 4
    assert f"Mixed: the runs differ in {field}" in text


def test_a_method_may_have_fewer_seeds_but_no_split_of_its_own(runs, tmp_path):
    made_up(runs, "local", 1)
    assert cells(report.run([runs], output=tmp_path))[0]["seeds"] == "1 (n = 1)"
    made_up(runs, "local", 7)
    with pytest.raises(UserError, match=r"deep/fedavg-0 and .*local-7 differ in fingerprint \(split0, split7\)"):
        report.run([runs])


def test_two_runs_with_one_name_and_seed_are_refused(tmp_path):
    a, b = made_up(tmp_path / "a"), made_up(tmp_path / "b")
    with pytest.raises(UserError) as error:
        report.run([tmp_path], mix=True)
    assert str(error.value) == f"--runs: {a} and {b} both have the name 'fedavg' and the seed 0"


@pytest.mark.parametrize("change", [{"method": "ditto"}, {"model": "cnn"}, {"rounds": 4}, {"data": "mnist"}])
def test_one_name_for_two_things_is_refused_even_when_mixed(tmp_path, change):
    a, b = made_up(tmp_path, seed=0), made_up(tmp_path, seed=1, **change)
    (field,) = change
    with pytest.raises(UserError) as error:
        report.run([a, b], mix=True)
    assert str(error.value).startswith(f"--runs: {a} and {b} differ in {field} (")
    assert str(error.value).endswith("yet both have the name 'fedavg': give each its own config.name")


def test_one_name_with_two_configs_is_refused_unless_told(tmp_path):
    a, b = made_up(tmp_path, seed=0), made_up(tmp_path, seed=1)
    log.write_json(b / "config.json", {"seed": 1, "client": {"lr": 0.2}})
    with pytest.raises(UserError) as error:
        report.run([a, b])
    assert str(error.value) == (
        f"--runs: {a} and {b} differ in config.client.lr: 0.1 -> 0.2, yet both have the name 'fedavg': "
        "give each its own config.name"
    )
    report.run([a, b], mix=True)
    (b / "config.json").unlink()
    report.run([a, b])


def test_unfinished_runs_are_named(runs):
    for name in ("ditto-1", "fedavg-2"):
        (runs / "deep" / name / "summary.json").unlink()
    with pytest.raises(UserError) as error:
        report.run([runs])
    assert str(error.value) == (
        "--runs: unfinished (no summary.json), resume or leave out: "
        f"{runs / 'deep' / 'ditto-1'}, {runs / 'deep' / 'fedavg-2'}"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{torn", "not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("[1]", "expected a JSON object, found list"),
        ("{}", "no field 'name'"),
        (None, "field 'best' is not an object with an integer 'round'"),
    ],
)
def test_a_damaged_summary_is_named(tmp_path, content, message):
    run = made_up(tmp_path, best={"test/personal/auc": 1})
    if content is not None:
        (run / "summary.json").write_text(content)
    with pytest.raises(UserError) as error:
        report.run([run])
    assert str(error.value) == f"{run / 'summary.json'}: {message}"


def test_a_run_without_validation_data_has_a_last_round_only(tmp_path):
    run = made_up(tmp_path, best=None)
    with pytest.raises(UserError) as error:
        report.run([run])
    assert str(error.value) == (
        f"{run}: the run has no best round (no validation data); --which=last reports the last one"
    )
    (run / "metrics.jsonl").write_text('{"round": 3, "test/personal/macro_f1": 0.5}\n')
    assert "curves.png" not in report.run([run], which="last")


def test_wrong_folders_and_words(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    run = made_up(tmp_path / "untested", best={"round": 1, "validation/personal/macro_f1": 0.5})
    for call, message in [
        (lambda: report.run([]), "--runs: no folder given, expected --runs=DIR,DIR,..."),
        (lambda: report.run(["nowhere"]), "--runs: no folder 'nowhere'"),
        (
            lambda: report.run([tmp_path / "empty"]),
            f"--runs: no run in '{tmp_path / 'empty'}' (the folder of a run holds summary.json)",
        ),
        (lambda: report.run([run]), f"--runs: no run in {run.parent} was evaluated on a test split"),
        (
            lambda: report.run([runs], metrics=["macro_f2"]),
            "metrics: unknown name 'macro_f2' (did you mean 'macro_f1'?)",
        ),
        (lambda: report.run([runs], which="first"), "which: unknown name 'first' (one of: best, last)"),
        (
            lambda: report.run([runs], output=tmp_path / "file"),
            f"the report can't be written into {tmp_path / 'file'}: File exists",
        ),
    ]:
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == message


def test_a_name_with_a_bar_does_not_break_the_table(tmp_path):
    assert r"| a\|b " in report.run([made_up(tmp_path, "a|b")])


def records(rounds: int, clients: int) -> list[dict]:
    found = []
    for round in range(1, rounds + 1):
        record: dict = {"round": round, "train/loss": 1 / round}
        for split in ("validation", "test"):
            for model in ("personal", "global"):
                values = {f"client {i}": {"macro_f1": 0.5 if i else np.nan, "loss": 1.0} for i in range(clients)}
                summary = metrics.summarise(values, dict.fromkeys(values, 5))
                record |= {f"{split}/{model}/{key}": value for key, value in summary.items()}
        found.append(record)
    return found


@pytest.mark.parametrize(("rounds", "clients"), [(1, 1), (20, 9), (2, 25)])
def test_training_is_drawn_for_few_and_many_clients(tmp_path, rounds, clients):
    path = tmp_path / "plots" / "training.png"
    assert plots.training(records(rounds, clients), path, "validation/personal/macro_f1")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_training_is_drawn_of_what_there_is(tmp_path):
    for some in ([], [{"round": 1, "train/loss": 0.5}], [{"round": 1, "validation/global/dice": None}]):
        path = tmp_path / f"{len(str(some))}.png"
        assert plots.training(some, path)
        assert path.exists()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_run_without_validation_data_shows_its_test_metric(tmp_path, drawn, split):
    some = [{"round": r, f"{split}/personal/auc": r / 4, "test/personal/auc/client/a": r / 4} for r in (1, 2)]
    assert plots.training(some, tmp_path / "x.png", "validation/personal/auc")
    axes = drawn[0].axes[1]
    assert axes.get_title(loc="left") == f"{split.capitalize()}, personal model"
    assert axes.lines[-1].get_ydata().tolist() == [0.25, 0.5]


def test_curves_average_the_rounds_that_all_seeds_evaluated(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_line", lambda axes, points, **style: drawn.append((*points, style["label"])))
    plots.compare(
        {"a": [([1, 2, 4], [0.1, 0.2, 0.4]), ([2, 4], [0.4, 0.8])], "b": [([1], [0.5])], "c": []},
        tmp_path / "x.png",
        "auc",
    )
    (rounds, mean, label), (_, _, other) = drawn
    assert rounds == [2, 4]
    np.testing.assert_allclose(mean, [0.3, 0.6])
    assert (label, other) == ("a (2 seeds)", "b")


def test_many_curves_are_drawn_in_panels(tmp_path, monkeypatch):
    """Each curve once, in a panel where no other has its colour."""
    drawn = []
    monkeypatch.setattr(plots, "_line", lambda axes, points, **style: drawn.append((id(axes), style)))
    plots.compare({f"m{i}": [([1, 2], [0.1, 0.2])] * 2 for i in range(23)}, tmp_path / "x.png", "auc")
    assert [style["label"] for _, style in drawn] == [f"m{i} (2 seeds)" for i in range(23)]
    assert len({(axes, style["color"]) for axes, style in drawn}) == 23


def bars(figure) -> list[dict[str, float]]:
    """The bars of each panel that has some: tick label -> length."""
    panels = [([t.get_text() for t in axes.get_yticklabels()], axes.patches) for axes in figure.axes]
    return [dict(zip(labels, [p.get_width() for p in patches], strict=True)) for labels, patches in panels if patches]


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that were saved."""
    figures: list = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure) or save(figure, path))
    return figures


def test_average_precision_by_class_is_drawn_best_first(tmp_path, drawn):
    path = tmp_path / "plots" / "per_class.png"
    ap, positives = np.array([0.25, np.nan, 0.75]), np.array([7, 0, 1200])
    assert plots.per_class_ap(["cost in $ or $", "absent", "dog"], ap, positives, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    (panel,) = bars(drawn[0])
    assert list(panel.items()) == [("dog (1,200)", 75), (r"cost in \$ or \$ (7)", 25)]
    assert drawn[0].get_suptitle() == "C-AP 50.0 %, mean over 2 classes; 1 without positives left out"
    assert plots.per_class_ap(["a"], np.array([np.nan]), np.array([0]), path)
    assert drawn[1].get_suptitle() == "no class has positives; 1 without positives left out"


@pytest.mark.parametrize("classes", [plots.MAX_CLASSES, 1628])
def test_many_classes_become_a_curve_and_its_ends(tmp_path, drawn, classes):
    ap = np.random.default_rng(0).permutation(classes) / classes
    names = [f"class {i} with a name of some length" for i in range(classes)]
    assert plots.per_class_ap(names, ap, np.arange(classes), tmp_path / "x.png")
    (panel,) = bars(drawn[0])
    if classes <= plots.MAX_CLASSES:
        assert list(panel.values()) == pytest.approx(list(100 * np.sort(ap)[::-1]))
        return
    lengths = np.array(list(panel.values()))
    ends = np.concatenate([np.sort(ap)[:-11:-1], [np.nan], np.sort(ap)[:10][::-1]])
    np.testing.assert_allclose(lengths, 100 * ends)
    assert next(iter(panel)) == f"class {ap.argmax()} with a name of some length"[:27] + f"… ({ap.argmax():,})"
    np.testing.assert_allclose(drawn[0].axes[0].lines[0].get_ydata(), 100 * np.sort(ap)[::-1])


@pytest.mark.parametrize(("n", "shape"), [(1, (9, 7)), (3, (9, 7, 1)), (plots.MAX_LABELS + 5, (9, 7, 3))])
def test_attention_is_drawn_for_the_most_probable_labels(tmp_path, drawn, n, shape):
    rng = np.random.default_rng(0)
    weights, p, y = rng.random((n, n)), rng.permutation(n) / n, rng.random(n) < 0.5
    names = [f"label {i}" for i in range(n)]
    assert plots.attention(rng.normal(size=shape), names, weights, tmp_path / "x.png", p, y)
    order = np.argsort(-p)[: plots.MAX_LABELS]
    picture, heat = (axes.images[0].get_array() for axes in drawn[0].axes[:2])
    assert (picture.min(), picture.max()) == (0, 1)
    np.testing.assert_array_equal(heat, weights[order][:, order])
    matrix = drawn[0].axes[1]
    assert matrix.get_title("left") == "Attention between labels" + (
        ", 30 most probable of 35 labels" if n > 30 else ""
    )
    for axis in (matrix.xaxis, matrix.yaxis):
        assert [t.get_text() for t in axis.get_ticklabels()] == [names[i] for i in order]
    (panel,) = bars(drawn[0])
    assert panel == {names[i]: pytest.approx(100 * p[i]) for i in order}
    colours = [patch.get_facecolor() for patch in drawn[0].axes[2].patches]
    assert [c == colours[int(np.argmax(y[order]))] for c in colours] == y[order].tolist() or not y[order].any()


def test_attention_of_a_stored_or_blank_image_with_unknown_targets(tmp_path, drawn):
    image = np.array([[0, 100], [200, 50]], np.uint8)
    for some in (image, np.zeros((2, 2))):
        assert plots.attention(some, ["a"], np.ones((1, 1)), tmp_path / "x.png", np.ones(1))
    first, second = (figure.axes[0].images[0].get_array() for figure in drawn)
    np.testing.assert_array_equal(first, image)
    np.testing.assert_array_equal(second, 0)


def test_without_matplotlib_one_line_says_so_and_the_tables_are_written(runs, tmp_path, monkeypatch, capsys):
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    text = report.run([runs], output=tmp_path / "out")
    assert capsys.readouterr().err == "plots not drawn: matplotlib is missing (pip install matplotlib)\n"
    assert "curves.png" not in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.csv", "report.md", "report_runs.csv"]
    assert not plots.training([], tmp_path / "x.png")
    assert not plots.per_class_ap(["a"], np.ones(1), np.ones(1, int), tmp_path / "x.png")
    assert not plots.attention(np.ones((2, 2)), ["a"], np.ones((1, 1)), tmp_path / "x.png", np.ones(1), np.ones(1))


# -- retrogress ---------------------------------------------------------------------------------------------------------


def with_curve(run: Path, points: dict[str, list[tuple[int, float, float]]], own: bool) -> None:
    """Add each client's (round, before, after) to a run's records, of the model that travels or of its own."""
    names = ("own_before", "own_after") if own else ("received", "trained")
    lines = [json.loads(line) for line in (run / log.METRICS).read_text().splitlines()]
    for client, values in points.items():
        for line in lines:
            for round, *scores in values:
                if line["round"] == round:
                    line |= {f"curve/{n}/client/{client}": v for n, v in zip(names, scores, strict=True)}
    (run / log.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_communications_cost(tmp_path):
    """Means over clients and communications between rounds that follow each other, then over seeds; own models apart."""
    for seed, less in ((0, 0.0), (1, 0.1)):
        run = made_up(tmp_path, "fedavg", seed)
        # A loses 0.2 and gains 0.1; B, away in round 2, has no two rounds in a row
        with_curve(
            run, {"A": [(1, 0.1, 0.5), (2, 0.3 - less, 0.4), (3, 0.5, 0.6)], "B": [(1, 0, 0.9), (3, 0, 0.9)]}, False
        )
    prrfl = made_up(tmp_path, "prrfl")
    with_curve(prrfl, {"A": [(1, 0.1, 0.5), (2, 0.3, 0.4)]}, False)
    with_curve(prrfl, {"A": [(1, 0.1, 0.6), (2, 0.6, 0.7)]}, True)
    local = made_up(tmp_path, "local")
    with_curve(local, {"A": [(1, 0.1, 0.6), (2, 0.55, 0.7)]}, True)
    made_up(tmp_path, "unobserved")
    text = report.run([tmp_path])
    assert "| fedavg | 0.075 ± 0.035 | 0.500 ± 0.000 | 0.075 ± 0.035 |" in text
    assert "| prrfl | 0.200 | 1.000 | 0.000 |" in text
    assert "| local | 0.000 | 0.000 | 0.050 |" in text
    assert "| unobserved | 0" not in text
    picture = (tmp_path / "retrogress.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "(retrogress.png)" in text


def test_no_retrogress_where_nothing_was_scored(runs):
    text = report.run([runs], output=runs / "out")
    assert "communication" not in text
    assert not (runs / "out" / "retrogress.png").exists()
    assert not plots.retrogress({"a": [{"round": 1}]}, runs / "x.png", "macro_f1")


# -- transfer -----------------------------------------------------------------------------------------------------------


def test_transfer(tmp_path):
    """The target's value, and the others' mean, by method and target; a cross table stands for all targets."""

    def values(**clients):
        return {
            "round": 3,
            **{f"test/personal/macro_f1/client/{k}": v for k, v in clients.items()},
            "test/personal/macro_f1": 0,
        }

    for seed, more in ((0, 0.0), (1, 0.1)):
        made_up(tmp_path, "kd3a-A", seed, target="A", last=values(A=0.5 + more, B=0.8, C=0.6))
        made_up(tmp_path, "kd3a-B", seed, target="B", last=values(A=0.9, B=0.3, C=0.7))
    cross = {"macro_f1": {m: dict(zip("ABC", row, strict=True)) for m, row in
                          {"A": (0.9, 0.2, 0.1), "B": (0.4, 0.8, 0.2), "C": (0.6, 0.3, 0.7)}.items()}}  # fmt: skip
    made_up(tmp_path, "local-A", target="A", last=values(A=0.9, B=0.8, C=0.7), cross=cross)
    text = report.run([tmp_path], which="last", mix=True)
    assert "| kd3a | 0.550 ± 0.071 | 0.300 ± 0.000 | 0.425 |" in text
    assert "| kd3a | 0.700 ± 0.000 | 0.800 ± 0.000 | 0.750 |" in text
    assert "| local, with the target's labels | 0.900 | 0.800 | 0.850 |" in text
    assert "| local, another client's model, mean | 0.500 | 0.250 | 0.375 |" in text
    assert "| local, another client's model, best | 0.600 | 0.300 | 0.450 |" in text
    assert "| local | 0.750 | 0.800 | 0.775 |" in text


def test_no_transfer_without_a_target(runs):
    assert "Transfer" not in report.run([runs], output=runs / "out")
