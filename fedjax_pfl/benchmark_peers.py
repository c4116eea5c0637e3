"""The benchmark's FedAvg round in other simulators, where they are installed: each as its own documentation has it."""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_pfl.benchmark_torch import cnn_pfl, sgd, tensors

PEERS = {"pfl-research": ("pfl", "pfl"), "Flower": ("flwr", "flwr[simulation]")}  # name: module, what pip installs


def pfl_research(x: np.ndarray, y: np.ndarray, clients: int, *, batch: int, lr: float) -> Callable[[], None]:
    """One central iteration of pfl-research's simulator in this process, its clients in PyTorch (pip install pfl torch)."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.internal.ops.selector import set_framework_module
    from pfl.model.pytorch import PyTorchModel

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cnn_pfl()

        def loss(self, x: Any, y: Any) -> Any:
            return torch.nn.functional.cross_entropy(self.train().net(x), y)

        def metrics(self, x: Any, y: Any) -> dict[str, Any]:
            return {}

    set_framework_module(pytorch_ops)
    images, labels = tensors(x, y, clients)

    def user(k: int) -> Any:
        order = torch.randperm(labels.shape[1])
        return Dataset((images[k][order], labels[k][order]))

    net = Net()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), 1.0))
    users = FederatedDataset(user, get_user_sampler("minimize_reuse", list(range(clients))))
    backend = SimulatedBackend(training_data=users, val_data=users)
    train = NNTrainHyperParams(local_batch_size=batch, local_num_epochs=1, local_learning_rate=lr)
    params = NNAlgorithmParams(
        central_num_iterations=1, evaluation_frequency=10**6, train_cohort_size=clients, val_cohort_size=0
    )

    def play() -> None:
        evaluation = NNEvalHyperParams(local_batch_size=batch)
        FederatedAveraging().run(params, backend, model, train, evaluation, send_metrics_to_platform=False)

    return play


def flower(x: np.ndarray, y: np.ndarray, clients: int, *, batch: int, lr: float, rounds: int = 4) -> list[float]:
    """Seconds of each round but the first in Flower's simulation, its clients in PyTorch on all of this machine's cores.

    (pip install 'flwr[simulation]' torch)
    """
    import torch
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    images, labels = tensors(x, y, clients)
    client, server = ClientApp(), ServerApp()
    ends = []

    @client.train()
    def _(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)  # clients run beside one another, one on each core
        k = int(context.node_config["partition-id"])
        net = cnn_pfl()
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        sgd(net, images, labels, batch, lr)(k)
        metrics = MetricRecord({"num-examples": labels.shape[1]})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    class Timed(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            found = super().aggregate_train(server_round, replies)
            ends.append(time.perf_counter())
            return found

    @server.main()
    def _(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        strategy.start(grid, ArrayRecord(cnn_pfl().state_dict()), num_rounds=rounds, train_config=ConfigRecord())

    run_simulation(server, client, clients, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return [float(seconds) for seconds in np.diff(ends)]
