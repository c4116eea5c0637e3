"""float64, strict promotion, and the real data: what every test stands on."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REAL_DATA = Path(os.environ.get("FEDJAX_PFL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data('mnist/mnist.npz')` is that file; the test is skipped, and says so, where it is missing."""

    def find(name: str) -> Path:
        path = REAL_DATA / name
        if not path.exists():
            pytest.skip(f"real data missing: {name} (set FEDJAX_PFL_DATA to the folder that holds it)")
        return path

    return find


@pytest.fixture(autouse=True)
def _no_library_deprecations():
    """Warnings are errors (pyproject.toml); those that only a dependency can mend are let through here, one by one."""
    with warnings.catch_warnings():
        yield
