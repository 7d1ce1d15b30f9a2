"""FitPrune against eager attention, layer by layer, over tokens that a mask hides; its recipes, and how one is fitted,
against loops."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import decoder, embedded
from test_vcc import one_layer_weights

from vtc import shipped
from vtc.budget import Budget
from vtc.cli import main
from vtc.configuration import parse
from vtc.declarations import content
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.identity import SCORES
from vtc.methods import build, make
from vtc.methods.fitting import Fitting, fitted, spared, until_met
from vtc.methods.recipes import recipes_of, scaled
from vtc.testing import batch, tiny_backbone


def recipe(*shares: float, left: float = 0.3) -> dict[str, Any]:
    return {"recipes": [{"left": left, "shares": [0.0, *shares]}]}


def statistics(weights: torch.Tensor, visual: list[int], last: int) -> tuple[list[float], list[float]]:
    """self and cross of each visual token by loops: of [H, L, L] the greatest head, mean over the queries."""
    text = range(last + 1, weights.shape[1])
    return tuple(
        [math.fsum(max(float(head[i, j]) for head in weights) for i in queries) / len(queries) for j in visual]
        for queries in (visual, text)
    )


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(
    ("shares", "tokens", "counts"),
    [((0.2, 0.7, 1.0), 3, [16, 13, 7, 3]), ((0.0, 0.5, 1.0), 5, [16, 16, 10, 5]), ((1.0, 1.0, 1.0), 4, [16, 4, 4, 4])],
)
def test_equals_masks_over_what_image_and_question_attend_to_least(kv_heads: int, shares, tokens, counts) -> None:
    """Behind each layer in float64: what its greatest heads paid, self times cross; the lowest are hidden from the
    next one on."""
    backbone = tiny_backbone(kv_heads=kv_heads)
    inputs = batch(backbone)
    method = build("fitprune", tokens, backbone.shape, recipe=recipe(*shares))
    with torch.no_grad(), compressing(backbone, method) as engine:
        got = backbone.model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
        kept, seen = engine.report.kept, [layer[0] for layer in engine.report.layers]
    assert seen == counts == method.layer_tokens()
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        there, hides = torch.ones(len(ids), dtype=torch.bool), {}
        text, place = ids != backbone.image_token_id, torch.arange(len(ids))
        with torch.no_grad():
            x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1])
            for layer in range(1, 4):
                entered: dict[int, torch.Tensor] = {}
                note = {layer - 1: lambda h, position, into=entered: (into.setdefault(0, h), position)}
                decoder(backbone, x, place, changes=note, hidden_from={k: v for k, v in hides.items() if k < layer - 1})
                weights = one_layer_weights(backbone, entered[0][there], place[there], layer - 1)
                alive = there.nonzero()[:, 0]
                columns = [n for n, at in enumerate(alive.tolist()) if not text[at]]
                own, cross = statistics(weights, columns, columns[-1])
                rates = {int(alive[n]): s * c for n, s, c in zip(columns, own, cross, strict=True)}
                best = sorted(rates, key=lambda at: (-rates[at], at))[: counts[layer]]
                there = text.clone()
                there[best] = True
                hides[layer] = ~there
            expected = backbone.model.lm_head(decoder(backbone, x, place, hidden_from=hides))
        assert kept[row] == [int(i) + int((~real).sum()) for i in (there & ~text).nonzero()[:, 0]]
        assert (got[row, real][text] - expected[text]).abs().max() < 1e-4


# ---------------------------------------------------------------------- recipes
AUTHORS = json.loads((shipped.root() / "benchmarks/fitprune/llava15_7b.json").read_text())


@pytest.fixture(scope="module")
def llava():
    return dataclasses.replace(tiny_backbone(depth=32, grid=24).shape, name="llava15_7b")


def test_on_llava_the_authors_numbers_are_left(llava) -> None:
    """Of 576 tokens, in the first layers, as their scheme for 60 % fewer FLOPs drops them: 14, 33, 89, 36, 36, 20."""
    method = make("fitprune", None, llava)
    assert method.tokens == 127
    left = method.layer_tokens()
    dropped = [a - b for a, b in zip(left, left[1:], strict=False)]
    assert dropped[:12] == [14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5] and left[-1] == 127
    assert method.layers() == {n + 1 for n, count in enumerate(dropped) if count}
    ninety = make("fitprune", 37, llava).layer_tokens()
    assert ninety[:4] == [576, 576 - 262, 576 - 262 - 153, 576 - 262 - 153 - 80] and ninety[-1] == 37


def test_between_two_budgets_shares_are_interpolated(llava) -> None:
    by_left = {one["left"]: one["shares"] for one in AUTHORS["recipes"]}
    lefts = sorted(by_left)
    own = recipes_of(None, llava)
    for below, above in zip(lefts, lefts[1:], strict=False):
        for way in (0.0, 0.25, 1.0):
            expected = [a + way * (b - a) for a, b in zip(by_left[below], by_left[above], strict=True)]
            assert own.shares(below + way * (above - below)) == pytest.approx(expected, abs=1e-9)
    assert own.shares(0.001) == pytest.approx(by_left[lefts[0]]) and own.shares(1.0) == pytest.approx(
        by_left[lefts[-1]]
    )


@pytest.mark.parametrize("depth", [2, 4, 6, 28, 36, 80])
def test_elsewhere_they_are_scaled_to_the_depth(depth: int) -> None:
    shares = AUTHORS["recipes"][3]["shares"]
    own = scaled(shares, depth)
    assert own[0] == 0 and own[-1] == 1 and list(own) == sorted(own) and len(own) == depth
    at = np.interp([layer * 32 / depth for layer in range(depth)], range(33), [*shares, 1.0])
    assert own == pytest.approx(at / at[-1])  # what was dropped behind the last of the layers goes before it
    method = make("fitprune", 5, tiny_backbone(depth=depth).shape)
    assert method.layer_tokens()[0] == 16 and method.layer_tokens()[-1] == 5


@pytest.mark.parametrize("size", [4, 16, 100, 577])
def test_an_image_of_any_size_ends_with_the_budget(size: int) -> None:
    shape = dataclasses.replace(tiny_backbone().shape, visual_tokens=size)
    for tokens in {1, 3, size // 2, size - 1}:
        method = make("fitprune", tokens, shape, recipe=recipe(0.3, 0.65, 1.0))
        left = method.layer_tokens()
        assert left == sorted(left, reverse=True) and left[0] == size and left[-1] == tokens
        for layer, share in ((1, 0.3), (2, 0.65)):
            assert abs(left[layer] - (size - share * (size - tokens))) <= 0.5 + 1e-3
        surplus = torch.tensor([size - tokens, 0])
        assert method.dropped(surplus, 2).tolist() == [size - left[2], 0]


def test_images_of_one_row_and_of_several_sizes() -> None:
    """Tiles: an image with fewer tokens than others loses its own share."""
    from vtc.testing.models import collate, rows
    from vtc.testing.tiny_qwen import tiny_qwen2_vl

    backbone = tiny_qwen2_vl()
    free = type(backbone).wrap(backbone.model, backbone.processor)
    side = backbone.image_size
    several = rows(free, images=(1, 2, 1), sizes=[(side, side), (2 * side, side), (side, 3 * side), (side, side)])
    inputs = collate(free, several)
    shares = [0.0, *[0.4] * (free.shape.depth - 2), 1.0]
    method = build("fitprune", 3, free.shape, recipe={"recipes": [{"left": 0.3, "shares": shares}]})
    with torch.no_grad(), compressing(free, method) as engine:
        free.model(**inputs, position_ids=free.positions(inputs))
        report = engine.report
    for row, before in enumerate(report.tokens_in):
        sizes = [len(holders) for holders in report.holders[row]]
        assert sum(sizes) == before
        middle = sum(n - math.floor(0.4 * max(0, n - 3) + 0.5) for n in sizes)
        assert report.layers[1][row] == middle and report.tokens_out[row] == sum(min(3, n) for n in sizes)


def test_budgets_in_every_form(llava) -> None:
    assert make("fitprune", Budget(ratio=0.25).resolve, llava).tokens == 144
    half = make("fitprune", Budget(compression=2).resolve, llava)
    assert sum(half.layer_tokens()) == pytest.approx(576 * 32 / 2, rel=0.01)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "method.recipe: allowed: llava15_7b, pocket.*, a file that python -m vtc action=calibrate"),
        ({"recipes": []}, "a file that python"),
        ({"recipes": [{"left": 0.2}]}, "a file that python"),
        (recipe(0.5, 0.4, 1.0), "a file that python"),
        (recipe(0.5, 0.9), "a file that python"),
        (recipe(0.5, math.nan, 1.0), "a file that python"),
        (recipe(0.5, 1.0, left=0.0), "a file that python"),
        (recipe(0.5, 1.0), "is for 3 decoder layers, and model has 4; make its own: python -m vtc action=calibrate"),
        ({"file": "nowhere"}, "a file that python"),
        ("nowhere.json", "method.recipe=nowhere.json: no such file"),
        ("llava", "method.recipe=llava: allowed: llava15_7b, pocket.*, a .json file, null; did you mean 'llava15_7b'"),
    ],
)
def test_what_is_no_recipe_is_refused(value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        make("fitprune", 5, tiny_backbone().shape, recipe=value)
    assert "\n" not in str(error.value)


def test_a_file_counts_by_what_it_holds(tmp_path: Path) -> None:
    """Wherever it is; in a composition too."""
    files = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for file, share in zip(files, (0.5, 0.5, 0.6), strict=True):
        file.write_text(json.dumps(recipe(0.1, share, 0.7, 0.8, 1.0)))
    words = ["method=fitprune", "tokens=16"]
    jobs = [parse([*words, f"method.recipe={file}"]) for file in files]
    one, same, other = (job.deciding(SCORES) for job in jobs)
    assert one == same != other and one != parse(words).deciding(SCORES)
    assert jobs[0].compressor.layer_tokens() == [144, 131, 80, 54, 42, 16]
    assert f"method.recipe={files[0]}" in jobs[0].command
    both = parse(["method=[visionzip,fitprune]", "tokens=[72,16]", f"method.fitprune.recipe={files[2]}"])
    assert both.method.options["fitprune"]["recipe"] == json.loads(files[2].read_text())
    with pytest.raises(UserError, match=r"method\.recipe=.*nowhere.json: no such file"):
        parse([*words, f"method.recipe={tmp_path}/nowhere.json"])
    files[0].write_text("{")
    with pytest.raises(UserError, match=r"method\.recipe=.*a.json: not JSON"):
        parse([*words, f"method.recipe={files[0]}"])


def test_each_backbone_takes_the_recipe_that_was_fitted_to_it() -> None:
    """And a run says which, in a composition too."""
    for backbone, words in (("pocket", []), ("llava15_7b", ["backbone=llava15_7b"])):
        file = shipped.path(f"benchmarks/fitprune/{backbone}.json")
        own = {"file": backbone, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()[:12]}
        job = parse(["method=fitprune", "tokens=16", *words])
        job.check()
        assert job.method.options == {"recipe": own} and job.config()["method"] == {"name": "fitprune", "recipe": own}
        given = parse(["method=fitprune", "tokens=16", f"method.recipe={file}", *words])
        assert job.compressor.parts == given.compressor.parts, "as if its file were given"
        both = parse(["method=[visionzip,fitprune]", "tokens=[72,16]", *words])
        both.check()
        assert both.method.options["fitprune"]["recipe"] == own
    authors = parse(["method=fitprune", "tokens=16", "method.recipe=llava15_7b"])
    authors.check()
    assert authors.method.options["recipe"]["file"] == "llava15_7b"
    assert authors.compressor.recipe.recipes[0].shares == pytest.approx(scaled(AUTHORS["recipes"][0]["shares"], 6))
    assert authors.deciding(SCORES) != parse(["method=fitprune", "tokens=16"]).deciding(SCORES)


@pytest.mark.parametrize("name", ["llava15_13b", "qwen2vl_2b"])
def test_a_run_without_a_recipe_is_refused(name: str, capsys, tmp_path: Path) -> None:
    """In one line that says both ways out; what is only measured needs none."""
    words = [f"backbone={name}", "method=fitprune", "tokens=16", f"output_dir={tmp_path}"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert f"no recipe of fitprune comes with vtc for {name}" in error and "\n" not in error
    assert f"python -m vtc action=calibrate method=fitprune backbone={name}" in error
    assert "method.recipe=llava15_7b" in error
    with pytest.raises(UserError, match="no recipe of fitprune"):
        parse([*words, "action=train"]).check(trained=False)
    parse([*words, "action=profile", "weights=random"]).check()
    parse([*words, "method.recipe=llava15_7b"]).check()
    if name == "llava15_13b":
        with pytest.raises(UserError, match="no recipe of fitprune"):
            parse([words[0], "method=[visionzip,fitprune]", "tokens=[72,16]"]).check()


def test_a_recipe_that_comes_with_vtc_counts_by_what_it_holds(tmp_path: Path) -> None:
    """Fitted anew, its runs are others."""
    (tmp_path / "own.json").write_text(json.dumps(recipe(0.5, 1.0)))
    first = content("method.recipe", "own", str(tmp_path))
    assert content("method.recipe", "own", str(tmp_path)) == first and first["file"] == "own"
    (tmp_path / "own.json").write_text(json.dumps(recipe(0.6, 1.0)))
    assert content("method.recipe", "own", str(tmp_path)) != first


@pytest.mark.parametrize("name", ["pocket", "pocket2"])
def test_what_is_shipped_for_pocket_was_fitted_to_its_budgets(name: str) -> None:
    told = json.loads(shipped.path(f"benchmarks/fitprune/{name}.json").read_text())
    assert (told["backbone"], told["pretrained"], told["depth"]) == (name, None, 6)
    assert [one["budget"] for one in told["recipes"]] == ["tokens=4", "tokens=16", "tokens=36", "tokens=64"]
    for one in told["recipes"]:
        tokens, seen = int(one["budget"].removeprefix("tokens=")), one["layer_tokens"]
        assert one["data"] is None and one["samples"] == 256, "scenes of pocket's training"
        assert 0.9 * tokens < seen[-1] <= tokens and one["left"] == pytest.approx(seen[-1] / 144, abs=1e-4)
        drops = [(144 - n) / (144 - seen[-1]) for n in seen]
        assert one["shares"] == pytest.approx(drops, abs=1e-3)


# ---------------------------------------------------------------------- the fit
def least(values: list[float], whole: float, alpha: float) -> set[int]:
    """By the definition: the longest run of the least paid whose drop leaves (1 − alpha) · whole."""
    order = sorted(range(len(values)), key=lambda n: (values[n], n))
    best: set[int] = set()
    for m in range(len(values) + 1):
        if math.fsum(values[n] for n in order[m:]) >= (1 - alpha) * whole:
            best = set(order[:m])
    return best


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9])
def test_what_can_be_spared_by_loops(alpha: float) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = [9, 4, 12]
    real = torch.arange(12) < torch.tensor(sizes)[:, None]
    paid = torch.rand(3, 12, generator=generator).masked_fill(~real, 7.0)  # what isn't there doesn't count
    for share in (1.0, 1.2):  # of what the whole model's tokens get; or these get less by now
        unpruned = share * (paid * real).sum(1) * (1 - 1e-6)
        got = spared(paid, real, unpruned, alpha)
        for image, size in enumerate(sizes):
            values = paid[image, :size].double().tolist()
            assert set(got[image].nonzero()[:, 0].tolist()) == least(values, float(unpruned[image]), alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.7, 1.0])
def test_a_pass_of_the_fit_equals_eager_attention_by_loops(alpha: float) -> None:
    """Row by row in float64: both sets, their intersection, masks from the next layer on."""
    backbone = tiny_backbone()
    inputs = batch(backbone)
    place_ids = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    first = Fitting(backbone.shape)
    second = None
    with torch.no_grad():
        with compressing(backbone, first):
            backbone.model(**inputs, position_ids=place_ids, use_cache=False)
        second = Fitting(backbone.shape, alpha, first.unpruned)
        with compressing(backbone, second):
            backbone.model(**inputs, position_ids=place_ids, use_cache=False)
    assert first.tokens_seen() == [[16] * 4] * 3
    for row in range(3):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row, real]
        text, place = ids != backbone.image_token_id, torch.arange(len(ids))
        x = embedded(backbone, ids, inputs["pixel_values"][row : row + 1]).detach()
        whole, counts = {}, {}
        for rounds in ("unpruned", "pruned"):
            there, hides = torch.ones(len(ids), dtype=torch.bool), {}
            counts[rounds] = [16]
            for layer in range(1, 4):
                states = {}

                def note(h, position, states=states):
                    return states.setdefault(0, h), position

                earlier = {k: v for k, v in hides.items() if k < layer - 1}
                with torch.no_grad():
                    decoder(backbone, x, place, changes={layer - 1: note}, hidden_from=earlier)
                    weights = one_layer_weights(backbone, states[0][there], place[there], layer - 1)
                alive = there.nonzero()[:, 0].tolist()
                columns = [n for n, at in enumerate(alive) if not text[at]]
                own, cross = statistics(weights, columns, columns[-1])
                if rounds == "unpruned":
                    whole[layer] = math.fsum(own), math.fsum(cross)
                    assert first.unpruned[layer - 1][:, row].tolist() == pytest.approx(whole[layer], rel=1e-4)
                else:
                    goes = least(own, whole[layer][0], alpha) & least(cross, whole[layer][1], alpha)
                    if len(goes) == len(columns):
                        goes -= {max(goes, key=lambda n: (own[n] * cross[n], -n))}
                    for n in goes:
                        there[alive[columns[n]]] = False
                hides[layer] = ~there
                counts[rounds].append(int((there & ~text).sum()))
        assert second.tokens_seen()[row] == counts["pruned"]


def test_pruning_stops_once_the_budget_is_met() -> None:
    counts = [[16, 12, 8, 3], [16, 16, 10, 5]]
    assert until_met(counts, lambda c: sum(row[-1] for row in c) / len(c) <= 9) == [[16, 12, 8, 8], [16, 16, 10, 10]]
    assert until_met(counts, lambda c: sum(row[-1] for row in c) / len(c) <= 4) == counts
    assert until_met(counts, lambda c: sum(row[-1] for row in c) / len(c) <= 3.9) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_least_strength_is_bisected(seed: int) -> None:
    """Against all strengths on a fine grid; what is met at no strength is told."""
    rng = random.Random(seed)
    speeds = [[rng.uniform(0.2, 1.0) for _ in range(3)] for _ in range(4)]

    def run(alpha: float) -> list[list[int]]:
        rows = []
        for speed in speeds:
            row = [64]
            for each in speed:
                row.append(max(1, math.floor(row[-1] * (1 - alpha * each))))
            rows.append(row)
        return rows

    def met(most: float):
        return lambda counts: sum(row[-1] for row in counts) / len(counts) <= most

    tried = []
    fit = fitted(run, met(20), lambda alpha, counts, is_met: tried.append((alpha, is_met)))
    assert fit is not None and [a for a, _ in tried[:2]] in ([0.5, 0.25], [0.5, 0.75]) and len(tried) == 7
    enough = next(n / 1000 for n in range(1001) if until_met(run(n / 1000), met(20)))
    assert enough - 1e-3 <= fit.alpha <= enough + 0.0101
    stopped = until_met(run(fit.alpha), met(20))
    drops = [sum(row[0] - row[layer] for row in stopped) for layer in range(4)]
    assert fit.shares == pytest.approx([drop / drops[-1] for drop in drops]) and fit.shares[-1] == 1
    assert fit.left == pytest.approx(sum(row[-1] / 64 for row in stopped) / 4)
    assert fit.layer_tokens == pytest.approx([sum(row[layer] for row in stopped) / 4 for layer in range(4)])
    assert fitted(run, met(0.5), lambda *_: None) is None


def test_a_fit_ends_where_its_pruning_stopped() -> None:
    fit = fitted(lambda alpha: [[16, 8, 4, 2] if alpha >= 0.5 else [16] * 4], lambda c: c[0][-1] <= 9, lambda *_: None)
    assert (fit.alpha, fit.left, fit.shares, fit.layer_tokens) == (0.5, 0.5, [0, 1, 1, 1], [16, 8, 8, 8])
