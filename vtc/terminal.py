"""Tables on the screen: as wide as it is, what matters least left out first, and said so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED = 150  # columns where there is no terminal: a file has no width, and its lines shouldn't be folded
GAP = 2  # columns between two cells
LINE = 30  # columns in which a sentence can be read


def console(stderr: bool = False) -> Console:
    """Where tables go: as wide as the terminal, or as COLUMNS says, else `PIPED`."""
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if known else PIPED, highlight=False, stderr=stderr)


def fitting(
    header: Sequence[str], rows: Sequence[Sequence[str]], least: Sequence[str], width: int, prose: Sequence[str] = ()
) -> list[int]:
    """The columns that fit `width`, by their place in `header`.

    Args:
        least: names of columns that may go, in the order in which they do. The others always stay.
        prose: those of whole sentences, which need no more than `LINE` columns.
    """
    shown = [*range(len(header))]
    sizes = [max(len(line) for row in (header, *rows) for line in (row[at].splitlines() or [""])) for at in shown]
    sizes = [min(size, LINE) if name in prose else size for name, size in zip(header, sizes, strict=True)]
    for name in least:
        if sum(sizes[at] for at in shown) + GAP * (len(shown) - 1) <= width:
            break
        shown = [at for at in shown if header[at] != name]
    return shown


def in_parts(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns of a table that must be whole, as several tables of at most `width`, each with the first column."""
    sizes = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    parts: list[list[int]] = []
    for at in range(1, len(header)):
        if not parts or sum(sizes[i] + GAP for i in parts[-1]) + sizes[at] > width:
            parts.append([0])
        parts[-1].append(at)
    return parts


def table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    least: Sequence[str] = (),
    left: Sequence[str] = (),
    prose: Sequence[str] = (),
    caption: str = "",
    elsewhere: str = "",
    style: Callable[[int], str | None] = lambda _: None,
) -> Table:
    """A table no wider than `width`.

    Args:
        least, prose: see `fitting`; left: columns that align left, as the first one and prose always do.
        caption: under the table; columns that were left out are named after it, and with `elsewhere`, where they are.
        style: of the row at an index.
    """
    from rich.table import Table
    from rich.text import Text

    shown = fitting(header, rows, least, width, prose)
    absent = [name for at, name in enumerate(header) if at not in shown]
    if absent:
        where = f" ({elsewhere})" if elsewhere else ""
        caption = f"{caption}; " * bool(caption) + f"left out for want of width: {', '.join(absent)}{where}"
    out = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold", box=None,
                pad_edge=False, padding=(0, GAP, 0, 0), caption=Text(caption) if caption else None,
                caption_justify="left", caption_style="dim")  # fmt: skip
    for at in shown:
        first, folds = at == shown[0], header[at] in prose
        out.add_column(
            Text(header[at]),
            justify="left" if first or folds or header[at] in left else "right",
            no_wrap=not (folds or first and not prose),
            overflow="fold",
        )
    for index, row in enumerate(rows):
        out.add_row(*(Text(row[at]) for at in shown), style=style(index))
    return out
