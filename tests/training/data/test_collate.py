"""Samples as tokens: the prompt is that of evaluation, labels are the answers, visual tokens stay whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load
from fabricate import picture
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vtc.backbones.base import Backbone
from vtc.data.training.batch import IGNORE
from vtc.data.training.collate import Encoder
from vtc.data.training.formats import BadSample
from vtc.data.training.index import TrainingSample
from vtc.engine.embed import embed_images
from vtc.errors import UserError
from vtc.interface import SUMMARY_PROMPT
from vtc.methods.none import NoCompression
from vtc.testing import tiny_backbone

TEXT = [
    "USER: ASSISTANT: what is this? a red circle on the left, and two blue squares. naïve café",
    "A chat between a curious user and an artificial intelligence assistant.\nThe assistant gives answers.",
]


def llama_like(byte_level: bool) -> PreTrainedTokenizerFast:
    """Subwords in the way of Llama 2 (SentencePiece: a space is part of the word behind it, also in front of the text;
    bytes for what is unknown), or of Llama 3 and Qwen (byte-level)."""
    core = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>", byte_fallback=not byte_level))
    bytes_ = [] if byte_level else [f"<0x{n:02X}>" for n in range(256)]
    core.pre_tokenizer = pre_tokenizers.ByteLevel(False) if byte_level else pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", "<image>", "<pad>", *bytes_],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
        show_progress=False,
    )
    core.train_from_iterator(TEXT * 3, trainer)
    if not byte_level:  # trained with pieces that end at spaces, used as transformers uses Llama's
        core.pre_tokenizer = None
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.ByteLevel() if byte_level else decoders.Replace("▁", " ")
    core.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>", "<image>", "<pad>")])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens={"image_token": "<image>"}, **named)


@cache
def backbone(name: str) -> Backbone:
    if name == "tiny":
        return tiny_backbone()
    if name == "pocket":
        return load({"name": "pocket", "device": "cpu"})
    tiny = copy.deepcopy(tiny_backbone())
    tokenizer = llama_like(name == "bytes")
    tiny.processor.tokenizer = tokenizer
    tiny.processor.image_token_id = tiny.model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    return tiny


NAMES = ["tiny", "pocket", "sentencepiece", "bytes"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for n in range(3):
        picture(n).save(folder / f"{n}.png")
    return [folder / f"{n}.png" for n in range(3)]


def sample(images: Sequence[Path], *turns: tuple[str, str], caption: str | None = None) -> TrainingSample:
    return TrainingSample(list(images), list(turns), caption)


def spans(labels: Tensor) -> list[Tensor]:
    """Runs of labels."""
    runs: list[list[int]] = []
    for at, label in enumerate(labels.tolist()):
        if label == IGNORE:
            continue
        if not at or labels[at - 1] == IGNORE:
            runs.append([])
        runs[-1].append(label)
    return [torch.tensor(run) for run in runs]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_up_to_the_answer_it_is_what_evaluation_asks(name: str, count: int, files: list[Path]) -> None:
    model = backbone(name)
    for question in ("what is this?", "two blue squares?\nred  circle, naïve 図"):
        text = "<image>" * count + "\n" + question
        row = Encoder(model).row("conversation", sample(files[:count], (text, "a red circle.")))
        asked = model.inputs([question], [[Image.open(f) for f in files[:count]]])
        first = int((row.labels != IGNORE).nonzero()[0])
        assert torch.equal(row.inputs["input_ids"][0, :first], asked["input_ids"][0])
        assert int((row.inputs["input_ids"] == model.image_token_id).sum()) == count * (model.shape.visual_tokens or 0)
        assert ("pixel_values" in row.inputs) == bool(count)
        if count:
            assert torch.equal(row.inputs["pixel_values"], asked["pixel_values"])
        (answer,) = spans(row.labels)
        tokenizer = model.tokenizer
        assert answer[-1] == tokenizer.eos_token_id and (answer[:-1] != tokenizer.eos_token_id).all()
        expected = tokenizer("a red circle.", add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(answer[:-1]).strip() == tokenizer.decode(expected).strip() and len(answer) > 1


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_several_turns_are_the_answers(name: str, files: list[Path]) -> None:
    """Against what the tokenizer makes of each answer by itself; nothing else is a label."""
    model = backbone(name)
    turns = [("what is this?\n<image>", "a red circle"), ("and this?", "two"), ("is it blue?", "on the left, blue.")]
    for count in (0, 1):
        given = [(q.replace("<image>", "" if not count else "<image>"), a) for q, a in turns]
        row = Encoder(model).row("conversation", sample(files[:count], *given))
        tokenizer = model.tokenizer
        found = [tokenizer.decode(run).replace(" ", "") for run in spans(row.labels)]
        ids = [tokenizer(a, add_special_tokens=False)["input_ids"] for _, a in turns]
        assert found == [(tokenizer.decode(i) + tokenizer.eos_token).replace(" ", "") for i in ids]
        kept = row.labels != IGNORE
        assert torch.equal(row.labels[kept], row.inputs["input_ids"][0][kept])


def test_labels_of_words_by_hand(files: list[Path]) -> None:
    """One word is one token there, so the whole row can be written down."""
    model = backbone("tiny")
    row = Encoder(model).row(
        "conversation", sample(files[:1], ("<image>\nwhat is this", "red circle"), ("one two", "blue"))
    )
    vocabulary = model.tokenizer.get_vocab()

    def ids(text: str) -> list[int]:
        return [vocabulary.get(w, vocabulary["<unk>"]) for w in text.split()]

    user, assistant = ids("user :"), ids("assistant :")
    eos, image = [vocabulary["</s>"]], [vocabulary["<image>"]] * 16
    asked = [vocabulary["<s>"], *user, *image, *ids("what is this"), *assistant]
    again = [*user, *ids("one two"), *assistant]
    assert row.inputs["input_ids"][0].tolist() == [*asked, *ids("red circle"), *eos, *again, *ids("blue"), *eos]
    none = [IGNORE]
    expected = [*none * len(asked), *ids("red circle"), *eos, *none * len(again), *ids("blue"), *eos]
    assert row.labels.tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_plain_is_the_image_and_its_caption(name: str, files: list[Path]) -> None:
    """LLaVA's first stage: no question, no end of text; labels are all that follows the image."""
    model = backbone(name)
    encoder = Encoder(model, plain=True)
    row = encoder.row("conversation", sample(files[:1], ("Describe it.\n<image>", "a red circle .")))
    visual = row.inputs["input_ids"][0] == model.image_token_id
    last = int(visual.nonzero()[-1])
    assert (row.labels[: last + 1] == IGNORE).all() and (row.labels[last + 1 :] != IGNORE).all()
    said = model.tokenizer.decode(row.labels[last + 1 :])
    caption = model.tokenizer.decode(model.tokenizer("a red circle .", add_special_tokens=False)["input_ids"])
    assert "".join(said.split()) == "".join(caption.split())
    assert "Describe" not in model.tokenizer.decode(row.inputs["input_ids"][0][~visual])
    assert model.tokenizer.eos_token_id not in row.labels
    assert visual.nonzero()[0] == int(row.inputs["input_ids"][0, 0] == model.tokenizer.bos_token_id)
    for bad in (sample([], ("q", "a")), sample(files[:1], ("q", "a"), ("q", "a"))):
        with pytest.raises(BadSample, match="plain=true"):
            encoder.row("conversation", bad)


@pytest.mark.parametrize("name", ["tiny", "pocket"])
def test_a_batch_of_one_two_and_no_images(name: str, files: list[Path]) -> None:
    """Right-padded; pixels in the order of the rows; what the model makes of a row doesn't depend on its neighbours."""
    model = backbone(name)
    encoder = Encoder(model)
    samples = [
        sample([], ("what is this", "one two three")),
        sample(files[:2], ("<image><image>\nwhat is left", "red")),
        sample(files[2:], ("<image>\nwhat", "blue square")),
    ]
    rows = [encoder.row("conversation", s) for s in samples]
    batch = encoder.collate(rows)
    lengths = [len(row.labels) for row in rows]
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape == (3, max(lengths))
    assert batch.attention_mask.sum(1).tolist() == lengths and batch.captions is None
    for n, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        assert torch.equal(batch.input_ids[n, :length], row.inputs["input_ids"][0])
        assert (batch.input_ids[n, length:] == model.tokenizer.pad_token_id).all()
        assert torch.equal(batch.labels[n, :length], row.labels) and (batch.labels[n, length:] == IGNORE).all()
    assert batch.inputs["pixel_values"].shape[0] == 3
    with torch.no_grad():
        together = model.model(**batch.inputs).logits
        for n, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            alone = model.model(**encoder.collate([row]).inputs).logits[0]
            assert torch.allclose(together[n, :length], alone, atol=1e-4)
    assert "pixel_values" not in encoder.collate(rows[:1]).inputs


def test_a_caption_pair_reads_as_images_are_embedded(files: list[Path]) -> None:
    """The image in the prompt that retrieval uses, the caption as retrieval reads it."""
    model = backbone("pocket")
    encoder = Encoder(model)
    texts = ["a red circle", "  two blue squares on the left "]
    rows = [encoder.row("caption", sample([f], caption=t)) for f, t in zip(files, texts, strict=False)]
    batch = encoder.collate(rows)
    assert (batch.labels == IGNORE).all() and batch.answers == 0 and batch.captions is not None
    ids, mask = batch.captions
    expected = model.tokenizer(
        [t.strip() for t in texts], add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"])
    assert mask[0, 0] == 0 and mask[0, -1] == 1
    asked = model.inputs([SUMMARY_PROMPT] * 2, [[Image.open(f)] for f in files[:2]])
    assert torch.equal(batch.input_ids, asked["input_ids"])
    method = NoCompression("full", model.shape)
    with torch.no_grad():
        last = model.core(**batch.inputs).last_hidden_state[:, -1]
        assert torch.allclose(last, embed_images(model, method, [Image.open(f) for f in files[:2]]), atol=1e-4)


def test_both_has_answers_and_captions(files: list[Path]) -> None:
    encoder = Encoder(backbone("tiny"))
    batch = encoder.collate([encoder.row("both", sample(files[:1], ("<image> what", "one two"), caption="red circle"))])
    assert batch.answers == 3 and batch.captions is not None and batch.captions[0].shape == (1, 2)


def test_max_length_cuts_answers_never_images(files: list[Path]) -> None:
    model = backbone("tiny")
    turns = sample(files[:1], ("<image>\nwhat is this", "red circle"), ("one two", "blue"))
    whole = Encoder(model).row("conversation", turns)
    first, second = ((whole.labels != IGNORE) & (whole.labels.roll(1) == IGNORE)).nonzero()[:, 0].tolist()
    for length in (first + 1, second, second + 1, len(whole.labels), 999):
        row = Encoder(model, max_length=length).row("conversation", turns)
        assert torch.equal(row.labels, whole.labels[:length])
        assert torch.equal(row.inputs["input_ids"], whole.inputs["input_ids"][:, :length])
        assert row.inputs["attention_mask"].shape == row.inputs["input_ids"].shape
        assert row.inputs["pixel_values"].shape[0] == 1
    with pytest.raises(BadSample, match="no token of an answer before max_length"):
        Encoder(model, max_length=first).row("conversation", turns)
    with pytest.raises(BadSample, match="visual tokens don't fit into max_length=10"):
        Encoder(model, max_length=10).row("conversation", turns)
    encoder = Encoder(model, max_length=40)
    captions = encoder.collate([encoder.row("caption", sample(files[:1], caption="red " * 60))]).captions
    assert captions is not None and captions[0].shape == (1, 40)


@pytest.mark.parametrize(
    ("images", "turns", "says"),
    [
        (0, [("<image> what", "a")], "1 times <image>, and 0 images"),
        (2, [("<image> what", "a")], "1 times <image>, and 2 images"),
        (1, [("what", "an <image>")], "<image> in an answer"),
    ],
)
def test_images_and_their_places_must_agree(images: int, turns: Any, says: str, files: list[Path]) -> None:
    with pytest.raises(BadSample, match=says):
        Encoder(backbone("tiny")).row("conversation", sample(files[:images], *turns))


def test_an_image_that_nothing_names_stands_in_front(files: list[Path]) -> None:
    encoder = Encoder(backbone("tiny"))
    named, not_named = (encoder.row("conversation", sample(files[:1], (q, "red"))) for q in ("<image>\nwhat", "what"))
    assert torch.equal(named.inputs["input_ids"], not_named.inputs["input_ids"])


def test_pixels_have_the_dtype_of_the_model(files: list[Path]) -> None:
    model = copy.deepcopy(tiny_backbone())
    model.model.to(torch.bfloat16)
    encoder = Encoder(model)
    batch = encoder.collate([encoder.row("conversation", sample(files[:1], ("what", "red")))])
    assert batch.inputs["pixel_values"].dtype == torch.bfloat16
    assert batch.input_ids.dtype == torch.long and model.model is not None, "the caller's backbone keeps its model"


def test_a_backbone_without_a_processor() -> None:
    model = copy.copy(backbone("tiny"))
    model.processor = None
    with pytest.raises(UserError, match="needs a processor"):
        Encoder(model)
