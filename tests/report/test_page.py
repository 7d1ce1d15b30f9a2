"""The report's page in a browser: headless Chromium does what a reader would, and the numbers are those of the results.

Where there is no browser (`reader.py`) these tests are skipped, unless `VTC_BROWSER_REQUIRED=1`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fabricated import make
from PIL import Image, ImageDraw
from reader import NEEDED, Reader

from vtc import results
from vtc.cli import main
from vtc.data.pictures import hash_picture

EVIL = '"><img src=x onerror=window.hurt=1><script>window.hurt=1</script>{{7*7}}'
pytestmark = NEEDED

TASK, SIDE, PATCHES = "own_exact_match", 80, 8
OBJECTS = [
    (1, 2),
    (6, 5),
    (3, 7),
    (0, 0),
    (7, 3),
    (4, 4),
]  # row and column of the patch that each picture's object is on
RIGHT = {  # method, tokens → which of the six questions it gets right
    ("none", None): "111110",
    ("fastv", 4): "110000",
    ("fastv", 16): "111000",
    ("avgpool", 4): "001000",
    ("avgpool", 16): "111010",
    ("voco", 16): "100000",
}


def images_of(method: str, tokens: int | None, place: tuple[int, int]) -> list[dict]:
    """What a run kept of a picture: FastV the object's patch and its neighbours, avgpool all of it in groups."""
    count, at = PATCHES**2, place[0] * PATCHES + place[1]
    if method == "fastv":
        held = {(at + k) % count for k in range(tokens)}
        holders = [t if t in held else -1 for t in range(count)]
    elif method == "avgpool":
        holders = [t - t % (count // tokens) for t in range(count)]
    else:
        holders = list(range(count)) if method == "none" else [-1] * count
    made = tokens if method == "voco" else 0
    region = {"rows": PATCHES, "columns": PATCHES, "box": [0.0, 0.0, 1.0, 1.0], "newline": False}
    return [{"holders": holders, "made": made, "regions": [region]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six runs on six pictures with a red object on a patch each; a prediction and an option of a method are evil."""
    root = tmp_path_factory.mktemp("page")
    (root / "runs").mkdir()
    lines, hashes = [], []
    for number, (row, column) in enumerate(OBJECTS):
        picture, step = Image.new("RGB", (SIDE, SIDE), (90, 120, 90)), SIDE // PATCHES
        x, y = column * step, row * step
        ImageDraw.Draw(picture).rectangle((x, y, x + step - 1, y + step - 1), fill="red")
        picture.save(root / f"{number}.png")
        hashes.append(hash_picture(picture))
        line = {"id": f"q{number}", "image": f"{number}.png", "question": f"what is in {number}?", "answer": "red"}
        lines.append(json.dumps(line))
    (root / "questions.jsonl").write_text("\n".join(lines))
    benchmark = {
        "name": "jsonl",
        "tasks": [TASK],
        "data": str(root / "questions.jsonl"),
        "metric": "exact_match",
        "limit": None,
        "prompt": None,
    }
    for (method, tokens), right in RIGHT.items():
        made = make(root / "made", method, tokens, 0.5, benchmark=benchmark)
        path = Path(shutil.move(made, root / f"runs/{method}-{tokens}"))
        scores = np.array([float(r) for r in right])
        result = json.loads((path / results.RESULT).read_text())
        row = {"task": TASK, "group": "understanding", "metric": "exact_match", "value": scores.mean(), "stderr": 0.1}
        row |= {"n": 6, "baseline": 5 / 6, "retained": scores.mean() / (5 / 6), "data": "abc"}
        result["scores"] = [row]
        if method != "none":
            result["baseline"] = {"id": "noneNone"}
        if method == "voco":
            result["config"]["method"]["note"] = EVIL
            result["run"]["command"] = EVIL
        result["efficiency"] |= {
            "kv_cache_bytes": 1000 * (tokens or 64),
            "ttft_ms": {"median": 10.0 + (tokens or 64)},
            "throughput": {"8": 90.0 / (tokens or 64)},
        }
        results.write(path, result)
        rows = []
        for i, r in enumerate(scores):
            said = EVIL if (method, i) == ("voco", 1) else "red" if r else "blue"
            row = {"task": TASK, "id": f"q{i}", "prediction": said, "target": "red", "score": r, "stratum": ""}
            row |= {"question": f"what is in {i}?", "document": f"{TASK}:{i}", "pictures": [hashes[i]]}
            rows.append(row | {"images": images_of(method, tokens, OBJECTS[i])})
        rows[5]["error"] = EVIL if method == "voco" else None
        results.write_samples(path, rows)
    words = [f"report.inputs=[{root / 'runs'}]", f"report.output={root / 'report'}", 'report.title="A <b>title</b>"']
    assert main(["action=report", *words]) == 0
    return root


@pytest.fixture
def reader(browser, folder):
    reader = Reader(browser, folder / "report/index.html")
    yield reader
    reader.done()


def test_leaderboard_filters_sorts_searches_and_remembers(reader, browser, folder) -> None:
    page = reader.page
    assert page.inner_text("h1") == "A <b>title</b>"
    assert page.input_value("#budget") == "16", "three methods have it, two have 4"
    assert reader.names() == ["none", "avgpool", "fastv", "voco"]
    ranks = [row[0] for row in reader.rows()]
    assert ranks == ["–", "1", "1", "1"], "six questions tell none of them apart"
    assert reader.rows()[1][3] == "0.667" and reader.rows()[1][4] == "80.0 %" and reader.rows()[1][5] == "83.3 %"
    page.select_option("#budget", "4")
    page.wait_for_function("document.querySelectorAll('#board-table tbody tr').length === 3")
    assert reader.names() == ["none", "fastv", "avgpool"]
    page.select_option("#budget", "all")
    page.wait_for_function("document.querySelectorAll('#board-table tbody tr').length === 6")
    page.wait_for_timeout(600)  # the table is made anew; a click on the old one would count twice
    page.click("#board-table th:has-text('tokens')")
    page.wait_for_selector("#board-table th[aria-sort='ascending']:has-text('tokens')")
    tokens = [row[2] for row in reader.rows()]
    assert tokens == ["4", "4", "16", "16", "16", "64"] or tokens == ["4", "4", "16", "16", "16", "144"]
    page.fill("#search", "fast")
    page.wait_for_function("document.querySelectorAll('#board-table tbody tr').length === 2")
    assert set(reader.names()) == {"fastv"}
    address = page.evaluate("location.hash")
    assert "search=fast" in address and "budget=all" in address and "sort=tokens.asc" in address
    other = Reader(browser, folder / "report/index.html", address)
    assert other.rows() == reader.rows(), "the address shows the same to somebody else"
    other.done()
    page.fill("#search", "")
    page.wait_for_function("document.querySelectorAll('#board-table tbody tr').length === 6")
    page.select_option("#trained", "yes")
    page.wait_for_function("document.querySelectorAll('#board-table tbody tr').length === 1")
    assert reader.names() == ["none"], "none of these has trained weights"
    page.select_option("#trained", "no")
    page.wait_for_function("document.querySelectorAll('#board-table tbody tr').length === 6")
    page.select_option("#group", TASK)
    page.click("text=Columns")
    page.wait_for_timeout(600)  # the list fades in
    page.click(".dt-button-collection button:has-text('± 95 %')")
    assert "± 95 %" in page.inner_text("#board-table thead")


def test_every_number_leads_to_its_run(reader) -> None:
    text = reader.opened("tr:has-text('voco')")
    assert (
        EVIL in text and "result.json" in text and "voco16" in text and '"versions"' in text and '"git_commit"' in text
    )
    assert "run=" in reader.page.evaluate("location.hash")
    reader.page.click("#run button.close")
    assert not reader.page.is_visible("#run")


def test_figures(reader) -> None:
    page = reader.page
    traces = {t["meta"]: t for t in reader.drawn("pareto") if t["meta"]}
    assert set(traces) == {"fastv", "avgpool", next(m for m in traces if m.startswith("voco"))}
    assert traces["fastv"]["x"] == [4, 16] and traces["fastv"]["y"] == pytest.approx([2 / 6, 3 / 6], abs=1e-4)
    (front,) = [t for t in reader.drawn("pareto") if t["name"] == "front"]
    assert front["x"] == [4, 16] and front["y"] == pytest.approx([2 / 6, 4 / 6], abs=1e-4)
    for axis, cost in (
        ("bytes", [4000, 16000]),
        ("ttft", [14, 26]),
        ("throughput", [5.625, 22.5]),
        ("flops", [0.31944, 0.37778]),
    ):
        page.select_option("#axis", axis)
        page.wait_for_timeout(200)
        assert sorted({t["meta"]: t for t in reader.drawn("pareto")}["fastv"]["x"]) == pytest.approx(cost, rel=1e-3)
    page.select_option("#axis", "tokens")
    page.select_option("#measure", "retained")
    page.wait_for_timeout(200)
    assert {t["meta"]: t for t in reader.drawn("pareto")}["avgpool"]["y"] == pytest.approx([1 / 5, 4 / 5], abs=1e-4)
    page.click("#chips button:has-text('fastv')")
    assert "hold=fastv" in page.evaluate("location.hash")
    page.click("#chips button:has-text('fastv')")
    page.wait_for_timeout(200)
    assert "fastv" not in {t["meta"] for t in reader.drawn("pareto")} and "hide=fastv" in page.evaluate("location.hash")
    page.click("#chips button:has-text('fastv')")
    box = page.query_selector("#pareto .points path").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#pareto .hoverlayer .hovertext")
    assert "retained" in page.text_content("#pareto .hoverlayer")
    curves = {t["meta"]: t for t in reader.drawn("curves")}
    assert curves["avgpool"]["x"] == [4, 16] and curves["avgpool"]["y"] == pytest.approx([1 / 5, 4 / 5], abs=1e-4)
    (heat,) = reader.drawn("heat")
    assert [v[0] for v in heat["z"]] == pytest.approx([1 / 5, 3 / 5, 4 / 5], abs=1e-4)
    (matrix,) = reader.drawn("matrix")
    assert [[v for v in row if v] for row in matrix["z"]] == [[], [], []], "nothing is told apart"


def test_samples_filter_and_draw_the_kept_tokens(reader) -> None:
    page = reader.page
    assert len(reader.questions()) == 6
    page.select_option("#kind", "none")
    assert reader.questions() == ["what is in 5?"]
    page.select_option("#kind", "only")
    assert reader.questions() == ["what is in 3?"], "avgpool gets number 4"
    page.select_option("#kind", "split")
    page.select_option("#one", label="avgpool, 16 tokens")
    page.select_option("#two", label="fastv, 16 tokens")
    assert reader.questions() == ["what is in 4?"]
    page.select_option("#kind", "")
    page.select_option("#draw", label="fastv, 16 tokens")
    for at, (row, column) in enumerate(OBJECTS):
        sample = page.query_selector(f".sample:has-text('what is in {at}?')")
        first, shot = row * PATCHES + column, sample.query_selector(".shot img").bounding_box()
        square = sample.query_selector(f'rect.kept[data-token="{first}"]').bounding_box()
        step = shot["width"] / PATCHES
        assert square["x"] - shot["x"] == pytest.approx(column * step, abs=1.5)
        assert square["y"] - shot["y"] == pytest.approx(row * step, abs=1.5)
        assert len(sample.query_selector_all("rect.kept")) == 16 and len(sample.query_selector_all("rect.dim")) == 48
        assert "16 of 64 tokens left" in sample.inner_text()
    sample = page.query_selector(".sample")
    sample.query_selector("button.answer:has-text('avgpool')").click()
    assert "16 of 64 tokens left, 16 of them merged" in sample.inner_text()
    sample.query_selector("rect.merged.kept").hover()
    assert len(sample.query_selector_all("rect.over")) == 4, "the four that became this one"
    sample.query_selector("button.answer:has-text('voco')").click()
    assert "16 made of the whole image" in sample.inner_text() and not sample.query_selector_all("rect.kept")
    assert EVIL in page.inner_text("#sample-list"), "as text"


def test_a_phone_sees_scores_and_scrolls_one_way(browser, folder) -> None:
    reader = Reader(browser, folder / "report/index.html", width=390)
    assert reader.page.evaluate("document.documentElement.scrollWidth") == 390
    score = reader.page.query_selector("#board-table td:nth-child(3)").bounding_box()
    assert score["x"] + score["width"] <= 390, "the score is in sight"
    for figure in ("pareto", "curves", "heat", "matrix"):
        reader.drawn(figure)
    reader.opened("tbody tr:nth-child(2)")
    assert reader.page.query_selector("#run").bounding_box()["width"] <= 390
    reader.done()


def test_compare_opens_on_the_samples_that_flipped(browser, folder, capsys) -> None:
    a, b = (folder / f"runs/{method}-16" for method in ("avgpool", "fastv"))
    assert (
        main(
            [
                "action=compare",
                f"a={a}",
                f"b={b}",
                f"output_dir={folder / 'runs'}",
                f"compare.output={folder / 'compare'}",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "1 question flipped" in out
    content = json.loads((folder / "compare/comparison.json").read_text())
    assert content["flipped"] == [{"task": TASK, "id": "q4", "right": "a"}]
    (whole,) = [row for row in content["tasks"] if row["task"] == "all"]
    assert (whole["n"], whole["only_a"], whole["only_b"], whole["p_flips"]) == (6, 1, 0, 1.0)
    assert whole["difference"] == pytest.approx(1 / 6)
    reader = Reader(browser, folder / "compare/index.html")
    assert reader.questions() == ["what is in 4?"]
    reader.done()


@pytest.mark.parametrize(
    ("a", "b", "words"), [("nowhere", "nowhere", "a=nowhere: no such folder, file or run"), (None, None, "a=null")]
)
def test_compare_refuses_in_one_line(folder, capsys, a, b, words) -> None:
    keys = [f"a={a}", f"b={b}"] if a else []
    assert main(["action=compare", *keys, f"output_dir={folder / 'runs'}"]) == 2
    captured = capsys.readouterr()
    assert words in captured.out + captured.err
