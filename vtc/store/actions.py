"""What `action=index`, `search` and `ask` do, and what they print."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import terminal
from vtc.errors import UserError
from vtc.folders import check_writable
from vtc.settings.store import JSON
from vtc.store.sheet import contact_sheet
from vtc.store.store import Indexed, Store, StoredAnswer, plain
from vtc.store.table import Hit

if TYPE_CHECKING:
    from vtc.job import Job
    from vtc.settings.store import StoreSettings

UNCOMPRESSED = ("method=none",)  # what a new store is made with where nothing is said
USUAL = 32  # images at a time, where batch_size=auto leaves it open
LISTED = 20  # broken files that are printed; format=json has all


def index(job: Job) -> Indexed:
    """Fills a store with the pictures of a folder."""
    from rich import progress

    settings, console = _settings(job), terminal.console()
    precision = settings.precision if any(word.startswith("precision=") for word in _typed(job)) else None
    rows = USUAL if isinstance(job.batch_size, str) else job.batch_size
    store = Store.open(settings.store, _typed(job), precision, rows, UNCOMPRESSED)
    columns = (
        progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn(),
        progress.MofNCompleteColumn(), progress.TimeElapsedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=terminal.console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"indexing {settings.images}", total=None)
        indexed = store.add(str(settings.images), lambda done, of: bar.update(task, completed=done, total=of))
    if settings.format == JSON:
        _print_json(asdict(indexed) | {"store": settings.store, "images": len(store)})
        return indexed
    counts = ", ".join(f"{getattr(indexed, key)} {key}" for key in ("new", "changed", "unchanged", "returned", "gone"))
    console.print(f"{counts}, {len(indexed.broken)} broken; {len(store)} images in {settings.store}", soft_wrap=True)
    for broken in indexed.broken[:LISTED]:
        console.print(f"  {_near(broken.path)}: {broken.reason}", soft_wrap=True, markup=False)
    if len(indexed.broken) > LISTED:
        console.print(f"  and {len(indexed.broken) - LISTED} more; format=json lists all")
    return indexed


def search(job: Job) -> list[Hit]:
    """Prints the images of a store that are nearest to a text or a picture."""
    settings = _settings(job)
    store = Store.open(settings.store, _typed(job))
    query = settings.query if settings.query is not None else Path(str(settings.image)).expanduser()
    hits = store.search(query, settings.top)
    _show(settings, f"{settings.query or settings.image}", hits)
    return hits


def ask(job: Job) -> list[StoredAnswer]:
    """Prints answers about images of a store."""
    settings = _settings(job)
    store = Store.open(settings.store, _typed(job))
    answers = store.ask(str(settings.question), settings.image, settings.query, settings.top, settings.new_tokens)
    _show(settings, str(settings.question), answers)
    return answers


def _settings(job: Job) -> StoreSettings:
    assert job.store is not None
    if job.store.html:
        target = Path(job.store.html).expanduser().absolute()
        if target.is_dir():
            raise UserError(f"html={job.store.html}: a folder; the name of a file is needed")
        check_writable(target.parent, "give html=<a file in another folder>")
    return job.store


def _typed(job: Job) -> Sequence[str]:
    return job.overrides or ()


def _show(settings: StoreSettings, title: str, items: Sequence[Hit | StoredAnswer]) -> None:
    if settings.html:
        file = Path(settings.html).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contact_sheet(title, settings.store, items), encoding="utf-8")
    if settings.format == JSON:
        _print_json([plain(item) for item in items])
        return
    from rich.table import Table as Printed

    console, answers = terminal.console(), isinstance(items[0], StoredAnswer) if items else False
    printed = Printed(box=None, pad_edge=False)
    for name in ("score", "image", "size", *(("answer",) if answers else ())):
        printed.add_column(name, justify="right" if name in ("score", "size") else "left", overflow="fold")
    for item in items:
        hit = item.hit if isinstance(item, StoredAnswer) else item
        score = "" if hit.score is None else f"{hit.score:.3f}"
        name = _near(hit.path) + (" (gone)" if hit.gone else "")
        answer = [item.answer] if isinstance(item, StoredAnswer) else []
        printed.add_row(*map(_escaped, (score, name, f"{hit.width}×{hit.height}", *answer)))
    console.print(printed)
    if settings.html:
        console.print(f"contact sheet: {settings.html}", soft_wrap=True, markup=False)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _near(path: str) -> str:
    """A path as it is seen from here, where it is below."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=1, ensure_ascii=False))
