"""What a stranger gets: the wheel, the plug-in mechanism, the Makefile, and files that say what they should."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import vtc
from vtc import registry, shipped

ROOT = shipped.root()
EXAMPLE = ROOT / "examples" / "vtc-plugin-example"


def python(*arguments: str, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    """This interpreter with `path` in front of everything, as if those folders were installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, unpacked: what pip puts into site-packages."""
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (file,) = list(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    unpacked = folder / "site-packages"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_wheel_holds_what_runs_need(wheel: Path) -> None:
    held = {
        p.relative_to(wheel / "vtc/_shipped").as_posix() for p in (wheel / "vtc/_shipped").rglob("*") if p.is_file()
    }
    for folder in ("conf", "benchmarks/tasks", "benchmarks/pocket/weights"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert file.relative_to(ROOT).as_posix() in held
    assert (
        all((wheel / f"vtc/report/assets/page.{kind}").is_file() for kind in ("html.j2", "css", "js"))
        and (wheel / "vtc/py.typed").is_file()
    )
    assert not (wheel / "tests").exists() and not (wheel / "conf").exists()
    assert not any(name.startswith("benchmarks/results") for name in held), "no run needs them"


def test_the_wheel_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    done = python("-m", "vtc", "--cfg", "job", "-p", "method", "method=fastv", cwd=tmp_path, path=[wheel])
    assert "name: fastv" in done.stdout and not done.stderr, done.stderr
    where = python("-c", "import vtc.shipped as s; print(s.path('conf'))", cwd=tmp_path, path=[wheel])
    assert Path(where.stdout.strip()) == wheel / "vtc" / "_shipped" / "conf"


def test_an_installed_plug_in_is_a_method_like_any_other(tmp_path: Path) -> None:
    """The example package through a real entry point: listed in the help, composed with its options, built by name."""
    installed = tmp_path / "vtc_plugin_example-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: vtc-plugin-example\nVersion: 0.1.0\n")
    (installed / "entry_points.txt").write_text("[vtc.methods]\nloudest = vtc_plugin_example.loudest:Loudest\n")
    path = [EXAMPLE / "src", tmp_path, ROOT]
    listed = python("-m", "vtc", "--help", "methods", cwd=tmp_path, path=path).stdout
    assert "loudest" in listed and "vtc-plugin-example" in listed
    code = (
        "from vtc.cli import main, parse; from vtc.registry import methods\n"
        "method = parse(['method=loudest', 'method.quiet=true']).method\n"
        "print({'name': method.name, **method.options}, methods.get('loudest').__module__)\n"
        "print(main(['method=loudest', 'method.loud=true']))"
    )
    done = python("-c", code, cwd=tmp_path, path=path)
    assert "{'name': 'loudest', 'p': 2.0, 'quiet': True} vtc_plugin_example.loudest" in done.stdout, done.stderr
    assert "unknown key 'method.loud'" in done.stderr and done.stdout.endswith("2\n")


def test_the_example_passes_its_own_tests(tmp_path: Path) -> None:
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=EXAMPLE, path=[EXAMPLE / "src", ROOT])
    assert done.returncode == 0, done.stdout[-2000:]


def test_entry_points_lead_somewhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for target in ("vtc.cli:run", "vtc.evaluation.registration:manifests"):
        assert f'"{target}"' in project
        module, function = target.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_version_is_written_once() -> None:
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert vtc.__version__.count(".") == 2


@pytest.mark.parametrize("target", ["bench", "test", "check", "wheel", "docs", "install"])
def test_make_knows(target: str, tmp_path: Path) -> None:
    """Every target runs in the environment that the stamp stands for; a fresh one is installed first."""
    done = subprocess.run(["make", "-n", target, f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install" in done.stdout and "constraints.txt" in done.stdout
    assert ("[dev]" in done.stdout) == (target not in ("bench", "wheel"))  # what the main job runs is all that it gets


@pytest.mark.parametrize(
    ("target", "stamps", "command"),
    [
        ("bench", [".vtc-installed"], "-m vtc method=fwd2bot tokens=16"),
        ("docs", [".vtc-installed", ".vtc-tools"], "docs/tools/website.py --out site"),
    ],
)
def test_an_installed_environment_is_not_installed_again(target, stamps, command, tmp_path: Path) -> None:
    for stamp in stamps:
        (tmp_path / stamp).touch()
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith(command) and "pip install" not in done.stdout


def test_a_failed_installation_fails_and_leaves_no_stamp(tmp_path: Path) -> None:
    """Though a line a minute is said beside it."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    done = subprocess.run(["make", "bench", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and not (tmp_path / ".vtc-installed").exists()


def test_continuous_integration_calls_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert {"bash .ci/run", "make check"} <= set(commands)


def test_forms_of_the_repository_can_be_read() -> None:
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(form.read_text())
        assert form.name == "config.yml" or {"name", "description", "body"} <= set(content), form.name
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_importing_the_package_is_light() -> None:
    code = "import sys, vtc.registry, vtc.errors; print({'torch', 'transformers', 'hydra'} & set(sys.modules))"
    assert python("-c", code, cwd=ROOT, path=[ROOT]).stdout.strip() == "set()"


def test_a_file_that_is_not_shipped_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="benchmarks/nothing"):
        shipped.path("benchmarks/nothing")
    assert registry.methods.names()
