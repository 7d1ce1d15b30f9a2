"""What the framework needs to know of a backbone: its sizes, and where its parts are."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones.loading import _first_line, _looks_local
from vtc.errors import UserError
from vtc.interface import BackboneShape

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor
    from transformers import BatchFeature
    from typing_extensions import Self


def decoder_sizes(text: Any) -> dict[str, Any]:
    """What a decoder's configuration says of it, as `BackboneShape` names it."""
    width, heads = text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None)
    return {
        "depth": text.num_hidden_layers,
        "width": width,
        "intermediate": text.intermediate_size,
        "heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "vocab": text.vocab_size,
        "head_dim": None if head == width // heads else head,
    }


class Backbone:
    """An LVLM of one family: the transformers model as it is, and the places where its parts are.

    Attributes:
        name: as registered.
        model: the `…ForConditionalGeneration`, unmodified.
        processor, tokenizer: None for a model built in memory without one.
        shape: its sizes.
        image_size: side in pixels of the square that every image is resized to first; None: as the processor has it.
            It gives a family of dynamic resolution a fixed number of visual tokens.

    Class attributes:
        image_text, video_text: what stands for an image and for a video in a prompt that the processor reads; a family
            without videos has None.
        position_axes: of the decoder's position ids; 3 for M-RoPE.
        size_options: keys of the config, and arguments of the constructor, that the number of visual tokens depends on.
    """

    default_pretrained: ClassVar[str | None] = None
    model_class: ClassVar[str] = ""
    image_text: ClassVar[str] = "<image>"
    video_text: ClassVar[str | None] = None
    position_axes: ClassVar[int] = 1
    size_options: ClassVar[tuple[str, ...]] = ("image_size",)

    def __init__(
        self, name: str, model: Any, processor: Any, shape: BackboneShape, image_size: int | None = None
    ) -> None:
        self.name, self.model, self.processor, self.shape = name, model, processor, shape
        self.image_size = image_size

    # -- loading
    @classmethod
    def pretrained(cls, cfg: Mapping[str, Any]) -> str:
        """Path or hub id of the weights: `cfg.pretrained`, else the class's default."""
        given = str(cfg.get("pretrained") or cls.default_pretrained)
        return str(Path(given).expanduser()) if given.startswith("~") else given

    @classmethod
    def _config(cls, cfg: Mapping[str, Any]) -> Any:
        from transformers import AutoConfig

        source = cls.pretrained(cfg)
        if _looks_local(source) and not (Path(source) / "config.json").is_file():
            raise UserError(
                f"backbone.pretrained={source}: no config.json there; give a transformers folder or a hub id"
            )
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=bool(cfg.get("trust_remote_code", False)))
        except (OSError, ValueError) as error:
            raise UserError(f"backbone.pretrained={source}: can't be read ({_first_line(error)})") from error
        cls._check(config, source)
        return config

    @classmethod
    def _check(cls, config: Any, source: str) -> None:
        """Raises `UserError` unless `config` is of this family."""

    @classmethod
    def shape_of(cls, cfg: Mapping[str, Any]) -> BackboneShape:
        """The sizes, from config.json alone. Raises `UserError` where there is none or it is of another family."""
        name = cfg.get("name") or cls.__name__
        # Importing transformers' configurations takes seconds, and a mistake in the budget should be told at once.
        try:
            text = cls._config_text(cfg)
            if text is not None:
                config = json.loads(text, object_hook=lambda d: SimpleNamespace(**d))
                cls._check(config, cls.pretrained(cfg))
                return cls._sized(config, name, cfg)
        except (AttributeError, TypeError, ValueError):
            pass  # not written out in full (transformers knows the defaults), or damaged (it says how)
        return cls._sized(cls._config(cfg), name, cfg)

    @classmethod
    def _config_text(cls, cfg: Mapping[str, Any]) -> str | None:
        """The config.json, where it is at hand."""
        file = Path(cls.pretrained(cfg)) / "config.json"
        return file.read_text(encoding="utf-8") if file.is_file() else None

    @classmethod
    def shape_from(cls, config: Any, name: str) -> BackboneShape:
        """The sizes that a model's config says. A family of dynamic resolution takes `image_size: int | None` as well,
        and has a number of visual tokens and a grid only where it is given.
        """
        raise NotImplementedError

    @classmethod
    def _sized(cls, config: Any, name: str, cfg: Mapping[str, Any]) -> BackboneShape:
        """`shape_from`, for images as `cfg` has them (`size_options`)."""
        options = {key: cfg[key] for key in cls.size_options if cfg.get(key) is not None}
        size = options.get("image_size")
        if size is None:
            return cls.shape_from(config, name, **options)
        if "image_size" not in inspect.signature(cls.shape_from).parameters:
            raise UserError(f"backbone.image_size={size}: {name} has one size of images; allowed: null")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"backbone.image_size={size}: allowed: a side in pixels, or null")
        return cls.shape_from(config, name, **options)

    @classmethod
    def made(cls, config: Any, name: str, model: Any, processor: Any, cfg: Mapping[str, Any]) -> Self:
        """A backbone with images as `cfg` has them."""
        options = {key: cfg.get(key) for key in cls.size_options}
        return cls(name, model, processor, cls._sized(config, name, cfg), **options)

    @classmethod
    def load(cls, cfg: Mapping[str, Any]) -> Backbone:
        """The model, in eval mode, on its device, with its processor.

        Args:
            cfg: name; pretrained; dtype ("float32" or "fp32", "bfloat16" or "bf16", "float16" or "fp16", "auto": as
                stored); device ("auto", "cpu", "cuda:0", …); device_map (None, "auto", …, or a dict); attention
                ("sdpa", "eager", "flash_attention_2"); quantization ("none", "4bit", "8bit"); trust_remote_code.

        Raises:
            UserError: what `check_loading` refuses, or weights that can't be read or aren't all there.
        """
        from vtc.backbones import loading

        return loading.load(cls, cfg)

    @classmethod
    def check_loading(cls, cfg: Mapping[str, Any]) -> None:
        """Raises `UserError` where `load` is bound to fail: an unknown value, a device or a package that isn't there,
        a folder without complete safetensors weights."""
        from vtc.backbones import loading

        loading.check(cls, cfg)

    @classmethod
    def skeleton(cls, cfg: Mapping[str, Any]) -> Backbone:
        """The model without weights, on torch's meta device, and without a processor: to count what it has."""
        import torch
        import transformers

        config, name = cls._skeleton_config(cfg), cfg.get("name") or cls.__name__
        with torch.device("meta"):
            model = getattr(transformers, cls.model_class)(config)
        return cls.made(config, name, model, None, cfg)

    @classmethod
    def _skeleton_config(cls, cfg: Mapping[str, Any]) -> Any:
        return cls._config(cfg)

    @classmethod
    def wrap(cls, model: Any, processor: Any | None = None, name: str = "model", **options: Any) -> Self:
        """A model that is already in memory, as a backbone of this family.

        Args:
            options: those of `size_options`.
        """
        return cls.made(model.config, name, model, processor, options)

    # -- parts
    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", None)

    @property
    def device(self) -> torch.device:
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.weight.dtype

    @property
    def core(self) -> Any:
        """The multimodal model below the language-model head: it merges image features into the embeddings."""
        return self.model.model

    @property
    def decoder(self) -> Any:
        """The language model: `.layers`, `.norm`, `.rotary_emb`, `.embed_tokens`."""
        return self.core.language_model

    @property
    def projector(self) -> Any:
        return self.core.multi_modal_projector

    @property
    def vision_tower(self) -> Any:
        return self.core.vision_tower

    @property
    def tower_layers(self) -> Sequence[Any]:
        """The vision tower's layers: each has `self_attn` with `q_proj` and `k_proj`."""
        raise UserError(f"backbone={self.name}: the layers of its vision tower can't be watched")

    @property
    def tower_embeddings(self) -> Any:
        """The module whose output [I, T, C] the vision tower's layers work on."""
        raise UserError(f"backbone={self.name}: no tokens can be put beside the patches of its vision tower")

    def tower_halves(self, layer: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """A layer of the tower cut in two, both with their residuals: `attend(hidden [I, T, C], bias [I, 1, 1, T])`,
        whose bias is added to the attention scores, and `mlp(hidden)`.
        """
        raise UserError(f"backbone={self.name}: tokens can't be merged inside the layers of its vision tower")

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    linear_layers: ClassVar[tuple[str, ...]] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )  # of the decoder's layers

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

        from vtc.interface import projected_layer

        read = list(self.tower_layers)[: projected_layer(self.shape) + 1]
        inside = {id(m) for layer in read for m in layer.modules() if isinstance(m, torch.nn.Linear)}
        targets = [n for n, m in self.vision_tower.named_modules() if id(m) in inside]
        self._inject(self.vision_tower, "vision tower", targets, names, rank, alpha, dropout)

    def _inject(
        self, module: Any, what: str, targets: list[str], names: Sequence[str], rank: int, alpha: int, dropout: float
    ) -> bool:
        """Puts LoRA beside the weights of `module` and freezes those; False where it is already there."""
        from vtc.backbones import adapters

        there: list[Any] = adapters.tuner_layers(module)
        if there:
            if dict(there[0].r) == dict.fromkeys(names, rank):
                return False
            found = ", ".join(f"{n} of rank {r}" for n, r in there[0].r.items())
            raise UserError(f"backbone={self.name}: its {what} already has adapters ({found}); load it anew")
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
        first, *others = self.placeholders
        where = input_ids == first
        for other in others:
            where = where | (input_ids == other)
        return where

    def image_features(self, kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Projected features of every image, a list of [N_i, D] in the order of the prompt, of a call of `core` with
        these keyword arguments; None without images.

        An image is what a budget is for: a picture with all of its tiles, or one frame of a video. Where the features
        had to be computed, `kwargs` is changed so that `core` doesn't compute them again.
        """
        raise NotImplementedError

    def images_in(self, inputs: Mapping[str, Tensor]) -> int:
        """How many images (see `image_features`) the inputs of `core` have."""
        return len(inputs.get("pixel_values", ()))

    def tower_patches(self, call: Mapping[str, Any]) -> list[Tensor] | None:
        """Where the tower sees images in tiles: of each image, which of its patches (T·N of T tiles) each visual token
        was made of, [L]; -1: of none. None: it sees images whole, patch by patch a visual token.

        Args:
            call: the arguments of `core.get_image_features` by name.
        """
        return None

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
        videos: Sequence[Sequence[Sequence[Image]]] | None = None,
    ) -> BatchFeature:
        """Questions with their images as model inputs: left-padded, on the model's device, in its dtype.

        Args:
            images: of each question.
            videos: of each question, each a list of frames; None: none.

        Raises:
            UserError: videos, of a family that reads none.
        """
        shown = [()] * len(images) if videos is None else videos
        rows = zip(questions, images, shown, strict=True)
        return self.encode([self.prompt(q, len(i), len(v)) for q, i, v in rows], images, videos)

    def encode(
        self,
        text: Sequence[str],
        images: Sequence[Sequence[Image]],
        videos: Sequence[Sequence[Sequence[Image]]] | None = None,
    ) -> BatchFeature:
        """Prompts, written with `image_text` and `video_text`, as model inputs; see `inputs`."""
        if videos is not None and any(videos) and self.video_text is None:
            raise UserError(f"backbone={self.name}: it reads images, not videos")
        batch = self._processed(list(text), [[self.sized(i) for i in row] for row in images], videos)
        return batch.to(device=self.device, dtype=self.dtype)  # of what is floating point alone

    def _processed(
        self, text: list[str], images: list[list[Image]], videos: Sequence[Sequence[Sequence[Image]]] | None
    ) -> BatchFeature:
        """What the family's processor makes of prompts and pictures; most take the pictures of all rows as one list."""
        pictures: dict[str, Any] = {"images": [image for row in images for image in row] or None}
        if videos is not None and any(videos):
            pictures["videos"] = [video for row in videos for video in row]
        return self.processor(text=text, padding=True, padding_side="left", return_tensors="pt", **pictures)

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
