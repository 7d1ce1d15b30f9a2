"""A model of one family: its sizes, known before it is in memory, and how it is loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.backbones import loading, refused
from vtc.backbones.parts import Parts
from vtc.errors import UserError
from vtc.interface import BackboneShape, RecurrentShape

if TYPE_CHECKING:
    from typing_extensions import Self

    from vtc.settings import BackboneSettings


def decoder_sizes(text: Any) -> dict[str, Any]:
    """What a decoder's configuration says of it, as `BackboneShape` names it."""
    width, heads = text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None)
    intermediate = text.intermediate_size
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)  # as transformers saves it
    if experts:  # the expert MLPs that a token goes through are to arithmetic one of their width together
        intermediate = text.num_experts_per_tok * text.moe_intermediate_size
    linear = _recurrent_sizes(text)
    return {
        "depth": text.num_hidden_layers,
        "width": width,
        "intermediate": intermediate,
        **({"recurrent": linear} if linear else {}),
        **({"experts": experts} if experts else {}),
        "heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "vocab": text.vocab_size,
        "head_dim": None if head == width // heads else head,
    }


def _recurrent_sizes(text: Any) -> RecurrentShape | None:
    """Of a decoder some layers of which have linear attention; None: all attend."""
    interval, kinds = getattr(text, "full_attention_interval", None), getattr(text, "layer_types", None)
    if kinds is None and interval:  # as released configurations say it
        kinds = ["linear_attention" if (i + 1) % interval else "" for i in range(text.num_hidden_layers)]
    layers = tuple(i for i, kind in enumerate(kinds or ()) if kind == "linear_attention")
    if not layers:
        return None
    return RecurrentShape(
        layers=layers,
        key_heads=text.linear_num_key_heads,
        key_dim=text.linear_key_head_dim,
        value_heads=text.linear_num_value_heads,
        value_dim=text.linear_value_head_dim,
        kernel=text.linear_conv_kernel_dim,
    )


def tower_sizes(vision: Any) -> dict[str, Any]:
    """What a CLIP's or SigLIP's configuration says of its layers, as `TowerShape` names it."""
    return {
        "depth": vision.num_hidden_layers,
        "width": vision.hidden_size,
        "intermediate": vision.intermediate_size,
        "heads": vision.num_attention_heads,
    }


class Backbone(Parts):
    """An LVLM of one family: `Parts` says where its parts are, this class how large it is and how it is loaded.

    Attributes:
        model_type: of the configurations that the family reads; it is registered under this name.
        model_class: of transformers.
        size_options: the settings, and arguments of the constructor, that the number of visual tokens depends on.
        version: raised when what the family computes changes: inputs, features, positions or prompts. Results are kept
            as long as it stays.
    """

    model_type: ClassVar[str] = ""
    model_class: ClassVar[str] = ""
    size_options: ClassVar[tuple[str, ...]] = ("image_size",)
    version: ClassVar[int] = 1
    decoding_set_aside: Mapping[str, Any] = MappingProxyType({})  # see `Job.load`

    # -- sizes
    @classmethod
    def shape_from(cls, config: Any, name: str) -> BackboneShape:
        """The sizes that a model's configuration says. A family of dynamic resolution takes `image_size: int | None` as
        well, and has a number of visual tokens and a grid only where it is given.
        """
        raise NotImplementedError

    @classmethod
    def shape_of(cls, settings: BackboneSettings) -> BackboneShape:
        """The sizes of a checkpoint: those of `settings.sizes`, or what its config.json says.

        Raises:
            UserError: there is no config.json, it is of another family, or the family has no images of this size.
        """
        options = cls.image_options(settings)
        # Importing transformers' configurations takes seconds, and a mistake in the budget should be told at once.
        try:
            text = cls._config_text(settings)
            if text is not None:
                config = json.loads(text, object_hook=lambda d: SimpleNamespace(**d))
                cls.check_config(config, settings.source)
                return cls._sized(config, settings.name, options)
        except (AttributeError, TypeError, ValueError):
            pass  # The file leaves out what transformers knows by default, or it is damaged, and transformers says how.
        return cls._sized(loading.read_config(cls, settings), settings.name, options)

    @classmethod
    def _config_text(cls, settings: BackboneSettings) -> str | None:
        """The config.json, where it is at hand."""
        if settings.is_released and settings.sizes is not None:
            return json.dumps(settings.sizes)
        file = Path(settings.source) / "config.json"
        return file.read_text(encoding="utf-8") if file.is_file() else None

    @classmethod
    def check_config(cls, config: Any, source: str) -> None:
        """Raises `UserError` unless this configuration, read at `source`, is of this family."""
        if config.model_type != cls.model_type:
            why = refused.WHY.get(config.model_type)
            raise UserError(
                f"backbone.pretrained={source}: a {config.model_type} model; this backbone reads {cls.model_type} ones"
                + (f", and none reads these yet: {why}" if why else "")
            )

    @classmethod
    def image_options(cls, settings: BackboneSettings) -> dict[str, Any]:
        """What these settings say of `size_options`."""
        return {key: getattr(settings, key) for key in cls.size_options}

    @classmethod
    def _sized(cls, config: Any, name: str, options: Mapping[str, Any]) -> BackboneShape:
        """`shape_from`, for images as `options` have them; None of an option: as the checkpoint has it."""
        options = {key: value for key, value in options.items() if value is not None}
        size = options.get("image_size")
        if size is not None:
            if "image_size" not in inspect.signature(cls.shape_from).parameters:
                raise UserError(f"backbone.image_size={size}: {name} has one size of images; allowed: null")
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise UserError(f"backbone.image_size={size}: allowed: a side in pixels, or null")
        return cls.shape_from(config, name, **options)

    # -- loading
    @classmethod
    def check_loading(cls, settings: BackboneSettings) -> None:
        """Raises `UserError` where `load` is bound to fail: a value that a setting may not hold, a device or a package
        that isn't there, a folder without complete safetensors weights.
        """
        loading.check(settings)

    @classmethod
    def load(cls, settings: BackboneSettings) -> Self:
        """The model, in eval mode, on its device, with its processor.

        Raises:
            UserError: what `check_loading` refuses, or weights that can't be read or aren't all there.
        """
        return loading.load(cls, settings)

    @classmethod
    def check_drawing(cls, settings: BackboneSettings) -> None:
        """Raises `UserError` where `draw` is bound to fail: settings that only stored weights can have."""
        from vtc.backbones import random_weights

        random_weights.check(cls, settings)

    @classmethod
    def draw(cls, settings: BackboneSettings) -> Self:
        """The same model with random weights, which needs no file: for its time and memory, and nothing else.

        Raises:
            UserError: as `check_drawing`.
        """
        from vtc.backbones import random_weights

        return random_weights.draw(cls, settings)

    @classmethod
    def skeleton(cls, settings: BackboneSettings) -> Self:
        """The model without weights, on torch's meta device, and without a processor: to count what it has."""
        import torch
        import transformers

        config = cls.configuration(settings)
        with torch.device("meta"):
            model = getattr(transformers, cls.model_class)(config)
        return cls.wrap(model, None, settings.name, **cls.image_options(settings))

    @classmethod
    def configuration(cls, settings: BackboneSettings) -> Any:
        """transformers' configuration of a checkpoint, made of `settings.sizes` where they speak of it."""
        if not settings.is_released or settings.sizes is None:
            return loading.read_config(cls, settings)
        from transformers import AutoConfig

        return AutoConfig.for_model(**json.loads(json.dumps(settings.sizes)))  # transformers changes what it is given

    @classmethod
    def wrap(cls, model: Any, processor: Any | None = None, name: str = "model", **options: Any) -> Self:
        """A model that is already in memory, as a backbone of this family.

        Args:
            options: those of `size_options`.
        """
        return cls(name, model, processor, cls._sized(model.config, name, options), **options)
