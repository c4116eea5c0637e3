"""Progressive Fourier aggregation (METHODS.md 2.3; arXiv 2110.00394, doi 10.1109/TMI.2022.3192483), one tensor at a time.

Unlike the other oracles it is the server's step alone. Clients are dicts from PyTorch's names to arrays in PyTorch's layout:
convolutions (out, in, kh, kw), linear layers (out, in). Names of batch-norm entries contain `bn`.
"""

from typing import NamedTuple

import numpy as np


class Rules(NamedTuple):
    """The paper's arithmetic; `REFERENCE` is the released code's."""

    components: str = "amplitude_phase"
    classwise: bool = True
    symmetric: bool = True
    circular: bool = True
    share_short: bool = True
    share_dc: bool = True
    divisor: int = 0  # 0: the weighted mean


PAPER = Rules()
REFERENCE = Rules(symmetric=False, circular=False, share_short=False, share_dc=False, divisor=4)


def band(n, rate, rules):
    """Which places of a shifted axis are shared."""
    b, c = int(np.floor(n * rate / 2)), n // 2
    inside = np.zeros(n, bool)
    if rules.symmetric:
        for place in range(n):
            inside[place] = b > 0 and abs(place - c) <= b
    else:
        inside[c - b : c + b] = True
    if rules.share_dc:
        inside[c] = True
    if rules.share_short and n <= 2:
        inside[:] = True
    return inside


def angle(F):
    """In (-pi, pi]."""
    phi = np.angle(F)
    phi[phi == -np.pi] = np.pi
    return phi


def share(arrays, weights, rate, axes, rules=PAPER):
    """PFA of the clients' arrays along `axes`: each client's complex result, of which the real part is meant."""
    spectra = [np.fft.fftshift(np.fft.fftn(x, axes=axes), axes) for x in arrays]
    p = [float(w > 0) / rules.divisor if rules.divisor else w / sum(weights) for w in weights]
    there = [i for i, w in enumerate(weights) if w > 0]
    mean_A = sum(p[i] * np.abs(spectra[i]) for i in there)
    mean_phi = sum(p[i] * angle(spectra[i]) for i in there)
    mean_unit = sum(p[i] * np.exp(1j * angle(spectra[i])) for i in there)
    mean_F = sum(p[i] * spectra[i] for i in there)

    mask = np.ones(arrays[0].shape, bool)
    for axis in axes:
        shape = [1] * mask.ndim
        shape[axis] = -1
        mask &= band(mask.shape[axis], rate, rules).reshape(shape)

    results = []
    for F in spectra:
        A, phi = np.abs(F), angle(F)
        new = F.copy()
        if rules.components == "complex":
            new[mask] = mean_F[mask]
        else:
            A[mask] = mean_A[mask]
            if rules.components == "amplitude_phase":
                common = np.where(np.abs(mean_unit) < 1e-13, phi, angle(mean_unit)) if rules.circular else mean_phi
                phi[mask] = common[mask]
            new = A * np.exp(1j * phi)
        results.append(np.fft.ifftn(np.fft.ifftshift(new, axes), axes=axes))
    return results


def matrix(w):
    """A kernel (out, in, kh, kw) as in kh rows and kw out columns."""
    out, fan_in, kh, kw = w.shape
    return w.transpose(1, 2, 3, 0).reshape(fan_in * kh, kw * out)


def kernel(m, shape):
    out, fan_in, kh, kw = shape
    return m.reshape(fan_in, kh, kw, out).transpose(3, 0, 1, 2)


def pfa(clients, weights, rate, classifier, rules=PAPER):
    """Each client's new model; `classifier` is the beginning of the names of the last layer's tensors."""
    results = [{} for _ in clients]
    for name in clients[0]:
        tensors = [client[name] for client in clients]
        if "bn" in name:
            new = tensors
        elif tensors[0].ndim == 4:
            shape = tensors[0].shape
            new = [kernel(m.real, shape) for m in share([matrix(w) for w in tensors], weights, rate, (0, 1), rules)]
        elif tensors[0].ndim == 2 and "embedding" not in name:
            axes = (1,) if rules.classwise and name.startswith(classifier) else (0, 1)
            new = [m.real for m in share(tensors, weights, rate, axes, rules)]
        else:
            mean = sum(w * x for w, x in zip(weights, tensors, strict=True) if w > 0) / sum(weights)
            new = [mean for _ in clients]
        for result, x in zip(results, new, strict=True):
            result[name] = x
    return results
