"""A LLaVA made of a language model and a vision tower: what is kept, what is new, and that everything runs on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import load
from PIL import Image
from safetensors.torch import load_file

from vtc.backbones.base import Backbone
from vtc.backbones.compose import compose, main
from vtc.backbones.words import WORDS
from vtc.engine import compressing
from vtc.errors import UserError
from vtc.methods import build

SIDE, PATCH, WIDTH = 16, 4, 32
PICTURE = Image.new("RGB", (20, 30), "red")


def tokenizer(pad: bool, bos: bool):
    """One token a word, without `<image>`; like Llama's (`<s>` in front, no padding) or Qwen2's (padding, no `<s>`)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(["<|endoftext|>"] if pad else [])]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(special)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **names | ({"pad_token": "<|endoftext|>"} if pad else {"chat_template": "{{ 'other' }}"})
    )


def language_model(kind: str, folder: Path) -> Path:
    """A tiny decoder of random weights with its tokenizer: `llama`, `mistral` or `qwen2` (tied, rows to spare)."""
    import transformers

    words = tokenizer(pad=kind == "qwen2", bos=kind != "qwen2")
    config = getattr(transformers, {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[kind] + "Config")(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40 if kind == "qwen2" else len(words),
        tie_word_embeddings=kind == "qwen2",
        initializer_range=0.2,
        eos_token_id=2,
        pad_token_id=None,
        **({"sliding_window": None} if kind == "mistral" else {}),
    )
    torch.manual_seed(11)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    said = {"bos_token_id": 1, "eos_token_id": [2, 3] if kind == "qwen2" else 2, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(said))  # Vicuna's: sampling that isn't turned on
    return folder


def tower(kind: str, folder: Path) -> Path:
    """A tiny `clip_vision` (the vision half alone), `clip` (both halves, as on the hub) or `siglip`."""
    import transformers as t

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = sizes | {"image_size": SIDE, "patch_size": PATCH}
    text = sizes | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0}
    square = {"height": SIDE, "width": SIDE}
    torch.manual_seed(12)
    if kind == "siglip":
        t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        t.SiglipImageProcessor(size=square).save_pretrained(folder)
        return folder
    if kind == "clip":
        t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    else:
        t.CLIPVisionModel(t.CLIPVisionConfig(**vision)).save_pretrained(folder)
    t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square).save_pretrained(folder)
    return folder


CASES = {"llama": "clip_vision", "qwen2": "clip", "mistral": "clip_vision"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """llama, qwen2, mistral; clip_vision, clip, siglip: a folder each."""
    folder = tmp_path_factory.mktemp("parts")
    for kind in CASES:
        language_model(kind, folder / kind)
    for kind in ("clip_vision", "clip", "siglip"):
        tower(kind, folder / kind)
    return folder


@pytest.fixture(scope="module")
def composed(parts: Path) -> Path:
    """The language models on their towers, in float32."""
    for text, vision in CASES.items():
        compose(str(parts / text), str(parts / vision), parts / f"llava-{text}", dtype="float32")
    return parts


def loaded(folder: Path) -> Backbone:
    return load({"name": "llava15_7b", "pretrained": str(folder), "dtype": "float32", "device": "cpu"})


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors, in one."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.parametrize("kind", CASES)
def test_both_parts_are_kept_bit_by_bit_and_nothing_else_is_there(composed: Path, kind: str) -> None:
    backbone = loaded(composed / f"llava-{kind}")
    text, vision = stored(composed / kind), stored(composed / CASES[kind])
    there = dict(backbone.model.named_parameters())
    known = len(tokenizer(pad=kind == "qwen2", bos=True))
    for name, tensor in text.items():
        mine = there.pop(
            "lm_head.weight" if name == "lm_head.weight" else name.replace("model.", "model.language_model.", 1)
        )
        if "embed_tokens" in name or name == "lm_head.weight":
            mine, tensor = mine[:known], tensor[:known]
        assert torch.equal(mine, tensor), name
    halves = {
        k: v for k, v in vision.items() if not k.startswith(("text_model", "text_projection", "visual_projection"))
    }
    for name, tensor in halves.items():
        if name != "logit_scale":
            assert torch.equal(there.pop("model.vision_tower." + name.removeprefix("vision_model.")), tensor), name
    assert sorted(there) == [f"model.multi_modal_projector.linear_{n}.{p}" for n in (1, 2) for p in ("bias", "weight")]
    assert (backbone.model.lm_head.weight is backbone.decoder.embed_tokens.weight) == (kind == "qwen2")


@pytest.mark.parametrize("kind", CASES)
def test_new_tokens_are_the_mean_of_the_old(composed: Path, kind: str) -> None:
    backbone, source = loaded(composed / f"llava-{kind}"), stored(composed / kind)
    known, rows = len(tokenizer(pad=kind == "qwen2", bos=True)), 40 if kind == "qwen2" else 64
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in source:
            mine = backbone.decoder.embed_tokens.weight if "embed" in name else backbone.model.lm_head.weight
            assert mine.shape == (rows, WIDTH)
            expected = source[name][:known].double().mean(0).float().expand(rows - known, -1)
            assert torch.allclose(mine[known:], expected, atol=1e-6)
    words = backbone.tokenizer
    assert backbone.image_token_id == words.convert_tokens_to_ids("<image>") == known
    assert words.pad_token == ("<|endoftext|>" if kind == "qwen2" else "<pad>")
    assert backbone.model.config.text_config.pad_token_id == words.pad_token_id
    said = backbone.model.generation_config
    assert said.eos_token_id == ([2, 3] if kind == "qwen2" else 2) and said.pad_token_id == words.pad_token_id
    assert not said.do_sample
    assert len(words) == known + (1 if kind == "qwen2" else 2) <= backbone.shape.vocab == rows


@pytest.mark.parametrize("kind", CASES)
def test_without_an_image_it_is_the_language_model(composed: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    backbone, own = loaded(composed / f"llava-{kind}"), AutoModelForCausalLM.from_pretrained(composed / kind).eval()
    known = len(tokenizer(pad=kind == "qwen2", bos=True))
    ids = torch.randint(4, known, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone.model(input_ids=ids).logits[..., :known], own(input_ids=ids).logits[..., :known])


def test_the_projector_is_of_its_seed_and_of_nothing_else(composed: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    same = compose(str(composed / "llama"), str(composed / "clip"), tmp_path / "same", dtype="float32")
    other = compose(str(composed / "llama"), str(composed / "clip"), tmp_path / "other", seed=1, dtype="float32")
    assert torch.equal(before, torch.random.get_rng_state())
    first, same, other = (loaded(f).projector.state_dict() for f in (composed / "llava-llama", same, other))
    assert [tuple(v.shape) for v in first.values()] == [(WIDTH, 16), (WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
    for name, tensor in first.items():
        assert torch.equal(tensor, same[name]) and not torch.equal(tensor, other[name])
        bound = (16 if "linear_1" in name else WIDTH) ** -0.5  # of torch.nn.Linear
        assert tensor.abs().max() <= bound and tensor.abs().max() > 0.8 * bound


@pytest.mark.parametrize("kind", CASES)
def test_it_reads_pictures_trains_and_generates_under_a_method(composed: Path, kind: str) -> None:
    backbone = loaded(composed / f"llava-{kind}")
    assert backbone.shape.visual_tokens == 16 and backbone.shape.grid == (4, 4)
    inputs = backbone.inputs(["what is this", "what is"], [[PICTURE], [PICTURE]])
    assert (inputs["input_ids"] == backbone.image_token_id).sum(1).tolist() == [16, 16]
    backbone.model.requires_grad_(False)
    backbone.projector.requires_grad_(True)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == backbone.image_token_id, -100)
    backbone.model(**inputs, labels=labels).loss.backward()
    for name, parameter in backbone.projector.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    method = build("victor", 4, backbone.shape, layer=1)
    with torch.no_grad(), compressing(backbone, method) as engine:
        said = backbone.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert said.shape[1] - inputs["input_ids"].shape[1] in (1, 2, 3) and engine.report is not None
    assert (
        [t.tolist() for t in engine.report.visual_out] == [[4], [4]] if hasattr(engine.report, "visual_out") else True
    )


@pytest.mark.parametrize("kind", CASES)
def test_the_chat_template_is_the_prompt(composed: Path, kind: str) -> None:
    backbone = loaded(composed / f"llava-{kind}")
    for images in (0, 1, 2):
        content = [{"type": "image"}] * images + [{"type": "text", "text": "What is it?"}]
        told = [{"role": "user", "content": content}]
        text = backbone.processor.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
        assert text == backbone.prompt("What is it?", images)
    answered = told + [{"role": "assistant", "content": [{"type": "text", "text": "A circle."}]}]
    whole = "".join(piece for piece, _ in backbone.conversation([("What is it?", "A circle.")], 2))
    assert backbone.processor.apply_chat_template(answered, tokenize=False) == whole


def test_a_tower_without_cls_token_gives_every_patch(parts: Path, tmp_path: Path) -> None:
    backbone = loaded(compose(str(parts / "llama"), str(parts / "siglip"), tmp_path / "out", dtype="float32"))
    inputs = backbone.inputs(["what is this"], [[PICTURE]])
    assert (inputs["input_ids"] == backbone.image_token_id).sum() == 16 == backbone.shape.visual_tokens
    assert backbone.shape.grid == (4, 4)
    with torch.no_grad():
        hidden = backbone.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        (features,) = backbone.image_features({"pixel_values": inputs["pixel_values"]})
        assert torch.allclose(features, backbone.projector(hidden)[0], atol=1e-6)


def test_weights_are_stored_in_the_type_asked_for_and_in_shards(parts: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vtc.backbones.compose.SHARD", "20KB")
    folder = compose(str(parts / "llama"), str(parts / "clip"), tmp_path / "out")
    assert len(list(folder.glob("*.safetensors"))) > 1 and not list(folder.glob("*.bin"))
    assert {t.dtype for t in stored(folder).values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["vision_feature_layer"] == -2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    row = stored(parts / "llama")["model.embed_tokens.weight"]
    auto = load({"name": "llava15_7b", "pretrained": str(folder), "device": "cpu", "dtype": "auto"})
    assert torch.equal(auto.decoder.embed_tokens.weight[: len(row)], row.bfloat16())


@pytest.fixture(scope="module")
def broken(parts: Path) -> Path:
    """Beside the parts: families and weights that don't fit."""
    import transformers as t

    t.Dinov2Config().save_pretrained(parts / "dino")
    t.MistralConfig().save_pretrained(parts / "windows")
    for name, source in (("pickled", "llama"), ("headless", "llama"), ("small", "clip")):
        (parts / name).mkdir(exist_ok=True)
        for file in (parts / source).iterdir():
            if file.suffix != ".safetensors" or name == "small":
                (parts / name / file.name).write_bytes(file.read_bytes())
    torch.save(stored(parts / "llama"), parts / "pickled" / "pytorch_model.bin")
    t.AutoModel.from_pretrained(parts / "llama").save_pretrained(parts / "headless")
    t.CLIPImageProcessor(crop_size={"height": 12, "width": 12}).save_pretrained(parts / "small")
    return parts


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"language_model": "/no/such"}, r"--language-model=/no/such: no config.json there"),
        ({"language_model": "nobody/nothing"}, r"--language-model=nobody/nothing: can't be read \("),
        ({"language_model": "clip"}, r"--language-model=.*: a clip model; allowed: llama, mistral, qwen2"),
        ({"vision_tower": "llama"}, r"--vision-tower=.*: a llama model; allowed: clip, siglip"),
        ({"vision_tower": "dino"}, r"--vision-tower=.*: a dinov2 model; allowed: clip, siglip"),
        ({"language_model": "windows"}, r"attends in windows of 4096 tokens"),
        ({"language_model": "pickled"}, r"--language-model=.*: can't be read \(.*model.safetensors"),
        ({"language_model": "headless"}, r"--language-model=.*: 1 of its weights aren't there, lm_head.weight first"),
        ({"vision_tower": "small"}, r"--vision-tower=.*makes images of .*12.*; it takes 16 squared"),
        ({"out": "llama"}, r"--out=.*: exists already"),
        ({"out": "llama/config.json/out"}, r"--out=.*: can't be written \((File exists|Not a directory)\)"),
        ({"dtype": "bfloat61"}, r"--dtype=bfloat61: unknown; .*did you mean 'bfloat16'"),
    ],
)
def test_mistakes_are_answered_in_one_line(broken: Path, change: dict, text: str, capsys) -> None:
    given = {"language_model": "llama", "vision_tower": "clip", "out": "new"} | change
    where = {k: v if v.startswith(("/", "nobody", "bfloat")) else str(broken / v) for k, v in given.items()}
    with pytest.raises(UserError, match=text) as error:
        compose(**where)
    assert "\n" not in str(error.value) and not (broken / "new").exists()
    assert main([f"--{k.replace('_', '-')}={v}" for k, v in where.items()]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"vtc: {error.value}"


def test_the_command_says_how_to_go_on(parts: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "deep" / "llava"
    given = [f"--language-model={parts / 'llama'}", f"--vision-tower={parts / 'clip'}", f"--out={out}"]
    assert main(given) == 0
    assert capsys.readouterr().out.strip() == f"{out}: backbone=llava15_7b backbone.pretrained={out}"
    assert (out / "config.json").is_file()
