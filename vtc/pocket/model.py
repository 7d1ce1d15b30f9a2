"""The pocket model: a LLaVA of two million parameters, built with the family's own classes.

Everything here is an ordinary ``transformers`` object: a CLIP tower, LLaVA's two-layer projector, a Llama decoder, a
fast tokenizer and a ``LlavaProcessor``. Saved, it is a folder that any LLaVA-1.5 loader reads.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtc.pocket.questions import CAPTION_PROMPT, LETTERS
from vtc.pocket.scenes import COLORS, NAMES, SIZE, SIZES

PATCH = 8  # pixels
GRID = SIZE // PATCH  # 12 x 12 = 144 visual tokens
WIDTH, DEPTH, HEADS = 128, 6, 4
POSITIONS = 2048  # eight frames of 144 tokens and a question
SUMMARY_PROMPT = "summarize the image in a few words."
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:", *LETTERS)
# Two turns in LLaVA-1.5's own words; the system prompt is left out as there is nothing for it to say.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_WORDS = (
    "? . , is there a how many objects are what color the object size digit where left right of above below top bottom "
    "yes no describe summarize image in few words text with show picture shape number"
)
# Of questions about dense pictures and videos. They stand last, so that weights from before them keep their ids.
_LATER_WORDS = "which way does move up down appears appear first last before read line"


def vocabulary() -> list[str]:
    """Every token in order of its id: special ones, then words, one token each."""
    words = dict.fromkeys(
        [*_WORDS.split(), *COLORS, *SIZES, *NAMES, *re.findall(r"[a-z]+|[.,?]", CAPTION_PROMPT + " " + SUMMARY_PROMPT)]
    )
    return [*SPECIAL, *words, *(word for word in _LATER_WORDS.split() if word not in words)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; punctuation apart; everything but the special tokens in lower case."""
    vocab = vocabulary_index()
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[?.,;!]"), "isolated")]
    )
    special, roles = ("<pad>", "<s>", "</s>", "<image>"), ("USER:", "ASSISTANT:")
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    core.add_tokens([AddedToken(t, normalized=False, single_word=t in LETTERS) for t in (*roles, *LETTERS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    start = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


def build_processor() -> LlavaProcessor:
    image_processor = CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        resample=3,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


@functools.lru_cache(maxsize=1)
def vocabulary_index() -> dict[str, int]:
    return {word: i for i, word in enumerate(vocabulary())}


@functools.lru_cache(maxsize=200_000)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text the generator made, without the tokenizer's overhead.

    Equal to ``build_tokenizer()(text, add_special_tokens=False)``, which ``tests/pocket`` checks.
    """
    index = vocabulary_index()
    return tuple(index[w] for w in re.findall(r"USER:|ASSISTANT:|</?s>|<image>|[A-Za-z0-9]+|[?.,]", text))


def build_config() -> LlavaConfig:
    index = vocabulary_index()
    size = -(-len(index) // 16) * 16
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=HEADS,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=WIDTH,
        ),
        text_config=LlamaConfig(
            vocab_size=size,
            hidden_size=WIDTH,
            intermediate_size=352,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=index["<s>"],
            eos_token_id=index["</s>"],
            pad_token_id=index["<pad>"],
        ),
        tie_word_embeddings=True,
        image_token_index=index["<image>"],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def continued(folder: Path, seed: int = 0) -> LlavaForConditionalGeneration:
    """A pocket LLaVA with the weights in a folder; words that they don't know yet have fresh ones."""
    model = build_model(seed)
    known = len(AutoTokenizer.from_pretrained(folder))
    earlier = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    state = model.state_dict()
    for name, value in earlier.items():
        state[name] = value if value.shape == state[name].shape else torch.cat([value[:known], state[name][known:]])
    model.load_state_dict(state)
    return model


def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """A pocket LLaVA with fresh weights."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config())
    config = model.generation_config
    index = vocabulary_index()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = index["<s>"], index["</s>"], index["<pad>"]
    return model
