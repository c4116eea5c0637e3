"""Multi-layer perceptron, down to a linear model."""

from collections.abc import Sequence

import jax

from fedjax_pfl.errors import UserError
from fedjax_pfl.models.layers import Classifier, Dense, DenseNormReLU


class MLP(Classifier):
    """Dense layers `fc1.linear` (with `fc1.bn`), `fc2.linear`, ... with ReLU, then the classifier `fc<n>`.

    Images are flattened in PyTorch's order C, H, W, since only the user knows how many channels they have.
    """

    hidden: tuple[int, ...]
    norm: str

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(f"fc{i + 1}" for i in range(len(self.hidden) + 1))

    def setup(self) -> None:
        for name, width in zip(self.layers, self.hidden, strict=False):
            setattr(self, name, DenseNormReLU(width, self.norm))
        setattr(self, self.layers[-1], Dense(self.num_classes))

    def features(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        if x.ndim == 4:
            x = x.transpose(0, 3, 1, 2)
        x = x.reshape(x.shape[0], -1)
        for name in self.layers[:-1]:
            x = getattr(self, name)(x, train, mask)
        return x


def mlp(num_classes: int, *, hidden: Sequence[int] = (200,), norm: str = "none") -> MLP:
    """MLP with layers of `hidden` units; `hidden=()` is the linear model of NIID-Bench's FCUBE."""
    if any(width < 1 for width in hidden):
        raise UserError(f"model.mlp.hidden: {tuple(hidden)} found, positive numbers of units expected")
    return MLP(num_classes, tuple(hidden), norm)
