"""Which method works on which family of backbones: every registered method is built on the sizes of one backbone of
each registered family, and what it says is written down. The contracts (`vtc.testing`) run those that are built.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from vtc import registry
from vtc.configuration.choices import configured
from vtc.configuration.compose import backbone_settings
from vtc.errors import UserError
from vtc.registry import methods
from vtc.report import tables

if TYPE_CHECKING:
    from vtc.interface import BackboneShape, Compressor

YES, FIXED = "yes", "fixed"
BUDGET = 16  # tokens that the methods are built with, or as near as they offer
SIDES = (336, 384, 448, 512)  # tried as `image_size` where the family's own side isn't one


@dataclass(frozen=True)
class Compatibility:
    """What one method says of one family.

    Attributes:
        answer: YES; FIXED: with `image_size`, which fixes the number of visual tokens; or the reason why not.
        detail: what of the reason is particular to the backbone.
    """

    answer: str
    detail: str = ""

    @property
    def works(self) -> bool:
        return self.answer in (YES, FIXED)


def families() -> dict[str, list[str]]:
    """Checkpoints by family, which is named after the transformers class that they load."""
    members: dict[str, list[str]] = {}
    for name, file in configured("backbone").items():
        family = registry.families.get(yaml.safe_load(file.read_text(encoding="utf-8"))["family"])
        members.setdefault(family.model_class.removesuffix("ForConditionalGeneration"), []).append(name)
    return members


@functools.cache
def shapes(name: str) -> list[tuple[str, BackboneShape]]:
    """(YES, the sizes with images as they come), and, where those have no fixed number of visual tokens, (FIXED, the
    sizes with one)."""
    settings = backbone_settings(name)
    shape_of = registry.families.get(settings.family).shape_of
    free = shape_of(settings)
    if free.visual_tokens is not None:
        return [(YES, free)]
    for side in (free.vision.image_size, *SIDES):
        if side:
            try:
                return [(YES, free), (FIXED, shape_of(dataclasses.replace(settings, image_size=side)))]
            except UserError:
                continue
    return [(YES, free)]


def compatibility(method: str, name: str) -> Compatibility:
    """What `method` says when it is built on the backbone `name`, without weights and on no device."""
    from vtc.methods import make

    answer = Compatibility("there are no sizes to build it on")
    for kind, shape in shapes(name):
        try:
            make(method, _near_budget, shape)
            return Compatibility(kind)
        except UserError as error:
            text = str(error).removeprefix(f"method={method}: ")
            reason, _, detail = text.partition("; ")
            answer = Compatibility(reason.replace(shape.name, "the backbone"), detail.replace(shape.name, "it"))
    return answer


def _near_budget(method: Compressor) -> int:
    """Of the budgets that a method offers, the one nearest to `BUDGET`."""
    offers = method.offers()  # a method that can't do without a fixed number of visual tokens says so
    if method.shape.visual_tokens is None:
        return BUDGET
    return min(offers, key=lambda tokens: abs(tokens - BUDGET), default=BUDGET)


@functools.cache
def table() -> dict[str, dict[str, Compatibility]]:
    """{method: {family: its answer on the family's first backbone}}."""
    first = {family: names[0] for family, names in families().items()}
    return {
        method: {family: compatibility(method, name) for family, name in first.items()} for method in methods.names()
    }


def part() -> str:
    """The table and its notes, in Markdown."""
    rows, columns = table(), families()
    notes: dict[str, dict[str, str]] = {}  # reason → {family: detail}
    for answers in rows.values():
        for family, one in answers.items():
            if not one.works:
                notes.setdefault(one.answer, {}).setdefault(family, one.detail)
    letters = {reason: chr(ord("a") + n) for n, reason in enumerate(notes)}
    cells = [
        [f"`{method}`", *(one.answer if one.works else f"no ({letters[one.answer]})" for one in answers.values())]
        for method, answers in rows.items()
    ]
    lines = [tables.markdown(["method", *columns], cells), ""]
    lines.append(
        "yes: with images as they come; fixed: with `backbone.image_size`, which gives every image the same number of "
        "visual tokens; no, because"
    )
    lines.append("")
    for reason, where in notes.items():
        details = [f"{family}: {detail}" for family, detail in where.items() if detail]
        lines.append(f"- {letters[reason]}: {reason}" + (f" ({'; '.join(details)})" if details else ""))
    lines += ["", "Made of each family's first backbone: " + ", ".join(f"`{names[0]}`" for names in columns.values())]
    return "\n".join(lines) + ".\n"
