"""Presets for `accelerate launch`, read by accelerate itself; what processes beside the first say."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from vtc import shipped
from vtc.cli import command

KINDS = {
    "single": "NO",
    "ddp": "MULTI_GPU",
    "fsdp": "FSDP",
    "deepspeed_zero2": "DEEPSPEED",
    "deepspeed_zero3": "DEEPSPEED",
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_takes_the_preset(name):
    config = load_config_from_file(str(shipped.path("conf/accelerate") / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "no", "a stage says bf16 itself"
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
    if name.startswith("deepspeed"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


def test_every_preset_is_tried():
    assert {file.stem for file in shipped.path("conf/accelerate").glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_the_first_process_alone_talks_and_all_end_alike(capsys, monkeypatch, rank):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert command.main(["--version"]) == 0
    assert command.main(["--nonsense"]) == command.MISTAKE
    told = capsys.readouterr()
    assert bool(told.out) == bool(told.err) == (rank != "1")
