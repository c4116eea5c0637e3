"""PRR-FL. Chen, Zhu, Yang, Yuan, MICCAI 2021, arXiv 2110.00394 (v1); with Peng, IEEE TMI 2022, 10.1109/TMI.2022.3192483 (v2).

Progressive Fourier aggregation (PFA, `fourier`), deputy-enhanced transfer (DET, here) and the conjoint prototype-aligned
loss (CPA, `cpa`). v1 is components='amplitude', classwise=False, cpa_weight=0; v2 the defaults.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from fedjax_pfl import aggregate, cpa, fourier, local, losses, prototypes, tree
from fedjax_pfl.core import Algorithm, Exchange, Report, Variables, compose
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.local import Batch, Training
from fedjax_pfl.prototypes import Sums

RECOVER, EXCHANGE, SUBLIMATE = 1, 2, 3
DISTILLATIONS = ("kl", "reverse_kl", "mse")


class Server(NamedTuple):
    variables: Variables  # [N, ...] S_k: each client's aggregated model
    prototypes: Any  # the global ones [C, d], or () without CPA


class Client(NamedTuple):
    P: Any  # personal model, never overwritten by the server; () without DET
    f: Any  # its features' sums over the last local epoch [C, d], or () without CPA
    between: Any  # deputy, stage and optimisers, where they outlive an exchange; else ()


class Between(NamedTuple):
    """What a client remembers from one exchange to the next, where it does."""

    D: Any
    stage: Any
    opt_state: Any


class Epoch(NamedTuple):
    """What one local epoch is about; it stands among the variables that are trained."""

    stage: Int[Array, ""]
    gamma: Any  # [C], or () without CPA
    sums: Any  # the features of the epoch so far, or () without CPA


class Message(NamedTuple):
    """Both ways: S_k and the global prototypes down, the deputy D_k and the client's prototypes up."""

    variables: Variables
    prototypes: Any


def next_stage(stage: Array, f_P: Array, f_D: Array, lambda1: float, lambda2: float) -> Array:
    """The stage of an epoch, from that of the one before (0: none yet) and both models' scores."""
    recover = (f_D < lambda1 * f_P) | (stage == 0)
    exchange = (stage == RECOVER) | (f_D < lambda2 * f_P)
    return jnp.where(recover, RECOVER, jnp.where(exchange, EXCHANGE, SUBLIMATE)).astype(stage.dtype)


def distillation(kind: str, teacher: Array, student: Array, temperature: float) -> Array:
    """From the teacher's logits [..., C] to the student's, of ONE example; the mean over pixels where there are any.

    'kl': T^2 KL(p_teacher || p_student); 'reverse_kl': T^2 KL(p_student || p_teacher); 'mse': the mean squared difference of
    the softmax values over classes and pixels.
    """
    if kind == "kl":
        return losses.distillation(teacher, student, temperature=temperature)
    log_q = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    log_p = jax.nn.log_softmax(student / temperature)
    if kind == "mse":
        return jnp.mean(jnp.square(jnp.exp(log_p) - jnp.exp(log_q)))
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))


def prrfl(
    training: Training,
    *,
    fidelity: str = "paper",
    pfa: bool = True,
    det: bool = True,
    cpa_weight: float = 1.0,
    plain_weight: float = 0.0,
    components: str = "amplitude_phase",
    classwise: bool = True,
    r0: float = 0.7,
    final_rate: float = 0.95,
    symmetric: bool | None = None,
    circular: bool | None = None,
    share_short: bool | None = None,
    share_dc: bool | None = None,
    divisor: int | None = None,
    weighting: str = "uniform",
    lambda1: float = 0.7,
    lambda2: float = 0.9,
    score_on: str | None = None,
    distill: str = "kl",
    distill_weight: float = 1.0,
    temperature: float = 1.0,
    optimizer: str = "fresh",
    beta: float = 0.8,
    tau: float = 3.0,
    start: int = 15,
    prototype: str = "feature",
    global_prototype: str = "gaussian",
    exchange: str | None = None,
    reset: bool | None = None,
) -> Algorithm:
    """Clients with a personal model P_k, and a deputy D_k that travels.

    Each local epoch begins with scoring both (f_P, f_D) and choosing what they learn from each other: Recover (f_D is under
    lambda1 f_P, or the round begins: the deputy learns from the personal model), Exchange (both learn), Sublimate (f_D is at
    least lambda2 f_P: the personal model learns from the deputy). Batch norm stays with the client. The server gives each
    client the model S_k that PFA makes for it.

    Departures of the released code, each a switch; `fidelity='reference'` turns on those that are left None:
        symmetric, circular, share_short, share_dc, divisor: of PFA, see `fourier.pfa`.
        score_on: 'train': models are scored on augmented training images, each on its own draw. 'validation': as the papers
            say.
        exchange: 'epoch': prototypes are exchanged after each local epoch. 'round': with the models, as the paper says.
        reset: True: each round begins with ones for every prototype. False: with the last round's.
    Not reproduced: two of its runs stop with an error (one local epoch a round; a client that lacks a class). Here one epoch
    a round means Exchange, and a class that a client lacks has gamma = 1.

    Args:
        pfa: False: the weighted mean of the deputies, batch norm kept (an ablation).
        det: False: no personal model; the client uses S_k itself (an ablation).
        cpa_weight: of the CPA loss; 0: no prototypes either.
        plain_weight: of the loss that config.loss names; 1 where cpa_weight is 0. Segmentation takes both.
        components, classwise: of PFA, see `fourier.pfa`.
        r0, final_rate: PFA's rate grows from r0 in round 0 to (nearly) final_rate in the last.
        weighting: of the clients in PFA: 'uniform' or 'examples'.
        distill: 'kl', 'reverse_kl' or 'mse' (segmentation, with distill_weight=10), see `distillation`.
        temperature: T of the distillation.
        optimizer: 'fresh' each round as in the code, or 'kept'.
        beta: of CPA's mitigation matrix.
        tau: of CPA's refinement; at least 1 (then for features that are never negative, as after a ReLU).
        start: the first round with refinement; before it gamma is 1.
        prototype: 'feature' (what the classifier reads) or 'logit'.
        global_prototype: 'gaussian' or 'avg', see `cpa.global_prototypes`.

    Raises:
        UserError: a label-mask model, an unknown name, or a number out of range.
    """
    network, score = training.network, training.score
    if network is None or score is None:
        raise UserError("config.method: 'prrfl' needs one label an example or masks, and no label-mask model")
    reference = fidelity == "reference"
    score_on = score_on or ("train" if reference else "validation")
    exchange = exchange or ("epoch" if reference and cpa_weight else "round")
    reset = reference if reset is None else reset
    for field, value, known in (
        ("fidelity", fidelity, ("paper", "reference")),
        ("components", components, fourier.COMPONENTS),
        ("score_on", score_on, ("validation", "train")),
        ("distill", distill, DISTILLATIONS),
        ("optimizer", optimizer, ("fresh", "kept")),
        ("prototype", prototype, ("feature", "logit")),
        ("global_prototype", global_prototype, cpa.KINDS),
        ("exchange", exchange, ("round", "epoch")),
    ):
        if value not in known:
            raise UserError(f"config.prrfl.{field}: unknown name '{value}'{nearest(value, known)}")
    if tau < 1:
        raise UserError(f"config.prrfl.tau: found {tau}, expected 1 or more")
    refined, epochs = cpa_weight > 0, training.epochs
    s = cpa.mitigation(training.counts, beta)
    remembers = exchange == "epoch" or optimizer == "kept"

    def refined_loss(z: Array, y: Array, gamma: Array) -> Array:
        """L_CPA of ONE example; of a mask the mean over its pixels."""
        label = y.reshape(-1)
        each = jax.vmap(cpa.conjoint, (0, 0, None))(z.reshape(label.size, -1), label, s)
        return jnp.mean(jnp.take(gamma, label) * each)

    def loss(variables: Variables, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Any]:
        epoch: Epoch = variables["det"]["epoch"]
        key_inputs, key_P, key_D, key_loss = jax.random.split(key, 4)
        x, y = network.inputs(batch, key_inputs)  # both models see the same images

        def mean(each: Array) -> Array:
            return network.over_batch(each, batch.mask)

        def L_sup(z: Array) -> Array:  # noqa: N802, the paper's symbol
            if not refined:
                return network.objective(z, y, batch.mask, key_loss)
            value = cpa_weight * mean(jax.vmap(refined_loss, (0, 0, None))(z, y, epoch.gamma))
            return value + plain_weight * network.objective(z, y, batch.mask, key_loss) if plain_weight else value

        def learn(teacher: Array, student: Array) -> Array:
            each = jax.vmap(functools.partial(distillation, distill, temperature=temperature))(teacher, student)
            return distill_weight * mean(each)

        feature, z_D, changed = network.train(tree.member(variables, "D"), x, batch.mask, key_D)
        changed = {"D": changed}
        total = reported = L_sup(z_D)
        if det:
            feature, z_P, changed["P"] = network.train(tree.member(variables, "P"), x, batch.mask, key_P)
            reported = L_sup(z_P)
            P_learns, D_learns = (
                flag.astype(total.dtype) for flag in (epoch.stage >= EXCHANGE, epoch.stage <= EXCHANGE)
            )
            total = total + reported + P_learns * learn(z_D, z_P) + D_learns * learn(z_P, z_D)
        if refined:
            feature = jax.lax.stop_gradient(feature if prototype == "feature" else z_P if det else z_D)
            epoch = epoch._replace(sums=cpa.collect(epoch.sums, feature, y, batch.mask))
        # The gradient is that of all terms; what is logged is the supervised one of the model that the client uses.
        return total + jax.lax.stop_gradient(reported - total), {**tree.together(**changed), "det": {"epoch": epoch}}

    def local_update(first: bool, number: int, download: Message, client: Client, data, round, key):
        tx = local.each(training.optimizer(training.lr(round)))
        D = download.variables if first or client.between.D == () else client.between.D
        variables = tree.together(P=client.P, D=D) if det else tree.together(D=D)
        stage = jnp.zeros((), jnp.int32) if first else client.between.stage
        fresh = (first and optimizer == "fresh") or not remembers
        opt_state = tx.init(variables["params"]) if fresh else client.between.opt_state
        own, shared = client.f, download.prototypes
        if first and refined and reset:
            own = Sums(jnp.ones_like(own.sums), jnp.ones_like(own.counts))
            ones = jax.tree.map(lambda leaf: leaf[None], prototypes.means(own))
            shared = cpa.global_prototypes(ones, global_prototype, noise_key(round, epochs))

        def begin(variables: Variables, key: Key[Array, ""]) -> Variables:
            epoch: Epoch = variables["det"]["epoch"]
            stage = jnp.full_like(epoch.stage, EXCHANGE)
            if det and epochs > 1:
                rows, keys = (
                    (data.validation, (None, None)) if score_on == "validation" else (data, jax.random.split(key))
                )
                f_P, f_D = (score(tree.member(variables, name), rows, k) for name, k in zip("PD", keys, strict=True))
                stage = next_stage(epoch.stage, f_P, f_D, lambda1, lambda2)
            if not refined:
                return {**variables, "det": {"epoch": epoch._replace(stage=stage)}}
            gamma = cpa.refinement(prototypes.means(epoch.sums), shared, tau)
            gamma = jnp.where(round < start, jnp.ones_like(gamma), gamma)
            return {**variables, "det": {"epoch": Epoch(stage, gamma, tree.zeros_like(epoch.sums))}}

        gamma = jnp.ones_like(own.counts) if refined else ()
        variables["det"] = {"epoch": Epoch(stage, gamma, own)}
        variables, opt_state, metrics = local.train_on(
            training, tx, variables, opt_state, data, key, loss=loss, epochs=number, begin=begin
        )
        epoch = variables["det"]["epoch"]
        P, D = tree.member(variables, "P") if det else (), tree.member(variables, "D")
        between = ()
        if exchange == "epoch":
            between = Between(D, epoch.stage, opt_state)
        elif remembers:
            between = Between((), (), opt_state)
        own = prototypes.means(epoch.sums) if refined else ()
        return Message(D, own), Client(P, epoch.sums, between), metrics

    rates = fourier.rates(training.rounds, r0=r0, final=final_rate)
    fourier_mean = fourier.pfa(
        rates,
        classifier=training.layers[-1],
        components=components,
        classwise=classwise,
        fidelity=fidelity,
        symmetric=symmetric,
        circular=circular,
        share_short=share_short,
        share_dc=share_dc,
        divisor=divisor,
    )

    def noise_key(round: Array, e: int) -> Key[Array, ""]:
        """One for everybody; the large number keeps it apart from all other keys made from the seed."""
        key = jax.random.fold_in(jax.random.key(training.seed), 2**31 - 1)
        return jax.random.fold_in(jax.random.fold_in(key, round), e)

    def server_update(e: int, server: Server, uploads: Message, cohort, round):
        if refined:
            new = cpa.global_prototypes(uploads.prototypes, global_prototype, noise_key(round, e))
            server = server._replace(prototypes=prototypes.update(server.prototypes, new))
        if e < epochs - 1:
            return server
        D, k = uploads.variables, cohort.ids.shape[0]
        if pfa:
            S = fourier_mean(D, aggregate.weights(cohort, weighting), round)
        else:
            S = tree.broadcast(aggregate.mean(D, cohort, weighting), k)
        n = jax.tree.leaves(server.variables)[0].shape[0]
        arrived = jnp.where(cohort.weight > 0, cohort.ids, n)  # n: dropped
        return server._replace(variables=tree.put(server.variables, arrived, S))

    def init_client(variables: Variables) -> Client:
        f, between = (), ()
        if refined:
            f = prototypes.zeros(network.classes, *width(variables))
        if remembers:
            tx = local.each(training.optimizer(training.lr(jnp.zeros((), jnp.int32))))
            names = ("P", "D") if det else ("D",)
            opt_state = tx.init(tree.together(**dict.fromkeys(names, variables))["params"])
            between = Between((), (), opt_state)
            if exchange == "epoch":
                between = Between(variables, jnp.zeros((), jnp.int32), opt_state)
        return Client(variables if det else (), f, between)

    def width(variables: Variables) -> tuple[int, Any]:
        d, dtype = prototypes.width(variables, training.layers)
        return (network.classes if prototype == "logit" else network.width or d), dtype

    def init_server(variables: Variables, n: int) -> Server:
        none = prototypes.means(prototypes.zeros(network.classes, *width(variables))) if refined else ()
        return Server(tree.broadcast(variables, n), none)

    parts = [(e, e == 0, 1) for e in range(epochs)] if exchange == "epoch" else [(epochs - 1, True, epochs)]
    return compose(
        *(
            Exchange(
                lambda server, id: Message(tree.take(server.variables, id), server.prototypes),
                functools.partial(local_update, first, number),
                functools.partial(server_update, e),
            )
            for e, first, number in parts
        ),
        init_server=init_server,
        init_client=init_client,
        shared=lambda server, id: tree.take(server.variables, id),
        own=(lambda client, shared: client.P) if det else None,
        keep=tree.batch_norm,
        how=training.how,
        observe=training.observe,
        validates=det and score_on == "validation",
        summary=_one_report,
    )


def _one_report(reports: Sequence[Report]) -> Report:
    """The report of a round whose epochs were exchanges of their own."""
    first, last = reports[0], reports[-1]
    train = last.train
    if len(reports) > 1:
        train = train._replace(
            **{name: sum(getattr(r.train, name) for r in reports) for name in ("loss", "examples", "steps")}
        )
    if train.curve:
        curve = train.curve._replace(received=first.train.curve.received, own_before=first.train.curve.own_before)
        train = train._replace(curve=curve)
    finite, server_finite = (
        functools.reduce(jnp.logical_and, parts)
        for parts in ([r.finite for r in reports], [r.server_finite for r in reports])
    )
    return Report(last.ids, train, finite, server_finite)
