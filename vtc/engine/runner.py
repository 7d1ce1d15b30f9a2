"""The decoder runner: walks the decoder's layers in segments and lets the method reduce the tokens between them.

It takes the place of `forward` on ONE language-model instance. Around it everything stays as transformers has it:
`generate()`, its `input_ids`, masks and positions (the external layout), losses, gradient checkpointing, attention
backends. Between two reductions all layers see the same tokens: one mask, one set of positions, one entry in the
cache's ledger (a segment).
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from vtc.backbones import adapters
from vtc.backbones.base import Backbone
from vtc.engine import layout, probe
from vtc.engine.ahead import attention_ahead
from vtc.engine.cache import CACHE, CompressedCache, Ledger, Segment, cache_among, extend, refuse
from vtc.engine.passes import run_decoder
from vtc.engine.report import Report
from vtc.engine.tower import Watch
from vtc.errors import UserError
from vtc.interface import TEXT, VISUAL, Compressor, Context, TokenSequence

Past = tuple[Tensor | None, Tensor | None, int]  # mask, shift and number of the tokens that a segment has in the cache


@dataclass
class _Images:
    """What a call of the multimodal model brings: where its visual tokens are, of which image, and their features."""

    visual: Tensor  # [B, T] bool
    image: Tensor  # [B, T] index in its row, -1 elsewhere
    features: list[Tensor]
    grids: list[tuple[int, int] | None]


class Engine:
    """A method installed in a backbone. Made by `vtc.engine.compressing`.

    Attributes:
        report: what the last prefill with images kept; None before.
        context: what the method saw in it (for `Compressor.losses`); None before.
    """

    def __init__(self, backbone: Backbone, method: Compressor) -> None:
        self.backbone, self.method, self.decoder = backbone, method, backbone.decoder
        if method.bottleneck and (method.probes() or method.reads_prompt):
            raise UserError(f"method={method.name}: attention is not probed behind a bottleneck; see Compressor")
        types_ = set(getattr(self.decoder.config, "layer_types", None) or [])
        if types_ - {"full_attention"}:
            raise UserError(
                f"backbone={backbone.name}: layers with {', '.join(sorted(types_))}; only full attention is supported"
            )
        self._images: _Images | None = None
        self._labels: Tensor | None = None
        self._blocks: Tensor | None = None
        self._answers: Tensor | None = None
        self._prompt: Tensor | None = None
        self._counts: tuple | None = None
        self.context: Context | None = None
        self._hooks: list = []
        self._tower = Watch(backbone, method)

    # ------------------------------------------------------------------ in and out
    def install(self) -> None:
        """Takes the place of the decoder's `forward`; `remove` gives it back."""
        engine, decoder = self, self.decoder
        self._own = decoder.__dict__.get("forward")  # accelerate puts one there too
        current = decoder.forward
        original = getattr(current, "vtc_original", current)

        @merge_with_config_defaults
        @capture_outputs
        def walk(
            decoder: Any,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            position_ids: Tensor | None = None,
            inputs_embeds: Tensor | None = None,
            use_cache: bool | None = None,
            **kwargs: Any,
        ) -> BaseModelOutputWithPast:
            x = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            cache = cache_among(kwargs)
            rest = {k: v for k, v in kwargs.items() if k not in (CACHE, "past_key_values")}
            return engine._walk(x, attention_mask, position_ids, cache, use_cache, rest)

        def forward(decoder: nn.Module, *args: Any, **kwargs: Any) -> Any:
            adapter = engine.method.adapter  # without one there is nothing to switch: outside the engine none is active
            with adapters.using(decoder, adapter) if adapter else nullcontext():
                if args or not engine._wanted(cache_among(kwargs)):
                    engine._count_plain()
                    return original(*args, **kwargs)
                return walk(decoder, **kwargs)

        forward.vtc_original = original  # type: ignore[attr-defined]
        decoder.forward = types.MethodType(forward, decoder)
        self._hooks = [
            self.backbone.model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            self.backbone.core.register_forward_pre_hook(self._before_core, with_kwargs=True),
            self.backbone.core.register_forward_hook(self._after_core, always_call=True),
        ]
        self._tower.install()

    def remove(self) -> None:
        """Leaves the model as it was found."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._tower.remove()
        if self._own is None:
            self.decoder.__dict__.pop("forward", None)
        else:
            self.decoder.forward = self._own
        self._images = self._labels = self._blocks = self._answers = self._prompt = None

    @contextmanager
    def blocks(self, block_ids: Tensor, labels: Tensor | None = None) -> Iterator[None]:
        """Packed training: independent questions behind one shared prefix, in the forward passes inside.

        Args:
            block_ids: [B, L] in the user's layout; 0 = the prefix (everything up to and including the images), q = 1…
                = the q-th question. Attention is causal AND (key.block == 0 or key.block == query.block); position_ids
                are the caller's.
            labels: [B, L], -100 outside the answers, for methods that choose by the question: the prompt of a block
                ends before its first label, or with its last token where it has none. The questions share their images,
                which are compressed once, by the mean over the questions. None: the `labels` that the model is given.
        """
        before = self._blocks, self._answers
        self._blocks, self._answers = block_ids, labels
        try:
            yield
        finally:
            self._blocks, self._answers = before

    @contextmanager
    def prompt_ends(self, index: Tensor) -> Iterator[None]:
        """Says where the prompt ends, where that isn't the last token: uncached or teacher-forced passes with an
        answer.

        Args:
            index: [B] of each row's last prompt token in the user's layout. (With `labels` it is known: the token
                before the first one with a label.)
        """
        self._prompt, before = index, self._prompt
        try:
            yield
        finally:
            self._prompt = before

    @property
    def report(self) -> Report | None:
        if self._counts is None:
            return None
        images, first, counts, cached, kept, origin = self._counts
        return Report(
            images=images.tolist(),
            tokens_in=first.tolist(),
            tokens_out=cached[-1].tolist(),
            layers=[c.tolist() for c in counts],
            cached=[c.tolist() for c in cached],
            kept=[origin[r][kept[r]].tolist() for r in range(kept.shape[0])],
        )

    def _count_plain(self) -> None:
        """The report of a prefill that nothing touched."""
        if self._images is not None:
            visual, count = self._images.visual, self._images.visual.sum(1)
            origin = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
            layers = [count] * self.decoder.config.num_hidden_layers
            self._counts = self._images.image.amax(1) + 1, count, layers, layers, visual, origin

    # ------------------------------------------------------------------ what a call brings
    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._labels = kwargs.get("labels")

    def _before_core(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._images = None
        ids = kwargs.get("input_ids", args[0] if args else None)
        features = self.backbone.image_features(kwargs)
        if features is None:
            return None
        if ids is None:
            raise UserError("inputs_embeds with images: compression needs input_ids to know where the images are")
        visual = self.backbone.visual(ids)
        sizes = torch.tensor([f.shape[0] for f in features], device=ids.device)
        owner = torch.repeat_interleave(torch.arange(len(features), device=ids.device), sizes)
        image = torch.full_like(ids, -1)
        if owner.numel() == int(visual.sum()):  # else the model itself says what is wrong
            image[visual] = owner
            first = torch.where(visual, image, len(features)).amin(1, keepdim=True)
            image = torch.where(visual, image - first, -1)
            self._images = _Images(visual, image, features, self.backbone.grids(kwargs, features))
        return args, kwargs

    def _after_core(self, *_: Any) -> None:
        self._images = self._labels = None

    def _wanted(self, cache: Any) -> bool:
        """Whether this call of the decoder is the runner's business; all others go to the decoder as it is."""
        if isinstance(cache, CompressedCache) or self._blocks is not None:
            return True
        return self._images is not None and bool(self.method.layers())

    # ------------------------------------------------------------------ the walk
    def _walk(
        self, x: Tensor, mask: Tensor | None, position: Tensor | None, cache: Any, use_cache: bool | None, kwargs: dict
    ) -> BaseModelOutputWithPast:
        """One pass over the layers. x [B, T, D]; mask [B, seen + T]; position [B, T], all in the user's layout."""
        decoder, method, count = self.decoder, self.method, x.shape[1]
        starts = sorted({0, *method.layers()})
        cuts = method.layers() if self._images is not None else set()
        if use_cache and cache is None:
            cache = DynamicCache(config=decoder.config)
        if cache is not None:
            refuse(cache)
        if mask is not None and mask.ndim != 2:
            raise UserError(f"attention_mask of {mask.ndim} dimensions: compression needs the 2-D padding mask")
        ledger = None if cache is None else self._ledger(cache, starts, mask)
        seen = ledger.seen if ledger else 0
        if seen and self._blocks is not None:
            raise UserError("blocks: packed questions are for training; they can't go on from a filled cache")
        segments = ledger.segments if ledger else [Segment(s) for s in starts]
        prior = [(s.mask, s.shift, cache.get_seq_length(s.start) if ledger else 0) for s in segments]

        new = None if mask is None else mask[:, -count:].bool()
        deep = _deepstack(x, kwargs)
        first = tokens = _moved(self._sequence(x, new, position, seen, deep), None, prior[0][1])
        last = _last(tokens.mask)
        context = self._context() if cuts else None
        self.context = context or self.context
        counts: list[Tensor] = []
        cached: list[Tensor] = []
        for n, segment in enumerate(segments):
            entered = tokens
            if n:
                tokens = _moved(tokens, prior[n - 1][1], prior[n][1])
            if segment.start in cuts and context is not None:
                context.ahead = partial(self._ahead, segment.start, prior[n], cache)
                tokens = self._reduce(tokens, segment.start, context)
                del context.ahead  # it holds the cache
            if n == 0 or not (_same_layout(tokens, entered) and _same_past(prior[n], prior[n - 1])):
                if tokens.mask is not first.mask:
                    new = None if bool(tokens.mask.all()) else tokens.mask
                valid = extend(prior[n][0], prior[n][2], new, tokens.mask)
                attention = self._mask(tokens, valid, prior[n], cache, segment.start)
                rope = decoder.rotary_emb(
                    tokens.hidden, tokens.position[0] if len(tokens.position) == 1 else tokens.position
                )
            segment.mask, segment.shift = valid, tokens.shift
            end = segments[n + 1].start if n + 1 < len(segments) else decoder.config.num_hidden_layers
            if cuts:
                seen_here = (tokens.role != TEXT) & tokens.mask
                counts += [seen_here.sum(1)] * (end - segment.start)
                cached += [self._lasting(tokens, seen_here).sum(1)] * (end - segment.start)
            hidden = tokens.hidden
            for i in range(segment.start, end):
                run = {
                    "attention_mask": attention,
                    "position_embeddings": rope,
                    CACHE: cache,
                    "use_cache": use_cache,
                }
                # no position_ids: layers would take gaps in them for the seams of packed sequences
                at = decoder.layers[i].self_attn
                probed = context is not None and i in method.probes()
                watched: AbstractContextManager[dict] = probe.projections(at) if probed else nullcontext({})
                with watched as got:
                    hidden = decoder.layers[i](hidden, **run, **kwargs)
                if tokens.deep is not None and i < tokens.deep.shape[2]:
                    hidden = hidden + tokens.deep[:, :, i].to(hidden)
                if context is not None and probed:
                    keys = None if cache is None else cache.layers[i].keys
                    context.keys[i] = got["k"]
                    context.rows[i] = probe.attention_row(at, got, rope, *self._ends(tokens), tokens.block, valid, keys)
            tokens = dataclasses.replace(tokens, hidden=hidden)
            if ledger and cuts and method.bottleneck:
                segment.mask = self._evict(tokens, prior[n], cache, range(segment.start, end))

        if ledger:
            ledger.tail = _tail(first, last) if cuts else ledger.tail + count
            ledger.seen += count
        if cuts:
            kept = self._lasting(tokens, tokens.visual) & (tokens.origin >= 0)
            self._counts = first.image.amax(1) + 1, first.visual.sum(1), counts, cached, kept, tokens.origin
        hidden = decoder.norm(tokens.hidden)
        if self._blocks is not None or not _same_layout(tokens, first):
            hidden = layout.to_external(hidden, tokens.to(hidden.device), last.to(hidden.device), count)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: cache})

    def _ledger(self, cache: Any, starts: list[int], mask: Tensor | None) -> Ledger:
        if not isinstance(cache, CompressedCache):
            seen = cache.get_seq_length()
            CompressedCache.adopt(cache, starts, mask[:, :seen].bool() if mask is not None and seen else None)
        if [s.start for s in cache.ledger.segments] != starts:
            raise UserError(
                f"cache: filled by a method that acts before other layers than {self.method.name}; take a new one"
            )
        return cache.ledger

    def _sequence(
        self, x: Tensor, mask: Tensor | None, position: Tensor | None, seen: int, deep: Tensor | None
    ) -> TokenSequence:
        rows, count = x.shape[:2]
        axes = self.backbone.position_axes
        if position is None:
            position = torch.arange(seen, seen + count, device=x.device)[None]
        position = position if position.ndim == 3 else position[None].expand(axes, -1, -1)
        position = position[-axes:]  # before those in the grid some models put the place in the text, for their masks
        images = self._images
        zero = torch.zeros(rows, count, dtype=torch.long, device=x.device)
        return TokenSequence(
            hidden=x,
            mask=torch.ones_like(zero, dtype=torch.bool) if mask is None else mask,
            position=position.expand(-1, rows, -1),
            role=zero if images is None else images.visual * VISUAL,
            origin=torch.arange(count, device=x.device).expand(rows, -1),
            block=zero if self._blocks is None else self._blocks,
            image=zero - 1 if images is None else images.image,
            deep=deep,
        )

    def _reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if tokens.hidden.device != tokens.mask.device:  # a model spread over devices
            tokens = tokens.to(tokens.hidden.device)
        tokens = dataclasses.replace(tokens, compact=layer == 0 and len(tokens.position) == 1)
        return dataclasses.replace(self.method.reduce(tokens, layer, context), compact=False)

    def _context(self) -> Context:
        features = self._images.features if self._images is not None else []
        return Context(
            shape=self.backbone.shape,
            grids=self._images.grids if self._images is not None else [],
            features=features,
            run_decoder=partial(run_decoder, self.backbone),
            embed=self.backbone.decoder.embed_tokens,
            prompt=self._prompt_text,
            project=self.backbone.projector,
            tower=self._tower.tower(features),
            training=self.method.training and torch.is_grad_enabled(),
        )

    def _lasting(self, tokens: TokenSequence, some: Tensor) -> Tensor:
        """Of `some` tokens [B, L] those that stay when the prefill is over: behind a bottleneck no visual ones."""
        return some & ~tokens.visual if self.method.bottleneck else some

    def _evict(self, tokens: TokenSequence, prior: Past, cache: CompressedCache, layers: range) -> Tensor | None:
        """Takes the visual tokens, which nothing will see any more, out of the cache of layers that have run; the mask
        of what they hold then. Whatever is left keeps its position, and so do later tokens."""
        column = torch.arange(tokens.mask.shape[1], device=tokens.mask.device).expand_as(tokens.mask)
        left = dataclasses.replace(tokens, hidden=column[..., None]).hide(tokens.visual)
        cache.keep(layers, prior[2], left.hidden[..., 0])
        return extend(prior[0], prior[2], None if bool(left.mask.all()) else left.mask, left.mask)

    def _mask(self, tokens: TokenSequence, valid: Tensor | None, prior: Past, cache: Any, layer: int) -> Any:
        narrow = self.method.bottleneck and self._images is not None
        if narrow or self._blocks is not None:
            if self.decoder.config._attn_implementation not in ("sdpa", "eager"):
                what = f"method={self.method.name}: its mask needs" if narrow else "blocks: packed questions need"
                raise UserError(f"{what} attention=sdpa or eager")
            past = tokens.mask.new_ones(len(tokens.mask), prior[2]) if prior[0] is None else prior[0]
            return layout.pair_mask(tokens, past, narrow)
        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=tokens.hidden,
            attention_mask=valid,
            position_ids=None,
            layer_idx=layer,
            **{CACHE: cache},
        )

    def _ahead(
        self,
        layer: int,
        prior: Past,
        cache: Any,
        tokens: TokenSequence,
        queries: Tensor | None = None,
        over: Tensor | None = None,
    ) -> Tensor:
        """`Context.ahead` before `layer`. prior: of its cache."""
        decoder = self.decoder
        rope = decoder.rotary_emb(tokens.hidden, tokens.position[0] if len(tokens.position) == 1 else tokens.position)
        if queries is None:
            queries = self._asking(tokens)
        past = cache.layers[layer].keys if prior[2] else None
        return attention_ahead(decoder.layers[layer], rope, tokens, queries, over, past, prior[0])

    def _prompt_text(self, tokens: TokenSequence) -> Tensor:
        """`Context.prompt`."""
        last, asked = self._ends(tokens)
        behind = ((tokens.role != TEXT) & tokens.mask).cumsum(1) > 0
        column = torch.arange(tokens.mask.shape[1], device=last.device)
        ahead = (column <= last[..., None]) & self._questions(tokens.block, tokens.mask) & asked[..., None]  # [B, Q, L]
        text = (tokens.role == TEXT) & behind & ~_inside(tokens) & ahead.any(1)
        return torch.where(text.any(1, keepdim=True), text, self._asking(tokens) > 0)

    def _asking(self, tokens: TokenSequence) -> Tensor:
        """[B, L]: how many of the row's prompts end with each token."""
        last, asked = self._ends(tokens)
        return torch.zeros_like(tokens.block).scatter_add(1, last, asked.long())

    def _ends(self, tokens: TokenSequence) -> tuple[Tensor, Tensor]:
        """Where prompts end: [B, Q] indices among the tokens as they are, and which of these there are, [B, Q] bool.

        Q is 1, or the largest number of packed questions; a question whose first token is an answer already is asked by
        the end of the prefix.
        """
        member = self._questions(tokens.block, tokens.mask)
        packed = self._blocks is not None
        end, labels = None if packed else self._prompt, self._labels if self._answers is None else self._answers
        if end is None and labels is not None:
            answer = (labels != -100).to(member.device)[:, None]
            if self._blocks is not None:
                answer = answer & self._questions(self._blocks.to(member.device))
            end = torch.where(answer.any(2), answer.long().argmax(2) - 1, answer.shape[2])
        asked = torch.ones_like(member[..., 0])
        if packed:
            number = torch.arange(1, member.shape[1] + 1, device=member.device)[:, None]
            asked = ((tokens.block[:, None] == number) & tokens.mask[:, None]).any(2)
            asked[:, 0] |= ~asked.any(1)  # no question behind the prefix
        if end is None:
            return _last(member), asked
        end = end.to(member.device).view(len(end), -1).repeat_interleave(len(member) // len(end), 0)  # beams
        after = member & (tokens.origin[:, None] > end[..., None])  # what a method made has no origin, but a place
        return _last(member & (after.cumsum(2) == 0)), asked

    def _questions(self, block: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, Q, L] bool: the tokens [B, L] of the shared prefix and of each packed question; all where none is."""
        if self._blocks is None:
            member = torch.ones_like(block, dtype=torch.bool)[:, None]
        else:
            number = torch.arange(1, max(1, int(self._blocks.max())) + 1, device=block.device)[:, None]
            member = (block[:, None] == 0) | (block[:, None] == number)
        return member if mask is None else member & mask[:, None]


def _deepstack(x: Tensor, kwargs: dict) -> Tensor | None:
    """[B, T, S, D]: what a model wants added to the hidden states of its images behind its first S layers; None for
    nothing. Taken out of the decoder's keyword arguments `kwargs`."""
    where, given = kwargs.pop("visual_pos_masks", None), kwargs.pop("deepstack_visual_embeds", None)
    if given is None or not len(given):
        return None
    deep = x.new_zeros(*x.shape[:2], len(given), x.shape[2])
    return deep.index_put((where.to(x.device),), torch.stack([g.to(x) for g in given], 1))


def _last(mask: Tensor) -> Tensor:
    """The last True of each row, [..., L] → [...]."""
    return torch.arange(mask.shape[-1], device=mask.device).expand_as(mask).masked_fill(~mask, 0).amax(-1)


def _inside(tokens: TokenSequence) -> Tensor:
    """[B, L] bool: text between the tiles of one image, which is the image's and no prompt's."""
    image = torch.where(tokens.mask, tokens.image, -1)
    many = image.shape[1]
    before = image.cummax(1).values
    after = torch.where(image < 0, many, image).flip(1).cummin(1).values.flip(1)
    return (image < 0) & (before == after)


def _tail(tokens: TokenSequence, last: Tensor) -> int:
    """Tokens behind the last image that every row has in the same columns."""
    count = tokens.mask.shape[1]
    if bool((last != count - 1).any()):
        return 0  # padding on the right: rows end in different columns
    return count - 1 - int(_last(tokens.visual).max())


def _same_layout(a: TokenSequence, b: TokenSequence) -> bool:
    return a.mask is b.mask and a.position is b.position


def _same_past(a: tuple, b: tuple) -> bool:
    """Whether two segments have the same past: (mask, shift, cached tokens)."""
    return a[0] is b[0] and a[1] is b[1] and a[2] == b[2]


def _moved(tokens: TokenSequence, was: Tensor | None, to: Tensor | None) -> TokenSequence:
    """The same tokens with the shift that earlier turns left in another segment."""
    if was is to:
        return tokens
    nothing = torch.zeros_like(tokens.position[0, :, :1])
    delta = (nothing if to is None else to) - (nothing if was is None else was)
    shift = delta if tokens.shift is None else tokens.shift + delta
    return dataclasses.replace(tokens, position=tokens.position + delta, shift=shift)
