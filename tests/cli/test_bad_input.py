"""Bad input: exit code 2 and one line with the key, what was given, what is allowed; nothing loaded, no traceback."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vtc.cli import main

# (command line, what the one line on stderr must contain)
KEYS = [
    ("token=16", ["token=16", "'token'", "did you mean 'tokens'"]),
    ("+token=16", ["token", "did you mean 'tokens'"]),
    ("++budget=16", ["budget"]),
    ("~tokens", ["tokens", "null"]),
    ("methd=fastv", ["methd", "did you mean 'method'"]),
    ("method=fastv method.layr=2", ["method.layr=2", "did you mean 'layer'"]),
    ("method=none method.layer=2", ["method.layer", "method=none has no options"]),
    ("backbone.dytpe=float32", ["backbone.dytpe", "did you mean 'dtype'"]),
    ("benchmark.taks=[pope]", ["benchmark.taks", "did you mean 'tasks'"]),
    ("fastv", ["fastv", "key=value"]),
    ("tokens=[", ["tokens=["]),
    ("--tokens 16", ["--tokens", "unknown flag"]),
    ("action=report report.input=x", ["report.input", "did you mean 'inputs'"]),
    ("report.inputs=[x]", ["report.inputs"]),
]
NAMES = [
    ("method=fastvv tokens=16", ["method=fastvv", "victor", "did you mean 'fastv'"]),
    ("method=null", ["method=null", "fastv"]),
    ("method=[fastv,victr]", ["method=victr", "did you mean 'victor'"]),
    ("method=[]", ["method=[]", "at least one"]),
    ("backbone=[pocket,llava15_7b]", ["one backbone a run", "-m backbone=pocket,llava15_7b"]),
    ("method=[visionzip,fastv] action=train", ["visionzip+fastv", "not trained"]),
    ("method=[visionzip,fastv] method.fastv.layr=3", ["method.fastv.layr", "did you mean 'layer'"]),
    ("method=[visionzip,fastv] method.layer=3", ["method.layer", "visionzip, fastv"]),
    ("method=[fastv,fastv] method.fastv.layer=3", ["method.fastv.layer", "did you mean 'fastv"]),
    ("method=fastv,victor tokens=4", ["several values are a sweep", "-m"]),
    ("backbone=llava15_7", ["backbone=llava15_7", "did you mean 'llava15_7b'"]),
    ("action=evalute", ["action=evalute", "did you mean 'evaluate'"]),
    ("benchmark=poket", ["benchmark=poket", "did you mean 'pocket'"]),
    ("benchmark.tasks=[pocket_existenc]", ["pocket_existenc", "did you mean 'pocket_existence'"]),
    ("benchmark.tasks=pocket_existence", ["benchmark.tasks=pocket_existence", "list"]),
    ("benchmark.tasks=[]", ["benchmark.tasks", "at least one"]),
]
VALUES = [
    ("tokens=abc", ["tokens=abc", "whole number"]),
    ("tokens=0", ["tokens=0", "from 1 on"]),
    ("tokens=1.5", ["tokens=1.5", "whole number"]),
    ("tokens=-4", ["tokens=-4"]),
    ("ratio=2", ["ratio=2", "at most 1"]),
    ("flops=0", ["flops=0", "more than 0"]),
    ("compression=0.5", ["compression=0.5", "from 1 on"]),
    ("tokens=16 ratio=0.1", ["tokens=16", "ratio=0.1", "only one"]),
    ("compression=5.57 flops=0.25", ["compression=5.57", "flops=0.25"]),
    ("seed=null", ["seed=null"]),
    ("method=fastv tokens=[36,16]", ["tokens=[36,16]", "fastv is one"]),
    ("method=[visionzip,fastv] tokens=[36,16,4]", ["tokens=[36,16,4]", "2 parts"]),
    ("method=[visionzip,fastv] tokens=[36,x]", ["tokens=x", "whole number"]),
    ("method=[visionzip,fastv] tokens=[0,4]", ["method.visionzip.tokens=0", "from 1 on"]),
    ("method=[visionzip,fastv] ratio=[2,0.1]", ["method.visionzip.ratio=2", "at most 1"]),
    ("method=[visionzip,fastv] compression=[3,4]", ["compression=[3,4]", "one number"]),
    ("method=[visionzip,fastv] tokens=[36,16] method.visionzip.tokens=9", ["method.visionzip.tokens=9", "only one"]),
    (
        "method=[visionzip,fastv] method.visionzip.tokens=36 method.visionzip.ratio=0.5",
        ["method.visionzip.ratio=0.5", "only one"],
    ),
    ("batch_size=0", ["batch_size=0"]),
    ("benchmark.limit=0", ["benchmark.limit=0"]),
    ("backbone.dtype=float8", ["backbone.dtype=float8", "bfloat16"]),
    ("dtype=bf61", ["backbone.dtype=bf61", "did you mean 'bf16'"]),
    ("dtype=bf16 backbone.dtype=float16", ["dtype=bf16, backbone.dtype=float16", "give one of the two"]),
    ("attention=spda", ["backbone.attention=spda", "did you mean 'sdpa'"]),
    ("attention=flash", ["backbone.attention=flash", "did you mean 'flash_attention_2'"]),
    ("device_map=atuo", ["backbone.device_map=atuo", "did you mean 'auto'"]),
    ("quantization=4bits", ["backbone.quantization=4bits", "did you mean '4bit'"]),
    ("quantisation=4bit", ["quantisation", "did you mean 'quantization'"]),
    ("backbone.device=gpu", ["backbone.device=gpu", "cuda"]),
    ("backbone.attention=flash", ["backbone.attention=flash", "sdpa"]),
    ("layer_scale=8", ["layer_scale=8", "auto"]),
    ("resume=maybe", ["resume=maybe"]),
    ("output_dir=${nowhere}", ["nowhere"]),
]
LLAVA = "training=llava training.stages.0.data.path=x"
TRAINING = [
    ("training.store=nope", ["training.store=nope", "bfloat16, float32"]),
    ("training.workers=-1", ["training.workers=-1", "from 0 on"]),
    ("training.log=tensorboard", ["training.log=tensorboard", "a list of names"]),
    ("training.data=files", ["training.data=files", "keys with values"]),
    ("training.stages=2", ["training.stages=2", "a list of stages"]),
    ("training.stages=[{name:a,lr:1,steps:1},{name:a,lr:1,steps:1}]", ["training.stages", "one name"]),
    ("training.stages=[{name:a,steps:1}]", ["training.stages.0.lr=null", "above 0"]),
    ("training.lora={alpha:2}", ["training.lora.rank=null", "from 1 on"]),
    ("training.data.questions=-1", ["training.data.questions=-1", "from 1 on"]),
    ("training.data.batch_size=0", ["training.data.batch_size=0", "1 or more"]),
    ("training.data.contrastive=nan", ["training.data.contrastive=nan", "from 0 on"]),
    ("training.data.weights.existence=nan", ["training.data.weights", "weights from 0 on"]),
    (
        f"{LLAVA} training.data.path=x training.data.max_skipped=-1",
        ["training.data.max_skipped=-1", "a share of the samples below 1"],
    ),
    (f"{LLAVA} training.data.path=3", ["training.data.path=3", "a file, or a list of files"]),
    ("training.stages.0.bf16=abc", ["training.stages.0.bf16=abc", "true, false"]),
    ("training.stages.0.lr=nan", ["training.stages.0.lr=nan", "a number above 0"]),
    ("training.stages.0.lr=abc", ["training.stages.0.lr=abc", "a number above 0"]),
    ("+training.stages.0.betas=[1]", ["training.stages.0.betas=[1]", "two numbers"]),
    ("+training.stages.0.betas=[0.9,1]", ["training.stages.0.betas=[0.9, 1]", "below 1"]),
    ("training.stages.0.train=method", ["training.stages.0.train=method", "a list of names"]),
    ("training.stages.0.name=../../x", ["training.stages.0.name=../../x", "letters, digits"]),
    ("training.stages.0.name=a/b", ["training.stages.0.name=a/b", "letters, digits"]),
    ("training.stages.0.name=..", ["training.stages.0.name=..", "letters, digits"]),
    ("seed=18446744073709551616", ["seed=18446744073709551616", "0 to 4294967295"]),
    ("seed=-1", ["seed=-1", "0 to 4294967295"]),
]
FILES = [
    ("checkpoint=nan", ["checkpoint=nan", "no such folder"]),
    ("checkpoint=3", ["checkpoint=3", "no such folder"]),
    ("checkpoint=does/not/exist", ["checkpoint=does/not/exist", "no such folder"]),
    ("benchmark=llava benchmark.data=does/not/exist", ["benchmark.data=does/not/exist", "no such"]),
    ("action=report report.inputs=[does/not/exist]", ["does/not/exist"]),
    ("action=report", ["no results"]),
]


TRAINING_COMMANDS = [(f"action=train method=victor tokens=16 {command}", words) for command, words in TRAINING]


def complaint(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr says to `command`, after checking that it is one line and that the exit code is 2."""
    code = main(command.split())
    err = capsys.readouterr().err
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.mark.parametrize(
    ("command", "words"),
    KEYS + NAMES + VALUES + FILES + TRAINING_COMMANDS,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_one_line(command: str, words: list[str], capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    err = complaint(command, capsys)
    for word in words:
        assert word in err


def test_output_dir_that_is_a_file(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    assert "is a file" in complaint("output_dir=taken", capsys)
    assert "taken" in complaint("-m output_dir=taken tokens=4,16", capsys)


@pytest.mark.parametrize("command", ["token=16", "method=fastvv tokens=16"])
def test_from_the_shell(command: str, tmp_path: Path) -> None:
    """As a user meets it: a process of its own, within 5 s, and nothing left behind."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vtc", *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


def test_a_bad_value_in_a_sweep_is_found_before_any_job(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'victor'" in complaint("-m method=fastv,victr tokens=4,16", capsys)
    assert not list(tmp_path.iterdir())


# Mistakes that only a method and a backbone together show: `vtc.assemble.plan`, from config.json alone ----------------

TINY = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 4,
    "image_seq_length": 144,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 128,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 96,
        "patch_size": 8,
        "projection_dim": 32,
    },
}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
PLANS = [
    ("method=fastv tokens=200", ["tokens=200", "fastv", "144"]),
    ("method=victor tokens=145", ["tokens=145", "victor", "144"]),
    ("method=[divprune,fastv] tokens=[16,36]", ["tokens=36", "divprune+fastv", "1 to 16"]),
    ("method=[divprune,fastv] tokens=[145,36]", ["tokens=145: divprune", "1 to 144"]),
    ("method=[divprune,avgpool] tokens=16", ["method=avgpool", "rectangular grid", "pocket after divprune", "dims=1"]),
    ("method=[fastv,divprune] tokens=16", ["divprune acts before layer 0", "put divprune first"]),
    ("method=[divprune,fastervlm] tokens=16", ["fastervlm", "after divprune", "put fastervlm first"]),
    ("method=[fastv,fastv] tokens=16", ["fastv2 reads attention of layer 1", "method.fastv2.layer"]),
    ("method=[divprune,victor] tokens=16", ["victor", "needs training"]),
    ("method=[divprune,fastv] tokens=16 method.fastv.layer=40", ["method.fastv.layer=40"]),
    ("method=[tome,tome] tokens=100", ["tome"]),
    ("method=[random,fastv]", ["random has no budget", "tokens="]),
    ("method=[divprune,fastv] flops=0.01", ["flops=0.01", "divprune+fastv"]),
    ("method=none tokens=16", ["tokens=16", "none", "144"]),
    ("method=avgpool tokens=144 method.dims=3", ["dims=3"]),
    ("method=fastv tokens=16 method.layer=40", ["layer=40"]),
    ("method=fastv tokens=16 method.layer=6 layer_scale=none", ["layer=6"]),
    ("method=fastv tokens=16 +method.layr=2", ["method.layr=2", "did you mean 'layer'"]),
    ("method=fastv compression=40", ["compression=40", "fastv"]),
    ("method=fastv flops=0.0001", ["flops=0.0001", "fastv"]),
    ("method=victor tokens=16 checkpoint=null", ["method=victor", "action=train"]),
    ("method=victor tokens=16 checkpoint=fwd2bot-16", ["fwd2bot", "method=victor"]),
    ("method=fwd2bot tokens=4 checkpoint=fwd2bot-16", ["tokens=16", "tokens=4"]),
    ("method=fwd2bot tokens=16 checkpoint=empty", ["checkpoint", "empty", "manifest.json"]),
    ("method=fwd2bot tokens=16 checkpoint=other", ["backbone=llava15_7b", "backbone=pocket"]),
    ("backbone.pretrained=./nowhere", ["backbone.pretrained=./nowhere", "config.json"]),
    ("pretrained=./nowhere", ["backbone.pretrained=./nowhere", "config.json"]),
    ("pretrained=llama", ["a llama model", "llava"]),
    ("pretrained=model", ["backbone.pretrained=model", "no weights"]),
    ("pretrained=bin", ["backbone.pretrained=bin", "only pytorch_model.bin", "safetensors only"]),
    ("pretrained=shards", ["backbone.pretrained=shards", "1 of its 2 weight files", "model-2.safetensors"]),
    ("device=cuda:99", ["backbone.device=cuda:99", "CUDA"]),
    ("device=cpu device_map=auto", ["backbone.device=cpu, backbone.device_map=auto", "one of the two"]),
    ("device=cpu attention=flash_attention_2", ["flash_attention_2", "CUDA GPU", "sdpa, eager"]),
    ("action=train method=victor tokens=4 quantization=4bit", ["quantization=4bit", "not to be trained"]),
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch) -> Path:
    """A folder with the configuration of a small LLaVA and a few checkpoints without weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(TINY))
    manifest = {"backbone": "pocket", "method": "fwd2bot", "tokens": 16, "options": {}}
    for name, content in (("fwd2bot-16", manifest), ("other", manifest | {"backbone": "llava15_7b"}), ("empty", None)):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "manifest.json").write_text(json.dumps(content))
    for name in ("bin", "shards", "llama"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(TINY | ({} if name != "llama" else LLAMA)))
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"")
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "shards" / "model-1.safetensors").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(("command", "words"), PLANS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_the_backbone_and_the_method_can_not_do(command: str, words: list[str], workplace: Path, capsys) -> None:
    pretrained = [] if "pretrained" in command else ["backbone.pretrained=model"]
    err = complaint(" ".join([command, *pretrained]), capsys)
    for word in words:
        assert word in err


def test_a_budget_from_the_shell(workplace: Path) -> None:
    """The slowest of them: budgets are the methods' own to judge, which imports torch; and little more than that."""

    def processor_seconds(*command: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        """Those on the clock depend on what else the machine is doing."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done

    spent, done = processor_seconds("-m", "vtc", "method=fastv", "tokens=200", "backbone.pretrained=model")
    assert done.returncode == 2 and "tokens=200" in done.stderr and "Traceback" not in done.stderr
    importing, _ = processor_seconds("-c", "import torch")
    assert spent < 2 * importing
