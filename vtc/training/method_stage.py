"""Training a compression method: the engine runs the method, this file chooses what learns from what."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.backbones import recomputation
from vtc.backbones.base import Backbone
from vtc.checkpoint import parameters_of
from vtc.data.training import FileSource, Prefetched, TrainingSource
from vtc.data.training.batch import IGNORE, WHOLE, Batch, Part
from vtc.distributed import gather_with_gradient
from vtc.engine import Engine, compressing, encode_images, encode_texts
from vtc.engine.embed import EmbeddedImages
from vtc.errors import UserError
from vtc.interface import Captions, Compressor, Context
from vtc.methods import build
from vtc.methods.fwd2bot import info_nce
from vtc.settings import LOSSES
from vtc.training.stage import Stage

EMBED_TEMPERATURE = 0.07  # CLIP's


def answer_loss(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Next-token cross entropy, mean over the answers' tokens (LLaVA's loss; L_AR, eq. 2, of Fwd2Bot).

    Args:
        head: hidden states [..., D] → logits [..., V]; run on the states that predict an answer's token alone, since
            the logits of a whole batch are its largest tensor.
        hidden: [B, L, D] last hidden states.
        labels: [B, L], -100 where nothing is answered.
    """
    following = labels[:, 1:]
    counted = following != IGNORE
    return F.cross_entropy(head(hidden[:, :-1][counted]).float(), following[counted])


def laid_out(engine: Engine, batch: Batch) -> AbstractContextManager[None]:
    """Tells the engine how the rows of a batch are laid out, and where a prompt ends that an answer follows."""
    if batch.blocks is not None:
        return engine.blocks(batch.blocks, batch.labels)
    counted = batch.labels[:, 1:] != IGNORE
    last = batch.attention_mask.sum(1) - 1  # Of a row without an answer: its end, as rows are right-padded.
    return engine.prompt_ends(torch.where(counted.any(1), counted.long().argmax(1), last))


class MethodStage(Stage):
    """Questions about pictures under a compression method, and the losses that apply to each batch.

    Args:
        train: the parts that learn; everything else is frozen.
        source: of the batches.
        losses: ``ar``: next-token prediction of the answers (eq. 2 of Fwd2Bot); ``disc``: the contrastive loss (eq. 3)
            where a batch has captions; ``both``: each where it applies (section 3.4).
        compress: False: the uncompressed model learns in this stage (LLaVA's first, where a method begins with the
            second).
        workers: processes that load batches ahead, for a source that reads files.
        seed: of the budgets that an elastic method draws.
        contrastive: weight of the contrastive loss on the embeddings that methods without a loss of their own are
            scored by (E5-V's); 0: none.
        checkpointing: gradient checkpointing: a layer's activations are computed again in the backward pass.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        method: Compressor,
        train: Sequence[str],
        source: TrainingSource,
        losses: str = "both",
        contrastive: float = 0.0,
        checkpointing: bool = False,
        compress: bool = True,
        workers: int = 0,
        seed: int = 0,
    ):
        LOSSES.check("training.losses", losses)
        self.name, self.backbone, self.source = name, backbone, source
        self.method = method if compress else build("none", None, backbone.shape)
        self.kinds, self.contrastive, self.workers = losses, contrastive, workers
        self.prefetched: TrainingSource | Prefetched = source
        self.seed = seed
        self.budgets: Sequence[int] | None = None  # of the step, where the method is elastic
        self.batch_size = getattr(source, "batch_size", None)
        self.trained = {n: p for part in train for n, p in parameters_of(part, backbone, self.method)}
        if not self.trained:
            raise UserError(f"training.stages: stage {name!r} trains {list(train)}, but {method.name} has none of it")
        self.freeze()
        if checkpointing:
            recomputation.start(backbone.decoder, use_reentrant=False)
        elif any(getattr(layer, "gradient_checkpointing", False) for layer in backbone.decoder.layers):
            recomputation.stop(backbone.decoder)

    def freeze(self) -> None:
        """Gradients for what is trained, and for nothing else."""
        learning = {id(p) for p in self.trained.values()}
        for module in (self.backbone.model, self.method):
            for parameter in module.parameters():
                parameter.requires_grad_(id(parameter) in learning)

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.backbone.model, "method": self.method}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.trained.items()

    def start_step(self, step: int, total: int) -> None:
        self.method.set_stage(step, total)
        # The draw depends on the step alone, not on the process or on what ran before it.
        self.budgets = self.method.training_budgets(random.Random(f"{self.seed}/{self.name}/{step}"))

    # ------------------------------------------------------------------ data
    def expect(self, parts: Sequence[Part], first: int, last: int) -> None:
        if self.workers and isinstance(self.source, FileSource):
            self.prefetched = Prefetched(self.source, parts, first, last, self.workers)

    def batch(self, step: int, part: Part = WHOLE) -> Batch:
        return self.prefetched.batch(step, part)

    def weights(self, batch: Batch) -> dict[str, float]:
        return {"answer": batch.answers}

    def images(self, batch: Batch) -> int:
        return self.backbone.images_in(batch.inputs)

    def tokens(self, batch: Batch) -> int:
        return int(batch.attention_mask.sum())

    # ------------------------------------------------------------------ what is computed
    def forward(self, batch: Batch) -> tuple[Tensor, Context | None]:
        """Last hidden states ``[B, L, D]`` in the layout of ``batch``, and what the method saw, if anything."""
        with compressing(self.backbone, self.method) as engine, laid_out(engine, batch):
            out = self.backbone.core(**batch.inputs, use_cache=False)
        return out.last_hidden_state, engine.context

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """L_AR where the batch has answers, L_disc where it has captions, as far as `losses` takes each; of an elastic
        method the mean of each over the budgets of the step."""
        self.training_mode(True)
        if not self.budgets:
            return self.terms(batch)
        before, all_terms = self.method.tokens, []
        try:
            for tokens in self.budgets:
                self.method.tokens = tokens
                all_terms.append(self.terms(batch))
        finally:
            self.method.tokens = before
        return {name: torch.stack([terms[name] for terms in all_terms]).mean() for name in all_terms[0]}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The losses at the method's number of tokens."""
        # Of a step's conversations, a part may hold none with an answer: it runs as the others do, and counts nothing.
        answers = self.kinds != "disc" and (batch.answers > 0 or batch.captions is None)
        pairs = self.kinds != "ar" and batch.captions is not None
        hidden = context = None
        if answers or (pairs and batch.embed_at is not None):
            hidden, context = self.forward(batch)
        terms = {}
        if answers and hidden is not None:
            counted = batch.answers > 0
            loss = answer_loss(self.backbone.model.lm_head, hidden, batch.labels) if counted else 0.0 * hidden.sum()
            terms["answer"] = loss
        if pairs:
            terms |= self.discriminate(batch, hidden, context)
        if not terms:
            what = f"losses={self.kinds}" + ("" if self.contrastive else ", data.contrastive=0")
            raise UserError(f"training.{what}: a batch of stage {self.name!r} has nothing to learn from")
        return terms

    def discriminate(self, batch: Batch, hidden: Tensor | None, context: Context | None) -> dict[str, Tensor]:
        """The contrastive loss: the method's own (Fwd2Bot, eq. 3-4), else of the embeddings that it is scored by."""
        if self.method.learns_from_captions:
            assert batch.captions is not None
            if context is None:  # no answers: the first pass alone
                images = EmbeddedImages(self.backbone, self.method, batch.inputs, training=True)
                self.method.embed(images)
                context = images.context
            return self.method.losses(context, Captions(*batch.captions, gather_with_gradient))
        if not self.contrastive:
            return {}
        image, text = (gather_with_gradient(e) for e in self.embeddings(batch, hidden))
        return {"contrastive": self.contrastive * info_nce(image, text, EMBED_TEMPERATURE)}

    def embeddings(self, batch: Batch, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pictures and captions, ``[B, D]`` each; a picture's from the pass that answers, where it has a block."""
        if hidden is not None and batch.embed_at is not None:
            image = hidden[torch.arange(len(hidden), device=hidden.device), batch.embed_at]
        else:
            image = encode_images(self.backbone, self.method, batch.inputs["pixel_values"])
        assert batch.captions is not None
        return image, encode_texts(self.backbone, self.method, *batch.captions)

    def training_mode(self, on: bool) -> None:
        """Dropout and schedules of the method, and gradient checkpointing of the decoder, which asks for the mode."""
        self.method.train(on)
        self.backbone.decoder.train(on)

    @torch.no_grad()
    def answers(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Logits ``[B, L, V]`` of a batch, and the embeddings of pictures and captions where it has them."""
        hidden, _ = self.forward(batch)
        pairs = self.embeddings(batch, hidden) if batch.embed_at is not None else None
        return self.backbone.model.lm_head(hidden), pairs

    def validate(self) -> dict[str, float]:
        """As it is scored: a scheme of stages is over then. A source says what it can measure."""
        validate: Any = getattr(self.source, "validate", None)
        if isinstance(self.source, FileSource):  # What can't be read counts over all processes.
            self.source.skipped.synchronise()
        self.training_mode(False)
        return validate(self.answers, self.device) if validate else {}
