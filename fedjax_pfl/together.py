"""Several runs as one program: rounds that differ in numbers alone (seeds, learning rates, ...) mapped over the runs.

Each run's round is traced as it would be by itself. The traces are then walked side by side: where they hold different numbers
(a literal, a constant array) the program looks up the run's own, so that one trace stands for all of them. Runs whose traces
differ in anything else are different programs, and refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Int

from fedjax_pfl import compiler
from fedjax_pfl.core import Algorithm, client_map
from fedjax_pfl.errors import UserError

INLINE = {  # primitives that call a program, and the parameter that holds it
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}


class Different(Exception):  # noqa: N818, for `jit_rounds` alone
    """The programs differ in more than numbers."""


def jit_rounds(algorithms: Sequence[Algorithm]) -> Any:
    """The rounds of all runs under `jax.jit`: states, cohorts and keys are stacked [S, ...], and so are the reports.

    On a CPU one run after the other, elsewhere all at once. The states given are used up.

    Raises:
        UserError: when it is traced, where the runs are different programs.
    """

    def rounds(states: Any, cohorts: Any, keys: Any) -> Any:
        arguments = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (states, cohorts, keys))
        traces = [jax.make_jaxpr(algorithm.round, return_shape=True)(*arguments) for algorithm in algorithms]
        structure = jax.tree.structure(traces[0][1])

        def of_one(run: Int[Array, ""], *arguments: Any) -> Any:
            return jax.tree.unflatten(
                structure, _closed([trace for trace, _ in traces], jax.tree.leaves(arguments), run)
            )

        try:
            return client_map(of_one)(jnp.arange(len(algorithms)), states, cohorts, keys)
        except Different as error:
            raise UserError(
                f"config.seeds, config.lrs: these runs can't be one program ({error}), expected runs that differ in numbers "
                "alone; --mode=sweep trains them one after the other"
            ) from None

    return jax.jit(rounds, donate_argnums=0, compiler_options=compiler.options())


def _closed(traces: Sequence[Any], arguments: Sequence[Any], run: Int[Array, ""]) -> list[Any]:
    """What the run's own of these programs gives."""
    if isinstance(traces[0], Jaxpr):
        return _values(traces, [], arguments, run)
    consts = [_own(each, run) for each in _side_by_side([trace.consts for trace in traces])]
    return _values([trace.jaxpr for trace in traces], consts, arguments, run)


def _values(jaxprs: Sequence[Jaxpr], consts: Sequence[Any], arguments: Sequence[Any], run: Int[Array, ""]) -> list[Any]:
    places: list[dict[Any, int]] = [{} for _ in jaxprs]  # where each program's variables are in `values`
    values: list[Any] = []

    def write(variables: Sequence[Any], value: Any) -> None:
        for place, variable in zip(places, variables, strict=True):
            place[variable] = len(values)
        values.append(value)

    def read(atoms: Sequence[Any]) -> Any:
        if all(isinstance(atom, Literal) for atom in atoms):
            return _own([atom.val for atom in atoms], run, atoms[0].aval)
        if any(isinstance(atom, Literal) for atom in atoms):
            raise Different("a number here is computed there")
        found = {place[atom] for place, atom in zip(places, atoms, strict=True)}
        if len(found) > 1:
            raise Different("they compute from other values")
        return values[found.pop()]

    inputs = _side_by_side([[*jaxpr.constvars, *jaxpr.invars] for jaxpr in jaxprs])
    for variables, value in zip(inputs, [*consts, *arguments], strict=True):
        write(variables, value)
    for equations in _side_by_side([jaxpr.eqns for jaxpr in jaxprs]):
        _check_alike(equations)
        operands = [read(atoms) for atoms in _side_by_side([each.invars for each in equations])]
        outputs = _apply(equations, operands, run)
        for variables, value in zip(_side_by_side([each.outvars for each in equations]), outputs, strict=True):
            write(variables, value)
    return [read(atoms) for atoms in _side_by_side([jaxpr.outvars for jaxpr in jaxprs])]


def _apply(equations: Sequence[Any], operands: list[Any], run: Int[Array, ""]) -> list[Any]:
    """One equation of all programs."""
    first, name = equations[0], equations[0].primitive.name
    params = first.params

    def program(which: Any, *held: Any) -> Callable[..., list[Any]]:
        return lambda *arguments: _closed([which(each.params) for each in equations], [*held, *arguments], run)

    # What is mapped over runs in a way of its own was written to be mapped over clients (`lanes`): here it is as it stands.
    if name != "custom_vmap_call" and not _programs_differ(equations):
        with first.ctx.manager:
            found = first.primitive.bind(*operands, **first.primitive.get_bind_params(params))
        return list(found) if first.primitive.multiple_results else [found]
    if name in INLINE:
        return program(lambda params: params[INLINE[name]])(*operands)
    if name == "while":
        a, b = params["cond_nconsts"], params["body_nconsts"]
        test = program(lambda params: params["cond_jaxpr"], *operands[:a])
        step = program(lambda params: params["body_jaxpr"], *operands[a : a + b])
        init = tuple(operands[a + b :])
        return list(jax.lax.while_loop(lambda carry: test(*carry)[0], lambda carry: tuple(step(*carry)), init))
    if name == "scan":
        a, b = params["num_consts"], params["num_carry"]
        step = program(lambda params: params["jaxpr"], *operands[:a])

        def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            found = step(*carry, *xs)
            return found[:b], found[b:]

        how = {key: params[key] for key in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(body, operands[a : a + b], operands[a + b :], **how)
        return [*carry, *ys]
    if name == "cond":
        branches = [program(lambda params, i=i: params["branches"][i]) for i in range(len(params["branches"]))]
        return jax.lax.switch(operands[0], branches, *operands[1:])
    raise Different(f"in a {name}")


def _own(values: Sequence[Any], run: Int[Array, ""], aval: Any = None) -> Any:
    """The run's own of these numbers or arrays; the one where they are equal."""
    if all(value is values[0] for value in values[1:]):
        return values[0]
    if jnp.issubdtype(getattr(values[0], "dtype", float), jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            data, how = [jax.random.key_data(value) for value in values], jax.random.key_impl(values[0])
        return jax.random.wrap_key_data(_own(data, run), impl=how)
    arrays = [np.asarray(value, getattr(aval, "dtype", None)) for value in values]
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise Different("arrays of other shapes")
    if all(np.array_equal(array, arrays[0], equal_nan=array.dtype.kind in "fc") for array in arrays[1:]):
        return values[0]
    return jnp.asarray(np.stack(arrays))[run]


def _side_by_side(each: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The first of all, the second of all, ..."""
    if len({len(some) for some in each}) > 1:
        raise Different("they have other steps")
    return list(zip(*each, strict=True))


def _check_alike(equations: Sequence[Any]) -> None:
    first = equations[0]
    for each in equations[1:]:
        if each.primitive is not first.primitive:
            raise Different(f"a {first.primitive.name} here is a {each.primitive.name} there")
        for key, value in first.params.items():
            other = each.params[key]
            if _programs(value) or callable(value) or value is other:
                continue
            if repr(value) != repr(other):
                raise Different(f"{key} of a {first.primitive.name} is {value} here and {other} there")


def _programs(value: Any) -> list[Any]:
    """The programs that a parameter of an equation is, or holds."""
    some = value if isinstance(value, (tuple, list)) else (value,)
    return [each for each in some if isinstance(each, (Jaxpr, ClosedJaxpr))]


def _programs_differ(equations: Sequence[Any]) -> bool:
    """Whether an equation's programs aren't the very same objects, as those that JAX has cached are."""
    for key, value in equations[0].params.items():
        for i, mine in enumerate(_programs(value)):
            for each in equations[1:]:
                theirs = _programs(each.params[key])[i]
                if theirs is not mine and (getattr(mine, "consts", ()) or str(theirs) != str(mine)):
                    return True
    return False
