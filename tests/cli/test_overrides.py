"""Command lines by the hundred: each is done or refused in one line, and what is proposed for it works."""

from __future__ import annotations

import itertools
import re
import shlex
import string
import sys
import types
from pathlib import Path

import pytest

from vtc.cli import actions, main
from vtc.configuration import parse
from vtc.configuration.overrides import read, spelled_out, values
from vtc.errors import UserError

# Of words that hold no space.
WEIRD = r"""
${tokens} ${nope} ${oc.env:NOPE_NOPE} ${ ??? null '' [] [null] {} {a:1} nan 1e400 4294967296 abc 狗 ~no_such_user
"""
KEYS = """
tokens ratio seed output_dir checkpoint method benchmark schedule method.layer method.name benchmark.tasks dtype resume
"""
FORMS = r"""
+tokens=4 ++tokens=4 ~tokens ~tokens=4 ~method +method=victor ++method=victor +foo=1 ++foo=1 ~foo
+method.foo=1 tokens tokens= =4 == tokens==4 tokens:4
method@x=victor method@_global_=victor +method@x=victor tokens@x=4 -tokens=4 --tokens=4
tokens='4 tokens="4 tokens=[4 tokens={4 tokens=4) tokens=(4 tokens=#4 tokens=４ - -- -1 = + ++ ~ @ $ tokens=$ ${x}=4
tokens.x=4 tokens.=4 .tokens=4 method..layer=2 method.layer.x=2 benchmark.tasks.0=x benchmark.tasks.99=x
benchmark.tasks.x=1 hydra/launcher=nope hydra/sweeper=nope hydra.foo=1 hydra/nope=basic hydra=1 tokens=range(1,3)
tokens=glob(*) tokens=choice(4,16) tokens=shuffle(4,16) tokens=interval(1,2) tokens=tag(a,choice(1,2)) tokens=int(4)
tokens=float(x) tokens=nope(4) tokens=extend_list(4) benchmark.tasks=extend_list(nope) method=glob(f*) method=[[fastv]]
method=[fastv,null] method={a:b} method=+ method=fastv+ benchmark=x.yaml benchmark=.yaml config.yaml defaults=[]
+defaults=[x] tokens=4, tokens=,4 tokens=4,,16 tokens=\ a=b=c a/b=c method/x=1 /method=fastv @method=fastv
schedule=[two] experiment=[quick,quick] training=null experiment=null seed='1' tokens=0x10 tokens=1_0
"""
LINES = [
    "dtype=bf16|backbone.dtype=fp32",
    "method=fastv|--resolve|tokens=x", "--cfg|nope", "--cfg", "--cfg|job|--resolve|tokens=${nope}", "-p",
    "--info|nope", "--config-dir", "--multirun=1", "-mx", "--hydra-help", "--config-name|x", "--shell-completion",
    "-m|method=nope,fastv", "-m|tokens=glob(*)", "-m|tokens=interval(1,2)", "-m|schedule=null,two", "to kens=4",
    "tokens=4 16", "", "  ", "tokens=\x00", "output_dir=a\nb", "tokens=\udcff", "\udcff=1",
    "hydra.sweeper.params={a:1}|-m|tokens=1,2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def recorded(monkeypatch, tmp_path: Path) -> list:
    """The jobs that were to be done; nothing is."""
    jobs: list = []
    monkeypatch.setitem(sys.modules, "recorder", types.SimpleNamespace(action=jobs.append))
    monkeypatch.setattr(actions, "ACTIONS", dict.fromkeys(actions.ACTIONS, ("recorder:action", False)))
    monkeypatch.chdir(tmp_path)
    return jobs


def refusal(argv: list[str], capsys) -> str:
    """What is said against a command line; empty where it is done."""
    code = main(argv)
    err = capsys.readouterr().err
    assert (code, bool(err)) in ((0, False), (2, True)), (code, err)
    assert "Traceback" not in err and len(err.splitlines()) <= 1, err
    return err


@pytest.mark.parametrize("key", KEYS.split())
def test_odd_values(key: str, capsys) -> None:
    for value in WEIRD.split():
        refusal(["method=fastv", f"{key}={value}"], capsys)


@pytest.mark.parametrize("forms", [FORMS.split()[n::4] for n in range(4)], ids=range(4))
def test_odd_forms(forms: list[str], capsys) -> None:
    for form in forms:
        refusal([form], capsys)


@pytest.mark.parametrize("line", LINES, ids=ascii)
def test_odd_lines(line: str, capsys) -> None:
    assert refusal(line.split("|"), capsys)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tokens=${tokens}", "tokens: "),
        ("tokens=${nope}", "tokens: Interpolation key 'nope' not found"),
        ("tokens=???", "tokens=???: a value is needed"),
        ("method@x=victor", "a key has no @"),
        ("hydra/launcher=nope", "hydra/launcher=nope: unknown; allowed: basic"),
        ("--cfg|nope", "--cfg/-c: invalid choice: 'nope'"),
        ("benchmark.tasks.x=1", "benchmark.tasks is a list of 9"),
        ("method.name=victor", "write method="),
        ("schedule=null,two", "several values are a sweep"),
        ("output_dir='~no_such_user/x'", "~no_such_user is nobody's home folder"),
        ("output_dir=a,b", "-m …; a text with commas is quoted: 'output_dir=\"a,b\"'"),
        ("limit=40", "limit=40: unknown key 'limit'; did you mean 'benchmark.limit'?"),
        ("zzz=1", "zzz=1: unknown key 'zzz'; `python -m vtc --help` lists every key"),
    ],
)
def test_what_is_said(line: str, words: str, capsys) -> None:
    assert words in refusal(line.split("|"), capsys)


def test_flags_stand_anywhere_and_null_is_no_choice(recorded: list, capsys) -> None:
    assert not refusal(["method=fastv", "-m", "tokens=4,16"], capsys)
    assert [job.budget.tokens for job in recorded] == [4, 16]
    assert not refusal(["schedule=null", "experiment=null", "tokens=4", "tokens=4"], capsys)
    assert recorded[-1].overrides == ("tokens=4",)
    assert not refusal(
        ["schedule=two", "tokens=16", "method=llavolta", "schedule=null", "+tokens=8", "tokens=4"], capsys
    )
    assert recorded.pop().overrides == ("method=llavolta", "tokens=4")  # the last value of a key counts
    assert not refusal(["--cfg", "job", "tokens=4", "--resolve"], capsys) and len(recorded) == 3


CHARACTERS = [*map(chr, range(32, 127)), *"狗éß½“—…¿\u00a0\u200b\u3000😀\t"]


def folder_of(word: str) -> str:
    """The output folder that a word names; an error where it doesn't."""
    override = read(spelled_out([word])[0])
    assert not override.is_sweep_override()
    return str(values(override)[0])


@pytest.mark.parametrize("place", ["a{}b", "{}a", "a{}", "{}", "1{}2"])
def test_a_path_works_or_is_quoted_as_the_refusal_says(place: str) -> None:
    """Every printable character: retyped in a shell as it is proposed, it is the folder that was meant."""
    refused = 0
    for character in CHARACTERS:
        path = place.format(character)
        if path.startswith("~"):
            continue  # somebody's home
        word = f"output_dir={path}"
        try:
            meant = folder_of(word)
        except (UserError, AssertionError):
            with pytest.raises(UserError) as error:
                parse([word])
            (word,) = shlex.split(re.sub("; what opens.*", "", str(error.value).partition("is quoted: ")[2]))
            meant, refused = folder_of(word), refused + 1
        assert meant == path, word
    assert refused < len(string.punctuation)
    assert parse(["output_dir='\\${x}'"]).output_dir == Path("${x}")


def test_a_text_may_look_like_a_number() -> None:
    for text, key in itertools.product(
        ("007", "1e3", "1_000", "nan", "true", "0.10", "-0"), ("output_dir", "pretrained")
    ):
        job = parse([f"{key}={text}"])
        assert str(job.output_dir if key == "output_dir" else job.backbone.pretrained) == text
