"""Methods and families of models in files of the user's own: `plugins=[./my_method.py]`, `method=./my_method.py:Mine`.

A file is run once, as a module of its own. Each class in it that says its name (`name = "mine"` of a method,
`model_type = "mine"` of a family) is a choice from then on, as a built-in one is. A file stands for itself: it imports
installed packages, and no files beside it, so that its content says what it computes.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from vtc.errors import UserError, unknown
from vtc.identity import hash_bytes
from vtc.registry import BROKEN, FromFile, Registry, families, methods

KINDS = (methods, families)
NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
CHOICE = re.compile(r"(?P<file>.+\.py)(?::(?P<cls>\w*))?")  # of `method=`: a file, and a class in it
_loaded: dict[Path, tuple[str, list[type]]] = {}  # file → hash of its content, and the classes that it brought


def load(file: str | Path) -> list[str]:
    """Makes the methods and families of a file choices, and returns their names.

    A file that is loaded already is run again only where its content has changed; what it brought is then replaced.

    Raises:
        UserError: no such file, one that can't be run (with the line that fails), one without any method or family, or
            one with a name that another has.
    """
    return [_name(cls) for cls in _classes(str(file))]


def load_all(files: Sequence[str]) -> None:
    """Loads several; one that can't be loaded is left out, and named in `vtc.registry.BROKEN`."""
    for file in files:
        try:
            load(file)
        except UserError as error:
            BROKEN.add(f"{error}; left out")


def split(choice: str) -> tuple[str, str | None] | None:
    """`./mine.py:Mine` as its file and its class (None: the only one); None for what names no file."""
    match = CHOICE.fullmatch(choice)
    return None if match is None else (match["file"], match["cls"])


def method_of(file: str, cls: str | None = None) -> str:
    """The name of the method that a file holds as the class `cls`; None: of the only one.

    Raises:
        UserError: as `load`; no such class, or several and none is named.
    """
    classes = {c.__name__: c for c in _classes(file) if methods.takes(c)}
    if cls is None and len(classes) == 1:
        return _name(*classes.values())
    if cls is None and classes:
        raise UserError(f"method={file}: has several methods; give one of {', '.join(f'{file}:{c}' for c in classes)}")
    if cls not in classes:
        raise unknown("method", f"{file}:{cls}" if cls else file, [f"{file}:{name}" for name in classes])
    return _name(classes[cls])


def _classes(file: str) -> list[type]:
    """The classes that a file brings, registered."""
    path = Path(file).expanduser().resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"plugins={file}: {'no such file' if not path.exists() else error.strerror}") from None
    digest = hash_bytes([content])
    before, classes = _loaded.get(path, ("", []))
    if digest != before:
        new = _named(file, *_run(file, path))
        for cls in new:
            _kind(cls).check_free(_name(cls), FromFile(cls, file, digest))
        for cls in classes:
            _kind(cls).forget_file(cls)
        for cls in new:
            _kind(cls).add_file(_name(cls), FromFile(cls, file, digest))
        _loaded[path], classes = (digest, new), new
    return classes


def _run(file: str, path: Path) -> tuple[ModuleType, list[type]]:
    """The module of a file, and the classes in it that registered themselves, which are taken back: the file's own
    are made known together, with where they come from.
    """
    name = f"vtc_plugin_{re.sub(r'[^a-zA-Z0-9]', '_', path.stem)}_{hash_bytes([str(path)])[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import does: dataclasses and pickles look it up
    try:
        with methods.taken_back() as own_methods, families.taken_back() as own_families:
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(
            f"plugins={file}: can't be run ({type(error).__name__}: {error}{_place(error, path)})"
        ) from None
    for kind, registered in ((methods, own_methods), (families, own_families)):
        for key, cls in registered.items():
            setattr(cls, kind.named, key)
    return module, [*own_methods.values(), *own_families.values()]


def _place(error: BaseException, path: Path) -> str:
    """`, line 3`, where the file is what fails."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    return f", line {line}" if line and f"line {line}" not in str(error) else ""


def _named(file: str, module: ModuleType, registered: list[type]) -> list[type]:
    """The classes of a module that say their name."""
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    kinds = [c for c in dict.fromkeys([*own, *registered]) if any(kind.takes(c) for kind in KINDS)]
    classes = [c for c in kinds if _name(c)]
    if not classes:
        why = f"its class {kinds[0].__name__} has no name" if kinds else "no method and no family in it"
        raise UserError(f'plugins={file}: {why}; a method is a Compressor with name = "mine" in its body')
    seen: dict[tuple[Registry, str], type] = {}
    for cls in classes:
        kind, name = _kind(cls), _name(cls)
        if not NAME.fullmatch(name):
            raise UserError(f"plugins={file}: {cls.__name__}.name={name!r}: allowed: letters, digits, - and _")
        if other := seen.get((kind, name)):
            both = f"{other.__name__} and {cls.__name__} of {file}"
            raise UserError(f"{kind.kind}={name}: {both} have this name; rename one")
        seen[kind, name] = cls
    return classes


def _kind(cls: type) -> Registry:
    """Where a class is made known."""
    return next(kind for kind in KINDS if kind.takes(cls))


def _name(cls: type) -> str:
    """The name that a class gives itself; empty for one that inherits it, a base of others."""
    return str(vars(cls).get(_kind(cls).named) or "")
