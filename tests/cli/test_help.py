"""What `--help` and its topics say, and what completes a line in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vtc import shipped
from vtc.cli import main
from vtc.cli.help import ALL, topics
from vtc.configuration import choices
from vtc.configuration.choices import GROUPS
from vtc.registry import methods

MOST = 60  # lines that somebody reads, where a line has 80 columns


def said(capsys, *words: str) -> str:
    assert main(["--help", *words]) == 0
    return capsys.readouterr().out


def test_the_first_page_names_every_choice_and_topic(capsys) -> None:
    out = said(capsys)
    assert len(out.splitlines()) < MOST and all(topic in out for topic in [*topics(), ALL])
    for group in GROUPS:
        listed = re.split(r"\n  \w+=|\n\n", out.split(f"\n  {group}=")[1])[0]
        whole = re.sub(r"(\w+)\{(.*?)\}", spelled_out, listed, flags=re.DOTALL)  # a_{b, c}: a_b, a_c
        assert set(re.split(r"[,\s]+", whole.strip())) == set(choices.choices(group)), group


def spelled_out(braced: re.Match[str]) -> str:
    return ", ".join(braced[1] + tail.strip() for tail in braced[2].split(","))


def test_topics_say_a_line_of_every_choice(capsys) -> None:
    everything = said(capsys, ALL)
    for group in GROUPS:
        out = said(capsys, group)
        assert out.startswith(f"{group}=…") and out in everything
        for name, line in choices.choices(group).items():
            assert len(line) > 20, f"conf/{group}/{name}.yaml lacks a first comment line"
            assert f"\n  {name} " in out and line.split(".")[0][:40] in " ".join(out.split())
    settings = said(capsys, "settings")
    for key in ("tokens", "ratio", "compression", "flops", "checkpoint", "seed", "batch_size", "output_dir", "resume",
                "pretrained", "dtype", "device", "device_map", "attention", "quantization"):  # fmt: skip
        assert f"\n  {key}=" in settings
    both = said(capsys, "methods", "actions")
    assert both.startswith(said(capsys, "method")[:-1]) and both.endswith(said(capsys, "action"))


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "method"])
def test_a_choice_says_what_its_file_says(group: str, capsys) -> None:
    for name, file in choices.configured(group).items():
        out = said(capsys, f"{group}={name}")
        comments = [line for line in file.read_text().splitlines() if line.startswith("#") and "@package" not in line]
        assert out.startswith(f"{group}={name}   ") and comments[1].lstrip("# ") in out
        assert " ".join(comments[0].lstrip("# ").split()) in " ".join(out.split())
    assert "samples: 300" in said(capsys, "action=report") and "defaults:" not in said(capsys, "training=victor")


def test_a_method_says_its_options(capsys) -> None:
    out = said(capsys, "method=dart")
    assert out.startswith("method=dart   DART: keeps") and "visual=4 " in out and len(out.splitlines()) < 20
    both = said(capsys, "method=[visionzip,fastv]")
    assert "Options of method=visionzip" in both and "Options of method=fastv" in both


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("metods", "--help=metods: unknown; allowed: actions, all, backbones, .*did you mean 'methods'"),
        ("action=trian", "action=trian: unknown; allowed: .*did you mean 'train'"),
    ],
)
def test_what_there_is_no_help_on_is_one_line(word: str, line: str, capsys) -> None:
    assert main(["--help", word]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.match(f"vtc: {line}", error), error


# Completion ----------------------------------------------------------------------------------------------------------


def completed(line: str, tmp_path: Path) -> list[str]:
    """What a shell offers behind a line: the words that `vtc -sc query=bash` prints."""
    command = tmp_path / "vtc"
    command.write_text(f"#!{sys.executable}\nfrom vtc.cli import run\nrun()\n")
    environment = {**os.environ, "COMP_LINE": line, "PYTHONPATH": str(shipped.root())}
    done = subprocess.run([sys.executable, str(command), "-sc", "query=bash"], capture_output=True, text=True,
                          env=environment, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_a_shell_completes_methods_keys_and_options(tmp_path: Path) -> None:
    offered = [name for name in methods.names() if name.startswith("vi")]
    assert completed("vtc method=vi", tmp_path) == [f"method={name}" for name in offered] and len(offered) > 3
    assert "method.layer=" in completed("vtc method=fastv method.", tmp_path)
    assert completed("vtc method=fastv 'nonsense", tmp_path) == []


def test_a_shell_is_told_how_to_complete(capsys) -> None:
    assert main(["-sc", "install=bash"]) == 0
    assert "-F hydra_bash_completion" in capsys.readouterr().out
    assert main(["-sc", "install=tcsh"]) == 2
    assert "allowed: install=… or uninstall=… of bash, zsh, fish" in capsys.readouterr().err
