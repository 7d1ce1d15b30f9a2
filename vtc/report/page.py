"""One self-contained HTML page: tables, plots, notes, and every run's configuration. No network, no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc import __version__
from vtc.report import tables
from vtc.report.collection import Setting, describe

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass
class Section:
    """What the page shows of one setting."""

    setting: Setting
    plots: list[Path]
    differences: list[dict]


def render(sections: Sequence[Section], notes: Sequence[str], title: str) -> str:
    """The page as text; everything that comes from a result file is escaped."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    content = [_section(section) for section in sections]
    return template.render(title=title, version=__version__, notes=notes, sections=content)


def _section(section: Section) -> dict:
    setting = section.setting
    header, rows = tables.cells(setting)
    pairs_header, pairs = tables.difference_cells(section.differences)
    return {
        "name": setting.name,
        "about": setting.about,
        "pocket": setting.runs[0].result["config"].get("backbone", {}).get("name") == "pocket",
        "header": header,
        "rows": rows,
        "notes": setting.notes,
        "plots": [(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in section.plots],
        "pairs_header": pairs_header,
        "pairs": pairs,
        "runs": [
            {
                "name": describe(run),
                "id": run.id,
                "created": run.created,
                "command": run.result["run"].get("command", ""),
                "text": json.dumps({k: run.result[k] for k in ("run", "config", "budget", "efficiency")}, indent=1),
            }
            for run in setting.runs
        ],
    }
