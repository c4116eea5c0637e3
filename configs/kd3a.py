"""What the KD3A configs share: the words for methods, and who is the target. A word is <method>-<target>, e.g. kd3a-usps.

KD3A: arXiv 2011.09757. With deputies (`det` and what is below it): the notes of kongfany/paper-kd3a, which graft PRR-FL's
deputy-enhanced transfer (arXiv 2110.00394) onto it; the words are theirs where they have one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

DET = {"kd3a.det": True}
LOW = {**DET, "kd3a.lambda1": 0.5, "kd3a.lambda2": 0.6}
METHODS: dict[str, Mapping[str, Any]] = {
    "kd3a": {},  # by the released code
    "kd3a_paper": {"kd3a.fidelity": "paper"},
    "nobnmmd": {"kd3a.bn_mmd": False},
    # KD3A with deputies, and its variants (METHODS.md 7.2)
    "det": DET,
    "det_low": LOW,
    "pfl2": {**DET, "kd3a.stages": "recover_exchange", "kd3a.sub_epochs": 2},
    "pfl3": {**DET, "kd3a.stages": "recover_exchange"},
    "pfl4": {**DET, "kd3a.stages": "fixed", "kd3a.sub_epochs": 2},
    "det_nobnmmd": {**DET, "kd3a.bn_mmd": False},
    "adddata": {**DET, "kd3a.all_data": True},
    "adddata_T5": {**DET, "kd3a.all_data": True, "kd3a.temperature": 5.0},
    "pflacc": {**DET, "score.metric": "accuracy"},
    "recover": {**DET, "kd3a.stages": "recover"},
    "recover_weights": {**DET, "kd3a.stages": "recover", "kd3a.recover_weights": (0.5, 1.5)},
    "exchange": {**DET, "kd3a.stages": "exchange"},
    "upload_P": {**DET, "kd3a.upload": "personal"},
    "targetpfl5": {**DET, "kd3a.personal_target": True},
    "targetpfl3_2kl": {**DET, "kd3a.personal_target": True, "kd3a.target_sub_epochs": 3, "kd3a.target_kl": 2.0},
    "amin": {**LOW, "kd3a.fade_personal": "min", "kd3a.fade_deputy": "min"},
    "amax": {**LOW, "kd3a.fade_personal": "max", "kd3a.fade_deputy": "max"},
    "pflmin": {**LOW, "kd3a.fade_personal": "min"},
    "pflmax": {**LOW, "kd3a.fade_personal": "max"},
    "deputymin": {**LOW, "kd3a.fade_deputy": "min"},
    "deputymax": {**LOW, "kd3a.fade_deputy": "max"},
    "pflmin_deputymax": {**LOW, "kd3a.fade_personal": "min", "kd3a.fade_deputy": "max"},
    # what they are compared with
    "fedavg": {"method": "fedavg"},  # on the sources
    "pooled": {"method": "centralised"},  # the sources' data in one place
    "fedhealth": {"method": "fedhealth"},  # the target has labels, and the first source's data are the server's
    # each domain alone: the target's row is the oracle; its cross table says how each source's model does elsewhere
    "local": {"method": "local", "eval.cross": True},
}


def pictures(config: ConfigDict, model: str, *, batch: int, samples: int, epochs: int, lr: float) -> None:
    """The paper's settings for folders of photographs, from ImageNet weights; its random resized crop as shift and scale.

    Inputs are in [0, 1] without further normalisation, as in the released code.
    """
    config.data.source = "domains"
    config.model.name = model
    config.model.new_head = True
    config.augment.flip_horizontal = 0.5
    config.augment.shift_scale_rotate_p = 1.0
    config.augment.shift = 0.06
    config.augment.scale = 0.06
    config.kd3a.epoch_samples = samples
    config.rounds = epochs
    config.client.batch_size = batch
    config.client.lr = lr
    config.client.schedule.final = 1e-4
    config.eval.every = 5
    config.checkpoint.every = 5


def words(domains: Sequence[str], extra: Iterable[str] = ()) -> list[str]:
    """All words of a config with these targets; `extra` names a file's own methods."""
    return [f"{name}-{target}" for name in (*METHODS, *extra) for target in domains]


def variant(
    config: ConfigDict, word: str, domains: Sequence[str], extra: Mapping[str, Mapping[str, Any]]
) -> ConfigDict:
    """The config with the method and the target that `word` names; `extra` holds a file's own methods."""
    methods = {**METHODS, **extra}
    name, _, target = word.rpartition("-")
    if name not in methods or target not in domains:
        raise ValueError(
            f"no variant '{word}' (expected <method>-<target>; methods: {', '.join(methods)}; targets: {', '.join(domains)})"
        )
    config.method = "kd3a"
    config.kd3a.fidelity = "reference"
    config.kd3a.target = target
    config.client.schedule.name = "cosine"
    config.client.schedule.lag = 1
    config.client.sgd.momentum = 0.9
    config.client.weight_decay = 5e-4
    config.split.validation = 0.0  # nothing is chosen by it
    config.eval.tuned = "never"
    config.eval.metric = "accuracy"
    config.update_from_flattened_dict(methods[name])
    if config.method in ("fedavg", "centralised"):
        config.cohort.sampling = "fixed"
        config.cohort.ids = tuple(i for i, domain in enumerate(domains) if domain != target)
    if config.method == "fedhealth":
        config.fedhealth.public = next(domain for domain in domains if domain != target)
        config.fedhealth.tuned_layers = 2
        config.fedhealth.cloud_rounds = config.rounds // 4
    config.name = f"{name}-{target}"
    return config
