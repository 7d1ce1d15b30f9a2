"""A LLaVA from a language model and a vision tower, with a fresh projector: where LLaVA's first stage starts.

    python -m vtc.backbones.compose --language-model lmsys/vicuna-7b-v1.5 \\
        --vision-tower openai/clip-vit-large-patch14-336 --out weights/llava-vicuna-7b

What it writes is an ordinary transformers folder: ``backbone=llava15_7b backbone.pretrained=weights/llava-vicuna-7b``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.backbones.loading import auto_config, reading, refuse_missing
from vtc.backbones.quiet import quiet
from vtc.errors import UserError, unknown
from vtc.folders import replacing
from vtc.settings import DTYPES

if TYPE_CHECKING:
    import torch
    from torch import nn

LANGUAGE_MODELS = ("llama", "mistral", "qwen2")  # decoders of q, k, v, o and gate, up, down projections
TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}  # family: its class in transformers
STORED = tuple(name for name in DTYPES if name != "auto")
IMAGE, PAD = "<image>", "<pad>"
FEATURE_LAYER = -2  # LLaVA-1.5 projects the hidden states before the tower's last layer
PAD_ROWS_TO = 64  # rows of the embeddings, as llava-hf has them: 32,002 tokens in 32,064 rows
SHARD = "5GB"

# `vtc.backbones.llava.Llava.prompt` in the words of transformers' chat templates.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' ' }}{% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def compose(language_model: str, vision_tower: str, out: str | Path, seed: int = 0, dtype: str = "bfloat16") -> Path:
    """Writes the model of the two to `out`, whole or not at all.

    The projector is two linear layers with a GELU between them, drawn as `torch.nn.Linear` draws them, as LLaVA's is
    (arXiv 2310.03744, section 3). The tokenizer gains ``<image>``, and ``<pad>`` where it has no padding token of its
    own. Embedding rows of tokens that are new, and rows that fill up to a multiple of 64, are the mean of the old ones.
    Everything else is the two models' own, in `dtype`; generation is greedy. Takes the memory of the weights, once.

    Args:
        language_model: folder or hub id of a Llama, Mistral or Qwen2 causal language model.
        vision_tower: folder or hub id of a CLIP or SigLIP model, or of its vision half.
        out: folder that doesn't exist yet.
        seed: of the projector.
        dtype: of the stored weights.

    Returns:
        `out`.

    Raises:
        UserError: a folder or id that can't be read, another family, weights that aren't complete or not safetensors,
            an unknown dtype, an `out` that exists or can't be written.
    """
    import torch

    out = Path(out)
    if dtype not in STORED:
        raise unknown("--dtype", dtype, STORED)
    if out.exists():
        raise UserError(f"--out={out}: exists already; give a new folder")
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    text, vision = _text_config(language_model), _vision_config(vision_tower)
    processor, known = _processor(language_model, vision_tower, vision)
    kind: torch.dtype = getattr(torch, dtype)
    tower = _weights("--vision-tower", vision_tower, TOWERS[_family(vision)], vision, kind)
    decoder = _weights("--language-model", language_model, "AutoModelForCausalLM", text, kind)
    model = _join(decoder, tower, processor, known, seed)
    with quiet(), _writing(out), replacing(out) as folder:
        model.save_pretrained(folder, max_shard_size=SHARD)
        processor.save_pretrained(folder)
    return out


def _family(vision: Any) -> str:
    return vision.model_type.removesuffix("_vision_model")


def _text_config(source: str) -> Any:
    config = auto_config("--language-model", source)
    if config.model_type not in LANGUAGE_MODELS:
        allowed = ", ".join(LANGUAGE_MODELS)
        raise UserError(f"--language-model={source}: a {config.model_type} model; allowed: {allowed}")
    if getattr(config, "sliding_window", None):
        raise UserError(
            f"--language-model={source}: attends in windows of {config.sliding_window} tokens; "
            "only full attention can be compressed (Mistral-7B from v0.2 on has it)"
        )
    return config


def _vision_config(source: str) -> Any:
    config = auto_config("--vision-tower", source)
    vision = config.vision_config if config.model_type in TOWERS else config
    if _family(vision) not in TOWERS:
        raise UserError(f"--vision-tower={source}: a {config.model_type} model; allowed: {', '.join(TOWERS)}")
    if vision.num_hidden_layers < -FEATURE_LAYER:
        layers = vision.num_hidden_layers
        raise UserError(f"--vision-tower={source}: {layers} layer(s); allowed: {-FEATURE_LAYER} or more")
    return vision


def _processor(language_model: str, vision_tower: str, vision: Any) -> tuple[Any, int]:
    """Tokenizer and image processor of the two, with ``<image>`` and a padding token; and how many tokens there were.

    Raises:
        UserError: none there, or an image processor whose images aren't of the tower's size.
    """
    from transformers import AddedToken, AutoImageProcessor, AutoTokenizer, LlavaProcessor

    with reading("--language-model", language_model):
        tokenizer = AutoTokenizer.from_pretrained(language_model)
    with reading("--vision-tower", vision_tower):
        images = AutoImageProcessor.from_pretrained(vision_tower)
    size = dict((images.crop_size if getattr(images, "do_center_crop", False) else images.size) or {})
    if (size.get("height"), size.get("width")) != (vision.image_size, vision.image_size):
        raise UserError(
            f"--vision-tower={vision_tower}: its image processor makes images of {size}; "
            f"it takes {vision.image_size} squared"
        )
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.chat_template = CHAT_TEMPLATE
    first = _cls_tokens(vision)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default" if first else "full",
        num_additional_image_tokens=first,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
    return processor, known


def _cls_tokens(vision: Any) -> int:
    """Tokens in front of the patches, which the projector doesn't get: CLIP has one, SigLIP has none."""
    return int(_family(vision) == "clip")


def _weights(key: str, source: str, cls: str, config: Any, dtype: torch.dtype) -> Any:
    """The model of that class, every parameter read from `source`."""
    import transformers

    with reading(key, source), quiet():
        model, report = getattr(transformers, cls).from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    refuse_missing(f"{key}={source}", report)
    return model


def _join(decoder: Any, tower: Any, processor: Any, known: int, seed: int) -> Any:
    """The LLaVA of these very modules and a projector of its own; `known`: how many tokens the language model knows."""
    import torch
    from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    tokenizer, vision = processor.tokenizer, tower.config
    rows = decoder.get_input_embeddings().num_embeddings
    known = min(known, rows)
    if len(tokenizer) > rows:
        rows = -(-len(tokenizer) // PAD_ROWS_TO) * PAD_ROWS_TO
    for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):  # one weight where they are tied
        _extend(layer, known, rows)
    text = decoder.config
    text.vocab_size, text.pad_token_id = rows, tokenizer.pad_token_id
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default" if _cls_tokens(vision) else "full",
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=decoder.dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = LlavaMultiModalProjector(config)
    model.model.vision_tower = tower
    model.model.language_model = decoder.model
    model.model.multi_modal_projector = projector.to(decoder.dtype)
    model.lm_head = decoder.lm_head
    generation = decoder.generation_config  # Vicuna's asks for sampling by halves, which transformers refuses to write
    model.generation_config = GenerationConfig(
        bos_token_id=generation.bos_token_id, eos_token_id=generation.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def _extend(layer: nn.Module, known: int, rows: int) -> None:
    """Gives an embedding or a language-model head `rows` rows; all from `known` on are the mean of those before."""
    import torch

    weight: Any = layer.weight
    data = weight.data
    if rows > len(data):
        data = torch.cat([data, data.new_empty(rows - len(data), data.shape[1])])
    data[known:] = data[:known].mean(0, dtype=torch.float32).to(data.dtype)
    weight.data = data
    setattr(layer, "num_embeddings" if hasattr(layer, "num_embeddings") else "out_features", rows)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """The errors of writing `out` as the user's."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out={out}: can't be written ({error.strerror or error})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake in what was asked for, told in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtc.backbones.compose", description="A LLaVA from a language model and a vision tower."
    )
    parser.add_argument("--language-model", required=True, help="folder or hub id: Llama, Mistral or Qwen2")
    parser.add_argument("--vision-tower", required=True, help="folder or hub id: CLIP or SigLIP")
    parser.add_argument("--out", required=True, help="a folder that doesn't exist yet")
    parser.add_argument("--seed", type=int, default=0, help="of the projector (default 0)")
    parser.add_argument("--dtype", default="bfloat16", help=f"of the stored weights: {', '.join(STORED)}")
    arguments = parser.parse_args(argv)
    try:
        out = compose(**vars(arguments))
    except UserError as error:
        print(f"vtc: {error}", file=sys.stderr)
        return 2
    print(f"{out}: backbone=llava15_7b backbone.pretrained={out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
