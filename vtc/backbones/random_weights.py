"""A checkpoint's shape with random weights: its time and memory can be measured without a download.

The sizes are those of the choice in `conf/backbone`, the weights are drawn by transformers' own initialisation, and the
processor is the family's own with the sizes of its configuration and a tokenizer of a few dozen words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vtc.backbones import loading
from vtc.backbones.words import BOS, IMAGE, PAD, WORDS, tokenizer, word_level
from vtc.errors import UserError
from vtc.settings import BackboneSettings

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone

B = TypeVar("B", bound="Backbone")
SEED = 0
WIDTHS = ("hidden_size", "embed_dim", "out_hidden_size")
HEADS = ("num_attention_heads", "num_heads")
LINEAR_HEADS = ("linear_num_key_heads", "linear_num_value_heads")
MLPS = ("intermediate_size", "moe_intermediate_size")


# -- sizes
def narrowed(sizes: Mapping[str, Any], width: int, name: str) -> dict[str, Any]:
    """`sizes` of the checkpoint `name` (`BackboneSettings.sizes`) at 1/`width` of the width of decoder and tower.

    Depth, patches, vocabulary and the size of a head stay what they are, so there are as many tokens, layers and
    kernels as ever, on fewer heads. Heads that share keys and values do so in groups of at most the same number.

    Raises:
        UserError: heads that can't be divided so.
    """
    parts = {key: part for key, part in sizes.items() if key in ("text_config", "vision_config")}
    heads = [next(part[key] for key in HEADS if key in part) for part in parts.values()]
    if any(count % width for count in heads):
        allowed = [n for n in range(1, min(heads) + 1) if not any(count % n for count in heads)]
        counts, sides = " and ".join(map(str, heads)), " and ".join(key.partition("_")[0] for key in parts)
        raise UserError(
            f"profile.width={width}: backbone={name} allows {', '.join(map(str, allowed))}, which divide the {counts} "
            f"heads of {sides}"
        )
    return copy.deepcopy({**sizes}) | {key: _narrowed_part(part, width) for key, part in parts.items()}


def _narrowed_part(part: Mapping[str, Any], width: int) -> dict[str, Any]:
    out = {**part} | {key: part[key] // width for key in (*WIDTHS, *HEADS, *LINEAR_HEADS, *MLPS) if key in part}
    if "num_key_value_heads" in part:
        out["num_key_value_heads"] = max(1, part["num_key_value_heads"] // width)
    return out


# -- the model
def draw(family: type[B], settings: BackboneSettings) -> B:
    """A model of these settings' sizes with random weights, in eval mode, on its device, with its processor.

    Raises:
        UserError: what can't be known without weights (quantisation, layers over several devices).
    """
    import torch
    import transformers

    check(family, settings)
    device, dtype = loading.one_device(settings), loading.dtype_of(settings.dtype)
    config = family.configuration(settings)
    processor = processor_of(config, family)
    config._attn_implementation = settings.attention
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        torch.set_default_dtype(torch.float32 if dtype == "auto" else dtype)
        try:
            with torch.device(device):
                model = getattr(transformers, family.model_class)(config)
        finally:
            torch.set_default_dtype(before)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return family.wrap(model.eval(), processor, settings.name, **family.image_options(settings))


def check(family: type[Backbone], settings: BackboneSettings) -> None:
    """Raises `UserError` where `draw` is bound to fail."""
    if family.model_type not in PROCESSORS:
        raise UserError(
            f"profile.weights=random: the family {family.model_type} has no processor without a checkpoint; allowed: "
            f"stored; or backbones of {', '.join(sorted(PROCESSORS))}"
        )
    for key, usual in (("quantization", "none"), ("device_map", None)):
        if (value := getattr(settings, key)) != usual:
            raise UserError(f"backbone.{key}={value}: needs stored weights, and profile.weights is random")
    loading.check(settings, weights=False)


# -- its processor
def processor_of(config: Any, family: type[Backbone]) -> Any:
    """The family's processor for a model of this configuration, whose special tokens are changed to the tokenizer's."""
    processor, ids = PROCESSORS[family.model_type](config, family)
    for name, number in ids.items():
        setattr(config, name, number)
    text = config.get_text_config()
    text.pad_token_id, text.bos_token_id, text.eos_token_id = PAD, BOS, None
    return processor


def _ids(words: Any, **tokens: str) -> dict[str, int]:
    return {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _llava(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    side = config.vision_config.image_size
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer(),
        **_patches(config),
    )
    return processor, {"image_token_id": IMAGE}


def _patches(config: Any) -> dict[str, Any]:
    strategy = config.vision_feature_select_strategy
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(strategy == "default"),
    }


def _llava_next(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    side = config.vision_config.image_size
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=config.image_grid_pinpoints,
        ),
        tokenizer=tokenizer(),
        **_patches(config),
    )
    return processor, {"image_token_id": IMAGE}


def _llava_onevision(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    vision = config.vision_config
    tile = {"height": vision.image_size, "width": vision.image_size}
    words = tokenizer(["<video>"], {"image_token": "<image>", "video_token": "<video>"})
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=tile, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=tile),
        tokenizer=words,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
    )
    return processor, _ids(words, image="<image>", video="<video>")


def _video_llava(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    side = config.vision_config.image_size
    size: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    words = tokenizer(["<video>"], {"image_token": "<image>", "video_token": "<video>"})
    processor = transformers.VideoLlavaProcessor(
        image_processor=transformers.VideoLlavaImageProcessor(**size),
        video_processor=transformers.VideoLlavaVideoProcessor(**size),
        tokenizer=words,
        **_patches(config),
    )
    return processor, _ids(words, image="<image>", video="<video>")


def _qwen(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    markers = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    special = [f"<|{marker}|>" for marker in markers]
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_level([*special, "<unk>", "user", "system", "assistant", *WORDS], special),
        unk_token="<unk>",
        pad_token=special[0],
        eos_token=special[2],
    )
    vision = config.vision_config
    sizes = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    new = family.model_type.startswith("qwen3")
    clip = "Qwen3VLVideoProcessor" if new else "Qwen2VLVideoProcessor"
    name = "Qwen3VLProcessor" if new else family.model_class.replace("ForConditionalGeneration", "Processor")
    processor = getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        video_processor=getattr(transformers, clip)(**sizes),
        tokenizer=words,
    )
    pads = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    return processor, _ids(words, **pads, vision_start="<|vision_start|>", vision_end="<|vision_end|>")


def _internvl(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    named |= {"video_token": "<video>"}
    words = tokenizer([*named.values(), "<|im_start|>", "<|im_end|>"], named)
    height, width = config.vision_config.image_size
    tile = {"height": height, "width": width}
    patches = (height // config.vision_config.patch_size[0]) * (width // config.vision_config.patch_size[1])
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=tile),
        tokenizer=words,
        video_processor=transformers.InternVLVideoProcessor(size=tile),
        image_seq_length=round(patches * config.downsample_ratio**2),
    )
    return processor, _ids(words, image="<IMG_CONTEXT>")


def _idefics3(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    name, vision = family.model_class.removesuffix("ForConditionalGeneration"), config.vision_config
    fake, end, whole = "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"
    named, special = {"image_token": "<image>"}, [fake, end, "<|im_start|>", whole]
    special += [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tile = {"longest_edge": vision.image_size}
    pictures = {"size": {"longest_edge": 4 * vision.image_size}, "max_image_size": tile}
    parts = {"image_processor": getattr(transformers, f"{name}ImageProcessor")(**pictures)}
    if name == "SmolVLM":
        special.append("<video>")
        named |= {"fake_image_token": fake, "global_image_token": whole, "video_token": "<video>"}
        named |= {"end_of_utterance_token": end}
        parts["video_processor"] = transformers.SmolVLMVideoProcessor(size=tile, max_image_size=tile)
    words = tokenizer(special, named)
    words.eos_token = end
    tokens = (vision.image_size // vision.patch_size // config.scale_factor) ** 2
    processor = getattr(transformers, f"{name}Processor")(tokenizer=words, image_seq_len=tokens, **parts)
    return processor, _ids(words, image="<image>")


def _gemma3(config: Any, family: type[Backbone]) -> tuple[Any, dict[str, int]]:
    import transformers

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer([*named.values(), "<start_of_turn>", "<end_of_turn>"], named)
    side = config.vision_config.image_size
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": side, "width": side}),
        tokenizer=words,
        image_seq_length=config.mm_tokens_per_image,
    )
    return processor, _ids(words, image=named["image_token"])


PROCESSORS: dict[str, Callable[[Any, type[Backbone]], tuple[Any, dict[str, int]]]] = {
    "gemma3": _gemma3,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "video_llava": _video_llava,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_5": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}
