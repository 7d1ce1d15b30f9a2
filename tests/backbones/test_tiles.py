"""What holds of every family whose pictures are cut into tiles: features, inputs, sizes, loading, refusals."""

from __future__ import annotations

import pytest
import torch
from checkpoints import load, settings_of, shape_of
from PIL import Image

from vtc.backbones import wrap
from vtc.backbones.tiles import Tiled
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.interface import flops
from vtc.methods import build
from vtc.profiling.counter import flop_counter
from vtc.registry import families
from vtc.testing.tiny_tiles import tiny_idefics3, tiny_internvl, tiny_smolvlm

MAKE = {"internvl": tiny_internvl, "idefics3": tiny_idefics3, "smolvlm": tiny_smolvlm}
EVERY = ["internvl", "idefics3", "smolvlm"]
NEEDS_PATCHES = ["downsample", "tome", "tokenpacker", "quecc", "qformer", "single_forward"]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8).numpy())


ROWS = [[noise(16, 16)], [noise(40, 16, 1), noise(20, 30, 2)], []]
QUESTIONS = ["what is this", "one two three", "two"]


def theirs(backbone: Tiled) -> dict[str, torch.Tensor]:
    """The family's processor on the whole batch at once, prompts by its own chat template."""
    said = [
        [{"role": "user", "content": [{"type": "image"}] * len(row) + [{"type": "text", "text": question}]}]
        for question, row in zip(QUESTIONS, ROWS, strict=True)
    ]
    text = [backbone.processor.apply_chat_template(one, add_generation_prompt=True) for one in said]
    images = [i for row in ROWS for i in row] if backbone.model_type == "internvl" else [*ROWS[:2]]
    bos = {"add_special_tokens": False} if text[0].startswith(backbone.tokenizer.bos_token) else {}
    if backbone.model_type != "internvl":  # it can't read a row without images beside others
        text = text[:2]
    return backbone.processor(text=text, images=images, padding=True, padding_side="left", return_tensors="pt", **bos)


@pytest.mark.parametrize("family", EVERY)
def test_inputs_are_what_the_processor_makes(family: str) -> None:
    backbone = MAKE[family](image_size=None)
    rows = 3 if family == "internvl" else 2
    ours, expected = backbone.inputs(QUESTIONS[:rows], ROWS[:rows]), theirs(backbone)
    assert torch.equal(ours["input_ids"], expected["input_ids"])
    assert torch.equal(ours["attention_mask"], expected["attention_mask"])
    tiles = expected["pixel_values"].flatten(0, -4)
    real = tiles.flatten(1).any(1)  # Idefics3 fills up the rows with tiles of zeros
    assert torch.equal(ours["pixel_values"].flatten(0, -4), tiles[real])
    more = backbone.inputs(QUESTIONS, ROWS)  # and a row without images among them
    assert torch.equal(more["input_ids"][:rows], ours["input_ids"]) and not more["attention_mask"][2, 0]
    assert torch.equal(more["pixel_values"], ours["pixel_values"])
    assert "pixel_values" not in backbone.inputs(["two"], [[]])


@pytest.mark.parametrize("family", EVERY)
def test_an_image_is_a_picture_with_all_of_its_tiles(family: str) -> None:
    backbone = MAKE[family](image_size=None)
    expected = []
    for picture in (i for row in ROWS for i in row):
        made = backbone.processor.image_processor.get_number_of_image_patches(
            picture.height, picture.width, {"crop_to_patches": True} if family == "internvl" else {}
        )
        expected.append(16 * (made if isinstance(made, int) else max(1, made[0])))
    assert len(set(expected)) > 1
    for inputs in (dict(theirs(backbone)), dict(backbone.inputs(QUESTIONS, ROWS))):  # users' layout, and ours
        with torch.no_grad():
            whole = backbone.core.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
            whole = whole.pooler_output
            whole = whole.flatten(0, 1) if isinstance(whole, torch.Tensor) else torch.cat(whole)
            found = backbone.image_features(inputs)
        assert [len(f) for f in found] == expected
        assert torch.equal(torch.cat(found), whole)
        assert inputs["pixel_values"] is None and inputs["mm_encoder_outputs"]["image"] is not None
        assert backbone.grids(inputs, found) == [(4, 4) if n == 16 else None for n in expected]


@pytest.mark.parametrize("family", EVERY)
def test_keeping_everything_is_the_unmodified_model(family: str) -> None:
    """Bit for bit, on what the family's own processor makes of pictures of several sizes."""
    backbone = MAKE[family](image_size=None)
    inputs = dict(theirs(backbone))
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [backbone.image_token_id]}

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return backbone.model(**inputs).logits, backbone.model.generate(**inputs, num_beams=2, **options)

    plain = run()
    for method in ("none", "random", "kmeans"):
        with compressing(backbone, build(method, None, backbone.shape)):
            assert all(torch.equal(a, b) for a, b in zip(run(), plain, strict=True)), method
    with torch.no_grad(), compressing(backbone, build("random", 5, backbone.shape)) as engine:
        backbone.model(**inputs)
        assert engine.report.images == [1, 2, 0][: len(inputs["input_ids"])]
        assert engine.report.tokens_out == [5 * n for n in engine.report.images]


@pytest.mark.parametrize("family", EVERY)
def test_prompts_are_the_chat_templates(family: str) -> None:
    backbone = MAKE[family]()
    start, image = {
        "internvl": ("<|im_start|>user\n", "<IMG_CONTEXT>\n"),
        "idefics3": ("User:", "<image>"),
        "smolvlm": ("<|im_start|>User:", "<image>"),
    }[family]
    stop, answer = (
        ("<|im_end|>", "\n<|im_start|>assistant\n")
        if family == "internvl"
        else (
            "<end_of_utterance>",
            "\nAssistant:",
        )
    )
    space = "" if family == "internvl" else " "
    assert backbone.prompt("What?", 2) == f"{start}{image}{image}What?{stop}{answer}"
    assert backbone.prompt("What?", 0) == f"{start}{space}What?{stop}{answer}"
    turns = backbone.conversation([("one", "two"), ("three", "four")], 1)
    again = start.removeprefix("<|im_start|>") if family == "smolvlm" else start
    assert turns == [
        (f"{start}{image}one{stop}{answer}", False),
        (f"{space}two{stop}", True),
        (f"\n{again}{space}three{stop}{answer}", False),
        (f"{space}four{stop}", True),
    ]
    assert stop == backbone.tokenizer.eos_token
    begins = backbone.inputs(["What?"], [[]])["input_ids"][0, :2].tolist()
    assert (begins[0] == backbone.tokenizer.bos_token_id) and begins[1] != begins[0]  # written once
    own = backbone.processor.chat_template
    for without in (None, "{% for message in messages %}{{ message['role'] }} <picture>{% endfor %}"):
        backbone.processor.chat_template = without  # none, or one that doesn't write what the processor reads
        assert backbone.prompt("What?", 1).count(backbone.image_text) == 1
        assert backbone.prompt("What?", 1).endswith(answer)
    assert own is not None


@pytest.mark.parametrize("family", EVERY)
def test_sizes_are_those_of_the_model(family: str) -> None:
    for image_size, tiles in ((16, 1), (32, 5)):
        backbone = MAKE[family](image_size=image_size)
        shape, lm = backbone.shape, backbone.decoder
        assert (shape.depth, shape.width, shape.vocab) == (len(lm.layers), *reversed(lm.embed_tokens.weight.shape))
        assert shape.kv_heads * shape.width // shape.heads == lm.layers[0].self_attn.k_proj.out_features
        assert shape.intermediate == lm.layers[0].mlp.up_proj.out_features
        linear = [m for m in backbone.projector.modules() if isinstance(m, torch.nn.Linear)]
        assert shape.vision.projector == sum(m.weight.numel() for m in linear)
        inputs = dict(backbone.inputs(["what"], [[noise(24, 17)]]))
        assert len(inputs["pixel_values"]) == tiles
        with torch.no_grad(), flop_counter() as counter:
            features = backbone.image_features(inputs)
        assert [len(f) for f in features] == [shape.visual_tokens] == [16 * tiles]
        assert shape.grid == ((4, 4) if tiles == 1 else None)
        assert counter.get_total_flops() == flops.vision(shape)
    free, one = MAKE[family](image_size=None).shape, MAKE[family](image_size=None, tiles=False)
    assert free.visual_tokens is None and free.grid is None
    assert one.shape == MAKE[family]().shape
    assert len(one.inputs(["what"], [[noise(64, 16)]])["pixel_values"]) == 1


@pytest.mark.parametrize("family", EVERY)
def test_any_folder_of_the_architecture_loads(family: str, tmp_path) -> None:
    backbone = MAKE[family](image_size=32)
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.save_pretrained(tmp_path)
    name = {"internvl": "internvl3_1b", "idefics3": "idefics3_8b", "smolvlm": "smolvlm2_500m"}[family]
    cfg = {"name": name, "pretrained": str(tmp_path), "dtype": "float32", "device": "cpu", "image_size": 32}
    again = load(cfg)
    assert again.shape == shape_of(cfg) and again.shape.visual_tokens == 80 and again.image_size == 32
    inputs = backbone.inputs(QUESTIONS[:2], ROWS[:2])
    assert torch.equal(again.inputs(QUESTIONS[:2], ROWS[:2])["input_ids"], inputs["input_ids"])
    with torch.no_grad():
        assert torch.allclose(again.model(**inputs).logits, backbone.model(**inputs).logits, atol=1e-5)
    assert shape_of(cfg | {"image_size": None}).visual_tokens is None
    assert shape_of(cfg | {"image_size": None, "tiles": False}).visual_tokens == 16
    with pytest.raises(UserError, match=r"image_size=24: .* reads tiles of 16×16 pixels; allowed: 16, 32, 48"):
        shape_of(cfg | {"image_size": 24})
    with pytest.raises(UserError, match=r"image_size=32: .* with tiles=false one a picture; allowed: 16, null"):
        shape_of(cfg | {"tiles": False})
    with pytest.raises(UserError, match="backbone.tiles=maybe: allowed"):
        shape_of(cfg | {"tiles": "maybe"})
    other = {"internvl": "smolvlm2_256m"}.get(family, "internvl3_2b")
    with pytest.raises(UserError, match=f"a {backbone.model_type} model; this backbone reads"):
        shape_of(cfg | {"name": other})


@pytest.mark.parametrize("method", NEEDS_PATCHES)
@pytest.mark.parametrize("family", ["internvl", "idefics3"])
def test_methods_of_the_tower_say_by_name_that_they_cannot(family: str, method: str) -> None:
    for image_size in (32, None) if method in ("downsample", "qformer") else (16, 32, None):  # one tile is a picture
        shape = MAKE[family](image_size=image_size).shape
        with pytest.raises(UserError, match=f"method={method}: ") as error:
            build(method, None, shape)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "tile", "side", "depth", "millions"),
    [
        ("internvl3_1b", 256, 448, 24, 938),
        ("internvl3_2b", 256, 448, 28, 2089),
        ("internvl3_8b", 256, 448, 28, 7945),
        ("internvl3_14b", 256, 448, 48, 15119),
        ("internvl35_1b", 256, 448, 28, 1061),
        ("internvl35_2b", 256, 448, 28, 2348),
        ("internvl35_4b", 256, 448, 36, 4732),
        ("internvl35_8b", 256, 448, 36, 8528),
        ("internvl35_14b", 256, 448, 40, 15120),
        ("smolvlm2_256m", 64, 512, 30, 256),
        ("smolvlm2_500m", 64, 512, 32, 507),
        ("smolvlm2_2b", 81, 384, 24, 2247),
        ("smolvlm_2b", 81, 384, 24, 2246),
        ("idefics3_8b", 169, 364, 32, 8462),
    ],
)
def test_the_real_sizes_need_no_network(name: str, tile: int, side: int, depth: int, millions: int) -> None:
    settings = settings_of({"name": name, "image_size": side})
    cls = families.get(settings.family)
    assert settings.source == settings.released
    shape = shape_of({"name": name})
    assert (shape.name, shape.depth, shape.visual_tokens, shape.grid) == (name, depth, None, None)
    one = shape_of({"name": name, "image_size": side})
    assert one.visual_tokens == tile and one.grid[0] ** 2 == tile
    assert shape_of({"name": name, "image_size": 2 * side}).visual_tokens == 5 * tile
    assert shape_of({"name": name, "tiles": False}) == one
    model = cls.skeleton(settings)
    assert model.shape == one and model.core.config.model_type == cls.model_type
    assert sum(p.numel() for p in model.model.parameters()) / 1e6 == pytest.approx(millions, rel=0.002)
    assert cls.shape_from(model.model.config, name, image_size=side) == one


def test_a_model_without_a_processor() -> None:
    """InternVL's images are known from the placeholders alone; Idefics3's, of several tiles, are not."""
    for family, size in (("internvl", 32), ("idefics3", 16)):
        backbone = MAKE[family](image_size=size)
        inputs = dict(backbone.inputs(QUESTIONS[:2], ROWS[:2]))
        with compressing(wrap(backbone.model, image_size=size), build("random", 5, backbone.shape)) as engine:
            backbone.model(**inputs)
            assert engine.report.tokens_out == [5, 10]
    backbone = tiny_idefics3(image_size=32)
    inputs = dict(backbone.inputs(QUESTIONS[:2], ROWS[:2]))
    with (
        pytest.raises(UserError, match="only its tokenizer says where an image of several tiles ends"),
        compressing(wrap(backbone.model), build("random", 5, backbone.shape)),
    ):
        backbone.model(**inputs)
