"""A report on disk: `table.csv`, `.md`, `.tex`, figures as PNG, SVG and PDF, `index.html`; tables are printed."""

from __future__ import annotations

import gc
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from vtc import results
from vtc.errors import UserError
from vtc.job import Job
from vtc.report import figures, page, paper, split, tables
from vtc.report.collection import collect
from vtc.report.latex import latex
from vtc.terminal import console as terminal
from vtc.terminal import in_parts, table

if TYPE_CHECKING:
    from rich.console import Console

    from vtc.report.runs import Run

SPLIT = (
    "VTC-Bench's split (arXiv 2510.07143): hard samples are those that the uncompressed model gets right and "
    "downsampling to as many tokens gets wrong, easy ones those that both get right; means over the samples "
    "of all tasks."
)
PAIRS = (
    "The interval is that of the difference. The verdict is Holm's, of all pairs at a number of tokens: *can't tell "
    "apart* says that these samples don't show a difference, not that there is none; *smallest* is the difference that "
    "so many samples would show, before the correction, in 80 % of cases."
)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Rows, cells and a figure's parts are millions of small objects that live to the end of a report: looking through
    them for cycles each time that some hundreds were made would take a quarter of its time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_seldom_collected()
def report(job: Job) -> Path:
    """Finds results, prints the comparison and writes the report; returns its folder. `python -m vtc action=report`.

    Args:
        job: `job.report` says what is read (None: `job.output_dir`), where it is written, and under which title.

    Raises:
        UserError: an input that isn't there, nothing to report, or a folder that can't be made.
    """
    import pandas as pd
    from rich.console import Console
    from rich.progress import Progress

    paper.check(job.report.reference)
    inputs = [job.output_dir] if job.report.inputs is None else job.report.inputs
    output, title = Path(job.report.output or job.output_dir / "report").expanduser(), job.report.title
    bar = Progress(console=Console(stderr=True), transient=True)
    with bar:
        settings, notes = collect(
            [Path(folder).expanduser() for folder in inputs], partial(bar.track, description="reading")
        )
    if output.exists() and not output.is_dir():
        raise UserError(f"report.output={output}: is a file, a folder is needed")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output):
            pass  # a folder that takes no file would be noticed at the end only
    except OSError as error:
        raise UserError(f"report.output={output}: can't be written ({error.strerror})") from error
    console = terminal()
    pairs = sum(len(p) for setting in settings for p in tables.same_budget(setting).values())
    runs = sum(len(setting.runs) for setting in settings)
    count_of = f"{runs} runs in {len(settings)} table{'s' if len(settings) > 1 else ''}"
    console.print(f"{count_of}, {pairs} pairs to compare", style="dim")
    sections, text = [], [f"# {title}", ""] + [f"{note}\n" for note in notes]
    names: set[str] = set()
    with bar:
        task = bar.add_task("comparing", total=pairs)
        for setting in settings:
            names.add(name := slug(setting.name, names))
            differences = tables.differences(setting, lambda: bar.advance(task))
            sections.append(page.Section(setting, [], differences, slug=name))
        largest = sorted(sections, key=lambda section: -len(section.setting.runs))[: figures.LARGEST]
        suffixes = [f".{kind}" for kind in job.report.figures]
        for section in bar.track(largest if suffixes else [], description="drawing"):
            section.plots = figures.draw(section.setting, section.differences, section.slug, output, suffixes)
    for section in sections:
        text += section_markdown(section)
    for section in sorted(largest, key=lambda section: settings.index(section.setting)):
        console.print(tables.console(section.setting, console.width))
        console.print()
    if more := len(sections) - len(largest):
        notes.append(
            f"{more} smaller table{'s' if more > 1 else ''} without figures: in index.html, table.md, table.csv"
        )
    for note in notes + [note for s in settings for note in s.notes]:
        console.print(f"note: {note}", style="dim", soft_wrap=True, markup=False)

    if job.report.reference:
        text += beside(job.report.reference, [run for s in settings for run in s.runs], console)
    results.write_text(output / "table.csv", pd.concat([tables.frame(s) for s in settings]).to_csv(index=False))
    results.write_text(output / "table.md", "\n".join(text))
    papers = [latex(f"{s.name}. Scores with 95 % confidence intervals.", *tables.cells(s)) for s in settings]
    results.write_text(output / "table.tex", "\n".join(["% needs booktabs and graphicx", *papers]))
    results.write_text(output / "index.html", page.render(sections, notes, title, job.report.samples))
    drawn = sum(len(section.plots) for section in sections)
    kinds = f", {drawn} figures ({', '.join(job.report.figures)})" if drawn else ""
    said = f"{runs} runs → {output / 'index.html'}, table.csv, table.md, table.tex{kinds}"
    console.print(said, soft_wrap=True, markup=False)
    return output


def beside(reference: str, runs: Sequence[Run], console: Console) -> list[str]:
    """Prints a table of the papers with ours beside it, or as it stands where there is nothing of ours; as Markdown."""
    header, rows = paper.side_by_side(reference, runs)
    mine = [row for row in rows if row[-1]]
    where = f"{paper.title(reference)} (benchmarks/paper)"
    if not mine:
        backbones = ", ".join(dict.fromkeys(n.backbone for n in paper.of(reference) if n.backbone and n.share))
        say = f"none of the runs here is of its backbone ({backbones}), methods, tokens and benchmarks: as printed"
        text = [f"## {where}", "", f"{say[:1].upper()}{say[1:]}.", ""]
        console.print(where, style="bold", soft_wrap=True, markup=False)
        for block, columns, printed in paper.printed_table(reference):
            text += [f"### {block}", ""] * bool(block) + [tables.markdown(columns, printed), ""]
            for at in in_parts(columns, printed, console.width):
                part = [[row[i] for i in at] for row in printed]
                console.print(table(block, [columns[i] for i in at], part, console.width))
                console.print()
        console.print(say, style="dim", soft_wrap=True, markup=False)
        return text
    note = f"{len(mine)} of {len(rows)} printed numbers; ± is half the 95 % interval over samples"
    console.print(
        table(where, header, mine, console.width, least=("unit", "run"), left=("column", "run"), caption=note)
    )
    return [f"## {where}", "", f"{note}.", "", tables.markdown(header, rows), ""]


def section_markdown(section: page.Section) -> list[str]:
    """One setting as Markdown: table, notes, plots, pairs."""
    setting = section.setting
    lines = [f"## {setting.name}", "", setting.about, "", "Scores with 95 % confidence intervals.", ""]
    lines += [tables.markdown(*tables.cells(setting)), ""]
    lines += [f"{note}\n" for note in setting.notes]
    lines += [f"![{p.stem}]({p.name})\n" for p in section.plots]
    if parts := split.splits(setting):
        cells = tables.markdown(*tables.split_cells(parts))
        lines += ["### Samples that take compression to answer", "", SPLIT, "", cells, ""]
    if section.differences:
        pairs = tables.markdown(*tables.difference_cells(section.differences))
        lines += ["### Methods at the same number of tokens", "", PAIRS, "", pairs, ""]
    return lines


def slug(name: str, taken: Collection[str] = ()) -> str:
    """A name as a file's, another than those `taken`: `pocket on pocket` → `pocket-on-pocket`."""
    start = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80] or "table"
    return next(slug for n in count(1) if (slug := start if n == 1 else f"{start}-{n}") not in taken)
