"""SiloBN (METHODS.md 5.10; arXiv 2008.07424): FedBN's loop that keeps the running statistics alone, with FedAvg's weights."""

from .fedbn import fedbn
from .network import STATISTICS


def silobn(model, data, rounds, batches, solver, weighting="examples"):
    return fedbn(model, data, rounds, batches, solver, weighting, kept=STATISTICS)
