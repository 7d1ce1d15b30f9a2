"""A method installed in a backbone: what takes the place of the decoder's `forward`, and the hooks around it.

It takes the place of `forward` on ONE language-model instance. Around it everything stays as transformers has it:
`generate()`, its `input_ids`, masks and positions (the external layout), losses, gradient checkpointing, attention
backends.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from vtc.backbones import adapters, encoders, wrap
from vtc.backbones.base import Backbone
from vtc.engine import views
from vtc.engine.attention import AttentionRows, AttentionWatch, Queries
from vtc.engine.cache import CACHE, CompressedCache, cache_among
from vtc.engine.call import Call, Images
from vtc.engine.generate import Generation, noted
from vtc.engine.limits import check_context
from vtc.engine.passes import attach, run_decoder
from vtc.engine.questions import Questions
from vtc.engine.report import Report, Tally
from vtc.engine.tower_watch import TowerWatch, stand_in
from vtc.engine.walk import Walk
from vtc.errors import UserError
from vtc.interface import Compressor, Context, TokenSequence


class Engine:
    """A method installed in a backbone. Made by `compressing`.

    Attributes:
        report: what the last prefill with images kept; None before.
        context: what the method saw in it (for `Compressor.losses`); None before.
        compiled: whether `generate` decodes by a compiled step where it can (`vtc.engine.decoding`).
        decoding: how the last call of `generate` decoded: `compiled`, or `generate: ` and why; None where it wasn't to
            be compiled.
    """

    def __init__(self, backbone: Backbone, method: Compressor, compiled: bool = False) -> None:
        self.compiled = compiled
        self.decoding: str | None = None
        self.backbone, self.method, self.decoder = backbone, method, backbone.decoder
        if method.bottleneck and (method.probes() or method.reads_prompt):
            raise UserError(f"method={method.name}: attention is not probed behind a bottleneck; see Compressor")
        views.check(backbone)
        self.context: Context | None = None
        self._tally: Tally | None = None
        self._questions = Questions()  # of the calls to come
        self._call: Call | None = None  # the one that is running
        self._generation: Generation | None = None
        self._first_tokens: list[TokenSequence] | None = None  # where no layer is to run: what the first would get
        self._complexities: list[tuple[Tensor, TokenSequence]] | None = None  # likewise: how complex the images are
        self._watch: AttentionWatch | None = None
        self._installed = ExitStack()
        self._handed_over = ExitStack()  # what the running call needs in the model, and no other
        self._tower = TowerWatch(backbone, method)

    # ------------------------------------------------------------------ in and out
    def install(self) -> None:
        """Takes the place of the decoder's `forward`; `remove` gives it back."""
        engine, decoder = self, self.decoder
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
            embeddings = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            cache = cache_among(kwargs)
            others = {k: v for k, v in kwargs.items() if k not in (CACHE, "past_key_values")}
            return engine._walk(embeddings, views.taken(attention_mask), position_ids, cache, use_cache, others)

        def forward(decoder: Any, *args: Any, **kwargs: Any) -> Any:
            adapter = engine.method.adapter  # without one there is nothing to switch: outside the engine none is active
            with adapters.using(decoder.layers, adapter) if adapter else nullcontext():
                if args or not engine._acts(cache_among(kwargs)):
                    engine._begin_plain_call(kwargs)
                    return original(*args, **kwargs)
                return walk(decoder, **kwargs)

        forward.vtc_original = original  # type: ignore[attr-defined]
        stand_in(self._installed, decoder, "forward", types.MethodType(forward, decoder))
        model, core = self.backbone.model, self.backbone.core
        generate = getattr(model.generate, "vtc_original", model.generate)
        stand_in(self._installed, model, "generate", noted(self, generate))
        for hook in (
            model.register_forward_pre_hook(self._begin_call, with_kwargs=True),
            core.register_forward_pre_hook(self._find_images, with_kwargs=True),
            core.register_forward_hook(self._end_call, always_call=True),
            model.register_forward_hook(self._note_logits),
            model.register_forward_hook(self._end_call, always_call=True),
        ):
            self._installed.callback(hook.remove)
        self._tower.install(self._installed)

    def remove(self) -> None:
        """Leaves the model as it was before `install`."""
        self._handed_over.close()
        self._installed.close()
        self._questions, self._call = Questions(), None

    # ------------------------------------------------------------------ what the caller says
    def blocks(self, block_ids: Tensor, labels: Tensor | None = None) -> AbstractContextManager[None]:
        """Packed training: independent questions behind one shared prefix, in the forward passes inside.

        Args:
            block_ids: [B, L] in the user's layout; 0 = the prefix (everything up to and including the images), q = 1…
                = the q-th question. Attention is causal AND (key.block == 0 or key.block == query.block); position_ids
                are the caller's.
            labels: [B, L], -100 outside the answers, for methods that choose by the question: the prompt of a block
                ends before its first label, or with its last token where it has none. The questions share their images,
                which are compressed once, by the mean over the questions. None: the `labels` that the model is given.
        """
        return self._about(block=block_ids, labels=labels)

    def prompt_ends(self, index: Tensor) -> AbstractContextManager[None]:
        """Says where the prompt ends, where that isn't the last token: passes over a prompt and an answer.

        Args:
            index: [B] of each row's last prompt token in the user's layout. (In `generate` it is known, and with
                `labels`: the token before the first one with a label.)
        """
        return self._about(prompt_end=index)

    @contextmanager
    def _about(self, **changes: Tensor | None) -> Iterator[None]:
        """Says these things of the questions in the calls inside."""
        before = self._questions
        self._questions = dataclasses.replace(before, **changes)
        try:
            yield
        finally:
            self._questions = before

    @contextmanager
    def generating(self, new_tokens: int | None, ends: Tensor | None) -> Iterator[Generation]:
        """A call of the model's `generate`, of at most so many tokens.

        Args:
            ends: as `prompt_ends`, where the caller hasn't said it; None: with the last token of each call.
        """
        said = ends is None or self._questions.prompt_end is not None
        self._generation = Generation(new_tokens)
        try:
            with nullcontext() if said else self._about(prompt_end=ends):
                yield self._generation
        finally:
            self._generation = None

    @contextmanager
    def watching_attention(
        self, asked: Mapping[str, Queries], layers: Collection[int] | None = None
    ) -> Iterator[list[AttentionRows]]:
        """Hands out what chosen tokens pay to the others, layer by layer, in passes inside that bring images.

        Args:
            asked: name → a function of the tokens before a layer that says which, [B, L] bool, such as
                `vtc.engine.attention.made`. It is asked of every layer, also in passes that the method runs itself.
            layers: of the decoder; None: all.

        Returns:
            Rows of each layer and name, in the order in which they are computed; none where no token is asked for.
        """
        self._watch = AttentionWatch(asked, layers)
        try:
            yield self._watch.rows
        finally:
            self._watch = None

    @property
    def report(self) -> Report | None:
        return None if self._tally is None else self._tally.report()

    def first_tokens(self, inputs: dict[str, Any]) -> TokenSequence:
        """What layer 0 gets to see of the model's `inputs`; the decoder's layers don't run."""
        self._first_tokens = []
        try:
            self.backbone.core(**inputs, position_ids=self.backbone.positions(inputs), use_cache=False)
            return self._first_tokens[0]
        finally:
            self._first_tokens = None

    def complexities(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the images in the model's `inputs`, [I] each: how complex they are to the method, how many visual tokens
        they have, and which row they are in; the decoder's layers don't run.
        """
        self._complexities = []
        try:
            self.backbone.core(**inputs, position_ids=self.backbone.positions(inputs), use_cache=False)
            (said,) = self._complexities
        finally:
            self._complexities = None
        complexity, tokens = said
        return complexity, tokens.images[1].sum(1), tokens.frames[0]

    # ------------------------------------------------------------------ one call
    def _begin_call(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        questions, labels = self._questions, kwargs.get("labels")
        if questions.labels is None and labels is not None:
            questions = dataclasses.replace(questions, labels=labels)
        self._call = Call(questions, new_tokens=0 if self._generation is None else self._generation.begin_call())

    def _note_logits(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._generation is not None:
            self._generation.note(output.logits)

    def _find_images(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._call, before = self._current_call(), dict(kwargs)
        self._call.images = Images.of_call(self.backbone, kwargs.get("input_ids", args[0] if args else None), kwargs)
        self._call.both_ways = kwargs.get(self.backbone.both_ways or "") is not None
        if self.backbone.windows and self._acts(cache_among(kwargs)):  # else it would make masks by kind of layer
            kwargs["attention_mask"] = views.given(kwargs.get("attention_mask"))
        return args, encoders.handed_over(module, before, kwargs, self._handed_over)

    def _end_call(self, *_: Any) -> None:
        self._handed_over.close()
        self._call = None

    def _current_call(self) -> Call:
        """The call that is running: one of the model, or of a part of it by itself."""
        return self._call or Call(self._questions)

    def _acts(self, cache: Any) -> bool:
        """Whether the running call of the decoder is the engine's business; all others go to the decoder as it is."""
        call = self._current_call()
        if isinstance(cache, CompressedCache) or call.questions.block is not None:
            return True
        asked = self._first_tokens is not None or self._watch is not None
        return call.images is not None and (bool(self.method.layers()) or asked)

    def _begin_plain_call(self, kwargs: dict[str, Any]) -> None:
        """Of a call of the decoder that nothing touches: its context, and the report where it is a prefill."""
        call, cache = self._current_call(), cache_among(kwargs)
        inputs = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        if call.new_tokens is not None and inputs is not None:
            count = inputs.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
            position = kwargs.get("position_ids")
            if position is not None and position.ndim == 3:  # the place in the text may stand before those in the grid
                position = position[-self.backbone.position_axes :]
            check_context(self.backbone, count, position, call.new_tokens)
        if call.images is not None:
            depth = self.decoder.config.num_hidden_layers
            self._tally = Tally.of_plain_call(call.images, depth)

    def _walk(
        self,
        embeddings: Tensor,
        mask: Tensor | None,
        position: Tensor | None,
        cache: Any,
        use_cache: bool | None,
        layer_arguments: dict[str, Any],
    ) -> BaseModelOutputWithPast:
        """A pass over the layers. embeddings [B, T, D]; mask [B, seen + T]; position [B, T], in the user's layout."""
        call = self._current_call()
        walk = Walk(self.backbone, self.method, call, mask, cache, use_cache, layer_arguments, self._watch)
        context = self._new_context(call) if walk.reductions else None
        self.context = context or self.context
        if self._complexities is not None and context is not None:
            self._complexities.append(walk.complexities(embeddings, position, context))
            return BaseModelOutputWithPast(last_hidden_state=embeddings)
        if self._first_tokens is not None:
            self._first_tokens.append(walk.first_tokens(embeddings, position, context))
            return BaseModelOutputWithPast(last_hidden_state=embeddings)  # which nobody reads
        output = walk.run(embeddings, position, context)
        if self._watch is not None and call.images is not None and walk.tally is None:
            self._tally = Tally.of_plain_call(call.images, self.decoder.config.num_hidden_layers)
        self._tally = walk.tally or self._tally
        return output

    def _new_context(self, call: Call) -> Context:
        features = [] if call.images is None else call.images.features
        return Context(
            shape=self.backbone.shape,
            grids=[] if call.images is None else call.images.grids,
            features=features,
            run_decoder=partial(run_decoder, self.backbone, watch=self._watch),
            embed=self.decoder.embed_tokens,
            prompt=call.questions.prompt_text,
            project=self.backbone.project,
            tower=None if call.images is None else self._tower.recall(call.images),
            training=self.method.training and torch.is_grad_enabled(),
        )


@contextmanager
def compressing(model: nn.Module | Backbone, method: Compressor, compiled: bool = False) -> Iterator[Engine]:
    """Installs `method` in the backbone; whatever happens inside, it is removed at the end.

    `model(**inputs)` and `model.generate(...)` then work as ever, on fewer visual tokens. The model's class and
    weights stay as they are; a method with LoRA adapters (Fwd2Bot) has them injected beside the weights, inactive
    outside.

    Args:
        model: a `Backbone`, or a transformers model of a known family (also inside DDP or a PeftModel).
        compiled: whether `generate` decodes by a step that is compiled once and kept with the `Backbone`: the same
            tokens, faster from the second batch of a size on. `Engine.decoding` says whether it could.

    Raises:
        UserError: a model of no known family, or one that can't be compressed (sliding windows of a family that has
            none).
    """
    backbone = model if isinstance(model, Backbone) else wrap(model)
    attach(backbone, method)
    engine = Engine(backbone, method, compiled)
    engine.install()
    try:
        yield engine
    finally:
        engine.remove()
