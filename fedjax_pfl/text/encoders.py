"""Frozen text encoders of Hugging Face transformers in Flax: CLIP's, and BERTs with mean pooling.

The weights may be Flax's (`flax_model.msgpack`) or PyTorch's (`model.safetensors`, which needs no PyTorch, or
`pytorch_model.bin`, which does); both are put into the Flax module here, so that a weight that is missing is an error
and never a random number.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_pfl.errors import UserError, nearest

KINDS = {"clip": ("clip", "clip_text_model"), "bert": ("bert",)}  # and the model types of config.json that they are
FIELD = "config.text.encoder"
FLAX = "flax_model.msgpack"
PYTORCH = ("model.safetensors", "pytorch_model.bin")
BATCH = 32
SECONDS = 10  # to wait for the hub

Encode = Callable[[Sequence[str]], np.ndarray]  # [n] texts -> [n, d] float32


def load(name: str, kind: str) -> Encode:
    """The encoder's features of texts, [n, d] float32, not normalised.

    CLIP: the projected feature of the end token. BERT: the mean of the last layer over the tokens, padding left out.

    Args:
        name: a folder in Hugging Face's layout, or the id of a model on its hub (downloaded once).
        kind: clip | bert.

    Raises:
        UserError: no such kind, folder or model, no connection, files missing or damaged, another kind of model; and, by
            the function that is returned, a text that is too long for the encoder.
    """
    check_kind(kind)
    folder = local_folder(name) or _from_hub(name)
    with _quiet():
        try:
            import transformers
        except ImportError:
            raise UserError(f"{FIELD}: running '{name}' needs transformers (pip install transformers)") from None
        model, tokenizer = _build(transformers, folder, kind)
        forward = functools.partial(jax.jit(functools.partial(_forward, model, kind)), _params(model, folder))
    return functools.partial(_encode, forward, tokenizer, model.config)


def check_kind(kind: str) -> None:
    """Raises UserError where there is no such kind."""
    if kind not in KINDS:
        raise UserError(f"config.text.kind: unknown name '{kind}'{nearest(kind, KINDS)}")


def local_folder(name: str) -> Path | None:
    """The encoder's folder where `name` is one.

    Raises:
        UserError: `name` is a path, but no folder is there.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if path.exists() or name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise UserError(f"{FIELD}: no such folder: '{name}'; expected a folder or a model's id on the hub")
    return None


def _from_hub(name: str) -> Path:
    """The folder of the hub's model: as downloaded before, or else downloaded now."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    def get(pattern: list[str], offline: bool) -> Path:
        return Path(hub.snapshot_download(name, allow_patterns=pattern, local_files_only=offline))

    with contextlib.suppress(OSError, ValueError):  # nothing here yet
        folder = get([], offline=True)
        if _whole(folder):
            return folder
    try:
        hub.HfApi().repo_info(name, timeout=SECONDS)  # snapshot_download alone may wait for minutes
        folder = get(["*.json", "*.txt", FLAX], offline=False)
        for file in PYTORCH:
            if _weights(folder) is None:
                folder = get([file], offline=False)
        return folder
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        reason = "no such model on the hub, or it is private"
    except (OSError, errors.OfflineModeIsEnabled) as error:
        reason = "no connection to the hub" if getattr(error, "response", None) is None else _line(error)
    raise UserError(
        f"{FIELD}: can't get '{name}' ({reason}); give --config.text.embeddings=FILE.npz or a local folder as "
        f"--{FIELD}=FOLDER, or run --mode=embed where there is a network"
    )


def _whole(folder: Path) -> bool:
    """False where a download was interrupted."""
    some = (("config.json",), ("tokenizer.json", "vocab.json", "vocab.txt"), (FLAX, *PYTORCH))
    return all(any((folder / name).exists() for name in names) for names in some)


def _weights(folder: Path) -> Path | None:
    return next((folder / name for name in (FLAX, *PYTORCH) if (folder / name).exists()), None)


def _build(transformers: Any, folder: Path, kind: str) -> tuple[Any, Any]:
    """The Flax model, without weights, and the tokenizer.

    CLIP's fast tokenizer is CLIP's own algorithm but for the repair of broken Unicode; the slow one strips accents.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{FIELD}: {folder} is not a folder of an encoder (no config.json)")
    try:
        stated = transformers.PretrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
        if stated not in KINDS[kind]:
            raise UserError(f"config.text.kind: '{kind}', but {folder}/config.json says model_type '{stated}'")
        if kind == "clip":
            config = transformers.CLIPTextConfig.from_pretrained(folder, local_files_only=True)
            model = transformers.FlaxCLIPTextModelWithProjection(config, _do_init=False)
            tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
        else:
            config = transformers.BertConfig.from_pretrained(folder, local_files_only=True)
            model = transformers.FlaxBertModel(config, add_pooling_layer=False, _do_init=False)
            tokenizer = transformers.BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # the libraries raise all sorts, bare Exception among them, for files missing or damaged
        raise UserError(f"{FIELD}: {folder} is not a whole folder of a {kind} encoder ({_line(error)})") from None
    # The feature is read at this token. 2 is an old mistake that transformers knows of.
    if kind == "clip" and config.eos_token_id not in (2, tokenizer.eos_token_id):
        raise UserError(
            f"{FIELD}: {folder}/config.json has eos_token_id {config.eos_token_id}, but the tokenizer's is "
            f"{tokenizer.eos_token_id}"
        )
    return model, tokenizer


def _params(model: Any, folder: Path) -> dict[str, Any]:
    """The module's parameters, float32, from the folder's weights."""
    from flax import serialization, traverse_util

    path = _weights(folder)
    if path is None:
        raise UserError(f"{FIELD}: {folder} has no weights; expected one of {FLAX}, {', '.join(PYTORCH)}")
    if path.name == FLAX:
        try:
            stored = traverse_util.flatten_dict(serialization.msgpack_restore(path.read_bytes()), sep="/")
        except Exception as error:  # msgpack's and flax's own kinds
            raise UserError(f"{FIELD}: {path} is damaged ({_line(error)})") from None
    else:
        stored = _read_pytorch(path)
    found, shapes = {}, dict[str, Any](traverse_util.flatten_dict(model.params_shape_tree, sep="/"))
    for name, shape in shapes.items():
        value = _weight(stored, name, model.base_model_prefix, pytorch=path.name != FLAX)
        if value is None:
            raise UserError(f"{FIELD}: {path} has no weight '{name}'")
        if value.shape != shape.shape:
            raise UserError(f"{FIELD}: {path}: '{name}' has shape {value.shape}, expected {shape.shape}")
        found[name] = value.astype(np.float32)
    return traverse_util.unflatten_dict(found, sep="/")


def _weight(stored: Mapping[str, Any], name: str, prefix: str, *, pytorch: bool) -> np.ndarray | None:
    """The stored array of the Flax parameter `name`, which may stand under the name of a larger model."""
    leaf = name.rsplit("/", 1)[-1]
    if pytorch:
        name = name.removesuffix(leaf) + ("bias" if leaf == "bias" else "weight")
        name, prefix = name.replace("/", "."), f"{prefix}."
    else:
        prefix = f"{prefix}/"
    value = stored.get(name, stored.get(prefix + name))
    return None if value is None else np.asarray(value).T if pytorch and leaf == "kernel" else np.asarray(value)


def _read_pytorch(path: Path) -> dict[str, np.ndarray]:
    from fedjax_pfl.models import weights

    read = weights._read_safetensors if path.suffix == ".safetensors" else weights._read_torch
    try:
        stored = read(path)
    except UserError as error:
        raise UserError(f"{FIELD}: {error}") from None
    # Norms of the oldest BERT files.
    return {key.replace(".gamma", ".weight").replace(".beta", ".bias"): value for key, value in stored.items()}


def _encode(forward: Callable[..., jax.Array], tokenizer: Any, config: Any, texts: Sequence[str]) -> np.ndarray:
    """See `load`. All batches have one shape: it compiles once."""
    with _quiet():
        tokens = tokenizer(list(texts))["input_ids"]
        _check(tokens, texts, config)
        longest = max(map(len, tokens))
        longest = min(longest + -longest % 8, config.max_position_embeddings)
        ids = np.full((len(texts) + -len(texts) % BATCH, longest), tokenizer.pad_token_id or 0, np.int32)
        mask = np.zeros_like(ids)
        for row, found in enumerate(tokens):
            ids[row, : len(found)], mask[row, : len(found)] = found, 1
        ids[len(texts) :], mask[len(texts) :] = ids[0], mask[0]
        batches = [forward(ids[i : i + BATCH], mask[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
        return np.concatenate([np.asarray(batch) for batch in batches])[: len(texts)]


def _forward(model: Any, kind: str, params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    found = model(input_ids=ids, attention_mask=mask, params=params, train=False)
    if kind == "clip":
        return found.text_embeds
    weight = mask[..., None].astype(np.float32)
    return (found.last_hidden_state * weight).sum(1) / weight.sum(1)


def _check(tokens: Sequence[Sequence[int]], texts: Sequence[str], config: Any) -> None:
    for found, text in zip(tokens, texts, strict=True):
        if len(found) > config.max_position_embeddings:
            short = text if len(text) <= 60 else text[:57] + "..."
            raise UserError(
                f"config.text.prompt: '{short}' has {len(found)} tokens, more than the encoder's "
                f"{config.max_position_embeddings}"
            )
        if max(found) >= config.vocab_size:
            raise UserError(
                f"{FIELD}: the tokenizer gives token {max(found)}, the weights know {config.vocab_size}; they don't "
                "belong together"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers as it expects JAX to be, in full float32, and without its notes on Flax's future."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with (
            warnings.catch_warnings(),
            jax.enable_x64(False),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.default_matmul_precision("highest"),
        ):
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"transformers(\.|$)")
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|huggingface_hub)(\.|$)")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
