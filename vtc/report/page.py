"""One self-contained HTML page: leaderboard, figures, samples, and the run behind every number. No network, no other
file: Plotly and DataTables come out of the Python packages plotly and itables."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vtc import __version__
from vtc.report import samples
from vtc.report.collection import Setting
from vtc.report.view import run_details, setting_view

ASSETS = Path(__file__).with_name("assets")
LIBRARIES = {"datatables": ("itables", "html/dt_bundle.js"), "plotly": ("plotly", "package_data/plotly.min.js")}
SCRIPTS = ("page.js", "figures.js", "samples.js")


@dataclass
class Section:
    """What the page shows of one setting.

    Attributes:
        plots: files of its static figures.
        differences: as `vtc.report.tables.differences` gives them.
        first: samples that are shown before others, by task and id.
        slug: the name of the setting as part of a file's.
    """

    setting: Setting
    plots: list[Path]
    differences: list[dict]
    first: Sequence[samples.Key] = field(default=())
    slug: str = ""


def render(
    sections: Sequence[Section],
    notes: Iterable[str],
    title: str,
    count: int = 0,
    state: Mapping[str, str] | None = None,
) -> str:
    """The page as text. Whatever comes from a result file is data: the page shows it as text and never as markup.

    Args:
        count: of samples that are shown, all tables together.
        state: of the page as it opens, where its address says nothing else.
    """
    # The largest table first: it is what the page opens on.
    order = sorted(sections, key=lambda section: -len(section.setting.runs))
    views = [setting_view(section.setting, section.differences) for section in order]
    shown = [samples.view(s.setting, count // len(order), s.first) for s in order]
    packed = {"data": pack(_json({"settings": views, "state": dict(state or {})}))}
    packed["details"] = pack(_json([[run_details(run) for run in section.setting.runs] for section in order]))
    packed |= {name: _library(name) for name in LIBRARIES}
    if any(shown):
        packed["samples-data"] = pack(_json([view for view in shown if view]))
    return _template().render(
        title=title,
        version=__version__,
        notes=list(notes),
        runs=sum(len(section.setting.runs) for section in order),
        tables=len(order),
        packed=list(packed.items()),
    )


@cache
def _template() -> Any:
    """The page without its content."""
    from jinja2 import Environment

    def asset(name: str) -> str:
        return (ASSETS / name).read_text(encoding="utf-8")

    ours = {
        "style": _safe(asset("page.css")),
        "table_style": _safe(_package("itables", "html/dt_bundle.css")),
        "script": _safe("\n".join(map(asset, SCRIPTS))),
    }
    return Environment(autoescape=True).from_string(asset("page.html.j2"), globals=ours)


def pack(text: str) -> Any:
    """A long text as the page unpacks it: gzip, in base64. The same text gives the same bytes."""
    from markupsafe import Markup

    return Markup(base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode())


def _package(name: str, path: str) -> str:
    """A text file inside a Python package, which isn't imported: itables would import polars, for seconds."""
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], path).read_text(encoding="utf-8")


@cache
def _library(name: str) -> Any:
    """A library for the browser, packed."""
    return pack(_package(*LIBRARIES[name]))


def _safe(text: str) -> Any:
    """Text of our own, or of a library, that is no HTML and ends no element."""
    from markupsafe import Markup

    return Markup(text.replace("</", "<\\/"))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
