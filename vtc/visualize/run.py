"""`action=visualize`: a picture under several methods, drawn as one figure, its numbers beside it."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results, terminal
from vtc.errors import UserError
from vtc.settings.visualize import MOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from vtc.job import Job
    from vtc.visualize.panels import Panel

NAME = "visualize"


def visualize(job: Job) -> Path:
    """Draws a picture under each method at each budget; returns the figure's file.

    Raises:
        UserError: no picture, or one that can't be read; a method, a budget, a layer or weights that there are not.
    """
    settings = job.visualize
    picture = picture_of(settings.image)
    _check_layers(job)
    panels_needed = len(settings.methods or (job.method.name,)) * len(settings.budgets or (None,))
    if panels_needed > MOST:
        raise UserError(f"method, tokens: {panels_needed} methods and budgets in one figure; allowed: up to {MOST}")
    from vtc.visualize import figures, panels

    drawn_jobs = panels.jobs(job, settings.methods, settings.budgets)
    folder = Path(os.path.expanduser(settings.output or str(job.output_dir / NAME))).absolute()
    if job.dry_run:
        print(f"would draw {', '.join(settings.figures)} of {settings.image} into {folder}:")
        print("\n".join(one.label for one in drawn_jobs))
        return folder
    describe = description_prompt(job)
    question = settings.question or describe
    models, drawn = panels.Models(), []
    for number, one in enumerate(drawn_jobs):
        print(f"[{number + 1}/{len(drawn_jobs)}] {one.label}", flush=True)
        caption = describe if "captions" in settings.figures else None
        drawn.append(panels.panel(models.of(one), picture, question, settings.new_tokens, caption))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{NAME}.{suffix}" for suffix in settings.formats]
    figures.draw(drawn, picture, question, settings.figures, settings.layers, files)
    results.write_json(folder / f"{NAME}.json", numbers(job, drawn, question))
    _print(drawn)
    for file in (*files, folder / f"{NAME}.json"):
        print(file)
    return files[0]


def picture_of(image: str | None) -> Image:
    """The picture that the user names.

    Raises:
        UserError: none is named, there is no such file, or it can't be read.
    """
    from vtc.data.pictures import open_picture

    if image is None:
        raise UserError("image=null: a picture is needed; give image=<file>")
    try:
        return open_picture(os.path.expanduser(image))
    except (OSError, ValueError) as error:
        raise UserError(f"image={image}: {error}") from None


def description_prompt(job: Job) -> str:
    """The request for a description, in words that the backbone knows."""
    from vtc.pocket.questions import CAPTION_PROMPT

    return CAPTION_PROMPT if job.backbone.name == "pocket" else CAPTION_PROMPT.capitalize()


def _check_layers(job: Job) -> None:
    for layer in job.visualize.layers or ():
        if layer >= job.shape.depth:
            most = job.shape.depth - 1
            raise UserError(f"visualize.layers: {layer}: allowed: 0 to {most}, as {job.backbone.name} has")
        if layer not in job.shape.attending:
            there = ", ".join(map(str, job.shape.attending))
            raise UserError(f"visualize.layers: {layer}: it has linear attention, none to draw; allowed: {there}")


def numbers(job: Job, panels: Sequence[Panel], question: str) -> dict[str, Any]:
    """What the figure shows, as plain values."""
    from vtc.visualize.figures import pairs

    def plain(values: Any) -> list[float | None] | None:
        if values is None:
            return None
        return [None if math.isnan(v) else v for v in values.tolist()]

    def mean(values: Any) -> float | None:
        return float(values.mean()) if len(values) else None

    out = []
    for panel in panels:
        layers = []
        for one in panel.attention:
            entry = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
            entry |= {key: plain(entry[key]) for key in ("made", "answer", "to_made")}
            layers.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in entry.items()})
        answer = panel.answer
        out.append(
            {
                "label": panel.label,
                "method": panel.method,
                "answer": answer.text,
                "caption": panel.caption,
                "tokens_in": answer.tokens_in,
                "tokens_out": answer.tokens_out,
                "flops_ratio": answer.flops_ratio,
                "holders": panel.holders,
                "made": panel.made,
                "regions": panel.regions,
                "attention": layers,
                "similarity": {
                    "layer": panel.layer,
                    "before": mean(pairs(panel.before)),
                    "left": mean(pairs(panel.left)),
                },
            }
        )
    about = {"command": job.command, "backbone": job.backbone.name, "image": job.visualize.image, "question": question}
    return about | {"panels": out}


def _print(panels: Sequence[Panel]) -> None:
    rows = []
    for panel in panels:
        answer = panel.answer
        name = "uncompressed" if panel.method == "none" else panel.label
        rows.append([name, f"{answer.tokens_out} of {answer.tokens_in}", f"{answer.flops_ratio:.1%}", answer.text])
    console = terminal.console()
    console.print()
    header, least = ["method", "tokens", "FLOPs", "answer"], ("FLOPs", "tokens")
    console.print(terminal.table("answers", header, rows, console.width, least=least, prose=("answer",)))
