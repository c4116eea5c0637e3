"""KD3A. Feng, You, Chen, Zhang, Zhu, Wu, Wu, Chen, ICML 2021, arXiv 2011.09757; and KD3A with PRR-FL's deputies.

One client, the target, has no labels. The others, the sources, train on theirs; the target learns from what their models vote
on its images (`vote`), and the server averages all encoders with weights that follow what each source adds to the vote. A
round here is one epoch of the paper. With `det` each source keeps a personal model besides, and what it uploads is a deputy.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Key

from fedjax_pfl import local, losses, roles, tree, vote
from fedjax_pfl.algorithms.personal.prrfl import EXCHANGE, RECOVER, next_stage
from fedjax_pfl.core import (
    Algorithm,
    Cohort,
    Exchange,
    Metrics,
    Round,
    State,
    Variables,
    client_map,
    compose,
)
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.local import Batch, Training
from fedjax_pfl.score import metric as score_metric

STAGES = ("det", "recover_exchange", "recover", "exchange", "fixed")
FADES = ("none", "min", "max")


class Server(NamedTuple):
    variables: Variables  # the encoder that everybody starts an epoch with; its head where heads are shared
    knowledge: Variables  # [K, ...] the sources' models as they last came, heads and all, in the order of their ids
    alpha: Float[Array, " N"]  # the domain weights


class Client(NamedTuple):
    opt_state: Any  # of the model that travels
    P: Any  # a source's personal model, its optimiser, () without deputies
    P_opt_state: Any
    own: Bool[Array, ""]  # whether the client uses P: it is a source that has trained


class Download(NamedTuple):
    variables: Variables
    knowledge: Any = ()  # for the target
    statistics: Any = ()  # for a source, where its running statistics have moved on the target's images


class Upload(NamedTuple):
    variables: Variables
    kept: Any = ()  # a source's head (and statistics) besides, for the vote
    focus: Any = ()  # [K] the target's, of each source
    confident: Any = ()  # share of the target's examples that count
    statistics: Any = ()  # [K, ...] of the sources' models, after they saw the target's images


class Heard(NamedTuple):
    """What the target collects over an epoch; it stands among the variables that are trained."""

    focus: Float[Array, " K"]
    confident: Float[Array, ""]
    seen: Float[Array, ""]
    statistics: Any  # [K, ...], or () where teachers are evaluated
    stage: Any = ()  # of the target's sub-epoch, where it has a personal model
    agreed: Any = ()  # and the confusion [2, C, C] of P and D with the vote in it


def kd3a(
    training: Training,
    *,
    target: str = "",
    fidelity: str = "paper",
    epoch_samples: int = 0,
    communications: float = 1.0,
    gate: tuple[float, float] = (0.9, 0.95),
    votes: str | None = None,
    teachers: str | None = None,
    mixup: float = 2.0,
    mixup_weights: bool | None = None,
    focus: str | None = None,
    permutations: int = 0,
    target_share: str | None = None,
    by_examples: bool | None = None,
    momentum: float = 0.9,
    rounded: bool | None = None,
    heads: str | None = None,
    bn_mmd: bool = True,
    second_moments: bool | None = None,
    poisoned: str = "",
    poison: float = 0.0,
    det: bool = False,
    sub_epochs: int = 5,
    all_data: bool = False,
    stages: str = "det",
    lambda1: float = 0.7,
    lambda2: float = 0.9,
    score_on: str | None = None,
    temperature: float = 1.0,
    fade_personal: str = "none",
    fade_deputy: str = "none",
    fade_rounds: int = 40,
    recover_weights: tuple[float, float] = (1.0, 1.0),
    upload: str = "deputy",
    personal_target: bool = False,
    target_sub_epochs: int = 5,
    target_kl: float = 1.0,
) -> Algorithm:
    """Sources 1..K with labels, a target 0 without; the target's labels are never read.

    1. Each source: cross entropy on its own data.
    2. The target: the sources' models vote on its images; cross entropy between the vote and its prediction, both mixed up
       with another image of the batch; each source's focus is summed up.
    3. The server: domain weights alpha from the focus, the encoder G <- sum_i alpha_i G_i, target and all.

    The paper and the released code differ; `fidelity='reference'` turns on the code's form of what is left None:

        votes: 'soft' (paper) | 'hard' (code) | sum, max, min, mean, median, mode, see `vote`.
        teachers: 'evaluation': the sources' models vote in evaluation mode. 'train' (code): with the target's batch
            statistics, while their running statistics move towards the target's.
        mixup_weights: False (code): a mixed example has the weight of its first image. True: each label has its own image's.
        focus: 'leave_one_out' (paper) | 'shapley' (code), see `vote.focus`.
        target_share: of the weights. 'examples' (paper): N_0 / sum N. 'confidence' (code): the share of confident examples
            divided by K + 1.
        by_examples: a source's focus counts times its number of examples; paper: yes, code: no.
        rounded: weights are rounded to 4 digits (code); they need not sum to 1 then.
        heads: 'shared': averaged as the encoder is (paper). 'own' (code): each party has a head of its own throughout,
            drawn by itself.
        second_moments: BN-MMD averages the means and second moments of batch norm (paper); the code averages variances.
    The code's learning rate lags a round and its cosine has the configured epochs as period: config.client.schedule.lag=1,
    period.

    A source whose upload is lost votes, and is averaged, as it last came.

    Args:
        target: the name of the unlabelled client; '': the last.
        epoch_samples: examples of each party in an epoch, 0: all; never more than it has.
        communications: r, per epoch of that many examples: 1 or more cuts a round's examples to epoch_samples / r, 0.2 or
            0.5 let the sources train 1 / r times before the target does. config.rounds counts communications.
        gate: the confidence gate at the first round, and (never reached) after the last.
        mixup: parameter of Beta(a, a); 0: no mixup.
        permutations: orders sampled for the Shapley value; 0: exact up to 12 sources.
        momentum: share of the old domain weights, from the second round on.
        bn_mmd: False: running statistics stay with each party.
        poisoned, poison: name of a source whose first round(B * poison) labels of each batch are wrong by one class.

    With `det` (the notes' "pfl") each source has a personal model P and a deputy D, which starts from the encoder:
        sub_epochs: of a round; each begins with scoring both and choosing Recover, Exchange or Sublimate, see `prrfl`.
        all_data: each sub-epoch has the round's number of batches ("adddata"); else they share it.
        stages: 'det', all three; 'recover_exchange' (pfl2, pfl3, DET12): Exchange in place of Sublimate; 'recover' (also
            what the released script amounts to, which forgets the stage) | 'exchange' only; 'fixed' (pfl4): Recover first,
            then Exchange.
        lambda1, lambda2: thresholds of the deputy's score as a share of the personal model's.
        score_on: 'train' (code) or 'validation' examples; the metric is config.score.metric (accuracy: "pflacc").
        temperature: T of the KL terms (times T^2).
        fade_personal, fade_deputy: where a model has a KL term. 'min': a CE + (2 - a) KL with a = 1 - round / fade_rounds
            (three digits); 'max': (2 - a) CE + a KL. Both 'min': "amin".
        recover_weights: of CE and KL of the deputy in Recover ("det=1weight": 1/2, 3/2).
        upload: 'deputy', or 'personal' ("upload P"): personal models vote and are averaged.
        personal_target: the target has a personal model too, and uses it ("targetpfl"). Having no labels, both models are
            scored by their macro F1 against the votes of the sub-epoch before; mixed-up examples that count, as they come.
        target_sub_epochs: of the target's pass; target_kl: weight of its KL terms ("2kl": 2).

    Not reproduced: learning rates that change with every batch, and the target's own initialisation, of the released script
    with deputies.

    Raises:
        UserError: a name or number that can't be, or several labels an example.
    """
    network, score = training.network, training.score
    if network is None or score is None or training.init is None:
        raise UserError("config.method: 'kd3a' needs one label an example, and no label-mask model")
    reference = fidelity == "reference"
    votes = votes or ("hard" if reference else "soft")
    teachers = teachers or ("train" if reference else "evaluation")
    mixup_weights = not reference if mixup_weights is None else mixup_weights
    focus = focus or ("shapley" if reference else "leave_one_out")
    target_share = target_share or ("confidence" if reference else "examples")
    by_examples = not reference if by_examples is None else by_examples
    rounded = reference if rounded is None else rounded
    heads = heads or ("own" if reference else "shared")
    second_moments = not reference if second_moments is None else second_moments
    score_on = score_on or ("train" if reference else "validation")
    for field, value, known in (
        ("target", target, ("", *training.clients)),
        ("poisoned", poisoned, ("", *training.clients)),
        ("fidelity", fidelity, ("paper", "reference")),
        ("votes", votes, vote.KINDS),
        ("teachers", teachers, ("train", "evaluation")),
        ("focus", focus, vote.FOCUSES),
        ("target_share", target_share, ("examples", "confidence")),
        ("heads", heads, ("own", "shared")),
        ("stages", stages, STAGES),
        ("score_on", score_on, ("train", "validation")),
        ("fade_personal", fade_personal, FADES),
        ("fade_deputy", fade_deputy, FADES),
        ("upload", upload, ("deputy", "personal")),
    ):
        if value not in known:
            raise UserError(f"config.kd3a.{field}: unknown name '{value}'{nearest(value, known)}")
    if communications < 1 and communications not in (0.2, 0.5):
        raise UserError(f"config.kd3a.communications: found {communications}, expected 0.2, 0.5, or 1 or more")
    if communications > 1 and not epoch_samples:
        raise UserError("config.kd3a.epoch_samples: found 0, expected a number where communications is more than 1")
    if upload == "personal" and not det:
        raise UserError("config.kd3a.upload: 'personal' needs config.kd3a.det=True")
    if personal_target and not det:
        raise UserError("config.kd3a.personal_target: True needs config.kd3a.det=True")
    N = len(training.clients)
    K = N - 1
    if K < 1:
        raise UserError("config.kd3a.target: found no other client, expected at least one source")
    t = training.clients.index(target) if target else K
    poisoned_id = training.clients.index(poisoned) if poisoned else -1
    coalitions = vote.focus(focus, K, permutations=permutations, seed=training.seed)
    decide = vote.by_name(votes)
    batches = 0  # the most of a round; 0: all
    if epoch_samples:
        batches = max(1, round(round(epoch_samples / max(communications, 1)) / training.batch_size))
    repeats = round(1 / communications) if communications < 1 else 1
    head = tree.top_level(training.layers[-1:])
    stays = [where for where, does in ((head, heads == "own"), (tree.statistics, not bn_mmd)) if does]
    keep = training.keep(*stays)
    absorbs = teachers == "train"
    scored = det and stages in ("det", "recover_exchange")

    def kept(variables: Variables) -> Any:
        return tree.split(variables, keep(variables))[0] if keep else ()

    kl = jax.vmap(functools.partial(losses.distillation, temperature=temperature))
    macro_f1 = score_metric("single")

    def shared_by(number: int, count: Array) -> Any:
        """The limit of each of so many sub-epochs, which share the batches that a round has for a client; 0: each has all."""
        b = training.steps_per_epoch(count)
        b = jnp.minimum(b, batches) if batches else b
        if number == 0:
            return lambda e: b
        return lambda e: (e + 1).astype(b.dtype) * b // number - e.astype(b.dtype) * b // number

    # 1. a source ------------------------------------------------------------------------------------------------------
    def labels(y: Array, poisons: Array) -> Array:
        wrong = poisons & (jnp.arange(y.shape[0]) < round(training.batch_size * poison))
        return jnp.where(wrong, (y + 1) % network.classes, y)

    def supervised(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
        poisons = variables["kd3a"]["poisons"]
        return training.loss(_model(variables), batch._replace(y=labels(batch.y, poisons)), key)

    def mutual(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
        """DET's losses of both models; `kd3a` holds the stage and the weights of their terms."""
        told = variables["kd3a"]
        key_inputs, key_P, key_D, key_loss = jax.random.split(key, 4)
        x, y = network.inputs(batch._replace(y=labels(batch.y, told["poisons"])), key_inputs)
        _, z_P, changed_P = network.train(tree.member(variables, "P"), x, batch.mask, key_P)
        _, z_D, changed_D = network.train(tree.member(variables, "D"), x, batch.mask, key_D)

        def loss(z: Array, teacher: Array, learns: Array, weight: Array) -> Array:
            ce = network.objective(z, y, batch.mask, key_loss)
            both = weight[0] * ce + weight[1] * network.over_batch(kl(teacher, z), batch.mask)
            return jnp.where(learns, both, ce)

        L_P = loss(z_P, z_D, told["stage"] >= EXCHANGE, told["personal"])
        L_D = loss(z_D, z_P, told["stage"] <= EXCHANGE, told["deputy"])
        return L_P + jax.lax.stop_gradient(-L_D) + L_D, tree.together(P=changed_P, D=changed_D)

    def weights(round: Round, dtype: Any) -> tuple[Array, Array]:
        """CE's and KL's weights, of the personal model and of the deputy, where they learn from each other."""
        a = jnp.round(1 - round.astype(dtype) / fade_rounds, 3)
        of = {"none": (jnp.ones_like(a), jnp.ones_like(a)), "min": (a, 2 - a), "max": (2 - a, a)}
        return jnp.stack(of[fade_personal]), jnp.stack(of[fade_deputy])

    def train_source(download: Download, client: Client, data, round, key):
        if data.y.ndim != 1:
            raise UserError("config.method: 'kd3a' needs one label an example, found several or masks")
        tx = training.optimizer(training.lr(round))
        dtype = jax.tree.leaves(download.variables["params"])[0].dtype
        told: dict[str, Array] = {"poisons": data.id == poisoned_id}
        if not det:
            variables, opt_state, metrics = local.train_on(
                training, tx, {**download.variables, "kd3a": told}, client.opt_state, data, key,
                loss=supervised, epochs=repeats, limit=(lambda e: batches) if batches else None,
            )  # fmt: skip
            model = _model(variables)
            return Upload(model, kept(model)), client._replace(opt_state=opt_state), metrics

        def begin(variables: Variables, key: Key[Array, ""]) -> Variables:
            told = variables["kd3a"]
            stage, one = told["stage"], jnp.ones_like(told["stage"])
            if scored:
                rows = data if score_on == "train" else data.validation
                f_P, f_D = (score(tree.member(variables, name), rows) for name in "PD")
                stage = next_stage(stage, f_P, f_D, lambda1, lambda2)
                if stages == "recover_exchange":
                    stage = jnp.minimum(stage, EXCHANGE * one)
            elif stages == "fixed":
                stage = jnp.minimum(stage + 1, EXCHANGE * one)
            else:
                stage = {"recover": RECOVER, "exchange": EXCHANGE}[stages] * one
            deputy = told["fading"]
            if tuple(recover_weights) != (1.0, 1.0):
                deputy = jnp.where(stage == RECOVER, jnp.asarray(recover_weights, dtype), deputy)
            return {**variables, "kd3a": {**told, "stage": stage, "deputy": deputy}}

        personal, deputy = weights(round, dtype)
        told |= {
            "stage": jnp.zeros((), jnp.int32), "personal": personal, "deputy": deputy, "fading": deputy
        }  # fmt: skip
        variables = {**tree.together(P=client.P, D=download.variables), "kd3a": told}
        variables, opt_state, metrics = local.train_on(
            training, local.each(tx), variables, {"P": client.P_opt_state, "D": client.opt_state}, data, key,
            loss=mutual, epochs=sub_epochs * repeats, begin=begin,
            limit=shared_by(0 if all_data else sub_epochs * repeats, data.count),
        )  # fmt: skip
        P, D = tree.member(variables, "P"), tree.member(variables, "D")
        client = Client(opt_state["D"], P, opt_state["P"], jnp.ones_like(client.own))
        if upload == "deputy":
            return Upload(D, kept(D)), client, metrics
        return Upload(tree.merge(P, kept(D)) if keep else P, kept(P)), client, metrics

    def remember(server: Server, uploads: Upload, cohort: Cohort, round: Round) -> Server:
        models = jax.vmap(tree.merge)(uploads.variables, uploads.kept) if keep else uploads.variables
        return server._replace(knowledge=tree.put(server.knowledge, place(cohort), models))

    def place(cohort: Cohort) -> Array:
        """Where in the knowledge each source of a cohort stands; K (dropped) for padding and lost uploads."""
        row = jnp.where(cohort.ids > t, cohort.ids - 1, cohort.ids)
        return jnp.where((cohort.weight > 0) & (cohort.ids < N), row, K)

    # 2. the target ----------------------------------------------------------------------------------------------------
    def train_target(download: Download, client: Client, data, round, key):
        dtype = jax.tree.leaves(download.variables["params"])[0].dtype
        g = gate[0] + (gate[1] - gate[0]) * round.astype(dtype) / training.rounds
        everybody = jnp.ones((K,), bool)

        def predictions(statistics: Any, x: Array, mask: Array, key: Array) -> tuple[Array, Any]:
            """P [B, K, C], and the sources' running statistics after these images."""
            if not absorbs:
                logits = client_map(lambda model: network.evaluate(model, x)[1], training.how)(download.knowledge)
                return jnp.swapaxes(jax.nn.softmax(logits, -1), 0, 1), ()

            def one(model: Variables, statistics: Any, key: Array) -> tuple[Array, Any]:
                _, logits, changed = network.train({**model, **statistics}, x, mask, key)
                return logits, changed

            keys = jax.random.split(key, K)
            logits, statistics = client_map(one, training.how)(download.knowledge, statistics, keys)
            return jnp.swapaxes(jax.nn.softmax(logits, -1), 0, 1), statistics

        def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
            heard: Heard = variables["kd3a"]
            key_inputs, key_teachers, key_lambda, key_order, key_model = jax.random.split(key, 5)
            x, _ = network.inputs(batch._replace(y=jnp.zeros_like(batch.y)), key_inputs)
            P, statistics = jax.lax.stop_gradient(predictions(heard.statistics, x, batch.mask, key_teachers))
            said = jax.vmap(decide, (0, None, None))(P, everybody, g)
            heard = heard._replace(
                focus=heard.focus + vote.contributions(votes, coalitions, P, batch.mask, g),
                confident=heard.confident + jnp.sum((batch.mask & sure(P, g)).astype(dtype)),
                seen=heard.seen + jnp.sum(batch.mask.astype(dtype)),
                statistics=statistics,
            )
            lam = jax.random.beta(key_lambda, mixup, mixup, dtype=dtype) if mixup else jnp.ones((), dtype)
            count = jnp.sum(batch.mask, dtype=jnp.int32)
            other = local.permutation(key_order, count, batch.mask.shape[0])
            x = lam * x + (1 - lam) * jnp.take(x, other, axis=0)
            weight, weight_other = said.weight, jnp.take(said.weight, other)
            if not mixup_weights:
                weight_other = weight
            label = lam * weight[:, None] * said.label
            label = label + (1 - lam) * weight_other[:, None] * jnp.take(said.label, other, axis=0)

            def from_vote(z: Array) -> Array:
                return network.over_batch(-jnp.sum(label * jax.nn.log_softmax(z, -1), -1), batch.mask)

            if not personal_target:
                _, z, changed = network.train(_model(variables), x, batch.mask, key_model)
                return from_vote(z), {**changed, "kd3a": heard}
            key_P, key_D = jax.random.split(key_model)
            _, z_P, changed_P = network.train(tree.member(variables, "P"), x, batch.mask, key_P)
            _, z_D, changed_D = network.train(tree.member(variables, "D"), x, batch.mask, key_D)

            def learn(teacher: Array, student: Array, learns: Array) -> Array:
                return learns.astype(dtype) * target_kl * network.over_batch(kl(teacher, student), batch.mask)

            L_P = from_vote(z_P) + learn(z_D, z_P, heard.stage >= EXCHANGE)
            L_D = from_vote(z_D) + learn(z_P, z_D, heard.stage <= EXCHANGE)
            claimed, counts = jnp.argmax(label, -1), batch.mask & (jnp.sum(label, -1) > 0)
            agreed = jnp.stack([macro_f1.sums(z, claimed, counts) for z in (z_P, z_D)])
            heard = heard._replace(agreed=heard.agreed + jax.lax.stop_gradient(agreed))
            changed = tree.together(P=changed_P, D=changed_D)
            return L_P + L_D - jax.lax.stop_gradient(L_D), {**changed, "kd3a": heard}

        def begin(variables: Variables, key: Key[Array, ""]) -> Variables:
            if not personal_target:
                return variables
            heard: Heard = variables["kd3a"]
            f_P, f_D = (macro_f1.value(heard.agreed[i]) for i in range(2))
            stage = next_stage(heard.stage, f_P, f_D, lambda1, lambda2)
            return {**variables, "kd3a": heard._replace(stage=stage, agreed=jnp.zeros_like(heard.agreed))}

        statistics = {"batch_stats": download.knowledge["batch_stats"]} if "batch_stats" in download.knowledge else {}
        zero = jnp.zeros((), dtype)
        heard = Heard(jnp.zeros((K,), dtype), zero, zero, statistics if absorbs else ())
        tx, variables, opt_state = training.optimizer(training.lr(round)), download.variables, client.opt_state
        number = target_sub_epochs if personal_target else 1
        if personal_target:
            C = network.classes
            heard = heard._replace(stage=jnp.zeros((), jnp.int32), agreed=jnp.zeros((2, C, C), dtype))
            tx, opt_state = local.each(tx), {"P": client.P_opt_state, "D": opt_state}
            variables = tree.together(P=client.P, D=variables)
        variables, opt_state, metrics = local.train_on(
            training, tx, {**variables, "kd3a": heard}, opt_state, data, key,
            loss=loss, epochs=number, begin=begin, limit=shared_by(number, data.count),
        )  # fmt: skip
        heard = variables["kd3a"]
        if personal_target:
            P, model = tree.member(variables, "P"), tree.member(variables, "D")
            client = Client(opt_state["D"], P, opt_state["P"], jnp.ones_like(client.own))
        else:
            model, client = _model(variables), client._replace(opt_state=opt_state)
        share = heard.confident / jnp.maximum(heard.seen, 1)
        return Upload(model, (), heard.focus, share, heard.statistics), client, metrics

    def sure(P: Array, g: Array) -> Array:
        """Which examples count for the target's share: those of which somebody is confident."""
        return jnp.any(jnp.max(P, -1) >= g if votes == "soft" else jnp.max(P, -1) > g, -1)

    # 3. the server ----------------------------------------------------------------------------------------------------
    def average(server: Server, uploads: Upload, cohort: Cohort, round: Round) -> Server:
        heard: Upload = jax.tree.map(lambda leaf: leaf[0], uploads)
        knowledge = server.knowledge
        if absorbs and heard.statistics:
            knowledge = {**knowledge, **heard.statistics}
        alpha = domain_weights(server.alpha, heard, round)
        parties = tree.put(tree.broadcast(heard.variables, N), others, knowledge)
        mean = functools.partial(tree.weighted_sum, weight=alpha)
        averaged = mean(parties)
        if bn_mmd and second_moments:
            averaged = _match_moments(averaged, parties, mean)
        if keep:  # what stays with the parties is no part of the server's model
            averaged = tree.merge(averaged, kept(server.variables))
        return Server(averaged, knowledge, alpha)

    others = jnp.asarray([i for i in range(N) if i != t])
    sizes = jnp.asarray([training.sizes[i] for i in range(N)])

    def domain_weights(old: Array, heard: Upload, round: Round) -> Array:
        def digits(a: Array) -> Array:
            return jnp.round(a, 4) if rounded else a

        total = jnp.sum(sizes)
        of_target = sizes[t] / total if target_share == "examples" else heard.confident / N
        of_target = digits(of_target.astype(old.dtype))
        contribution = jnp.maximum(heard.focus, 0)
        contribution = jnp.where(jnp.sum(contribution) > 0, contribution, contribution + 1e-3)
        if by_examples:
            contribution = contribution * sizes[others].astype(contribution.dtype)
        of_sources = digits((1 - of_target) * contribution / jnp.sum(contribution))
        new = jnp.zeros_like(old).at[others].set(of_sources.astype(old.dtype)).at[t].set(of_target)
        return jnp.where(round == 0, new, digits(momentum * old + (1 - momentum) * new))

    # a party's batch norm, back from the target ---------------------------------------------------------------------------
    def send_back(server: Server, id: Array) -> Download:
        row = jnp.clip(jnp.where(id > t, id - 1, id), 0, K - 1)
        return Download(server.variables, statistics=tree.take(tree.split(server.knowledge, tree.statistics)[0], row))

    def take_back(download: Download, client: Client, data, round, key):
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jax.tree.leaves(download.variables["params"])[0].dtype)
        return Upload(tree.merge(download.variables, download.statistics)), client, Metrics(zero, none, none, zero)

    # the whole ------------------------------------------------------------------------------------------------------------
    sources, the_target = functools.partial(roles.others, id=t, n=N), functools.partial(roles.one, id=t, n=N)
    exchanges = [
        Exchange(lambda server, id: Download(server.variables), train_source, remember, sources),
        Exchange(lambda server, id: Download(server.variables, server.knowledge), train_target, average, the_target),
    ]
    if absorbs and not bn_mmd:
        exchanges.append(Exchange(send_back, take_back, lambda server, uploads, cohort, round: server, sources))

    def init_server(variables: Variables, n: int) -> Server:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        return Server(variables, tree.broadcast(variables, K), jnp.full((N,), 1 / N, dtype))

    def init_client(variables: Variables) -> Client:
        opt_state = training.optimizer(training.lr(jnp.zeros((), jnp.int32))).init(variables["params"])
        own = jnp.zeros((), bool)
        return Client(opt_state, variables, opt_state, own) if det else Client(opt_state, (), (), own)

    algorithm = compose(
        *exchanges,
        init_server=init_server,
        init_client=init_client,
        own=(lambda client, shared: tree.where(client.own, client.P, shared)) if det else None,
        global_model=lambda server: server.variables,
        keep=keep,
        how=training.how,
        observe=training.observe,
        validates=scored and score_on == "validation",
        summary=lambda reports: roles.both(reports[0], reports[1]),
        describe=lambda server: {"domain_weight": server.alpha},
    )
    return (
        algorithm if heads == "shared" else algorithm._replace(init=_own_heads(algorithm, training, head, det, others))
    )


def _own_heads(algorithm: Algorithm, training: Training, head: tree.Where, det: bool, others: Array) -> Any:
    """`algorithm.init` with a head for each party, and each personal model, drawn by itself."""

    def draw(variables: Variables, n: int, purpose: int) -> Variables:
        assert training.init is not None
        key = jax.random.fold_in(jax.random.key(training.seed), 2**31 - 2 - purpose)  # apart from all other keys
        fresh = [tree.split(training.init(jax.random.fold_in(key, i)), head)[0] for i in range(n)]
        like = tree.split(variables, head)[0]
        return jax.tree.map(lambda old, *new: jnp.stack(new).astype(old.dtype), like, *fresh)

    def init(variables: Variables, n: int) -> State:
        state = algorithm.init(variables, n)
        heads = draw(variables, n, 0)
        kept = state.clients._replace(part=tree.merge(state.clients.part, heads))
        if det:
            P = tree.merge(kept.client.P, draw(variables, n, 1))
            kept = kept._replace(client=kept.client._replace(P=P))
        knowledge = tree.merge(state.server.knowledge, tree.take(heads, others))
        return state._replace(server=state.server._replace(knowledge=knowledge), clients=kept)

    return init


def _model(variables: Variables) -> Variables:
    """Without what a round keeps among them."""
    return {name: part for name, part in variables.items() if name != "kd3a"}


def _match_moments(averaged: Variables, parties: Variables, mean: Any) -> Variables:
    """The mean of the parties' normal distributions by first and second moment: E[h^2] is averaged, not the variance."""
    flat: dict[Any, Any] = dict(traverse_util.flatten_dict(averaged))  # pyright: ignore
    each: dict[Any, Any] = dict(traverse_util.flatten_dict(parties))  # pyright: ignore
    for path in each:
        if path[0] == "batch_stats" and path[-1] == "var":
            beside = (*path[:-1], "mean")
            flat[path] = mean(each[path] + each[beside] ** 2) - flat[beside] ** 2
    return traverse_util.unflatten_dict(flat)
