"""`python -m vtc --help`: every group with its choices, one line each, read from the configuration files."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from vtc import __version__, plugins
from vtc.configuration.choices import GROUPS, choices
from vtc.configuration.compose import config_dir
from vtc.configuration.methods import options_in_words
from vtc.configuration.overrides import SHORT, plugin_files, read, spelled_out
from vtc.registry import methods

USAGE = """\
vtc {version}: visual-token compression for large vision-language models

  python -m vtc method=fwd2bot tokens=16                                score one method
  python -m vtc -m method=fwd2bot,victor,llavolta,fastv tokens=4,16,36  a sweep
  python -m vtc 'method=[visionzip,fastv]' tokens=[36,16]               methods one after the other
  python -m vtc backbone=llava15_7b benchmark=llava method=fastv tokens=64
  python -m vtc action=train method=victor tokens=8                     train one
  python -m vtc experiment=fwd2bot_table5                               a paper's ablation, trained and judged
  python -m vtc action=report                                           tables, plots, one HTML page
"""

FLAGS = """\
Flags
  -m, --multirun      a sweep: every combination of the comma-separated values
  --cfg job           print the composed configuration and stop
  --version, -h, --help          with method=…: its options too
"""


def text(words: Sequence[str] = ()) -> str:
    """The whole help page, with the options of the methods that the words of a command line name.

    Raises:
        UserError: a file of the user's, in `method=`, that has no such method.
    """
    words = spelled_out([word for word in words if word.startswith(("method=", "plugins="))])
    plugins.load_all(plugin_files([read(word) for word in words]))
    width = min(shutil.get_terminal_size((110, 24)).columns, 130)
    parts = [USAGE.format(version=__version__)]
    for group, about in GROUPS.items():
        lines = choices(group)
        if not lines:
            continue
        column = max(12, *(len(name) for name in lines)) + 2
        parts.append(f"{group}=…   {about}")
        for name, line in lines.items():
            indent = " " * (column + 2)
            row = f"  {name:<{column}}{line}"
            parts.append(textwrap.fill(row, width, subsequent_indent=indent, break_on_hyphens=False))
        parts.append("")
    parts.append("Settings\n" + _settings() + "\n")
    parts.append("Settings of the backbone (dtype=bf16 is short for backbone.dtype=bf16)\n" + _of_backbone() + "\n")
    parts.append(
        "Options of a choice are key.option=value: method.layer=2, benchmark.limit=50, training.workers=2.\n"
        "Of methods one after the other: method.fastv.layer=3; of the same one twice: method.fastv2.layer=4.\n"
    )
    for name in dict.fromkeys(_methods(words)):
        rows = [f"  {key:<22} {about}" for key, about in options_in_words(name).items()] or ["  none"]
        filled = [textwrap.fill(row, width, subsequent_indent=" " * 25, break_on_hyphens=False) for row in rows]
        parts.append(f"Options of method={name}, method.<option>=…\n" + "\n".join(filled) + "\n")
    parts.append(FLAGS)
    return "\n".join(parts)


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
