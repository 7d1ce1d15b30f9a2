"""The tables of a result on the screen and in `summary.md`."""

from __future__ import annotations

import copy

import pytest
from rich.console import Console

from vtc import results, shipped
from vtc.evaluation import display
from vtc.statistics import Z

RESULT = results.load(shipped.root() / "benchmarks/results/pocket2/rows/fastv-16-s0/result.json")


def printed(result, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(display.scores(result, width))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 150])
def test_scores_fit_the_screen_and_say_what_is_left_out(width):
    text = printed(RESULT, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert ("bag" in text.splitlines()[1]) == (width == 150)
    assert ("left out for want of width: metric, bag" in " ".join(text.split())) == (width == 80)
    for row in RESULT["scores"]:
        assert row["task"] in text and f"{row['value']:.3f} ±{Z * row['stderr']:.3f}" in text


def test_one_meaning_of_plus_minus():
    assert display.score(0.5, 0.1) == "0.500 ±0.196" and display.score(1500.0, 10.0) == "1500.0 ±19.6"
    assert display.INTERVAL in printed(RESULT, 150) and display.INTERVAL in display.markdown(RESULT)


def test_agreement_is_shown_where_a_result_has_it():
    result = copy.deepcopy(dict(RESULT))
    for row in (*result["scores"], *result["means"].values()):
        row.pop("agreement", None)
    assert "agreement" not in display.markdown(result)
    result["scores"][0]["agreement"] = 0.875
    assert "agreement" in display.table(result)[0] and "87.5 %" in display.markdown(result)


def test_pocket_says_what_it_knows():
    """On its own questions that it is a miniature, on a user's that it knows its own scenes only."""
    result = copy.deepcopy(dict(RESULT))
    assert display.MINIATURE in display.remarks(result) and display.OWN_DATA not in display.remarks(result)
    result["config"]["benchmark"]["name"] = "jsonl"
    assert display.OWN_DATA in display.remarks(result) and display.MINIATURE not in display.remarks(result)
    result["backbone"]["name"] = "llava15_7b"
    assert display.OWN_DATA not in display.remarks(result)


def test_a_control_says_so():
    result = copy.deepcopy(dict(RESULT))
    assert not any("picture" in line for line in display.remarks(result))
    result["config"]["benchmark"]["picture"] = "grey"
    assert any(line.startswith("every picture was grey") for line in display.remarks(result))
