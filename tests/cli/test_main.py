"""The command line: help, composition, sweeps, dispatch. Actions are replaced by recorders: no model is built here."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from vtc import __version__, registry, shipped
from vtc.cli import actions, main
from vtc.configuration import choices, parse
from vtc.errors import UserError
from vtc.identity import EVERYTHING, deciding, digest
from vtc.interface import TokenPruner, option
from vtc.methods import options_of


@pytest.fixture
def calls(monkeypatch, tmp_path: Path) -> list:
    """Every job that an action was called with; method=random fails, method=avgpool breaks."""
    seen = []

    def action(job) -> None:
        if job.method.name == "random":
            raise UserError("no luck today")
        if job.method.name == "avgpool":
            raise ZeroDivisionError("a bug")
        seen.append(job)

    monkeypatch.setitem(sys.modules, "recorder", types.SimpleNamespace(action=action))
    monkeypatch.setattr(actions, "ACTIONS", dict.fromkeys(actions.ACTIONS, ("recorder:action", False)))
    monkeypatch.chdir(tmp_path)
    return seen


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"vtc {__version__}"


@pytest.mark.parametrize(
    "file", sorted(shipped.path("conf").rglob("*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}"
)
def test_configuration_files_open_with_their_line_and_their_command(file: Path) -> None:
    comments = [line for line in file.read_text().splitlines() if line.startswith("#") and "@package" not in line]
    command = "-m vtc" if file.parent.name == "accelerate" else "python -m vtc"  # the launcher is another program
    assert len(comments) >= 2 and command in comments[1], "line 1: what it is; line 2: the command that runs it"


def test_every_registered_name_is_configured_and_the_reverse() -> None:
    presets = choices.configured("method")
    assert set(choices.choices("method")) - set(presets) == set(registry.methods.names())
    assert {parse([f"method={name}"]).method.name for name in presets} <= set(registry.methods.names())
    files = choices.configured("backbone").values()
    assert {yaml.safe_load(file.read_text())["family"] for file in files} == set(registry.families.names())


@pytest.mark.parametrize("name", registry.methods.names())
def test_options_of_a_configuration_are_the_method_s_own(name: str) -> None:
    """`method=<name>` lists every option that the class declares with its default, and nothing else."""
    method = parse([f"method={name}", "backbone=llava15_13b"]).method  # no file of an option comes with vtc for it
    assert method.name == name
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in method.options.items()} == options_of(name)


def test_parsing_leaves_another_hydra_application_alone() -> None:
    before = GlobalHydra.instance().hydra
    job = parse(["method=fastv", "tokens=16"])
    assert (job.action, job.method.name, job.budget.tokens) == ("evaluate", "fastv", 16)
    assert GlobalHydra.instance().hydra is before


def test_one_run(calls: list, capsys) -> None:
    assert main(["method=fwd2bot", "tokens=16"]) == 0
    (job,) = calls
    assert (job.action, job.backbone.name, job.method.name, job.budget.tokens) == (
        "evaluate",
        "pocket",
        "fwd2bot",
        16,
    )
    assert (
        capsys.readouterr()
        .out.splitlines()[0]
        .startswith(f"vtc {__version__} · evaluate · backbone pocket · method fwd2bot")
    )


def test_a_sweep_runs_every_combination(calls: list, capsys) -> None:
    assert main(["-m", "method=fwd2bot,victor,llavolta,fastv", "tokens=4,16,36"]) == 0
    assert len({(c.method.name, c.budget.tokens) for c in calls}) == 12
    out = capsys.readouterr().out
    assert "[12/12] method=fastv tokens=36" in out and "12 of 12 jobs done" in out


def test_a_failing_job_does_not_stop_a_sweep_and_the_exit_code_says_so(calls: list, capsys) -> None:
    assert main(["-m", "method=random,fastv,victor", "tokens=4"]) == 2
    assert [c.method.name for c in calls] == ["fastv", "victor"]
    got = capsys.readouterr()
    assert "2 of 3 jobs done, 1 failed" in got.out
    assert "method=random: no luck today" in got.err and "Traceback" not in got.err

    assert main(["-m", "method=avgpool,fastv", "tokens=4"]) == 1
    got = capsys.readouterr()
    assert "ZeroDivisionError" in got.err and "Traceback" in got.err and "1 of 2 jobs done" in got.out


def test_a_bug_shows_its_traceback(calls: list, capsys) -> None:
    assert main(["method=avgpool"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "ZeroDivisionError: a bug" in err


def test_methods_one_after_the_other(calls: list, capsys) -> None:
    words = ["method=[visionzip,fastv]", "tokens=[36,16]", "method.fastv.layer=3", "layer_scale=none"]
    assert main(words) == 0
    (job,) = calls
    other = parse(["method=visionzip+fastv", *words[1:]])
    assert dataclasses.replace(job, overrides=None) == dataclasses.replace(other, overrides=None)
    assert job.budget.tokens == 16
    assert job.method.options["fastv"] == {"layer": 3, "layer_scale": "none"}
    assert job.method.options["visionzip"] == {
        "tokens": 36, "ratio": None, "merge": "add", "contextual_share": 0.15625, "tower_layer": None
    }  # fmt: skip
    assert "method visionzip+fastv · tokens 36-16" in capsys.readouterr().out

    job = parse(["method=[fastv,fastv]", "method.fastv1.layer=3", "ratio=[0.5,0.1]"])
    assert (job.method.options["fastv1"]["layer"], job.method.options["fastv2"]["layer"]) == (3, 2)
    assert (job.method.options["fastv1"]["ratio"], job.budget.ratio) == (0.5, 0.1)


LONG = ["backbone.dtype=bfloat16", "backbone.attention=eager", "backbone.pretrained=/a/b", "backbone.device_map=auto"]
SHORT = ["dtype=bf16", "attention=eager", "pretrained=/a/b", "device_map=auto"]


@pytest.mark.parametrize("given", [SHORT, LONG, [*SHORT[:2], *LONG], [*LONG[:1], *SHORT], ["++dtype=bf16", *SHORT[1:]]])
def test_options_of_the_backbone_have_short_keys(given: list[str], calls: list) -> None:
    """However it is written, it is one configuration and one run."""
    assert main(["backbone=llava15_7b", "tokens=64", "method=fastv", *given]) == 0
    (job,) = calls
    plain = vars(parse(["backbone=llava15_7b"]).backbone)
    changed = {"dtype": "bfloat16", "attention": "eager", "pretrained": "/a/b", "device_map": "auto"}
    assert vars(job.backbone) == plain | changed
    whole = parse(["backbone=llava15_7b", "tokens=64", "method=fastv", *LONG])
    again = parse(["backbone=llava15_7b", "tokens=64", "method=fastv", *given])
    jobs = [dataclasses.replace(one, overrides=None) for one in (job, whole, again)]
    assert jobs[0] == jobs[1] == jobs[2]
    assert digest(deciding(job, EVERYTHING)) == digest(deciding(whole, EVERYTHING))


def test_short_keys_are_swept_and_take_either_name_of_a_dtype(calls: list, capsys) -> None:
    assert main(["-m", "dtype=bf16,fp32,float16", "quantization=none,8bit"]) == 0
    pairs = [(c.backbone.dtype, c.backbone.quantization) for c in calls]
    assert pairs == [(d, q) for d in ("bfloat16", "float32", "float16") for q in ("none", "8bit")]
    assert "[6/6] backbone.dtype=float16 backbone.quantization=8bit" in capsys.readouterr().out
    assert parse(["quantization=null"]).backbone == parse([]).backbone
    with pytest.raises(UserError, match="dtype=bf16,fp32, backbone.dtype=fp32: one key"):
        parse(["dtype=bf16,fp32", "backbone.dtype=fp32"])


@pytest.mark.parametrize("name", choices.configured("backbone"))
def test_every_backbone_has_the_options_that_loading_takes(name: str) -> None:
    from vtc.configuration.compose import SHORT as short
    from vtc.settings import BackboneSettings

    shared = set(yaml.safe_load((shipped.path("conf/backbone") / "_checkpoint.yaml").read_text()))
    options = set(yaml.safe_load(choices.configured("backbone")[name].read_text())) - {"defaults"}
    fields = {field.name for field in dataclasses.fields(BackboneSettings)}
    assert shared | options <= fields <= shared | {"frames", "image_size", "tiles"}
    assert set(short) <= shared | {"weights"}  # of a profile, which takes random ones


def test_compositions_are_swept(calls: list, capsys) -> None:
    assert main(["-m", "method=[visionzip,fastv],[divprune,fastv],fastv", "tokens=16,4"]) == 0
    assert len({(c.method.name, c.budget.tokens) for c in calls}) == 6
    calls.clear()
    assert main(["-m", "method=[visionzip,fastv]", "tokens=[36,16],[72,16]"]) == 0
    assert [(c.method.options["visionzip"]["tokens"], c.budget.tokens) for c in calls] == [(36, 16), (72, 16)]
    assert "[2/2] tokens=[72,16]" in capsys.readouterr().out


def test_a_plug_in_is_part_of_a_composition(calls: list, monkeypatch) -> None:
    class Mine(TokenPruner):
        """Keeps what it likes."""

        strength: float = option(0.5, "how much it likes it")

    monkeypatch.setitem(registry.methods._registered, "mine", Mine)
    assert main(["method=[mine,fastv]", "tokens=4", "method.mine.strength=0.7"]) == 0
    assert calls[0].method.options["mine"]["strength"] == 0.7


def test_nothing_of_hydra_is_left_behind(calls: list, tmp_path: Path) -> None:
    main(["method=fastv", "tokens=4", "output_dir=here"])
    assert not list(tmp_path.iterdir())
    main(["-m", "method=fastv", "tokens=4,16", "output_dir=here"])
    files = {p.relative_to(tmp_path / "here" / "sweeps").parts for p in tmp_path.rglob("*") if p.is_file()}
    assert {parts[-1] for parts in files if parts[0] != "jobs"} == {"multirun.yaml"}
    assert len([parts for parts in files if parts[0] == "jobs"]) == 2  # what became of each, which is vtc's own note


def test_actions_are_the_configured_ones() -> None:
    assert set(actions.ACTIONS) == set(choices.configured("action"))


def test_a_plug_in_is_composed(calls: list, monkeypatch) -> None:
    class Mine(TokenPruner):
        """Keeps what it likes."""

        strength: float = option(0.5, "how much it likes it")
        names: tuple[str, ...] = option(("a",), "what it likes")

    monkeypatch.setitem(registry.methods._registered, "mine", Mine)
    assert choices.choices("method")["mine"] == "Keeps what it likes."
    assert main(["method=mine", "tokens=4", "method.strength=0.7"]) == 0
    assert calls[0].method.name == "mine"
    assert calls[0].method.options == {"strength": 0.7, "names": ["a"]}
    with pytest.raises(UserError, match="did you mean 'strength'"):
        parse(["method=mine", "method.strenght=1"])


def test_nothing_heavy_before_the_first_line() -> None:
    """Help and the checks of keys import neither torch nor transformers nor lmms_eval."""
    code = (
        "import sys; from vtc.cli import main; main(['--help']); main(['tokens=0']); main(['method=nope']);"
        "print([m for m in ('torch', 'transformers', 'lmms_eval', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-300:] + done.stderr
