"""A tokenizer of a few dozen words, for models that no checkpoint brings one for: those with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PAD, BOS, IMAGE = 0, 1, 3
VOCABULARY = (
    "summarize the image in a few words . USER: ASSISTANT: what is this one two three red blue circle square left right"
)
WORDS = VOCABULARY.split()


def tokenizer(special: Sequence[str] = (), named: Mapping[str, str] | None = None) -> Any:
    """One token a word; `<s>` in front; everything unknown is `<unk>`.

    Args:
        special: further special tokens of a family, behind the words.
        named: of the special tokens, those that the family's processor asks for by name; default: image_token.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    first = ["<pad>", "<s>", "</s>", "<image>"]
    core = word_level([*first, "<unk>", *WORDS, *special], [*first, *special])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    usual = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    extra = {"image_token": "<image>"} if named is None else dict(named)
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=extra, **usual)


def word_level(vocabulary: Sequence[str], special: Sequence[str]) -> Any:
    """What splits lower-cased text into words and signs, and numbers those of `vocabulary` in its order."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = dict.fromkeys(w if w in special else w.lower() for w in vocabulary)
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.add_special_tokens(list(special))
    return core
