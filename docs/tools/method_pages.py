"""A page for each method, made of its class, the committed results and arithmetic: nothing is typed by hand."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import catalogue
import equal
import evidence
import readme
import support

from vtc.budget import BUDGETS, relative_flops
from vtc.configuration.methods import options_in_words
from vtc.errors import UserError
from vtc.interface import Compressor
from vtc.methods import make
from vtc.registry import methods
from vtc.report import tables

if TYPE_CHECKING:
    from vtc.interface import BackboneShape

REAL = "llava15_7b"  # the backbone whose costs a page states, by formula
BUDGETS_SHOWN = (16, 64, 192)


def page(name: str, root: Path) -> str:
    """The page of a built-in method, in Markdown; its links start at `docs/methods/`."""
    cls = methods.get(name)
    sections = [
        f"# {name}",
        idea(cls),
        "## Try it",
        commands(name, cls),
        "## What stands behind it",
        evidence.section(name, root),
        "## Options, with their defaults",
        options(name),
        "## Where it works",
        families(name),
        "## What it costs on LLaVA-1.5 7B",
        costs(name),
        "## On pocket",
        scores(name, root),
        "## The code",
        f"`{source(cls).relative_to(root).as_posix()}`",
        f"```python\n{source(cls).read_text(encoding='utf-8')}```",
    ]
    return "\n\n".join(sections) + "\n"


def source(cls: type[Compressor]) -> Path:
    return Path(inspect.getfile(cls))


def idea(cls: type[Compressor]) -> str:
    """What the module and the class say of themselves: source, equations, where it differs from its authors' code."""
    module = ast.get_docstring(ast.parse(source(cls).read_text(encoding="utf-8"))) or ""
    text = inspect.cleandoc(cls.__doc__ or "")
    prose, _, arguments = text.partition("\nArgs:\n")
    entries = re.split(r"\n(?=\S)", textwrap.dedent(arguments).strip())
    lines = [re.sub(r"^([\w, ]+): ", r"- `\1`: ", " ".join(entry.split())) for entry in entries if entry]
    return "\n\n".join(filter(None, [module, prose.strip(), "\n".join(lines)]))


def commands(name: str, cls: type[Compressor]) -> str:
    lines = [f"python -m vtc method={name}" + ("" if name == "none" else " tokens=16")]
    if cls.fixed_budget or cls.elastic:
        lines.insert(0, f"python -m vtc action=train method={name}" + ("" if cls.elastic else " tokens=8"))
    lines += [f"python -m vtc backbone={REAL} method={name} tokens=64 dry_run=true"] if name != "none" else []
    return "\n".join(f"    {line}" for line in lines)


def options(name: str) -> str:
    rows = [[f"`method.{key}`", about] for key, about in options_in_words(name).items()]
    budgets = ", ".join(f"`{key}=`" for key in BUDGETS)
    if not rows:
        return f"None beside the budget ({budgets})."
    return catalogue.text_table(["option", ""], rows)


def families(name: str) -> str:
    """One line a family, as in the table of docs/backbones.md."""
    rows, answers = [], support.table()[name]
    if all(answer.answer == support.YES for answer in answers.values()):
        return f"On every family: {', '.join(answers)}."
    for family, answer in answers.items():
        words = {support.YES: "yes", support.FIXED: "with `backbone.image_size`"}
        why = answer.answer + (f"; {answer.detail}" if answer.detail else "")
        rows.append([family, words[answer.answer] if answer.works else f"no: {why}"])
    return catalogue.text_table(["family", ""], rows)


def costs(name: str) -> str:
    """FLOPs of a prefill of one image and 64 text tokens, by formula."""
    (_, shape), *_ = support.shapes(REAL)
    rows = [row for tokens in BUDGETS_SHOWN if (row := _cost(name, tokens, shape))]
    if not rows:
        return "Every token is kept: 1." if name == "none" else f"It has no budget among {BUDGETS_SHOWN} there."
    header = ["visual tokens", "FLOPs of a prefill", "of an image compressed beforehand"]
    return (
        tables.markdown(header, rows)
        + "\n\nRelative to no compression, decoder and method, one image and 64 text tokens; "
        + "[how they are counted](../profile.md#formula-and-count)."
    )


def _cost(name: str, tokens: int, shape: BackboneShape) -> list[str] | None:
    try:
        method = make(name, tokens, shape)
        if tokens not in method.offers():
            return None
    except UserError:
        return None
    now, stored = relative_flops(method), relative_flops(method, beforehand=True)
    return [
        f"{tokens} of {shape.visual_tokens}",
        f"{100 * now:.1f} %",
        f"{100 * stored:.1f} %" if stored < now else "–",
    ]


def scores(name: str, root: Path) -> str:
    """The rows of the method in the one table, with no compression beside them, and those of its shipped weights."""
    setting = equal.setting(root)
    runs = [run for run in setting.runs if run.method == name] if setting else []
    if setting is None or not runs:
        return "No result is committed."
    if name != "none":
        runs += [run for run in setting.runs if run.is_baseline][:1]
    lines = [
        tables.markdown(*readme.ranking(setting, runs, root)),
        "Of the one table: means over tasks, ± half a 95 % confidence interval. [All methods](../results.md), and "
        "[what pocket can show](../pocket.md).",
    ]
    own = equal.pieces(root).get(f"{name}{equal.SHIPPED}", {})
    if own:
        each = ", ".join(f"{equal.mean(seeds)} at {tokens}" for tokens, seeds in sorted(own.items()) if tokens)
        lines.append(f"With [the weights that are shipped](../results.md#as-they-are-shipped): {each} tokens.")
    return "\n\n".join(lines)
