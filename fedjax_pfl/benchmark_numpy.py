"""The NumPy side of the benchmark: progressive Fourier aggregation tensor by tensor and client by client, as one writes it."""

from typing import Any

import numpy as np
from flax import traverse_util

from fedjax_pfl import tree


def pfa(stacked: Any, rate: float, classifier: str, *, paper: bool, half: bool = False) -> dict[str, Any]:
    """Version 2 of PFA with equal weights, by the paper or as the released code has it (see `fourier.pfa`).

    Without the paper's exception: phases that cancel out leave that of a rounding error.

    Args:
        half: transform by `rfft2`, half a spectrum; the paper's arithmetic only.
    """
    own = tree.batch_norm(stacked)
    result = {}
    for path, x in traverse_util.flatten_dict(stacked).items():
        x = np.asarray(x)
        if own(path):
            result[path] = x
        elif path[-1] != "kernel":
            result[path] = np.broadcast_to(x.mean(0), x.shape)
        elif x.ndim == 5:
            kh, kw, fan_in, fan_out = x.shape[1:]
            matrices = [w.transpose(2, 0, 1, 3).reshape(fan_in * kh, kw * fan_out) for w in x]
            new = _share(matrices, rate, (0, 1), paper, half)
            result[path] = np.stack([m.reshape(fan_in, kh, kw, fan_out).transpose(1, 2, 0, 3) for m in new])
        else:
            axes = (0,) if path[1] == classifier else (0, 1)
            result[path] = np.stack(_share(list(x), rate, axes, paper, half))
    return traverse_util.unflatten_dict(result)


def share_kernels(kernels: list[np.ndarray], rate: float, classwise: bool) -> list[np.ndarray]:
    """The paper's version 2 of one kernel in PyTorch's layout: (out, in, kh, kw), or (out, in), of which class by class."""
    if kernels[0].ndim == 2:
        return _share(kernels, rate, (1,) if classwise else (0, 1), True, True)
    fan_out, fan_in, kh, kw = kernels[0].shape
    matrices = [w.transpose(1, 2, 3, 0).reshape(fan_in * kh, kw * fan_out) for w in kernels]
    new = _share(matrices, rate, (0, 1), True, True)
    return [m.reshape(fan_in, kh, kw, fan_out).transpose(3, 0, 1, 2) for m in new]


def _share(matrices: list[np.ndarray], rate: float, axes: tuple[int, ...], paper: bool, half: bool) -> list[np.ndarray]:
    """The clients' matrices with the low frequencies that they agree on."""
    shape = matrices[0].shape
    mask = np.ones(shape, bool)
    for axis in axes:
        mask &= np.expand_dims(_band(shape[axis], rate, paper), 1 - axis)
    if half:
        mask = mask[tuple(slice(n // 2 + 1) if axis == axes[-1] else slice(None) for axis, n in enumerate(shape))]
    forward = np.fft.rfftn if half else np.fft.fftn
    spectra = [forward(m, axes=axes) for m in matrices]
    amplitude = sum(np.abs(F) for F in spectra) / (len(spectra) if paper else 4)
    if paper:
        common = amplitude * np.exp(1j * np.angle(sum(np.exp(1j * np.angle(F)) for F in spectra)))
    else:
        common = amplitude * np.exp(1j * sum(np.angle(F) for F in spectra) / 4)
    new = (np.where(mask, common, F) for F in spectra)
    if half:
        return [np.fft.irfftn(F, s=[shape[axis] for axis in axes], axes=axes) for F in new]
    return [np.fft.ifftn(F, axes=axes).real for F in new]


def _band(n: int, rate: float, paper: bool) -> np.ndarray:
    """Which frequencies of an axis are shared."""
    f, b = np.fft.fftfreq(n, 1 / n), np.floor(n * rate / 2)
    return (np.abs(f) <= b) | (n <= 2) if paper else (-b <= f) & (f < b)
