"""What a segmentation run leaves beside its summary: a few test images of each client with their outlines."""

from pathlib import Path

import numpy as np

from fedjax_pfl import evaluate, plots
from fedjax_pfl.core import State
from fedjax_pfl.data import Federation

IMAGES, CLIENTS = 4, 8  # drawn of each client, and clients


def draw(
    evaluator: evaluate.Evaluator,
    candidate: evaluate.Candidate,
    state: State,
    ids: np.ndarray,
    federation: Federation,
    path: Path,
) -> None:
    """plots/segmentation.png: test images of the first clients, evenly chosen among those that have foreground.

    Args:
        candidate: the model, of each client.
        ids: the clients.
    """
    rows = {}
    for said in evaluator.scores(candidate, state, "test", ids[:CLIENTS]):
        shown = np.flatnonzero(said.y.any((1, 2)))
        shown = shown[np.linspace(0, len(shown) - 1, min(IMAGES, len(shown))).astype(int)]
        if len(shown):
            images = np.asarray(federation.x[federation.test[said.id][shown]])
            rows[federation.client_names[said.id]] = (images, said.y[shown], said.logits.predicted[shown])
    if rows:
        plots.segmentation(rows, path)
