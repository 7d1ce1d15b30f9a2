"""Methods and families in files of the user's own: chosen like built-in ones, known by content, named when broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vtc
from vtc import plugins, registry
from vtc.backbones import wrap
from vtc.cli import main
from vtc.configuration import parse
from vtc.configuration.choices import choices
from vtc.errors import UserError
from vtc.identity import SCORES, digest
from vtc.registry import families, methods
from vtc.testing import batch, tiny_backbone

METHOD = '''
from vtc.interface import TokenPruner, option

class Base(TokenPruner):
    """Inherits its name: a base of others, no choice."""

class {cls}(Base):
    """Keeps the {name} tokens."""
    name = "{name}"
    p: float = option(2.0, "which norm")
    {body}

    def score(self, tokens, context):
        return tokens.hidden.float().norm(p=self.p, dim=-1)
'''
FAMILY = """
from vtc.backbones.llava import Llava

class Mine(Llava):
    model_type, version = "mine", 1
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path: Path) -> None:
    """Each test starts without files, and in a folder of its own."""
    for kind in (methods, families):
        monkeypatch.setattr(kind, "_files", {})
        monkeypatch.setattr(kind, "_registered", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(registry, "BROKEN", broken := set())
    for module in ("vtc.plugins", "vtc.cli.command"):
        monkeypatch.setattr(f"{module}.BROKEN", broken)
    monkeypatch.chdir(tmp_path)


def write(name: str = "loud", cls: str = "Loud", body: str = "", file: str = "mine.py") -> str:
    Path(file).write_text(METHOD.format(name=name, cls=cls, body=body))
    return f"./{file}"


def both(file: str = "two.py") -> str:
    return (
        Path(file).write_text(METHOD.format(name="a", cls="A", body="") + METHOD.format(name="b", cls="B", body=""))
        and file
    )


# ---------------------------------------------------------------------- chosen
def test_a_file_brings_what_names_itself() -> None:
    assert plugins.load(write()) == ["loud"]
    assert "loud" in methods.names() and methods.get("loud").__name__ == "Loud"
    assert choices("method")["loud"] == "Keeps the loud tokens. (./mine.py)"
    assert methods.path("loud") is None and "loud" in methods.external()


@pytest.mark.parametrize(
    "words",
    [["plugins=[./mine.py]", "method=loud"], ["method=./mine.py:Loud"], ["method=./mine.py"], ["method=mine.py"],
     ["plugins=[mine.py]", "method=./mine.py:Loud"]],
)  # fmt: skip
def test_a_method_is_chosen_by_name_or_by_file(words: list[str]) -> None:
    write()
    job = parse([*words, "tokens=16", "method.p=1"])
    assert (job.method.name, job.method.options) == ("loud", {"p": 1}) and "mine.py" in job.plugins[0]
    assert job.compressor.layers() == {0}
    assert parse(job.overrides) == job, "the command of a job makes it again"
    assert job.baseline().method.name == "none"


def test_a_method_of_a_file_is_part_of_a_composition_and_of_a_sweep(capsys) -> None:
    write()
    job = parse(["method=[./mine.py:Loud,fastv]", "tokens=[36,16]"])
    assert job.method.name == "loud+fastv" and job.plugins == ("./mine.py",)
    assert parse(["method=./mine.py:Loud+fastv", "tokens=[36,16]"]).method == job.method
    assert main(["-m", "method=fastv,./mine.py:Loud", "tokens=16,36", "dry_run=true"]) == 0
    assert "4 of 4 jobs done" in capsys.readouterr().out


def test_a_file_whose_name_hydra_would_read_otherwise() -> None:
    Path("a b").mkdir()
    job = parse([f"plugins=['{write(file='a b/mine.py')}']", "method=loud", "tokens=16"])
    assert job.plugins == ("./a b/mine.py",) and parse(job.overrides).method.name == "loud"


def test_of_several_classes_one_is_named() -> None:
    file = both()
    assert plugins.load(file) == ["a", "b"]
    assert parse([f"method={file}:B", "tokens=16"]).method.name == "b"
    with pytest.raises(UserError, match=r"method=two.py: has several methods; give one of two.py:A, two.py:B"):
        parse([f"method={file}"])
    with pytest.raises(UserError, match=r"method=two.py:C: unknown; allowed: two.py:A, two.py:B; did you mean"):
        parse([f"method={file}:C"])


def test_help_lists_a_file_s_method_with_its_options(capsys) -> None:
    assert main(["--help", f"method={write()}"]) == 0
    out = capsys.readouterr().out
    assert "Keeps the loud tokens. (./mine.py)" in out and "Options of method=loud" in out and "p=2.0" in out
    assert main(["--help", "method=./none.py"]) == 2
    assert "plugins=./none.py: no such file" in capsys.readouterr().err


def test_a_process_that_has_the_configuration_alone_loads_the_file() -> None:
    """As a launcher's worker does: Hydra hands it a composed configuration."""
    write()
    code = (
        "import sys; from omegaconf import OmegaConf; from vtc.configuration.compose import job_of;"
        "job = job_of(OmegaConf.load(sys.argv[1]), []); print(type(job.compressor).__name__)"
    )
    from hydra import compose

    from vtc.configuration.compose import hydra_at_rest, prepare
    from vtc.configuration.overrides import spelled_out

    words = spelled_out(["method=./mine.py:Loud", "tokens=16"])
    prepare(words)
    with hydra_at_rest():
        from omegaconf import OmegaConf

        OmegaConf.save(compose("config", overrides=words), "composed.yaml", resolve=True)
    out = subprocess.run([sys.executable, "-c", code, "composed.yaml"], capture_output=True, text=True)
    assert out.stdout.strip() == "Loud", out.stderr


# ---------------------------------------------------------------------- identity
def identity(**changes: str) -> str:
    return digest(parse([f"method={write(**changes)}", "tokens=16"]).deciding(SCORES))


def test_the_content_of_a_file_is_its_version_unless_it_declares_one() -> None:
    first = identity()
    assert identity() == first
    assert identity(body="# another line") != first
    declared = identity(body="version = 1")
    assert identity(body="version = 1; extra = 0") == declared != first
    assert identity(body="version = 2") != declared


def test_a_file_that_changed_is_run_again() -> None:
    plugins.load(write())
    old = methods.get("loud")
    plugins.load(write())
    assert methods.get("loud") is old, "the same content is run once"
    plugins.load(write(name="quiet"))
    assert "loud" not in methods.names() and "quiet" in methods.names()


# ---------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("content", "words"),
    [("def (", r"SyntaxError.*line 1"), ("\n1 / 0\n", "ZeroDivisionError: division by zero, line 2"),
     ("raise SystemExit(3)", "SystemExit: 3, line 1"), ("import no_such", "No module named 'no_such', line 1"),
     ("x = 1", "no method and no family in it"), ("\xff", "SyntaxError|UnicodeDecodeError|NameError"),
     (METHOD.format(name="no name", cls="X", body=""), "X.name='no name': allowed: letters, digits"),
     (METHOD.format(name="a", cls="X", body="") + METHOD.format(name="a", cls="Y", body=""), "X and Y of ./bad.py"),
     (METHOD.replace('name = "{name}"', "").format(name="", cls="X", body=""), "its class Base has no name")],
)  # fmt: skip
def test_a_broken_file_is_named_and_skipped(content: str, words: str, capsys) -> None:
    Path("bad.py").write_text(content)
    with pytest.raises(UserError, match=words) as refusal:
        plugins.load("./bad.py")
    assert "\n" not in str(refusal.value)
    assert main(["plugins=[./bad.py]", f"method={write()}", "tokens=16", "dry_run=true"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("vtc: ") and err.count("\n") == 1 and err.rstrip().endswith("left out") and "bad.py" in err
    registry.BROKEN.clear()
    assert main(["method=./bad.py:X", "tokens=16"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_plugins_are_a_list() -> None:
    for word in ("plugins=./mine.py", "plugins=null"):
        with pytest.raises(UserError, match=r"plugins=.*: allowed: a list of files, plugins=\[./my_method.py\]"):
            parse([word])


def test_two_of_one_name_are_both_named() -> None:
    with pytest.raises(UserError, match="=fastv: vtc.s vtc.methods.fastv:FastV and Loud of ./mine.py have this name"):
        plugins.load(write(name="fastv"))
    plugins.load(write())
    with pytest.raises(UserError, match="method=loud: Loud of ./mine.py and Other of ./other.py have this name"):
        plugins.load(write(cls="Other", file="other.py"))
    assert methods.get("loud").__name__ == "Loud"
    with pytest.raises(UserError, match="method=fastv: vtc's vtc.methods.fastv:FastV and .*Mine have this name"):

        @methods.register("fastv")
        class Mine:
            pass


def test_a_file_that_clashes_brings_nothing() -> None:
    Path("two.py").write_text(METHOD.format(name="a", cls="A", body="") + METHOD.format(name="fastv", cls="B", body=""))
    with pytest.raises(UserError, match="method=fastv"):
        plugins.load("two.py")
    assert "a" not in methods.names()


# ---------------------------------------------------------------------- families, and the decorator
def test_a_family_of_a_file_is_compressed() -> None:
    Path("family.py").write_text(FAMILY)
    assert plugins.load("family.py") == ["mine"]
    model, tiny = tiny_backbone().model, tiny_backbone()
    model.config.model_type = "mine"
    assert type(wrap(model)).__name__ == "Mine"
    with torch.no_grad(), vtc.engine.compressing(model, vtc.methods.build("fastv", 5, tiny.shape)) as engine:
        model(**batch(tiny))
    assert engine.report.tokens_out == [5, 5, 5]
    assert "mine" in choices("backbone") and parse(["plugins=[family.py]", "backbone=mine"]).backbone.family == "mine"


def test_what_a_file_registers_with_the_decorator_is_the_file_s() -> None:
    Path("decorated.py").write_text(
        'import vtc\nfrom vtc.methods.fastv import FastV\n\n@vtc.registry.methods.register("mine")\n'
        "class Mine(FastV):\n    pass\n"
    )
    assert plugins.load("decorated.py") == ["mine"] and methods._registered == {}
    assert methods.get("mine").name == "mine" and isinstance(methods.version("mine"), str)


def test_the_decorator_works_after_import_vtc_which_imports_nothing_heavy() -> None:
    code = """
import sys, vtc
assert not {"torch", "transformers", "hydra"} & set(sys.modules)
@vtc.registry.methods.register("mine")
class Mine: "What it does."
@vtc.registry.families.register("a_family")
class Family: pass
assert "torch" not in sys.modules and "mine" in vtc.registry.methods.names()
try: vtc.no_such_thing
except AttributeError as error: print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "module 'vtc' has no attribute 'no_such_thing'\n", out.stderr


def test_a_package_that_nobody_can_read_is_refused_in_a_line(tmp_path: Path) -> None:
    """torch reads the entry points of every package, and can't be imported beside one whose file is malformed."""
    folder = tmp_path / "bad-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: bad\n")
    (folder / "entry_points.txt").write_text("[some.group]\nmine\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from vtc.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "method=fastv", "tokens=16", "dry_run=true"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 2
    named, refused = out.stderr.splitlines()[-2:]
    assert named.startswith("vtc: plug-ins of ") and "bad-1.0.dist-info" in refused
    assert refused.endswith("torch can't be imported beside it: mend that file or uninstall it")
