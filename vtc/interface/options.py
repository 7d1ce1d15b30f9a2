"""A method's options, declared in the body of its class: `layer: int = option(2, "before this decoder layer")`.

That line is the only one that states the option: its name and kind, its default, what `--help` says of it. A subclass
inherits the options of its bases; one that sets the attribute to a plain value has the option no more.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any

from vtc.allowed import BOOLEAN, Allowed, anything, number, one_of, text, whole
from vtc.declarations import LAYER_SCALE, Declaration, Declared, content, line_of
from vtc.errors import UserError, nearest, unknown
from vtc.identity import EVERYTHING, Decides

if TYPE_CHECKING:
    from vtc.interface.compressor import Compressor
    from vtc.interface.shape import BackboneShape

KINDS = {
    "bool": BOOLEAN,
    "int": Allowed("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": number(),
    "str": text(),
}
SOME = Allowed("1 or more", whole(1).accepts)
PAPER_DEPTH = 32  # decoder layers of the models in the papers (7B)


@dataclass(frozen=True)
class Option(Declared):
    """An option of a method.

    Attributes:
        name: as the user writes it, where the attribute is called something else.
        allowed: what it may hold; None: what the annotation says (bool, int, float, str, each with `| None`).
        resolve: `resolve(value, shape)`, what the attribute holds instead of the user's value; checks it too.
        lowest: of a number of a decoder layer, the first that is allowed; None for anything else.
        reads: of a number of a decoder layer, where the layer is whose attention is read before it: -1 or 0 behind it;
            None: none is.
        decides: what else would come out with another value.
    """

    name: str | None = None
    allowed: Allowed | None = None
    resolve: Callable[[Any, BackboneShape], Any] | None = None
    lowest: int | None = None
    reads: int | None = None
    decides: Decides = EVERYTHING


def option(default: Any, about: str, **fields: Any) -> Any:
    """Declares an option of a method.

    Args:
        default: a literal, immutable; `...`: the user must give a value.
        about: one line for `--help` and the docs.
        fields: the others of `Option`; `name`, `follows` and `file` are literals too.
    """
    return Option(default, about, **fields)


def layer_option(
    default: Any, about: str, *, lowest: int = 0, name: str | None = None, reads: int | None = None
) -> Any:
    """Declares an option that is the number of a decoder layer, as the papers count (`resolve_layer`).

    The attribute holds the layer of this decoder. The class has an option `layer_scale` too. Of a list of numbers the
    attribute holds the list, and the method resolves it (`vtc.methods.pyramiddrop.stages_of`).

    Args:
        lowest: 1 for a method that reads the attention of the layer before.
        reads: -1 for such a method, 0 for one that reads the attention of the layer itself.
    """
    return Option(default, about, name=name, allowed=anything(), lowest=lowest, reads=reads)


_LAYER_SCALE = Option(**vars(LAYER_SCALE), allowed=one_of("auto", "none"))


def options_of(cls: type) -> dict[str, tuple[str, Option]]:
    """The options of a method's class by name, each with the attribute that holds it."""
    options: dict[str, tuple[str, Option]] = {}
    seen = set[str]()
    for base in cls.__mro__:
        for attribute, value in vars(base).items():
            if isinstance(value, Option) and attribute not in seen:
                options[value.name or attribute] = attribute, value
        seen |= vars(base).keys()
    if any(o.lowest is not None for _, o in options.values()):
        options["layer_scale"] = "layer_scale", _LAYER_SCALE
    return options


def declaration(cls: type) -> Declaration:
    """What an imported class says of itself."""
    options = {key: Declared(o.default, o.about, o.follows, o.file) for key, (_, o) in options_of(cls).items()}
    return Declaration(line_of(cls), options)


def check_names(name: str, options: Mapping[str, Any], known: Mapping[str, Declared], where: str = "method") -> None:
    """Refuses options that a method doesn't have, and the absence of those that it needs.

    Raises:
        UserError: with the options that there are and the nearest match.
    """
    for key, value in options.items():
        if key not in known:
            if not known:
                raise UserError(f"{where}.{key}={value}: {name} takes no options")
            allowed = f"allowed: {', '.join(sorted(known))}{nearest(key, known)}"
            raise UserError(f"{where}.{key}={value}: {name} has no such option; {allowed}")
    for key, known_option in known.items():
        if known_option.default is ... and key not in options:
            raise UserError(f"{where}.{key}: {name} needs it")


def bind(method: Compressor, options: Mapping[str, Any]) -> None:
    """Sets the attributes that hold a method's options.

    Raises:
        UserError: a value that an option may not hold.
    """
    table = options_of(type(method))
    scale = options.get("layer_scale", LAYER_SCALE.default)
    for name, (attribute, declared) in table.items():
        key, value = f"method.{name}", options.get(name, declared.default)
        value = content(key, value, declared.file) if declared.file else value
        if declared.resolve is not None:
            value = declared.resolve(value, method.shape)
        elif declared.lowest is None:
            (declared.allowed or _of_annotation(type(method), attribute)).check(key, value)
        elif not isinstance(declared.default, tuple):
            among = readable(method.shape, declared.reads)
            value = resolve_layer(value, method.shape.depth, scale, declared.lowest, key, among)
        setattr(method, attribute, value)


def scaled_layer(k: int, depth: int) -> int:
    """The layer that stands for the papers' layer `k` in a decoder of `depth` layers.

    Layers 0 and 1 have a meaning of their own (before the LLM, after one layer) and stay; all others keep their
    relative depth, but never less than 2: `k if k < 2 else max(2, floor(k * depth / 32 + 0.5))`.
    """
    return k if k < 2 else max(2, floor(k * depth / PAPER_DEPTH + 0.5))


def readable(shape: BackboneShape, reads: int | None) -> list[int] | None:
    """The layers before which a method finds the attention that it reads; None: all of them.

    Args:
        reads: see `Option`.
    """
    if reads is None or shape.recurrent is None:
        return None
    return [layer - reads for layer in shape.attending if layer - reads < shape.depth]


def resolve_layer(
    layer: Any,
    depth: int,
    scale: str = "auto",
    lowest: int = 0,
    key: str = "method.layer",
    among: Sequence[int] | None = None,
) -> int:
    """A user's layer number as an index into a decoder of `depth` layers.

    Args:
        scale: "auto" reads `layer` as the papers' number for 32 layers (`scaled_layer`), "none" takes it literally.
        lowest: the first layer before which the method can act (1 where it needs attention of the layer before).
        among: the layers before which it can act where others have no attention to read (`readable`); None: all. Where
            numbers are scaled, the nearest of them stands for the one that is meant, of two the later one, but for 0
            and 1, which have a meaning of their own.

    Raises:
        UserError: not a whole number, a layer that this decoder doesn't have, or one that isn't `among` them.
    """
    if scale not in ("auto", "none"):
        raise unknown("method.layer_scale", scale, ("auto", "none"))
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise UserError(f"{key}={layer}: allowed: a whole number")
    own = scaled_layer(layer, depth) if scale == "auto" else layer
    if layer < lowest or own >= depth:
        highest = (
            max(k for k in range(PAPER_DEPTH + 1) if scaled_layer(k, depth) < depth) if scale == "auto" else depth - 1
        )
        how = f" (for {PAPER_DEPTH} layers; layer_scale=none takes it literally)" if scale == "auto" else ""
        raise UserError(f"{key}={layer}: this decoder has {depth} layers; allowed: {lowest} to {highest}{how}")
    if among is not None and own not in among:
        allowed = [k for k in among if k >= lowest]
        if scale == "none" or layer < 2 or not allowed:
            listed = ", ".join(map(str, allowed)) or "none"
            raise UserError(
                f"{key}={layer}: before layer {own} there is no attention to read, it is linear; allowed: {listed} "
                "with layer_scale=none"
            )
        own = min(allowed, key=lambda k: (abs(k - own), -k))
    return own


def _of_annotation(cls: type, attribute: str) -> Allowed:
    """What the annotation of an attribute allows; anything, where it is none of `KINDS`."""
    owner = next(base for base in cls.__mro__ if attribute in vars(base))
    annotation = inspect.get_annotations(owner).get(attribute, "")
    words = re.findall(r"\w+", annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))
    kinds = [word for word in words if word != "None"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        return anything()
    return KINDS[kinds[0]].or_null() if "None" in words else KINDS[kinds[0]]
