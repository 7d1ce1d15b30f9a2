"""Checkpoints: what goes in comes out, and nothing else does."""

import json

import pytest
import torch
from method_cases import pocket
from safetensors.torch import load_file, save_file

from vtc import checkpoint
from vtc.errors import UserError
from vtc.methods import build


def trained(name="fwd2bot", tokens=4, **options):
    backbone = pocket()
    backbone.name = "pocket"
    method = build(name, tokens, backbone.shape, **options)
    method.attach(backbone)
    return backbone, method


def fill(backbone, method, seed):
    generator = torch.Generator().manual_seed(seed)
    names = [n for n, _ in backbone.model.named_parameters() if "lora_" in n]
    with torch.no_grad():
        for n, p in backbone.model.named_parameters():
            if n in names:
                p.copy_(torch.randn(p.shape, generator=generator))
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return names


MANIFEST = {"backbone": "pocket", "method": "fwd2bot", "tokens": 4}


def test_round_trip(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    other, fresh = trained(rank=4)
    checkpoint.load(tmp_path / "c", other, fresh)
    assert torch.equal(method.summary, fresh.summary)
    mine, theirs = dict(backbone.model.named_parameters()), dict(other.model.named_parameters())
    assert all(torch.equal(mine[n], theirs[n]) for n in names)
    assert not list(tmp_path.glob("*.new")) and not list(tmp_path.glob("*.old"))


def test_refuses_by_name(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    for key, value in (("backbone", "llava15_7b"), ("method", "victor"), ("tokens", 16)):
        (tmp_path / "c" / "manifest.json").write_text(json.dumps(MANIFEST | {key: value}))
        with pytest.raises(UserError, match=f"trained for {key}={value}, not"):
            checkpoint.load(tmp_path / "c", backbone, method)
    (tmp_path / "c" / "manifest.json").write_text("{half")
    with pytest.raises(UserError, match="not readable"):
        checkpoint.load(tmp_path / "c", backbone, method)
    with pytest.raises(UserError, match="no manifest.json"):
        checkpoint.load(tmp_path / "nothing", backbone, method)


def test_weights_that_do_not_fit_the_model(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    other, wider = trained(rank=8)
    with pytest.raises(UserError, match="lora_A"):
        checkpoint.load(tmp_path / "c", other, wider)


def test_one_budget_starts_from_another(tmp_path):
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
    for tokens in (2, 8):
        other, fresh = trained(tokens=tokens, rank=4)
        before = fresh.summary.detach().clone()
        checkpoint.load(tmp_path / "c", other, fresh, fit=False)
        rows = min(4, tokens)
        assert torch.equal(fresh.summary[:rows], method.summary[:rows])
        assert torch.equal(fresh.summary[rows:], before[rows:])
        with pytest.raises(UserError, match="tokens=4"):
            checkpoint.load(tmp_path / "c", other, fresh)


def test_of_several_processes_the_first_alone_writes_and_all_of_them_gather(tmp_path, monkeypatch):
    """Shards are put together by all processes: none may leave the others waiting."""
    backbone, method = trained(rank=4)
    names = fill(backbone, method, 1)
    asked: list[list[int]] = []

    def whole(parameter):
        asked[-1].append(id(parameter))
        return parameter.detach() + 1

    monkeypatch.setattr(checkpoint, "whole", whole)
    for first in (False, True):
        monkeypatch.setattr(checkpoint, "is_main", lambda first=first: first)
        asked.append([])
        checkpoint.save(tmp_path / "c", backbone, method, MANIFEST, names)
        assert (tmp_path / "c").exists() == first
    assert asked[0] == asked[1] and len(asked[0]) == len(names) + len(list(method.parameters()))
    other, fresh = trained(rank=4)
    checkpoint.load(tmp_path / "c", other, fresh)
    assert torch.equal(fresh.summary, method.summary + 1)


TRAINED = MANIFEST | {"training": {"stages": [{"train": ["method", "adapters"]}, {"train": ["projector"]}]}}


def stored(folder):
    """A checkpoint of Fwd2Bot whose projector was trained too, and its tensors."""
    backbone, method = trained(rank=4)
    names = {n for n, _ in backbone.model.named_parameters() if "lora_" in n or "projector" in n}
    checkpoint.save(folder, backbone, method, TRAINED, names)
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("part", ["method.", "lora_", "projector"])
def test_what_was_trained_must_be_there(tmp_path, part):
    tensors = stored(tmp_path)
    backbone, method = trained(rank=4)
    checkpoint.load(tmp_path, backbone, method)
    name = next(n for n in tensors if part in n)
    save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=f"weights.safetensors does not fit the model: '{name}' is missing"):
        checkpoint.load(tmp_path, backbone, method)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: torch.full_like(t, float("nan")), "aren't finite in torch.float32"),
        (lambda t: t / 0, "aren't finite"),
        (lambda t: t.long(), "is torch.int64, the model's torch.float32"),
        (lambda t: t.bool(), "is torch.bool, the model's"),
        (lambda t: t.flatten(), "the model's"),
    ],
)
def test_values_that_are_no_weights(tmp_path, change, says):
    tensors = stored(tmp_path)
    name = next(n for n in tensors if "projector" in n and n.endswith("weight"))
    save_file(tensors | {name: change(tensors[name])}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=f"weights.safetensors: {name} .*{says}"):
        checkpoint.load(tmp_path, *trained(rank=4))


def test_what_overflows_in_half_precision(tmp_path):
    tensors = stored(tmp_path)
    backbone, method = trained(rank=4)
    backbone.model.half()
    save_file(tensors | {"method.summary": tensors["method.summary"] + 1e5}, tmp_path / "weights.safetensors")
    checkpoint.load(tmp_path, backbone, method)
    with pytest.raises(UserError, match="method.summary .*aren't finite in torch.float16"):
        checkpoint.load(tmp_path, backbone, method.half())


@pytest.mark.parametrize("content", [b"", b"\x80\x04}q\x00.", b"half"])
def test_files_that_are_no_weights(tmp_path, content):
    """Refused by the header alone, before the backbone is loaded."""
    stored(tmp_path)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content == b"half" else content)
    with pytest.raises(UserError, match="weights.safetensors is not readable"):
        checkpoint.names_in(tmp_path)
    with pytest.raises(UserError, match="weights.safetensors is not readable"):
        checkpoint.load(tmp_path, *trained(rank=4))
    file.unlink()
    with pytest.raises(UserError, match="weights.safetensors is missing"):
        checkpoint.names_in(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "dangling link", "loop"])
@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
def test_what_stands_in_the_place_of_a_file(tmp_path, kind, name):
    stored(tmp_path)
    file = tmp_path / name
    file.unlink()
    if kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(tmp_path / ("nowhere" if kind == "dangling link" else name))
    with pytest.raises(UserError, match=f"{name} is not readable") as error:
        checkpoint.load(tmp_path, *trained(rank=4))
    assert "\n" not in str(error.value)
    if name == "weights.safetensors":
        assert "can't be read" in checkpoint.damage(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "is not readable .an object is needed"),
        (b"3", "is not readable"),
        (b"\xff\xfe", "is not readable"),
        (b"[" * 100_000, "is not readable"),
        (b'{"tokens": ' + b"9" * 5_000 + b"}", "is not readable"),
        (b'{"training": null}', ": training=null: allowed: an object"),
        (b'{"training": {"lora": 8}}', ": training.lora=8: allowed: an object"),
        (b'{"training": {"stages": {}}}', ": training.stages={}: allowed: a list of objects"),
        (b'{"training": {"stages": [{"train": "method"}]}}', ": training.stages=.*train is a list"),
        (b'{"method": ["fwd2bot"]}', ": method=.*allowed: a text"),
        (b'{"tokens": "4"}', ": tokens=4: allowed: a whole number"),
        (b'{"options": []}', ": options=.*allowed: an object"),
    ],
)
def test_manifests_of_any_shape(tmp_path, content, says):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=f"manifest.json{says}" if says[0] == ":" else f"manifest.json {says}") as error:
        checkpoint.read_manifest(tmp_path)
    assert "\n" not in str(error.value)
