"""What a method does itself in a prefill, apart from the decoder and the vision tower: its arithmetic and its time.

Its own work is what its `reduce` does (the passes of the LLM that it asks for among it), the attention rows that are
computed for it, and merging inside the tower. What the tower and the projector do is counted for themselves, as they
truly ran: under a method that shrinks the image or merges patches they do less.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vtc.engine import probe
from vtc.engine.tower_watch import stand_in

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor

METHOD, TOWER, PROJECTOR = "method", "tower", "projector"
DECODER = "decoder"  # its layers, in whichever pass
PREFILL, DECODE = "prefill", "decode"  # what else happens up to the first token, and after it
REGIONS = (METHOD, TOWER, PROJECTOR, DECODER, PREFILL, DECODE)


class Meter:
    """Shares what a rising count (seconds, FLOPs) gains among nested regions: each gain goes to the innermost one.

    Attributes:
        spent: region → what was gained in it.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.spent = dict.fromkeys(REGIONS, 0.0)
        self._open: list[str] = []
        self._last = 0.0

    @property
    def region(self) -> str | None:
        """The innermost one that is open."""
        return self._open[-1] if self._open else None

    def enter(self, region: str) -> None:
        self._settle()
        self._open.append(region)

    def leave(self) -> None:
        self._settle()
        self._open.pop()

    def _settle(self) -> None:
        now = self.read()
        if self._open:
            self.spent[self._open[-1]] += now - self._last
        self._last = now

    def around(self, region: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, what it gains counted for `region`."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            self.enter(region)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return measured


@contextlib.contextmanager
def metering(
    backbone: Backbone, method: Compressor, read: Callable[[], float], decoder: bool = True
) -> Iterator[dict[str, float]]:
    """Collects, while it is open, what `read` gains in the method's own work, in tower and projector, and in the
    decoder's layers.

    Args:
        read: a count that never falls, such as a clock; on a GPU one that waits for the device.
        decoder: whether the decoder's layers are a region of their own. False: a pass of the LLM that the method asks
            for belongs to the method (as time it does, as FLOPs it is counted with the decoder's).

    Returns:
        region → what was gained in it.
    """
    meter = Meter(read)
    with regions(backbone, method, meter, DECODER if decoder else None):
        yield meter.spent


@contextlib.contextmanager
def regions(backbone: Backbone, method: Compressor, meter: Meter, rest: str | None) -> Iterator[None]:
    """Opens and closes the regions of `meter` as a model runs.

    Args:
        rest: where what is neither the method's nor the tower's nor the projector's goes. `DECODER`: its layers are a
            region, and nothing else is. `PREFILL`: everything else of a call of `generate`, up to the end of the
            model's first pass, and from there on to `DECODE`. None: nowhere.
    """
    modules = {TOWER: [backbone.vision_tower], PROJECTOR: [backbone.projector]}
    if rest == DECODER:
        modules[DECODER] = list(backbone.decoder.layers)
    tower, row = method.tower, probe.attention_row

    def watching() -> Any:
        use = tower()
        if use is None or use.merge is None:
            return use
        return dataclasses.replace(use, merge=meter.around(METHOD, use.merge))

    def first_token(*_: Any) -> None:
        if meter.region == PREFILL:
            meter.leave()
            meter.enter(DECODE)

    with contextlib.ExitStack() as stack:
        for region, listed in modules.items():
            for module in listed:
                before = module.register_forward_pre_hook(lambda *_, region=region: meter.enter(region))
                stack.callback(before.remove)
                stack.callback(module.register_forward_hook(lambda *_: meter.leave(), always_call=True).remove)
        stand_in(stack, method, "reduce", meter.around(METHOD, method.reduce))
        stand_in(stack, method, "tower", watching)
        stand_in(stack, probe, "attention_row", meter.around(METHOD, row))
        if rest == PREFILL:
            stack.callback(backbone.model.register_forward_hook(first_token).remove)
            meter.enter(PREFILL)
            stack.callback(meter.leave)
        yield
