"""A method made ready for a check, passes of a model under it, and inputs taken apart and put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.backbones.base import Backbone
from vtc.engine import Engine, Report
from vtc.interface import Compressor
from vtc.testing.models import ALONG

Make = Callable[[Backbone, int | None], Compressor]
WHOLE = ("attention_mask", "token_type_ids")  # given from the start of the sequence, also where a call goes on
TOLERANCE = 3e-4  # float32 logits of magnitude 1-10


def instance(backbone: Backbone, make: Make, tokens: int | None) -> Compressor:
    """The method in eval mode, with every parameter away from its initial value: LoRA's B starts at 0, where nothing
    shows. The weights are always the same, whatever has drawn numbers before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)  # LoRA's A keeps what it starts with
        method = make(backbone, tokens).eval()
        method.attach(backbone)
    generator = torch.Generator().manual_seed(7)
    lora = [p for n, p in backbone.model.named_parameters() if "lora_B" in n]
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        for p in lora:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 / p.shape[1])
    backbone.model.eval()
    return method


def logits(backbone: Backbone, inputs: dict[str, Tensor], **extra: Any) -> Tensor:
    """Of one pass over the inputs, without gradients: `[B, L, vocabulary]`."""
    with torch.no_grad():
        logits: Tensor = backbone.model(**inputs, position_ids=backbone.positions(inputs), **extra).logits
        return logits


def generation(backbone: Backbone, inputs: dict[str, Tensor], count: int = 5, **options: Any) -> Any:
    """What `generate` gives for exactly `count` new tokens, greedily unless `options` say otherwise."""
    options = {"do_sample": False} | options
    return backbone.model.generate(
        **inputs,
        max_new_tokens=count,
        min_new_tokens=count,
        suppress_tokens=list(backbone.placeholders),
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


def close(a: Tensor, b: Tensor, what: str) -> None:
    """Asserts that two tensors of logits are equal but for rounding; `what` they are of, in the message."""
    worst = (a - b).abs().max().item()
    assert worst < TOLERANCE, f"{what}: logits differ by {worst:.2e}"


def texts(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """[B, L]: real text tokens."""
    return inputs["attention_mask"].bool() & ~backbone.visual(inputs["input_ids"])


def appended(inputs: dict[str, Tensor], new: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """Further tokens, ids [B, n] of text or what `collate` made, behind the rows; images as they were."""
    ids = new["input_ids"] if isinstance(new, dict) else new
    more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | (new if isinstance(new, dict) else {})
    along = {n: torch.cat([inputs[n], more.get(n, torch.zeros_like(ids))], 1) for n in ALONG if n in inputs}
    return inputs | along


def cut(inputs: dict[str, Tensor], start: int, stop: int | None = None, images: bool = False) -> dict[str, Tensor]:
    """Columns `start` to `stop`, with what is said of all that is before, too; `images`: and the images."""
    out = {n: v[:, start:stop] for n, v in inputs.items() if n in ALONG}
    out |= {n: inputs[n][:, :stop] for n in WHOLE if n in inputs}
    return out | ({n: v for n, v in inputs.items() if n not in ALONG} if images else {})


def report_of(engine: Engine) -> Report:
    """The report of the engine's last pass, which saw images."""
    assert engine.report is not None, "the pass saw no images"
    return engine.report


def ends(inputs: dict[str, Tensor]) -> Tensor:
    """[B]: the last column of left-padded inputs, where their prompt ends."""
    return torch.full((len(inputs["input_ids"]),), inputs["input_ids"].shape[1] - 1)
