"""Random-weight Qwen2-VL, Qwen2.5-VL and Qwen3-VL built in memory, with their processors and a tokenizer of words."""

from __future__ import annotations

from typing import Any

import torch

from vtc.backbones.qwen_vl import SYSTEM, Qwen2_5VL, Qwen2VL, Qwen3VL, QwenVL
from vtc.testing.models import WORDS

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ID = {token: i for i, token in enumerate(SPECIAL)}
PATCH, MERGE, SIDE = 4, 2, 32  # 4×4 visual tokens of an image of 32×32 pixels

_MEDIA = (
    "{% if part.type in ('image', 'video') %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
)
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}SYSTEM{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}" + _MEDIA + "{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Any:
    """One token a word, and Qwen's own markers."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    roles = ["<unk>", "user", "system", "assistant", "<", ">", "seconds", *map(str, range(10))]
    vocabulary = [*SPECIAL, *dict.fromkeys([*roles, *(w.lower() for w in WORDS)])]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.add_special_tokens(SPECIAL)
    special = {"unk_token": "<unk>", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def tiny_qwen2_vl(seed: int = 0, image_size: int | None = SIDE, attention: str = "sdpa") -> QwenVL:
    """Qwen2-VL: M-RoPE, a tower of full attention."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    vision = _vision(embed_dim=16, hidden_size=32, mlp_ratio=2)
    config = Qwen2VLConfig(text_config=_text(), vision_config=vision, **_ids())
    classes = Qwen2VL, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    return _backbone(*classes, config, seed, image_size, attention)


def tiny_qwen2_5_vl(seed: int = 0, image_size: int | None = SIDE, attention: str = "sdpa") -> QwenVL:
    """Qwen2.5-VL: the same with windows of 2×2 visual tokens in all layers of the tower but the last."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    widths = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}
    vision = _vision(**widths, window_size=2 * MERGE * PATCH, fullatt_block_indexes=[1], tokens_per_second=2)
    config = Qwen2_5_VLConfig(text_config=_text(), vision_config=vision, **_ids())
    return _backbone(
        Qwen2_5VL, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, config, seed, image_size, attention
    )


def tiny_qwen3_vl(seed: int = 0, image_size: int | None = SIDE, attention: str = "sdpa") -> QwenVL:
    """Qwen3-VL: deepstack from three layers of the tower into the first three of the LLM, interleaved M-RoPE, heads of
    another width than hidden size / heads."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    widths = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}
    vision = _vision(**widths, num_position_embeddings=64, depth=3, deepstack_visual_indexes=[0, 1, 2])
    text = _text(head_dim=16, sections=(4, 2, 2), mrope_interleaved=True)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_ids())
    classes = Qwen3VL, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    return _backbone(*classes, config, seed, image_size, attention)


def _ids() -> dict[str, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: ID[f"<|{token}|>"] for key, token in names.items()}


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


def _vision(**own: Any) -> dict[str, Any]:
    sizes = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}
    return sizes | {"initializer_range": 0.2} | own


def _backbone(
    kind: type[QwenVL], model_class: Any, processor_class: Any, config: Any, seed: int, size: int | None, attention: str
) -> QwenVL:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
        for name, weight in model.named_parameters():  # norms of queries and keys: with ones all keys were as long
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = ID["<|endoftext|>"]
    sizes: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    limits = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 96 * 96}
    clip = Qwen3VLVideoProcessor if kind is Qwen3VL else Qwen2VLVideoProcessor
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(size=limits, **sizes),
        video_processor=clip(size=limits | {"longest_edge": 8 * 96 * 96}, cap_pixels_per_frame=False, **sizes),
        tokenizer=tokenizer(),
        chat_template=TEMPLATE.replace("SYSTEM", "" if kind is Qwen3VL else SYSTEM),
    )
    return kind.wrap(model, processor, image_size=size)
