"""The figure: a section for each thing that is looked at, the methods side by side in each."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from vtc import drawing
from vtc.report.plots import DASHES, PALETTE, PRINT, UNDATED
from vtc.visualize.panels import LayerAttention, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from PIL.Image import Image

WIDE = 12.0  # inches
ACROSS = 4  # pictures in a row
SIDE = 480  # pixels of a drawn picture's longer side
MAPS = 4  # layers whose attention is drawn over the picture, where none are named
HEAT = "magma"
NO_PLACES = "its tokens stand in no known places of the picture"

ABOUT = {
    "kept": "What is left. Clear: a token that was kept. Faded: dropped. One colour inside one line: merged into one "
    "token. Bright: what the tokens that a method made of the whole picture attend to.",
    "attention": "Attention over the picture, mean over heads; of what a method made (registers, summary tokens), else "
    "of the tokens that predict the answer. Right: what the answer pays to each token that the method made.",
    "captions": "Descriptions by number of tokens",
    "similarity": "Cosine similarity of all pairs of tokens. Grey: the picture's tokens before the method. Colour: "
    "what it leaves, there.",
    "layers": "Attention of the tokens that predict the answer, by layer: to all visual tokens and those that a method "
    "made; and to one of them beside one token of text (dotted).",
}


def draw(
    panels: Sequence[Panel], picture: Image, question: str, figures: Sequence[str], layers: Sequence[int] | None,
    files: Sequence[Path],
) -> None:  # fmt: skip
    """Draws the sections `figures` of the panels and writes each of the `files`, in the format that its name says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = enlarged(picture)
    sections: dict[str, tuple[Callable[..., None], float, tuple[Any, ...]]] = {
        "kept": (_kept, _rows(len(panels)) * _height(shown, ACROSS, 0.5), (shown,)),
        "attention": (_attention, len(panels) * _height(shown, MAPS + 2, 0.3), (shown, layers)),
        "captions": (_captions, _caption_height(panels), ()),
        "similarity": (_similarity, 1.9 * _rows(len(panels)), ()),
        "layers": (_layers, 3.0, ()),
    }
    chosen = [name for name in sections if name in figures]
    heights = [sections[name][1] + 0.55 for name in chosen]
    style: dict[Any, Any] = {"font.size": 9, "text.parse_math": False, **PRINT}
    style |= {f"axes.spines.{side}": False for side in ("top", "right")}
    with plt.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # an answer may be in any script
        title = textwrap.shorten(question, 110, placeholder=" …")
        figure = plt.figure(figsize=(WIDE, sum(heights) + 0.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        parts = figure.subfigures(len(chosen), 1, height_ratios=heights, squeeze=False)[:, 0]
        for name, part in zip(chosen, parts, strict=True):
            function, _, more = sections[name]
            function(part, panels, *more)
        for file in files:
            figure.savefig(file, dpi=150, metadata=UNDATED.get(file.suffix))
        plt.close(figure)


def enlarged(picture: Image, side: int = SIDE) -> Image:
    """The picture with a longer side of `side` pixels, so that squares of its tokens can be told apart; a small one by
    whole pixels."""
    from PIL import Image as pictures

    scale = side / max(picture.size)
    how = pictures.Resampling.NEAREST if scale >= 2 else pictures.Resampling.LANCZOS
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), how)


def _rows(count: int) -> int:
    return math.ceil(count / ACROSS)


def _height(picture: Image, across: int, words: float) -> float:
    """Inches of a row of `across` pictures with so much text above."""
    return min(WIDE / across * picture.height / picture.width, 4.5) + words


def _caption_height(panels: Sequence[Panel]) -> float:
    return 0.35 + sum(0.17 * len(_wrapped(p.caption or "", 120)) + 0.12 for p in panels)


def _wrapped(words: str, width: int, most: int = 6) -> list[str]:
    """Lines of at most `width` characters; of a longer text the first ones."""
    lines = textwrap.wrap(words, width) or ["–"]
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} …"]


def _titled(part: SubFigure, words: str) -> None:
    part.suptitle(textwrap.fill(words, 150), x=0.01, ha="left", fontsize=9.5, color="0.35")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def _counted(panel: Panel) -> str:
    """`fastv tokens=16: 16 of 144 tokens`."""
    answer = panel.answer
    if panel.method == "none":
        return f"uncompressed: {answer.tokens_in} tokens"
    return f"{panel.label}: {answer.tokens_out} of {answer.tokens_in} tokens"


# ---------------------------------------------------------------------- sections
def _kept(part: SubFigure, panels: Sequence[Panel], picture: Image) -> None:
    """What is left of the picture's tokens; where a method makes tokens of the whole, what these attend to."""
    _titled(part, ABOUT["kept"])
    grid = part.subplots(_rows(len(panels)), min(ACROSS, len(panels)), squeeze=False).flatten()
    for axes in grid:
        _bare(axes)
    for axes, panel in zip(grid, panels, strict=False):
        shown = pictured(panel, picture)
        if shown is not None:
            axes.imshow(shown)
        else:
            axes.imshow(picture, alpha=0.25)
            made = f"{panel.made} tokens made of the whole picture, outside the LLM"
            why = textwrap.fill(made if panel.regions else NO_PLACES, 30)
            axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)
        said = "\n".join(_wrapped(panel.answer.text, 44, 3))
        axes.set_title(f"{_counted(panel)}\n{said}", fontsize=9, loc="left")


def pictured(panel: Panel, picture: Image) -> Image | None:
    """What is left of a picture under a method: its tokens as `vtc.drawing.faded` draws them, or, where the method
    makes tokens of the whole, what these attend to; None where there is nothing to draw."""
    maps = [a.made for a in panel.attention if a.made is not None]
    if not panel.regions:
        return None
    if panel.is_kept:
        return drawing.beside(drawing.faded(picture, panel.regions, panel.holders))
    return heated(picture, panel, torch.stack(maps).nanmean(0)) if maps else None


def heated(picture: Image, panel: Panel, values: torch.Tensor) -> Image:
    """Values [N] of the picture's tokens as light on it, the largest the brightest; dark where a token is gone or
    stands nowhere."""
    from matplotlib import colormaps
    from PIL import Image as pictures

    finite = values[values.isfinite()]
    top = (float(finite.max()) if len(finite) else 0.0) or 1.0
    grey = np.asarray(picture.convert("L"), dtype=float)[..., None] / 255
    parts = []
    for level in drawing.spread(panel.regions, values.tolist(), picture.size):
        colour = colormaps[HEAT](np.nan_to_num(level / top))[..., :3]
        light = (255 * (0.25 * grey + 0.75 * colour)).round().clip(0, 255)
        parts.append(pictures.fromarray(light.astype(np.uint8)))
    return drawing.beside(parts)


def _attention(part: SubFigure, panels: Sequence[Panel], picture: Image, layers: Sequence[int] | None) -> None:
    """A row a panel: over the picture, all layers and some of them; what the answer pays to tokens that were made."""
    _titled(part, ABOUT["attention"])
    columns = max([1, *(len(_drawn_layers(panel, layers)) for panel in panels)])
    grid = part.subplots(len(panels), columns + 2, squeeze=False)
    for row, panel in zip(grid, panels, strict=True):
        for axes in row:
            _bare(axes)
        makes = any(a.made is not None for a in panel.attention)
        kind = "made" if makes else "answer"
        chosen = _drawn_layers(panel, layers)
        every = [value for a in panel.attention if (value := getattr(a, kind)) is not None]
        row[0].set_ylabel(textwrap.fill(_counted(panel), 22), fontsize=8)
        if not panel.regions or not every:
            why = textwrap.fill(NO_PLACES if every else "no layer of the LLM sees the picture's tokens", 24)
            row[0].text(0.5, 0.5, why, ha="center", va="center", fontsize=8, color="0.4", transform=row[0].transAxes)
        else:
            row[0].imshow(heated(picture, panel, torch.stack(every).nan_to_num(0).mean(0)))
            row[0].set_title(f"{'made' if makes else 'answer'}: all layers", fontsize=8)
            for axes, attention in zip(row[1:], chosen, strict=False):
                values = getattr(attention, kind)
                axes.imshow(heated(picture, panel, values))
                own = "own pass, " if attention.own else ""
                axes.set_title(f"{own}layer {attention.layer}: {float(values.nansum()):.0%}", fontsize=8)
        _made_bars(row[-1], panel)


def _drawn_layers(panel: Panel, layers: Sequence[int] | None) -> list[LayerAttention]:
    """The layers that are drawn of a panel: those named, or some of those in which something is seen."""
    kind = "made" if any(a.made is not None for a in panel.attention) else "answer"
    there = [a for a in panel.attention if getattr(a, kind) is not None]
    if layers is not None:
        return [a for a in there if a.layer in layers]
    places = sorted({round(at) for at in np.linspace(0, len(there) - 1, min(MAPS, len(there)))})
    return [there[at] for at in places]


def _made_bars(axes: Axes, panel: Panel) -> None:
    bars = [a.to_made for a in panel.attention if a.to_made is not None]
    sizes = {len(b) for b in bars}
    if not bars or len(sizes) > 1:
        return
    heights = torch.stack(bars).mean(0).tolist()
    axes.bar(range(len(heights)), heights, color=PALETTE[0], width=0.9)
    axes.set_title(f"answer → {len(heights)} made: {sum(heights):.0%}", fontsize=8)
    axes.set_xticks([0, len(heights) - 1] if len(heights) > 1 else [0])
    axes.tick_params(labelsize=7)
    axes.set_box_aspect(0.8)


def _captions(part: SubFigure, panels: Sequence[Panel]) -> None:
    """What each says when asked for a description, fewer tokens first."""
    _titled(part, ABOUT["captions"])
    axes = part.subplots()
    _bare(axes)
    ranked = sorted(panels, key=lambda p: (p.method != "none", p.method, p.answer.tokens_out))
    total, y = _caption_height(panels), 0.1
    for panel in ranked:
        lines = _wrapped(panel.caption or "", 120)
        name = "uncompressed" if panel.method == "none" else panel.method
        axes.text(0.0, 1 - y / total, f"{name}  {panel.answer.tokens_out}", va="top", fontsize=8.5, color="0.35",
                  transform=axes.transAxes)  # fmt: skip
        axes.text(0.2, 1 - y / total, "\n".join(lines), va="top", fontsize=8.5, transform=axes.transAxes)
        y += 0.17 * len(lines) + 0.12


def _similarity(part: SubFigure, panels: Sequence[Panel]) -> None:
    """How alike tokens are: cosine similarities of all pairs."""
    _titled(part, ABOUT["similarity"])
    grid = part.subplots(_rows(len(panels)), min(ACROSS, len(panels)), squeeze=False, sharex=True).flatten()
    bins = np.linspace(-1, 1, 61)
    for axes in grid[len(panels) :]:
        _bare(axes)
    for axes, panel in zip(grid, panels, strict=False):
        before, left = pairs(panel.before), pairs(panel.left)
        axes.hist(before, bins, density=True, color="0.75", label=f"before: {_mean(before)}")
        if panel.method != "none" and len(left):
            axes.hist(
                left, bins, density=True, histtype="step", linewidth=1.4, color=PALETTE[1], label=f"left: {_mean(left)}"
            )
        axes.set_yticks([])
        axes.legend(frameon=False, fontsize=7.5, title="mean", title_fontsize=7.5)
        axes.set_title(f"{_counted(panel)}, layer {panel.layer}", fontsize=8.5, loc="left")


def pairs(states: torch.Tensor) -> np.ndarray:
    """Cosine similarities of all pairs of M states [M, D]: [M (M − 1) / 2]."""
    unit = F.normalize(states.double(), dim=-1)
    row, column = torch.triu_indices(len(states), len(states), offset=1)
    return (unit @ unit.T)[row, column].numpy()


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" if len(values) else "–"


def _layers(part: SubFigure, panels: Sequence[Panel]) -> None:
    """How much of the answer's attention goes to the picture, layer by layer."""
    _titled(part, ABOUT["layers"])
    from matplotlib import ticker

    share, each, names = part.subplots(1, 3, width_ratios=(4, 4, 2.4))
    _bare(names)
    for at, panel in enumerate(panels):
        layers = [a for a in panel.attention if not a.own]
        x = [a.layer for a in layers]
        look: dict[str, Any] = {"color": "0.2" if panel.method == "none" else PALETTE[(at - 1) % len(PALETTE)],
                                "linestyle": DASHES[(at // len(PALETTE)) % len(DASHES)], "linewidth": 1.3}  # fmt: skip
        share.plot(
            x, [a.visual + a.compressed for a in layers], marker="o", markersize=3, label=_counted(panel), **look
        )
        each.plot(x, [(a.visual + a.compressed) / a.tokens if a.tokens else math.nan for a in layers], **look)
        each.plot(x, [a.text / a.words if a.words else math.nan for a in layers], **{**look, "linestyle": ":"})
    share.set_ylabel("share of attention")
    share.set_ylim(0, None)
    each.set_ylabel("attention per token (log)")
    each.set_yscale("log")
    each.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    each.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    each.yaxis.set_minor_formatter(ticker.NullFormatter())
    share.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    for axes in (share, each):
        axes.set_xlabel("layer of the decoder")
        axes.xaxis.get_major_locator().set_params(integer=True)
    names.legend(*share.get_legend_handles_labels(), frameon=False, fontsize=7.5, loc="upper left")
