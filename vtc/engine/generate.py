"""`generate()` under a method: transformers' own, of which the engine takes note of what nobody else tells it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.engine import decoding
from vtc.engine.layout import last_column
from vtc.engine.limits import first_not_finite
from vtc.errors import NotFinite

if TYPE_CHECKING:
    from vtc.engine.engine import Engine


class Generation:
    """A call of `generate` that is running.

    Attributes:
        new_tokens: how many it may make; None where it isn't said.
    """

    def __init__(self, new_tokens: int | None) -> None:
        self.new_tokens = new_tokens
        self._calls = 0
        self._finite: Tensor | None = None  # [] bool: reading it waits for the device, so it is read once, at the end

    def begin_call(self) -> int | None:
        """What `vtc.engine.call.Call.new_tokens` is of the model's next call."""
        self._calls += 1
        if self.new_tokens is None:
            return 0
        return self.new_tokens if self._calls == 1 else None

    def note(self, logits: Tensor) -> None:
        """Takes note of logits [B, L, V]."""
        finite = logits[:, -1].isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite

    def note_finite(self, finite: bool) -> None:
        """Takes note of whether logits that it didn't see were numbers."""
        if not finite:
            self._finite = torch.zeros((), dtype=torch.bool)

    @property
    def is_finite(self) -> bool:
        """Whether all logits so far are numbers."""
        return self._finite is None or bool(self._finite)


def noted(engine: Engine, original: Callable[..., Any]) -> Callable[..., Any]:
    """The `generate` that takes the place of `original`.

    Without a cache every step sees the answer so far, by which a method must not choose: the engine is told where the
    prompts end, unless the caller has said it.

    Raises:
        SampleError: a prompt that doesn't fit into the context with its answer; logits that aren't finite.
    """

    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or engine.backbone.model.generation_config
        new_tokens = kwargs.get("max_new_tokens", config.max_new_tokens)
        ids, mask, ends = kwargs.get("input_ids"), kwargs.get("attention_mask"), None
        ids = ids if ids is not None else args[0] if args else kwargs.get("inputs")
        if kwargs.get("use_cache", config.use_cache) is False and ids is not None:
            ends = last_column(ids >= 0 if mask is None else mask.bool())

        def again() -> None:
            with engine.generating(new_tokens, ends):
                original(*args, **kwargs)

        with engine.generating(new_tokens, ends) as generation:
            try:
                if engine.compiled:
                    out, finite = decoding.generated(engine, original, args, kwargs)
                    generation.note_finite(finite)
                else:
                    out = original(*args, **kwargs)
            except Exception as error:
                if generation.is_finite and not isinstance(error, NotFinite):
                    raise
            else:
                if generation.is_finite:
                    return out
        raise first_not_finite(engine.backbone, engine.method, again)

    generate.vtc_original = original  # type: ignore[attr-defined]
    return generate
