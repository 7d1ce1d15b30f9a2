"""What one method does with a picture: numbers for the figures, from the engine alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from vtc.api import Answer, Model
from vtc.configuration import parse
from vtc.engine import compressing
from vtc.engine.attention import AttentionRows, made
from vtc.engine.tower_watch import stand_in
from vtc.evaluation.kept import images_of
from vtc.interface import TEXT, TokenSequence
from vtc.settings.visualize import SIDE_BY_SIDE

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vtc.backbones.base import Backbone
    from vtc.engine import Report
    from vtc.job import Job

MADE, ANSWER = "made", "answer"
OWN_KEYS = {"action", "image", "question", "method", "tokens", "ratio", "compression", "flops", "output_dir"}


@dataclass(frozen=True)
class LayerAttention:
    """Attention in one layer, mean over heads.

    Attributes:
        layer: of the decoder; own: whether in a pass that the method runs itself (Fwd2Bot's first one).
        made: [N] what the tokens that the method made pay to each of the picture's N visual tokens, mean over them; to
            one that merged, an even part of what the whole gets; NaN where it is gone. None: there are none, or nothing
            that they could see.
        answer: the same of the tokens that predict the answer, one by one.
        to_made: [M] what those pay to each token that the method made.
        visual, compressed, text: what those pay to all visual tokens, to all that the method made, and to all text.
        tokens: how many visual tokens and made ones there are; words: how many text tokens.
    """

    layer: int
    own: bool
    made: Tensor | None = None
    answer: Tensor | None = None
    to_made: Tensor | None = None
    visual: float = float("nan")
    compressed: float = float("nan")
    text: float = float("nan")
    tokens: int = 0
    words: int = 0


@dataclass(frozen=True)
class Panel:
    """One method at one budget on a picture.

    Attributes:
        label: `fastv tokens=16`; method: its name; tokens: its budget, None for all.
        answer: what it says to the question, and at what cost.
        caption: what it says when asked for a description; None: it wasn't.
        holders, made, regions: see `vtc.evaluation.kept.images_of`.
        attention: layer by layer, own passes first.
        left: [M, D] the tokens that are left, and before: [N, D] the visual tokens before, of `layer`.
    """

    label: str
    method: str
    tokens: int | None
    answer: Answer
    caption: str | None
    holders: list[int]
    made: int
    regions: list[dict[str, Any]]
    layer: int
    left: Tensor
    before: Tensor
    attention: list[LayerAttention] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether there are tokens of the picture's own left, as they were or merged."""
        return max(self.holders, default=-1) >= 0


def jobs(job: Job, methods: Sequence[str] | None, budgets: Sequence[str] | None) -> list[Job]:
    """The job of each panel: the uncompressed backbone's first, then each method at each budget, each checked.

    Raises:
        UserError: a method, a budget or weights that there are not.
    """
    out = []
    for name in dict.fromkeys(["none", *(methods or (job.method.name,))]):
        # The uncompressed backbone has no budget.
        own = [None] if name == "none" or not budgets else budgets
        out += [job_of(job, name, budget) for budget in own]
    return out


def job_of(job: Job, method: str, budget: str | None) -> Job:
    """The job of one panel, checked.

    Raises:
        UserError: as `jobs`.
    """
    words = [o for o in job.overrides or () if not _is_own(o)]
    if method == "none":  # it has no options of a method, and weights of its own
        words = [w for w in words if _key(w).split(".")[0] not in ("method", "checkpoint")]
    one = parse([*words, f"method={method}", *([budget] if budget else [])])
    one.check()
    return one


def _key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def _is_own(override: str) -> bool:
    key = _key(override)
    return key in OWN_KEYS or key.split(".")[0] in (*SIDE_BY_SIDE, "hydra")


class Models:
    """The model of each job, one at a time; those of methods without weights share one backbone."""

    def __init__(self) -> None:
        self._plain: Backbone | None = None

    def of(self, job: Job) -> Model:
        """Raises `UserError` as `Job.load` does."""
        if job.weights is not None:  # they may replace the backbone's own, or put adapters into it
            return Model(job, *job.load())
        if self._plain is None:
            self._plain, method = job.load()
        else:
            method = job.compressor.build().to(self._plain.device, self._plain.dtype).eval()
            method.attach(self._plain)
        return Model(job, self._plain, method)


def panel(
    model: Model,
    picture: Image,
    question: str,
    new_tokens: int,
    caption: str | None = None,
    answer: Answer | None = None,
) -> Panel:
    """What a model does with a picture.

    Args:
        caption: the request for a description, where one is wanted.
        answer: to the question, where it is known; None: it is asked.
    """
    answer = model.generate(picture, question, new_tokens) if answer is None else answer
    told = None if caption is None else answer if caption == question else model.generate(picture, caption, new_tokens)
    report, before, left, rows = _pass(model, picture, question, answer.ids)
    images = images_of(model.backbone, report, 0, [picture])
    first: dict[str, Any] = images[0] if images else {"holders": [], "made": 0, "regions": []}
    return Panel(
        label=model.job.label,
        method=model.job.method.name,
        tokens=model.method.tokens if model.method.acts or model.job.method.name != "none" else None,
        answer=answer,
        caption=None if told is None else told.text,
        holders=first["holders"],
        made=first["made"],
        regions=first["regions"],
        layer=max(model.method.layers(), default=0),
        left=left,
        before=before,
        attention=list(_by_layer(rows)),
    )


def _pass(
    model: Model, picture: Image, question: str, ids: Sequence[int]
) -> tuple[Report, Tensor, Tensor, list[AttentionRows]]:
    """One pass over prompt and answer, in which the method chooses by the prompt alone: the report, the visual tokens
    before its last layer and those that it leaves there, and the attention of what it made and of the answer."""
    backbone, method = model.backbone, model.method
    inputs = dict(backbone.inputs([question], [[picture]]))
    end = inputs["input_ids"].shape[1] - 1
    # A model may say the token in whose place images stand; there is none to put there.
    ids = [*takewhile(lambda token: token not in backbone.placeholders, ids)]
    more = torch.tensor([ids], dtype=torch.long, device=inputs["input_ids"].device)
    behind = {"input_ids": more, "attention_mask": torch.ones_like(more), "mm_token_type_ids": torch.zeros_like(more)}
    behind["token_type_ids"] = behind["mm_token_type_ids"]  # as Gemma 3 calls them
    for name in behind.keys() & inputs.keys():
        inputs[name] = torch.cat([inputs[name], behind[name].to(inputs[name])], 1)

    def answering(tokens: TokenSequence) -> Tensor:
        return (tokens.role == TEXT) & (tokens.origin >= end) & (tokens.origin < end + max(1, len(ids)))

    states: list[tuple[TokenSequence, TokenSequence]] = []
    reduce, last = method.reduce, max(method.layers(), default=0)

    def noting(tokens: Any, layer: int, context: Any) -> Any:
        out = reduce(tokens, layer, context)
        if layer == last:
            states.append((tokens, out))
        return out

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stand_in(stack, method, "reduce", noting)
        engine = stack.enter_context(compressing(backbone, method))
        stack.enter_context(engine.prompt_ends(torch.tensor([end], device=more.device)))
        rows = stack.enter_context(engine.watching_attention({MADE: made, ANSWER: answering}))
        backbone.model(**inputs, position_ids=backbone.positions(inputs), use_cache=False)
        report = engine.report
    assert report is not None
    if states:
        before, left = (_hidden(tokens, own) for tokens, own in zip(states[0], (True, False), strict=True))
    else:
        features = backbone.image_features(dict(backbone.inputs([question], [[picture]]))) or []
        before = left = torch.cat([*features]).detach().float().cpu()
    return report, before, left, rows


def _hidden(tokens: TokenSequence, visual: bool) -> Tensor:
    """[N, D] states of the visual tokens alone, or of all that isn't text."""
    chosen = tokens.visual[0] if visual else (tokens.role[0] != TEXT) & tokens.mask[0]
    return tokens.hidden[0][chosen.to(tokens.hidden.device)].detach().float().cpu()


def _by_layer(rows: Sequence[AttentionRows]) -> Iterator[LayerAttention]:
    """The rows of a pass over one picture, those of one layer and pass together."""
    keys = dict.fromkeys((row.own, row.layer) for row in rows)
    for own, layer in sorted(keys, key=lambda key: (not key[0], key[1])):
        by_name = {row.name: row for row in rows if (row.own, row.layer) == (own, layer)}
        values: dict[str, Any] = {}
        if MADE in by_name and (paid := _to_picture(by_name[MADE])) is not None:
            values["made"] = paid
        if ANSWER in by_name:
            row = by_name[ANSWER]
            places = torch.cat([columns[columns >= 0] for _, columns in row.images])
            weights = row.weights[0][row.real[0]].mean(0)
            patch = torch.zeros_like(weights, dtype=torch.bool)
            patch[places] = True
            compressed = (row.role[0] != TEXT) & ~patch
            values |= {
                "answer": _to_picture(row),
                "to_made": weights[compressed] if compressed.any() else None,
                "visual": float(weights[patch].sum()),
                "compressed": float(weights[compressed].sum()),
                "text": float(weights[~patch & ~compressed].sum()),
                "tokens": int((patch | compressed).sum()),
                "words": int((~patch & ~compressed).sum()),
            }
        yield LayerAttention(layer, own, **values)


def _to_picture(row: AttentionRows) -> Tensor | None:
    """[N]: what the queries pay to the tokens of the (first) picture, mean over them; None where all are gone.

    What a merged token gets is shared out evenly among its members, so that the sum is the picture's share.
    """
    columns = row.images[0][1]
    members = (columns[:, None] == columns).sum(1)
    paid = row.to_image(0).mean(0) / members
    return paid if bool(paid.isfinite().any()) else None
