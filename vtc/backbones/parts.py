"""What the framework needs of a model in memory: its parts, the features of images, prompts and inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones import regions
from vtc.backbones.regions import Region
from vtc.errors import UserError
from vtc.interface import BackboneShape, Tower, TowerUse, projected_layer

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature

    Clips = Sequence[Sequence[Sequence[Image]]] | None  # of each question its videos, each a list of frames


def part(path: str) -> Any:
    """The property of a backbone that is this part of its transformers model."""
    return property(attrgetter(f"model.{path}"))


class Parts:
    """The transformers model as it is, and the places where its parts are.

    Attributes:
        name: of the choice, as the user types it.
        model: the `…ForConditionalGeneration`, unmodified.
        processor, tokenizer: None for a model built in memory without one.
        shape: its sizes.
        image_size: side in pixels of the square that every image is resized to first; None: as the processor has it.
            It gives a family of dynamic resolution a fixed number of visual tokens.

    Args:
        options: attributes of a family that differ from checkpoint to checkpoint, such as `image_size`.

    Attributes:
        image_text, video_text: what stands for an image and for a video in a prompt that the processor reads; a family
            without videos has None.
        position_axes: of the decoder's position ids; 3 for M-RoPE.
        windows: whether layers of the decoder attend in sliding windows, under rotary frequencies of their own.
        recurrent: whether layers of the decoder have linear attention, which holds a state and no cached tokens.
        both_ways: the input by which the visual tokens of an image see each other both ways in the decoder, where a
            call brings it; None: there is none, and every token sees what is before it.
        linear_layers: names of the linear layers in a layer of the decoder.
        tower_outputs: the entries of the vision tower's output that the family reads, where nothing else of a call of
            the tower is needed: they can be kept and read again (`vtc.evaluation.towers`); empty: they can't.
        of_any_size: what the encoder is told beside pictures that are smaller than the tower's own.
    """

    image_text: ClassVar[str] = "<image>"
    video_text: ClassVar[str | None] = None
    position_axes: ClassVar[int] = 1
    windows: ClassVar[bool] = False
    recurrent: ClassVar[bool] = False
    both_ways: ClassVar[str | None] = None
    linear_layers: ClassVar[tuple[str, ...]] = tuple(
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    )

    tower_outputs: ClassVar[tuple[str, ...]] = ()
    of_any_size: ClassVar[dict[str, Any]] = {"interpolate_pos_encoding": True}

    image_size: int | None = None

    def __init__(self, name: str, model: Any, processor: Any, shape: BackboneShape, **options: Any) -> None:
        self.name, self.model, self.processor, self.shape = name, model, processor, shape
        for option, value in options.items():
            setattr(self, option, value)

    # -- parts
    core = part(
        "model"
    )  # the multimodal model below the language-model head: merges image features into the embeddings
    decoder = part("model.language_model")  # `.layers`, `.norm`, `.rotary_emb`, `.embed_tokens`
    projector = part("model.multi_modal_projector")
    vision_tower = part("model.vision_tower")
    image_token_id = part("config.image_token_id")

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", None)

    @property
    def device(self) -> torch.device:
        """Of the decoder's embeddings, where its inputs belong."""
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoder's embeddings."""
        return self.decoder.embed_tokens.weight.dtype

    @property
    def context(self) -> int | None:
        """Positions that the decoder is made for: `max_position_embeddings`, and what RoPE scaling makes of them, as
        vLLM reads it: longrope's and Llama 3's are counted already. None: it doesn't say.
        """
        config = self.decoder.config
        known, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
        if known is None or rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
            return known
        return max(known, int(rope.get("original_max_position_embeddings", known) * rope.get("factor", 1)))

    @property
    def tower_layers(self) -> Sequence[Any]:
        """The vision tower's layers."""
        raise UserError(f"backbone={self.name}: the layers of its vision tower can't be watched")

    def tower_attention(self, layer: Any) -> Any:
        """The self-attention of a layer of the tower: a module with `q_proj` and `k_proj`, or with `qkv`."""
        return layer.self_attn

    def project(self, features: Tensor) -> Tensor:
        """What the projector makes of cells [..., C'] (`Tower.features`), one by one: [..., D]."""
        return self.projector(features)

    def unprojected(self, features: Tensor) -> Tensor:
        """Zeros in the form of what the projector makes of the features that it is called with."""
        return features.new_zeros(*features.shape[:-1], self.shape.width)

    @property
    def tower_embeddings(self) -> Any:
        """The module whose output [I, T, C] the vision tower's layers work on."""
        raise UserError(f"backbone={self.name}: no tokens can be put beside the patches of its vision tower")

    def tower_halves(self, layer: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """A layer of the tower cut in two, both with their residuals: `attend(hidden [I, T, C], bias [I, 1, 1, T])`,
        whose bias is added to the attention scores, and `mlp(hidden)`.
        """
        raise UserError(f"backbone={self.name}: tokens can't be merged inside the layers of its vision tower")

    def add_adapters(self, names: Sequence[str], rank: int, alpha: int, dropout: float = 0.0) -> None:
        """Puts LoRA adapters (peft) on all linear layers of the decoder and freezes the language model. Does nothing
        where they are.

        They are inactive until the engine runs the decoder under one: the model by itself stays what it was.

        Raises:
            UserError: other adapters, or the same of another rank, are there already.
        """
        if self._inject(self.decoder, "language model", list(self.linear_layers), names, rank, alpha, dropout):
            self.model.get_output_embeddings().requires_grad_(False)

    def add_tower_adapters(self, names: Sequence[str], rank: int, alpha: int, dropout: float = 0.0) -> None:
        """The same for the vision tower: in all linear layers of its layers up to the one that is projected."""
        import torch

        layers = list(self.tower_layers)[: projected_layer(self.shape) + 1]
        inside = {id(m) for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)}
        targets = [n for n, m in self.vision_tower.named_modules() if id(m) in inside]
        self._inject(self.vision_tower, "vision tower", targets, names, rank, alpha, dropout)

    def _inject(
        self, module: Any, what: str, targets: list[str], names: Sequence[str], rank: int, alpha: int, dropout: float
    ) -> bool:
        """Puts LoRA beside the weights of `module` and freezes those; False where it is already there."""
        from vtc.backbones import adapters

        present: list[Any] = adapters.tuner_layers(module)
        if present:
            ranks = dict(present[0].r)
            if ranks == dict.fromkeys(names, rank):
                return False
            listed = ", ".join(f"{n} of rank {r}" for n, r in ranks.items())
            raise UserError(f"backbone={self.name}: its {what} already has adapters ({listed}); load it anew")
        from peft import LoraConfig, inject_adapter_in_model

        for name in names:
            module.__dict__.pop("peft_config", None)  # else peft warns of a second adapter, which is the point
            config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
            inject_adapter_in_model(config, module, adapter_name=name)
        adapters.activate(adapters.tuner_layers(module), [])
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        return True

    @property
    def placeholders(self) -> tuple[int, ...]:
        """The token ids in whose places the model puts visual tokens: those of images, and of videos where it has
        them.
        """
        return (self.image_token_id,)

    def visual(self, input_ids: Tensor) -> Tensor:
        """[B, L] bool: where visual tokens stand."""
        return reduce(or_, (input_ids == token for token in self.placeholders))

    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Projected features of every image, a list of [N_i, D] in the order of the prompt, of a call of `core` with
        these keyword arguments; None without images.

        An image is what a budget is for: a picture with all of its tiles, or one frame of a video. Where the features
        had to be computed, `kwargs` is changed so that `core` doesn't compute them again.
        """
        raise NotImplementedError

    def encoded(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What `core` makes of the pixels of a call with these keyword arguments, by medium: `image`, `video`.

        Where it had to be computed, `kwargs` is changed so that `core` doesn't compute it again.
        """
        outputs = dict(kwargs.get("mm_encoder_outputs") or {})
        for medium, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if outputs.get(medium) is None and kwargs.get(pixels) is not None:
                encode = getattr(self.core, f"get_{medium}_features")
                names = [*inspect.signature(encode).parameters]
                call = {k: kwargs[k] for k in names if kwargs.get(k) is not None}
                if pixels not in names:  # in older versions some families call the frames of a video `pixel_values`
                    call[names[0]] = kwargs[pixels]
                outputs[medium] = encode(**call, return_dict=True)
                kwargs |= {"mm_encoder_outputs": outputs, pixels: None}
        return outputs

    def images_in(self, inputs: Mapping[str, Tensor]) -> int:
        """How many images (see `image_features`) the inputs of `core` have."""
        return len(inputs.get("pixel_values", ()))

    def tower_pictures(self, medium: str, call: Mapping[str, Any], features: Tensor) -> Tower:
        """What the projector read in a call of the encoder, and which visual tokens it made of that: the cells,
        patches and weights of a `Tower`, picture by picture as the encoder puts them out.

        Args:
            medium: `image` or `video`.
            call: the arguments of `core.get_{medium}_features` by name.
            features: the projector's input.
        """
        return Tower(features)

    def resized(self, medium: str, call: dict[str, Any], pixels: str, use: TowerUse) -> dict[str, Any]:
        """The arguments of a call of the encoder with its pictures as small as `use` asks for.

        Args:
            pixels: which of them holds the pictures.
        """
        from vtc.backbones.pixels import resized

        side = use.image_size
        if side is None or side == call[pixels].shape[-1]:
            return call
        return call | {pixels: resized(call[pixels], (side, side))} | self.of_any_size

    def places(self, medium: str, call: Mapping[str, Any], count: int) -> list[int]:
        """Visual tokens that the prompt has places for, of each of the `count` pictures in a call of the encoder."""
        return [self.shape.vision.tile_tokens or self.shape.visual_tokens or 0] * count

    def encoded_lengths(self, encoded: Sequence[Tensor], tower: Tower) -> list[int]:
        """Visual tokens of each of the pictures that an encoder put out."""
        return [len(f) for f in (encoded if tower.patches is None else tower.patches)]

    def grids(self, kwargs: dict[str, Any], features: Sequence[Tensor]) -> list[tuple[int, int] | None]:
        """(height, width) in visual tokens of every image of a call of `core`, None where they are in no grid.

        Args:
            kwargs, features: as `image_features` left and gave them.
        """
        return [self.grid_of(f.shape[0]) for f in features]

    def grid_of(self, count: int) -> tuple[int, int] | None:
        """(height, width) of an image with `count` visual tokens, None if unknown."""
        side = int(round(count**0.5))
        return (side, side) if side * side == count else None

    def regions(self, size: tuple[int, int], count: int, grid: tuple[int, int] | None) -> list[Region]:
        """Where the visual tokens of an image stand on its picture; empty where that isn't known.

        Args:
            size: (height, width) of the picture in pixels, before anything is done to it.
            count: its visual tokens.
            grid: they stand on, as `grids` says.
        """
        if grid is None:
            return []
        squeezed = self.image_size is not None or self.processor is None
        box = regions.WHOLE if squeezed else regions.seen(size, getattr(self.processor, "image_processor", None))
        return [regions.Region(*grid, box)]

    # -- prompts
    def prompt(self, question: str, images: int = 1, videos: int = 0) -> str:
        """The family's chat prompt for one question about `images` images and, behind them, `videos` videos, up to
        where the answer begins."""
        raise NotImplementedError

    def conversation(self, turns: Sequence[tuple[str, str]], images: int = 1) -> list[tuple[str, bool]]:
        """Questions and answers as text to train on, in pieces: (text, whether the model is to say it).

        Joined, they begin as `prompt` of the first question does, with all images there, so that what is trained is
        what is asked in evaluation; every answer ends with the end-of-text token.
        """
        pieces: list[tuple[str, bool]] = []
        for turn, (question, answer) in enumerate(turns):
            pieces.append((self.prompt(question, 0 if turn else images), False))
            pieces.append((f" {answer}{self.tokenizer.eos_token}", True))
        return pieces

    def inputs(
        self,
        questions: Sequence[str],
        images: Sequence[Sequence[Image]],
        videos: Clips = None,
    ) -> BatchFeature:
        """Questions with their images as model inputs: left-padded, on the model's device, in its dtype.

        Args:
            images: of each question.
            videos: of each question, each a list of frames; None: none.

        Raises:
            UserError: videos, of a family that reads none.
        """
        clips = [()] * len(images) if videos is None else videos
        rows = zip(questions, images, clips, strict=True)
        return self.encode([self.prompt(q, len(i), len(v)) for q, i, v in rows], images, videos)

    def encode(
        self,
        text: Sequence[str],
        images: Sequence[Sequence[Image]],
        videos: Clips = None,
    ) -> BatchFeature:
        """Prompts, written with `image_text` and `video_text`, as model inputs; see `inputs`."""
        if videos is not None and any(videos) and self.video_text is None:
            raise UserError(f"backbone={self.name}: it reads images, not videos")
        batch = self._processed(list(text), [[self.sized(i) for i in row] for row in images], videos)
        return batch.to(device=self.device, dtype=self.dtype)  # of what is floating point alone

    def _processed(self, text: list[str], images: list[list[Image]], videos: Clips) -> BatchFeature:
        """What the family's processor makes of prompts and pictures."""
        pictures: dict[str, Any] = {"images": self.pictures(images) or None}
        if videos is not None and any(videos):
            pictures["videos"] = [video for row in videos for video in row]
        return self.processor(text=text, padding=True, padding_side="left", return_tensors="pt", **pictures)

    def pictures(self, images: list[list[Image]]) -> list[Any]:
        """The pictures of rows as the processor takes them; most take all as one list."""
        return [image for row in images for image in row]

    def row(self, text: str, images: Sequence[Image], **options: Any) -> Mapping[str, Any]:
        """What the family's processor makes of one prompt with its pictures, `sized` already.

        Args:
            options: of the processor.
        """
        return self.processor(text=[text], images=list(images) or None, return_tensors="pt", **options)

    def sized(self, image: Image) -> Image:
        """RGB, and resized to `image_size` where it is set."""
        image = image.convert("RGB")
        return image if self.image_size is None else image.resize((self.image_size, self.image_size))

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Position ids as `generate` makes them: [B, L], or [3, B, L] of M-RoPE. Those of padding don't matter.

        Args:
            inputs: of the model; input_ids and attention_mask among them.
        """
        return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
