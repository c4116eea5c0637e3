"""What XLA on a CPU must be told so that a round is quick there; elsewhere all of this changes nothing."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

CPU_OPTIONS = {
    # Which operations XLA may give to YNNPACK. Its default includes convolutions, which take up to three times Eigen's time
    # in a client's steps: they run on one core (measured with jax 0.10 on two, see `--mode=benchmark`).
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    # Without it all weights are copied before each step, since something might read them after they were updated.
    "xla_cpu_copy_insertion_use_region_analysis": True,
}


# For programs that run once: three quarters less compile time for an initial model, the numbers of which stay the same.
ONCE = {"xla_backend_optimization_level": 1}


@functools.cache
def options() -> dict[str, Any]:
    """`jax.jit(..., compiler_options=options())` for a round: those of `CPU_OPTIONS` that this version of XLA knows."""
    return _known_of(CPU_OPTIONS)


@functools.cache
def once() -> dict[str, Any]:
    """The same for a program that runs once, compiling which is most of its time; XLA_FLAGS that name its options count."""
    return {name: value for name, value in _known_of(ONCE).items() if name not in os.environ.get("XLA_FLAGS", "")}


def _known_of(options: dict[str, Any]) -> dict[str, Any]:
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in options.items() if _known(name, value)}


def _known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, compiled as a computation of its own on a CPU, its results kept in memory.

    Otherwise XLA fuses what is cheap into everything that uses it and so computes it again for each element there: a
    dropout mask or the place of a maximum some four to eight times in a pool's gradient. `function` must consist of
    `jax.lax` operations, since a `jnp` function that is jitted itself would become a computation apart, too.
    """
    if jax.default_backend() != "cpu":
        return function
    jitted = jax.jit(function)

    def call(*args: jax.Array) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args)

    return call
