"""Settings of `action=visualize` and `action=demo`: one picture under several methods."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.allowed import TEXT, Allowed, one_of, several, whole
from vtc.identity import NOTHING, setting
from vtc.settings.run import FOLDER, NAMES, fill, several_of

FIGURES = ("kept", "attention", "captions", "similarity", "layers")  # in the order in which they are drawn
FORMATS = ("png", "svg", "pdf")
SIDE_BY_SIDE = ("visualize", "demo")  # actions for which `method=[a,b] tokens=[64,16]` is each at each
MOST = 24  # methods times budgets in one figure


def some_of(*names: str) -> Allowed:
    return Allowed(
        f"some of {', '.join(names)}",
        lambda v: one_of(*names).accepts(v) or several("", one_of(*names), least=1).accepts(v),
    )


@dataclass(frozen=True)
class VisualizeSettings:
    """What is drawn of one picture under several methods.

    Attributes:
        image: the picture's file; question: about it; None: the request for a description.
        methods, budgets: what `method=[a,b] tokens=[64,16]` comes to: names, and words such as `tokens=64`; each method
            is drawn at each budget. None: the one method, at its own default.
        figures: parts of the figure: kept tokens, attention over the picture, captions by number of tokens, similarity
            of tokens, attention to visual tokens by layer.
        layers: of the decoder, whose attention is drawn over the picture; None: up to four, evenly spaced.
        formats: of the figure.
        new_tokens: of an answer or a caption, at most.
        output: the folder that it is written to; None: `output_dir/visualize`.
    """

    image: str | None = setting(None, NOTHING, TEXT)
    question: str | None = setting(None, NOTHING, TEXT)
    methods: tuple[str, ...] | None = setting(None, NOTHING, Allowed(NAMES.words, NAMES.accepts, optional=True))
    budgets: tuple[str, ...] | None = setting(None, NOTHING, Allowed(NAMES.words, NAMES.accepts, optional=True))
    figures: tuple[str, ...] = setting(("kept", "attention"), NOTHING, some_of(*FIGURES))
    layers: tuple[int, ...] | None = setting(
        None, NOTHING, several("layers of the decoder, such as [0,2]", whole(0), least=1).or_null()
    )
    formats: tuple[str, ...] = setting(("png",), NOTHING, some_of(*FORMATS))
    new_tokens: int = setting(64, NOTHING, whole(1, 4096))
    output: str | None = setting(None, NOTHING, FOLDER.or_null())

    def __post_init__(self) -> None:
        for key in ("methods", "budgets", "figures", "formats", "layers"):
            fill(self, **{key: several_of(getattr(self, key))})


@dataclass(frozen=True)
class DemoSettings:
    """The page on which a picture is dropped in.

    Attributes:
        methods, budgets: as of `VisualizeSettings`: the two methods that it begins with, and their number of tokens.
        port: of this machine, on which the page is served; None: the first free one from 7860 on.
        browser: whether it is opened at once.
    """

    methods: tuple[str, ...] | None = setting(None, NOTHING, Allowed(NAMES.words, NAMES.accepts, optional=True))
    budgets: tuple[str, ...] | None = setting(None, NOTHING, Allowed(NAMES.words, NAMES.accepts, optional=True))
    port: int | None = setting(None, NOTHING, whole(1024, 65535).or_null())
    browser: bool = setting(False, NOTHING, one_of(True, False))

    def __post_init__(self) -> None:
        fill(self, methods=several_of(self.methods), budgets=several_of(self.budgets))
