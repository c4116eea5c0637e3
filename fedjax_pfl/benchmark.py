"""How fast a round is: `launch.py --mode=benchmark`. Ratios within one process, so that the machine cancels out.

1. One FedAvg round of pfl-research's CIFAR-10 benchmark (50 clients x 50 random 32x32x3 images, one epoch of batch 10, conv
   3x3x32 - conv 3x3x64 - pool 2 - dense 128 - dense 10 with dropout, lr 0.1) against the same loop over clients in PyTorch,
   and in pfl-research and Flower themselves where they are installed.
2. One FedAvg round of ResNet-18 (4 clients x 64 images of 64x64, batch 16) against the same in PyTorch.
3. One FedLGT round (8 clients x 64 images of 64x64, ResNet-18, 20 labels, batch 16, one epoch) against the same in PyTorch.
4. One PRR-FL round (3 clients x 64 images of 64x64, VGG16-slim, batch 16, 3 epochs; PFA, DET and CPA) against the same in
   PyTorch, and an epoch of deputy-enhanced transfer against one of FedAvg.
5. One KD3A epoch (5 parties x 512 images of 32x32, batch 64) against the same in PyTorch.
6. Time per round against the number of clients (linear), by how clients run (one after the other, together, in chunks), and
   by rounds in a call, and by the number of devices where there are several.
7. Peak memory against the population at one cohort size: it follows the cohort, also where a method keeps a state of each
   client, if these are on the host.
8. Images read from an HDF5 file like FLAIR's while the device works: the share of its time that it waits for them.
9. Progressive Fourier aggregation of 10 clients' ResNet-18 (time is linear in the clients) against the same as a NumPy loop
   and against the plain mean, and for 50 clients its peak memory against the stacked weights.

The floor of a round is the time that the matrix products and convolutions of its training steps would take at the rate of
one large product of this machine, measured beside it: less is not possible without another way to convolve.
"""

import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedjax_pfl import (
    algorithms,
    benchmark_numpy,
    benchmark_peers,
    benchmark_torch,
    cohort,
    core,
    fourier,
    lanes,
    local,
    log,
    losses,
    models,
    problem,
    score,
    store,
    together,
    tree,
)
from fedjax_pfl.core import How
from fedjax_pfl.data.lazy import H5Images
from fedjax_pfl.local import Training
from fedjax_pfl.rounds import Work

CLIENTS, EXAMPLES, BATCH, LR = 50, 50, 10, 0.1
LABELS = 20
THEIRS = "seconds per round, "  # and a name
OFF = ("flip_vertical", "shift", "scale", "rotate", "shift_scale_rotate_p", "crop_padding")
OFF += ("brightness", "brightness_p", "contrast", "contrast_p")


class Section(dict[str, Any]):
    """Stands for a section of the config, so that this module needs no ml_collections."""

    __getattr__ = dict.__getitem__


FLIPS = Section({**dict.fromkeys(OFF, 0), "flip_horizontal": 0.5, "mean": (0.0,), "std": (1.0,)})
HALVES = Section({**FLIPS, "flip_horizontal": 0, "mean": (0.5,), "std": (0.5,)})  # inputs from -1 to 1


def run(config: Any = None, workdir: str | None = None) -> dict[str, Any]:
    """Measure and print everything; with a `workdir` also write `benchmark.json` there.

    Args:
        config: not used; a benchmark is a fixed setting.
    """
    print(f"{log.device()}; {', '.join(f'{k} {v}' for k, v in log.versions().items())}\n")
    found: dict[str, Any] = {"device": log.device(), "versions": log.versions()}
    for name, measure in (
        ("FedAvg, CNN of pfl-research", against_torch),
        ("FedAvg, ResNet-18", resnet_against_torch),
        ("FedLGT, ResNet-18", fedlgt_against_torch),
        ("PRR-FL v2, VGG16-slim", prrfl_against_torch),
        ("KD3A, digit CNN", kd3a_against_torch),
        ("seconds per round by number of clients", by_clients),
        ("seconds per round by how clients run", by_how),
        ("clients of very different sizes, by how they run", by_lanes),
        ("seconds per round by rounds in a call", by_call),
        ("seconds of several runs", by_runs),
        ("seconds per round by number of devices", by_devices),
        ("peak memory (MiB) by population", by_population),
        ("images read while the device works", by_streaming),
        ("progressive Fourier aggregation", pfa_against_numpy),
    ):
        print(name, flush=True)
        found[name] = measure()
        for key, value in found[name].items():
            print(f"  {key:<44} {value if isinstance(value, str) else f'{value:.3f}'}", flush=True)
    print(f"\n{table(found)}")
    if workdir is not None:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        log.write_json(Path(workdir) / "benchmark.json", found)
    return found


def table(found: Mapping[str, Any]) -> str:
    """One line for each round: our seconds, the floor, and everybody else's."""
    rounds = {name: value for name, value in found.items() if isinstance(value, dict) and "seconds per round" in value}
    others = dict.fromkeys(
        key.removeprefix(THEIRS) for each in rounds.values() for key in each if key.startswith(THEIRS)
    )
    rows = [["seconds per round", "ours", "floor", "ours/floor"]]
    rows[0] += [head for name in others for head in (name, f"ours/{name}")] + ["examples/s", "compile s"]
    for name, each in rounds.items():
        keys = ["seconds per round", "floor, seconds", "ratio ours / floor"]
        keys += [key for other in others for key in (THEIRS + other, f"ratio ours / {other}")]
        keys += ["examples per second", "compile seconds"]
        rows.append([name, *(f"{each[key]:.3g}" if key in each else "-" for key in keys)])
    return log.columns(rows)


def against_torch(repeats: int = 7, clients: int = CLIENTS) -> dict[str, Any]:
    """The round of pfl-research's CIFAR-10 benchmark, ours and PyTorch's in turn."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (clients * EXAMPLES, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(0, 10, clients * EXAMPLES).astype(np.int32)
    ours = one_round(x, y, clients, "cnn_pfl", {}, BATCH, "auto")
    if util.find_spec("torch") is None:
        return _compared(ours, None, repeats, len(x))
    theirs = {"PyTorch": benchmark_torch.fedavg_round(x, y, clients, batch=BATCH, lr=LR)}
    missing = {
        name: f"not installed (pip install '{package}'), so no ratio"
        for name, (module, package) in benchmark_peers.PEERS.items()
        if util.find_spec(module) is None
    }
    if "pfl-research" not in missing:
        theirs["pfl-research"] = benchmark_peers.pfl_research(x, y, clients, batch=BATCH, lr=LR)
    found: dict[str, Any] = missing | _compared(ours, theirs, repeats, len(x))
    if "Flower" not in missing:  # its clients are processes: it can't take turns
        seconds = statistics.median(benchmark_peers.flower(x, y, clients, batch=BATCH, lr=LR))
        found |= {THEIRS + "Flower": seconds, "ratio ours / Flower": found["seconds per round"] / seconds}
    return found


def resnet_against_torch(repeats: int = 3, clients: int = 4) -> dict[str, Any]:
    """A FedAvg round of ResNet-18: clients x 64 images of 64x64, batch 16, one epoch."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (clients * 64, 64, 64, 3), dtype=np.uint8)
    y = rng.integers(0, 10, len(x)).astype(np.int32)
    ours = one_round(x, y, clients, "resnet18", {}, 16, "auto")
    if util.find_spec("torch") is None:
        return _compared(ours, None, repeats, len(x))
    theirs = {"PyTorch": benchmark_torch.resnet18_round(x, y, clients, batch=16, lr=LR)}
    return _compared(ours, theirs, repeats, len(x))


def fedlgt_against_torch(repeats: int = 3, clients: int = 8) -> dict[str, Any]:
    """A FedLGT round: clients x 64 images of 64x64, ResNet-18, 20 labels, batch 16, 1 epoch, flips; CA-MLE included."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (clients * 64, 64, 64, 3), dtype=np.uint8)
    y = (rng.random((len(x), LABELS)) < 0.2).astype(np.uint8)
    u = rng.normal(size=(LABELS, 512)).astype(np.float32) / 512**0.5
    e = rng.normal(size=(2, 512)).astype(np.float32) / 512**0.5
    model = models.build("ctran", LABELS).clone(label_table=u, state_table=e)
    setup = problem.build(
        model,
        x[0],
        "multi",
        loss=partial(losses.binary_cross_entropy, reduction="sum"),
        summed=True,
        augmentation=FLIPS,
    )
    training = Training(
        loss=setup.loss,
        layers=model.layers,
        lr=local.schedule("constant", 1e-4, rounds=1),
        optimizer=local.optimizer(optax.scale_by_adam, clip=10.0),
        batch_size=16,
        summed=True,
        label_mask=setup.label_mask,
    )
    ours = _play(training, setup, "fedlgt", x, y, clients)
    if util.find_spec("torch") is None:
        return _compared(ours, None, repeats, len(x))
    return _compared(ours, {"PyTorch": benchmark_torch.fedlgt_round(x, y, u, e, clients)}, repeats, len(x))


def prrfl_against_torch(repeats: int = 2, clients: int = 3, epochs: int = 3) -> dict[str, Any]:
    """A PRR-FL round (v2): clients x 64 images of 64x64, 3 classes, batch 16, flips, scored on 16 validation images each."""
    rng = np.random.default_rng(0)
    n = clients * 64
    x = rng.integers(0, 256, (n + clients * 16, 64, 64, 3), dtype=np.uint8)
    y = rng.integers(0, 3, len(x)).astype(np.int32)
    model = models.build("vgg16_slim", 3)
    setup = problem.build(model, x[0], "single", augmentation=FLIPS)
    assert setup.network is not None
    training = Training(
        loss=setup.loss,
        layers=model.layers,
        lr=local.schedule("constant", 0.01, rounds=1),
        optimizer=local.optimizer(local.sgd, weight_decay=1e-6),
        epochs=epochs,
        batch_size=16,
        network=setup.network,
        counts=tuple(int(c) for c in np.bincount(y[:n], minlength=3)),
        score=score.build(setup.network, score.metric("single")),
    )
    validation = np.array_split(np.arange(n, len(x)), clients)
    whole = _play(training, setup, "prrfl", x, y, clients, {"start": 0}, validation, models=2)
    det = _play(training, setup, "prrfl", x, y, clients, {"pfa": False, "cpa_weight": 0.0}, validation)
    fedavg = _play(training, setup, "fedavg", x, y, clients, {}, validation)
    each = _times({"det": det.play, "fedavg": fedavg.play}, repeats)
    times = {name: statistics.median(t) for name, t in each.items()}
    theirs = None
    if util.find_spec("torch") is not None:
        theirs = {"PyTorch": benchmark_torch.prrfl_round(x[:n], y[:n], x[n:], y[n:], clients, epochs=epochs)}
    return {"ratio DET / FedAvg": times["det"] / times["fedavg"], **_compared(whole, theirs, repeats, n * epochs)}


def kd3a_against_torch(repeats: int = 3, clients: int = 5, width: float = 0.5) -> dict[str, Any]:
    """An epoch of KD3A by its released code: four sources and a target x 512 images, half the digit CNN's width, batch 64."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (clients * 512, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(0, 10, len(x)).astype(np.int32)
    model = models.build("cnn_digit", 10, width=width)
    setup = problem.build(model, x[0], "single", augmentation=HALVES)
    assert setup.network is not None
    training = Training(
        loss=setup.loss,
        layers=model.layers,
        lr=local.schedule("constant", 0.01, rounds=1),
        optimizer=local.optimizer(partial(local.sgd, 0.9), weight_decay=5e-4),
        batch_size=64,
        network=setup.network,
        score=score.build(setup.network, score.metric("single")),
        clients=tuple(map(str, range(clients))),
        sizes=(512,) * clients,
        init=setup.init,
    )
    ours = _play(training, setup, "kd3a", x, y, clients, {"fidelity": "reference"})
    theirs = None
    if util.find_spec("torch") is not None:
        theirs = {"PyTorch": benchmark_torch.kd3a_epoch(x, y, clients, width=width, batch=64)}
    return _compared(ours, theirs, repeats, len(x))


def by_clients(numbers: tuple[int, ...] = (10, 100, 1000)) -> dict[str, float]:
    """Rounds in which all of so many clients with 20 examples of 64 features each train a small MLP."""
    found: dict[str, float] = {}
    for clients in numbers:
        ours = one_round(*_features(clients * 20), clients, "mlp", {"hidden": (64,)}, BATCH, "auto")
        found[f"{clients} clients"] = statistics.median(_times({"ours": ours.play}, 5)["ours"])
    return found


def by_how(clients: int = 100, hows: tuple[How, ...] = ("map", "vmap", "10")) -> dict[str, float]:
    """The same MLP, its clients one after the other, all together, ten at a time."""
    rounds = {}
    for how in hows:
        rounds[str(how)] = one_round(*_features(clients * 20), clients, "mlp", {"hidden": (64,)}, BATCH, how).play
    return {f"client.map={how}": statistics.median(times) for how, times in _times(rounds, 5).items()}


def by_lanes(clients: int = 200, epochs: int = 2) -> dict[str, float]:
    """The same MLP of clients as skewed as FLAIR's: seconds a round, and useful / executed steps.

    The clients run in turn, all together, in chunks, and in as many lanes as are busy nine tenths of the time.
    """
    sizes = -np.sort(-skewed(clients))
    steps = epochs * -(-sizes // BATCH)
    number, rounds, found = lanes.number([steps]), {}, {}
    for how in ("map", "vmap", "20", core.Lanes(number)):
        name = f"{number} lanes" if isinstance(how, core.Lanes) else f"client.map={how}"
        setup, training = _training(_features(1)[0], "mlp", {"hidden": (64,)}, BATCH, how)
        training = training._replace(epochs=epochs)
        rounds[name] = _play(training, setup, "fedavg", *_features(int(sizes.sum())), clients, sizes=sizes).play
        found[f"utilisation, {name}"] = int(steps.sum()) / cohort.executed(steps, how)
    times = _times(rounds, 5)
    return {f"seconds per round, {name}": statistics.median(times[name]) for name in times} | found


def skewed(clients: int, seed: int = 0) -> np.ndarray:
    """Examples of clients with FLAIR's quartiles (1, 2 and 5 images), a tail that gives its mean (8), and at most 512."""
    u = np.random.default_rng(seed).random(clients)
    tail = 5 * (0.25 / (1 - np.maximum(u, 0.75))) ** (1 / 1.25)
    sizes = np.where(u < 0.75, np.interp(u, (0, 0.25, 0.5, 0.75), (1, 1, 2, 5)), tail)
    return np.minimum(np.rint(sizes), 512).astype(np.int32)


def by_call(
    population: int = 100, size: int = 10, calls: tuple[int, ...] = (1, 10), rounds: int = 20
) -> dict[str, float]:
    """The same MLP, new cohorts of a population, so many rounds in a call of the compiled program; the host's part included."""
    x, y = _features(population * 20)
    setup, training = _training(x, "mlp", {"hidden": (64,)}, BATCH, "auto")
    algorithm = algorithms.build("fedavg", training)
    rows = cohort.Rows(cohort.Pool(x, y), np.array_split(np.arange(len(x)), population))
    sampler = cohort.Sampler(rows.counts, sampling="uniform", size=size)
    key, plays = jax.random.key(0), {}

    def cohorts(start: int, each: int) -> Any:
        some = [cohort.assemble(rows, *sampler(start + i)) for i in range(each)]
        return some[0] if each == 1 else jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *some)

    for each in calls:
        state = algorithm.init(setup.init(key), population)
        compiled = core.jit_round(algorithm, several=each > 1).lower(state, cohorts(0, each), key).compile()
        box = [state]

        def play(box: list[Any] = box, compiled: Any = compiled, each: int = each) -> None:
            some = cohorts(0, each)
            for start in range(0, rounds, each):
                box[0], reports = compiled(box[0], some, key)
                some = cohorts(start + each, each)
                jax.device_get(reports)

        plays[f"rounds_per_call={each}"] = play
    return {name: statistics.median(times) / rounds for name, times in _times(plays, 5).items()}


def by_runs(number: int = 4, clients: int = 100, rounds: int = 20) -> dict[str, float]:
    """Seconds of the same MLP's rounds for so many seeds and learning rates, compiling included: apart, and as one program."""
    x, y = _features(clients * 20)
    rows = cohort.Rows(cohort.Pool(x, y), np.array_split(np.arange(len(x)), clients))
    some, keys = cohort.assemble(rows, np.arange(clients)), [jax.random.key(seed) for seed in range(number)]
    setup, training = _training(x, "mlp", {"hidden": (64,)}, BATCH, "auto")
    runs = [
        algorithms.build(
            "fedavg", training._replace(seed=seed, lr=local.schedule("constant", LR / (1 + seed), rounds=1))
        )
        for seed in range(number)
    ]

    def stack(*trees: Any) -> Any:
        return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *trees)

    def played(round: Any, *args: Any) -> float:
        state, *others = args
        began = time.perf_counter()
        for _ in range(rounds):
            state, _ = round(state, *others)
        jax.block_until_ready(state)
        return time.perf_counter() - began

    starts = [run.init(setup.init(key), clients) for run, key in zip(runs, keys, strict=True)]
    one = together.jit_rounds(runs)
    at_once = played(one, stack(*starts), stack(*[some] * number), stack(*keys))
    apart = sum(
        played(core.jit_round(run), start, some, key) for run, start, key in zip(runs, starts, keys, strict=True)
    )
    return {f"{number} runs apart": apart, f"{number} runs as one program": at_once}


def by_devices(clients: int = 100) -> dict[str, Any]:
    """The same MLP, its clients dealt out to 1, 2, 4, ... devices."""
    devices, rounds = jax.devices(), {}
    if len(devices) == 1:
        return {"devices": "one, so nothing to compare"}
    x, y = _features(clients * 20)
    numbers = [2**i for i in range(len(devices).bit_length()) if 2**i <= len(devices)]
    for number in numbers:
        how = core.Sharded(core.mesh(devices[:number]), "auto")
        rounds[f"devices={number}"] = one_round(x, y, clients, "mlp", {"hidden": (64,)}, BATCH, how).play
    return {name: statistics.median(times) for name, times in _times(rounds, 5).items()}


def by_population(
    populations: tuple[int, ...] = (100, 10_000, 100_000), size: int = 50, stateful: tuple[int, ...] = (100, 100_000)
) -> dict[str, float]:
    """Peak memory of a process that runs three rounds of `size` clients drawn from a population.

    FedAvg's, whose clients keep nothing, and SCAFFOLD's, whose 75 KiB of each client are on the host.
    """
    found = {}
    for method, numbers in ("fedavg", populations), ("scaffold", stateful):
        for population in numbers:
            command = [sys.executable, "-m", "fedjax_pfl.benchmark", method, str(population), str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[f"{method}, {population} clients, {size} a round"] = json.loads(done.stdout)["peak_mib"]
    return found


def by_streaming(
    users: int = 60, size: int = 6, rounds: int = 4, side: int = 256, model: str = "resnet18"
) -> dict[str, float]:
    """FedAvg rounds of so many users, 4 to 8 images each, read cohort by cohort from a compressed HDF5 file.

    The images (random, [side, side, 3] uint8, as FLAIR's) are decompressed on the host while the device works on the cohort
    before. Waiting is what the device spends between two rounds.
    """
    import h5py  # no other part of the benchmark needs it

    rng = np.random.default_rng(0)
    counts = rng.integers(4, 9, users)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users.h5"
        with h5py.File(path, "w") as file:
            for user, count in enumerate(counts):
                images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
                file.create_dataset(f"train/{user}/images", data=images, chunks=(1, side, side, 3), compression="gzip")
        owner = np.repeat(np.arange(users), counts)
        offset = np.concatenate([np.arange(count) for count in counts])
        x = H5Images(path, [f"train/{user}/images" for user in range(users)], owner, offset, (side, side, 3))
        y = rng.integers(0, 10, len(x)).astype(np.int32)
        rows = cohort.Rows(cohort.Pool(x, y), np.split(np.arange(len(x)), np.cumsum(counts)[:-1]))
        rows.pad_to(int(counts.max()))  # one shape
        sampler = cohort.Sampler(rows.counts, sampling="uniform", size=size)
        setup, training = _training(x[:1], model, {}, int(counts.max()), "auto")
        algorithm, key = algorithms.build("fedavg", training), jax.random.key(0)
        state, some, read = algorithm.init(setup.init(key), users), cohort.assemble(rows, *sampler(0)), []
        compiled = core.jit_round(algorithm, training.how).lower(state, some, key).compile()
        with Work() as work:
            for round in range(rounds):
                state, _ = work.start(lambda state=state, some=some: compiled(state, some, key))
                began = time.perf_counter()
                some = cohort.assemble(rows, *sampler(round + 1))
                read.append(time.perf_counter() - began)
                work.finish()
        assert work.idle is not None
        return {
            "seconds per round": (work.working + work.waiting) / rounds,
            "seconds to read a cohort meanwhile": statistics.median(read),
            "share of the time that the device waits": work.idle,
        }


def pfa_against_numpy(
    clients: int = 10, repeats: int = 2, model: str = "resnet18", most: int = CLIENTS
) -> dict[str, Any]:
    """One aggregation (amplitude and phase, rate 0.7) of so many clients' models, by either fidelity.

    NumPy's loop runs once. That with full transforms is the released code's way to write it. Memory is measured with `most`
    clients, beside which what compiling takes is small.
    """
    stacked, classifier = _uploads(clients, model)
    weights = jax.numpy.ones(clients)
    mean = jax.jit(tree.weighted_mean)
    rounds: dict[str, Callable[[], None]] = {"mean": lambda: jax.block_until_ready(mean(stacked, weights))}
    found: dict[str, Any] = {"clients": clients}
    for fidelity in ("paper", "reference"):
        step, seconds = _pfa(stacked, weights, classifier, fidelity)
        found[f"compile seconds, {fidelity}"] = seconds
        rounds[fidelity] = partial(lambda step: jax.block_until_ready(step(stacked, weights, 0)), step)
    times = {name: statistics.median(seconds) for name, seconds in _times(rounds, repeats).items()}
    found |= {f"seconds, {name}": seconds for name, seconds in times.items()}
    found["ratio to the plain mean"] = times["paper"] / times["mean"]
    for fidelity, half in (("paper", False), ("paper", True), ("reference", False)):
        began = time.perf_counter()
        benchmark_numpy.pfa(stacked, 0.7, classifier, paper=fidelity == "paper", half=half)
        name = fidelity + (", half spectra" if half else "")
        found[f"ratio ours / NumPy, {name}"] = times[fidelity] / (time.perf_counter() - began)
    for fidelity in ("paper", "reference"):
        command = [sys.executable, "-m", "fedjax_pfl.benchmark", "pfa", str(most), model, fidelity]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"peak memory / stacked weights, {fidelity}"] = json.loads(done.stdout)["peak_by_weights"]
    return found


class Round(NamedTuple):
    """A round that is measured."""

    play: Callable[[], None]
    compile_seconds: float
    floor: float  # seconds that the products of its training steps alone would take


def one_round(
    x: np.ndarray, y: np.ndarray, clients: int, model: str, options: Mapping[str, Any], batch_size: int, how: How
) -> Round:
    """A FedAvg round of all clients."""
    setup, training = _training(x, model, options, batch_size, how)
    return _play(training, setup, "fedavg", x, y, clients)


def _play(
    training: Training,
    setup: problem.Problem,
    method: str,
    x: np.ndarray,
    y: np.ndarray,
    clients: int,
    options: Mapping[str, Any] | None = None,
    validation: Sequence[np.ndarray] = (),
    models: int = 1,
    sizes: np.ndarray | None = None,
) -> Round:
    """Rows that aren't some client's validation rows are its training rows; each client trains so many models.

    The clients have as many rows as each other, or `sizes` [clients].
    """
    algorithm = algorithms.build(method, training, options)
    pool = cohort.Pool(x, y)
    parts = clients if sizes is None else np.cumsum(sizes)[:-1]
    rows = cohort.Rows(pool, np.array_split(np.arange(len(x) - sum(map(len, validation))), parts))
    scored = cohort.Rows(pool, validation) if algorithm.validates else None
    ids = np.arange(clients, dtype=np.int32)
    some = cohort.assemble(rows, ids, how=training.how, validation=scored)
    key = jax.random.key(0)
    state = core.everywhere(algorithm.init(setup.init(key), clients), training.how)
    began = time.perf_counter()
    compiled = core.jit_round(algorithm, training.how).lower(state, some, key).compile()
    compile_seconds = time.perf_counter() - began
    box = [state]

    def play() -> None:
        box[0], report = compiled(box[0], some, key)
        jax.block_until_ready((box[0], report))

    steps = models * training.epochs * int(sum(-(-count // training.batch_size) for count in rows.counts))
    return Round(play, compile_seconds, steps * _step(training, setup, x, y) / _rate())


def _step(training: Training, setup: problem.Problem, x: np.ndarray, y: np.ndarray) -> float:
    """Floating-point operations of the products of one training step."""
    size, key = training.batch_size, jax.random.key(0)
    rows = [((size, *each.shape[1:]), each.dtype) for each in (x, y)]
    shapes: list[Any] = [
        jax.ShapeDtypeStruct(*of) for of in (*rows, ((size,), bool), ((), np.float32), ((size,), np.int32))
    ]
    variables = dict(jax.eval_shape(setup.init, key))
    params = variables.pop("params")

    def loss(params: Any, others: Any, batch: local.Batch) -> Any:
        return training.loss({"params": params, **others}, batch, key)

    return products(jax.value_and_grad(loss, has_aux=True), params, variables, local.Batch(*shapes))


def products(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of a function, two for each multiplication.

    Of a branch the most that it may take. Raises NotImplementedError for a loop whose length isn't known.
    """

    def of(program: Any) -> float:
        total = 0.0
        for equation in program.eqns:
            name, params = equation.primitive.name, equation.params
            shapes = [var.aval.shape for var in equation.invars]
            if name == "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
            elif name == "conv_general_dilated":
                kernel = params["dimension_numbers"].rhs_spec
                each = math.prod(shapes[1][i] for i in kernel[1:]) / math.prod(params["lhs_dilation"])
                total += 2 * math.prod(equation.outvars[0].aval.shape) * each
            elif name == "cond":
                total += max(of(branch.jaxpr) for branch in params["branches"])
            elif name == "scan":
                total += params["length"] * of(params["jaxpr"].jaxpr)
            else:
                inside = [
                    each for value in params.values() for each in (value if isinstance(value, tuple) else (value,))
                ]
                inside = [getattr(each, "jaxpr", each) for each in inside]
                inner = sum(of(each) for each in inside if hasattr(each, "eqns"))
                if name == "while" and inner:
                    raise NotImplementedError("products in a loop whose length isn't known")
                total += inner
        return total

    return of(jax.make_jaxpr(function)(*args).jaxpr)


@functools.cache
def _rate(size: int = 2048) -> float:
    """Floating-point operations a second of one large matrix product in float32."""
    product = jax.jit(lambda a: jax.numpy.dot(a, a, precision="highest"))
    a = jax.numpy.ones((size, size), np.float32)
    seconds = _times({"product": lambda: jax.block_until_ready(product(a))}, 5)["product"]
    return 2 * size**3 / min(seconds)


def _compared(
    ours: Round, theirs: Mapping[str, Callable[[], None]] | None, repeats: int, examples: int
) -> dict[str, Any]:
    """Seconds of our round, and of the others' in turn, and their ratios; None: PyTorch is not installed."""
    times = _times({"ours": ours.play, **(theirs or {})}, repeats)
    seconds = statistics.median(times["ours"])
    found: dict[str, Any] = {
        "compile seconds": ours.compile_seconds,
        "seconds per round": seconds,
        "floor, seconds": ours.floor,
        "ratio ours / floor": seconds / ours.floor,
        "examples per second": examples / seconds,
    }
    if theirs is None:
        found["PyTorch"] = "not installed (pip install 'fedjax_pfl[parity]'), so no ratio"
    for name in theirs or ():
        ratios = [a / b for a, b in zip(times["ours"], times[name], strict=True)]
        found[THEIRS + name] = statistics.median(times[name])
        found[f"ratio ours / {name}"] = statistics.median(ratios)
        found[f"ratio ours / {name}, least"] = min(ratios)
        found[f"ratio ours / {name}, most"] = max(ratios)
    return found


def _training(
    x: np.ndarray, model: str, options: Mapping[str, Any], batch_size: int, how: How
) -> tuple[problem.Problem, Training]:
    setup = problem.build(models.build(model, 10, **options), x[0], "single")
    training = Training(
        loss=setup.loss,
        layers=setup.model.layers,
        lr=local.schedule("constant", LR, rounds=1),
        optimizer=local.optimizer(local.sgd),
        batch_size=batch_size,
        how=how,
    )
    return setup, training


def _features(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 64)).astype(np.float32), rng.integers(0, 10, n).astype(np.int32)


def _times(rounds: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each round, in turn, after one that doesn't count."""
    times: dict[str, list[float]] = {name: [] for name in rounds}
    for repeat in range(repeats + 1):
        for name, play in rounds.items():
            began = time.perf_counter()
            play()
            if repeat:
                times[name].append(time.perf_counter() - began)
    return times


def _population(method: str, population: int, size: int) -> float:
    """MiB at the peak of this process after three rounds of `size` out of `population` clients."""
    x, y = _features(2000)
    setup, training = _training(x, "mlp", {"hidden": (256,)}, BATCH, "auto")
    algorithm = algorithms.build(method, training)
    rng = np.random.default_rng(0)
    rows = cohort.Rows(cohort.Pool(x, y), list(rng.integers(0, len(x), (population, 20))))
    sampler = cohort.Sampler(rows.counts, sampling="uniform", size=size)
    state = store.init(algorithm, setup.init(jax.random.key(0)), population, None)
    stored = isinstance(state.clients, store.Store)
    clients = store.Clients(state.clients if stored else None)
    one = core.jit_round(algorithm)
    for r in range(3):
        some = cohort.assemble(rows, *sampler(r), stored=stored)
        clients.read(some)
        state, _ = one(clients.of_cohort(state), some, jax.random.key(0))
        state = clients.put_back(state)
    jax.block_until_ready(state.server)
    return _peak()


def _peak() -> float:
    """MiB at the peak of this process."""
    # not getrusage: after a fork its maximum starts at the parent's
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def _uploads(clients: int, model: str) -> tuple[Any, str]:
    """Random variables of a model in float32, [K, ...], and the name of its classifier."""
    built = models.build(model, 10)
    shapes = jax.eval_shape(built.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jax.numpy.asarray(rng.standard_normal((clients, *leaf.shape), np.float32))  # noqa: E731
    return jax.tree.map(draw, shapes), built.layers[-1]


def _pfa(stacked: Any, weights: Any, classifier: str, fidelity: str) -> tuple[Callable[..., Any], float]:
    """The compiled aggregation at rate 0.7, and the seconds of compilation."""
    step = fourier.pfa([0.7], classifier=classifier, fidelity=fidelity)
    began = time.perf_counter()
    compiled = jax.jit(step).lower(stacked, weights, 0).compile()
    return compiled, time.perf_counter() - began


def _peak_of_pfa(clients: int, model: str, fidelity: str) -> float:
    """What one aggregation takes at its peak, uploads and result included, as a multiple of the uploads."""
    before = _peak()
    stacked, classifier = _uploads(clients, model)
    weights = jax.numpy.ones(clients)
    step, _ = _pfa(stacked, weights, classifier, fidelity)
    jax.block_until_ready(step(stacked, weights, 0))
    return (_peak() - before) / (sum(leaf.nbytes for leaf in jax.tree.leaves(stacked)) / 2**20)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        run()
    elif sys.argv[1] == "pfa":
        print(json.dumps({"peak_by_weights": _peak_of_pfa(int(sys.argv[2]), *sys.argv[3:])}))
    else:
        print(json.dumps({"peak_mib": _population(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))}))
