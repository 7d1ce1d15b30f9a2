"""Watching the vision tower while the model calls it: queries, keys and outputs of single layers, what is projected.

The model's `get_image_features` and `get_video_features` are wrapped on the instance for as long as the engine is
installed; hooks live only inside their calls. Nothing runs twice and no attention weights are asked for. `generate()`
has the pixels encoded once and hands on the encoder's output (its images repeated for beams), in which what was seen
goes along.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.backbones import adapters, encoders
from vtc.engine import probe
from vtc.errors import UserError
from vtc.interface import Tower, TowerUse, projected_layer

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.engine.call import Images
    from vtc.interface import Compressor

SEEN = "vtc_seen"  # the entry of an encoder's output that says what was seen while it was made


class TowerWatch:
    """The vision tower of one backbone under one method. Does nothing for a method that asks nothing of the tower."""

    def __init__(self, backbone: Backbone, method: Compressor) -> None:
        self.backbone, self.method = backbone, method

    def install(self, stack: ExitStack) -> None:
        """Takes the place of the model's `get_image_features` and `get_video_features` until the stack closes."""
        if self.method.tower() is None:
            return
        for medium in ("image", "video"):
            if hasattr(self.backbone.core, f"get_{medium}_features"):
                self._take_place(stack, medium)

    def _take_place(self, stack: ExitStack, medium: str) -> None:
        """Of the function that encodes this medium from pixels, its first argument."""
        core, name = self.backbone.core, f"get_{medium}_features"
        # Of an engine around this one, which is passed over, too.
        original = getattr(getattr(core, name), "vtc_original", getattr(core, name))
        signature = inspect.signature(original)
        pixels = next(iter(signature.parameters))

        @wraps(original)  # generate() reads its signature
        def get_features(*args: Any, **kwargs: Any) -> Any:
            use = self.method.tower()
            if use is None:
                return original(*args, **kwargs)
            bound = signature.bind(*args, **kwargs).arguments
            given = bound | bound.pop("kwargs", {})
            call = self.backbone.resized(medium, given, pixels, use)
            with self._watching(use) as seen:
                outputs = original(**call)
            tower = self._as_tower(seen, medium, call | {encoders.PIXELS[medium]: call[pixels]})
            self._remember(outputs, tower, use, partial(self.backbone.places, medium, given))
            return outputs

        get_features.vtc_original = original  # type: ignore[attr-defined]
        stand_in(stack, core, name, get_features)

    def recall(self, images: Images) -> Tower | None:
        """What was seen while the features of a call's images were made; None where nothing was asked for.

        Raises:
            UserError: they were made outside.
        """
        if self.method.tower() is None or not images.features:
            return None
        whole: Tower | None = None
        index = [-1] * len(images.features)  # in the whole tower, of each image of the call
        for medium in dict.fromkeys(images.media):
            seen = (images.outputs.get(medium) or {}).get(SEEN)
            if seen is None:
                raise UserError(
                    f"method={self.method.name}: it looks at the vision tower; give it pixel_values, not features that "
                    "were computed elsewhere"
                )
            own = [n for n, other in enumerate(images.media) if other == medium]
            numbers, sizes = _before_beams(images, own, sum(seen.lengths))
            tower = seen.tower.grouped(seen.lengths, sizes)
            for n, number in zip(own, numbers, strict=True):
                index[n] = number + (0 if whole is None else len(whole))
            whole = tower if whole is None else whole.beside(tower)
        assert whole is not None
        if index == list(range(len(whole))):
            return whole
        return whole.images(torch.tensor(index, device=whole.features.device))

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
                attention = self.backbone.tower_attention(self.backbone.tower_layers[layer])
                seen[layer] = stack.enter_context(probe.tower_projections(attention))
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
        """Zeros of the LLM's width in place of what the projector would compute."""

        def forward(features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return self.backbone.unprojected(features)

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

    def _as_tower(self, seen: dict[Any, Any], medium: str, call: Mapping[str, Any]) -> Tower:
        """What `_watching` collected, in the form that methods read."""
        vision, features, levels = self.backbone.shape.vision, seen.pop("features"), seen.pop("levels")

        def of_layers(name: str) -> dict[int, Tensor]:
            return {layer: projected[name] for layer, projected in seen.items() if name in projected}

        return dataclasses.replace(
            self.backbone.tower_pictures(medium, call, features),
            queries=of_layers("q"),
            keys=of_layers("k"),
            rotated=of_layers("rotated"),
            spans=of_layers("spans"),
            heads=vision.heads,
            extra=vision.cls,
            levels={layer: state if state.ndim == 3 else state[None] for layer, state in levels.items()},
        )

    def _remember(self, outputs: Any, tower: Tower, use: TowerUse, places_of: Callable[[int], list[int]]) -> None:
        """Puts what was seen into what the encoder made: an entry goes along when the output is copied, as accelerate
        does on its way to the next module's device. Where the tower gives fewer features than a picture has places in
        the prompt, the other places are filled up.

        Args:
            places_of: how many places each of so many pictures has.
        """
        lengths = self.backbone.encoded_lengths(outputs.pooler_output, tower)
        if any(asked is not None for asked in (use.merge, use.summary, use.image_size, use.grid)):
            places = [max(one) for one in zip(lengths, places_of(len(lengths)), strict=True)]
            outputs.pooler_output = filled(outputs.pooler_output, lengths, places)
            if deepstack := outputs.get("deepstack_features"):
                outputs.deepstack_features = [filled(level, lengths, places) for level in deepstack]
            lengths = places
        outputs[SEEN] = Seen(tower, lengths)


@dataclass(frozen=True)
class Seen:
    """What was seen in one call of the tower.

    Attributes:
        lengths: visual tokens of each of the pictures that it encoded, places that were filled up among them.
    """

    tower: Tower
    lengths: list[int]


def _before_beams(images: Images, own: Sequence[int], encoded: int) -> tuple[list[int], list[int]]:
    """Which of the images that were encoded these are, `own` of a call, and the sizes [I] of those: `generate` puts
    each row as often as there are beams, one behind the other, with all of its images.

    Args:
        encoded: visual tokens of all images that were encoded.
    """
    sizes, rows = [len(images.features[n]) for n in own], [images.rows[n] for n in own]
    beams = max(1, sum(sizes) // max(1, encoded))
    numbers: list[int] = []
    first: dict[int, int] = {}  # row → the number of its first image among those that were encoded
    once: list[int] = []
    for place, row in enumerate(rows):
        if row % beams == 0:
            first.setdefault(row, len(once))
            once.append(sizes[place])
        numbers.append(first[row - row % beams] + sum(1 for other in rows[:place] if other == row))
    return numbers, once


def _note_level(levels: dict[int, Tensor], layer: int, module: Any, args: tuple, output: Any) -> None:
    levels[layer] = output if isinstance(output, Tensor) else output[0]


def filled(features: Any, lengths: Sequence[int], places: Sequence[int]) -> Any:
    """What an encoder gives of pictures of `lengths` visual tokens, with zeros behind each, up to its `places`: [T, N,
    D], [ΣN, D], or a sequence whose entries are one or several pictures.
    """
    flat = isinstance(features, Tensor) and features.ndim == 2
    sizes = iter(zip(lengths, places, strict=True))
    out = []
    for entry in [features] if flat else features:
        pieces, begin = [], 0
        while begin < len(entry):
            length, place = next(sizes)
            pieces.append(F.pad(entry[begin : begin + length], (0, 0, 0, place - length)))
            begin += length
        out.append(torch.cat(pieces))
    if isinstance(features, Tensor):
        return out[0] if flat else torch.stack(out)
    return type(features)(out)


def stand_in(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Puts `value` in the place of an attribute until the stack closes.

    What the instance itself had there comes back: accelerate puts a `forward` of its own on modules.
    """
    own = owner.__dict__.get(name)
    stack.callback(lambda: owner.__dict__.pop(name, None) if own is None else setattr(owner, name, own))
    setattr(owner, name, value)
