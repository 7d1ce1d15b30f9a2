"""A contact sheet: thumbnails of a search or of answers, on one page that needs no other file."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from vtc import __version__
from vtc.store.store import StoredAnswer
from vtc.store.table import Hit

TEMPLATE = Path(__file__).with_name("sheet.html.j2")


def contact_sheet(title: str, store: str, items: Sequence[Hit | StoredAnswer]) -> str:
    """The page as text; everything that comes from a store or a user is escaped."""
    from jinja2 import Environment

    cards = []
    for item in items:
        hit = item.hit if isinstance(item, StoredAnswer) else item
        cards.append(
            {
                "thumbnail": base64.b64encode(hit.thumbnail).decode(),
                "name": os.path.basename(hit.path),
                "path": hit.path,
                "score": None if hit.score is None else f"{hit.score:.3f}",
                "size": f"{hit.width}×{hit.height}",
                "gone": hit.gone,
                "answer": item.answer if isinstance(item, StoredAnswer) else None,
            }
        )
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, store=store, version=__version__, cards=cards)
