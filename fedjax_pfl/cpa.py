"""The conjoint prototype-aligned loss (CPA) of PRR-FL, IEEE TMI 2022, doi 10.1109/TMI.2022.3192483.

The equations are those of the released code (CityU-AIM-Group/PRR-Imbalance), which the paper's framework figure agrees with.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fedjax_pfl import prototypes
from fedjax_pfl.prototypes import Prototypes, Sums

TINY = 1e-6  # of the released code: in sigma's denominator, in the logarithm and in the cosine


def mitigation(counts: Sequence[int], beta: float) -> Float[np.ndarray, "C C"]:
    """s_ij = (n_j / n_i)^beta where n_i > n_j, else 1: how hard samples of class i may push class j down.

    `counts` are n of all clients together; a class without examples counts as one with one.
    """
    n = np.maximum(np.asarray(counts, np.float64), 1)
    ratio = n.reshape(1, -1) / n.reshape(-1, 1)
    return np.where(ratio < 1, ratio**beta, 1.0)


def conjoint(logits: Float[Array, " C"], y: Int[Array, ""], s: Float[np.ndarray, "C C"]) -> Float[Array, ""]:
    """- log(sigma_y + 1e-6) of ONE example (or pixel), sigma_y = e^z_y / (e^z_y + sum_{j != y} s_yj e^z_j + 1e-6).

    The largest logit is subtracted first, so at most 13.8 is lost on an example, and its gradient sums to 0.
    """
    e = jnp.exp(logits - jnp.max(logits))
    row = jnp.take(jnp.asarray(s, logits.dtype), y, axis=0)  # s_yy = 1
    return -jnp.log(jnp.take(e, y) / (jnp.sum(row * e) + TINY) + TINY)


def refinement(own: Prototypes, shared: Prototypes, tau: float) -> Float[Array, " C"]:
    """gamma_c = (1 + tau) / (cos(f_kc, f_c) + tau), of a client's and the global prototype of each class.

    1 where they agree, up to (1 + tau) / (tau - 1) where they are opposite; 1 for a class that either lacks.
    """
    product = jnp.sum(own.mean * shared.mean, -1)
    cosine = product / (_norm(own.mean) * _norm(shared.mean) + TINY)
    gamma = (1 + tau) / (cosine + tau)
    return jnp.where(own.has & shared.has, gamma, jnp.ones_like(gamma))


def _norm(rows: Float[Array, "C d"]) -> Float[Array, " C"]:
    return jnp.sqrt(jnp.sum(jnp.square(rows), -1))


KINDS = ("gaussian", "avg")


def global_prototypes(own: Prototypes, kind: str, key: Key[Array, ""]) -> Prototypes:
    """The global prototypes, from the clients' [K, C, d]; a class counts for the clients that have it.

    'avg': their mean mu. 'gaussian': mu + max(standard deviation over the clients (N - 1), 1) * epsilon, epsilon ~ N(0, 1)
    drawn once for everybody. One client has no deviation; that counts as 1.
    """
    has = own.has[..., None].astype(own.mean.dtype)
    n = jnp.sum(has, 0)
    mean = jnp.sum(has * own.mean, 0) / jnp.maximum(n, 1)
    if kind == "gaussian":
        variance = jnp.sum(has * jnp.square(own.mean - mean[None]), 0) / jnp.maximum(n - 1, 1)
        mean = mean + jnp.maximum(jnp.sqrt(variance), 1) * jax.random.normal(key, mean.shape, mean.dtype)
    some = jnp.any(own.has, 0)
    return Prototypes(jnp.where(some[:, None], mean, jnp.zeros_like(mean)), some)


def collect(total: Sums, features: Array, y: Array, mask: Bool[Array, " B"]) -> Sums:
    """`total` and a batch's features [B, d] by label [B]; or maps [B, h, w, d] by masks [B, H, W].

    Of an image a class's feature is the mean over ALL positions of the maps times the class's mask (shrunk to the maps by
    nearest neighbour), and every image counts for every class, as in the released segmentation script.
    """
    if features.ndim == 2:
        return prototypes.add(total, features, y, mask)
    b, h, w, _ = features.shape
    rows, columns = (jnp.arange(n) * size // n for n, size in zip((h, w), y.shape[1:], strict=True))
    small = y[:, rows][:, :, columns]
    classes = jnp.arange(total.counts.shape[0], dtype=y.dtype)
    chosen = (small[..., None] == classes.reshape(1, 1, 1, -1)).astype(features.dtype)
    real = jnp.where(mask.reshape(b, 1, 1, 1), features, jnp.zeros_like(features))
    sums = jnp.einsum("bhwc,bhwd->cd", chosen, real, precision="highest") / (h * w)
    return Sums(total.sums + sums, total.counts + jnp.sum(mask).astype(total.counts.dtype))
