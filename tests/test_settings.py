"""Every setting says what it may hold, and nothing else gets past `from_mapping`: a new field needs a rule to pass."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from typing import Any

import pytest

from vtc import settings
from vtc.allowed import Allowed
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.job import Job
from vtc.settings import TrainingSettings, from_mapping

NAN, INF = math.nan, math.inf
VALUES: list[Any] = [
    NAN, INF, -INF, -1, 0, 1, 2, 1.5, 1e300, 10**400, True, False, None, "", "abc", "../../x", "a/b", "nan", "x" * 5000,
    "weights", [], [1], [None], [NAN], ["a", 1], [2, 1], {}, {"a": 1}, {"a": NAN}, {1: {}}, b"x", object(), [[]], 2**64,
]  # fmt: skip
SECTIONS = [
    cls
    for _, cls in inspect.getmembers(settings, dataclasses.is_dataclass)
    if cls.__module__.startswith(settings.__name__)
]
NEEDED = {"name": "a", "lr": 0.1, "steps": 1, "rank": 1}  # by sections that can't be without


def is_section(cls: type, field: dataclasses.Field) -> bool:
    """Whether a field holds a section of its own, or several."""
    kind = typing.get_type_hints(cls)[field.name]
    return any(dataclasses.is_dataclass(part) for part in (kind, *typing.get_args(kind)))


FIELDS = [
    pytest.param(cls, field, id=f"{cls.__name__}.{field.name}")
    for cls in (*SECTIONS, Job)
    for field in dataclasses.fields(cls)
    if not is_section(cls, field)
]


def test_all_sections_are_here() -> None:
    names = {"Backbone", "Method", "Benchmark", "Profile", "Report", "Compare", "Ablation", "Store", "NewMethod"}
    names |= {"Data", "Stage", "Lora", "Training", "Visualize", "Demo", "Tune", "Calibrate"}
    assert {cls.__name__ for cls in SECTIONS} == {f"{name}Settings" for name in names} and len(FIELDS) > 90


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_a_setting_has_a_rule_that_holds(cls: type, field: dataclasses.Field) -> None:
    rule = field.metadata.get("allowed")
    assert isinstance(rule, Allowed) and rule.words, "say what it may hold: setting(…, allowed=…)"
    minimum = {key: value for key, value in NEEDED.items() if key in {f.name for f in dataclasses.fields(cls)}}
    default = field.default_factory() if callable(field.default_factory) else field.default
    if default is not dataclasses.MISSING and default != "":
        rule.check(field.name, default)
    for value in VALUES:
        fits = rule.optional if value is None else rule.accepts(value)
        if isinstance(value, float) and not math.isfinite(value):
            assert not fits or rule.words == "anything", f"{field.name} takes {value}"
        try:
            from_mapping(cls, minimum | {field.name: value}, "section")
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 400, str(error)
            assert fits or field.name in str(error)
        else:
            assert fits, f"{field.name}={value} got past its rule {rule.words!r}"


NUMBERS = ("batch_size", "workers", "questions", "keep", "accumulate", "rank", "steps", "epochs", "lr", "image_size")


@pytest.mark.parametrize(("cls", "field"), [p for p in FIELDS if p.values[1].name in NUMBERS])
def test_no_number_is_below_its_least(cls: type, field: dataclasses.Field) -> None:
    if field.name != "image_size":
        assert not any(field.metadata["allowed"].accepts(value) for value in (-1, -0.5, NAN, INF, "1", [1], 10**400))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value)[:12])
def test_sections_of_a_recipe_hold_what_they_must(value: Any) -> None:
    """Also where a whole section is something else, and in the middle of a list of stages."""
    stage = {"name": "a", "lr": 0.1, "steps": 1}
    for recipe in (
        {"data": value}, {"lora": value}, {"stages": value}, {"stages": [stage, value]}, {"log": value},
        {"stages": [stage | {"data": value}]}, {"stages": [stage | {"data": {"sources": value}}]},
        {"stages": [stage | {"data": {"weights": value}}]}, {"stages": [stage, stage | {"name": value}]},
    ):  # fmt: skip
        try:
            TrainingSettings.of({"stages": [stage], **recipe})
        except UserError as error:
            assert "\n" not in str(error), str(error)


@pytest.mark.parametrize(
    "command",
    [
        "output_dir=null", "output_dir={a:1}", "output_dir=[]",
        "checkpoint=''", "training=null", "training.recipe=null", "training.recipe={}", "training.recipe=nan",
        "training.folder=[a]", "training.folder=''", "training.stages.0.name=1",
        "training.stages.0.name=weights", "training.stages.0.name=null", "training.stages.0.steps=99999999999999999999",
        "training.workers=100000", "+training.data.mix={caption:nan}", "+training.data.max_length=-1",
        "+training.stages.0.epochs=1e300", "training.lora={rank:99999999}", "training.lora={rank:1,alpha:9999999999}",
        "training.data.questions=1000000", "training.data.batch_size=nan", "training.stages.0.bf16=maybe",
    ],
)  # fmt: skip
def test_values_that_the_command_line_refuses(command: str) -> None:
    key = command.partition("=")[0].lstrip("+").removesuffix(".0.name").removesuffix(".0.steps")
    with pytest.raises(UserError) as error:
        parse(["action=train", "method=victor", "tokens=16", command])
    assert "\n" not in str(error.value) and key in str(error.value)
