"""The keys of the actions that keep compressed images: `index`, `search`, `ask`."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.allowed import TEXT, one_of, text, whole
from vtc.errors import UserError
from vtc.identity import NOTHING, setting

ACTIONS = ("index", "search", "ask")  # that have these keys
PRECISIONS = ("float16", "int8")
TABLE, JSON = "table", "json"


@dataclass(frozen=True)
class StoreSettings:
    """What is put into a store of compressed images, or asked of one.

    Attributes:
        store: its folder, or its address on object storage.
        images: the folder of pictures that is indexed.
        precision: in which an image's tokens are kept; int8 with a scale a token.
        query: the text, image: the example picture that is searched for. Of `ask`, the image that is asked about.
        question: that is asked; new_tokens: of an answer at most.
        top: how many images a search gives.
        format: of what is printed; html: a file for a contact sheet; None: none is written.
    """

    store: str = setting("", NOTHING, text("a folder, or the address of one on object storage"))
    images: str | None = setting(None, NOTHING, TEXT)
    precision: str = setting("float16", NOTHING, one_of(*PRECISIONS))
    query: str | None = setting(None, NOTHING, TEXT)
    image: str | None = setting(None, NOTHING, TEXT)
    question: str | None = setting(None, NOTHING, TEXT)
    new_tokens: int = setting(64, NOTHING, whole(1, 4096))
    top: int = setting(10, NOTHING, whole(1, 1000))
    format: str = setting(TABLE, NOTHING, one_of(TABLE, JSON))
    html: str | None = setting(None, NOTHING, TEXT)

    def check(self, action: str) -> None:
        """Raises `UserError` for keys that the action needs and hasn't, or that exclude each other."""
        if action == "index" and not self.images:
            raise UserError("images=null: action=index needs a folder of pictures, images=<folder>")
        if action == "ask" and not self.question:
            raise UserError("question=null: action=ask needs one, question='What is on the table?'")
        if action != "index" and (self.query is None) == (self.image is None):
            what = f"query={self.query}, image={self.image}"
            raise UserError(f"{what}: action={action} takes one of the two: query=<text> or image=<file>")
