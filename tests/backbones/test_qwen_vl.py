"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: M-RoPE, images of any size, videos, deepstack, all against the unmodified models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from reference import decoder
from torch import Tensor

from vtc.backbones.qwen_vl import QwenVL
from vtc.engine import compressing
from vtc.interface import REGISTER, Compressor, Context, TokenSequence
from vtc.methods import build
from vtc.testing.runs import generation
from vtc.testing.tiny_qwen import SIDE, tiny_qwen2_5_vl, tiny_qwen2_vl, tiny_qwen3_vl, tiny_qwen3_vl_moe


def exact_experts(image_size: int | None = SIDE) -> QwenVL:
    """What transformers takes for experts by default knows no float64."""
    backbone = tiny_qwen3_vl_moe(image_size)
    backbone.model.set_experts_implementation("eager")
    return backbone


TINY = {
    "qwen2vl_2b": tiny_qwen2_vl,
    "qwen25vl_3b": tiny_qwen2_5_vl,
    "qwen3vl_2b": tiny_qwen3_vl,
    "qwen3vl_30b_a3b": exact_experts,
}
families = pytest.mark.parametrize("tiny", TINY.values(), ids=list(TINY))
QUESTIONS = ["what is this ?", "one two", "the red circle is", "left"]
# rows: two images of different sizes and a video of 3 pictures · a video of 2 · an image · text
SIZES = [[16, 10, 15, 15, 15], [9, 9], [3], []]
GRIDS = [(4, 4), (5, 2), (3, 5), (3, 5), (3, 5), (3, 3), (3, 3), (1, 3)]


def noise(height: int, width: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator).to(torch.uint8).numpy())


IMAGES = [[noise(32, 32, 0), noise(40, 16, 1)], [], [noise(8, 24, 2)], []]
VIDEOS = [[[noise(24, 40, 3 + i) for i in range(5)]], [[noise(24, 24, 8 + i) for i in range(4)]], [], []]


def mixed(backbone: QwenVL, rows: slice = slice(None)) -> dict[str, Any]:
    return dict(backbone.inputs(QUESTIONS[rows], IMAGES[rows], VIDEOS[rows]))


def pruner(backbone: QwenVL, layer: int) -> Compressor:
    return build("random", 4, backbone.shape, layer=layer, layer_scale="none")


def row_of(backbone: QwenVL, row: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Of one row alone, by the model's own parts: embeddings [L, D], positions [3, L], visual [L], deepstack [L, D]."""
    inputs = mixed(backbone, slice(row, row + 1))
    ids, core = inputs["input_ids"][0], backbone.core
    x, deep = core.get_input_embeddings()(ids), []
    for media, get in (("image", core.get_image_features), ("video", core.get_video_features)):
        pixels = inputs.get("pixel_values" if media == "image" else "pixel_values_videos")
        if pixels is None:
            continue
        out = get(pixels, inputs[f"{media}_grid_thw"], return_dict=True)
        where = ids == getattr(backbone.model.config, f"{media}_token_id")
        x = x.masked_scatter(where[:, None], torch.cat(list(out.pooler_output)))
        levels = [torch.cat(list(level)) for level in getattr(out, "deepstack_features", None) or []]
        deep = deep or [torch.zeros_like(x) for _ in levels]
        deep = [d.masked_scatter(where[:, None], level) for d, level in zip(deep, levels, strict=True)]
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    position = torch.arange(len(ids)).expand(3, -1)
    if "pixel_values" in inputs or "pixel_values_videos" in inputs:
        position = core.get_rope_index(**{n: inputs[n] for n in names if n in inputs})[0][:, 0]
    return x, position, backbone.visual(ids), deep


def seen_positions(backbone: QwenVL, run: Callable[[], Any]) -> list[Tensor]:
    """The position ids [3, B, L] that the decoder's rotary embedding is given while `run` runs."""
    given: list[Tensor] = []
    hook = backbone.decoder.rotary_emb.register_forward_pre_hook(lambda m, args: given.append(args[1]))
    try:
        run()
    finally:
        hook.remove()
    return given


# ---------------------------------------------------------------------- what a call brings
@families
def test_features_of_each_image_and_picture_are_those_it_has_alone(tiny) -> None:
    backbone = tiny(image_size=None)
    inputs = mixed(backbone)
    kwargs = dict(inputs)
    with torch.no_grad():
        features = backbone.image_features(kwargs)
        assert kwargs["pixel_values"] is None and kwargs["pixel_values_videos"] is None
        assert [len(f) for f in features] == [n for row in SIZES for n in row]
        assert backbone.grids(kwargs, features) == GRIDS
        at = 0
        for row in range(3):
            for image in IMAGES[row]:
                made = backbone.processor.image_processor(images=[image], return_tensors="pt")
                alone = backbone.core.get_image_features(**made, return_dict=True).pooler_output[0]
                torch.testing.assert_close(features[at], alone)
                at += 1
            for clip in VIDEOS[row]:
                made = backbone.processor.video_processor(videos=[clip], do_sample_frames=False, return_tensors="pt")
                alone = backbone.core.get_video_features(
                    made["pixel_values_videos"], made["video_grid_thw"], return_dict=True
                ).pooler_output[0]
                torch.testing.assert_close(torch.cat(features[at : at + len(clip + clip[:1]) // 2]), alone)
                at += len(clip + clip[:1]) // 2
    assert at == len(features)


@families
def test_what_generate_passes_on_says_the_same(tiny) -> None:
    """`generate` keeps the grids to itself: images, pictures and grids come from the positions."""
    backbone = tiny(image_size=None)
    inputs = mixed(backbone)
    passed: list[dict] = []
    hook = backbone.core.register_forward_pre_hook(lambda m, a, k: passed.append(dict(k)), with_kwargs=True)
    generation(backbone, inputs, count=1, num_beams=2)
    hook.remove()
    kwargs = passed[0]
    assert kwargs.get("image_grid_thw") is None and kwargs.get("video_grid_thw") is None
    features = backbone.image_features(kwargs)
    assert [len(f) for f in features] == [n for row in SIZES for _ in range(2) for n in row]
    twice = GRIDS[:5] * 2 + GRIDS[5:7] * 2 + GRIDS[7:] * 2
    assert backbone.grids(kwargs, features) == twice


@families
def test_positions_are_those_of_generate(tiny) -> None:
    backbone = tiny(image_size=None)
    inputs = mixed(backbone)
    real = inputs["attention_mask"].bool()
    given = seen_positions(backbone, lambda: generation(backbone, inputs, count=1))[0]
    assert torch.equal(backbone.positions(inputs)[:, real], given[:, real])
    text = dict(backbone.inputs(QUESTIONS[:2], [[], []]))
    given = seen_positions(backbone, lambda: generation(backbone, text, count=1))[0]
    real = text["attention_mask"].bool()
    assert torch.equal(backbone.positions(text)[:, real], given[:, real])


# ---------------------------------------------------------------------- identity
@families
@pytest.mark.parametrize("method", ["none", "random", "fastv"])
def test_keeping_everything_is_the_unmodified_model(tiny, method: str) -> None:
    """Images and videos mixed, several in a row, of different sizes: bit for bit, with the model's own positions."""
    backbone = tiny(image_size=None)
    inputs = mixed(backbone)

    def runs() -> dict[str, Any]:
        with torch.no_grad():
            return {
                "prefill": [backbone.model(**inputs).logits],
                "greedy": list(generation(backbone, inputs).logits),
                "uncached": list(generation(backbone, inputs, use_cache=False).logits),
                "beams": [generation(backbone, inputs, num_beams=3).sequences],
            }

    plain = runs()
    with compressing(backbone, build(method, 16, backbone.shape)):
        for way, results in runs().items():
            assert all(torch.equal(a, b) for a, b in zip(results, plain[way], strict=True)), way


# ---------------------------------------------------------------------- pruning
@families
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_pruning_is_a_mask_over_the_dropped_tokens(tiny, layer: int) -> None:
    """In float64: positions and deepstack of what is kept stay what they were, and so do those of the text behind."""
    backbone = tiny(image_size=None)
    backbone.model.double()
    inputs = mixed(backbone)
    with torch.no_grad(), compressing(backbone, pruner(backbone, layer)) as engine:
        got, report = backbone.model(**inputs).logits, engine.report
    assert report.tokens_in == [sum(row) for row in SIZES]
    assert report.tokens_out == [sum(min(4, n) for n in row) for row in SIZES]
    for row in range(4):
        real = inputs["attention_mask"][row].bool()
        with torch.no_grad():
            x, position, visual, deep = row_of(backbone, row)
            kept = torch.zeros_like(real)
            kept[report.kept[row]] = True
            hide = visual & ~kept[real]
            expected = backbone.model.lm_head(decoder(backbone, x, position, hidden_from={layer: hide}, deep=deep))
        text = ~visual
        assert (got[row, real][text] - expected[text]).abs().max() < 1e-9, row


@families
def test_the_model_itself_agrees_with_that_mask(tiny) -> None:
    """The same once more without the reference's own loop: the unmodified model with a 4-D mask."""
    backbone = tiny(image_size=None)
    backbone.model.double()
    inputs = mixed(backbone, slice(0, 1))
    with torch.no_grad():
        with compressing(backbone, pruner(backbone, 0)) as engine:
            got, kept = backbone.model(**inputs).logits[0], engine.report.kept[0]
        visual = backbone.visual(inputs["input_ids"])[0]
        hide = visual.clone()
        hide[kept] = False
        allowed = torch.ones(len(hide), len(hide)).tril().bool() & ~hide | torch.eye(len(hide)).bool()
        mask = torch.zeros(allowed.shape, dtype=torch.double).masked_fill(~allowed, torch.finfo(torch.double).min)
        plain = inputs | {"attention_mask": mask[None, None], "position_ids": backbone.positions(inputs)}
        expected = backbone.model(**plain).logits[0]
    assert (got[~visual] - expected[~visual]).abs().max() < 1e-9


@families
@pytest.mark.parametrize("layer", [0, 2])
def test_kept_tokens_have_the_positions_of_get_rope_index(tiny, layer: int) -> None:
    backbone = tiny(image_size=None)
    inputs = mixed(backbone)
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask", "mm_token_type_ids")
    whole, delta = backbone.core.get_rope_index(inputs["input_ids"], **{n: inputs[n] for n in names if n in inputs})
    with compressing(backbone, pruner(backbone, layer)) as engine:
        given = seen_positions(backbone, lambda: generation(backbone, inputs, count=3))
        kept = engine.report.kept
    steps = [p for p in given if p.shape[-1] == 1]
    prefill = [p for p in given if p.shape[-1] > 1][-1]
    for row in range(4):
        stays = inputs["attention_mask"][row].bool() & ~backbone.visual(inputs["input_ids"])[row]
        stays[kept[row]] = True
        assert torch.equal(prefill[:, row, prefill.shape[-1] - int(stays.sum()) :], whole[:, row, stays])
        after = int(inputs["attention_mask"][row].sum() + delta[row])
        assert {p[a, row, 0].item() for p in steps for a in range(3)} == {after, after + 1}


# ---------------------------------------------------------------------- merging and making tokens
@families
def test_merged_tokens_stand_at_the_mean_place_with_the_mean_deepstack(tiny) -> None:
    """Before the LLM: hidden state, what deepstack adds and positions of a group become their means, the last rounded
    down."""
    backbone = tiny()  # 16 tokens an image
    backbone.model.double()
    inputs = dict(backbone.inputs(["what is this ?"], [[noise(32, 32, 0), noise(32, 32, 1)]]))
    ids = inputs["input_ids"][0]
    with torch.no_grad(), compressing(backbone, build("avgpool", 4, backbone.shape)):
        got = backbone.model(**inputs).logits[0]
    with torch.no_grad():
        out = backbone.core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        x = backbone.core.get_input_embeddings()(ids)
        visual = backbone.visual(ids)
        x = x.masked_scatter(visual[:, None], torch.cat(list(out.pooler_output)))
        levels = [torch.cat(list(level)) for level in getattr(out, "deepstack_features", None) or []]
        deep = [torch.zeros_like(x).masked_scatter(visual[:, None], level) for level in levels]
        position = backbone.positions(inputs)[:, 0]
        order = []  # of the tokens that are left, the group that each is the mean of
        place = visual.nonzero()[:, 0]
        first = {int(i): [] for i in place}
        for image in (0, 1):
            for y in (0, 2):
                for z in (0, 2):
                    cells = [image * 16 + (y + dy) * 4 + z + dz for dy in (0, 1) for dz in (0, 1)]
                    first[int(place[cells[0]])] = place[cells].tolist()
        for i in range(len(ids)):
            group = first.get(i, [i])
            order += [group] if group else []
        x = torch.stack([x[g].mean(0) for g in order])
        deep = [torch.stack([d[g].mean(0) for g in order]) for d in deep]
        position = torch.stack([position[:, g].double().mean(1).floor().long() for g in order], 1)
        expected = backbone.model.lm_head(decoder(backbone, x, position, deep=deep))
    text = [n for n, g in enumerate(order) if not visual[g[0]]]
    assert (got[~visual][1:] - expected[text][1:]).abs().max() < 1e-5  # means are taken in float32


class Adds(Compressor):
    """Two tokens behind each image, before layer `layer`; before the LLM they may take the images' place."""

    def __init__(self, made: Tensor, layer: int, replaces: bool = False) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.made, self.layer, self.replaces = made, layer, replaces

    def layers(self) -> set[int]:
        return {self.layer}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        if not tokens.images[0].numel():
            return tokens
        if self.replaces:
            return tokens.replace(self.made.expand(len(tokens.images[0]), -1, -1))
        return tokens.insert(self.made, role=REGISTER)


def with_two_behind(x: Tensor, ends: list[int], made: Tensor) -> tuple[Tensor, list[int]]:
    """[L, D] with `made` behind each of `ends`, and where each of the L stands then."""
    parts, places, at = [], [], 0
    for i in range(len(x)):
        places.append(at)
        parts.append(x[i : i + 1])
        at += 1
        if i in ends:
            parts.append(made)
            at += len(made)
    return torch.cat(parts), places


@families
def test_registers_stand_behind_their_image_and_what_follows_moves_on(tiny) -> None:
    """As if each image were followed by two words more: the model's own positions of such a prompt."""
    backbone = tiny()
    backbone.model.double()
    made = torch.randn(2, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    pictures = [[noise(32, 32, 0), noise(32, 32, 1)]]
    inputs = dict(backbone.inputs(["what is this ?"], pictures))
    ids = inputs["input_ids"][0]
    visual = backbone.visual(ids)
    ends = [i for i in range(len(ids)) if visual[i] and not visual[i + 1]]
    longer, places = with_two_behind(ids[:, None], ends, torch.full((2, 1), 20))
    with torch.no_grad():
        out = backbone.core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        embeds = backbone.core.get_input_embeddings()(longer[:, 0])
        new = torch.ones(len(longer), dtype=torch.bool)
        new[places] = False
        embeds[new] = made.repeat(2, 1)
        where = backbone.visual(longer[:, 0])
        x = embeds.masked_scatter(where[:, None], torch.cat(list(out.pooler_output)))
        levels = [torch.cat(list(level)) for level in getattr(out, "deepstack_features", None) or []]
        deep = [torch.zeros_like(x).masked_scatter(where[:, None], level) for level in levels]
        kinds = where.long()[None]
        position, delta = backbone.core.get_rope_index(longer[None, :, 0], kinds, inputs["image_grid_thw"])
        expected = backbone.model.lm_head(decoder(backbone, x, position[:, 0], deep=deep))
        with compressing(backbone, Adds(made, 0)):
            got = backbone.model(**inputs).logits[0]
            given = seen_positions(backbone, lambda: generation(backbone, inputs, count=2))
    assert (got[-8:] - expected[-8:]).abs().max() < 1e-9
    assert given[-1][:, 0, 0].tolist() == [len(longer) + int(delta)] * 3


@families
def test_an_image_that_is_replaced_leaves_no_span(tiny) -> None:
    """As if there had only ever been two words in its place: text positions, one after the other; nothing is added."""
    backbone = tiny(image_size=None)
    backbone.model.double()
    made = torch.randn(2, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    inputs = dict(backbone.inputs(QUESTIONS[:1], IMAGES[:1]))
    ids = inputs["input_ids"][0]
    visual = backbone.visual(ids)
    starts = [i for i in range(len(ids)) if visual[i] and not visual[i - 1]]
    with torch.no_grad():
        words, parts = backbone.core.get_input_embeddings()(ids), []
        for i in range(len(ids)):
            parts += [made] if i in starts else [] if visual[i] else [words[i : i + 1]]
        x = torch.cat(parts)
        expected = backbone.model.lm_head(decoder(backbone, x, torch.arange(len(x)).expand(3, -1)))
        with compressing(backbone, Adds(made, 0, replaces=True)):
            got = backbone.model(**inputs).logits[0]
            given = seen_positions(backbone, lambda: generation(backbone, inputs, count=2))
    assert (got[-8:] - expected[-8:]).abs().max() < 1e-9
    assert given[-1][:, 0, 0].tolist() == [len(x)] * 3


@families
@pytest.mark.parametrize(
    ("name", "tokens"), [("avgpool", 4), ("fastv", 4), ("victor", 3), ("fwd2bot", 4), ("vidcom2", 9)]
)
def test_rows_of_images_and_videos_are_alone_what_they_are_together(tiny, name: str, tokens: int) -> None:
    """In a batch with other sizes, with the cache and without, by greedy decoding and by beams."""
    backbone = tiny()
    method = build(name, tokens, backbone.shape)
    method.attach(backbone)
    inputs = mixed(backbone)
    with torch.no_grad(), compressing(backbone, method) as engine:
        together = generation(backbone, inputs)
        assert engine.report.images == [5, 2, 1, 0]
        end = inputs["input_ids"].shape[1]
        with engine.prompt_ends(torch.full((4,), end - 1)):
            uncached = generation(backbone, inputs, use_cache=False)
            beams = [generation(backbone, inputs, num_beams=2, use_cache=c).sequences for c in (True, False)]
        for row in range(4):
            alone = generation(backbone, mixed(backbone, slice(row, row + 1)))
            for a, b, c in zip(together.logits, alone.logits, uncached.logits, strict=True):
                assert (a[row] - b[0]).abs().max() < 3e-4
                assert (a[row] - c[row]).abs().max() < 3e-4
    assert torch.equal(*beams)


# ---------------------------------------------------------------------- attention
class Looks(Compressor):
    """Asks for the row that layer 1 has paid and for the one that layer 2 would pay."""

    def layers(self) -> set[int]:
        return {2}

    def probes(self) -> set[int]:
        return {1}

    def reduce(self, tokens: TokenSequence, layer: int, context: Context) -> TokenSequence:
        self.paid, self.ahead = context.attention_rows[1], context.next_layer_attention(tokens)
        return tokens


@families
def test_attention_rows_are_what_eager_attention_pays(tiny) -> None:
    """Norms of queries and keys, M-RoPE and deepstack among it."""
    backbone = tiny(image_size=None)
    backbone.model.set_attn_implementation("eager")
    inputs = mixed(backbone)
    method = Looks(None, backbone.shape)
    for cached in (True, False):
        with torch.no_grad():
            eager = backbone.model(**inputs, output_attentions=True, use_cache=cached).attentions
            with compressing(backbone, method):
                backbone.model(**inputs, use_cache=cached)
        for row, layer in ((method.paid, 1), (method.ahead, 2)):
            torch.testing.assert_close(row, eager[layer][:, :, -1].mean(1), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- experts
def test_experts_see_each_token_alone_and_cost_what_a_token_goes_through() -> None:
    """The choice is the token's own; the MLP is as wide as the experts that are chosen; LoRA is in no expert."""
    backbone = exact_experts()
    shape, layer = backbone.shape, backbone.decoder.layers[1]
    assert (shape.experts, shape.intermediate) == (4, 2 * 32)
    hidden = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = layer.mlp(hidden)
        assert torch.allclose(whole[:, [1, 4, 7]], layer.mlp(hidden[:, [1, 4, 7]]), atol=1e-6)
        chosen = layer.mlp.gate(hidden.flatten(0, 1))[2]
        assert chosen.shape == (9, 2) and len({tuple(sorted(row)) for row in chosen.tolist()}) > 1
    backbone.add_adapters(["a"], rank=3, alpha=3.0)
    lora = [p.numel() for n, p in backbone.decoder.named_parameters() if ".lora_" in n]
    assert sum(lora) == shape.depth * shape.adapter_parameters(3)


def test_flops_of_experts_are_what_torch_counts() -> None:
    """Attention and two experts of four, and the router that chooses them."""
    from torch.utils.flop_counter import FlopCounterMode

    from vtc.interface import flops

    backbone = exact_experts()
    counter = FlopCounterMode(display=False)
    layer, hidden = backbone.decoder.layers[1].mlp, torch.randn(1, 24, 32)
    with torch.no_grad(), counter:
        layer(hidden)
    shape = backbone.shape
    attention = 2 * 24 * 32 * 16 * (2 * 4 + 2 * 2) + 4 * (24 * 24 / 2) * 4 * 16
    assert counter.get_total_flops() == flops.layer(shape, 24) - attention
