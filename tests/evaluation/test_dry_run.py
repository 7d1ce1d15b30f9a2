"""`dry_run=true`: everything is resolved, nothing is loaded, downloaded or written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vtc.cli.command import main
from vtc.evaluation import dry_run


@pytest.fixture(autouse=True)
def nothing_loads(monkeypatch):
    """A hub that knows two repositories, and no model ever."""
    import huggingface_hub

    from vtc.backbones.base import Backbone

    def repo_info(self, name, repo_type=None, **_):
        sizes = {"llava-hf/llava-1.5-7b-hf": 14_100_000_000, "lmms-lab-encoder/POPE": 1_300_000_000}
        if name not in sizes:
            raise OSError("no network")
        files = [SimpleNamespace(size=sizes[name] // 2), SimpleNamespace(size=sizes[name] // 2)]
        return SimpleNamespace(siblings=files)

    def load(*_):
        raise AssertionError("a dry run loads no model")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(Backbone, "load", load)


def test_a_7b_model_on_real_benchmarks(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = "backbone=llava15_7b backbone.dtype=bfloat16 method=fastv tokens=64 dry_run=true benchmark=llava"
    assert main([*command.split(), "benchmark.tasks=[pope,gqa,mme]"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "llava-hf/llava-1.5-7b-hf (to be downloaded, 14.1 GB)" in out
    assert "2 × 576, 30 × 64 (compression ratio 6.00)" in out
    assert "weights 14.1 GB" in out, "7.06 B parameters of two bytes"
    # keys and values of 32 rows: 2 (k, v) x 4096 numbers x 2 bytes, over 2 layers of 768 and 30 of 256 tokens
    assert f"KV cache {32 * 2 * 4096 * 2 * (2 * 768 + 30 * 256) / 1e9:.3g} GB" in out
    assert "pope: lmms-lab-encoder/POPE (to be downloaded, 1.3 GB)" in out
    assert "gqa: lmms-lab-encoder/GQA (to be downloaded, size unknown: the hub can't be reached)" in out
    assert "would be written to" in out and not list(tmp_path.iterdir())


def test_passes_that_a_method_runs_itself_are_counted(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["method=fwd2bot", "tokens=16", "dry_run=true"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(1.57× uncompressed; 0.49× where images were compressed beforehand)" in out
    assert "6 × 16 (compression ratio 0.82)" in out  # 144 / (144 + 16 + 16)
    assert main(["method=fastv", "tokens=16", "dry_run=true"]) == 0
    assert "× uncompressed)" in " ".join(capsys.readouterr().out.split())


def test_a_budget_that_is_a_mean_is_said_to_be_one(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for given, mean in ((["budget=mean"], ", in the mean over a task"), ([], "")):
        assert main(["method=prunesid", "tokens=16", *given, "dry_run=true"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert f"16 of 144 visual tokens an image at the end{mean}; by layer 6 × 16" in out


def test_memory_of_quantised_weights(tmp_path: Path, monkeypatch, capsys) -> None:
    """6.476 B weights of the decoder's linear layers, by hand; the other 0.587 B stay at two bytes."""
    from vtc.backbones import loading

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_check_quantization", lambda *_: None)  # whether or not bitsandbytes is here
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    scales = linear / 64 + 4 * linear / 64 / 256  # a byte for 64 weights, a float32 for 256 such bytes
    rows = 32 * (5 * 4096 + 2 * 11008)
    rest = 2 * 587_421_696
    for bits, wanted in (("4bit", rest + linear / 2 + scales), ("8bit", rest + linear + 4 * rows)):
        command = f"backbone=llava15_7b dtype=bf16 quantization={bits} method=fastv tokens=64 dry_run=true"
        assert main([*command.split(), "benchmark.tasks=[pocket_existence]"]) == 0
        assert f"weights {wanted / 1e9:.3g} GB" in " ".join(capsys.readouterr().out.split())


def test_its_id_is_the_runs(weights, tmp_path: Path, capsys) -> None:
    from vtc.configuration import parse
    from vtc.evaluation.run_folder import RunFolder

    command = ["method=fastv", "tokens=16", f"backbone.pretrained={weights}", f"output_dir={tmp_path / 'out'}"]
    assert main([*command, "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert f"run {RunFolder(parse(command)).id} " in out
    assert "pocket2_existence: drawn here" in out and f"{weights} (here)" in out


def test_what_the_run_would_refuse_is_refused(weights, capsys) -> None:
    wrong = ["method=fastv", "tokens=500", f"backbone.pretrained={weights}", "dry_run=true"]
    assert main(wrong) == 2 and "tokens=500" in capsys.readouterr().err
    assert main(["method=fastv", "tokens=16", "dry_run=maybe"]) == 2 and "dry_run=maybe" in capsys.readouterr().err


def test_the_hub_is_asked_once_where_it_can_not_be_reached(monkeypatch) -> None:
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, name, **_: asked.append(name) or 1 / 0)
    hub = dry_run.Hub()
    found = [hub.look_up(name, "dataset") for name in ("a/b", "c/d")]
    assert asked == ["a/b"] and [d.size for d in found] == [None, None]
    assert all("size unknown" in str(d) for d in found)
