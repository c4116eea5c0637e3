"""What a CPU is told, and that an XLA which doesn't know it is left alone."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_pfl import compiler


def test_options_are_those_that_xla_knows(monkeypatch):
    assert not compiler._known("xla_cpu_no_such_option", "1")
    monkeypatch.setattr(compiler, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1", "xla_cpu_enable_fast_math": False})
    assert compiler.options.__wrapped__() == {"xla_cpu_enable_fast_math": False}
    assert jax.jit(lambda x: x + 1, compiler_options=compiler.options.__wrapped__())(1.0) == 2


def test_what_runs_once_is_compiled_quickly(monkeypatch):
    """Unless XLA_FLAGS, as those of these tests, say otherwise."""
    assert "xla_backend_optimization_level" in os.environ["XLA_FLAGS"]
    assert compiler.once.__wrapped__() == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    assert compiler.once.__wrapped__() == {"xla_backend_optimization_level": 1}


def test_elsewhere_than_on_a_cpu_nothing_changes(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compiler.options.__wrapped__() == compiler.once.__wrapped__() == {}
    assert compiler.apart(jnp.sin) is jnp.sin


def test_apart():
    """The same values, derivatives and batches; and a computation of its own, in a loop too."""

    def cube(x: jax.Array) -> jax.Array:
        return x * x * x

    def loop(x: jax.Array, function=cube) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda i, x: function(x) / 2 + x[::-1], x)

    x = jnp.linspace(-0.5, 0.7, 5)
    apart = compiler.apart(cube)
    np.testing.assert_allclose(jax.jit(apart)(x), cube(x), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(apart)(x[:, None]), cube(x)[:, None], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(apart(x)))(x), 3 * x**2, rtol=1e-12)
    compiled = jax.jit(lambda x: loop(x, apart)).lower(x).compile()
    np.testing.assert_allclose(compiled(x), loop(x), rtol=1e-12)
    assert re.search(r' call\(.*inlineable="false"', compiled.as_text())
