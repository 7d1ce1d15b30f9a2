"""What a method's class says of itself, read from its source file without importing it.

`python -m vtc --help`, the checks of keys and the composition of a configuration need a method's line and its options
with their defaults, and importing torch for them would take seconds. `vtc.interface.options.declaration` says the same
of a class that is imported, such as a plug-in's.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc import shipped
from vtc.errors import UserError, nearest

CALLS = ("option", "layer_option")  # of `vtc.interface.options`


@dataclass(frozen=True)
class Declared:
    """What everybody may know of an option of a method.

    Attributes:
        default: its value where none is given; `...` where one must be given.
        about: one line for the user.
        follows: the key of the configuration whose value it takes where none is given, such as `seed`.
        file: the folder of the JSON files that come with vtc for it. Its value may be the name of one, and is that of
            the backbone's own where none is given, or the path of another JSON file (`content`).
    """

    default: Any
    about: str
    follows: str | None = None
    file: str | None = None


# The option of every class that has numbers of decoder layers among its options.
LAYER_SCALE = Declared(
    "auto",
    "auto: layer numbers are for 32-layer decoders and scale with the depth; none: taken literally",
    "layer_scale",
)


@dataclass(frozen=True)
class Declaration:
    """What a method says of itself.

    Attributes:
        about: the line of its class: `about`, or the first line of the docstring.
        options: by name, in the order of `--help`: its own, those that it inherits, `layer_scale`.
    """

    about: str
    options: Mapping[str, Declared]


def line_of(cls: type) -> str:
    """The one line about a class."""
    return vars(cls).get("about") or first_line(cls.__doc__)


def first_line(docstring: str | None) -> str:
    return next(iter((docstring or "").strip().splitlines()), "")


@functools.cache
def read(path: str) -> Declaration:
    """The declaration of a class of vtc's own, by its import path `module:class`.

    Raises:
        LookupError: no such class in the file, or a base class that is no class of vtc's.
    """
    module, _, name = path.partition(":")
    about, options, attributes, scaled = None, {}, set[str](), False
    for cls in _lineage(module, name):
        if about is None:
            about = next((ast.literal_eval(value) for key, value in _assigned(cls) if key == "about"), None)
            about = about or first_line(ast.get_docstring(cls))
        for attribute, value in _assigned(cls):
            if attribute in attributes:
                continue
            attributes.add(attribute)
            if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in CALLS:
                default, line = map(ast.literal_eval, value.args)
                named = {word.arg: word.value for word in value.keywords}
                own = {key: ast.literal_eval(named[key]) for key in ("name", "follows", "file") if key in named}
                options[own.get("name", attribute)] = Declared(default, line, own.get("follows"), own.get("file"))
                scaled |= value.func.id == "layer_option"
    return Declaration(about or "", options | ({"layer_scale": LAYER_SCALE} if scaled else {}))


def come_with(folder: str) -> dict[str, Path]:
    """The JSON files in a folder that comes with vtc, by name."""
    return {file.stem: file for file in sorted(Path(shipped.root(), folder).glob("*.json"))}


def content(key: str, value: Any, folder: str) -> Any:
    """What a run is known by, in the place of an option's text that names a file: of one that comes with vtc its name
    and its hash, of a path what the file holds, wherever it is. Any other value as it is.

    Raises:
        UserError: there is no such file, or it holds no JSON.
    """
    if not isinstance(value, str):
        return value
    if value.endswith(".json") or os.sep in value:
        return json_of(key, value)
    if value not in (files := come_with(folder)):
        raise UserError(f"{key}={value}: allowed: {', '.join(files)}, a .json file, null{nearest(value, files)}")
    return {"file": value, "sha256": hashlib.sha256(files[value].read_bytes()).hexdigest()[:12]}


def json_of(key: str, value: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    file = Path(os.path.expanduser(value))
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{key}={value}: {'no such file' if not file.exists() else error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}={value}: not JSON ({error})") from None


def _lineage(module: str, name: str) -> Iterator[ast.ClassDef]:
    """A class and those that it inherits from, up to the first that isn't vtc's, nearest first."""
    module, cls = _find(module, name)
    yield cls
    for base in cls.bases:
        if isinstance(base, ast.Name):
            yield from _lineage(module, base.id)


def _find(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """The module in which a class is defined that `module` defines or imports, and its definition."""
    for node in _parsed(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            return _find(node.module, name)
    raise LookupError(f"{module} has no class {name}")


def _assigned(cls: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """The attributes that the body of a class sets, in order."""
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value
        elif isinstance(node, ast.Assign):
            for target in node.targets:  # of `layer, dims = 0, 2` both
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                yield from ((name.id, node.value) for name in names if isinstance(name, ast.Name))


@functools.cache
def _parsed(module: str) -> ast.Module:
    """The source of a module of vtc's."""
    file = Path(shipped.PACKAGE.parent, *module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
