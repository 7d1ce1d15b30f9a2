"""A method states itself once: its line and its options in its class, and everybody else reads them there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vtc import registry, shipped
from vtc.configuration import parse
from vtc.interface import Compressor
from vtc.interface.options import declaration

READERS = """
import contextlib, io
from vtc.cli import main, parse
from vtc.configuration.methods import options_in_words
from vtc.methods import make
from vtc.testing import tiny_backbone

out = io.StringIO()
with contextlib.redirect_stdout(out):
    main(["method=dart", "--help"])
print("visual=7 " in out.getvalue(), "seven of them" in out.getvalue())
print(parse(["method=dart"]).method.options["visual"], parse(["method=[dart,fastv]"]).method.options["dart"]["visual"])
print(make("dart", 4, tiny_backbone().shape).visual)
print(options_in_words("dart")["visual=7"])
"""


def test_a_default_is_changed_in_one_place_and_seen_everywhere(tmp_path: Path) -> None:
    """In a copy of vtc whose DART has another default: help, configuration, composition, object and docs."""
    package = tmp_path / "vtc"
    shutil.copytree(shipped.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "conf").symlink_to(shipped.path("conf"))
    (tmp_path / "benchmarks").symlink_to(shipped.path("benchmarks"))
    file = package / "methods" / "dart.py"
    text = file.read_text()
    line = 'visual: int = option(4, "visual pivots of an image"'
    assert text.count(line) == 1
    file.write_text(text.replace(line, 'visual: int = option(7, "seven of them"'))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", READERS], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "True", "7", "7", "7", "seven", "of", "them"], done.stderr


@pytest.mark.parametrize("name", registry.methods.names())
def test_every_option_has_its_line(name: str) -> None:
    own = declaration(registry.methods.get(name))
    assert len(own.about) > 20 and all(o.about for o in own.options.values())
    assert issubclass(registry.methods.get(name), Compressor) and registry.methods.get(name).version >= 1


def test_a_preset_is_a_choice() -> None:
    job = parse(["method=prumerge_plus", "tokens=36"])
    assert job.method.name == "prumerge" and job.method.options["plus"] is True


def test_what_an_option_follows() -> None:
    assert parse(["method=random", "seed=3"]).method.options["seed"] == 3
    assert parse(["method=fastv", "layer_scale=none"]).method.options["layer_scale"] == "none"
    assert parse(["method=llavolta"]).method.options["scheme"] == "four_wider_then_deeper"
    assert len(parse(["method=llavolta", "schedule=two"]).method.options["scheme"]) == 2
