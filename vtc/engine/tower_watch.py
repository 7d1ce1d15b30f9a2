"""Watching the vision tower while the model calls it: queries, keys and outputs of single layers, what is projected.

The model's `get_image_features` is wrapped on the instance for as long as the engine is installed; hooks live only
inside its call. Nothing runs twice and no attention weights are asked for. `generate()` computes the features once and
hands them on (repeated for beams): what was seen is found again by the features themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vtc.backbones import adapters
from vtc.engine import probe
from vtc.errors import UserError
from vtc.interface import Tower, TowerUse, projected_layer

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import Compressor


class TowerWatch:
    """The vision tower of one backbone under one method. Does nothing for a method that asks nothing of the tower."""

    def __init__(self, backbone: Backbone, method: Compressor) -> None:
        self.backbone, self.method = backbone, method
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()  # features of an image → (Tower, its number there)

    def install(self, stack: ExitStack) -> None:
        """Takes the place of the model's `get_image_features` until the stack closes."""
        if self.method.tower() is None:
            return
        core = self.backbone.core
        # Of an engine around this one, which is passed over, too.
        original = getattr(core.get_image_features, "vtc_original", core.get_image_features)
        signature = inspect.signature(original)

        @wraps(original)  # generate() reads its signature
        def get_image_features(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
            use = self.method.tower()
            if use is None:
                return original(pixel_values, *args, **kwargs)
            if use.image_size is not None and use.image_size != pixel_values.shape[-1]:
                pixel_values = resized(pixel_values, use.image_size)
                kwargs["interpolate_pos_encoding"] = True
            with self._watching(use) as seen:
                outputs = original(pixel_values, *args, **kwargs)
            arguments = signature.bind(pixel_values, *args, **kwargs).arguments
            self._remember(outputs, self._as_tower(seen, self.backbone.tower_patches(arguments)))
            return outputs

        get_image_features.vtc_original = original  # type: ignore[attr-defined]
        stand_in(stack, core, "get_image_features", get_image_features)
        stack.callback(self._seen.clear)

    def recall(self, features: Sequence[Tensor]) -> Tower | None:
        """What was seen while these features [N, D] of I images were made; None where nothing was asked for.

        Raises:
            UserError: they were made outside.
        """
        if self.method.tower() is None or not len(features):
            return None
        entries = [self._seen.get(f) for f in features]
        towers = {id(entry[0]): entry[0] for entry in entries if entry is not None}
        if len(towers) != 1 or None in entries:
            raise UserError(
                f"method={self.method.name}: it looks at the vision tower; give it pixel_values, not features that "
                "were computed elsewhere"
            )
        tower, rows = next(iter(towers.values())), [row for _, row in entries]
        if rows == list(range(len(tower))):
            return tower
        return tower.images(torch.tensor(rows, device=tower.features.device))

    # ------------------------------------------------------------------ inside one call
    @contextmanager
    def _watching(self, use: TowerUse) -> Iterator[dict[Any, Any]]:
        """Collects `{"features": what is projected, "levels": {layer: output}, layer: {"q", "k"}}` meanwhile."""
        seen: dict[Any, Any] = {"levels": {}}

        def note_features(module: Any, args: tuple) -> None:
            seen["features"] = args[0]

        with ExitStack() as stack:
            if use.adapter is not None:
                stack.enter_context(adapters.using(self.backbone.tower_layers, use.adapter))
            if use.summary is not None:
                self._summarise(stack, use.summary)
            stack.callback(self.backbone.projector.register_forward_pre_hook(note_features).remove)
            for layer in sorted(use.watch):
                attention = self.backbone.tower_layers[layer].self_attn
                seen[layer] = stack.enter_context(probe.projections(attention))
            for layer in sorted(use.levels):
                hook = partial(_note_level, seen["levels"], layer)
                stack.callback(self.backbone.tower_layers[layer].register_forward_hook(hook).remove)
            if not use.projects:
                self._leave_unprojected(stack)
            if use.merge is not None:
                self._merge(stack, use)
            yield seen

    def _summarise(self, stack: ExitStack, summary: Tensor) -> None:
        """Puts `summary` [M, C] behind what the tower embeds, and lets the projector see the last M tokens alone."""

        def append(module: Any, args: tuple, output: Tensor) -> Tensor:
            return torch.cat([output, summary.to(output).expand(len(output), -1, -1)], 1)

        def cut(module: Any, args: tuple) -> tuple:
            return args[0][:, -len(summary) :], *args[1:]

        stack.callback(self.backbone.tower_embeddings.register_forward_hook(append).remove)
        stack.callback(self.backbone.projector.register_forward_pre_hook(cut).remove)

    def _leave_unprojected(self, stack: ExitStack) -> None:
        """Zeros of the LLM's width [I, N, D] in place of what the projector would compute."""
        width = self.backbone.shape.width

        def forward(features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return features.new_zeros(*features.shape[:-1], width)

        stand_in(stack, self.backbone.projector, "forward", forward)

    def _merge(self, stack: ExitStack, use: TowerUse) -> None:
        """Lets the method merge tokens in every layer up to the projected one, between attention and MLP."""
        implementation = self.backbone.vision_tower.config._attn_implementation
        if implementation not in ("sdpa", "eager"):
            raise UserError(
                f"method={self.method.name}: attention proportional to merged patches needs attention=sdpa or eager, "
                f"not {implementation}"
            )
        sizes: list[Tensor] = []

        def merging_forward(layer: int, block: Any) -> Any:
            attend, mlp = self.backbone.tower_halves(layer)

            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                if layer == 0:
                    exact = torch.promote_types(hidden_states.dtype, torch.float32)
                    sizes[:] = [hidden_states.new_ones(hidden_states.shape[:2], dtype=exact)]
                size = sizes[-1]
                with probe.projections(block.self_attn) as projected:
                    hidden = attend(hidden_states, size.log()[:, None, None].to(hidden_states.dtype))
                keys = projected["k"].unflatten(-1, (self.backbone.shape.vision.heads, -1)).transpose(1, 2)
                assert use.merge is not None
                hidden, size = use.merge(layer, hidden, keys, size)
                sizes[:] = [size]
                return mlp(hidden)

            return forward

        for layer in range(projected_layer(self.backbone.shape) + 1):
            block = self.backbone.tower_layers[layer]
            # This passes by gradient checkpointing, which wraps the class's own forward.
            stand_in(stack, block, "forward", merging_forward(layer, block))

    def _as_tower(self, seen: dict[Any, Any], patches: Sequence[Tensor] | None) -> Tower:
        """What `_watching` collected, in the form that methods read."""
        vision, features, levels = self.backbone.shape.vision, seen.pop("features"), seen.pop("levels")
        queries = {layer: projected["q"] for layer, projected in seen.items()}
        keys = {layer: projected["k"] for layer, projected in seen.items()}
        return Tower(features, queries, keys, vision.heads, vision.cls, levels, patches)

    def _remember(self, outputs: Any, tower: Tower) -> None:
        """Fills the places that an image has in the prompt beyond its features, and ties what was seen to them."""
        places = self.backbone.shape.visual_tokens or 0
        features = outputs.pooler_output
        outputs.pooler_output = [F.pad(f, (0, 0, 0, places - len(f))) if len(f) < places else f for f in features]
        for row, image in enumerate(outputs.pooler_output):
            self._seen[image] = (tower, row)


def _note_level(levels: dict[int, Tensor], layer: int, module: Any, args: tuple, output: Any) -> None:
    levels[layer] = output if isinstance(output, Tensor) else output[0]


def resized(pixel_values: Tensor, side: int) -> Tensor:
    """Pixels [I, 3, H, W] → [I, 3, side, side]: bicubic with antialiasing, as image libraries shrink pictures."""
    small = F.interpolate(pixel_values.float(), size=(side, side), mode="bicubic", antialias=True)
    return small.to(pixel_values.dtype)


def stand_in(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Puts `value` in the place of an attribute until the stack closes.

    What the instance itself had there comes back: accelerate puts a `forward` of its own on modules.
    """
    own = owner.__dict__.get(name)
    stack.callback(lambda: owner.__dict__.pop(name, None) if own is None else setattr(owner, name, own))
    setattr(owner, name, value)
