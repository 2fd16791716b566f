"""Perceivers by name: built in, registered by a caller, installed as a plugin, or given as "module:attribute"."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from envs.errors import InputError
from envs.perception.percept import Perceiver
from envs.perception.rules import RulePerceiver

ENTRY_POINT_GROUP = "attune.perceivers"
_factories: dict[str, Callable[[], Perceiver]] = {RulePerceiver.name: RulePerceiver}


def register(name: str, factory: Callable[[], Perceiver]) -> None:
    """Make ``factory`` known as ``name``. Raises InputError where the name is taken by another factory."""
    if _factories.get(name, factory) is not factory:
        raise InputError(f"a perceiver named {name!r} is registered already; choose another name")
    _factories[name] = factory


def get_perceiver(name: str) -> Perceiver:
    """A perceiver by registered name, by entry point of the group "attune.perceivers", or by "module:attribute".

    The attribute is a class or function without arguments, or a ready object. Raises InputError listing what there is.
    """
    if name in _factories:
        return _factories[name]()
    plugins = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    try:
        if name in plugins:
            found = plugins[name].load()
        elif ":" in name:
            module, _, attribute = name.partition(":")
            found = getattr(import_module(module), attribute)
        else:
            known = ", ".join(sorted({*_factories, *plugins}))
            raise InputError(f"no perceiver is named {name!r}; known: {known}; or give one as module:attribute")
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"perceiver {name!r} can't be loaded: {error}; give it as module:attribute") from error
    return _checked(name, found)


def _checked(name: str, found: Any) -> Perceiver:
    try:
        perceiver = found if hasattr(found, "perceive") and not isinstance(found, type) else found()
    except TypeError as error:
        raise InputError(f"perceiver {name!r} can't be made: {error}; see envs/perception/percept.py") from error
    if not callable(getattr(perceiver, "perceive", None)) or not isinstance(getattr(perceiver, "name", None), str):
        raise InputError(f"perceiver {name!r} has no perceive(reply, heard) or no name; see envs/perception/percept.py")
    return perceiver
