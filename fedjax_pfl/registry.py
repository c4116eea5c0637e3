"""Explicit registries: a name in a config, a function with keyword options, and errors that name the nearest right one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fedjax_pfl.errors import UserError, nearest


def options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only options of a registered function, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def lookup(registry: Mapping[str, Callable[..., Any]], name: str, field: str) -> Callable[..., Any]:
    """The function registered as `name`.

    Raises:
        UserError: no such name; `field` is the config field or the flag that held it.
    """
    if name not in registry:
        raise UserError(f"{field}: unknown name '{name}'{nearest(name, registry)}")
    return registry[name]
