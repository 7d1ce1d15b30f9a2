"""Methods that read CLS attention where images are seen in tiles, against their papers written out tile by tile."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from PIL import Image
from test_prumerge import adaptive, cls_row, exact, merged
from test_visionzip import zipped
from test_vispruner import chosen
from tower_reference import Seen, equals, look

from vtc.backbones import anyres
from vtc.backbones.llava_next import LlavaNext
from vtc.engine import compressing
from vtc.interface.tower import evenly
from vtc.methods import build
from vtc.testing.tiny_llava import tiny_llava_next

SIZES = [(16, 16), (9, 30), (24, 10), (40, 31), (7, 5)]  # (width, height)
IMAGES = (2, 0, 3)


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def free(seed: int, patch: int) -> LlavaNext:
    """Images as they are, in float64, the tower's attention uneven."""
    backbone = tiny_llava_next(image_size=None, seed=seed, patch=patch)
    backbone.model.double()
    with torch.no_grad():
        for block in backbone.vision_tower.encoder.layers:
            block.self_attn.q_proj.weight *= 4
    return backbone


def asked(backbone: LlavaNext, seed: int) -> dict[str, torch.Tensor]:
    pictures = [noise(size, 10 * seed + n) for n, size in enumerate(SIZES)]
    return dict(backbone.inputs(["what is this", "one", "two three"], [pictures[:2], [], pictures[2:]]))


def tiles_of(backbone: LlavaNext, size: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Of each tile of a picture (width, height) its (token, patch) pairs, by going over the grid of the whole picture
    row by row, each with a newline at its end.
    """
    made = anyres.layout((size[1], size[0]), backbone.model.config)
    side, (down, across) = made.base, made.tiles
    pairs: list[list[tuple[int, int]]] = [[(j, j) for j in range(side * side)], *([] for _ in range(down * across))]
    token = side * side
    for y in range(made.top, made.top + made.rows):
        for x in range(made.left, made.left + made.columns):
            pairs[1 + (y // side) * across + x // side].append((token, (y % side) * side + x % side))
            token += 1
        token += 1
    assert token == made.tokens
    return pairs


def part(seen: Seen, patches: list[int]) -> Seen:
    """These patches of a tile alone; what CLS pays to them is what it pays in the whole tile."""
    index = torch.tensor([0] + [1 + p for p in patches])
    return Seen(
        seen.attention[:, index][:, :, index], seen.queries[index], seen.keys[index], seen.features[index[1:] - 1]
    )


def best(scores: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:count])


def expected(backbone: LlavaNext, inputs: dict[str, torch.Tensor], tokens: int, of_tile) -> list[torch.Tensor]:
    """What is left of each picture: kept tokens where they stood, then what each tile adds."""
    whole = backbone.image_features(dict(inputs))
    assert whole is not None
    made = []
    for image, size in enumerate(SIZES):
        pairs = tiles_of(backbone, size)
        if len(whole[image]) <= tokens:
            made.append(whole[image])
            continue
        seen = look(backbone, inputs["pixel_values"][image][: len(pairs)])
        kept: dict[int, torch.Tensor] = {}
        behind = []
        for tile, own, share in zip(seen, pairs, evenly(tokens, [len(p) for p in pairs]), strict=True):
            if share == len(own):
                kept |= {token: whole[image][token] for token, _ in own}
            elif share:
                stay, values, more = of_tile(tile, [patch for _, patch in own], share)
                kept |= {own[j][0]: value for j, value in zip(stay, values, strict=True)}
                behind += list(more)
        bare = sorted({*range(len(whole[image]))} - {token for own in pairs for token, _ in own})
        kept |= {token: whole[image][token] for token in bare[: max(0, tokens - sum(map(len, pairs)))]}
        made.append(torch.stack([kept[token] for token in sorted(kept)] + behind))
    return made


def fastervlm(backbone: LlavaNext, tile: Seen, patches: list[int], count: int):
    stay = best(part(tile, patches).attention[:, 0, 1:].mean(0).tolist(), count)
    return stay, backbone.projector(tile.features[[patches[j] for j in stay]]), []


def vispruner(backbone: LlavaNext, tile: Seen, patches: list[int], count: int):
    stay = chosen(part(tile, patches), count, 0.5, 8)
    return stay, backbone.projector(tile.features[[patches[j] for j in stay]]), []


def visionzip(backbone: LlavaNext, tile: Seen, patches: list[int], count: int):
    seen, few = part(tile, patches), round(count * 10 / 64)
    stay = best(seen.attention[:, 0, 1:].sum(0).tolist(), count - few)
    made = zipped(backbone, seen, count - few, few, "add")
    return stay, made[: len(stay)], made[len(stay) :]


def prumerge(backbone: LlavaNext, tile: Seen, patches: list[int], count: int | None, plus: bool, monkeypatch):
    row = cls_row(tile)  # what CLS pays in the whole tile
    a = [row[p] for p in patches]
    monkeypatch.setattr("test_prumerge.cls_row", lambda seen: a)
    kept = exact(a, max(1, count - 1), plus) if count else adaptive(a, plus)
    made = merged(backbone, part(tile, patches), kept, max(1, round(len(a) / 18)), fuse=count != 1)
    return kept, made[: len(kept)], made[len(kept) :]


CASES = [(0, 2, 7), (1, 2, 23), (2, 2, 40), (3, 4, 5), (4, 4, 9), (5, 1, 60)]  # seed, side of a patch, tokens


@pytest.mark.parametrize(("seed", "patch", "tokens"), CASES)
@pytest.mark.parametrize("of_tile", [fastervlm, vispruner, visionzip], ids=lambda f: f.__name__)
def test_each_tile_has_an_equal_share(of_tile, seed: int, patch: int, tokens: int) -> None:
    backbone = free(seed, patch)
    inputs = asked(backbone, seed)
    want = expected(backbone, inputs, tokens, partial(of_tile, backbone))
    equals(backbone, build(of_tile.__name__, tokens, backbone.shape), inputs, want, IMAGES)


@pytest.mark.parametrize(("seed", "patch", "tokens"), CASES)
@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_merges_within_a_tile(seed: int, patch: int, tokens: int, plus: bool, monkeypatch) -> None:
    backbone = free(seed, patch)
    inputs = asked(backbone, seed)
    of_tile = partial(prumerge, backbone, plus=plus, monkeypatch=monkeypatch)
    want = expected(backbone, inputs, tokens, of_tile)
    equals(backbone, build("prumerge", tokens, backbone.shape, plus=plus), inputs, want, IMAGES)


@pytest.mark.parametrize("tokens", [3, 11, 30, 50, 75])
@pytest.mark.parametrize("name", ["fastervlm", "visionzip", "vispruner", "scope", "prumerge"])
def test_the_budget_is_exact_for_images_of_every_size(name: str, tokens: int) -> None:
    backbone = free(0, 2)
    inputs = asked(backbone, 0)
    sizes = [len(f) for f in backbone.image_features(dict(inputs)) or []]
    assert min(sizes) < 50 < max(sizes)
    with torch.no_grad(), compressing(backbone, build(name, tokens, backbone.shape)) as engine:
        backbone.model(**inputs)
        left = [min(tokens, size) for size in sizes]
        assert engine.report.tokens_out == [sum(left[:2]), 0, sum(left[2:])]


def test_things_are_dealt_evenly_as_far_as_there_is_room() -> None:
    assert evenly(7, [4, 4, 4]) == [3, 2, 2]
    assert evenly(2, [4, 4, 4]) == [1, 1, 0]
    assert evenly(9, [1, 8, 2]) == [1, 6, 2]
    assert evenly(20, [1, 8, 2]) == [1, 8, 2]
    for count in range(30):
        sizes = [5, 0, 3, 9, 1]
        given = evenly(count, sizes)
        assert sum(given) == min(count, sum(sizes)) and all(map(int.__le__, given, sizes))
        assert all(a >= min(max(given) - 1, size) for a, size in zip(given, sizes, strict=True))
