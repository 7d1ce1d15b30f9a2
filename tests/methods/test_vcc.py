"""VCC against loops over blocks and the weights that eager attention returns for the sequence of coarse tokens."""

from __future__ import annotations

import pytest
import torch
from reference import attention_weights, decoder, embedded

from vtc.budget import Budget, compression_ratio
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build
from vtc.methods.vcc import split
from vtc.registry import methods
from vtc.testing import batch, tiny_backbone
from vtc.testing.models import packed


def runs(members: list[int], count: int) -> list[list[int]]:
    """`members` in `count` runs whose lengths differ by one at most."""
    return [[m for r, m in enumerate(members) if r * count // len(members) == c] for c in range(count)]


def groups_of(blocks: list[list[int]], score: list[float], tokens: int) -> list[list[int]]:
    """The groups of one image: blocks in the order of their score are split for what the budget has left."""
    rest, pieces = tokens - len(blocks), [1] * len(blocks)
    for b in sorted(range(len(blocks)), key=lambda b: (-score[b], b)):
        pieces[b] += min(len(blocks[b]) - 1, max(rest, 0))
        rest -= len(blocks[b]) - 1
    return [run for block, count in zip(blocks, pieces, strict=True) for run in runs(block, count)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("sizes", "counts", "tokens"),
    [([16, 9], [4, 3], 7), ([24, 24], [6, 6], 6), ([30, 4], [8, 1], 13), ([5], [2], 5), ([36, 17, 3], [9, 5, 1], 20)],
)
def test_the_best_blocks_are_split(sizes: list[int], counts: list[int], tokens: int, seed: int) -> None:
    real = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    score = torch.rand(len(sizes), max(counts), generator=torch.Generator().manual_seed(seed))
    score[:, ::3] = score[:, :1].clone()  # ties
    blocks = torch.zeros(len(sizes), max(sizes), dtype=torch.long)
    lists = [runs(list(range(n)), c) for n, c in zip(sizes, counts, strict=True)]
    for image, made in enumerate(lists):
        for b, members in enumerate(made):
            blocks[image, members] = b
        score[image, len(made) :] = -1
    got = split(blocks, real, score, tokens)
    for image, made in enumerate(lists):
        expected = groups_of(made, score[image].tolist(), tokens)
        assert len(expected) == min(tokens, sizes[image])
        for group, members in enumerate(expected):
            assert got[image, members].tolist() == [group] * len(members)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("layer", "tokens", "block"), [(0, 7, 4), (1, 6, 4), (2, 9, 3), (3, 4, 4), (2, 5, 6)])
def test_equals_the_decoder_over_the_groups(kv_heads: int, layer: int, tokens: int, block: int) -> None:
    """The whole of it, row by row: coarse tokens, what the prompt's text pays to them in the layer, the groups."""
    backbone, n = tiny_backbone(kv_heads=kv_heads), 16
    inputs = batch(backbone)
    method = build("vcc", tokens, backbone.shape, layer=layer, block=block, layer_scale="none")
    with torch.no_grad(), compressing(backbone, method):
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    blocks = runs(list(range(n)), -(-n // block))
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        first = int((ids == backbone.image_token_id).nonzero()[0])

        def merged(x, position, groups, first: int = first):
            means = torch.stack([x[[first + i for i in g]].mean(0) for g in groups])
            places = torch.tensor([sum(first + i for i in g) // len(g) for g in groups])
            x = torch.cat([x[:first], means, x[first + n :]])
            place = torch.cat([position[:first], places, position[first + n :]])
            return x, torch.arange(len(x)) if layer == 0 else place

        def change(x, position, first: int = first):
            coarse, places = merged(x, position, blocks)
            weights = one_layer_weights(backbone, coarse, places, layer)[:, first + len(blocks) :]
            weights = weights[:, :, first : first + len(blocks)]
            score = (weights / weights.sum(-1, keepdim=True)).mean((0, 1))
            return merged(x, position, groups_of(blocks, score.tolist(), tokens))

        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            out = decoder(backbone, x, torch.arange(len(ids)), changes={layer: change})
            expected = backbone.model.lm_head(out[first + tokens :])
        assert (got[row, real.nonzero()[first + n :, 0]] - expected).abs().max() < 1e-4


def one_layer_weights(backbone, x: torch.Tensor, position: torch.Tensor, layer: int) -> torch.Tensor:
    """[H, L, L] in float64: softmax of rotated queries and keys, written out."""
    module = backbone.decoder.layers[layer]
    normed = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    normed = normed * module.input_layernorm.weight.double()
    attention, d = module.self_attn, module.self_attn.head_dim
    angle = position.double()[:, None] * backbone.decoder.rotary_emb.inv_freq.double()[None]

    def heads(weight: torch.Tensor) -> torch.Tensor:
        y = (normed @ weight.double().T).view(len(x), -1, d).transpose(0, 1)
        a, b = y[..., : d // 2], y[..., d // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    q, k = heads(attention.q_proj.weight), heads(attention.k_proj.weight)
    k = k.repeat_interleave(len(q) // len(k), 0)
    scores = q @ k.transpose(1, 2) / d**0.5
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    return scores.masked_fill(~causal, float("-inf")).softmax(-1).float()


def test_the_written_out_weights_are_those_of_eager_attention() -> None:
    backbone = tiny_backbone()
    x = embedded(backbone, torch.arange(10, 30), None)
    with torch.no_grad():
        expected = attention_weights(backbone, x, 0)
        assert torch.allclose(one_layer_weights(backbone, x, torch.arange(20), 0), expected, atol=1e-5)


def test_the_prompt_decides_what_stays_fine() -> None:
    backbone = tiny_backbone()
    inputs = batch(backbone, before=(2, 2), after=(6, 6), images=(1, 1))
    inputs["pixel_values"][1] = inputs["pixel_values"][0]
    inputs["input_ids"][1, :2] = inputs["input_ids"][0, :2]
    with torch.no_grad(), compressing(backbone, build("vcc", 7, backbone.shape, block=4)) as engine:
        backbone.model(**inputs)
        fine = engine.report.kept
        backbone.model(**{k: v.flip(0) for k, v in inputs.items()})
    assert engine.report.kept == fine[::-1] and fine[0] != fine[1]


def test_table_3_of_llavolta() -> None:
    """514 % with 3582 tokens: 81 of 576 from layer 2 on, which is three fine blocks of 16."""
    shape = tiny_backbone(depth=32, grid=24).shape
    method = build("vcc", None, shape)
    assert (method.tokens, method.layer) == (81, 2)
    seen = method.layer_tokens()
    assert sum(seen) == 3582 and int(100 * compression_ratio(seen, shape)) == 514


def test_what_it_offers() -> None:
    shape = tiny_backbone(grid=5).shape
    assert list(methods.get("vcc")(None, shape).offers()) == list(range(2, 26))
    assert build("vcc", None, shape).tokens == 25  # three fine blocks would be more than there is
    with pytest.raises(UserError, match="tokens=1: vcc on model offers 2 to 25"):
        build("vcc", 1, shape)
    assert build("vcc", 1, shape, block=25).tokens == 1
    assert methods.get("vcc")(Budget(ratio=0.01).resolve, shape).tokens == 2
    with pytest.raises(UserError, match="method.block=0"):
        build("vcc", 5, shape, block=0)


def test_packed_questions_decide_together_and_their_answers_have_no_say() -> None:
    backbone = tiny_backbone()
    inputs, blocks = packed(backbone)
    labels = inputs.pop("labels")
    for row in range(2):
        for question in (1, 2, 3):
            labels[row, (blocks[row] == question).nonzero()[:3, 0]] = -100

    def kept(changed: torch.Tensor) -> list[list[int]]:
        ids = torch.where(changed, 70 - inputs["input_ids"], inputs["input_ids"])
        with torch.no_grad(), compressing(backbone, build("vcc", 7, backbone.shape, block=4)) as engine:
            with engine.blocks(blocks, labels):
                backbone.model(**inputs | {"input_ids": ids}, use_cache=False)
            return engine.report.kept

    asked = (blocks > 0) & (labels == -100) & inputs["attention_mask"].bool()
    first = kept(labels == 0)
    assert kept(labels != -100) == first
    assert any(kept(asked & (blocks == question)) != first for question in (1, 2, 3))
