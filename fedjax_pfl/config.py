"""From a config to the things it names, with one clear line for each impossible value."""

import ast
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from fedjax_pfl import (
    algorithms,
    cohort,
    core,
    hosts,
    imbalance,
    lanes,
    local,
    losses,
    models,
    problem,
    registry,
    score,
    text,
)
from fedjax_pfl.algorithms.optimisation import feddyn, fednova, mime, moon, scaffold
from fedjax_pfl.core import Algorithm
from fedjax_pfl.data import Federation
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.local import Training
from fedjax_pfl.models.ctran import LabelMaskTransformer
from fedjax_pfl.models.layers import Classifier
from fedjax_pfl.problem import Problem

# The directions that client.optimizer names; each has a section of options.
OPTIMIZERS = {"sgd": local.sgd, "adam": optax.scale_by_adam}

# field: (test, what was expected)
_AT_LEAST_0 = (lambda v: v >= 0, "0 or more")
_AT_LEAST_1 = (lambda v: v >= 1, "1 or more")
_POSITIVE = (lambda v: v > 0, "more than 0")
_SHARE = (lambda v: 0 <= v < 1, "0 <= share < 1")
_UP_TO_1 = (lambda v: 0 <= v <= 1, "0 to 1")


def _one_of(*names: str | None) -> tuple[Any, str]:
    return lambda v: v in names, f"one of {', '.join(map(str, names))}"


_WEIGHTING = _one_of("examples", "uniform")
_FIDELITY = _one_of("paper", "reference")
RULES: dict[str, tuple[Any, str]] = {
    "seed": _AT_LEAST_0,
    "rounds": _AT_LEAST_1,
    "rounds_per_call": _AT_LEAST_1,
    "client.epochs": _AT_LEAST_1,
    "client.batch_size": _AT_LEAST_1,
    "client.optimizer": _one_of(*OPTIMIZERS),
    "client.sgd.momentum": _SHARE,
    "client.lr": _POSITIVE,
    "client.schedule.name": _one_of(*local.SCHEDULES),
    "client.schedule.every": _AT_LEAST_1,
    "client.schedule.factor": _POSITIVE,
    "client.schedule.final": _AT_LEAST_0,
    "client.schedule.warmup": _AT_LEAST_0,
    "client.schedule.period": _AT_LEAST_0,
    "client.schedule.lag": _AT_LEAST_0,
    "client.weight_decay": _AT_LEAST_0,
    "client.clip": _AT_LEAST_0,
    "client.sampler": _one_of(*local.SAMPLERS),
    "client.batch_norm": _one_of("aggregate", "local", "local-statistics"),
    "client.map": (
        lambda v: v in ("auto", "vmap", "map", "lanes") or (v.isdigit() and int(v) > 0),
        "auto, vmap, map, lanes or a number of clients",
    ),
    "client.lanes": _AT_LEAST_0,
    "devices": _AT_LEAST_0,
    "cohort.size": _AT_LEAST_0,
    "cohort.resident": _one_of("auto", "always", "never"),
    "cohort.states": _one_of("auto", "device", "host", "disk"),
    "eval.every": _AT_LEAST_1,
    "eval.batch_size": _AT_LEAST_1,
    "eval.held_out": _AT_LEAST_0,
    "eval.tuned": _one_of("never", "last", "always"),
    "eval.tune_epochs": _AT_LEAST_0,
    "eval.model": _one_of("personal", "global"),
    "eval.best_from": (lambda v: 0 <= v <= 1, "0 <= share <= 1"),
    "checkpoint.every": _AT_LEAST_1,
    "checkpoint.keep": _AT_LEAST_1,
    "finetune.start": _AT_LEAST_0,
    "finetune.lr_factor": _POSITIVE,
    "fedprox.mu": _AT_LEAST_0,
    "scaffold.option": (lambda v: v in (1, 2), "1 or 2"),
    "scaffold.corrected": _one_of(*scaffold.CORRECTED),
    "fednova.mu": _AT_LEAST_0,
    "fednova.server_momentum": _SHARE,
    "fednova.fidelity": _FIDELITY,
    "fednova.normaliser": _one_of(None, *fednova.NORMALISERS),
    "fednova.tau_eff": _one_of(None, *fednova.TAU_EFF),
    "feddyn.alpha": _POSITIVE,
    "feddyn.fidelity": _FIDELITY,
    "feddyn.alphas": _one_of(None, *feddyn.ALPHAS),
    "feddyn.evaluated": _one_of(None, *feddyn.EVALUATED),
    "moon.mu": _AT_LEAST_0,
    "moon.temperature": _POSITIVE,
    "moon.newcomers": _one_of(*moon.NEWCOMERS),
    "fedir.momentum": _SHARE,
    "fedvc.n_vc": _AT_LEAST_1,
    "fedvc.momentum": _SHARE,
    **{f"{name}.base": _one_of(*mime.BASES) for name in ("mime", "mimelite")},
    **{f"{name}.{beta}": _SHARE for name in ("mime", "mimelite") for beta in ("beta1", "beta2")},
    **{f"{name}.epsilon": _POSITIVE for name in ("mime", "mimelite")},
    **{f"{name}.v0": _AT_LEAST_0 for name in ("mime", "mimelite")},
    "power_of_choice.chosen": _AT_LEAST_1,
    "power_of_choice.sample": _AT_LEAST_0,
    "fedavgm.momentum": _SHARE,
    "fedadam.beta1": _SHARE,
    "fedadam.beta2": _SHARE,
    "fedyogi.beta1": _SHARE,
    "fedyogi.beta2": _SHARE,
    "fedrep.head_epochs": _AT_LEAST_0,
    "fedrep.body_epochs": _AT_LEAST_1,
    "lg_fedavg.start": _AT_LEAST_0,
    "apfl.alpha": _UP_TO_1,
    "apfl.alpha_decay": _AT_LEAST_0,
    "apfl.mix_with": _one_of("global", "own"),
    "pfedme.lam": _AT_LEAST_0,
    "pfedme.inner_steps": _AT_LEAST_1,
    "pfedme.personal_lr": _POSITIVE,
    "pfedme.beta": _AT_LEAST_0,
    "per_fedavg.alpha": _AT_LEAST_0,
    "per_fedavg.form": _one_of("fo", "hf"),
    "per_fedavg.delta": _POSITIVE,
    "per_fedavg.adapt_steps": _AT_LEAST_0,
    "pfedhn.embedding": _AT_LEAST_0,
    "pfedhn.hidden": _AT_LEAST_1,
    "pfedhn.hidden_layers": _AT_LEAST_0,
    "pfedhn.start": _one_of("hypernetwork", "model"),
    "pfedhn.server_lr": _POSITIVE,
    "pfedhn.momentum": _SHARE,
    "pfedhn.weight_decay": _AT_LEAST_0,
    "pfedhn.clip": _AT_LEAST_0,
    "ditto.lam": _AT_LEAST_0,
    "fml.alpha": _UP_TO_1,
    "fml.beta": _UP_TO_1,
    "fml.temperature": _POSITIVE,
    "fedproto.lam": _AT_LEAST_0,
    "fedproto.inference": _one_of("head", "prototype"),
    "data_sharing.alpha": _UP_TO_1,
    "data_sharing.warmup_rounds": _AT_LEAST_0,
    "fedmd.alignment": _AT_LEAST_1,
    "fedmd.pretrain_epochs": _AT_LEAST_0,
    "fedmd.private_epochs": _AT_LEAST_0,
    "fedmd.digest_epochs": _AT_LEAST_0,
    "fedmd.digest_batch_size": _AT_LEAST_1,
    "vhl.alpha": _AT_LEAST_0,
    "vhl.lambda_a": _AT_LEAST_0,
    "vhl.lambda_v": _AT_LEAST_0,
    "vhl.temperature": _POSITIVE,
    "vhl.align_epochs": _AT_LEAST_0,
    "vhl.labels": _one_of("extra", "shared"),
    "vhl.batch_size": _AT_LEAST_0,
    "fd.gamma": _AT_LEAST_0,
    "fd.schedule": _one_of("constant", "notes"),
    "fd.fidelity": _FIDELITY,
    "faug.base": _one_of("fd", "fedavg"),
    "faug.gamma": _AT_LEAST_0,
    "faug.schedule": _one_of("constant", "notes"),
    "faug.seeds": _AT_LEAST_1,
    "faug.lacking": _AT_LEAST_0,
    "faug.redundant": _AT_LEAST_0,
    "faug.per_label": _AT_LEAST_0,
    "faug.gan_steps": _AT_LEAST_0,
    "faug.gan_batch_size": _AT_LEAST_1,
    "faug.gan_lr": _POSITIVE,
    "ifca.clusters": _AT_LEAST_1,
    "crt.start": _AT_LEAST_0,
    "crt.classifier": _one_of("retrain", "normalise"),
    "crt.retrain": _one_of("federated", "local"),
    "crt.sampler": _one_of(*local.SAMPLERS),
    "crt.tau": _AT_LEAST_0,
    "crt.fidelity": _FIDELITY,
    "fedlgt.tau": (lambda v: 0 <= v <= 1, "0 <= tau <= 1"),
    "fedlgt.epsilon": _AT_LEAST_0,
    "fedlgt.fidelity": _FIDELITY,
    "prrfl.fidelity": _FIDELITY,
    "prrfl.cpa_weight": _AT_LEAST_0,
    "prrfl.plain_weight": _AT_LEAST_0,
    "prrfl.r0": (lambda v: 0 <= v <= 1, "0 <= rate <= 1"),
    "prrfl.final_rate": (lambda v: 0 <= v <= 1, "0 <= rate <= 1"),
    "prrfl.lambda1": _AT_LEAST_0,
    "prrfl.lambda2": _AT_LEAST_0,
    "prrfl.distill_weight": _AT_LEAST_0,
    "prrfl.temperature": _POSITIVE,
    "prrfl.beta": _AT_LEAST_0,
    "prrfl.start": _AT_LEAST_0,
    "fedhealth.cloud_rounds": _AT_LEAST_0,
    "fedhealth.eta": _AT_LEAST_0,
    "fedhealth.transfer_epochs": _AT_LEAST_0,
    "kd3a.fidelity": _FIDELITY,
    "kd3a.epoch_samples": _AT_LEAST_0,
    "kd3a.gate": (lambda v: len(v) == 2 and all(0 <= g <= 1 for g in v), "two numbers from 0 to 1"),
    "kd3a.mixup": _AT_LEAST_0,
    "kd3a.permutations": _AT_LEAST_0,
    "kd3a.momentum": _SHARE,
    "kd3a.poison": _UP_TO_1,
    "kd3a.sub_epochs": _AT_LEAST_1,
    "kd3a.target_sub_epochs": _AT_LEAST_1,
    "kd3a.target_kl": _AT_LEAST_0,
    "kd3a.lambda1": _AT_LEAST_0,
    "kd3a.lambda2": _AT_LEAST_0,
    "kd3a.temperature": _POSITIVE,
    "kd3a.fade_rounds": _AT_LEAST_1,
    "kd3a.recover_weights": (lambda v: len(v) == 2 and min(v) >= 0, "two numbers, 0 or more"),
    "loss.over_batch": _one_of("mean", "sum"),
    "loss.focal.gamma": _AT_LEAST_0,
    "loss.equalization.form": _one_of(*imbalance.FORMS),
    "loss.equalization.gamma": _UP_TO_1,
    "loss.seesaw.p": _AT_LEAST_0,
    "loss.seesaw.q": _AT_LEAST_0,
    **{f"loss.{name}.weighting": _one_of(*imbalance.WEIGHTINGS) for name in ("cross_entropy", "focal")},
    **{f"loss.{name}.reduction": _one_of(*imbalance.REDUCTIONS) for name in ("cross_entropy", "focal")},
    **{f"loss.{name}.beta": _SHARE for name in ("cross_entropy", "focal")},
    **{
        f"{name}.server_lr": _POSITIVE
        for name in ("scaffold", "fedir", "fedvc", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
    },
    **{f"{name}.tau": _POSITIVE for name in ("fedadagrad", "fedadam", "fedyogi")},
    **{f"{name}.fidelity": _FIDELITY for name in ("fedadagrad", "fedadam", "fedyogi")},
    **{
        f"{name}.weighting": _WEIGHTING
        for name, factory in algorithms.METHODS.items()
        if "weighting" in registry.options(factory)
    },
    "fedlgt.weighting": _one_of("examples", "uniform", "loss"),
}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{'client.lr': 0.1, ...} of a nested config."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, "items"):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def validate(config: Any) -> None:
    """Raises UserError for the first value that can't be, naming the field, what was found and what was expected."""
    values = flat(config)
    if config.seeds or config.lrs:
        raise UserError(
            f"config.{'seeds' if config.seeds else 'lrs'}: found {tuple(config.seeds or config.lrs)}, expected () except "
            "with --mode=train"
        )
    for field, (test, expected) in RULES.items():
        if not test(values[field]):
            raise UserError(f"config.{field}: found {values[field]!r}, expected {expected}")
    for field in ("rounds", "eval.every", "checkpoint.every"):
        if values[field] % config.rounds_per_call:
            raise UserError(
                f"config.rounds_per_call: found {config.rounds_per_call}, expected a divisor of config.{field}, "
                f"{values[field]}"
            )
    registry.lookup(algorithms.METHODS, config.method, "config.method")
    registry.lookup(models.MODELS, config.model.name, "config.model.name")
    for entry in config.model.per_client:
        named_model(config, entry)


def runs(config: Any) -> list[tuple[str, Any]]:
    """The runs that config.seeds and config.lrs ask for: the name of each one's folder, and its config.

    Raises:
        UserError: what they hold can't be seeds or learning rates.
    """
    for field, kinds, expected in (("seeds", (int,), "whole numbers"), ("lrs", (int, float), "numbers")):
        found = tuple(config[field])
        if len(set(found)) < len(found) or not all(type(each) in kinds for each in found):
            raise UserError(f"config.{field}: found {found}, expected different {expected}")
    each = []
    for lr in config.lrs or (None,):
        for seed in config.seeds or (config.seed,):
            own = config.copy_and_resolve_references().unlock()
            own.seed, own.seeds, own.lrs, name = seed, (), (), f"seed{seed}"
            if lr is not None:
                own.client.lr, own.name = float(lr), f"{config.name or config.method}, lr {lr:g}"
                name = f"lr{lr:g}-{name}"
            each.append((name, own.lock()))
    return each


def named_model(config: Any, entry: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a model: "mlp", or "mlp(hidden=(32,), norm='batch')", else those of config.model.mlp.

    Raises:
        UserError: it is neither, or there is no such model or option.
    """
    field = "config.model.per_client"
    try:
        match ast.parse(entry, mode="eval").body:
            case ast.Name(name):
                given = {}
            case ast.Call(ast.Name(name), [], keywords):
                given = {each.arg or "": ast.literal_eval(each.value) for each in keywords}
            case _:
                raise ValueError
    except (SyntaxError, ValueError):
        expected = "a model's name, or name(option=value, ...)"
        raise UserError(f"{field}: found {entry!r}, expected {expected}") from None
    registry.lookup(models.MODELS, name, field)
    options = dict(config.model[name])
    for option, value in given.items():
        if option not in options:
            raise UserError(f"{field}: '{name}' has no option '{option}'{nearest(option, options)}")
        if type(value) is not type(options[option]):
            expected = type(options[option]).__name__
            raise UserError(f"{field}: '{name}', {option}: found {value!r}, expected a value of type {expected}")
    return name, {**options, **given}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two configs (nested) differ, as `field: old -> new`."""
    old, new = flat(old), flat(new)
    nothing = "(absent)"
    return [
        f"config.{field}: {old.get(field, nothing)!r} -> {new.get(field, nothing)!r}"
        for field in dict.fromkeys([*old, *new])
        if old.get(field, nothing) != new.get(field, nothing)
    ]


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json_best_effort() if hasattr(config, "to_json_best_effort") else json.dumps(config))


def build_problem(config: Any, federation: Federation, trainers: int, entry: str = "") -> Problem:
    """The model (or that of `entry`, see `named_model`), inputs and loss that a config names, for this federation's data."""
    model = build_model(config, federation, entry)
    if isinstance(model, LabelMaskTransformer) and config.loss.name not in ("", *losses.MASKABLE):
        expected = ", ".join(losses.MASKABLE)
        raise UserError(f"config.loss.name: '{config.loss.name}', but a label-mask model needs one of {expected}")
    built = problem.build(
        model,
        federation.x[0],
        federation.task,
        loss=build_loss(config, federation, trainers),
        summed=config.loss.over_batch == "sum",
        augmentation=config.augment,
        noisy=bool(federation.noise.any()),
        weights_file=config.model.weights,
        new_head=config.model.new_head,
    )
    problem.check(built, federation.x[0], federation.y[0], len(federation.class_names))
    return built


def build_model(config: Any, federation: Federation, entry: str = "") -> Classifier:
    """The model that a config (or `entry`) names, with its label embeddings where it has any."""
    name, options = named_model(config, entry or config.model.name)
    model = models.build(name, len(federation.class_names), **options)
    if not isinstance(model, LabelMaskTransformer):
        return model
    labels, source = _label_embeddings(config.text, federation.class_names, model.labels)
    states = text.states_table(config.text) if model.states == "text" else None
    notes = [f"label embeddings: {source}"]
    for what, table in (("label", labels), ("state", states)):
        if table is not None and table.shape[1] != model.width:
            notes.append(
                f"{what} embeddings of width {table.shape[1]} are mapped to {model.width} by a fixed orthonormal map"
            )
    return model.clone(
        label_table=None if labels is None else text.project(labels, model.width),
        state_table=None if states is None else text.project(states, model.width),
        notes="; ".join(notes),
    )


def _label_embeddings(section: Any, names: Sequence[str], kind: str) -> tuple[np.ndarray | None, str]:
    """The frozen label embeddings [C, d] of a label-mask model, or None where it learns its own; and where they are from."""
    if kind == "learned":
        return None, "learned"
    if kind == "onehot":
        return np.eye(len(names), dtype=np.float32), "one-hot"
    if kind == "clip" and not section.embeddings and section.kind != "clip":
        raise UserError(f"config.text.kind: found '{section.kind}', but config.model.ctran.labels is 'clip'")
    table = text.label_table(section, names)
    return table.embeddings, table.source


def build_loss(config: Any, federation: Federation, trainers: int) -> losses.Loss:
    """The loss that a config names, with the numbers of examples that it reads, counted over the clients that train.

    (The label weights of several labels an example are counted over all clients' training examples.)
    """
    name = config.loss.name or losses.BY_TASK[federation.task][0]
    options = dict(config.loss[name])
    if federation.task == "single" and losses.takes(losses.LOSSES[name], "counts"):
        options["counts"] = class_counts(federation, trainers)
    if federation.task == "multi" and options.get("weighting") == "inverse_frequency":
        rows = np.concatenate(federation.train)
        options["weights"] = losses.inverse_frequency(federation.y[rows].sum(0, dtype=np.int64))
    return losses.for_task(federation.task, name, **options)


def build_sampler(config: Any, federation: Federation, trainers: int) -> cohort.Sampler:
    """Who takes part in a round."""
    sizes = np.array([len(rows) for rows in federation.train[:trainers]], np.int32)
    options = {name: value for name, value in config.cohort.items() if name not in ("resident", "states")}
    return cohort.Sampler(sizes, seed=config.seed, **options)


def over_devices(config: Any, federation: Federation, trainers: int) -> core.How:
    """How clients are mapped over, dealt out to so many devices as a config says.

    Raises:
        UserError: there are fewer.
    """
    found = jax.devices()
    alone = jax.default_backend() == "cpu" and not hosts.several()
    number = config.devices or (1 if alone else len(found))
    if hosts.several() and number != len(found):
        raise UserError(f"config.devices: found {number}, expected 0 or {len(found)}, all devices, with several hosts")
    if number > len(found):
        raise UserError(f"config.devices: found {number}, expected at most {len(found)}, as many as JAX sees")
    how = config.client.map
    if how == "lanes" or (how == "auto" and jax.default_backend() != "cpu"):
        how = core.Lanes(config.client.lanes or _lanes(config, federation, trainers, number))
    return how if number == 1 else core.Sharded(core.mesh(found[:number]), how)


def _lanes(config: Any, federation: Federation, trainers: int, devices: int) -> int:
    """How many lanes each device has, by the steps that the clients of the first rounds need."""
    sampler, client = build_sampler(config, federation, trainers), config.client
    examples = sampler.sizes if client.drop_last else sampler.sizes + client.batch_size - 1
    steps = client.epochs * (examples // client.batch_size)
    cohorts = [-np.sort(-steps[sampler(round)[0]]) for round in range(min(config.rounds, 32))]
    return lanes.number([some[device::devices] for some in cohorts for device in range(devices)])


def build_training(config: Any, problem: Problem, federation: Federation, trainers: int) -> Training:
    """How a client trains, as a config says; the classes are counted over the clients that train."""
    client, network = config.client, problem.network
    scores = None
    if network is not None and (federation.task in score.METRICS or config.score.metric or config.eval.retrogress):
        scores = score.build(network, score.metric(federation.task, config.score.metric))
    if config.eval.retrogress and scores is None:
        raise UserError("config.eval.retrogress: not possible with a label-mask model")
    direction = partial(OPTIMIZERS[client.optimizer], **dict(client[client.optimizer]))
    schedule = dict(client.schedule)
    return Training(
        loss=problem.loss,
        layers=problem.model.layers,
        lr=local.schedule(schedule.pop("name"), client.lr, rounds=config.rounds, **schedule),
        optimizer=local.optimizer(direction, weight_decay=client.weight_decay, clip=client.clip),
        momentum=client.sgd.momentum if client.optimizer == "sgd" else None,
        nesterov=client.sgd.nesterov,
        epochs=client.epochs,
        batch_size=client.batch_size,
        drop_last=client.drop_last,
        batch_norm=client.batch_norm,
        how=over_devices(config, federation, trainers),
        summed=problem.summed,
        label_mask=problem.label_mask,
        network=network,
        rounds=config.rounds,
        seed=config.seed,
        counts=class_counts(federation, trainers),
        score=scores,
        observe=scores if config.eval.retrogress else None,
        sampler=client.sampler,
        clients=federation.client_names[:trainers],
        sizes=tuple(len(rows) for rows in federation.train[:trainers]),
        init=problem.init,
    )


def build_groups(config: Any, federation: Federation, trainers: int) -> list[tuple[Problem, Training]]:
    """Where config.model.per_client names models: the problem of each, and how its clients train.

    Raises:
        UserError: one of them isn't for single labels, or an option can't be had with several.
    """
    entries = list(dict.fromkeys(config.model.per_client))
    if not entries:
        return []
    no = "expected {} with config.model.per_client"
    for field, found, expected in (
        ("model.weights", config.model.weights, ""),
        ("client.batch_norm", config.client.batch_norm, "aggregate"),
        ("eval.retrogress", config.eval.retrogress, False),
        ("eval.cross", config.eval.cross, False),
        ("eval.held_out", config.eval.held_out, 0),
    ):
        if found != expected:
            raise UserError(f"config.{field}: found {found!r}, {no.format(repr(expected))}")
    if federation.task != "single":
        raise UserError(
            "config.model.per_client: found several models, expected one unless examples have a single label"
        )
    if trainers < len(config.model.per_client):
        raise UserError(
            f"config.model.per_client: found {len(config.model.per_client)} models for {trainers} clients, expected no more"
        )
    groups = []
    for entry in entries:
        built = build_problem(config, federation, trainers, entry)
        members = tuple(
            k for k in range(trainers) if config.model.per_client[k % len(config.model.per_client)] == entry
        )
        groups.append((built, build_training(config, built, federation, trainers)._replace(members=members)))
    return groups


def class_counts(federation: Federation, trainers: int) -> tuple[int, ...]:
    """How often each class occurs in the training examples of the first `trainers` clients (of masks: in their pixels)."""
    if federation.task == "multi":
        return ()
    counts = np.zeros(len(federation.class_names), np.int64)
    for rows in federation.train[:trainers]:
        counts += np.bincount(np.asarray(federation.y[rows]).reshape(-1), minlength=len(counts))[: len(counts)]
    return tuple(int(count) for count in counts)


def build_algorithm(config: Any, training: Training) -> Algorithm:
    """The method that a config names, with its section's options."""
    return algorithms.build(config.method, training, config[config.method])
