"""The benchmark runs, at a size at which its figures mean nothing, and writes what it prints."""

import importlib.util
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_pfl import benchmark, models


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts in their smallest form."""
    whole = {"seconds per round": 1.5, "floor, seconds": 0.25, "ratio ours / floor": 6.0, "compile seconds": 2.0}
    whole |= {"examples per second": 1234.0, "seconds per round, PyTorch": 3.0, "ratio ours / PyTorch": 0.5}
    monkeypatch.setattr(benchmark, "against_torch", lambda: whole | {"Flower": "not installed"})
    monkeypatch.setattr(benchmark, "resnet_against_torch", lambda: whole | {"seconds per round, Flower": 7.5})
    monkeypatch.setattr(benchmark, "by_lanes", lambda: {"utilisation, 3 lanes": 0.96875})
    monkeypatch.setattr(benchmark, "by_runs", lambda: {"4 runs apart": 1.25})
    monkeypatch.setattr(benchmark, "by_call", lambda: {"rounds_per_call=1": 0.625})
    monkeypatch.setattr(benchmark, "by_devices", lambda: {"devices=1": 0.75})
    monkeypatch.setattr(benchmark, "fedlgt_against_torch", lambda: {"ratio ours / PyTorch": 0.625})
    monkeypatch.setattr(benchmark, "by_clients", lambda: {"10 clients": 0.25})
    monkeypatch.setattr(benchmark, "by_how", lambda: {"client.map=map": 0.125})
    monkeypatch.setattr(benchmark, "by_population", lambda: {"100 clients, 50 a round": 300.0})
    monkeypatch.setattr(benchmark, "by_streaming", lambda: {"share of the time that the device waits": 0.03125})
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
    assert [" ".join(line.split()) for line in printed.splitlines()[-3:]] == [
        "seconds per round ours floor ours/floor PyTorch ours/PyTorch Flower ours/Flower examples/s compile s",
        "FedAvg, CNN of pfl-research 1.5 0.25 6 3 0.5 - - 1.23e+03 2",
        "FedAvg, ResNet-18 1.5 0.25 6 3 0.5 7.5 - 1.23e+03 2",
    ]
    assert "0.375" in printed
    assert json.loads((tmp_path / "new" / "benchmark.json").read_text()) == json.loads(json.dumps(found))


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    monkeypatch.setattr(benchmark, "one_round", lambda *args: benchmark.Round(lambda: None, 1.5, 0.5))
    found = benchmark.against_torch(repeats=1, clients=1)
    assert "not installed" in found["PyTorch"]
    assert found["compile seconds"] == 1.5
    assert [key for key in found if key.startswith("ratio")] == ["ratio ours / floor"]
    assert "PyTorch" not in benchmark.table({"a": found})


def test_a_round_changes_the_model_and_compiles_once(monkeypatch):
    x, y = benchmark._features(3 * 20)
    monkeypatch.setattr(benchmark, "_rate", lambda: 1000.0)
    play, compile_seconds, floor = benchmark.one_round(x, y, 3, "mlp", {"hidden": (4,)}, 10, "map")
    assert compile_seconds > 0
    # 2 steps of each of 3 clients; products of 64 x 4 forward and backward, of 4 x 10 forward and back to weights and inputs
    assert floor == 6 * 10 * 2 * (2 * 64 * 4 + 3 * 4 * 10) / 1000
    play()
    play()  # the state was donated: the second round needs the first one's


def test_products():
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    one = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)  # two for each multiplication
    assert benchmark.products(conv, image, kernel) == one
    gradients = benchmark.products(jax.grad(lambda *args: conv(*args).sum(), (0, 1)), image, kernel)
    assert gradients == 3 * one  # forward, to the input and to the kernel

    a = jnp.zeros((4, 4))
    square = 2 * 4**3
    assert benchmark.products(jax.jit(lambda a: a @ a), a) == square
    assert benchmark.products(lambda a: jax.lax.scan(lambda c, _: (c @ c, None), a, None, 5)[0], a) == 5 * square
    both = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a)  # noqa: E731
    assert benchmark.products(both, a) == 2 * square
    assert benchmark.products(lambda a, n: jax.lax.fori_loop(0, n, lambda i, c: c + a, a), a, 3) == 0
    with pytest.raises(NotImplementedError):
        benchmark.products(lambda a, n: jax.lax.fori_loop(0, n, lambda i, c: c @ a, a), a, 3)


def test_by_lanes():
    found = benchmark.by_lanes(clients=20, epochs=1)
    names = [name.removeprefix("seconds per round, ") for name in found if name.startswith("seconds")]
    assert names[:3] == ["client.map=map", "client.map=vmap", "client.map=20"]
    assert names[3].endswith(" lanes")
    assert [name for name in found if name.startswith("utilisation")] == [f"utilisation, {name}" for name in names]
    assert found["utilisation, client.map=map"] == 1
    assert found["utilisation, client.map=vmap"] == found["utilisation, client.map=20"] < 0.9
    assert 0.9 <= found[f"utilisation, {names[3]}"] <= 1


def test_by_call():
    found = benchmark.by_call(population=4, size=2, calls=(1, 2), rounds=4)
    assert list(found) == ["rounds_per_call=1", "rounds_per_call=2"]
    assert all(seconds > 0 for seconds in found.values())


def test_by_streaming():
    found = benchmark.by_streaming(users=6, size=2, rounds=3, side=8, model="cnn_pfl")
    assert found["seconds per round"] > 0
    assert found["seconds to read a cohort meanwhile"] > 0
    assert 0 < found["share of the time that the device waits"] < 1


def test_needs_neither_ml_collections_nor_tfds():
    blocked = "import sys; sys.modules.update(dict.fromkeys(('ml_collections', 'tensorflow_datasets', 'tensorflow')))"
    program = f"{blocked}; from fedjax_pfl import benchmark; print(benchmark.by_lanes(clients=3, epochs=1))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "utilisation" in done.stdout


def test_by_runs():
    found = benchmark.by_runs(number=2, clients=3, rounds=2)
    assert list(found) == ["2 runs apart", "2 runs as one program"]
    assert all(seconds > 0 for seconds in found.values())


def test_by_devices():
    """Of the four that conftest makes."""
    found = benchmark.by_devices(clients=6)
    assert list(found) == ["devices=1", "devices=2", "devices=4"]
    assert all(seconds > 0 for seconds in found.values())


@pytest.mark.slow
def test_memory_follows_the_cohort_where_states_are_on_the_host():
    """Of 75 KiB a client, 10,000 would be 730 MiB."""
    few, many = benchmark.by_population((), 5, (100, 10_000)).values()
    assert many < few + 200


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
    ratio = "ratio ours / PyTorch"
    assert 0 < found[f"{ratio}, least"] <= found[ratio] <= found[f"{ratio}, most"]


@pytest.mark.parity
def test_ratio_is_ours_by_theirs(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmark, "one_round", lambda *args: benchmark.Round(lambda: None, 1.0, 0.5))
    monkeypatch.setattr(benchmark.benchmark_torch, "fedavg_round", lambda *args, **options: lambda: None)
    monkeypatch.setattr(
        benchmark,
        "_times",
        lambda rounds, repeats: {name: [1.0, 2.0, 1.5] if name == "ours" else [2.0, 2.0, 2.0] for name in rounds},
    )
    found = benchmark.against_torch(clients=2)
    assert [found[f"ratio ours / PyTorch{name}"] for name in ("", ", least", ", most")] == [0.75, 0.5, 1.0]
    assert found["ratio ours / floor"] == 3.0
    missing = [name for name, (module, _) in benchmark.benchmark_peers.PEERS.items() if name in found]
    assert all("not installed" in found[name] for name in missing)


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
