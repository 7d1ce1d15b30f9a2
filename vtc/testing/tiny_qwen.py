"""Random-weight Qwen2-VL, Qwen2.5-VL, Qwen3-VL (dense, and with experts) and Qwen3.5 built in memory, with their
processors and a tokenizer of words."""

from __future__ import annotations

from typing import Any

import torch

from vtc.backbones.qwen3_5 import Qwen3_5
from vtc.backbones.qwen_vl import SYSTEM, Qwen2_5VL, Qwen2VL, Qwen3VL, Qwen3VLMoe, QwenVL
from vtc.backbones.words import WORDS, word_level
from vtc.testing.models import drawn

MARKERS = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
SPECIAL = [f"<|{marker}|>" for marker in MARKERS]
ID = {token: i for i, token in enumerate(SPECIAL)}
PATCH, MERGE, SIDE = 4, 2, 32  # 4×4 visual tokens of an image of 32×32 pixels
LEVELS: dict[str, Any] = {"num_position_embeddings": 64, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]}
WIDTHS = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}  # of the later towers

_MEDIA = (
    "{% if part.type in ('image', 'video') %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
)
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}SYSTEM{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}" + _MEDIA + "{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen2_vl(image_size: int | None = SIDE) -> QwenVL:
    """Qwen2-VL: M-RoPE, a tower of full attention."""
    return _backbone(Qwen2VL, image_size, _text(), embed_dim=16, hidden_size=32, mlp_ratio=2)


def tiny_qwen2_5_vl(image_size: int | None = SIDE) -> QwenVL:
    """Qwen2.5-VL: the same with windows of 2×2 visual tokens in all layers of the tower but the last."""
    windows = {"window_size": 2 * MERGE * PATCH, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return _backbone(Qwen2_5VL, image_size, _text(), **WIDTHS, **windows)


def tiny_qwen3_vl(image_size: int | None = SIDE) -> QwenVL:
    """Qwen3-VL: deepstack from three layers of the tower into the first three of the LLM, interleaved M-RoPE, heads of
    another width than hidden size / heads."""
    return _backbone(Qwen3VL, image_size, _text3(), **WIDTHS, **LEVELS)


def tiny_qwen3_vl_moe(image_size: int | None = SIDE) -> QwenVL:
    """Qwen3-VL with experts: each token goes through two of four, as their hidden states say."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": []}
    return _backbone(Qwen3VLMoe, image_size, _text3() | experts, **WIDTHS, **LEVELS)


def tiny_qwen3_5(image_size: int | None = SIDE) -> Qwen3_5:
    """Qwen3.5: of four layers the first and the third have linear attention, the others attend, half of each head
    rotated."""
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    linear |= {"linear_value_head_dim": 6, "linear_conv_kernel_dim": 4, "full_attention_interval": 2}
    text = _text(head_dim=16, sections=(2, 1, 1), mrope_interleaved=True, partial_rotary_factor=0.5) | linear
    backbone = _backbone(Qwen3_5, image_size, text, **WIDTHS, num_position_embeddings=64)
    assert isinstance(backbone, Qwen3_5)
    return backbone


def _text3() -> dict[str, Any]:
    return _text(head_dim=16, sections=(4, 2, 2), mrope_interleaved=True)


def _text(head_dim: int = 8, sections: tuple[int, ...] = (2, 1, 1), **rope: Any) -> dict[str, Any]:
    text: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": ID["<|endoftext|>"],
        "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)} | rope,
    }
    return text | ({"head_dim": head_dim} if rope else {"bos_token_id": None, "eos_token_id": None})


def _backbone(cls: type[QwenVL], image_size: int | None, text: dict[str, Any], **vision: Any) -> QwenVL:
    import transformers

    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    parts = {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}
    config = transformers.AutoConfig.for_model(
        cls.model_type,
        text_config=text,
        vision_config={"depth": 2, "num_heads": 2, "initializer_range": 0.2, **parts, **vision},
        **{key: ID[f"<|{token}|>"] for key, token in names.items()},
    )

    def make() -> Any:
        model = getattr(transformers, cls.model_class)(config)
        for name, weight in model.named_parameters():  # norms of queries and keys: with ones all keys were as long
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                torch.nn.init.uniform_(weight, 0.5, 1.5)
            if name.endswith(("A_log", "dt_bias")):  # as drawn, states would forget a token before the next one
                torch.nn.init.uniform_(weight, -3, -1)
        return model

    words = ["<unk>", "user", "system", "assistant", "<", ">", "seconds", *map(str, range(10)), *WORDS]
    special = {"unk_token": "<unk>", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    limits = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 96 * 96}
    third = issubclass(cls, Qwen3VL)
    clip = transformers.Qwen3VLVideoProcessor if third else transformers.Qwen2VLVideoProcessor
    name = "Qwen3VLProcessor" if third else cls.model_class.replace("ForConditionalGeneration", "Processor")
    processor = getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(size=limits, **sizes),
        video_processor=clip(size=limits | {"longest_edge": 8 * 96 * 96}, cap_pixels_per_frame=False, **sizes),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=word_level([*SPECIAL, *words], SPECIAL), **special
        ),
        chat_template=TEMPLATE.replace("SYSTEM", "" if third else SYSTEM),
    )
    return cls.wrap(drawn(make), processor, image_size=image_size)
