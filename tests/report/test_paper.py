"""The papers' numbers, and ours beside them."""

from __future__ import annotations

import csv
import re
from math import isfinite

import pytest
from fabricated import make

from vtc import results, shipped
from vtc.cli import main
from vtc.errors import UserError
from vtc.registry import methods
from vtc.report import paper, view
from vtc.report.collection import collect
from vtc.report.runs import Run

COLUMNS = ["source", "page", "section", "block", "row", "column", "benchmark", "metric", "value", "spread", "unit",
           "backbone", "method", "tokens"]  # fmt: skip
TABLES = {"fwd2bot": range(1, 14), "victor": (1, 2), "llavolta": range(1, 8)}
# Rows whose printed mean isn't that of their printed scores, to the last digit: (printed, recomputed).
UNLIKE = {
    "llavolta_table3": {"Train with compression; Testing with compression: K-Means, Avg.": (57.9, 55.77)},
    "llavolta_table5": {"Light compression in LLM layer 16: stride 8, Avg.": (61.8, 61.72)},
}
MEANS = {"llavolta_table2": 6, "llavolta_table3": 10, "llavolta_table4": 2, "llavolta_table5": 5,
         "llavolta_table6": 12, "victor_table2": 4}  # fmt: skip


def test_every_table_of_the_papers_is_there_in_one_schema():
    files = {file.stem: file for file in shipped.path(paper.FOLDER).glob("*.csv")}
    assert set(files) == set(TABLES)
    for name, numbers in TABLES.items():
        with files[name].open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = list(reader)
        assert reader.fieldnames == COLUMNS
        assert {row["source"] for row in rows} >= {f"table {n}" for n in numbers}
        assert all(re.fullmatch(r"(table|figure) \d+", row["source"]) for row in rows)
        assert all(row["section"] and row["row"] and row["column"] and row["metric"] and row["unit"] for row in rows)
        assert all(row["page"] == "" or row["page"].isdigit() for row in rows)
        cells = [(row["source"], row["block"], row["row"], row["column"]) for row in rows]
        assert len(set(cells)) == len(cells), "a cell is there twice"


def test_what_stands_in_vtcs_words_exists():
    known = {path.stem for path in shipped.path("conf/backbone").glob("*.yaml")}
    suites = "\n".join(path.read_text(encoding="utf-8") for path in shipped.path("conf/benchmark").glob("*.yaml"))
    names = {match.strip() for match in re.findall(r"^ +paper: (.+)$", suites, re.M)} | {"SugarCrepe", ""}
    for number in paper.numbers():
        assert isfinite(number.value) and (number.spread is None or number.spread >= 0)
        assert number.backbone in known | {""} and number.method in {*methods.names(), ""}, number
        assert number.benchmark in names, number
        assert number.share is None or 0 <= number.share <= (1 if number.metric != "CIDEr" else 10), number


def test_printed_means_are_those_of_their_rows():
    counts, unlike = {}, {}
    for reference in paper.references():
        for row, printed, mean in paper.printed_means(paper.of(reference)):
            counts[reference] = counts.get(reference, 0) + 1
            digits = 2 if abs(printed * 10 - round(printed * 10)) > 1e-9 else 1
            if abs(printed - mean) > 0.505 * 10**-digits:
                unlike.setdefault(reference, {})[row] = (printed, pytest.approx(mean, abs=0.006))
    assert counts == MEANS
    assert unlike == UNLIKE


def llava(tmp_path, method="avgpool", tokens=72, value=0.61):
    """A result of LLaVA-1.5 7B on GQA and MME."""
    path = make(tmp_path, method, tokens, 0.9)
    content = results.load(path)
    content = {key: dict(v) if isinstance(v, dict) else v for key, v in content.items()}
    content["backbone"]["name"] = content["config"]["backbone"]["name"] = "llava15_7b"
    about = {"gqa": {"paper": "GQA"}, "mme": {"paper": "MME"}}
    content["config"]["benchmark"] |= {"name": "llavolta13", "tasks": list(about), "about": about}
    row = {"group": "understanding", "metric": "exact_match", "stderr": 0.01, "n": 10, "p_value": None}
    row |= {"baseline": None, "retained": None}
    content["scores"] = [
        {**row, "task": "gqa", "value": value, "scale": 1.0},
        {**row, "task": "mme", "metric": "mme_perception_score", "value": 1500.0, "stderr": 20.0, "scale": 2000.0},
    ]
    return results.write(path, content)


def test_ours_stand_beside_the_same_backbone_method_tokens_and_benchmark(tmp_path):
    run = Run.read(llava(tmp_path))
    header, rows = paper.side_by_side("llavolta_table3", [run])
    mine = {(row[0], row[1]): row[2:] for row in rows if row[-1]}
    row = "Train with compression; Testing with compression: Average Pooling"
    assert mine[row, "GQA"] == ["60.0", "%", "61.00 ±1.96", "+1.00", run.label]
    assert mine[row, "MME"] == ["1450", "of 2000", "1500.00 ±39.20", "+50.00", run.label]
    assert {key[0].partition(": ")[2] for key in mine} == {"Average Pooling"}, "no other method"
    drawn = {number.reference for number, *_ in paper.beside([run])}
    assert {"llavolta_table3", "llavolta_table5"} <= drawn and not any(name.startswith("fwd2bot") for name in drawn)
    other = Run.read(llava(tmp_path / "other", tokens=16))
    assert not [row for row in paper.side_by_side("llavolta_table3", [other])[1] if row[-1]], "other tokens"


def test_the_page_draws_them_behind_ours_in_the_unit_of_the_task(tmp_path):
    llava(tmp_path)
    (setting,), _ = collect([tmp_path])
    drawn = {(row["task"], row["score"], row["tokens"]): row for row in view.printed_view(setting)}
    assert ("gqa", 0.6, 72.0) in drawn and ("mme", 1450.0, 72.0) in drawn
    assert "Average Pooling" in drawn["gqa", 0.6, 72.0]["label"] and "llavolta" in drawn["gqa", 0.6, 72.0]["where"]


def test_every_number_of_retrieval_and_of_hard_captions_has_a_metric_of_ours(tmp_path):
    """Tables 3 and 4 of Fwd2Bot beside a run that has each of its numbers, the benchmarks' own way."""
    path = llava(tmp_path, method="fwd2bot", tokens=16)
    content = dict(results.load(path))
    ways = {"text_to_image": "T2I", "image_to_text": "I2T"}
    metrics = {f"{task}{short}Retrieval": {f"hit_rate_at_{k}": k / 20 for k in (1, 10)}
               for task in ("Flickr30k", "MSCOCO") for short in ways.values()}  # fmt: skip
    metrics["nocaps_retrieval"] = {f"{way}_R@{k}": k / 30 for way in ways for k in (1, 10)}
    kinds = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
    metrics["sugarcrepe"] = {kind: n / 10 for n, kind in enumerate(kinds)}
    row = {**content["scores"][0], "group": "discriminative", "metric": "accuracy", "stderr": None}
    content["scores"] = [{**row, "task": task, "value": 0.5, "metrics": own} for task, own in metrics.items()]
    run = Run.read(results.write(path.parent, content))
    mine = {
        reference: {row[1]: row[4] for row in paper.side_by_side(reference, [run])[1] if row[-1]}
        for reference in ("fwd2bot_table3", "fwd2bot_table4")
    }
    assert len(mine["fwd2bot_table3"]) == 12 and len(mine["fwd2bot_table4"]) == 7
    assert mine["fwd2bot_table3"]["image retrieval Flickr30K R@10"] == "50.00"
    assert mine["fwd2bot_table3"]["text retrieval nocaps R@1"] == "3.33"
    assert mine["fwd2bot_table4"]["Replace Relation"] == "20.00"


def test_a_reference_is_printed_and_written(tmp_path, capsys):
    llava(tmp_path)
    assert main(["action=report", f"output_dir={tmp_path}", "reference=llavolta_table3"]) == 0
    out = capsys.readouterr().out
    assert "llavolta, table 3, page 9, section 4.4" in out and "4 of 160 printed numbers" in out
    assert "| Train with compression; Testing with compression: Average Pooling | GQA | 60.0 | % | 61.00 ±1.96 |" in (
        tmp_path / "report" / "table.md"
    ).read_text(encoding="utf-8")
    assert main(["action=report", f"output_dir={tmp_path}", "reference=fwd2bot_table1"]) == 0
    out = capsys.readouterr().out
    assert "none of the runs here is of its backbone" in out and "TokenPacker, 16" in out


def test_an_unknown_reference_is_one_line(tmp_path, capsys):
    assert main(["action=report", f"output_dir={tmp_path}", "reference=llavolta_table33"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vtc: report.reference=llavolta_table33") and "did you mean 'llavolta_table3'" in err
    with pytest.raises(UserError, match=r"report\.reference=x"):
        paper.of("x")


@pytest.mark.parametrize(("name", "jobs"), [("fwd2bot_table1", 18), ("fwd2bot_table3", 6), ("victor_figure4", 12)])
def test_an_experiment_is_a_sweep_of_one_command(name, jobs, tmp_path, capsys):
    assert main([f"experiment={name}", f"output_dir={tmp_path}", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert f"{jobs} of {jobs} jobs done" in out and out.count("would be written to") == jobs
    assert main([f"experiment={name}", "tokens=4", f"output_dir={tmp_path}", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert f"{jobs // (4 if name == 'victor_figure4' else 3)} of" in out and "tokens 16" not in out
