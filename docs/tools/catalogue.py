"""Parts of pages that list what there is: the suites with their tasks, the methods with their options."""

from __future__ import annotations

from pathlib import Path


def suites_part(root: Path) -> str:
    """The suites with their tasks, and each task with what its score is."""
    from vtc.configuration.choices import choices
    from vtc.evaluation import suite

    suites, lines = suite.suites(), choices("benchmark")
    cells = [
        [f"`{name}`", lines[name], ", ".join(f"`{t}`" for t in content["about"])] for name, content in suites.items()
    ]
    tasks = {task: suite.about({}, task) for content in suites.values() for task in content["about"]}
    rows = []
    for task, about in tasks.items():
        needs = [need for need in about.requires if need != "folder"]
        remark = "; ".join(filter(None, [f"needs {' and '.join(needs)}" if needs else "", about.note]))
        rows.append(
            [f"`{task}`", about.paper, f"`{about.metric}`", f"{about.scale:g}", str(about.data), about.licence, remark]
        )
    return "\n\n".join([
        text_table(["`benchmark=`", "", "tasks"], cells),
        text_table(["task", "in the papers", "headline", "÷", "data", "licence of the data", ""], rows),
    ]) + "\n"  # fmt: skip


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table of words: every column aligns left."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def options_part(root: Path) -> str:
    """Every method with its line, and its options with their defaults."""
    from vtc.configuration.choices import choices
    from vtc.configuration.methods import options_in_words
    from vtc.registry import methods

    rows = []
    for name, line in choices("method").items():
        options = options_in_words(name) if name in methods.names() else {}
        cells = "<br>".join(f"`{key}` {about}" for key, about in options.items())
        rows.append([f"`{name}`", line.replace("|", "\\|"), cells])
    return text_table(["`method=`", "", "options, `method.<option>=`, with their defaults"], rows) + "\n"
