"""Random-weight InternVL3, Idefics3 and SmolVLM2, small enough to run hundreds of checks on two cores: 8×8 patches of a
tile are 4×4 visual tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from vtc.backbones.idefics3 import GLOBAL, MESSAGES, Idefics3, SmolVLM
from vtc.backbones.internvl import InternVL
from vtc.backbones.words import tokenizer
from vtc.testing.models import TOWER, drawn, tiny_decoder

SIDE, PATCH, SHUFFLE = 16, 2, 2
TOKENS = (SIDE // PATCH // SHUFFLE) ** 2
FAKE, END = "<fake_token_around_image>", "<end_of_utterance>"


def tiny_internvl(image_size: int | None = SIDE, tiles: bool | None = None) -> InternVL:
    """An `InternVLForConditionalGeneration` with its processor, in eval mode.

    Args:
        image_size: 16: one tile; 32: four of them, and the whole picture; None: as many as its aspect asks for.
    """
    import transformers

    special = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<|im_start|>", "<|im_end|>"]
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = tokenizer(special, named | {"video_token": "<video>"})
    words.eos_token = "<|im_end|>"
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(
            image_size=(SIDE, SIDE), patch_size=(PATCH, PATCH), layer_scale_init_value=1.0, **TOWER
        ),
        text_config=tiny_decoder("qwen2"),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
        downsample_ratio=1 / SHUFFLE,
        tie_word_embeddings=False,
    )

    def make() -> Any:
        model = transformers.InternVLForConditionalGeneration(config)
        torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.2)  # zeros, as drawn
        return model

    square = {"height": SIDE, "width": SIDE}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=square),
        tokenizer=words,
        video_processor=transformers.InternVLVideoProcessor(size=square),
        image_seq_length=TOKENS,
        chat_template=InternVL.template,
    )
    return InternVL.wrap(drawn(make), processor, image_size=image_size, tiles=tiles)


def tiny_idefics3(image_size: int | None = SIDE, tiles: bool | None = None, cls: type[Idefics3] = Idefics3) -> Idefics3:
    """An `Idefics3ForConditionalGeneration` with its processor, in eval mode.

    `<global-img>` and `<row_1_col_1>` are several tokens that end alike, as in Idefics3's own vocabulary.

    Args:
        image_size: 16: one tile; 32: four of them, and the whole picture; None: pictures become 64 pixels long.
        cls: of the backbone.
    """
    import transformers

    family = cls.model_class.removesuffix("ForConditionalGeneration")
    special, named = [FAKE, END, "<|im_start|>"], {"image_token": "<image>"}
    if family == "SmolVLM":
        special += [GLOBAL, "<video>", *(f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5))]
        named |= {"fake_image_token": FAKE, "global_image_token": GLOBAL, "video_token": "<video>"}
        named |= {"end_of_utterance_token": END}
    else:
        special += ["<global-img", "<row_", ">"]  # the pieces in which `<global-img>` and `<row_1_col_1>` are spelled
    words = tokenizer(special, named)
    words.eos_token = END

    def part(name: str, **options: Any) -> Any:
        return getattr(transformers, f"{family}{name}")(**options)

    config = part(
        "Config",
        vision_config=part("VisionConfig", image_size=SIDE, patch_size=PATCH, **TOWER),
        text_config=tiny_decoder("llama"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=SHUFFLE,
        tie_word_embeddings=False,
    )
    tile = {"longest_edge": SIDE}
    pictures = {"image_processor": part("ImageProcessor", size={"longest_edge": 4 * SIDE}, max_image_size=tile)}
    if family == "SmolVLM":
        pictures["video_processor"] = part("VideoProcessor", size=tile, max_image_size=tile)
    # as Idefics3's own, the template writes the token that its tokenizer puts in front, too
    template = cls.template if family == "SmolVLM" else words.bos_token + MESSAGES
    processor = part("Processor", tokenizer=words, image_seq_len=TOKENS, chat_template=template, **pictures)
    model = drawn(lambda: part("ForConditionalGeneration", config=config))
    return cls.wrap(model, processor, image_size=image_size, tiles=tiles)


def tiny_smolvlm(image_size: int | None = SIDE, tiles: bool | None = None) -> Idefics3:
    """A `SmolVLMForConditionalGeneration`, as `tiny_idefics3`; `<global-img>` and `<row_1_col_1>` are tokens of its
    vocabulary. Its processor needs num2words.
    """
    return tiny_idefics3(image_size, tiles, SmolVLM)
