"""The tower's output kept on disk: bit for bit what would be computed, bounded, and never the end of a run."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from test_adapter import adapter, build, requests_of

from vtc.evaluation import towers
from vtc.evaluation.towers import TowerCache, identity_of, key_of

pytestmark = pytest.mark.usefixtures("manager")
LARGE = 10**9


def answered(backbone, method, manager, data, cache=None) -> tuple[list, int]:
    """All answers and embeddings to some questions of two tasks, what was kept; and how often the tower ran."""
    model = adapter(backbone, method, batch_size=4, towers=cache)
    asked = requests_of(model, "pocket_choice", manager, data, 6) + requests_of(
        model, "pocket_hard_captions", manager, data, 5
    )
    calls: list[int] = []
    hook = backbone.vision_tower.embeddings.register_forward_hook(lambda *_: calls.append(1))
    try:
        answers = [(a.text, a.token_counts) for a in model.generate_until(asked)]
    finally:
        hook.remove()
    assert not model.bad
    return [*answers, model.kept], len(calls)


def test_scores_with_the_cache_are_those_without(backbone, manager, data, tmp_path) -> None:
    """The first run computes and keeps; the next, of another method, computes nothing in the tower."""
    cache = TowerCache(tmp_path, LARGE)
    forward = backbone.vision_tower.__dict__.get("forward")
    for name, tokens, ran in (("none", None, 4), ("fastv", 16, 0), ("fwd2bot", 4, 0), ("none", None, 0)):
        model = copy.deepcopy(backbone)
        method = build(name, tokens, model)
        torch.manual_seed(0)
        plain, all_of_them = answered(model, method, manager, data)
        kept, calls = answered(model, method, manager, data, cache)
        assert kept == plain and all_of_them == 4 and calls == ran, name
    assert (cache.stored, cache.read) == (4, 12)
    assert backbone.vision_tower.__dict__.get("forward") is forward


def test_methods_that_look_into_the_tower_or_change_it_do_without(backbone, manager, data, tmp_path) -> None:
    cache = TowerCache(tmp_path, LARGE)
    answered(backbone, build("none", None, backbone), manager, data, cache)
    for name, tokens in (("visionzip", 16), ("downsample", 16), ("visionzip+fastv", 8)):
        before = cache.read, cache.stored
        assert answered(backbone, build(name, tokens, backbone), manager, data, cache)[1] == 4
        assert (cache.read, cache.stored) == before, name


def test_another_tower_dtype_setting_or_picture_misses(backbone) -> None:
    identity, pixels = identity_of(backbone), torch.rand(2, 3, 96, 96)
    key = key_of(identity, (pixels,), {"output_hidden_states": -2})
    assert key == key_of(identity, (pixels.clone(),), {"output_hidden_states": -2})
    darker = pixels.clone()
    darker[1, 2, 95, 95] = torch.nextafter(darker[1, 2, 95, 95], torch.tensor(2.0))
    for args, kwargs in (
        ((darker,), {"output_hidden_states": -2}),
        ((pixels.flip(0),), {"output_hidden_states": -2}),
        ((pixels[:1],), {"output_hidden_states": -2}),
        ((pixels.double(),), {"output_hidden_states": -2}),
        ((pixels,), {"output_hidden_states": -1}),
        ((pixels,), {"output_hidden_states": -2, "interpolate_pos_encoding": True}),
    ):
        assert key_of(identity, args, kwargs) != key
    assert key_of(identity, (pixels,), {"other": object()}) is None  # what can't be told apart isn't kept
    for change in (
        lambda b: next(b.vision_tower.parameters()).data.view(-1)[:1].add_(1e-3),
        lambda b: b.model.to(torch.bfloat16),
        lambda b: b.model.set_attn_implementation("eager"),
    ):
        other = copy.deepcopy(backbone)
        change(other)
        assert identity_of(other) != identity
    assert identity_of(copy.deepcopy(backbone)) == identity


def tensors(seed: int) -> dict[str, torch.Tensor]:
    return {"hidden_states.-2": torch.randn(50, 50, generator=torch.Generator().manual_seed(seed))}


def size_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix == ".tower")


def test_the_bound_holds_and_what_is_in_use_stays(tmp_path, monkeypatch) -> None:
    old, most = TowerCache(tmp_path, 50_000), 50_000
    for number in range(8):
        old.put(f"old{number}", tensors(number))
        assert size_of(tmp_path) <= most
    assert old.stored == 4 and old.get("old3") is not None and old.get("old4") is None
    time.sleep(0.02)
    new = TowerCache(tmp_path, most)
    assert new.get("old1") is not None  # and so it is in use
    for number in range(6):
        new.put(f"new{number}", tensors(number))
        assert size_of(tmp_path) <= most
    assert new.stored == 3 and new.get("old1") is not None and new.get("old0") is None
    assert torch.equal(new.get("new2")["hidden_states.-2"], tensors(2)["hidden_states.-2"]) and new.get("new3") is None
    new.put("huge", {"x": torch.zeros(100_000)})
    assert new.get("huge") is None
    monkeypatch.setattr(towers, "SPARE", 10**18)  # nobody has such a disk
    TowerCache(tmp_path / "other", most).put("a", tensors(0))
    assert not list((tmp_path / "other").glob("*.tower"))


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "foreign"])
def test_a_broken_file_is_a_miss(harm, tmp_path) -> None:
    cache = TowerCache(tmp_path, LARGE)
    cache.put("key", tensors(0))
    (path,) = tmp_path.glob("*.tower")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"cut": content[:-100], "flipped": content, "empty": b"", "foreign": b"something else altogether"}
    path.write_bytes(bytes(harmed[harm]))
    assert cache.get("key") is None and not path.exists() and cache.read == 0
    cache.put("key", tensors(0))
    assert torch.equal(cache.get("key")["hidden_states.-2"], tensors(0)["hidden_states.-2"])


def test_a_folder_that_cannot_be_written_ends_no_run(backbone, manager, data, tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = TowerCache(tmp_path / "file", LARGE)
    answered(backbone, build("none", None, backbone), manager, data, cache)
    assert cache.stored == 0
