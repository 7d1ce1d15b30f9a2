"""`vtc --help` and `vtc --help TOPIC`: commands, and each group with its choices, read from the configuration files."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vtc import __version__, plugins
from vtc.configuration.choices import GROUPS, choices, configured
from vtc.configuration.compose import config_dir
from vtc.configuration.methods import options_in_words
from vtc.configuration.overrides import SHORT, plugin_files, read, spelled_out
from vtc.errors import unknown
from vtc.registry import methods

USAGE = """\
vtc {version}: visual-token compression for large vision-language models

  vtc method=fwd2bot tokens=16                                score one method
  vtc -m method=fwd2bot,victor,llavolta,fastv tokens=4,16,36  a sweep
  vtc 'method=[visionzip,fastv]' tokens=[36,16]               methods one after the other
  vtc backbone=llava15_7b benchmark=llava method=fastv tokens=64
  vtc action=train method=victor tokens=8                     train one
  vtc experiment=fwd2bot_table5                               a paper's ablation, trained and judged
  vtc action=new_method name=my_method kind=pruner            a method of your own: its file and its test
  vtc action=check method=./my_method.py                      whether it is right
  vtc action=report                                           tables, plots, one HTML page

`python -m vtc …` is the same. A budget is one of tokens=, ratio=, compression=, flops=.
"""

MORE = """\
More
  vtc --help TOPIC          {topics}, or all of it
  vtc --help method=fastv   what it is, and its options; of any other choice too: action=report, backbone=pocket, …
  vtc … dry_run=true        what would be loaded, downloaded and computed
"""

FLAGS = """\
Flags
  -m, --multirun      a sweep: every combination of the comma-separated values
  --cfg job           print the composed configuration and stop
  -sc install=bash    what completes `vtc` in your shell: eval "$(vtc -sc install=bash)"
  --version, -h, --help
"""

OPTIONS = """\
Options of a choice are key.option=value: method.layer=2, benchmark.limit=50, training.workers=2.
Of methods one after the other: method.fastv.layer=3; of the same one twice: method.fastv2.layer=4.
"""
SETTINGS, ALL = "settings", "all"


def topics() -> list[str]:
    """What `--help` may be asked about, as it is written."""
    return [*(group if group == "training" else f"{group}s" for group in GROUPS), SETTINGS]


def text(words: Sequence[str] = ()) -> str:
    """The help that a command line with `--help` asks for.

    Args:
        words: topics (`methods`, `settings`, `all`) and choices (`method=fastv`); none: commands, names and topics.

    Raises:
        UserError: an unknown topic or choice, or a file of the user's, in `method=`, that has no such method.
    """
    asked = [word for word in words if "=" not in word and not word.startswith("-")]
    chosen = [word for word in words if "=" in word and not word.startswith("-")]
    settings = spelled_out([word for word in chosen if word.startswith(("method=", "plugins="))])
    plugins.load_all(plugin_files([read(word) for word in settings]))
    parts = [_topic(word) for word in asked]
    parts += [_of_method(name) for name in dict.fromkeys(_methods(settings))]
    parts += [part for word in chosen if (part := _of_file(word))]
    return "\n".join(parts or [_overview()])


def _overview() -> str:
    """Commands, the names of all choices, where to read on."""
    rows = [textwrap.fill(f"  {g + '=':<12}{', '.join(_braced(choices(g)))}", _width(), subsequent_indent=" " * 14,
                          break_on_hyphens=False) for g in GROUPS if choices(g)]  # fmt: skip
    names = "Choices\n" + "\n".join(rows) + "\n"
    return "\n".join([USAGE.format(version=__version__), names, MORE.format(topics=", ".join(topics())), FLAGS])


def _braced(names: Iterable[str]) -> list[str]:
    """Names that differ behind their last _ alone as one: `llava15_{7b, 13b}`."""
    tails: dict[str, list[str]] = {}
    for name in names:
        head, line, tail = name.rpartition("_")
        tails.setdefault(f"{head}_" if line else name, []).append(tail if line else "")
    return [head + (f"{{{', '.join(own)}}}" if len(own) > 1 else own[0]) for head, own in tails.items()]


def _topic(word: str) -> str:
    """What is said of a topic, in the singular or the plural.

    Raises:
        UserError: an unknown one.
    """
    if word == ALL:
        return "\n".join([USAGE.format(version=__version__), *(_topic(topic) for topic in topics()), FLAGS])
    if word in (SETTINGS, "setting"):
        return "\n".join([
            "Settings\n" + _settings() + "\n",
            "Settings of the backbone (dtype=bf16 is short for backbone.dtype=bf16)\n" + _of_backbone() + "\n",
            OPTIONS,
        ])  # fmt: skip
    group = next((group for group in GROUPS if word in (group, f"{group}s")), None)
    if group is None:
        raise unknown("--help", word, [*topics(), ALL])
    lines = choices(group)
    column = max(12, *(len(name) for name in lines)) + 2
    rows = [_filled(f"  {name:<{column}}{line}", column + 2) for name, line in lines.items()]
    return "\n".join([f"{group}=…   {GROUPS[group]}", *rows]) + "\n"


def _of_method(name: str) -> str:
    """What a method is, and its options."""
    rows = [_filled(f"  {key:<22} {about}", 25) for key, about in options_in_words(name).items()] or ["  none"]
    about = _filled(f"method={name}   {choices('method')[name]}", 2)
    return f"{about}\n\nOptions of method={name}, method.<option>=…\n" + "\n".join(rows) + "\n"


def _of_file(word: str) -> str:
    """What the file of a choice says: `action=report`, `backbone=llava15_7b`. Empty for words that choose nothing.

    Raises:
        UserError: an unknown choice of a group.
    """
    group, _, name = word.partition("=")
    files = configured(group) if group in GROUPS else {}
    if not files or (group == "method" and name not in files):
        return ""
    if name not in files:
        lines = choices(group)
        if name not in lines:
            raise unknown(group, name, lines)
        return f"{group}={name}   {lines[name]}\n"
    return _of_configuration(group, name, files[name])


def _of_configuration(group: str, name: str, file: Path) -> str:
    """Its line, its command, and its settings as they stand in the file, with their comments."""
    lines = file.read_text(encoding="utf-8").splitlines()
    about, command, *_ = (line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line)
    body, inside = [], False
    for line in lines:
        if line and not line[0].isspace() and not line.startswith("#"):
            inside = line.startswith(("defaults:", f"{group}:", "hydra:"))
        if not inside and not line.startswith("#") and line.strip():
            body.append(f"  {line}")
    settings = ["", "Settings, with their defaults", *body] if body else []
    return "\n".join([_filled(f"{group}={name}   {about}", 2), f"  {command}", *settings]) + "\n"


def _width() -> int:
    return min(shutil.get_terminal_size((110, 24)).columns, 130)


def _filled(row: str, indent: int) -> str:
    return textwrap.fill(row, _width(), subsequent_indent=" " * indent, break_on_hyphens=False)


def _methods(words: Sequence[str]) -> Iterator[str]:
    """The methods that `method=…` names, those of a composition and of a sweep one by one."""
    for word in words:
        if word.startswith("method="):
            named = re.split(r"[\[\],+]", word.removeprefix("method="))
            yield from (name for name in named if name in methods.names())


def _settings() -> str:
    """The top-level keys of config.yaml with their comments."""
    rows = []
    for line in (config_dir() / "config.yaml").read_text(encoding="utf-8").splitlines():
        key, colon, rest = line.partition(":")
        if colon and key.isidentifier() and key not in ("defaults", "hydra"):
            value, _, comment = rest.partition("#")
            rows.append(f"  {key + '=' + value.strip():<22}{comment.strip()}".rstrip())
    return "\n".join(rows)


def _of_backbone() -> str:
    return "\n".join(f"  {key + '=':<22}{about}" for key, about in SHORT.items())
