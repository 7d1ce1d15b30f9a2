"""A report on disk: `table.csv`, `table.md`, `pareto-*.png`, `index.html`; and the tables on the console."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vtc import results
from vtc.errors import UserError
from vtc.job import Job
from vtc.report import page, plots, tables
from vtc.report.runs import Setting, collect


def report(job: Job) -> Path:
    """Finds results, prints the comparison and writes the report; returns its folder. `python -m vtc action=report`.

    Args:
        job: `job.report` says what is read (None: `job.output_dir`), where it is written, and under which title.

    Raises:
        UserError: an input that isn't there, nothing to report, or a folder that can't be made.
    """
    import pandas as pd
    from rich.console import Console

    inputs = [job.output_dir] if job.report.inputs is None else job.report.inputs
    output, title = Path(job.report.output or job.output_dir / "report").expanduser(), job.report.title
    settings, notes = collect([Path(folder).expanduser() for folder in inputs])
    if output.exists() and not output.is_dir():
        raise UserError(f"report.output={output}: is a file, a folder is needed")
    output.mkdir(parents=True, exist_ok=True)
    # The width of a terminal, or one that holds the table: piped output shouldn't be folded at 80.
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    sections, text = [], [f"# {title}", ""] + [f"{note}\n" for note in notes]
    for setting in settings:
        drawn = [
            file
            for axis in ("tokens", "flops")
            if (file := plots.pareto(setting, axis, output / f"pareto-{axis}-{slug(setting.name)}.png"))
        ]
        pairs = tables.differences(setting)
        sections.append(page.Section(setting, drawn, pairs))
        text += section_markdown(setting, drawn, pairs)
        console.print(tables.console(setting))
        console.print()
    for note in notes + [note for s in settings for note in s.notes]:
        console.print(f"note: {note}", style="dim", soft_wrap=True)

    results.write_text(output / "table.csv", pd.concat([tables.frame(s) for s in settings]).to_csv(index=False))
    results.write_text(output / "table.md", "\n".join(text))
    results.write_text(output / "index.html", page.render(sections, notes, title))
    runs = sum(len(s.runs) for s in settings)
    files = ["table.csv", "table.md", *(p.name for s in sections for p in s.plots)]
    console.print(f"{runs} runs → {output / 'index.html'}, {', '.join(files)}", soft_wrap=True)
    return output


def section_markdown(setting: Setting, drawn: Sequence[Path], pairs: Sequence[dict]) -> list[str]:
    """One setting as Markdown: table, notes, plots, pairs."""
    lines = [f"## {setting.name}", "", "Scores with 95 % confidence intervals.", ""]
    lines += [tables.markdown(*tables.cells(setting)), ""]
    lines += [f"{note}\n" for note in setting.notes]
    lines += [f"![{p.stem}]({p.name})\n" for p in drawn]
    if pairs:
        lines += ["### Methods at the same number of tokens", "", tables.markdown(*tables.difference_cells(pairs)), ""]
    return lines


def slug(name: str) -> str:
    """A name as a file's: `pocket on pocket` → `pocket-on-pocket`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
