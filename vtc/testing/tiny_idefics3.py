"""Random-weight Idefics3 and SmolVLM2, small enough to run hundreds of checks on two cores."""

from __future__ import annotations

from typing import Any

from vtc.backbones.idefics3 import GLOBAL, MESSAGES, Idefics3, SmolVLM
from vtc.testing.models import TOWER, decoder_sizes, drawn, tokenizer
from vtc.testing.tiny_tiles import PATCH, SHUFFLE, SIDE, TOKENS

FAKE, END = "<fake_token_around_image>", "<end_of_utterance>"


def tiny_idefics3(
    width: int = 32,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    attention: str = "sdpa",
    seed: int = 0,
    image_size: int | None = SIDE,
    tiles: bool | None = None,
    cls: type[Idefics3] = Idefics3,
) -> Idefics3:
    """An `Idefics3ForConditionalGeneration` of random weights, 16 visual tokens a tile, its processor, in eval mode.

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
        text_config=transformers.LlamaConfig(**decoder_sizes(width, depth, heads, kv_heads)),
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
    model = drawn(lambda: part("ForConditionalGeneration", config=config), seed, attention)
    return cls.wrap(model, processor, image_size=image_size, tiles=tiles)


def tiny_smolvlm(**sizes: Any) -> Idefics3:
    """A `SmolVLMForConditionalGeneration`, as `tiny_idefics3`; `<global-img>` and `<row_1_col_1>` are tokens of its
    vocabulary. Its processor needs num2words.
    """
    return tiny_idefics3(cls=SmolVLM, **sizes)
