"""One self-contained HTML page: tables, plots, notes, and every run's configuration. No network, no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc import __version__
from vtc.report import tables
from vtc.report.runs import Setting, describe


@dataclass
class Section:
    """What the page shows of one setting."""

    setting: Setting
    plots: list[Path]
    differences: list[dict]


TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #8881; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 2rem auto; padding: 0 1.2rem; }
  h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
  .about, .note { color: color-mix(in srgb, currentColor 70%, transparent); }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
  th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
  th:first-child, td:first-child { text-align: left; }
  th { cursor: pointer; position: sticky; top: 0; background: Canvas; }
  tbody tr:hover { background: var(--soft); }
  img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; }
  details { margin: .3rem 0; } pre { overflow-x: auto; background: var(--soft); padding: .8rem; border-radius: 6px; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="about">vtc {{ version }} · {{ count }} runs · scores with 95 % confidence intervals · click a column to sort</p>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
{% for section in sections %}
<h2>{{ section.name }}</h2>
{% if section.pocket %}<p class="note">Pocket is a miniature: a model of a few million parameters on drawn scenes. What it is
meant to show is the order of methods, not the numbers that a real LVLM would have.</p>{% endif %}
<div class="scroll">{{ table(section.header, section.rows) }}</div>
{% for note in section.notes %}<p class="note">{{ note }}</p>{% endfor %}
{% for name, data in section.plots %}<img alt="{{ name }}" src="data:image/png;base64,{{ data }}">{% endfor %}
{% if section.pairs %}
<h3>Methods at the same number of tokens</h3>
<p class="note">Difference of the mean task scores. p: may it be chance? (paired: permutation of the signs of the samples'
differences; unpaired: z-test.) Holm: corrected for the {{ section.pairs|length }} pairs of this table.</p>
<div class="scroll">{{ table(section.pairs_header, section.pairs) }}</div>
{% endif %}
<h3>Runs</h3>
{% for run in section.runs %}
<details><summary>{{ run.name }} · {{ run.id }} · {{ run.created }}</summary>
<p class="note"><code>{{ run.command }}</code></p><pre>{{ run.text }}</pre></details>
{% endfor %}
{% endfor %}
<script>
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, up = head.dataset.up !== "1";
  head.dataset.up = up ? "1" : "0";
  const key = row => { const t = row.cells[at].textContent.replace("<", ""), n = parseFloat(t); return isNaN(n) ? t : n; };
  [...body.rows].sort((a, b) => { const x = key(a), y = key(b);
    return (typeof x === typeof y ? (x > y) - (x < y) : typeof x === "number" ? -1 : 1) * (up ? 1 : -1); })
    .forEach(row => body.append(row));
};
</script>
</body>
</html>
"""

TABLE = """\
{% macro table(header, rows) %}<table><thead><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>{% endmacro %}
"""


def render(sections: Sequence[Section], notes: Sequence[str], title: str) -> str:
    """The page as text; everything that comes from a result file is escaped."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(TABLE + TEMPLATE)
    return template.render(
        title=title,
        version=__version__,
        notes=notes,
        count=sum(len(s.setting.runs) for s in sections),
        sections=[_section(s) for s in sections],
    )


def _section(section: Section) -> dict:
    setting = section.setting
    header, rows = tables.cells(setting)
    pairs_header, pairs = tables.difference_cells(section.differences)
    return {
        "name": setting.name,
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
