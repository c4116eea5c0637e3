"""The label-mask transformer of FedLGT (Liu et al., AAAI 2024, arXiv 2312.07165), after C-Tran (arXiv 2011.14027).

Visual tokens from a convolutional backbone and one token for each label go through a transformer encoder together; the
logit of a label is read from its own token. A label token is what the label is called plus what is known of it.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from fedjax_pfl.errors import UserError
from fedjax_pfl.models.conv import Dropout
from fedjax_pfl.models.layers import EPS, Classifier, Dense, along, check_rate

UNKNOWN, NEGATIVE, POSITIVE = -1, 0, 1  # the state of a label

LABELS = ("clip", "text", "learned", "onehot")
STATES = ("text", "learned")
POSITIONS = ("none", "sine")


def draw_states(key: Key[Array, ""], y: Int[Array, " C"], share: float) -> Int[Array, " C"]:
    """Label-mask training's states of ONE example: k ~ U{0, ..., floor(share C)} labels, drawn uniformly, are revealed.

    The others are UNKNOWN. Keys: the number is drawn from fold_in(key, 0), the labels are the k that come first when
    sorted by the random bits of fold_in(key, 1).
    """
    labels = y.shape[0]
    most = int(share * labels + 1e-9)  # 0.29 * 100 is 28.999...
    number = jax.random.randint(jax.random.fold_in(key, 0), (), 0, most + 1)
    order = jnp.argsort(jax.random.bits(jax.random.fold_in(key, 1), (labels,), jnp.uint32))
    rank = jnp.zeros((labels,), number.dtype).at[order].set(jnp.arange(labels, dtype=number.dtype))
    return jnp.where(rank < number, y.astype(jnp.int8), jnp.int8(UNKNOWN))


class LayerNorm(nn.Module):
    """PyTorch's layer norm over the last axis. Params `scale`, `bias` [d]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., d] -> [..., d]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS)
        return x * along(scale, x) + along(bias, x)


class Attention(nn.Module):
    """PyTorch's multi-head self-attention: packed `in_proj` (queries, keys, values), `out_proj`, dropout on the weights."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        """h [B, T, d] -> [B, T, d]."""
        b, t, width = h.shape
        # Xavier's bound is that of the packed matrix, so the queries' share of it is smaller than one of its own would be.
        initial = {"kernel_init": nn.initializers.xavier_uniform(), "bias_init": nn.initializers.zeros}
        packed = Dense(3 * width, **initial, name="in_proj")(h).reshape(b, t, 3, self.heads, width // self.heads)
        q, k, v = (packed[:, :, i] for i in range(3))
        weights = Dropout(self.dropout)(self.weights(q, k), train)
        return Dense(width, name="out_proj")(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, t, width))

    def weights(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """Queries and keys [B, T, heads, d / heads] -> how much each token attends to each, [B, heads, T, T]."""
        return nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k))


class EncoderLayer(nn.Module):
    """A post-norm encoder layer: h <- norm1(h + self_attn(h)); h <- norm2(h + linear2(relu(linear1(h))))."""

    heads: int
    feedforward: int
    dropout: float

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        """h [B, T, d] -> [B, T, d]."""
        drop = partial(Dropout, self.dropout)
        attended = Attention(self.heads, self.dropout, name="self_attn")(h, train)
        h = LayerNorm(name="norm1")(h + drop()(attended, train))
        inner = drop()(nn.relu(Dense(self.feedforward, name="linear1")(h)), train)
        return LayerNorm(name="norm2")(h + drop()(Dense(h.shape[-1], name="linear2")(inner), train))


class Embedding(nn.Module):
    """A trained table of `rows` vectors, kept transposed as `kernel` [width, rows], PyTorch's `weight` [rows, width]."""

    rows: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """The table [rows, width]."""
        bound = self.width**-0.5

        def init(key: jax.Array, shape: Sequence[int], dtype: np.dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return self.param("kernel", init, (self.width, self.rows), jnp.float32).T


class ReadOut(nn.Module):
    """z_c = w_c . h_c + b_c: each label's logit from its own token. Params `kernel` [d, C], `bias` [C]."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """h [B, C, d] -> [B, C]."""
        labels, width = h.shape[1:]
        bound = width**-0.5

        def init(key: jax.Array, shape: Sequence[int], dtype: np.dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        z = jnp.sum(h * self.param("kernel", init, (width, labels), jnp.float32).T[None], axis=-1)
        return z + along(self.param("bias", init, (labels,), jnp.float32), z)


class LabelMaskTransformer(Classifier):
    """`backbone`, `projection` where widths differ, `labels` and `states` where learned, `norm`, `encoder<i>`, `output`.

    Attributes:
        backbone: the network whose feature maps are the visual tokens; its classifier is never made.
        labels: 'clip' or 'text' (the frozen table `label_table`), 'learned', or 'onehot' (frozen).
        states: 'text' (the frozen `state_table`) or 'learned'; an unknown label's state is the zero vector.
        width, depth, heads, feedforward, dropout: of the encoder.
        position: 'none' or 'sine', added to the visual tokens.
        known: largest share of the labels that label-mask training reveals; 0: none.
        swapped_states: 'positive' marks known negatives and the other way round, as in the released code.
        label_table: [C, width] frozen universal label embeddings u, or None.
        state_table: [2, width] frozen embeddings of 'negative' and 'positive', or None.
        notes: where the tables are from, for the log.
    """

    backbone: Classifier
    labels: str
    states: str
    width: int
    depth: int
    heads: int
    feedforward: int
    dropout: float
    position: str
    known: float
    swapped_states: bool
    label_table: np.ndarray | None = None
    state_table: np.ndarray | None = None
    notes: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        learned = (name for name in ("labels", "states") if getattr(self, name) == "learned")
        encoder = (f"encoder{i}" for i in range(self.depth))
        # The projection may not be there; a layer without parameters is nobody's.
        return "backbone", "projection", *(f"{name}_embedding" for name in learned), "norm", *encoder, "output"

    @property
    def flatten(self) -> dict[str, int]:
        return {f"backbone.{name}": channels for name, channels in self.backbone.flatten.items()}

    def setup(self) -> None:
        if self.labels == "learned":
            self.labels_embedding = Embedding(self.num_classes, self.width)
        if self.states == "learned":
            self.states_embedding = Embedding(2, self.width)
        self.projection = Dense(self.width)
        self.norm = LayerNorm()
        for i in range(self.depth):
            setattr(self, f"encoder{i}", EncoderLayer(self.heads, self.feedforward, self.dropout))
        self.output = ReadOut()

    def visual_tokens(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        """x [B, H, W, channels] -> [B, h w, width], row by row."""
        maps = self.backbone.maps(x, train, mask)
        b, h, w, channels = maps.shape
        tokens = maps.reshape(b, h * w, channels)
        if channels != self.width:
            tokens = self.projection(tokens)
        if self.position == "sine":
            tokens = tokens + jnp.asarray(sine(h, w, self.width), tokens.dtype)[None]
        return tokens

    def label_tokens(self, states: jax.Array, dtype: np.dtype) -> jax.Array:
        """states [B, C] of UNKNOWN, NEGATIVE, POSITIVE -> l_c = u_c + e(s_c), [B, C, width]."""
        u = self.labels_embedding() if self.labels == "learned" else jnp.asarray(self._frozen("label_table"), dtype)
        e = self.states_embedding() if self.states == "learned" else jnp.asarray(self._frozen("state_table"), dtype)
        e = e[::-1] if self.swapped_states else e
        e = jnp.concatenate([jnp.zeros_like(e[:1]), e])
        return u[None] + jnp.take(e, states.astype(jnp.int32) + 1, axis=0)

    def _frozen(self, name: str) -> np.ndarray:
        table = getattr(self, name)
        if table is None:
            raise UserError(f"model.ctran: no {name.replace('_', ' ')} given; see config.text for where it comes from")
        return table

    def features(
        self,
        x: jax.Array,
        train: bool = False,
        mask: jax.Array | None = None,
        states: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, H, W, channels], states [B, C] -> the label tokens [B, C, width] after the encoder."""
        visual = self.visual_tokens(x, train, mask)
        if states is None:
            states = jnp.full((x.shape[0], self.num_classes), UNKNOWN, jnp.int8)
        labels = self.label_tokens(states, visual.dtype)
        h = self.norm(jnp.concatenate([visual, labels], axis=1))
        for i in range(self.depth):
            h = getattr(self, f"encoder{i}")(h, train)
        return h[:, -self.num_classes :]

    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        mask: jax.Array | None = None,
        states: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, H, W, channels] -> logits [B, C].

        Args:
            states: [B, C] of UNKNOWN (-1), NEGATIVE (0), POSITIVE (1); None: all unknown.
            train, mask: as in `Classifier`.
        """
        return self.head(self.features(x, train, mask, states))


def sine(h: int, w: int, width: int) -> np.ndarray:
    """Two-dimensional sine encoding [h w, width]: half the channels for the row, half for the column (arXiv 2005.12872)."""
    half = width // 2
    rate = 10_000.0 ** (2 * (np.arange(half) // 2) / half)

    def one(n: int) -> np.ndarray:
        angle = 2 * np.pi * (np.arange(n) + 1)[:, None] / n / rate
        return np.where(np.arange(half) % 2, np.cos(angle), np.sin(angle))

    rows, columns = np.repeat(one(h), w, axis=0), np.tile(one(w), (h, 1))
    return np.concatenate([rows, columns, np.zeros((h * w, width - 2 * half))], axis=1)


def ctran(
    num_classes: int,
    *,
    backbone: str = "resnet18",
    labels: str = "clip",
    states: str = "text",
    width: int = 512,
    depth: int = 3,
    heads: int = 4,
    feedforward: int = 512,
    dropout: float = 0.1,
    position: str = "none",
    known: float = 0.75,
    swapped_states: bool = False,
    norm: str = "batch",
    stem: str = "imagenet",
    impl: str = "auto",
) -> LabelMaskTransformer:
    """The label-mask transformer; its tables, where frozen, are given later (`clone(label_table=..., state_table=...)`).

    Args:
        backbone: a name in `MODELS`; norm, stem and impl go to it where it has such an option.
        others: as the attributes of `LabelMaskTransformer`.

    Raises:
        UserError: an option out of range, or a backbone that can't be one.
    """
    from fedjax_pfl.models import MODELS  # which has this model too
    from fedjax_pfl.registry import lookup, options

    factory = lookup({name: f for name, f in MODELS.items() if f is not ctran}, backbone, "model.ctran.backbone")
    given = {"norm": norm, "stem": stem, "impl": impl}
    made = factory(num_classes, **{name: value for name, value in given.items() if name in options(factory)})
    check_rate(dropout, "model.ctran.dropout")
    if not 0 <= known <= 1:
        raise UserError(f"model.ctran.known: {known} found, a share from 0 to 1 expected")
    if min(width, depth, heads, feedforward) < 1 or width % heads:
        raise UserError(
            f"model.ctran.width: {width} found, a positive multiple of the number of heads, {heads}, expected"
        )
    return LabelMaskTransformer(
        num_classes,
        made,
        labels=labels,
        states=states,
        width=width,
        depth=depth,
        heads=heads,
        feedforward=feedforward,
        dropout=dropout,
        position=position,
        known=known,
        swapped_states=swapped_states,
    )
