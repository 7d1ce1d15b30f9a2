"""The pinned versions: uv.lock is of this pyproject.toml, constraints.txt of uv.lock, and both name PyPI alone."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from vtc import shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = shipped.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
PACKAGES = [package for package in LOCK["package"] if package["name"] != "vtc"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements() -> dict[str, list[str]]:
    """Those of pyproject.toml, by extra; `""`: always."""
    project = PROJECT["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def canonical(text: str, extra: str = "") -> tuple[str, frozenset[str], frozenset[str], str, str]:
    """A requirement however it is written: name, extras, versions, marker, and the extra that asks for it."""
    one = Requirement(text)
    return (
        canonicalize_name(one.name),
        frozenset(one.extras),
        frozenset(map(str, one.specifier)),
        str(one.marker),
        extra,
    )


def of_lock(entry: dict[str, Any]) -> tuple[str, frozenset[str], frozenset[str], str, str]:
    """The same of a requirement as uv.lock notes it."""
    marker = entry.get("marker", "")
    found = re.search(r"extra == '([^']+)'", marker)
    rest = re.sub(r"(^| and )extra == '[^']+'", "", marker).removeprefix(" and ")
    rest = rest.replace("python_full_version", "python_version")
    extras = f"[{','.join(entry['extras'])}]" if "extras" in entry else ""
    text = f"{entry['name']}{extras}{entry.get('specifier', '')}" + (f"; {rest}" if rest else "")
    return canonical(text, found[1] if found else "")


def test_the_lock_is_of_this_pyproject() -> None:
    """What `uv lock --check` compares, without a network."""
    (own,) = [package for package in LOCK["package"] if package["name"] == "vtc"]
    written = {canonical(text, extra) for extra, texts in requirements().items() for text in texts}
    assert {of_lock(entry) for entry in own["metadata"]["requires-dist"]} == written
    assert LOCK["requires-python"] == PROJECT["project"]["requires-python"]
    chosen = map(Requirement, PROJECT["tool"]["uv"]["constraint-dependencies"])
    assert {(e["name"], e["specifier"]) for e in LOCK["manifest"]["constraints"]} == {
        (one.name, str(one.specifier)) for one in chosen
    }


def pinned() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_pip_gets_the_versions_of_the_lock() -> None:
    here = {(canonicalize_name(one.name), str(one.specifier).removeprefix("==")) for one in pinned()}
    assert here == {(package["name"], package["version"]) for package in PACKAGES}
    assert all(not one.extras and len(one.specifier) == 1 for one in pinned()), "pip takes no extras in constraints"


@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_has_one_version_that_is_allowed(python: str) -> None:
    """Of whatever is asked for, on the systems that people have; and nothing that is pinned is outside its range."""
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")):
        environment = {
            "python_version": python, "python_full_version": f"{python}.9", "sys_platform": system,
            "platform_machine": machine, "implementation_name": "cpython", "extra": "",
        }  # fmt: skip

        def applies(marker: Marker | None, environment: dict[str, str] = environment) -> bool:
            return marker is None or marker.evaluate(environment)

        for text in (text for texts in requirements().values() for text in texts):
            asked = Requirement(text)
            if not applies(asked.marker):
                continue
            fitting = [
                p for p in pinned() if canonicalize_name(p.name) == canonicalize_name(asked.name) and applies(p.marker)
            ]
            (version,) = [Version(str(p.specifier).removeprefix("==")) for p in fitting]
            assert version in asked.specifier, f"{text} on {python}, {system}: {version}"


def test_torch_and_torchvision_are_of_one_generation() -> None:
    """torchvision 0.29 is made for torch 2.14, as 0.26 for 2.11."""
    versions = {
        p.name: Version(str(p.specifier).removeprefix("==")) for p in pinned() if p.name in ("torch", "torchvision")
    }
    assert versions["torchvision"].minor - versions["torch"].minor == 15
    assert not any(version.local for version in versions.values()), "a build of one index alone"


def test_nothing_names_another_index_than_pypi() -> None:
    assert {tuple(package["source"].items()) for package in PACKAGES} == {(("registry", "https://pypi.org/simple"),)}
    text = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r"\b(?:https?|file|git)://[^/\"]*", text)) == {
        "https://pypi.org",
        "https://files.pythonhosted.org",
    }
    assert "/" not in (ROOT / "constraints.txt").read_text().replace("'", "")


def test_a_lock_of_other_requirements_is_seen() -> None:
    assert canonical("numpy>=1.26") != canonical("numpy>=2") != canonical("numpy>=2", "docs")
    entry = {"name": "zensical", "marker": "python_full_version >= '3.11' and extra == 'docs'", "specifier": ">=0.0.70"}
    assert of_lock(entry) == canonical("zensical>=0.0.70; python_version >= '3.11'", "docs")
