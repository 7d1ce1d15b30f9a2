"""Layers on other depths, and LLaVolta's stages."""

from __future__ import annotations

import pytest
import yaml

from vtc.cli import main
from vtc.configuration import choices, parse
from vtc.errors import UserError
from vtc.interface import resolve_layer, scaled_layer
from vtc.methods.stages import SCHEMES, CompressionStage, parse_stages, stage_at


def test_layers_scale_with_depth_by_one_rule() -> None:
    assert [scaled_layer(k, 32) for k in range(32)] == list(range(32))
    assert [scaled_layer(k, 40) for k in (0, 1, 2, 3, 16)] == [0, 1, 3, 4, 20]
    assert [scaled_layer(k, 6) for k in (0, 1, 2, 3, 16)] == [0, 1, 2, 2, 3]


def test_layers_that_do_not_exist_are_refused() -> None:
    assert resolve_layer(16, 6) == 3 and resolve_layer(5, 6, "none") == 5
    for layer, scale, lowest in ((32, "auto", 0), (6, "none", 0), (-1, "auto", 0), (0, "auto", 1)):
        with pytest.raises(UserError, match=f"method.layer={layer}: this decoder has 6 layers; allowed: {lowest} to"):
            resolve_layer(layer, 6, scale, lowest)
    for layer in (1.5, True, "2", None):
        with pytest.raises(UserError, match="a whole number"):
            resolve_layer(layer, 6)
    with pytest.raises(UserError, match="layer_scale"):
        resolve_layer(2, 6, "half")


def test_the_six_schemes_of_table_1() -> None:
    expected = {
        "single": [None],
        "two": [(2, 8), None],
        "three_deeper": [(2, 8), (16, 8), None],
        "three_wider": [(2, 8), (2, 2), None],
        "four_wider_then_deeper": [(2, 8), (2, 2), (16, 2), None],
        "four_deeper_then_wider": [(2, 8), (16, 8), (16, 2), None],
    }
    found = {n: [(s.layer, s.stride) if s.compresses else None for s in stages] for n, stages in SCHEMES.items()}
    assert found == expected
    for stages in SCHEMES.values():
        assert all(s.share == pytest.approx(1 / len(stages)) for s in stages)
        assert not stages[-1].compresses  # the last stage is the model as it is used


def test_stages_count_optimizer_steps() -> None:
    stages = SCHEMES["four_wider_then_deeper"]
    names = [stages.index(stage_at(stages, step, 10)) for step in range(10)]
    assert names == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert [stages.index(stage_at(stages, s, 4)) for s in range(4)] == [0, 1, 2, 3]
    assert stage_at(stages, 99, 10) is stages[-1]
    thirds = SCHEMES["three_wider"]
    assert [thirds.index(stage_at(thirds, s, 9)) for s in range(9)] == [0] * 3 + [1] * 3 + [2] * 3


def test_stages_of_ones_own() -> None:
    stages = parse_stages([{"layer": 2, "stride": 8, "share": 0.5}, {"layer": None, "stride": None}])
    assert stages == (CompressionStage(2, 8, 0.5), CompressionStage(None, None, 0.5))
    assert parse_stages("two") is SCHEMES["two"]
    for wrong, text in (
        ("twoo", "did you mean 'two'"),
        ([{"layer": 2}], "give both"),
        ([{"layer": 2, "strides": 8}], "did you mean 'stride'"),
        ([{"share": 0.5}], "sum to 1"),
        ([{"layer": 2, "stride": 0}], "1 or more"),
        ([], "at least one"),
    ):
        with pytest.raises(UserError, match=text):
            parse_stages(wrong)


# conf/schedule beside the paper: table 7's splits of two stages.
SPLITS = {"two_25_75": 0.25, "two": 0.5, "two_75_25": 0.75, "two_90_10": 0.9, "two_100_0": 1.0}


def test_the_files_are_the_schemes_of_table_1_and_the_splits_of_table_7() -> None:
    stages = {
        n: parse_stages(yaml.safe_load(f.read_text())["stages"]) for n, f in choices.configured("schedule").items()
    }
    assert set(stages) == {*SCHEMES, *SPLITS}
    for name, scheme in SCHEMES.items():
        assert stages[name] == scheme
    for name, share in SPLITS.items():
        assert (stages[name][0].layer, stages[name][0].stride, stages[name][0].share) == (2, 8, share)
        assert not any(stage.compresses for stage in stages[name][1:])


def test_a_schedule_reaches_the_method() -> None:
    assert parse(["method=llavolta"]).method.options["scheme"] == "four_wider_then_deeper"
    assert parse(["method=llavolta", "method.scheme=two"]).method.options["scheme"] == "two"
    scheme = parse(["method=llavolta", "schedule=two_25_75"]).method.options["scheme"]
    assert parse_stages(scheme) == (CompressionStage(2, 8, 0.25), CompressionStage(None, None, 0.75))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("schedule=two method=fastv", ["method=fastv is not trained in stages", "llavolta"]),
        ("schedule=two method=llavolta method.scheme=single", ["give one of the two"]),
        ("schedule=twoo method=llavolta", ["schedule=twoo", "did you mean 'two'"]),
    ],
)
def test_a_schedule_that_says_nothing_is_refused(command: str, words: list[str], capsys) -> None:
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and all(word in err for word in words), err
