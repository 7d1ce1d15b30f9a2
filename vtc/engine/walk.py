"""One pass over the decoder's layers, in segments between which the method reduces the tokens.

Within a segment all layers see the same tokens: one mask, one set of positions, one entry in the cache's ledger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from vtc.backbones.base import Backbone
from vtc.engine import layout, probe, recurrent, views
from vtc.engine.attention import AttentionWatch
from vtc.engine.cache import CACHE, Past, Segment, ledger_of, require_dynamic
from vtc.engine.call import Call
from vtc.engine.limits import check_context, failure
from vtc.engine.report import Tally
from vtc.errors import UserError
from vtc.interface import VISUAL, Compressor, Context, LayerStates, TokenSequence
from vtc.interface.checks import MethodError
from vtc.interface.places import channels_of, member_positions

T = TypeVar("T")


@dataclass(frozen=True)
class LayerInputs:
    """What the layers of one kind in a segment are given beside the hidden states of L tokens behind P cached ones.

    Attributes:
        mask: [B, P + L] bool, the real tokens; None: all are.
        attention_mask: the same, and which token sees which, in the form that the attention implementation takes.
        rope: (cos, sin) [B, L, d].
        size: [B, P + L] how often attention counts each key; None: once.
        view: which keys are in a token's reach; None: all before it.
        rows: the rows in which the layers run on the tokens; None: as they are.
    """

    mask: Tensor | None
    attention_mask: Any
    rope: tuple[Tensor, Tensor]
    size: Tensor | None
    view: views.View | None
    rows: recurrent.Rows | None = None


Inputs = dict[str | None, LayerInputs]  # by kind of layer


class Walk:
    """One pass over the layers.

    Attributes:
        reductions: layers before which the method acts in this pass; none where it brings no images.
        tally: what becomes of its visual tokens; None where the method doesn't act.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Compressor,
        call: Call,
        mask: Tensor | None,
        cache: Any,
        use_cache: bool | None,
        layer_arguments: dict[str, Any],
        watch: AttentionWatch | None = None,
    ) -> None:
        """A pass that hasn't begun.

        Args:
            mask: [B, seen + T], of everything that the user has passed in, this pass's T tokens among it.
            layer_arguments: what every layer gets beside the hidden states, masks, positions and the cache.
            watch: what looks at the layers while they run; None: nothing does.

        Raises:
            UserError: a cache or a mask that compression can't work with.
        """
        self.backbone, self.method, self.decoder, self.call = backbone, method, backbone.decoder, call
        self.reductions: set[int] = method.layers() if call.images is not None else set()
        self.tally: Tally | None = None
        self._probed: tuple[int, dict[str, Tensor], LayerInputs] | None = None  # of the last layer that was, its number
        self.mask, self.use_cache, self.layer_arguments = mask, use_cache, layer_arguments
        self.watch = watch if call.images is not None else None
        self.kinds, self.counted = views.kinds(self.decoder), True
        self.cache: Any = DynamicCache(config=self.decoder.config) if use_cache and cache is None else cache
        if self.cache is not None:
            require_dynamic(self.cache, backbone.windows, backbone.recurrent)
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            what = f"of {mask.ndim} dimensions" if isinstance(mask, Tensor) else f"as a {type(mask).__name__}"
            raise UserError(f"attention_mask {what}: compression needs the 2-D padding mask")
        starts = sorted({0, *method.layers()})
        ends = [*starts[1:], self.decoder.config.num_hidden_layers]
        layers = list(map(range, starts, ends))
        self.ledger = None if self.cache is None else ledger_of(self.cache, layers, mask, method.name)
        self.seen = self.ledger.seen if self.ledger else 0
        if self.seen and call.questions.block is not None:
            raise UserError("blocks: packed questions are for training; they can't go on from a filled cache")
        self.segments = self.ledger.segments if self.ledger else list(map(Segment, layers))
        self.pasts = [segment.past(self.cache) for segment in self.segments]

    # ------------------------------------------------------------------ the pipeline
    def run(self, embeddings: Tensor, position: Tensor | None, context: Context | None) -> BaseModelOutputWithPast:
        """Visual tokens → layers 0…k-1 → reduce at k → layers k…n → the last hidden states, of which the model makes
        logits, in the user's layout.

        Args:
            embeddings: [B, T, D], what the projector made of the images in its places.
            position: [B, T] or [P, B, T] in the user's layout; None: they go on from the cached ones.
            context: for the method; None where it doesn't act.
        """
        tokens = first = self._visual_tokens(embeddings, position)
        inputs, before = None, self.pasts[0]
        for segment, past in zip(self.segments, self.pasts, strict=True):
            entering = tokens
            tokens = layout.change_shift(tokens, before.shift, past.shift)
            if context is not None and segment.start in self.reductions:
                tokens = self._reduce(tokens, segment.start, past, context)
            if segment.start == 0 and self.call.new_tokens is not None:
                # Behind the last position may be as many as the method has put there, and no more are left than these.
                most = self.seen + first.mask.shape[1] + (tokens.mask.shape[1] if self.reductions else 0)
                count = most if past.shift is None else None
                check_context(self.backbone, count, tokens.position * tokens.mask, self.call.new_tokens)
            same = layout.same_layout(tokens, entering) and past.same_as(before)
            if inputs is None or not same or not inputs.keys() >= {self.kinds[i] for i in segment.layers}:
                inputs = self._layer_inputs(tokens, first, segment.layers, past)
            one = next(iter(inputs.values()))
            segment.mask, segment.shift, segment.size = one.mask, tokens.shift, one.size
            segment.position = None if one.view is None else one.view.position
            if self.tally is not None:
                self.tally.add(tokens, len(segment.layers))
            tokens = self._run_layers(tokens, segment.layers, inputs, context)
            if self.ledger and self.reductions and self.method.bottleneck:
                self._evict(tokens, segment, past)
            before = past
        self._close(tokens, first)
        hidden = self._external(self.decoder.norm(tokens.hidden), tokens, first)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: self.cache})

    def first_tokens(self, embeddings: Tensor, position: Tensor | None, context: Context | None) -> TokenSequence:
        """What layer 0 gets to see; see `run`."""
        tokens = self._visual_tokens(embeddings, position)
        return self._reduce(tokens, 0, self.pasts[0], context) if context is not None else tokens

    def complexities(
        self, embeddings: Tensor, position: Tensor | None, context: Context
    ) -> tuple[Tensor, TokenSequence]:
        """[I]: how complex the images are to the method, and the tokens before layer 0; see `run`."""
        tokens = self._visual_tokens(embeddings, position)
        return self._asked(lambda t: self.method.complexity(t, context), tokens, 0, self.pasts[0], context), tokens

    def _visual_tokens(self, embeddings: Tensor, position: Tensor | None) -> TokenSequence:
        """The tokens before layer 0, visual and text, as the user passed them in."""
        rows, count = embeddings.shape[:2]
        axes, images, device = self.backbone.position_axes, self.call.images, embeddings.device
        self.counted = position is not None
        if position is None:
            position = torch.arange(self.seen, self.seen + count, device=device)[None]
        position = position if position.ndim == 3 else position[None].expand(axes, -1, -1)
        position = position[-axes:]  # Some models put the place in the text before those in the grid, for their masks.
        zero = torch.zeros(rows, count, dtype=torch.long, device=device)
        block = self.call.questions.block
        tokens = TokenSequence(
            hidden=embeddings,
            mask=torch.ones_like(zero, dtype=torch.bool) if self.mask is None else self.mask[:, -count:].bool(),
            position=position.expand(-1, rows, -1),
            role=zero if images is None else images.visual * VISUAL,
            origin=torch.arange(count, device=device).expand(rows, -1),
            block=zero if block is None else block,
            image=zero - 1 if images is None else images.image,
            deep=_take_deepstack(embeddings, self.layer_arguments),
        )
        if self.reductions and images is not None:
            self.tally = Tally.of(images, self.method.bottleneck)
        return layout.change_shift(tokens, None, self.pasts[0].shift)

    def _reduce(self, tokens: TokenSequence, layer: int, past: Past, context: Context) -> TokenSequence:
        """What the method leaves before `layer`."""

        def reduced(before: TokenSequence) -> TokenSequence:
            return dataclasses.replace(self.method.reduce(before, layer, context), compact=False)

        return self._asked(reduced, tokens, layer, past, context)

    def _asked(
        self, verb: Callable[[TokenSequence], T], tokens: TokenSequence, layer: int, past: Past, context: Context
    ) -> T:
        """What a verb of the method gives of the tokens before `layer`."""
        if tokens.hidden.device != tokens.mask.device:  # a model spread over devices
            tokens = tokens.to(tokens.hidden.device)
        tokens = dataclasses.replace(tokens, compact=layer == 0 and len(tokens.position) == 1)
        context.next_layer_attention = partial(self._next_layer_attention, layer, past)
        context.next_layer_states = partial(self._next_layer_states, layer)
        context.last_layer_attention = partial(self._last_layer_attention, layer - 1, tokens)
        if self.watch is not None:
            self.watch.reducing = tokens
        try:
            given = verb(tokens)
        except MethodError as error:
            raise error.kind(f"method={self.method.name}: {error}") from None
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise failure(self.method, error) from error
        del context.next_layer_attention, context.next_layer_states, context.last_layer_attention  # they hold the cache
        self._probed = None
        return given

    def _run_layers(
        self, tokens: TokenSequence, layers: range, inputs: Inputs, context: Context | None
    ) -> TokenSequence:
        """The tokens behind these layers. What the method wants to know of a layer's attention goes into `context`."""
        hidden, probes = tokens.hidden, set() if context is None else self.method.probes()
        # No position_ids: layers would take gaps in them for the seams of packed sequences.
        arguments = {CACHE: self.cache, "use_cache": self.use_cache, **self.layer_arguments}
        for i in layers:
            layer, own = self.decoder.layers[i], inputs[self.kinds[i]]
            watch: AbstractContextManager[dict] = probe.projections(layer.self_attn) if i in probes else nullcontext({})
            with watch as projected, self._watching(i, tokens, own):
                run = partial(layer, position_embeddings=own.rope, **arguments)
                if own.rows is None:
                    hidden = run(hidden, attention_mask=own.attention_mask)
                else:  # of packed questions nothing is decoded: their states are left nowhere
                    hidden = own.rows.run(partial(run, **{CACHE: None, "use_cache": False}), hidden)
            if tokens.deep is not None and i < tokens.deep.shape[2]:
                hidden = hidden + tokens.deep[:, :, i].to(hidden)
            if context is not None and i in probes:
                self._probed = i, projected, own
                context.keys[i] = projected["k"]
                context.rotated_keys[i] = partial(probe.rotated_states, layer.self_attn, projected["k"], own.rope)
                context.attention_rows[i] = probe.attention_row(
                    layer.self_attn,
                    projected,
                    own.rope,
                    *self.call.questions.prompt_ends(tokens),
                    tokens.block,
                    own.mask,
                    None if self.cache is None else self.cache.layers[i].keys,
                    own.size,
                    own.view,
                )
        return dataclasses.replace(tokens, hidden=hidden)

    def _watching(self, number: int, tokens: TokenSequence, inputs: LayerInputs) -> AbstractContextManager[None]:
        """What looks at a layer while it runs."""
        if self.watch is None or self.call.images is None:
            return nullcontext()
        return self.watch.running(
            number, self.decoder.layers[number], tokens, self.call.images, inputs.rope, inputs.mask, inputs.size,
            self.method.bottleneck, lambda: None if self.cache is None else self.cache.layers[number].keys, inputs.view,
        )  # fmt: skip

    def _close(self, tokens: TokenSequence, first: TokenSequence) -> None:
        """Enters this pass into the ledger and the tally. tokens: behind the last layer; first: before layer 0."""
        if self.ledger:
            count = first.mask.shape[1]
            self.ledger.tail = layout.common_tail(first) if self.reductions else self.ledger.tail + count
            self.ledger.seen += count
        if self.tally is not None:
            self.tally.close(tokens)

    def _external(self, hidden: Tensor, tokens: TokenSequence, first: TokenSequence) -> Tensor:
        """The last hidden states [B, L, D] of `tokens` in the layout [B, T, D] of `first`."""
        if self.call.questions.block is None and layout.same_layout(tokens, first):
            return hidden
        last = layout.last_column(first.mask).to(hidden.device)
        return layout.to_external(hidden, tokens.to(hidden.device), last, first.mask.shape[1])

    # ------------------------------------------------------------------ masks, positions, cache
    def _layer_inputs(self, tokens: TokenSequence, first: TokenSequence, layers: range, past: Past) -> Inputs:
        """For a segment of these layers. first: the tokens before layer 0."""
        new: Tensor | None = tokens.mask
        if tokens.mask is first.mask:  # As the user gave it: to look for padding in it would wait for the device.
            new = None if self.mask is None else new
        elif not tokens.padded or bool(tokens.mask.all()):
            new = None
        mask, size = past.extended(new, tokens.mask), past.extended_size(tokens.size, tokens.mask)
        inputs: Inputs = {}
        for kind in dict.fromkeys(self.kinds[i] for i in layers):
            if kind == views.LINEAR:  # what is cached has its part in the states already
                packed = self.call.questions.block is not None
                rows = recurrent.questions(tokens.block, tokens.mask) if packed else None
                inputs[kind] = LayerInputs(mask, new, self._rope(tokens, kind), size, None, rows)
                continue
            view, one = self._view(tokens, past, kind), next(i for i in layers if self.kinds[i] == kind)
            pairs = self._attention_mask(tokens, mask, size, one, past, view)
            inputs[kind] = LayerInputs(mask, pairs, self._rope(tokens, kind), size, view)
        return inputs

    def _view(self, tokens: TokenSequence, past: Past, kind: str | None) -> views.View | None:
        """What is in a token's reach in layers of this kind; None: all before it."""
        if not self.backbone.windows:
            return None
        position = past.extended_position(tokens.position[0], self.counted)
        image = torch.where(tokens.visual & self.call.both_ways, tokens.image, -1)
        return views.View(position, image, views.window(self.decoder, kind))

    def _attention_mask(
        self, tokens: TokenSequence, mask: Tensor | None, size: Tensor | None, layer: int, past: Past,
        view: views.View | None,
    ) -> Any:  # fmt: skip
        bottleneck = self.method.bottleneck and self.call.images is not None
        own = bottleneck or size is not None
        if own or view is not None or self.call.questions.block is not None:
            if self.decoder.config._attn_implementation not in ("sdpa", "eager"):
                what = f"method={self.method.name}: its mask needs" if own else "blocks: packed questions need"
                what = what if view is None else f"backbone={self.backbone.name}: its windows need"
                raise UserError(f"{what} attention=sdpa or eager")
            cached = tokens.mask.new_ones(len(tokens.mask), past.length) if past.mask is None else past.mask
            return layout.pair_mask(tokens, cached, bottleneck, size, view)
        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=tokens.hidden,
            attention_mask=mask,
            position_ids=None,
            layer_idx=layer,
            **{CACHE: self.cache},
        )

    def _rope(self, tokens: TokenSequence, kind: str | None) -> tuple[Tensor, Tensor]:
        """(cos, sin) [B, L, d] of the tokens' positions, for layers of this kind."""
        turned = partial(views.rotary, self.decoder, tokens.hidden, kind=kind)
        if tokens.several == 1:
            return turned(tokens.position)
        axes = len(tokens.position)
        one = torch.eye(axes, dtype=torch.long, device=tokens.mask.device)[..., None]  # row r is at 1 on axis r
        axis = turned(one)[1][:, 0].abs().argmax(0)  # which one turns a channel
        block, channel = channels_of(axis, tokens.several), torch.arange(len(axis), device=axis.device)
        tables = zip(*(turned(position) for position in member_positions(tokens)), strict=True)
        cos, sin = (torch.stack(table)[block, :, :, channel].permute(1, 2, 0) for table in tables)
        return cos, sin

    def _evict(self, tokens: TokenSequence, segment: Segment, past: Past) -> None:
        """Takes the visual tokens, which nothing will see any more, out of the cache of a segment that has run.
        Whatever is left keeps its position, and so do later tokens.
        """
        column = torch.arange(tokens.mask.shape[1], device=tokens.mask.device).expand_as(tokens.mask)
        left = dataclasses.replace(tokens, hidden=column[..., None]).hide(tokens.visual)
        self.cache.keep(segment.layers, past.length, left.hidden[..., 0])
        segment.mask = past.extended(None if bool(left.mask.all()) else left.mask, left.mask)
        if segment.position is not None:
            segment.position = past.extended_position(left.position[0], self.counted)

    def _last_layer_attention(self, layer: int, tokens: TokenSequence, *queries: Tensor) -> tuple[Tensor, ...]:
        """`Context.last_layer_attention` behind `layer`, of the `tokens` that it saw."""
        if self._probed is None or self._probed[0] != layer:
            raise RuntimeError(f"layer {layer} is none that probes() names")
        _, projected, inputs = self._probed
        keys = None if self.cache is None else self.cache.layers[layer].keys
        attention = self.decoder.layers[layer].self_attn
        return probe.greatest_attention(
            attention, projected, inputs.rope, tokens, queries, inputs.mask, keys, inputs.size, inputs.view
        )

    def _next_layer_attention(
        self,
        layer: int,
        past: Past,
        tokens: TokenSequence,
        queries: Tensor | None = None,
        over: Tensor | None = None,
        greatest: bool = False,
    ) -> Tensor:
        """`Context.next_layer_attention` before `layer`."""
        kind = self.kinds[layer]
        rope, view = self._rope(tokens, kind), self._view(tokens, past, kind)
        if queries is None:
            queries = self.call.questions.end_counts(tokens)
        keys = self.cache.layers[layer].keys if past.length else None
        return probe.next_layer_attention(
            self.decoder.layers[layer], rope, tokens, queries, over, keys, past.mask, past.size, greatest, view
        )

    def _next_layer_states(self, layer: int, tokens: TokenSequence) -> LayerStates:
        """`Context.next_layer_states` before `layer`."""
        return probe.next_layer_states(self.decoder.layers[layer], self._rope(tokens, self.kinds[layer]), tokens)


def _take_deepstack(embeddings: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """[B, T, S, D]: what a model wants added to the hidden states of its images behind its first S layers; None for
    nothing. Taken out of the decoder's keyword `arguments`, which layers don't know.
    """
    places, levels = arguments.pop("visual_pos_masks", None), arguments.pop("deepstack_visual_embeds", None)
    if levels is None or not len(levels):
        return None
    deep = embeddings.new_zeros(*embeddings.shape[:2], len(levels), embeddings.shape[2])
    return deep.index_put((places.to(embeddings.device),), torch.stack([v.to(embeddings) for v in levels], 1))
