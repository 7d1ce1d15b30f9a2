"""`action=visualize`: what is drawn is what the engine reports, on every family; what it writes; what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vtc import drawing
from vtc.api import Model
from vtc.cli import main
from vtc.configuration import parse
from vtc.engine import compressing
from vtc.evaluation.kept import images_of
from vtc.registry import methods
from vtc.testing import tiny_backbone
from vtc.testing.check import TINY, tiny
from vtc.testing.runs import instance
from vtc.testing.tiny_llava import tiny_video_llava
from vtc.testing.tiny_qwen import tiny_qwen2_5_vl
from vtc.testing.tiny_tiles import tiny_internvl
from vtc.visualize.panels import panel

GREY, RED = (128, 128, 128), (255, 0, 0)
QUESTION = "what is this"


def planted(width: int, height: int, x: int, y: int, side: int = 4) -> Image.Image:
    picture = Image.new("RGB", (width, height), GREY)
    ImageDraw.Draw(picture).rectangle((x, y, x + side - 1, y + side - 1), fill=RED)
    return picture


def square(token: int) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels of a token of the 8 × 8 patches of 4 pixels of a square picture."""
    return token % 8 * 4, token // 8 * 4, 4, 4


def merged(token: int) -> tuple[int, int, int, int]:
    """Of Qwen's tokens on a picture of 64 × 32: 2 × 2 patches of 4 pixels, 8 of them in a row."""
    return token % 8 * 8, token // 8 * 8, 8, 8


def in_tiles(token: int) -> tuple[int, int, int, int]:
    """Of InternVL's on a picture of 64 × 32: 4 × 2 tiles of 4 × 4 tokens, and as many of the whole behind them."""
    tile, place = divmod(token, 16)
    if tile == 8:
        return place % 4 * 16, place // 4 * 8, 16, 8
    return tile % 4 * 16 + place % 4 * 4, tile // 4 * 16 + place // 4 * 4, 4, 4


GRIDS = {
    "a square grid": (lambda: tiny_backbone(grid=8), (32, 32), square, 1),
    "tiles": (lambda: tiny_internvl(None), (64, 32), in_tiles, 2),
    "M-RoPE": (lambda: tiny_qwen2_5_vl(None), (64, 32), merged, 1),
}


@pytest.mark.parametrize("name", ["fastv", "divprune"])
@pytest.mark.parametrize("case", GRIDS)
def test_clear_squares_are_the_kept_tokens(case: str, name: str) -> None:
    """On a picture with one object, pixel by pixel, against squares that are counted here."""
    make, (width, height), boxes, copies = GRIDS[case]
    backbone, picture = make(), planted(width, height, width - 12, 4)
    method = methods.get(name)(5, backbone.shape).eval()
    with torch.no_grad(), compressing(backbone, method) as engine:
        backbone.model(**backbone.inputs([QUESTION], [[picture]]))
    (image,) = images_of(backbone, engine.report, 0, [picture])
    kept = [token for token, holder in enumerate(image["holders"]) if holder >= 0]
    assert len(kept) == 5 and engine.report.tokens_in[0] == len(image["holders"])
    drawn = drawing.faded(picture, image["regions"], image["holders"])
    assert len(drawn) == copies
    before = np.asarray(picture)
    clear = [np.zeros((height, width), dtype=bool) for _ in drawn]
    for token in kept:
        x, y, wide, tall = boxes(token)
        clear[copies == 2 and token >= 128][y : y + tall, x : x + wide] = True
    for expected, one in zip(clear, drawn, strict=True):
        assert ((np.asarray(one) == before).all(-1) == expected).all()
    if name == "divprune":
        assert clear[0][4, width - 12] or clear[-1][4, width - 12], "the object is unlike everything else"


def test_trained_fastv_keeps_the_planted_object(tmp_path: Path) -> None:
    """On pocket the drawn squares stand on the one thing that there is."""
    from vtc.pocket.scenes import draw_scene, scene_rng

    scene = draw_scene(scene_rng(0, "planted", 3), "test", things=1)
    picture = scene.image()
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    thing = np.abs(pixels - background).sum(-1) > 150
    assert 20 < thing.sum() < 2500
    for name in ("fastv", "divprune"):
        job = parse([f"method={name}", "tokens=16"])
        drawn = Model(job, *job.load()).show(picture, "what color is the object?")
        clear = (np.asarray(drawn) == np.asarray(picture.convert("RGB"))).all(-1)
        assert clear.sum() == 16 * 64 and (thing & clear).sum() > 0.2 * thing.sum(), name
        assert (thing & clear).sum() / thing.sum() > 1.5 * clear.mean(), f"{name}: more of the thing than by chance"


@pytest.mark.parametrize("family", TINY)
def test_every_family_has_panels(family: str) -> None:
    """What a panel holds fits together, for a method of each kind."""
    make = tiny_video_llava if family == "video_llava" else lambda: tiny(family)
    backbone = make()
    size = backbone.image_size or backbone.shape.vision.image_size
    picture = planted(size, size, 2, 2)
    for name, options in (("none", {}), ("fastv", {}), ("victor", {}), ("kmeans", {}), ("fwd2bot", {"rank": 2})):
        tokens = None if name == "none" else 3
        fresh = make() if name == "fwd2bot" else backbone
        method = instance(fresh, lambda b, n, name=name, o=options: methods.get(name)(n, b.shape, **o).build(), tokens)
        job = dataclasses.replace(parse([f"method={name}"]))
        shown = panel(Model(job, fresh, method), picture, QUESTION, 4)
        count = shown.answer.tokens_in
        assert len(shown.holders) == count and len(shown.answer.ids) == 4
        attending = list(fresh.shape.attending)
        answering = [a for a in shown.attention if not a.own]
        assert [a.layer for a in answering] == attending
        for a in shown.attention:
            assert a.own or a.visual + a.compressed + a.text == pytest.approx(1, abs=1e-4)
            for values in (a.made, a.answer):
                assert values is None or len(values) == count
            if a.answer is not None:
                assert float(a.answer.nansum()) == pytest.approx(a.visual, abs=1e-4), "the picture's share"
        if name == "fastv":
            gone = torch.tensor(shown.holders) < 0
            assert answering[0].answer.isfinite().all() and (answering[-1].answer.isnan() == gone).all()
        elif name == "fwd2bot":
            assert [a.layer for a in shown.attention if a.own] == attending
            assert shown.made == 3 and all(len(a.to_made) == 3 for a in answering) and not shown.is_kept
            assert len(shown.left) == 3 and len(shown.before) == count
        elif name == "victor":
            assert shown.made == 3 and answering[0].made is not None and answering[-1].made is None
        if shown.regions and shown.is_kept:
            assert drawing.faded(picture, shown.regions, shown.holders)[0].size == picture.size


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    from vtc.pocket.scenes import draw_scene, scene_rng

    file = tmp_path_factory.mktemp("scene") / "scene.png"
    draw_scene(scene_rng(0, "visualize", 0), "test", things=3).image().save(file)
    return file


OWN = """
from vtc.interface import TokenPruner

class Corner(TokenPruner):
    \"\"\"Keeps the first visual tokens.\"\"\"
    name = "corner"
    about = "Keeps the first."
    def score(self, tokens, context):
        return -tokens.place.float()
"""


def test_one_command_draws_methods_and_budgets_side_by_side(scene: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "corner.py").write_text(OWN)
    words = ["action=visualize", f"image={scene}", "question=how many objects are there?", "tokens=[36,4]"]
    words += [f"method=[fastv,fwd2bot,{tmp_path}/corner.py:Corner]", f"output_dir={tmp_path}"]
    words += ["visualize.figures=[kept,attention,captions,similarity,layers]", "visualize.formats=[png,svg,pdf]"]
    assert main(words) == 0, capsys.readouterr().err
    folder = tmp_path / "visualize"
    assert {f.name for f in folder.iterdir()} == {f"visualize.{end}" for end in ("png", "svg", "pdf", "json")}
    assert (folder / "visualize.pdf").read_bytes()[:4] == b"%PDF"
    svg = (folder / "visualize.svg").read_text()
    for words_drawn in ("uncompressed: 144 tokens", "fastv tokens=36: 36 of 144 tokens", "corner tokens=4", "own pass"):
        assert words_drawn in svg
    with Image.open(folder / "visualize.png") as figure:
        assert figure.width == 1800
    panels = json.loads((folder / "visualize.json").read_text())["panels"]
    labels = ["none"] + [f"{name} tokens={n}" for name in ("fastv", "fwd2bot", "corner") for n in (36, 4)]
    assert [p["label"] for p in panels] == labels
    corner = panels[-1]["holders"]
    assert [n for n, holder in enumerate(corner) if holder >= 0] == [0, 1, 2, 3]
    out = capsys.readouterr().out
    assert "corner tokens=4" in out and str(folder / "visualize.png") in out
    job = parse(["method=fastv", "tokens=4"])
    plain = Model(job, *job.load()).generate(scene, "how many objects are there?")
    assert panels[2]["answer"] == plain.text and panels[2]["flops_ratio"] == pytest.approx(plain.flops_ratio)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "image=null: a picture is needed; give image=<file>"),
        (["image=nowhere.png"], "image=nowhere.png: no such picture"),
        (["image=@"], "no picture"),
        (["method=[fastv,fastvv]"], "method=fastvv: unknown; allowed"),
        (["method=[fastv,fwd2bot]", "tokens=5"], "method=fwd2bot tokens=5: it needs training"),
        (["method=[fastv]", "tokens=[16,145]"], "tokens=145"),
        (["method=fastv", "tokens=8,16"], "side by side is a list, tokens=[8,16]"),
        (["visualize.figures=[kept,heat]"], "visualize.figures=['kept', 'heat']: allowed: some of kept, attention"),
        (["visualize.layers=[0,6]"], "visualize.layers: 6: allowed: 0 to 5, as pocket has"),
        (["visualize.formats=gif"], "visualize.formats=gif: allowed: some of png, svg, pdf"),
        (["method=[fastv,tome,dart,divprune,random]", "tokens=[1,2,3,4,5]"], "25 methods and budgets in one figure"),
    ],
)
def test_what_it_refuses(words: list[str], line: str, scene: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    image = [f"image={scene}"] if words and not any(w.startswith("image=") for w in words) else []
    words = [w.replace("@", str(broken)) for w in words]
    assert main(["action=visualize", *words, *image, f"output_dir={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.startswith("vtc: ") and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
