"""What a CPU is told, and that an XLA which doesn't know it is left alone."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="says what XLA does on a CPU")
def test_no_step_copies_the_weights():
    """Two dense layers, trained by several steps in a loop: a gradient that reads the old weights comes before their update."""

    def loss(w, x):
        return jnp.sum((jnp.tanh(x @ w[0]) @ w[1]) ** 2)

    def steps(w, x):
        def step(i, w):
            return jax.tree.map(lambda w, g: w - 0.1 * g, w, jax.grad(loss)(w, x + i))

        return jax.lax.fori_loop(0, 5, step, w)

    w, x = (jnp.ones((300, 300), jnp.float32), jnp.ones((300, 200), jnp.float32)), jnp.ones((16, 300), jnp.float32)
    text = jax.jit(steps, compiler_options=compiler.options()).lower(w, x).compile().as_text()
    loop, _ = text.split("\nENTRY ")
    assert not re.search(r"= f32\[300,200\]\S* copy\(", loop)
