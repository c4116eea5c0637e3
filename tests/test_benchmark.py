"""The benchmark runs, at a size at which its figures mean nothing, and writes what it prints."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_pfl import benchmark, models


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts in their smallest form."""
    monkeypatch.setattr(benchmark, "against_torch", lambda: {"ratio ours / PyTorch": 0.5})
    monkeypatch.setattr(benchmark, "fedlgt_against_torch", lambda: {"ratio ours / PyTorch": 0.625})
    monkeypatch.setattr(benchmark, "by_clients", lambda: {"10 clients": 0.25})
    monkeypatch.setattr(benchmark, "by_how", lambda: {"client.map=map": 0.125})
    monkeypatch.setattr(benchmark, "by_population", lambda: {"100 clients, 50 a round": 300.0})
    monkeypatch.setattr(benchmark, "pfa_against_numpy", lambda: {"ratio ours / NumPy": 0.375})
    monkeypatch.setattr(benchmark, "kd3a_against_torch", lambda: {"ratio ours / PyTorch": 0.875})
    monkeypatch.setattr(benchmark, "prrfl_against_torch", lambda: {"ratio DET / FedAvg": 2.125})


def test_prints_and_writes_what_it_returns(monkeypatch, tmp_path, capsys):
    small(monkeypatch)
    found = benchmark.run(workdir=str(tmp_path / "new"))
    printed = capsys.readouterr().out
    assert "ratio ours / PyTorch" in printed
    assert "0.500" in printed
    assert "0.625" in printed
    assert "300.000" in printed
    assert "0.375" in printed
    assert json.loads((tmp_path / "new" / "benchmark.json").read_text()) == json.loads(json.dumps(found))


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    monkeypatch.setattr(benchmark, "one_round", lambda *args: (lambda: None, 1.5))
    found = benchmark.against_torch(repeats=1, clients=1)
    assert "not installed" in found["PyTorch"]
    assert found["compile seconds"] == 1.5
    assert not any(key.startswith("ratio") for key in found)


def test_a_round_changes_the_model_and_compiles_once():
    x, y = benchmark._features(3 * 20)
    play, compile_seconds = benchmark.one_round(x, y, 3, "mlp", {"hidden": (4,)}, 10, "map")
    assert compile_seconds > 0
    play()
    play()  # the state was donated: the second round needs the first one's


def test_times_leave_the_first_out():
    calls: list[str] = []
    times = benchmark._times({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(t) for t in times.values()] == [2, 2]


@pytest.mark.parametrize(("fidelity", "half"), [("paper", False), ("paper", True), ("reference", False)])
def test_numpys_aggregation_is_ours(fidelity, half):
    """Four clients, as many as the released code divides by; positive sums, whose phases don't cancel out."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 5), "one": (1, 1, 1, 4), "fc1": (9, 8), "fc2": (8, 3)}
    stacked = {"params": {name: {"kernel": rng.random((4, *shape))} for name, shape in shapes.items()}}
    stacked["params"]["fc2"]["bias"] = rng.normal(size=(4, 3))
    stacked["params"]["bn"] = {"scale": rng.normal(size=(4, 5))}
    stacked["batch_stats"] = {"bn": {"mean": rng.normal(size=(4, 5))}}
    step, _ = benchmark._pfa(stacked, jnp.ones(4), "fc2", fidelity)
    ours, theirs = (
        step(stacked, jnp.ones(4), 0),
        benchmark.benchmark_numpy.pfa(stacked, 0.7, "fc2", paper=fidelity == "paper", half=half),
    )
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_pfas_measurement():
    found = benchmark.pfa_against_numpy(clients=2, repeats=1, model="resnet8", most=2)
    assert all(value > 0 for value in found.values())
    assert "peak memory / stacked weights, paper" in found
    assert "ratio ours / NumPy, paper, half spectra" in found


@pytest.mark.slow
@pytest.mark.parity
def test_ratio_to_torch():
    pytest.importorskip("torch")
    found = benchmark.against_torch(repeats=2, clients=1)
    assert 0 < found["ratio, least"] <= found["ratio ours / PyTorch"] <= found["ratio, most"]


@pytest.mark.parity
def test_ratio_is_ours_by_theirs(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmark, "one_round", lambda *args: (lambda: None, 1.0))
    monkeypatch.setattr(benchmark.benchmark_torch, "fedavg_round", lambda *args, **options: lambda: None)
    monkeypatch.setattr(benchmark, "_times", lambda *args: {"ours": [1.0, 2.0, 1.5], "PyTorch": [2.0, 2.0, 2.0]})
    found = benchmark.against_torch(clients=2)
    assert [found[f"ratio{name}"] for name in (" ours / PyTorch", ", least", ", most")] == [0.75, 0.5, 1.0]


@pytest.mark.slow
@pytest.mark.parity
def test_fedlgts_ratio_to_torch():
    pytest.importorskip("torch")
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction promotes
        found = benchmark.fedlgt_against_torch(repeats=1, clients=1)
    assert found["ratio ours / PyTorch"] > 0


@pytest.mark.parity
def test_the_network_in_torch_is_ours():
    """As many parameters and running statistics, and the same number of visual tokens in front of the labels."""
    torch = pytest.importorskip("torch")
    u, e = np.zeros((20, 512), np.float32), np.zeros((2, 512), np.float32)
    net = benchmark.benchmark_torch._label_mask_transformer(torch.from_numpy(u), torch.from_numpy(e))
    model = models.build("ctran", 20).clone(label_table=u, state_table=e)
    ours = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32))
    sizes = sorted(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours))
    assert sorted(entry.numel() for entry in net.state_dict().values() if entry.is_floating_point()) == sizes
    assert net(torch.zeros(2, 3, 64, 64), torch.full((2, 20), -1)).shape == (2, 20)


@pytest.mark.parity
def test_torchs_round_ends_with_the_mean():
    """Client k adds k + 1 to the server's model, from which each of them starts."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(2, 1)
    before = net.weight.detach().clone()

    def client(k: int) -> None:
        with torch.no_grad():
            net.weight.add_(k + 1)

    play = benchmark.benchmark_torch._round(net, 3, client)
    play()
    play()
    torch.testing.assert_close(net.weight.detach(), before + 2 * (1 + 2 + 3) / 3)
