"""The table of methods and families says what the contracts run, and why the others aren't run."""

from __future__ import annotations

import functools

import pytest
import support
from method_cases import BACKBONES, CASES

from vtc.configuration.choices import configured
from vtc.registry import methods, parts


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, support.Compatibility]]:
    return support.table()


@functools.cache
def family_of(name: str) -> str:
    """Of a backbone of the contracts."""
    return BACKBONES[name]().model_class.removesuffix("ForConditionalGeneration")


def test_every_method_and_every_backbone_is_in_it(table) -> None:
    assert list(table) == methods.names()
    families = support.families()
    assert sorted(n for names in families.values() for n in names) == [*configured("backbone")]
    assert all([*verdicts] == [*families] for verdicts in table.values())
    assert all(verdict.works for verdict in table["none"].values())
    assert all(verdict.answer == support.YES for verdict in (row["Llava"] for row in table.values()))


def test_what_the_contracts_run_works_and_nothing_else_does(table) -> None:
    """Both ways, for each family that the contracts know: a method stands in a case of its own exactly if it works."""
    for family in {family_of(b) for b in BACKBONES}:
        alone = {case.name for b, case in CASES if family_of(b) == family and len(parts(case.name)) == 1}
        works = {method for method, verdicts in table.items() if verdicts[family].works}
        assert works <= alone, f"{family}: no contract runs {works - alone}"
        for method in alone - works:  # with options of its own it may: avgpool in one dimension
            assert "use dims=1" in table[method][family].detail, f"{method} on {family}"


def test_reasons_are_the_methods_own(table) -> None:
    for method in ("fastervlm", "visionzip", "vispruner", "prumerge"):  # CLS or not, tiles or not, merged or not
        assert {f for f, verdict in table[method].items() if verdict.answer != support.YES} == {"VideoLlava"}
    assert table["fastervlm"]["VideoLlava"].answer == "it reads the vision tower, and the backbone has 2 of them"
    one = table["tome"]["InternVL"]
    assert one.answer == "patches that merge in the tower leave no grid"
    assert one.detail == "it projects squares of 2×2 patches behind it"
    one = table["tokenpacker"]["InternVL"]
    assert one.answer == "it needs one visual token a patch" and one.detail == "it has 256 of 1024"
    assert table["m3"]["SmolVLM"].answer == support.FIXED, "its pictures have a grid where they are one tile"
    assert table["fastv"]["SmolVLM"].answer == support.YES


def test_the_page_shows_it(table, monkeypatch) -> None:
    monkeypatch.setattr(support, "table", lambda: table)
    text = support.part()
    for method, verdicts in table.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{method}` |"))
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert len(cells) == len(verdicts)
        for cell, one in zip(cells, verdicts.values(), strict=True):
            if one.works:
                assert cell == one.answer
            else:
                letter = cell.removeprefix("no (").removesuffix(")")
                assert f"- {letter}: {one.answer}" in text
