"""What the engine reports of where tokens came from, and where they stand on the picture: with an object planted on a
picture, and by counting."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from PIL import Image, ImageDraw

from vtc.drawing import groups, token_boxes
from vtc.engine import compressing
from vtc.interface import Compressor
from vtc.registry import methods
from vtc.testing.models import tiny_backbone
from vtc.testing.runs import instance
from vtc.testing.tiny_llava import tiny_llava_next
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_vl
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_internvl

GREY, RED = (128, 128, 128), (255, 0, 0)


class Changed(Compressor):
    """Keeps the token whose features differ most from those of the picture before, which has the same size."""

    name = "changed"

    def layers(self):
        return {0}

    def reduce(self, tokens, layer, context):
        if not hasattr(self, "plain"):
            self.plain = tokens.visual_hidden().clone()
            return tokens
        far = (tokens.visual_hidden() - self.plain).norm(dim=-1)
        return tokens.keep_visual(far == far.amax(1, keepdim=True))


def cropping():
    """A LLaVA whose processor cuts the middle out of a picture, as LLaVA-1.5's does."""
    backbone = tiny_backbone(grid=8)
    images = backbone.processor.image_processor
    images.size, images.do_center_crop = {"shortest_edge": images.crop_size["height"]}, True
    return backbone


CASES = {
    "a square": (lambda: tiny_backbone(grid=8), (64, 64)),
    "squeezed": (lambda: tiny_backbone(grid=8), (96, 48)),
    "the middle of a wide picture": (cropping, (96, 48)),
    "the middle of a tall picture": (cropping, (48, 96)),
    "LLaVA-NeXT, wide": (lambda: tiny_llava_next(image_size=None), (30, 16)),
    "LLaVA-NeXT, tall": (lambda: tiny_llava_next(image_size=None), (14, 31)),
    "InternVL": (lambda: tiny_internvl(None), (64, 32)),
    "InternVL, tall": (lambda: tiny_internvl(None), (20, 60)),
    "Idefics3": (lambda: tiny_idefics3(None), (60, 28)),
    "Idefics3, tall": (lambda: tiny_idefics3(None), (28, 60)),
    "Qwen2-VL": (lambda: tiny_qwen2_vl(None), (64, 32)),
    "Qwen2.5-VL": (lambda: tiny_qwen2_5_vl(None), (32, 64)),
    "Qwen3-VL": (lambda: tiny_qwen3_vl(None), (64, 48)),
}


@pytest.mark.parametrize("where", [(0.3, 0.4), (0.7, 0.62)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_squares_stand_on_the_planted_object(case: str, where) -> None:
    make, (width, height) = CASES[case]
    backbone = make()
    plain = Image.new("RGB", (width, height), GREY)
    planted, x, y = plain.copy(), where[0] * width, where[1] * height
    ImageDraw.Draw(planted).rectangle((x - 2, y - 2, x + 1, y + 1), fill=RED)
    method = Changed(None, backbone.shape)
    with torch.no_grad(), compressing(backbone, method) as engine:
        for picture in (plain, planted):
            backbone.model(**backbone.inputs(["what is this"], [[picture]]))
    report = engine.report
    holders = report.holders[0][0]
    regions = backbone.regions((height, width), len(holders), report.grids[0][0])
    boxes = list(token_boxes([dataclasses.asdict(region) for region in regions]))
    assert len(boxes) == len(holders) == report.tokens_in[0], "a square, or none, for each token"
    (token,) = groups(holders)
    left, top, right, bottom = boxes[token]
    assert left * width <= x + 2 and right * width >= x - 2, f"{boxes[token]} for an object at {where}"
    assert top * height <= y + 2 and bottom * height >= y - 2, f"{boxes[token]} for an object at {where}"


@pytest.mark.parametrize("name", ["fastv", "divprune", "pyramiddrop", "fitprune", "dart"])
def test_kept_tokens_are_the_ones_that_the_cache_holds(name: str) -> None:
    """`holders` say of methods that only choose what `kept` says in the numbers of input_ids."""
    backbone = tiny_backbone(grid=4)
    method = methods.get(name)(5, backbone.shape)
    pictures = [Image.effect_noise((32, 32), 90).convert("RGB") for _ in range(3)]
    inputs = backbone.inputs(["what is this", "one two three red blue"], [[pictures[0]], pictures[1:]])
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**inputs)
    visual = backbone.visual(inputs["input_ids"])
    for row, per_image in enumerate(engine.report.holders):
        columns = visual[row].nonzero()[:, 0].tolist()
        left = [columns[16 * i + token] for i, holders in enumerate(per_image) for token in groups(holders)]
        assert left == engine.report.kept[row] and len(left) == 5 * len(per_image)
        assert engine.report.made[row] == [0] * len(per_image)


def test_merged_tokens_say_where_they_came_from() -> None:
    """Random groups, then random drops, twice over, against sets."""
    from vtc.engine.call import Images
    from vtc.engine.report import Tally
    from vtc.interface import VISUAL, TokenSequence

    rng = random.Random(0)
    for _ in range(40):
        kind = torch.tensor([[-1, *[0] * 6, -1, *[1] * 5, -1], [-1, -1, -1, *[0] * 9, -1, -1]])
        tokens = TokenSequence(
            hidden=torch.randn(2, 14, 2), mask=torch.ones(2, 14, dtype=torch.bool),
            position=torch.arange(14).expand(1, 2, -1),
            role=(kind >= 0) * VISUAL, origin=torch.arange(14).expand(2, -1), block=torch.zeros_like(kind), image=kind,
        )  # fmt: skip
        tally = Tally.of(Images(kind >= 0, kind, [], [None] * 3, [0, 0, 1], ["image"] * 3, {}))
        parts = {(b, c): {c} for b in range(2) for c in range(14) if kind[b, c] >= 0}  # place → what it holds
        for _ in range(2):
            groups_of = torch.full_like(tokens.role, -1)
            for b in range(2):
                for at in tokens.visual[b].nonzero()[:, 0].tolist():
                    image = int(tokens.image[b, at])
                    groups_of[b, at] = rng.choice([-1, 3 * image, 3 * image + 1])
                for group in range(6):
                    places = [int(tokens.place[b, at]) for at in (groups_of[b] == group).nonzero()[:, 0].tolist()]
                    for other in places[1:]:
                        parts[b, places[0]] |= parts.pop((b, other))
            tokens = tokens.merge(groups_of)
            drop = tokens.visual & torch.tensor([[rng.random() < 0.3 for _ in row] for row in tokens.mask])
            for b, at in drop.nonzero().tolist():
                parts.pop((b, int(tokens.place[b, at])))
            tokens = tokens.keep(~drop)
        tokens = tokens.insert(torch.zeros(2, 2))
        tally.layers = tally.cached = [tokens.mask.sum(1)]
        tally.close(tokens)
        report = tally.report()
        for b, images in enumerate(report.holders):
            got = {}
            for image, holders in enumerate(images):
                columns = (kind[b] == image).nonzero()[:, 0].tolist()
                for holder, members in groups(holders).items():
                    got[b, columns[holder]] = {columns[m] for m in members}
            assert got == {key: value for key, value in parts.items() if key[0] == b}
        images_left = [[len({int(i) for i in tokens.image[b][tokens.visual[b]]})] for b in range(2)]
        assert [[sum(made) // 2] for made in report.made] == images_left


def test_a_new_set_of_tokens_stands_nowhere() -> None:
    backbone = tiny_backbone(grid=4)
    for name, tokens in (("tome", 9), ("tome", 12)):
        method = instance(backbone, lambda b, count, name=name: methods.get(name)(count, b.shape), tokens)
        with torch.no_grad(), compressing(backbone, method) as engine:
            backbone.model(**backbone.inputs(["what is this"], [[Image.new("RGB", (32, 32), RED)]]))
        assert engine.report.holders == [[[-1] * 16]] and engine.report.made == [[tokens]], name
