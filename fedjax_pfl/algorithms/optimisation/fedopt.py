"""Server optimisers on the mean client update.

FedAvgM: Hsu, Qi, Brown, arXiv 1909.06335. FedAdagrad, FedAdam, FedYogi: Reddi et al., ICLR 2021, arXiv 2003.00295,
Algorithms 1 and 2. The optimiser acts on the trainable parameters; batch-norm statistics are averaged as in FedAvg
(an adaptive step on a variance could turn it negative).
"""

from typing import Any, NamedTuple

import optax

from fedjax_pfl import aggregate, tree
from fedjax_pfl.algorithms.optimisation import fedavg
from fedjax_pfl.core import Algorithm, Exchange, Model, Variables, compose
from fedjax_pfl.local import Training


class Server(NamedTuple):
    variables: Variables  # w_t
    opt_state: Any


def server_optimizer(
    training: Training, tx: optax.GradientTransformation, weighting: str, clients: Exchange | None = None
) -> Algorithm:
    """FedOpt, Algorithm 1: FedAvg's clients, and a server that takes Delta = sum_k p_k (w_k - w_t) as its direction.

    Args:
        tx: turns Delta into the update to be added to w_t (so an optax optimiser must be given -Delta).
        clients: whose download and local update to take instead of FedAvg's; they upload a `Model`.
    """
    average = clients or fedavg.exchange(training, weighting)

    def server_update(server, uploads, cohort, round):
        w = aggregate.mean(uploads.variables, cohort, weighting)
        w_t = server.variables["params"]
        update, opt_state = tx.update(tree.sub(w["params"], w_t), server.opt_state, w_t)
        return Server({**w, "params": tree.add(w_t, update)}, opt_state)

    return compose(
        average._replace(download=lambda server, id: Model(server.variables), aggregate=server_update),
        init_server=lambda variables, n: Server(variables, tx.init(variables["params"])),
        global_model=lambda server: server.variables,
        keep=training.keep(),
        how=training.how,
        observe=training.observe,
    )


def fedavgm(
    training: Training,
    *,
    server_lr: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    weighting: str = "examples",
) -> Algorithm:
    """v <- momentum v + Delta; w <- w + server_lr v, or server_lr (momentum v + Delta) with Nesterov's form.

    With momentum 0 and server_lr 1 it is FedAvg.
    """
    tx = optax.chain(optax.trace(momentum, nesterov), optax.scale(server_lr))
    return server_optimizer(training, tx, weighting)


def _switches(fidelity: str, bias_correction: bool | None, v0: float | None, tau: float) -> dict[str, Any]:
    """What the paper's algorithm box and the released trainer do differently, where not given one by one."""
    reference = fidelity == "reference"
    return {
        "bias_correction": reference if bias_correction is None else bias_correction,
        "v0": (0.0 if reference else tau**2) if v0 is None else v0,
    }


def fedadagrad(
    training: Training,
    *,
    server_lr: float = 0.1,
    tau: float = 1e-3,
    fidelity: str = "paper",
    v0: float | None = None,
    weighting: str = "examples",
) -> Algorithm:
    """FedAdagrad, which has no server momentum (beta1 = 0). See `fedadam` for the arguments."""
    switches = _switches(fidelity, False, v0, tau)
    tx = aggregate.adaptive("adagrad", server_lr, beta1=0.0, beta2=0.0, tau=tau, **switches)
    return server_optimizer(training, tx, weighting)


def fedadam(
    training: Training,
    *,
    server_lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    fidelity: str = "paper",
    bias_correction: bool | None = None,
    v0: float | None = None,
    weighting: str = "examples",
) -> Algorithm:
    """FedAdam.

    Args:
        server_lr: eta.
        tau: adaptivity; the smaller, the more adaptive.
        fidelity: sets the two switches below where they are None. 'paper': no bias correction, v starts at tau^2.
            'reference' (the released trainer): the step is corrected by sqrt(1 - beta2^t) / (1 - beta1^t), v starts at 0.
        weighting: 'examples' (the released trainer's) or 'uniform' (1/|S|, the algorithm box).
    """
    switches = _switches(fidelity, bias_correction, v0, tau)
    tx = aggregate.adaptive("adam", server_lr, beta1=beta1, beta2=beta2, tau=tau, **switches)
    return server_optimizer(training, tx, weighting)


def fedyogi(
    training: Training,
    *,
    server_lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    fidelity: str = "paper",
    bias_correction: bool | None = None,
    v0: float | None = None,
    weighting: str = "examples",
) -> Algorithm:
    """FedYogi, whose v changes additively. See `fedadam` for the arguments."""
    switches = _switches(fidelity, bias_correction, v0, tau)
    tx = aggregate.adaptive("yogi", server_lr, beta1=beta1, beta2=beta2, tau=tau, **switches)
    return server_optimizer(training, tx, weighting)
