"""What the multi-label configs share: FedLGT's settings, its baselines and its ablations, each a word after the file's name."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# `--config=configs/fedlgt_voc.py:ule`: the word, and what it changes. 'backbone' alone means a plain classifier.
VARIANTS: dict[str, Mapping[str, Any]] = {
    "fedlgt": {"method": "fedlgt"},
    "fedctran": {"method": "fedavg", "model.ctran.labels": "learned"},
    "camle": {"method": "fedlgt", "model.ctran.labels": "learned"},  # FedC-Tran + CA-MLE
    "ule": {"method": "fedavg"},  # FedC-Tran + ULE
    "fedavg": {"method": "fedavg", "model.name": "backbone"},
    "fedprox": {"method": "fedprox", "model.name": "backbone"},
    "fedprox_ctran": {"method": "fedprox", "model.ctran.labels": "learned"},
    "fedbn": {"method": "fedbn", "model.name": "backbone"},
    "fedbn_ctran": {"method": "fedbn", "model.ctran.labels": "learned"},
    "centralised": {"method": "centralised", "model.name": "backbone"},
    "centralised_ctran": {"method": "centralised", "model.ctran.labels": "learned"},
    "reference": {  # FedLGT as its released code computes it
        "method": "fedlgt",
        "fedlgt.fidelity": "reference",
        "model.ctran.swapped_states": True,
        "cohort.sampling": "uniform",
    },
    "epsilon_0.01": {"method": "fedlgt", "fedlgt.epsilon": 0.01},  # the width of CA-MLE's doubt; 0.02 is the paper's
    "epsilon_0.05": {"method": "fedlgt", "fedlgt.epsilon": 0.05},
    "epsilon_0.1": {"method": "fedlgt", "fedlgt.epsilon": 0.1},
    # Half of the clients in a round.
    "half": {"method": "fedlgt", "cohort.sampling": "uniform", "cohort.size": 0, "cohort.fraction": 0.5},
    "avg": {"method": "fedlgt", "text.construction": "avg"},  # the prompts of classes made of finer ones: FLAIR coarse
    "plain": {"method": "fedlgt", "text.construction": "plain"},
}


def published(config: ConfigDict) -> None:
    """FedLGT's own settings (METHODS.md of its paper's README command): 50 rounds of 5 epochs, Adam 1e-4, batch 16, clip 10."""
    config.rounds = 50
    config.model.name = "ctran"
    config.loss.over_batch = config.loss.binary_cross_entropy.reduction = "sum"
    config.client.epochs = 5
    config.client.batch_size = 16
    config.client.optimizer = "adam"
    config.client.lr = 1e-4
    config.client.clip = 10.0
    config.fedprox.mu = 0.001
    config.fedbn.weighting = "examples"
    config.augment.flip_horizontal = 0.5
    config.augment.mean = (0.485, 0.456, 0.406)
    config.augment.std = (0.229, 0.224, 0.225)
    config.eval.every = 10
    config.eval.tuned = "never"
    config.eval.batch_size = 64


def variant(config: ConfigDict, word: str) -> ConfigDict:
    """The config of one of `VARIANTS`, named after it; call it last."""
    if word not in VARIANTS:
        raise ValueError(f"no variant '{word}' (one of: {', '.join(VARIANTS)})")
    changes = dict(VARIANTS[word])
    if changes.get("model.name") == "backbone":
        changes["model.name"] = config.model.ctran.backbone
    if changes["method"] == "centralised":
        changes |= {"cohort.sampling": "all", "cohort.size": 0}
    config.update_from_flattened_dict(changes)
    config.name = word
    return config
