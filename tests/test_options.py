"""A method states itself once: its line and its options in its class, and everybody else reads them there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vtc import registry, shipped
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.interface import Compressor, TokenPruner, layer_option, option
from vtc.interface.options import declaration
from vtc.testing import tiny_backbone

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


class Mine(TokenPruner):
    """Keeps some."""

    name = "mine"
    layer: int = layer_option(2, "before this decoder layer", lowest=1)
    strength: float = option(0.5, "how much")
    count: int | None = option(None, "how many; null: all")
    hard: bool = option(False, "whether")
    needed: str = option(..., "a word")


def test_options_are_bound_inherited_and_refused() -> None:
    class Narrower(Mine):
        layer = 0
        needed: str = option("now it has one", "a word")

    shape = replace(tiny_backbone().shape, depth=16)
    method = Mine(4, shape, needed="x", strength=2)
    assert (method.layer, method.strength, method.count, method.needed) == (2, 2, None, "x")
    assert method.options == {"needed": "x", "strength": 2} and method.layer_tokens() == [16] * 2 + [4] * 14
    assert Mine(4, shape, needed="x", layer=8).layer == 4 and Mine(4, shape, needed="x", layer_scale="none", layer=8)
    assert {*Narrower.declared_options()} == {"strength", "count", "hard", "needed"} and Narrower(4, shape).layer == 0
    for options, words in (
        ({}, "method.needed: mine needs it"),
        ({"needed": 3}, "method.needed=3: allowed: a text"),
        ({"needed": "x", "strenght": 1}, "mine has no such option; allowed: .*did you mean 'strength'"),
        ({"needed": "x", "strength": "much"}, "method.strength=much: allowed: a number"),
        ({"needed": "x", "count": 1.5}, "method.count=1.5: allowed: a whole number"),
        ({"needed": "x", "hard": 1}, "method.hard=1: allowed: true, false"),
        ({"needed": "x", "layer": 0}, "method.layer=0: this decoder has 16 layers; allowed: 1 to"),
        ({"needed": "x", "layer_scale": "no"}, "method.layer_scale=no: .*auto, none"),
    ):
        with pytest.raises(UserError, match=words):
            Mine(4, shape, **options)


def test_a_preset_is_a_choice() -> None:
    job = parse(["method=prumerge_plus", "tokens=36"])
    assert job.method.name == "prumerge" and job.method.options["plus"] is True


def test_what_an_option_follows() -> None:
    assert parse(["method=random", "seed=3"]).method.options["seed"] == 3
    assert parse(["method=fastv", "layer_scale=none"]).method.options["layer_scale"] == "none"
    assert parse(["method=llavolta"]).method.options["scheme"] == "four_wider_then_deeper"
    assert len(parse(["method=llavolta", "schedule=two"]).method.options["scheme"]) == 2
