"""The squares that are drawn for FastV and DivPrune stand on the patches whose numbers the report holds."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from vtc.drawing import groups, token_boxes
from vtc.engine import compressing
from vtc.evaluation.kept import images_of
from vtc.interface import Compressor
from vtc.registry import methods
from vtc.testing.models import tiny_backbone
from vtc.testing.runs import instance
from vtc.testing.tiny_llava import tiny_llava_next
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl, tiny_qwen2_vl
from vtc.testing.tiny_tiles import tiny_internvl


def internvl():
    """Without what its tower adds for a patch's place in its tile: of random weights that differs more than what is
    seen, and what differs most is what DivPrune keeps."""
    backbone = tiny_internvl(None)
    backbone.vision_tower.embeddings.position_embeddings.data.zero_()
    return backbone


GREY, RED, BLUE = (128, 128, 128), (255, 0, 0), (0, 0, 255)
CASES = {
    "square": (lambda: tiny_backbone(grid=8), (64, 64)),
    "tiles, LLaVA-NeXT": (lambda: tiny_llava_next(image_size=None), (30, 16)),
    "tiles, InternVL": (internvl, (64, 32)),
    "M-RoPE, Qwen2-VL": (lambda: tiny_qwen2_vl(None), (64, 32)),
    "M-RoPE, Qwen2.5-VL": (lambda: tiny_qwen2_5_vl(None), (32, 64)),
}


class Features(Compressor):
    """Keeps all, and holds what the visual tokens are."""

    name = "features"

    def layers(self):
        return {0}

    def reduce(self, tokens, layer, context):
        self.seen = tokens.visual_hidden()[0].clone()
        return tokens


def features(backbone, picture: Image.Image) -> torch.Tensor:
    method = Features(None, backbone.shape)
    with torch.no_grad(), compressing(backbone, method):
        backbone.model(**backbone.inputs(["what is this"], [[picture]]))
    return method.seen


@pytest.mark.parametrize("name", ["fastv", "divprune"])
@pytest.mark.parametrize("case", CASES)
def test_painting_on_a_square_changes_the_token_that_it_is_drawn_for(case: str, name: str) -> None:
    make, (width, height) = CASES[case]
    backbone, count = make(), 4
    picture = Image.new("RGB", (width, height), GREY)
    x, y = 0.7 * width, 0.4 * height
    ImageDraw.Draw(picture).rectangle((x - 2, y - 2, x + 2, y + 2), fill=RED)
    method = instance(backbone, lambda b, tokens: methods.get(name)(tokens, b.shape), count)
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**backbone.inputs(["what is this"], [[picture]]))
    (image,) = images_of(backbone, engine.report, 0, [picture])
    boxes, left = list(token_boxes(image["regions"])), list(groups(image["holders"]))
    assert len(left) == count and len(boxes) == len(image["holders"])
    plain = features(backbone, picture)
    region_of = [at for at, r in enumerate(image["regions"]) for _ in range(r["rows"] * (r["columns"] + r["newline"]))]
    drawn = 0
    for token in left:
        if boxes[token] is None:
            continue  # the end of a row of tiles
        x0, y0, x1, y1 = (side * size for side, size in zip(boxes[token], (width, height) * 2, strict=True))
        painted, x, y = picture.copy(), (x0 + x1) / 2, (y0 + y1) / 2
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue  # its middle is padding
        ImageDraw.Draw(painted).rectangle((x - 1, y - 1, x + 0.5, y + 0.5), fill=BLUE)
        far = (features(backbone, painted) - plain).norm(dim=-1)
        mine = [t for t in range(len(boxes)) if region_of[t] == region_of[token] and boxes[t] is not None]
        assert max(mine, key=lambda t: float(far[t])) == token, f"{boxes[token]}"
        drawn += 1
    assert drawn >= 2
    if name == "divprune":
        inside = [b for t in left if (b := boxes[t]) and b[0] <= 0.7 <= b[2] and b[1] <= 0.4 <= b[3]]
        assert inside, "no square on the only object"
