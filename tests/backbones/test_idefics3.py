"""Idefics3 and SmolVLM: visual tokens that stand apart in the prompt, with text between an image's tiles; videos."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image
from reference import decoder
from torch import Tensor

from vtc.backbones.idefics3 import GLOBAL
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import TEXT, Compressor, Context, TokenSequence
from vtc.interface.selection import merge_images
from vtc.methods import build
from vtc.testing.models import collate, rows
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_smolvlm

MAKERS = [tiny_idefics3, tiny_smolvlm]


class Step(Compressor):
    """What a test does to the tokens before one layer; keeps what it saw."""

    name = "step"

    def __init__(self, change, layer: int = 0) -> None:
        super().__init__(None, tiny_idefics3().shape)
        self.change, self.layer, self.seen = change, layer, []

    def layers(self) -> set[int]:
        return {self.layer}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        self.seen += [tokens, context, context.prompt(tokens)]
        return self.change(tokens)


def case(backbone, images: int = 2) -> tuple[dict[str, Tensor], Tensor, Tensor, list[Tensor]]:
    """One row of several images of five tiles each: inputs, embeddings [L, D], image [L] (-1: text), and features."""
    inputs = collate(backbone, rows(backbone, before=(3,), after=(5,), images=(images,)))
    x = backbone.decoder.embed_tokens(inputs["input_ids"][0]).clone()
    features = backbone.image_features(dict(inputs))
    visual = inputs["input_ids"][0] == backbone.image_token_id
    x[visual] = torch.cat(features)
    image = torch.full(visual.shape, -1)
    image[visual] = torch.arange(images).repeat_interleave(80)
    return inputs, x, image, features


def states(backbone, inputs: dict[str, Tensor], method: Compressor) -> Tensor:
    """[L, D]: last hidden states of the row, in the layout of the prompt."""
    with torch.no_grad(), compressing(backbone, method):
        return backbone.core(**inputs, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("make", MAKERS)
@torch.no_grad()
def test_kept_tokens_close_up_around_the_markers(make) -> None:
    """Before the LLM: as if the prompt had only ever had the kept tokens, each behind the marker of its tile."""
    backbone = make(image_size=32)
    inputs, x, image, _ = case(backbone)
    kept = torch.ones_like(image, dtype=torch.bool)
    drawn = torch.Generator().manual_seed(2)
    for number in range(2):
        mine = (image == number).nonzero()[:, 0]
        kept[mine[torch.randperm(80, generator=drawn)[:60]]] = False
    ours = states(backbone, inputs, Step(lambda tokens: tokens.keep(kept[None])))
    theirs = decoder(backbone, x[kept], torch.arange(int(kept.sum())))
    last_text = (image < 0).nonzero()[-5:, 0]  # what is behind both images predicts the same
    assert torch.allclose(ours[last_text], theirs[-5:], atol=2e-4)
    # between the layers nothing moves: the tokens are as hidden by a mask
    ours = states(backbone, inputs, Step(lambda tokens: tokens.keep(kept[None]), layer=2))
    theirs = decoder(backbone, x, torch.arange(len(x)), hidden_from={2: ~kept})
    assert torch.allclose(ours[last_text], theirs[last_text], atol=2e-4)


@pytest.mark.parametrize("make", MAKERS)
@torch.no_grad()
def test_registers_stand_behind_the_last_tile(make) -> None:
    backbone = make(image_size=32)
    inputs, x, image, _ = case(backbone)
    new = torch.randn(3, x.shape[1], generator=torch.Generator().manual_seed(4)) * 0.3
    ours = states(backbone, inputs, Step(lambda tokens: tokens.insert(new)))
    ends = [int((image == n).nonzero()[-1]) + 1 for n in range(2)]
    whole = torch.cat([x[: ends[0]], new, x[ends[0] : ends[1]], new, x[ends[1] :]])
    theirs = decoder(backbone, whole, torch.arange(len(whole)))
    assert torch.allclose(ours[-5:], theirs[-5:], atol=2e-4)
    assert torch.allclose(ours[: ends[0] - 1], theirs[: ends[0] - 1], atol=2e-4)


@pytest.mark.parametrize("make", MAKERS)
@torch.no_grad()
def test_a_summary_stands_where_the_whole_picture_stood(make) -> None:
    """M tokens in place of an image's 80: behind all of its markers, with no gaps where its tiles were."""
    backbone = make(image_size=32)
    inputs, x, image, _ = case(backbone)
    summary = torch.randn(2, 4, x.shape[1], generator=torch.Generator().manual_seed(4)) * 0.3
    ours = states(backbone, inputs, Step(lambda tokens: tokens.replace(summary)))
    parts, start = [], 0
    for number in range(2):
        end = int((image == number).nonzero()[-1]) + 1
        parts += [x[start:end][image[start:end] < 0], summary[number]]
        start = end
    whole = torch.cat([*parts, x[start:]])
    theirs = decoder(backbone, whole, torch.arange(len(whole)))
    assert len(whole) == int((image < 0).sum()) + 8
    assert torch.allclose(ours[-5:], theirs[-5:], atol=2e-4)


@torch.no_grad()
def test_tokens_of_different_tiles_merge_where_the_first_stood() -> None:
    backbone = tiny_idefics3(image_size=32)
    inputs, x, image, features = case(backbone)
    step = Step(lambda tokens: tokens, layer=2)
    states(backbone, inputs, step)
    tokens = step.seen[0]
    groups = torch.full((2, 80), -1)
    groups[:, [1, 70]] = 0  # of the first tile and of the last
    merged = merge_images(dataclasses.replace(tokens, hidden=x[None]), groups)
    for number in range(2):
        place = (image == number).nonzero()[:, 0]
        at = int(place[1]) - number  # one token less an image
        assert torch.allclose(merged.hidden[0, at], (features[number][1] + features[number][70]) / 2, atol=1e-5)
        assert merged.position[0, 0, at] == (place[1] + place[70]) // 2
        assert merged.image[0, at] == number and merged.origin[0, at] == -1
    assert int((merged.role == TEXT).sum()) == int((image < 0).sum())
    assert [int((merged.image == n).sum()) for n in range(2)] == [79, 79]


def test_the_prompt_is_what_stands_behind_an_image_not_between_its_tiles() -> None:
    backbone = tiny_idefics3(image_size=32)
    inputs, _, image, _ = case(backbone)
    step = Step(lambda tokens: tokens)
    states(backbone, inputs, step)
    first, last = (image == 0).nonzero()[-1, 0], (image == 1).nonzero()[0, 0]
    inside = torch.zeros_like(image, dtype=torch.bool)
    for number in range(2):
        mine = (image == number).nonzero()[:, 0]
        inside[mine[0] : mine[-1]] = True
    expected = (image < 0) & ~inside
    expected[: int(first)] = False
    assert torch.equal(step.seen[2][0], expected)
    assert expected[int(first) : int(last)].any(), "what stands between two images is no marker of a tile"


@pytest.mark.parametrize("make", MAKERS)
def test_a_global_tile_ends_an_image(make) -> None:
    """Images of one tile and of several side by side, cut at their markers; a row's end cuts in any case."""
    backbone = make(image_size=None)
    small, wide = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (64, 16), "blue")
    text = backbone.prompt("what", 3)
    batch = dict(backbone.encode([text, text], [[wide, small, wide], [small, wide, small]]))
    sizes = backbone.image_sizes(batch["input_ids"])
    assert sizes == [len(f) for f in backbone.image_features(batch)]
    one = 16 * 5  # 64×16 pixels are 4×1 tiles, beside the global one; 16×16 become 64×64
    assert sizes == [one, 272, one, 272, one, 272]
    ids = batch["input_ids"].clone()
    tag = backbone.tokenizer(GLOBAL, add_special_tokens=False)["input_ids"]
    assert (len(tag) == 1) == (make is tiny_smolvlm)
    ids[ids == tag[0]] = backbone.tokenizer.unk_token_id  # no marker left: one image a row
    assert backbone.image_sizes(ids) == [2 * one + 272, 2 * 272 + one]


def test_methods_that_need_a_grid_refuse_several_tiles_by_name() -> None:
    shape = tiny_idefics3(image_size=32).shape
    for method, tokens in (("m3", None), ("avgpool", 16)):
        with pytest.raises(UserError, match=method):
            build(method, tokens, shape)
    assert build("avgpool", 16, shape, dims=1).tokens == 16


def test_frames_of_a_video_are_images_of_one_tile() -> None:
    from transformers.video_utils import VideoMetadata

    backbone = tiny_smolvlm(image_size=None)
    clip = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue", "green")]
    inputs = backbone.inputs(["what is this", "one", "two"], [[], [], []], [[clip], [], [clip[:2], clip[1:]]])
    text = backbone.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is this"}]}],
        add_generation_prompt=True,
    )
    assert text == backbone.prompt("what is this", 0, 1)
    times = [VideoMetadata(total_num_frames=3, fps=1.0, frames_indices=[0, 1, 2], duration=3.0)]
    alone = backbone.processor(text=[text], videos=[clip], video_metadata=times, return_tensors="pt")
    real = inputs["attention_mask"][0].bool()
    assert torch.equal(inputs["input_ids"][0, real], alone["input_ids"][0])
    assert torch.equal(inputs["pixel_values"][:3, 0], alone["pixel_values"][0])
    with torch.no_grad(), compressing(backbone, build("random", 5, backbone.shape)) as engine:
        backbone.model(**inputs)
        assert engine.report.images == [3, 0, 4]
        assert engine.report.tokens_in == [48, 0, 64] and engine.report.tokens_out == [15, 0, 20]
    with pytest.raises(UserError, match="images or videos in one question, not both"):
        backbone.inputs(["what"], [[clip[0]]], [[clip]])


def test_idefics3_reads_no_videos() -> None:
    with pytest.raises(UserError, match="it reads images, not videos"):
        tiny_idefics3().inputs(["what"], [[]], [[[Image.new("RGB", (9, 9))]]])
