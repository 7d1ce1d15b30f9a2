"""What a model can't answer: a prompt past its context, and numbers that are none."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.backbones.base import Backbone
from vtc.engine.tower_watch import stand_in
from vtc.errors import MethodFailure, NotFinite, SampleError
from vtc.interface import Compressor, TokenSequence


def check_context(backbone: Backbone, count: int | None, position: Tensor | None, new: int = 0) -> None:
    """Refuses tokens at positions past those that the decoder is made for.

    Args:
        count: how many tokens there are, cached ones among them, where none stands behind that many; None: unknown.
            Without it, or where it is too large, the device is waited for.
        position: of the real tokens; None: they count from 0.
        new: how many are still to be generated.

    Raises:
        SampleError: it says how many positions there are, and how many are needed.
    """
    context = backbone.context
    if context is None or (count is not None and backbone.position_axes == 1 and count + new <= context):
        return
    needed = (count or 0) if position is None else int(position.max()) + 1
    if needed + new > context:
        more = f", with {new:,} new tokens {needed + new:,}" if new else ""
        raise SampleError(
            f"backbone={backbone.name}: its decoder has {context:,} positions (max_position_embeddings), and the "
            f"prompt with its images takes {needed:,}{more}"
        )


def first_not_finite(backbone: Backbone, method: Compressor, again: Callable[[], Any]) -> NotFinite:
    """The error of a pass whose numbers aren't finite, which names where they first are not.

    Args:
        again: the same pass once more, under `method`.
    """
    modules = {**dict(backbone.model.named_modules()), **{f"method.{n}": m for n, m in method.named_modules()}}
    start = f"backbone={backbone.name}, method={method.name}: "
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(_check_output, start + name)).remove)
        stand_in(stack, method, "reduce", partial(_checked_reduction, start, method.reduce))
        try:
            again()
        except NotFinite as error:
            return error
        except Exception:  # What follows numbers that are none, of which the caller knows already.
            pass
    return NotFinite(f"{start}the logits aren't finite")


def _check_output(where: str, module: nn.Module, args: tuple, output: Any) -> None:
    _check_finite(where, output[0] if isinstance(output, tuple) else output)


def _checked_reduction(start: str, reduce: Callable[..., TokenSequence], tokens: Any, layer: int, context: Any) -> Any:
    tokens = reduce(tokens, layer, context)
    _check_finite(f"{start}what it leaves before layer {layer}", tokens.hidden)
    return tokens


def _check_finite(where: str, values: Any) -> None:
    if isinstance(values, Tensor) and values.is_floating_point() and not bool(values.isfinite().all()):
        hint = "; float16 ends at 65,504, dtype=bf16 and float32 go further" if values.dtype == torch.float16 else ""
        raise NotFinite(f"{where} isn't finite{hint}")


def failure(method: Compressor, error: BaseException) -> MethodFailure:
    """What a method's own code raised, in a line that says where: in the last line of a file of its classes."""
    modules = {type(part).__module__ for part in method.modules() if isinstance(part, Compressor)}
    # A class of a notebook, or of text that was run, has no file.
    files = {getattr(sys.modules.get(module), "__file__", None) for module in modules}
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if frame.filename in files), frames[-1] if frames else None)
    where = f" ({Path(place.filename).name}, line {place.lineno}, in {place.name})" if place else ""
    return MethodFailure(f"method={method.name} fails: {type(error).__name__}: {error}{where}; see action=check")
