"""The configuration of a method, made of what its class declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from vtc import declarations
from vtc.declarations import Declaration, Declared, come_with, content
from vtc.registry import methods, parts


def declaration(name: str) -> Declaration:
    """What a method says of itself: of a built-in one without importing it.

    Raises:
        UserError: an unknown method, or a plug-in that can't be imported.
    """
    if path := methods.path(name):
        return declarations.read(path)
    from vtc.interface import options

    return options.declaration(methods.get(name))


def method_node(name: str) -> dict[str, Any]:
    """Its name, and every option with the value that it has where none is given; what must be given is `???`."""
    return {"name": name, **{key: _value(option) for key, option in declaration(name).options.items()}}


def _value(option: Declared) -> Any:
    if option.default is ...:
        return MISSING
    if option.follows:
        return f"${{oc.select:{option.follows},{option.default}}}"
    return list(option.default) if isinstance(option.default, tuple) else option.default


def with_files(options: Mapping[str, Any], name: str, backbone: str, where: str = "method") -> dict[str, Any]:
    """The options of a method, those that are files as a run is known by them (`vtc.declarations.content`), those of a
    composition's parts too. Where none is given, it is the file of that name that comes with vtc for the backbone.

    Raises:
        UserError: a file that isn't there, or is no JSON.
    """
    members = parts(name)
    if len(members) > 1:
        own = {key: options[key] for key in members if isinstance(options.get(key), Mapping)}  # else refused later on
        own = {key: with_files(part, members[key], backbone, f"{where}.{key}") for key, part in own.items()}
        return {**options, **own}
    declared = declaration(name).options
    files = {key: folder for key in options if key in declared and (folder := declared[key].file)}
    given = {key: options[key] for key in files}
    own = {key: backbone for key, folder in files.items() if given[key] is None and backbone in come_with(folder)}
    return {**options, **{key: content(f"{where}.{key}", v, files[key]) for key, v in (given | own).items()}}


def options_in_words(name: str) -> dict[str, str]:
    """`{"layer=2": "before this decoder layer", …}`: every option of a method with its default, as a user writes it."""
    return {f"{key}={_in_words(o.default)}": o.about for key, o in declaration(name).options.items()}


def _in_words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_in_words, value))}]"
    if value is ...:
        return "???"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def store_methods() -> None:
    """Makes every built-in method a choice of the group `method`, beside the presets in `conf/method`."""
    for name in methods.names():
        if methods.path(name):
            ConfigStore.instance().store(group="method", name=name, node=method_node(name), provider="vtc")
