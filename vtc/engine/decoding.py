"""Greedy decoding as one compiled step over buffers of fixed size, in the place of `generate()`'s loop.

`generate()` runs the prefill and the first step. Then the keys and values of each layer, of whatever length compression
has left there, go into one buffer of that layer's own length, with room for the answer. A step reads and writes nothing
but tensors that stay where they are (the last token, positions, places in the buffers, masks), so that it can be
compiled once and replayed, on CUDA as a CUDA graph. It runs the decoder's own layers, which are given a cache whose
`update` writes into the buffers: one code path for all families.

The tokens are those of `generate()`, which stays the reference, and does what this can't: `obstacle` says why.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.backbones import adapters
from vtc.backbones.loading import first_line
from vtc.engine import one_query
from vtc.engine.cache import CACHE, CompressedCache, Segment

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.engine.engine import Engine

BACKEND = "inductor"  # of torch.compile
BUCKET = 64  # buffers hold a multiple of it, so that prompts of about the same length share a compiled step
COMPILED = "compiled"
FIRST = 2  # tokens that `generate()` makes itself: the prefill's, and one by which the positions are known
RUNNERS = 4  # that a backbone keeps, each with its buffers
LOOK = 16  # steps between two looks at whether all rows have ended
SHORTEST = 16  # new tokens from which on it is tried
KNOWN = {
    "input_ids", "attention_mask", "max_new_tokens", "min_new_tokens", "pad_token_id", "do_sample", "temperature",
    "top_p", "top_k", "use_cache", "num_beams", "pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask",
    "batch_num_images", "mm_token_type_ids", "token_type_ids",
}  # fmt: skip
NEUTRAL = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "stop_strings": None,
    "sequence_bias": None, "guidance_scale": None, "max_time": None, "num_return_sequences": 1,
    "return_dict_in_generate": False, "encoder_repetition_penalty": 1.0, "penalty_alpha": None, "min_length": 0,
    "exponential_decay_length_penalty": None, "renormalize_logits": False, "remove_invalid_values": False,
}  # fmt: skip


def obstacle(engine: Engine, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """Why a call of `generate` can't be decoded by the compiled step; None: it can."""
    config = kwargs.get("generation_config") or engine.backbone.model.generation_config
    if args or kwargs.get("input_ids") is None:
        return "input_ids aren't given by name"
    if others := sorted(key for key, value in kwargs.items() if key not in KNOWN and value is not None):
        return f"{others[0]} is given"
    if kwargs.get("do_sample", config.do_sample) or (kwargs.get("num_beams") or config.num_beams or 1) > 1:
        return "it is no greedy search"
    for key, neutral in NEUTRAL.items():
        if (value := getattr(config, key, neutral)) not in (None, neutral):
            return f"generation_config has {key}={value}"
    if kwargs.get("use_cache", config.use_cache) is False:
        return "it has no cache"
    if (kwargs.get("max_new_tokens") or config.max_new_tokens or 0) < SHORTEST:
        return f"fewer than {SHORTEST} new tokens don't pay for it"
    return uncompilable(engine.backbone)


def uncompilable(backbone: Backbone) -> str | None:
    """Why a pass of the decoder can't be compiled; None: it can."""
    if len({p.device for p in backbone.model.parameters()}) > 1:
        return "the model is spread over devices"
    if getattr(backbone.model, "is_quantized", False):
        return "the weights are quantised"
    if (attention := backbone.decoder.config._attn_implementation) not in ("sdpa", "eager"):
        return f"attention={attention} takes no masks of fixed size"
    if backbone.windows:
        return "its layers attend in windows, whose masks change from step to step"
    if backbone.recurrent:
        return "its layers with linear attention hold states, for which the buffers of a step have no place"
    return None


def generated(engine: Engine, original: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """What `original(*args, **kwargs)` gives, by the compiled step where there is no obstacle, and whether the logits
    that it computed itself were numbers. `engine.decoding` says which of the two it was.
    """
    why = obstacle(engine, args, kwargs)
    if why is None:
        try:
            out = decode(engine, original, kwargs)
        except refusals() as error:
            why = f"the step can't be compiled ({first_line(error)})"
        else:
            engine.decoding = COMPILED
            return out
    engine.decoding = f"generate: {why}"
    return original(*args, **kwargs), True


def refusals() -> tuple[type[Exception], ...]:
    """What the compiler raises where it can't compile. Imported only then: the compiler takes seconds to import."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError, FailOnRecompileLimitHit


def decode(engine: Engine, original: Callable[..., Any], kwargs: dict[str, Any]) -> tuple[Tensor, bool]:
    """`original(**kwargs)`: the tokens [B, T + new], and whether all logits were numbers.

    Args:
        original: the model's own `generate`; the call has no `obstacle`.
    """
    config = kwargs.get("generation_config") or engine.backbone.model.generation_config
    count = kwargs.get("max_new_tokens") or config.max_new_tokens
    least = kwargs.get("min_new_tokens") or config.min_new_tokens or 0
    ends, pad = config.eos_token_id, kwargs.get("pad_token_id", config.pad_token_id)
    ids = kwargs["input_ids"]
    end = torch.tensor([] if ends is None else [ends] if isinstance(ends, int) else [*ends], device=ids.device).long()
    pad = pad if pad is not None or not len(end) else int(end[0])
    positions: list[Tensor | None] = []

    def note(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        positions.append(kwargs.get("position_ids"))

    hook = engine.decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        first = min(FIRST, count)
        begun = original(
            **kwargs | {"max_new_tokens": first, "min_new_tokens": min(least, first), "return_dict_in_generate": True}
        )
    finally:
        hook.remove()
    tokens, cache = begun.sequences, getattr(begun, CACHE, None) or begun.past_key_values
    made = tokens[:, ids.shape[1] :]
    done = torch.isin(made, end).any(1)
    if made.shape[1] < FIRST or count <= FIRST or bool(done.all()):
        return tokens, True
    mask = kwargs.get("attention_mask")
    state = Begin.of(engine, cache, mask, positions[-1], made, count - FIRST)
    runner = Runner.fitting(engine, state)
    runner.start(state, done, end, 0 if pad is None else pad, least - FIRST, count - FIRST)
    adapter = engine.method.adapter
    with (
        adapters.using(engine.decoder.layers, adapter) if adapter else nullcontext(),
        one_query.replacing(engine.decoder),
    ):
        new = runner.run(count - FIRST)
    return torch.cat([tokens, new.to(tokens)], 1), runner.is_finite


def compiled(
    owner: Any, method: Callable[..., Any], device: torch.device, replayed: bool = False
) -> Callable[..., Any]:
    """A method of `owner`, compiled for it alone.

    Args:
        replayed: it works in place, and can be a CUDA graph where it has no arguments.
    """
    # Compiled code is kept with the code it was made of, and little of it; so each owner has code of its own.
    own = types.MethodType(types.FunctionType(method.__code__.replace(), method.__globals__), owner)
    if replayed and device.type == "cuda":
        return torch.compile(own, backend=BACKEND, dynamic=False, fullgraph=True, mode="reduce-overhead")
    options: dict[str, Any] = {"guard_filter_fn": _guards}
    if device.type == "cpu" and BACKEND == "inductor":
        # Kernels are called from compiled code. It is compiled apart from them: of 32 layers, with the kernels in one
        # file, the compiler had not finished after ten minutes.
        options |= {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    return torch.compile(own, backend=BACKEND, dynamic=False if replayed else None, fullgraph=True, options=options)


def _guards(guards: Sequence[Any]) -> list[bool]:
    """Which of the compiler's guards are looked at before each call: those on modes and arguments. The thousands on the
    modules take longer than a layer does; whoever keeps compiled code knows what modules it is for.
    """
    return [not guard.name or guard.name.isidentifier() for guard in guards]


@dataclass
class Begin:
    """What the first steps left.

    Attributes:
        token: [B, 1] the last token, which hasn't been decoded from.
        segments: as the cache's ledger has them; of an uncompressed one all layers.
        keys, values: [B, H, P, d] of each layer.
        position: [P, B, 1] of `token`, in the user's layout.
        lengths: of the buffers of each segment, at least one more than is filled: the compiler takes reading all of a
            buffer for another case than reading a part of it.
    """

    token: Tensor
    segments: list[Segment]
    keys: list[Tensor]
    values: list[Tensor]
    position: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(
        cls, engine: Engine, cache: Any, mask: Tensor | None, position: Tensor | None, made: Tensor, count: int
    ) -> Begin:
        """What is in `cache`.

        Args:
            mask: [B, T] of the prompt; None: all real.
            position: of the last pass, in the user's layout; None: they count from 0.
            made: [B, 2] the first tokens of the answer.
            count: how many are to follow.
        """
        seen, axes = int(cache.get_seq_length()), engine.backbone.position_axes
        if isinstance(cache, CompressedCache):
            segments = cache.ledger.segments
        else:
            real = None if mask is None else torch.nn.functional.pad(mask.bool(), (0, seen - mask.shape[1]), value=True)
            segments = [Segment(range(engine.decoder.config.num_hidden_layers), real)]
        if position is None:
            position = made.new_full((1, len(made), 1), seen - 1)
        position = position if position.ndim == 3 else position[None].expand(axes, -1, -1)
        position = position[-axes:, :, -1:].expand(-1, len(made), -1) + 1
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        needed = [keys[segment.start].shape[2] + count for segment in segments]
        lengths = tuple(-(-(n + 1) // BUCKET) * BUCKET for n in needed)
        return cls(made[:, -1:], segments, keys, values, position, lengths)


class Buffers:
    """The cache that layers are given in a step.

    Attributes:
        keys, values: of each layer [B, H, length, d].
        slots: [1] of each layer: where the next token goes.
        filled: of each layer how many places are read.
    """

    is_compileable = True

    def __init__(self, keys: list[Tensor], values: list[Tensor], slots: list[Tensor], filled: list[int]) -> None:
        self.keys, self.values, self.slots, self.filled = keys, values, slots, filled

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes one token's key and value [B, H, 1, d], and returns all that are read, [B, H, filled, d]."""
        self.keys[layer].index_copy_(2, self.slots[layer], key)
        self.values[layer].index_copy_(2, self.slots[layer], value)
        return self.keys[layer][:, :, : self.filled[layer]], self.values[layer][:, :, : self.filled[layer]]


class Runner:
    """A step of the decoder with its buffers, compiled once and kept for prompts that fit."""

    def __init__(self, engine: Engine, state: Begin) -> None:
        self.decoder, self.head = engine.decoder, engine.backbone.model.get_output_embeddings()
        rows, device = len(state.token), state.token.device
        shapes = [state.keys[s.start].shape for s in state.segments]
        like = state.keys[0]
        keys: list[Tensor] = []
        slots: list[Tensor] = []
        self.owner: list[int] = []  # of each layer its segment
        self.slots = [torch.zeros(1, dtype=torch.long, device=device) for _ in state.segments]
        self.masks = [like.new_zeros(rows, 1, 1, n) for n in state.lengths]
        self.positions = [state.position.clone() for _ in state.segments]
        values: list[Tensor] = []
        for index, (segment, shape, length) in enumerate(zip(state.segments, shapes, state.lengths, strict=True)):
            for i in segment.layers:
                keys.append(like.new_zeros(rows, shape[1], length, shape[3]))
                values.append(like.new_zeros(rows, state.values[i].shape[1], length, state.values[i].shape[3]))
                slots.append(self.slots[index])
                self.owner.append(index)
        self.keys, self.values, self.layer_slots = keys, values, slots
        self.token = state.token.clone()
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.pad = torch.zeros((), dtype=torch.long, device=device)
        self.banned = torch.zeros(self.head.weight.shape[0], dtype=torch.bool, device=device)
        self.ends = torch.zeros_like(self.banned)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.past = [0] * len(state.segments)
        self.unit = torch.zeros(1, device=device)
        fixed = [*keys, *values, *self.slots, *self.masks, *self.positions, self.token, self.done, self.finite]
        for tensor in fixed:
            torch._dynamo.mark_static_address(tensor)
        self._step = compiled(self, Runner.step, device, replayed=True)

    @classmethod
    def fitting(cls, engine: Engine, state: Begin) -> Runner:
        """One of the backbone's last runners where it fits, else a new one."""
        layers = tuple(segment.layers for segment in state.segments)
        adapter, dtype = engine.method.adapter, state.keys[0].dtype
        tuners = len(adapters.tuner_layers(engine.decoder))
        key = (len(state.token), layers, state.lengths, len(state.position), adapter, tuners, dtype, state.token.device)
        runners: dict[Any, Runner] = engine.backbone.__dict__.setdefault("runners", {})
        runner = runners.pop(key, None) or Runner(engine, state)
        runners[key] = runner  # the last one that was used stands last
        for old in list(runners)[:-RUNNERS]:
            del runners[old]
        return runner

    @property
    def is_finite(self) -> bool:
        return bool(self.finite)

    def start(self, state: Begin, done: Tensor, ends: Tensor, pad: int, least: int, count: int) -> None:
        """Fills the buffers.

        Args:
            done: [B] rows that have ended. ends: tokens that end a row. pad: what follows them.
            least: of so many tokens none is an end.
        """
        for index, segment in enumerate(state.segments):
            self.past[index] = past = state.keys[segment.start].shape[2]
            lowest = torch.finfo(self.masks[index].dtype).min
            self.masks[index].fill_(lowest)
            real = self.masks[index][:, 0, 0, :past]
            counts = 0 if segment.size is None else segment.size.to(real).log()  # of proportional attention
            real.copy_(counts + torch.zeros_like(real))
            if segment.mask is not None:
                real.masked_fill_(~segment.mask.to(real.device), lowest)
            self.slots[index].fill_(past)
            self.positions[index].copy_(state.position if segment.shift is None else state.position + segment.shift)
            for i in segment.layers:
                self.keys[i][:, :, :past].copy_(state.keys[i])
                self.values[i][:, :, :past].copy_(state.values[i])
        self.token.copy_(state.token)
        self.done.copy_(done)
        self.pad.fill_(pad)
        self.finite.fill_(True)
        self.ends.zero_()[ends] = True
        self.banned.copy_(self.ends if least > 0 else torch.zeros_like(self.ends))
        self.least = least

    def run(self, count: int) -> Tensor:
        """[B, n] of at most `count` tokens: up to where the last row ends."""
        out: list[Tensor] = []
        for index in range(count):
            if index == self.least:
                self.banned.zero_()
            self._step(*self._rulers(index + 1))
            out.append(self.token.clone())
            if index % LOOK == LOOK - 1 and bool(self.done.all()):
                break
        new = torch.cat(out, 1)
        ended = self.ends[new].cumsum(1) > 0  # what is behind the last row's end was made in vain
        length = new.shape[1] if not bool(self.done.all()) else int((~ended).sum(1).max()) + 1
        return new[:, :length]

    def _rulers(self, count: int) -> list[Tensor]:
        """Of each segment a tensor as long as what its buffers hold after `count` steps: a length that isn't compiled
        in. None on an accelerator, where a step is replayed as it was recorded.
        """
        if self.token.device.type != "cpu":
            return []
        rulers = [self.unit.expand(past + count) for past in self.past]
        for ruler, mask in zip(rulers, self.masks, strict=True):
            torch._dynamo.mark_dynamic(ruler, 0, min=2, max=mask.shape[-1] - 1)
        return rulers

    def step(self, *rulers: Tensor) -> None:
        """From the last token to the next one, all of it in place.

        Args:
            rulers: of each segment a tensor whose length says how much of its buffers is read; none: all of it.
        """
        decoder = self.decoder
        lengths = [len(ruler) for ruler in rulers] or [mask.shape[-1] for mask in self.masks]
        buffers = Buffers(self.keys, self.values, self.layer_slots, [lengths[segment] for segment in self.owner])
        hidden = decoder.embed_tokens(self.token)
        ropes = [decoder.rotary_emb(hidden, p[0] if len(p) == 1 else p) for p in self.positions]
        for mask, slot in zip(self.masks, self.slots, strict=True):
            mask.index_fill_(3, slot, 0)
        masks = [mask[..., :length] for mask, length in zip(self.masks, lengths, strict=True)]
        for i, layer in enumerate(decoder.layers):
            segment = self.owner[i]
            arguments = {CACHE: buffers, "use_cache": True, "position_embeddings": ropes[segment]}
            hidden = layer(hidden, attention_mask=masks[segment], **arguments)
        logits = self.head(decoder.norm(hidden))[:, -1].float()
        self.finite.logical_and_(logits.isfinite().all())
        token = logits.masked_fill(self.banned, float("-inf")).argmax(-1)
        token = torch.where(self.done, self.pad, token)
        self.done.logical_or_(self.ends[token])
        self.token.copy_(token[:, None])
        for place in (*self.positions, *self.slots):
            place.add_(1)
