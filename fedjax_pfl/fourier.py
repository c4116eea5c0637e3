"""Progressive Fourier aggregation (PFA): clients share low frequencies of their weights, round by round more of them.

Chen, Zhu, Yang, Yuan, MICCAI 2021, arXiv 2110.00394 ("v1": amplitudes are shared); Chen, Yang, Zhu, Peng, Yuan, IEEE TMI
2022, doi 10.1109/TMI.2022.3192483 ("v2": amplitudes and phases, and a classifier's classes never mix).

Every client gets a model of its own: the high frequencies are its own. Neither v1 nor v2 is FedAvg, not even where all
frequencies are shared: the mean of amplitudes isn't the amplitude of the mean. Only `components='complex'` at rate 1 is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Complex, Float, Int

from fedjax_pfl import tree
from fedjax_pfl.core import Round, Variables
from fedjax_pfl.errors import UserError, nearest
from fedjax_pfl.tree import Path

COMPONENTS = ("amplitude", "amplitude_phase", "complex")

Aggregate = Callable[[Variables, Float[Array, " K"], Round | int], Variables]
Parts = tuple[Array, ...]  # real arrays in the shape of a spectrum: its real and imaginary part, its amplitude, ...


def rates(rounds: int, *, r0: float = 0.7, final: float = 0.95) -> Float[np.ndarray, " T"]:
    """r_a = r0 + (a / T) (final - r0), a = 0 .. T - 1: the share of each axis's frequencies that round a aggregates.

    Raises:
        UserError: no rounds.
    """
    if rounds < 1:
        raise UserError(f"rates: rounds={rounds}, expected 1 or more")
    return r0 + np.arange(rounds) / rounds * (final - r0)


def bounds(n: int, rates: Sequence[float] | np.ndarray) -> Int[np.ndarray, " T"]:
    """b_a = floor(n r_a / 2): of an axis of length n, frequencies up to b_a are shared (see `pfa`).

    Made on the host: on a device, in float32, n r_a / 2 falls short of a whole number more often than in float64, where what
    is within a rounding error of one counts as one. (The released code doesn't look: of an axis of length 600 it shares one
    frequency less in some rounds of 50. For its own network it makes no difference.)
    """
    return np.floor(n * np.asarray(rates, np.float64) / 2 + 1e-9).astype(np.int32)


def pfa(
    rates: Sequence[float] | np.ndarray,
    *,
    classifier: str,
    components: str = "amplitude_phase",
    classwise: bool = True,
    fidelity: str = "paper",
    symmetric: bool | None = None,
    circular: bool | None = None,
    share_short: bool | None = None,
    share_dc: bool | None = None,
    divisor: int | None = None,
) -> Aggregate:
    """The server's step: `aggregate(stacked, weights, round)`, one model per client from one model per client.

    `stacked` are Flax variables with leaves [K, ...] and so is what comes back. Each kernel is seen as a matrix: a
    convolution's [kh, kw, in, out] as [in kh, kw out], a dense one as it is. A client's spectrum is replaced by the one
    that the clients agree on wherever both frequencies are at most b = floor(n r / 2), n the length of the axis and r the
    round's rate, and stays its own elsewhere.

    Besides: batch-norm entries stay as they are, and everybody gets the weighted mean of anything else (biases, other
    norms, embedding tables, kernels of other ranks).

    `weights` [K] (number of examples, or ones) are 0 for padding and lost uploads. Such rows may hold anything, even NaN,
    and change nothing; what they get back is of no use. Where all weights are 0 everybody keeps what it has.

    Departures of the released code, each a switch; `fidelity='reference'` turns on those that are left None:
        symmetric: False: frequencies -b .. b - 1 are replaced and the real part of the inverse transform is taken; it isn't
            real, since b has no counterpart. True: -b .. b.
        circular: False: the mean of the angles in (-pi, pi], as numbers (that of 3 and -3 is 0). True: the angle of the
            mean of e^(i angle); where they cancel out each client keeps its own.
        share_short: False: of axes of length 1 and 2, where b = 0, nothing is shared (save by `share_dc`). True: all is.
        share_dc: False: where b = 0 nothing is shared. True: the zero frequency always is.
        divisor: 4: amplitudes and angles are summed over the clients that arrived and divided by this number, whatever the
            clients' number and weights. 0: their weighted mean.

    Args:
        rates: r of each round, see `rates`; rounds after the last use the last.
        classifier: the top-level module of the model that is its classifier (`Training.layers[-1]`).
        components: what clients agree on: 'amplitude' (v1), 'amplitude_phase' (v2), or 'complex', the weighted mean of the
            coefficients themselves.
        classwise: the classifier's dense kernel is transformed class by class, along its features (v2); False: as a
            matrix, as any other (v1).

    Raises:
        UserError: an unknown name in `components` or `fidelity`, a rate outside [0, 1] or none, a negative `divisor`; and
            from `aggregate`, where the model has no such `classifier`.
    """
    if components not in COMPONENTS:
        raise UserError(f"components: unknown name '{components}'{nearest(components, COMPONENTS)}")
    if fidelity not in ("paper", "reference"):
        raise UserError(f"fidelity: unknown name '{fidelity}'{nearest(fidelity, ('paper', 'reference'))}")
    shares = np.asarray(rates, np.float64).reshape(-1)
    if not (shares.size and np.all((shares >= 0) & (shares <= 1))):
        raise UserError(f"rates: {', '.join(f'{r:g}' for r in shares) or 'none'}, expected numbers in [0, 1]")
    if divisor is not None and divisor < 0:
        raise UserError(f"divisor={divisor}, expected a positive number, or 0 for the weighted mean")
    paper = fidelity == "paper"
    band = _Band(
        shares,
        symmetric=paper if symmetric is None else symmetric,
        share_short=paper if share_short is None else share_short,
        share_dc=paper if share_dc is None else share_dc,
    )
    divide_by = (0 if paper else 4) if divisor is None else divisor
    angles = components == "amplitude_phase" and not (paper if circular is None else circular)
    forms = {"amplitude": _amplitude, "amplitude_phase": _arithmetic if angles else _circular, "complex": _complex}
    vote, agree = forms[components]()

    def aggregate(stacked: Variables, weights: Float[Array, " K"], round: Round | int) -> Variables:
        flat: dict[Path, Array] = dict(traverse_util.flatten_dict(stacked))  # pyright: ignore[reportAssignmentType]
        modules = {path[1] for path in flat}
        if classifier not in modules:
            raise UserError(f"classifier: the model has no module '{classifier}'{nearest(classifier, modules)}")
        own = tree.batch_norm(stacked)
        weights = weights.astype(jnp.result_type(float))
        arrived = weights > 0
        share = weights / jnp.maximum(jnp.sum(weights, where=arrived), jnp.finfo(weights.dtype).tiny)
        share = jnp.where(arrived, share, 0)
        p = arrived.astype(share.dtype) / divide_by if divide_by else share

        result, groups = {}, {}
        for path, leaf in flat.items():
            view = None if own(path) else _view(path, leaf, classifier if classwise else None)
            if view is not None:
                groups.setdefault(view, []).append(path)
            else:
                result[path] = leaf if own(path) else _mean(leaf, share)
        for view, paths in groups.items():
            mask = band(view, round) & jnp.any(arrived)
            leaves = _exchange([flat[path] for path in paths], view, p, mask, vote, agree)
            result.update(zip(paths, leaves, strict=True))
        return traverse_util.unflatten_dict(result)

    return aggregate


class _View(NamedTuple):
    """How a kernel is seen: a matrix of so many rows and columns, transformed along both or (class-wise) the columns.

    F = W // 2 + 1 frequencies of the columns are computed: the others' coefficients are conjugates of these.
    """

    rows: int
    columns: int
    classwise: bool
    dtype: np.dtype

    @property
    def frequencies(self) -> int:
        """F."""
        return self.columns // 2 + 1

    def matrix(self, kernel: Array) -> Float[Array, "H W"]:
        """One client's kernel as it is transformed."""
        if kernel.ndim == 4:
            return jnp.transpose(kernel, (2, 0, 1, 3)).reshape(self.rows, self.columns)
        return kernel.T if self.classwise else kernel

    def kernel(self, matrix: Float[Array, "H W"], shape: tuple[int, ...]) -> Array:
        """The inverse of `matrix`, for a kernel of this shape."""
        if len(shape) == 4:
            kh, kw, fan_in, fan_out = shape
            return jnp.transpose(matrix.reshape(fan_in, kh, kw, fan_out), (1, 2, 0, 3))
        return matrix.T if self.classwise else matrix

    def spectrum(self, kernels: Sequence[Array]) -> Complex[Array, "L H F"]:
        """Of one client's L kernels."""
        x = jnp.stack([self.matrix(kernel) for kernel in kernels])
        return jnp.fft.rfft(x) if self.classwise else jnp.fft.rfft2(x)

    def inverse(self, spectrum: Complex[Array, "L H F"]) -> Float[Array, "L H W"]:
        """The real part of the inverse transform of the whole spectrum that has this half."""
        if self.classwise:
            return jnp.fft.irfft(spectrum, n=self.columns)
        return jnp.fft.irfft2(spectrum, s=(self.rows, self.columns))


def _view(path: Path, leaf: Array, classifier: str | None) -> _View | None:
    """How the kernel [K, ...] is seen, None if it isn't one; `classifier`: the module that is seen class by class."""
    if path[-1] != "kernel" or path[-2].endswith("embedding"):
        return None
    if leaf.ndim == 5:
        kh, kw, fan_in, fan_out = leaf.shape[1:]
        return _View(fan_in * kh, kw * fan_out, False, leaf.dtype)
    if leaf.ndim == 3:
        fan_in, fan_out = leaf.shape[1:]
        if path[1] == classifier:
            return _View(fan_out, fan_in, True, leaf.dtype)
        return _View(fan_in, fan_out, False, leaf.dtype)  # PyTorch's transposed: so is then its spectrum
    return None


class _Band(NamedTuple):
    """Which frequencies are shared, see `pfa`."""

    rates: np.ndarray
    symmetric: bool
    share_short: bool
    share_dc: bool

    def __call__(self, view: _View, round: Round | int) -> Bool[Array, "2 H F"]:
        """Whether each coefficient computed is replaced, and whether its counterpart at -f is."""
        columns = self._axis(view.columns, round)
        rows = jnp.ones((2, view.rows), bool) if view.classwise else self._axis(view.rows, round)
        return rows[:, :, None] & columns[:, None, : view.frequencies]

    def _axis(self, n: int, round: Round | int) -> Bool[Array, "2 n"]:
        """Whether frequency f is in the band, and whether -f is, in the transform's order."""
        b = jnp.take(jnp.asarray(bounds(n, self.rates)), round, mode="clip")
        f = (jnp.arange(n, dtype=b.dtype) + n // 2) % n - n // 2

        def inside(f: Array) -> Array:
            if self.share_short and n <= 2:
                return jnp.ones(n, bool)
            band = (jnp.abs(f) <= b) & (b > 0) if self.symmetric else (-b <= f) & (f < b)
            return band | (f == 0) if self.share_dc else band

        return jnp.stack([inside(f), inside((n // 2 - f) % n - n // 2)])  # -n/2 is its own negative


def _mean(leaf: Float[Array, "K ..."], share: Float[Array, " K"]) -> Float[Array, "K ..."]:
    """The weighted mean, given to all rows; their own where nobody has a weight."""
    arrived = (share > 0).reshape(-1, *(1,) * (leaf.ndim - 1))
    mean = jnp.tensordot(share.astype(leaf.dtype), jnp.where(arrived, leaf, 0), 1, precision="highest")
    return jnp.where(jnp.any(arrived), mean[None], leaf)


def _exchange(
    leaves: Sequence[Float[Array, "K ..."]],
    view: _View,
    p: Float[Array, " K"],
    mask: Bool[Array, "2 H F"],
    vote: "Vote",
    agree: "Agree",
) -> list[Float[Array, "K ..."]]:
    """All kernels of one matrix shape, with the masked part of their spectra replaced by what the clients agree on.

    One client after the other, twice: on a CPU a second forward transform takes no longer than keeping all clients' spectra
    would, and so what this needs besides input and output doesn't grow with the number of clients.
    """
    p = p.astype(view.dtype)
    zero = jnp.zeros((len(leaves), view.rows, view.frequencies), view.dtype)

    def add(sums: Parts, client: tuple[Array, list[Array]]) -> tuple[Parts, None]:
        p_k, kernels = client
        votes = vote(view.spectrum(kernels))
        return tuple(s + jnp.where(p_k > 0, p_k * v, 0) for s, v in zip(sums, votes, strict=True)), None

    count = len(jax.eval_shape(vote, jax.eval_shape(view.spectrum, [x[0] for x in leaves])))
    sums, _ = jax.lax.scan(add, (zero,) * count, (p, list(leaves)))
    agreed = agree(sums)
    there, back = mask[:, None].astype(view.dtype) / 2

    def replace(kernels: list[Array]) -> list[Array]:
        # The real part of an inverse transform is that of (X(f) + conj X(-f)) / 2, hence half a spectrum suffices even
        # where f is replaced and -f isn't.
        F = view.spectrum(kernels)
        (re, im), (re_back, im_back) = agreed(F)
        own = 1 - there - back
        X = jax.lax.complex(own * F.real + there * re + back * re_back, own * F.imag + there * im + back * im_back)
        M = view.inverse(X)
        return [view.kernel(m, kernel.shape) for m, kernel in zip(M, kernels, strict=True)]

    return jax.lax.map(replace, list(leaves))


# What clients agree on. A client votes with parts of its spectrum F; from the votes' weighted sums follows what replaces a
# client's coefficient X(f), and the conjugate of what replaces X(-f): real and imaginary part.
Pair = tuple[Array, Array]
Vote = Callable[[Complex[Array, "L H F"]], Parts]
Agree = Callable[[Parts], Callable[[Complex[Array, "L H F"]], tuple[Pair, Pair]]]


def _unit(F: Complex[Array, "L H F"]) -> tuple[Array, Array, Array]:
    """|F|, and real and imaginary part of e^(i angle F); the angle of 0 is 0."""
    A = jnp.abs(F)
    none = A == 0
    safe = jnp.where(none, 1, A)
    return A, jnp.where(none, 1, F.real / safe), F.imag / safe


def _amplitude() -> tuple[Vote, Agree]:
    """The mean amplitude, each client's own phase."""

    def agree(sums: Parts) -> Callable[[Array], tuple[Pair, Pair]]:
        (A,) = sums

        def agreed(F: Array) -> tuple[Pair, Pair]:
            _, x, y = _unit(F)
            pair = A * x, A * y
            return pair, pair

        return agreed

    return lambda F: (jnp.abs(F),), agree


def _circular() -> tuple[Vote, Agree]:
    """The mean amplitude, the phase of the mean of e^(i phase)."""

    def agree(sums: Parts) -> Callable[[Array], tuple[Pair, Pair]]:
        A, x, y = sums
        n = jnp.sqrt(x * x + y * y)
        cancelled = n <= 64 * jnp.finfo(n.dtype).eps  # opposite signs of a real coefficient, up to rounding
        safe = jnp.where(cancelled, 1, n)
        x, y = A * x / safe, A * y / safe

        def agreed(F: Array) -> tuple[Pair, Pair]:
            _, own_x, own_y = _unit(F)
            pair = jnp.where(cancelled, A * own_x, x), jnp.where(cancelled, A * own_y, y)
            return pair, pair

        return agreed

    return _unit, agree


def _arithmetic() -> tuple[Vote, Agree]:
    """The mean amplitude, the mean of the phases as numbers."""

    def vote(F: Array) -> Parts:
        angle = jnp.angle(F)
        # A negative real coefficient's angle is -pi or pi by the sign of a zero, or of a rounding error, which means nothing.
        # It is taken as pi both at f and at -f, so that the angles there aren't each other's negatives: hence the third sum.
        negative = (F.real < 0) & (jnp.abs(F.imag) <= -16 * jnp.finfo(angle.dtype).eps * F.real)
        return jnp.abs(F), jnp.where(negative, jnp.pi, angle), negative.astype(angle.dtype)

    def agree(sums: Parts) -> Callable[[Array], tuple[Pair, Pair]]:
        A, angle, negative = sums
        back = angle - 2 * jnp.pi * negative
        pairs = (A * jnp.cos(angle), A * jnp.sin(angle)), (A * jnp.cos(back), A * jnp.sin(back))
        return lambda F: pairs

    return vote, agree


def _complex() -> tuple[Vote, Agree]:
    """The mean coefficient."""

    def agree(sums: Parts) -> Callable[[Array], tuple[Pair, Pair]]:
        re, im = sums
        return lambda F: ((re, im), (re, im))

    return lambda F: (F.real, F.imag), agree
