"""Training a compression method on pocket: the engine runs the method, this file chooses what learns from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vtc.backbones.base import Backbone
from vtc.compressor import Compressor
from vtc.engine import compressing
from vtc.errors import UserError, unknown
from vtc.pocket.data import Packed, caption_batch, draw_questions, image_prefix, pack, render
from vtc.pocket.recipe import QuestionStage, answer_loss, embedding_loss
from vtc.pocket.scenes import Scene

# What a stage may train, by the places of the parameters in a LLaVA.
PARTS = ("method", "adapters", "projector", "decoder")


def parameters_of(part: str, backbone: Backbone, method: Compressor) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of one part, named as in a checkpoint.

    ``method``: its own (registers, summary tokens); ``adapters``: LoRA; ``projector`` and ``decoder``: the backbone's.
    """
    if part == "method":
        yield from ((f"method.{n}", p) for n, p in method.named_parameters())
        return
    if part not in PARTS:
        raise unknown("training.stages[].train", part, PARTS)
    for name, parameter in backbone.model.named_parameters():
        lora = "lora_" in name
        place = "adapters" if lora else "projector" if "multi_modal_projector" in name else "decoder"
        if place == part and "vision_tower" not in name:
            yield f"backbone.{name}", parameter


class MethodStage(QuestionStage):
    """Packed questions about pictures under a compression method, and the method's own losses.

    Args:
        train: the parts that learn; everything else is frozen.
        twins: every other scene of a batch is its neighbour with the colours dealt out anew: negatives that differ in
            their binding alone, for contrastive losses.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        method: Compressor,
        train: Sequence[str],
        data: Mapping[str, Any],
        seed: int,
    ):
        super().__init__(
            backbone.model,
            seed,
            int(data["batch_size"]),
            int(data["questions"]),
            dict(data["weights"]),
            tuple(data.get("first_kinds", ())),
            float(data.get("first_share", 0.0)),
        )
        self.name, self.backbone, self.method = name, backbone, method
        self.twins = bool(data.get("twins", False))
        self.contrastive = float(data.get("contrastive", 0.0))
        self.trained = {n: p for part in train for n, p in parameters_of(part, backbone, method)}
        if not self.trained:
            raise UserError(f"training.stages: stage {name!r} trains {list(train)}, but {method.name} has none of it")
        self.freeze()

    def freeze(self) -> None:
        """Gradients for what is trained, and for nothing else."""
        wanted = {id(p) for p in self.trained.values()}
        for module in (self.backbone.model, self.method):
            for parameter in module.parameters():
                parameter.requires_grad_(id(parameter) in wanted)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.trained.items()

    def start_step(self, step: int, total: int) -> None:
        super().start_step(step, total)
        self.method.set_stage(step, total)

    def pack(self, rng, scenes: list[Scene], weights, count) -> Packed:
        questions = [draw_questions(rng, s, count, weights, caption=True) for s in scenes]
        packed = pack(image_prefix(), questions, render(scenes), embed=self.contrastive > 0)
        packed.captions = [scene.caption for scene in scenes]
        return packed

    def forward(self, batch: Packed) -> tuple[Tensor, Any]:
        """Last hidden states ``[B, L, D]`` in the layout of ``batch``, and the engine that made them."""
        with compressing(self.backbone, self.method) as engine, engine.blocks(batch.blocks):
            out = self.backbone.core(
                input_ids=batch.input_ids,
                pixel_values=batch.pixel_values,
                position_ids=batch.position_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
            )
        return out.last_hidden_state, engine

    def hidden(self, batch: Packed) -> Tensor:
        return self.forward(batch)[0]

    def validate(self) -> dict[str, float]:
        """As it is scored: a scheme of stages is over then."""
        self.method.eval()
        return super().validate()

    def losses(self, batch: Packed) -> dict[str, Tensor]:
        """L_AR of the answers, and what the method adds: Fwd2Bot's contrastive loss, from the same first pass.

        With ``data.contrastive``, the loss of the embeddings that all other methods are scored by (the base model's own
        instruction stage has it).
        """
        self.method.train()
        hidden, engine = self.forward(batch)
        terms = {"answer": answer_loss(self.model.lm_head(hidden), batch.labels)}
        if engine.context is not None:
            engine.context.captions = tuple(t.to(self.device) for t in caption_batch(batch.captions))
            terms |= self.method.losses(engine.context)
        if self.contrastive:
            terms["contrastive"] = self.contrastive * embedding_loss(self.model, hidden, batch)
        return terms
