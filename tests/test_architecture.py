"""The house is as docs/architecture.md says: who may import whom, how long a file may be, where a word may be used.

The page's table is the rule: a room (a folder or a file of `vtc/`) imports rooms with a smaller number only. Every
check is a function of a package's folder, and each is seen to fail on a copy in which its rule is broken.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vtc import shipped

ROOT = shipped.root()
PACKAGE = ROOT / "vtc"
PAGE = ROOT / "docs" / "architecture.md"

ROW = re.compile(r"^\| (\d+) \| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)
RESERVED = re.compile(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)
LONGEST_FILE, LONGEST_METHOD = 400, 150
ENGINE_WORDS = (
    "past_key_values",
    "position_ids",
    "DynamicCache",
)  # of positions, masks and caches: no method's concern


@dataclass(frozen=True)
class Import:
    """A module that another one imports.

    Attributes:
        by: the importing module, such as `vtc.engine.walk`.
        of: the imported one.
        line: where it says so.
        runs: False where it is for type checkers alone.
    """

    by: str
    of: str
    line: int
    runs: bool

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.of}"


# Reading -------------------------------------------------------------------------------------------------------------


def levels(page: str) -> dict[str, int]:
    """Room → its number in the page's table."""
    rows = [(int(level), re.findall(r"`(\w+)`", rooms)) for level, rooms in ROW.findall(page)]
    return {room: level for level, rooms in rows for room in rooms}


def reserved(page: str) -> dict[str, list[str]]:
    """Package of others → the rooms that may import it, of the page's second table."""
    return {name: re.findall(r"`(\w+)`", allowed) for name, allowed in RESERVED.findall(page)}


def rooms(package: Path) -> set[str]:
    """The folders with code and the files of a package."""
    return {p.stem for p in package.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.rglob("*.py")))}


def room_of(module: str) -> str:
    """`vtc.engine.walk` → engine; of `vtc` itself `__init__`."""
    return (module.split(".") + ["__init__"])[1]


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by name; a folder's is its `__init__.py`."""
    names = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def statements(tree: ast.AST, runs: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement below a node, and whether it ever runs: not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, runs
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for part in node.body:
                yield from statements(ast.Module([part], []), False)
            for part in node.orelse:
                yield from statements(ast.Module([part], []), runs)
        else:
            yield from statements(node, runs)


def imports(package: Path) -> list[Import]:
    """Every import in a package: of a module of it by its full name, of anything else by its first word."""
    own, all_imports = modules(package), []
    for by, file in own.items():
        for node, runs in statements(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                base = node.module or ""
                if node.level:
                    here = by.split(".") if file.name == "__init__.py" else by.split(".")[:-1]
                    base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [base])])
                members = [f"{base}.{alias.name}" for alias in node.names]  # a module in the folder, or a name in it
                targets = [member if member in own else base for member in members]
            for of in dict.fromkeys(targets):
                inside = of.split(".")[0] == package.name
                all_imports.append(Import(by, of if inside else of.split(".")[0], node.lineno, runs))
    return all_imports


# The rules: each gives what breaks it -------------------------------------------------------------------------------


def unlisted(package: Path, page: str) -> list[str]:
    """Rooms that the table doesn't name, or names twice, and names of no room."""
    named = [room for _, row in ROW.findall(page) for room in re.findall(r"`(\w+)`", row)]
    twice = sorted({room for room in named if named.count(room) > 1})
    return [f"{room}: named twice" for room in twice] + [
        f"{room}: {'not in the table' if room not in named else 'not in ' + package.name}"
        for room in sorted(rooms(package) ^ set(named))
    ]


def upward(package: Path, page: str) -> list[str]:
    """Imports of a room that doesn't stand below the importing one."""
    level = levels(page)
    return [
        f"{i} ({room_of(i.by)} is {level.get(room_of(i.by))}, {room_of(i.of)} is {level.get(room_of(i.of))})"
        for i in imports(package)
        if i.of.split(".")[0] == package.name
        and room_of(i.by) != room_of(i.of)
        and not level.get(room_of(i.of), 0) < level.get(room_of(i.by), 0)
    ]


def circles(package: Path, page: str = "") -> list[str]:
    """Modules that need each other in a circle; one line for each knot of them.

    An import inside a function counts: it hides a circle, it doesn't undo it. One for type checkers alone doesn't.
    """
    after: dict[str, set[str]] = {name: set() for name in modules(package)}
    for i in imports(package):
        if i.runs and i.of in after:
            after[i.by].add(i.of)

    def reached(start: str) -> set[str]:
        seen, open_ = set[str](), [start]
        while open_:
            open_ += (new := after[open_.pop()] - seen)
            seen |= new
        return seen

    reach = {name: reached(name) for name in after}
    knots = {frozenset(o for o in reach[name] if name in reach[o]) for name in after if name in reach[name]}
    return sorted(" ↔ ".join(sorted(knot)) for knot in knots)


def misplaced(package: Path, page: str) -> list[str]:
    """Imports of what only some rooms may import, and words of the engine's in a method."""
    allowed = reserved(page)
    wrong = [
        f"{i}: only {', '.join(allowed[i.of])} may"
        for i in imports(package)
        if i.of in allowed and room_of(i.by) not in allowed[i.of]
    ]
    for file in sorted((package / "methods").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        wrong += [f"{package.name}/methods/{file.name} says {word}" for word in ENGINE_WORDS if word in text]
    return wrong


def too_long(package: Path, page: str = "") -> list[str]:
    """Files that nobody reads in one sitting."""
    wrong = []
    for file in sorted(package.rglob("*.py")):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        name = file.relative_to(package.parent).as_posix()
        most = LONGEST_METHOD if name.startswith(f"{package.name}/methods/") else LONGEST_FILE
        wrong += [f"{name}: {lines} lines, at most {most}"] if lines > most else []
    return wrong


# The house -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [unlisted, upward, circles, misplaced, too_long])
def test_the_house_keeps(rule: Callable[[Path, str], list[str]]) -> None:
    broken = rule(PACKAGE, PAGE.read_text(encoding="utf-8"))
    assert not broken, "\n".join(broken)


def test_of_the_benchmarks_only_task_files_import_the_harness() -> None:
    """The harness loads those itself; whatever else is there goes through `vtc`."""
    for file in (ROOT / "benchmarks").rglob("*.py"):
        if file.parent != ROOT / "benchmarks" / "tasks":
            lines = [ast.unparse(node) for node, _ in statements(ast.parse(file.read_text(encoding="utf-8")))]
            assert not [line for line in lines if re.search(r"\blmms_eval\b", line)], file.relative_to(ROOT)


# The rules themselves ------------------------------------------------------------------------------------------------

SMALL = {
    "__init__.py": "",
    "errors.py": "import re\n",
    "interface/__init__.py": "from vtc.interface.tokens import Tokens\n",
    "interface/tokens.py": "from vtc.errors import UserError\nclass Tokens: ...\n",
    "methods/__init__.py": "",
    "methods/fastv.py": "from vtc import errors\nfrom vtc.interface import Tokens\n",
    "configuration/__init__.py": "from omegaconf import OmegaConf\n",
    "cli/__init__.py": "import hydra\ndef run():\n    from vtc.configuration import parse\n    import lmms_eval\n",
}
TABLE = """
| | room | what is in it |
|---|---|---|
| 1 | `__init__`, `errors` | the ground |
| 2 | `interface` | |
| 3 | `methods` | |
| 4 | `configuration` | |
| 5 | `cli` | |

| package | imported by |
|---|---|
| `hydra` | `configuration`, `cli` |
| `omegaconf` | `configuration`, `cli` |
| `lmms_eval` | `evaluation`, `cli` |
"""


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., Path]:
    """A small package that keeps every rule, with files added or put in the place of others."""

    def build(**changed: str) -> Path:
        files = SMALL | {name.replace("__in__", "/") + ".py": text for name, text in changed.items()}
        for name, text in files.items():
            path = tmp_path / "vtc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path / "vtc"

    return build


RULES = (unlisted, upward, circles, misplaced, too_long)


def test_a_house_in_order_breaks_no_rule(house: Callable[..., Path]) -> None:
    package = house()
    assert {rule.__name__: rule(package, TABLE) for rule in RULES} == {rule.__name__: [] for rule in RULES}


@pytest.mark.parametrize(
    ("rule", "name", "text", "says"),
    [
        (upward, "errors", "from vtc.interface import Tokens\n", "vtc.errors:1 imports vtc.interface"),
        (upward, "errors", "from .interface.tokens import Tokens\n", "vtc.errors:1 imports vtc.interface.tokens"),
        (upward, "errors", "import vtc.methods.fastv as f\n", "vtc.errors:1 imports vtc.methods.fastv"),
        (upward, "errors", "def f():\n    from vtc import cli\n", "vtc.errors:2 imports vtc.cli"),
        (upward, "errors", "from vtc import __version__\n", "vtc.errors:1 imports vtc (errors is 1, __init__ is 1)"),
        (
            upward,
            "interface__in__tokens",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..methods.fastv import F\n",
            "vtc.interface.tokens:3 imports vtc.methods.fastv",
        ),
        (circles, "interface__in__tokens", "import vtc.interface\n", "vtc.interface ↔ vtc.interface.tokens"),
        (circles, "interface__in__tokens", "from . import Tokens\n", "vtc.interface ↔ vtc.interface.tokens"),
        (
            circles,
            "interface__in__tokens",
            "def f():\n    from vtc.interface import Tokens\n",
            "vtc.interface ↔ vtc.interface.tokens",
        ),
        (
            circles,
            "interface__in__tokens",
            "class A:\n    try:\n        from vtc.methods import fastv\n    except ImportError: ...\n",
            "vtc.interface ↔ vtc.interface.tokens ↔ vtc.methods.fastv",
        ),
        (misplaced, "interface__in__tokens", "def f():\n    import omegaconf.errors\n", "imports omegaconf: only"),
        (misplaced, "methods__in__fastv", "from hydra.core import config_store\n", "imports hydra: only"),
        (misplaced, "methods__in__fastv", "from lmms_eval import api\n", "imports lmms_eval: only evaluation, cli may"),
        (misplaced, "methods__in__fastv", "x = dict(past_key_values=None)\n", "methods/fastv.py says past_key_values"),
        (too_long, "errors", "x = 1\n" * 401, "vtc/errors.py: 401 lines, at most 400"),
        (too_long, "methods__in__fastv", "x = 1\n" * 151, "vtc/methods/fastv.py: 151 lines, at most 150"),
        (unlisted, "store__in__index", "", "store: not in the table"),
        (unlisted, "extra", "", "extra: not in the table"),
    ],
)
def test_a_rule_sees_what_breaks_it(
    house: Callable[..., Path], rule: Callable[[Path, str], list[str]], name: str, text: str, says: str
) -> None:
    broken = rule(house(**{name: text}), TABLE)
    assert len(broken) == 1 and says in broken[0], broken


def test_a_type_alone_makes_no_circle(house: Callable[..., Path]) -> None:
    typed = "import typing\nif typing.TYPE_CHECKING:\n    from vtc.interface import Tokens\n"
    package = house(interface__in__tokens=typed)
    assert circles(package) == [] and upward(package, TABLE) == []


def test_a_row_of_no_room_and_a_room_in_two_rows_are_seen(house: Callable[..., Path]) -> None:
    package = house()
    assert unlisted(package, TABLE + "| 6 | `store`, `errors` | |\n") == ["errors: named twice", "store: not in vtc"]


@pytest.mark.parametrize(
    ("rule", "file", "line", "says"),
    [
        (upward, "errors.py", "from vtc.cli import run", "imports vtc.cli"),
        (circles, "interface/shape.py", "import vtc.interface.tokens", "vtc.interface.shape ↔ vtc.interface.tokens"),
        (misplaced, "job.py", "from omegaconf import DictConfig", "vtc.job:1 imports omegaconf"),
    ],
)
def test_a_copy_of_the_house_with_one_line_more_is_refused(
    tmp_path: Path, rule: Callable[[Path, str], list[str]], file: str, line: str, says: str
) -> None:
    page, package = PAGE.read_text(encoding="utf-8"), tmp_path / "vtc"
    shutil.copytree(PACKAGE, package, ignore=lambda folder, names: [n for n in names if n == "__pycache__"])
    before = rule(package, page)
    if rule is circles:  # the other half of it
        tokens = package / "interface" / "tokens.py"
        tokens.write_text("import vtc.interface.shape\n" + tokens.read_text(encoding="utf-8"), encoding="utf-8")
        assert rule(package, page) == before
    planted = package / file
    planted.write_text(f"{line}\n{planted.read_text(encoding='utf-8')}", encoding="utf-8")
    new = [broken for broken in rule(package, page) if broken not in before and says in broken]
    assert new, rule(package, page)
