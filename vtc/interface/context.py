"""What a method may look at beside the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from vtc.interface.shape import BackboneShape
from vtc.interface.tokens import TokenSequence

if TYPE_CHECKING:
    from vtc.interface.tower import Tower


class LayerStates(NamedTuple):
    """Queries and keys of L tokens in a decoder layer that is about to run.

    Attributes:
        queries: [B, L, H, d], not yet rotated by position, and scaled: their products with keys are the logits.
        keys: [B, L, Hkv, d], not yet rotated.
        rotated_keys: [B, L, Hkv, d], as the layer attends with them.
    """

    queries: Tensor
    keys: Tensor
    rotated_keys: Tensor


def _nothing(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this context has no backbone behind it")


@dataclass
class Context:
    """What a method may look at beside the tokens.

    Attributes:
        shape: the backbone's sizes.
        grids: (height, width) in visual tokens of each image, in the order of `TokenSequence.images`; None if unknown.
        features: the projector's output per image, a list of [N_i, D]; empty where tokens come from a cache.
        attention_rows: layer → [B, L] attention that the last prompt token paid in that layer, mean over heads (see
            `probes`).
        keys: layer → [B, L, D] keys of all heads in that layer, not yet rotated by position (see `probes`).
        rotated_keys: layer → a function that gives [B, L, D], those keys as the layer attends with them.
        run_decoder: `run_decoder(embeddings [B, L, D], mask [B, L], adapter=None, bidirectional=False) -> [B, L, D]`,
            the last hidden states of the LLM (after its norm), uncompressed and without a cache, under a LoRA adapter.
        embed: token ids [...] → embeddings [..., D].
        prompt: `prompt(tokens) -> [B, L]` bool: the prompt's text behind the first image of each row (of each packed
            question), without any answer; where there is none, the last prompt token.
        last_layer_attention: `last_layer_attention(*queries) -> ([B, L], …)`, one for each `queries` [B, L] bool: the
            attention that these tokens paid to each of the tokens that came, in the layer that has just run and that
            `probes` names: of each query the greatest over the heads, mean over the queries; zeros in a row without
            any. No gradients.
        next_layer_attention: `next_layer_attention(tokens, queries=None, over=None, greatest=False) -> [B, L]`: the
            attention that `queries` [B, L] bool (None: the last prompt token) would pay to `tokens` in the layer about
            to run, mean over heads and queries (`greatest`: the greatest of them); the softmax runs over the tokens
            `over` [B, L] bool (None: all that a query sees). For the tokens as they are, or as they would be after a
            verb. No gradients.
        next_layer_states: `next_layer_states(tokens) -> LayerStates`: the queries and keys of `tokens` in the layer
            about to run. No gradients.
        project: tower features [..., C] → visual tokens [..., D], as the backbone's projector does.
        tower: what the method asked to see of the vision tower (`Compressor.tower`); None where it asks nothing.
        training: whether gradients are wanted.
        memo: what a method wants to know again later in the same pass, at another layer or for its losses.
    """

    shape: BackboneShape
    grids: list[tuple[int, int] | None] = field(default_factory=list)
    features: Sequence[Tensor] = ()
    attention_rows: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    rotated_keys: dict[int, Callable[[], Tensor]] = field(default_factory=dict)
    run_decoder: Callable[..., Tensor] = _nothing
    embed: Callable[[Tensor], Tensor] = _nothing
    prompt: Callable[[TokenSequence], Tensor] = _nothing
    last_layer_attention: Callable[..., tuple[Tensor, ...]] = _nothing
    next_layer_attention: Callable[..., Tensor] = _nothing
    next_layer_states: Callable[[TokenSequence], LayerStates] = _nothing
    project: Callable[[Tensor], Tensor] = _nothing
    tower: Tower | None = None
    training: bool = False
    memo: dict[str, Any] = field(default_factory=dict)

    def seen(self) -> Tower:
        """What the method asked to see of the vision tower."""
        if self.tower is None:
            raise RuntimeError("this context has no vision tower behind it")
        return self.tower
