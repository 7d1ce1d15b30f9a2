"""What an encoder made of a call's pixels, handed to the model that is about to run on them.

transformers 5.24 takes it as `mm_encoder_outputs`. The models of 5.17 encode the pixels that they are given: there the
method that encodes is stood in for, during the call and for these pixels alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

OUTPUTS = "mm_encoder_outputs"
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def handed_over(core: Any, before: dict[str, Any], after: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """The keyword arguments with which `core` doesn't encode again what is encoded already.

    Args:
        before: as the call has them.
        after: the same with `mm_encoder_outputs` in the place of pixels, as `Parts.encoded` leaves them.
        stack: closed when the call is over.
    """
    if OUTPUTS not in after or OUTPUTS in inspect.signature(type(core).forward).parameters:
        return after
    if any(before.get(PIXELS[medium]) is None for medium in after[OUTPUTS]):
        return after  # they were given, not made of pixels here
    for medium, outputs in after[OUTPUTS].items():
        pixels, name = before.get(PIXELS[medium]), f"get_{medium}_features"
        stack.callback(_restore, core, name, core.__dict__.get(name))
        setattr(core, name, _known(getattr(core, name), pixels, outputs))
    return {key: before.get(key) if key in PIXELS.values() else value for key, value in after.items() if key != OUTPUTS}


def _restore(core: Any, name: str, own: Any) -> None:
    """Puts back what the instance itself had under a name, or nothing."""
    if own is None:
        core.__dict__.pop(name, None)
    else:
        setattr(core, name, own)


def _known(encode: Callable[..., Any], pixels: Any, outputs: Any) -> Callable[..., Any]:
    """`encode`, but for these pixels."""

    def features(*args: Any, **kwargs: Any) -> Any:
        if any(value is pixels for value in (*args, *kwargs.values())):
            return outputs
        return encode(*args, **kwargs)

    return features
