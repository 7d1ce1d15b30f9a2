"""`action=new_method`: a working method in a file, its test, and what to do next.

The files in `templates` are methods that run as they are; another name is put in the place of theirs.
"""

from __future__ import annotations

import re
from pathlib import Path

from vtc.errors import UserError, unknown
from vtc.job import Job
from vtc.registry import methods
from vtc.settings import METHOD_KINDS

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def rendered(name: str, kind: str, module: str | None = None) -> dict[str, str]:
    """The files of a new method, by their names: the method, and its test.

    Args:
        name: of the method, in small letters, digits and _; its class is called so in CamelCase.
        kind: `pruner`, `merger`, `tower`, `resampler` or `self`: which base class it begins with.
        module: from which the test imports the class; None: from the file beside it.

    Raises:
        UserError: a name that is none, or an unknown kind.
    """
    if kind not in METHOD_KINDS:
        raise unknown("kind", kind, METHOD_KINDS)
    if not NAME.fullmatch(name):
        raise UserError(f"name={name}: allowed: small letters, digits and _, as in my_method")
    cls = "".join(word.capitalize() for word in name.split("_"))

    def named(template: str) -> str:
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        text = text.replace("from my_method import", f"from {module or name} import")
        return text.replace("MyMethod", cls).replace("my_method", name)

    return {f"{name}.py": named(f"{kind}.py"), f"test_{name}.py": named(f"test_{kind}.py")}


def new_method(job: Job) -> list[Path]:
    """Writes the files into the folder in which the command runs, and says what to do next; returns their paths.

    Raises:
        UserError: as `rendered`; a name that another method has, or a file that is there already.
    """
    wanted = job.new_method
    if wanted is None or wanted.name is None:
        raise UserError("name=null: a name is needed: python -m vtc action=new_method name=my_method kind=pruner")
    files = {Path(file): text for file, text in rendered(wanted.name, wanted.kind).items()}
    if wanted.name in methods.names():
        raise UserError(f"name={wanted.name}: there is a method of this name: {methods.describe(wanted.name)}")
    for file in files:
        if file.exists():
            raise UserError(f"name={wanted.name}: {file} is there already; give another name, or move it away")
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
    trained = "needs_training = True" in files[Path(f"{wanted.name}.py")]
    method = f"method=./{wanted.name}.py"
    steps = {
        f"python -m vtc action=check {method}": "whether it holds the contracts",
        f"pytest test_{wanted.name}.py": "those, and what is its own",
        **({f"python -m vtc action=train {method} tokens=16": "its weights"} if trained else {}),
        f"python -m vtc {method} tokens=16" + (" checkpoint=<folder>" * trained): "its scores",
    }
    print(f"wrote {wanted.name}.py and test_{wanted.name}.py: a working {wanted.kind}; change it into yours, then")
    for command, what in steps.items():
        print(f"  {command:<68} {what}")
    return [*files]
