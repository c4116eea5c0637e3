"""Weights from PyTorch state dicts, and back.

The name map, the same for every model, since the modules carry PyTorch's names:

| Flax | PyTorch |
| --- | --- |
| path of modules `layer1/0/conv` | `layer1.0.conv` |
| params `kernel` [kh, kw, I, O] of a convolution | `weight` [O, I, kh, kw] |
| params `kernel` [in, out] of a dense layer | `weight` [out, in] |
| the same, in `model.flatten` (it reads flattened feature maps): rows in the order H, W, C | columns in the order C, H, W |
| params `scale` of a norm | `weight` |
| params `bias` | `bias` |
| batch_stats `mean`, `var` | `running_mean`, `running_var` |

A model must have the attributes `layers` (the last names the classifier) and `flatten` of `layers.Classifier`.
"""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl.errors import UserError
from fedjax_pfl.models.layers import Classifier

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# What the readers raise on damaged or foreign files.
DAMAGED = (
    *(AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)

Variables = Any  # {'params': ..., 'batch_stats': ...}


def load(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in a .pth, .pt, .th (PyTorch), .safetensors or .npz file.

    A checkpoint that holds its state dict under 'state_dict' is opened; the prefix 'module.' is removed; step counters
    (`num_batches_tracked`) and entries beginning with '__' are left out.

    Raises:
        UserError: no such file, another kind of file, a damaged one, or PyTorch is needed and missing.
    """
    path = Path(path)
    readers = {".pth": _read_torch, ".pt": _read_torch, ".th": _read_torch, ".npz": _read_npz}
    readers[".safetensors"] = _read_safetensors
    if path.suffix not in readers:
        raise UserError(f"{path}: weights of kind '{path.suffix}' found, one of {', '.join(sorted(readers))} expected")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    entries = {name.removeprefix("module."): value for name, value in readers[path.suffix](path).items()}
    return {
        name: value
        for name, value in entries.items()
        if not name.startswith("__") and not name.endswith("num_batches_tracked")
    }


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading it needs PyTorch (pip install 'fedjax_pfl[parity]'); .safetensors and .npz don't"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise _unreadable(path, error) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path}: no state dict found, names with tensors expected")
    # NumPy has no bfloat16.
    return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in content.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise _unreadable(path, error) from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, since np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file) as entries:
            return dict(entries)
    except DAMAGED as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()).split(". ")[0]
    return UserError(f"{path}: damaged or not a weights file ({type(error).__name__}: {reason})")


def to_variables(
    state_dict: Mapping[str, np.ndarray], variables: Variables, model: Classifier, *, ignore_head: bool = False
) -> Variables:
    """`variables` of `model` with the values of a PyTorch state dict; same structure and types.

    A model with a `backbone` also takes the state dict of that alone (torchvision's, say), without its classifier.

    Args:
        state_dict: PyTorch names -> arrays in PyTorch's layouts, as `load` returns them.
        variables: of the model, as `model.init` returns them.
        model: which layer is the classifier, and which dense layers read flattened feature maps.
        ignore_head: leave the classifier as it is in `variables`, whatever the state dict has for it.

    Raises:
        UserError: entries are missing, unexpected or of another shape; all are listed, in one line.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is not None and not any(name.startswith("backbone.") for name in state_dict):
        part = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
        # Layers behind the feature maps (the classifier, a CNN's dense layers) are never made here.
        unmade = set(backbone.layers) - {name for tree in part.values() for name in tree}
        state_dict = {name: value for name, value in state_dict.items() if name.split(".")[0] not in unmade}
        part = to_variables(state_dict, part, backbone, ignore_head=True)
        return {kind: {**tree, "backbone": part[kind]} if kind in part else tree for kind, tree in variables.items()}
    head = model.layers[-1] + "."
    layout = shapes(variables)
    if ignore_head:
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith(head)}
        layout = {name: shape for name, shape in layout.items() if not name.startswith(head)}

    missing = [f"{name} {shape}" for name, shape in layout.items() if name not in state_dict]
    unexpected = [f"{name} {np.shape(value)}" for name, value in state_dict.items() if name not in layout]
    misshapen = [
        f"{name} {np.shape(state_dict[name])} instead of {shape}"
        for name, shape in layout.items()
        if name in state_dict and np.shape(state_dict[name]) != shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(found.values()):
        lists = "; ".join(f"{what}: {', '.join(entries)}" for what, entries in found.items() if entries)
        raise UserError(f"weights don't fit {type(model).__name__}: {lists}")

    def value(path: tuple[Any, ...], leaf: Any) -> Any:
        name = _torch_name(path)
        if name not in layout:  # the classifier that is left as it is
            return leaf
        return jnp.asarray(_to_flax(name, np.asarray(state_dict[name]), model), leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, variables)


def shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    """PyTorch names -> shapes in PyTorch's layouts, of variables that may be abstract (`jax.eval_shape`)."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {_torch_name(path): _to_torch_shape(leaf.shape) for path, leaf in leaves}


def from_variables(variables: Variables, model: Classifier) -> dict[str, np.ndarray]:
    """The inverse of `to_variables`: PyTorch names -> arrays in PyTorch's layouts, types unchanged."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {_torch_name(path): _to_torch(_torch_name(path), np.asarray(leaf), model) for path, leaf in leaves}


def _torch_name(path: tuple[Any, ...]) -> str:
    """('params', 'layer1', '0', 'conv', 'kernel') as tree_util gives it -> 'layer1.0.conv.weight'."""
    _, *modules, leaf = (entry.key for entry in path)
    return ".".join([*modules, LEAVES[leaf]])


def _to_torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch's layout; norms and biases have one axis in both."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _flattened(name: str, model: Classifier) -> int | None:
    """Channels of the feature maps that the entry's layer reads flattened, if it does and the entry is its kernel."""
    layer, _, leaf = name.rpartition(".")
    return model.flatten.get(layer) if leaf == "weight" else None


def _to_torch(name: str, value: np.ndarray, model: Classifier) -> np.ndarray:
    channels = _flattened(name, model)
    if channels:
        value = value.reshape(-1, channels, value.shape[1]).swapaxes(0, 1).reshape(value.shape)
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _to_flax(name: str, value: np.ndarray, model: Classifier) -> np.ndarray:
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    value = value.T
    channels = _flattened(name, model)
    return value if not channels else value.reshape(channels, -1, value.shape[1]).swapaxes(0, 1).reshape(value.shape)
