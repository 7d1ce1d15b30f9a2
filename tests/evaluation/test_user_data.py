"""Questions of one's own: what a file may hold, how an answer is scored, and both through the real lmms-eval."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from specs import spec_of

from vtc.cli.command import main
from vtc.errors import UserError
from vtc.evaluation import harness
from vtc.evaluation.sources import source_from, source_of, user_data, user_questions
from vtc.settings import BenchmarkSettings

ROWS = {
    "exact_match": [
        {"image": "0.png", "question": "What is it?", "answer": "a cat"},
        {"images": ["1.png", "2.png"], "question": "Which is red?", "answers": ["the first", "first"], "id": "mine"},
        {"image": "2.png", "question": "How many?", "answer": 3},
    ],
    "vqa_accuracy": [
        {"image": "0.png", "question": "What is it?", "answers": ["cat"] * 10},
        {"image": "1.png", "question": "What is it?", "answers": ["dog"] * 4},
    ],
    "anls": [{"image": "0.png", "question": "Which year?", "answers": ["1987", "in 1987"]}],
    "choice": [
        {"image": "0.png", "question": "Where?", "options": ["left", "right"], "answer": "right"},
        {"image": "1.png", "question": "Where?", "options": ["left", "right", "above"], "answer": "c"},
    ],
}


@pytest.fixture
def write(tmp_path: Path):
    """`write(rows)`: a JSONL file with three images beside it."""
    (tmp_path / "data").mkdir()
    for n in range(3):
        Image.new("RGB", (20, 20), (80 * n, 0, 0)).save(tmp_path / "data" / f"{n}.png")

    def make(rows: list, name: str = "my.jsonl") -> Path:
        file = tmp_path / "data" / name
        file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n\n")
        return file

    return make


def section(file: Path, metric: str = "exact_match", **other) -> dict:
    return {"name": "jsonl", "metric": metric, "data": str(file), "prompt": None, **other}


def table(benchmark: dict):
    return source_of(BenchmarkSettings(**benchmark)).table("own")


# ---------------------------------------------------------------------- the harness
@pytest.mark.parametrize("metric", user_questions.METRICS)
def test_right_answers_score_one_and_wrong_ones_nothing(metric, write, oracle) -> None:
    file, task = write(ROWS[metric]), f"own_{metric}"
    manager = harness.task_manager([task])
    right = harness.run_task(oracle(True), spec_of(task, **section(file, metric)), manager)
    assert right.value == pytest.approx(1.0) and right.n == len(ROWS[metric]) and right.metric == metric
    assert right.floors == {"blind": None, "bag": None}
    wrong = harness.run_task(oracle(False), spec_of(task, **section(file, metric)), manager)
    assert wrong.value == 0.0 and [s.score for s in wrong.samples] == [0.0] * len(ROWS[metric])


def test_several_images_ids_and_prompts_arrive(write, oracle) -> None:
    seen = []

    class Spy(oracle):  # type: ignore[misc, valid-type]
        def _generate(self, questions):
            seen.extend(questions)
            return super()._generate(questions)

    manager = harness.task_manager(["own_exact_match"])
    prompt = "Look. {question} In one word."
    spec = spec_of("own_exact_match", **section(write(ROWS["exact_match"]), prompt=prompt))
    run = harness.run_task(Spy(), spec, manager)
    assert [s.id for s in run.samples] == ["1", "mine", "3"] and run.samples[1].target == "the first"
    by_index = {q.index: q for q in seen}
    assert [len(by_index[i].images) for i in range(3)] == [1, 2, 1]
    assert by_index[1].images[1].getpixel((0, 0)) == (160, 0, 0), "in the order of the file"
    assert by_index[0].text.strip() == "Look. What is it? In one word."


def test_a_broken_image_is_one_bad_sample(write, oracle) -> None:
    file = write([*ROWS["exact_match"], {"image": "gone.png", "question": "?", "answer": "no"}])
    (file.parent / "0.png").write_bytes(b"not an image")
    spec = spec_of("own_exact_match", **section(file))
    run = harness.run_task(oracle(), spec, harness.task_manager(["own_exact_match"]))
    assert {b["id"] for b in run.bad} == {"1", "4"} and run.n == 2 and run.value == 1.0


def test_a_folder_of_parquet_files_is_a_data_set(tmp_path: Path, oracle) -> None:
    import datasets

    images = [Image.new("RGB", (16, 16), (n, 0, 0)) for n in (10, 20)]
    rows = {"picture_of": images, "q": ["Where?", "Who?"], "said": [["here"] * 5, ["me", "me", "me", "me", "you"]]}
    set_ = datasets.Dataset.from_dict(rows).cast_column("picture_of", datasets.Image())
    (tmp_path / "set" / "data").mkdir(parents=True)
    set_.to_parquet(tmp_path / "set" / "data" / "test-00000.parquet")
    columns = {"image": "picture_of", "question": "q", "answer": "said", "options": None, "id": None}
    benchmark = section(tmp_path / "set", "vqa_accuracy", name="hf", split="test", columns=columns)
    spec = spec_of("own_vqa_accuracy", **benchmark)
    run = harness.run_task(oracle(), spec, harness.task_manager(["own_vqa_accuracy"]))
    # of the second: without one who said so the three others make it right; without "you" all four do
    assert [s.score for s in run.samples] == [pytest.approx(1.0), pytest.approx(1.0)]
    with pytest.raises(UserError, match="benchmark.columns.question=asked.*picture_of"):
        table(benchmark | {"columns": columns | {"question": "asked"}})
    with pytest.raises(UserError, match="benchmark.data=.*can't be loaded"):
        table(benchmark | {"split": "nowhere"})


# ---------------------------------------------------------------------- scores
def test_vqa_accuracy_is_the_mean_over_leaving_each_person_out() -> None:
    people = ["yes"] * 2 + ["no"] * 8
    # for each of the two who said yes 1 other did, for each of the eight 2 did
    assert user_questions.vqa_accuracy("Yes.", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert user_questions.vqa_accuracy("no", people) == 1.0 and user_questions.vqa_accuracy("maybe", people) == 0.0


def test_anls_is_one_less_the_normalised_distance() -> None:
    assert user_questions.anls("1988", ["1987"]) == pytest.approx(3 / 4)
    assert user_questions.anls("18", ["1987"]) == pytest.approx(0.5) and user_questions.anls("1", ["1987"]) == 0.0
    assert user_questions.anls("in 1987", ["1987", "IN 1987"]) == 1.0


# ---------------------------------------------------------------------- mistakes
PLAIN = {"image": "0.png", "question": "?", "answer": "a"}
CHOICE = {"image": "0.png", "question": "?", "options": ["x", "y"], "answer": "x"}
BAD = [
    ("exact_match", ["{"], "line 1: no JSON"),
    ("exact_match", [[1]], "line 1: an object"),
    ("exact_match", [ROWS["exact_match"][0], {"image": "0.png", "answer": "a"}], "line 2: question"),
    ("exact_match", [{"image": "0.png", "question": "?", "anwser": "a"}], "anwser.*answer"),
    ("exact_match", [{"image": "0.png", "question": "?"}], "line 1: answer"),
    ("exact_match", [{"image": "0.png", "images": ["1.png"], "question": "?", "answer": "a"}], "not both"),
    ("exact_match", [{"image": 3, "question": "?", "answer": "a"}], "image: a path"),
    ("exact_match", [{"image": "x.png", "question": "?", "answer": "a"}], "none of its 1 images is there"),
    ("exact_match", [{"image": "0.png", "question": "?", "answer": "a", "options": ["a", "b"]}], "metric=choice"),
    ("choice", [{"image": "0.png", "question": "?", "answer": "a"}], "options: a list of 2"),
    ("choice", [{"image": "0.png", "question": "?", "options": ["x", "y"], "answer": "D"}], "answer=D"),
    ("vqa_accuracy", [{"image": "0.png", "question": "?", "answer": "a"}], "1 answers.*4 or more"),
    ("exact_match", [], "no questions"),
    ("exact_match", [{**PLAIN, "id": "same"}] * 2, "line 2: id=same: is that of 1 too"),
    ("exact_match", [{**PLAIN, "id": 1}, {**PLAIN, "id": "1"}], "line 2: id=1: is that of 1 too"),
    ("exact_match", [{**PLAIN, "id": "2"}, PLAIN], "line 2: id=2: is that of 1 too"),
    ("exact_match", ['{"image": "0.png", "question": "?", "answer": "a", "answer": "b"}'], "line 1: .*in it twice"),
    ("choice", [{**CHOICE, "options": ["x", "x"]}], "'x' stands there twice"),
    ("choice", [{**CHOICE, "options": ["B", "A"], "answer": "A"}], "one option's letter and another one's text"),
    *(("exact_match", [{**PLAIN, "id": v}], "line 1: id") for v in (None, True, 1.5, "", [], ["a"], {}, "\ud800")),
    *(("exact_match", [{**PLAIN, "image": v}], "image: a path") for v in (True, 1.5, "", " ", [], ["0.png"], {})),
    *(("exact_match", [{**PLAIN, "image": None, "images": v}], "image") for v in (True, 3, "0.png", {}, [None])),
    *(("exact_match", [{**PLAIN, "question": v}], "question") for v in (None, 3, True, " ", ["?"], {}, "a\udfff")),
    *(("exact_match", [{**PLAIN, "answer": v}], "line 1: answer") for v in (True, math.nan, math.inf, "", " ", [], {})),
    *(("exact_match", [{**PLAIN, "answer": None, "answers": v}], "answer") for v in ("abc", {}, [[]], [None], [True])),
    *(("choice", [{**CHOICE, "options": v}], "options") for v in (
        {"x": "red", "y": "blue"}, "xyz", 5, True, [["x"], ["y"]], ["x", None], ["x", True], ["x", ""], ["x", math.nan],
    )),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "rows", "words"), BAD)
def test_a_line_that_is_no_question_is_named(metric, rows, words, write) -> None:
    with pytest.raises(UserError, match=words):
        user_data.check(BenchmarkSettings(**section(write(rows), metric)))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["benchmark=jsonl"], "needs data; give data=my.jsonl"),
        (["benchmark=jsonl", "data=nothing.jsonl"], "benchmark.data=nothing.jsonl: no such file"),
        (["benchmark=jsonl", "data=MINE", "benchmark.metric=exact"], "exact_match"),
        (["benchmark=jsonl", "data=MINE", "benchmark.prompt=Hello"], "{question} is needed"),
        (["benchmark=jsonl", "data=MINE", "benchmark.prompt='{q}'"], "{question}"),
        (["data=MINE"], "for benchmark=jsonl or hf"),
        (["benchmark=jsonl", "data=MINE", "benchmark.prompt=5"], "benchmark.prompt=5: allowed: a text"),
        (["benchmark=hf", "data=MINE", "benchmark.columns.answer=null"], "benchmark.columns.answer=null"),
        (["benchmark=hf", "data=MINE", "benchmark.columns=abc"], "benchmark.columns=abc"),
        (["benchmark=jsonl", "data=" + "x" * 5000], "no such file"),
        (["benchmark=jsonl", "data='~nobody-of-that-name/my.jsonl'"], "~nobody-of-that-name is nobody's home folder"),
        *(
            (["benchmark=jsonl", "data=MINE", f"benchmark.prompt='{prompt}'"], "in braces: {question}, {options}")
            for prompt in ("{question.x}", "{question[a]}", "{question!r}", "{question:>9}", "{question:{options}}",
                           "{question:99999999999}", "{0}", "{}", "{question", "question}")
        ),
    ],
)  # fmt: skip
def test_a_wrong_command_is_told_before_anything_is_loaded(command, words, write, capsys) -> None:
    file = str(write(ROWS["exact_match"]))
    assert main([part.replace("MINE", file) for part in command]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"image": "0.png", "question": "\xe9", "answer": "a"}', "line 1: byte 33 is not UTF-8"),
        (json.dumps(PLAIN).encode("utf-16"), "line 1: byte 1 is not UTF-8"),
        (json.dumps(PLAIN).encode("utf-16-be"), "line 1: no JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "line 1: no JSON for us (nested too deeply)"),
        (b'{"image": ' + b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"image": "0.png", "question": "?", "answer": ' + b"9" * 5000 + b"}", "line 1: no JSON (Exceeds the limit"),
        (b'{"image": "0.png", "question": "?", "answer": ' + b"9" * 4000 + b"}", "line 1: answer"),
        (b'{"image": "0.png", "question": "?", "answer": 1e999}', "line 1: answer"),
        (json.dumps({**PLAIN, "image": "x" * 5000}).encode(), "none of its 1 images is there"),
        (json.dumps({**PLAIN, "image": "0.png\0"}).encode(), "none of its 1 images is there"),
        (b"\0" * 50, "line 1: no JSON"),
        (json.dumps(PLAIN).encode()[:-4], "line 1: no JSON"),
        (b"\xef\xbb\xbf" + json.dumps(PLAIN).encode(), ""),  # Windows' mark at the beginning is no mistake
        (json.dumps(PLAIN).encode() + b"\r\n\r\n", ""),
    ],
)  # fmt: skip
def test_files_that_other_programs_wrote(content, words, write, capsys) -> None:
    file = write([])
    file.write_bytes(content)
    command = ["benchmark=jsonl", f"data={file}", "method=none", "dry_run=true"]
    if not words:
        assert len(user_data.read(file, "exact_match")) == 1
        return
    assert main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line and len(line) < 1000


def test_rows_of_a_data_set_are_checked_before_a_model_is_loaded(tmp_path: Path) -> None:
    import datasets

    columns = {"image": "image", "question": "q", "answer": "a", "options": None, "id": "id"}

    def check(**changed) -> None:
        rows = {"image": [Image.new("RGB", (8, 8))] * 2, "q": ["?", "!"], "a": ["x", "y"], "id": ["1", "2"]} | changed
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "test-00000.parquet")
        benchmark = section(tmp_path / "set", name="hf", split="test", columns=columns)
        source = source_of(BenchmarkSettings(**benchmark))
        source.check(None, ["own_exact_match"])

    (tmp_path / "set").mkdir()
    check()
    for changed, words in (
        ({"id": ["1", "1"]}, "row 1: id=1: is that of 0 too"),
        ({"id": ["1", None]}, "row 1: id: a text or a number is needed, not null"),
        ({"a": ["x", None]}, "row 1: answer"),
        ({"q": [1, 2]}, "row 0: question"),
        ({"a": [["x"], []]}, "row 1: answer"),
        ({"image": [1, 2]}, "benchmark.columns.image"),
    ):
        with pytest.raises(UserError, match=words):
            check(**changed)


def test_drawn_rows_are_checked_too() -> None:
    from vtc.evaluation.sources import RowsSource

    class Drawn(RowsSource):
        def rows(self, task):
            yield {"image": Image.new("RGB", (8, 8)), "question": "?", "answer": 1, "id": "a"}
            yield {"image": IMAGES.pop(), "question": "?", "answer": 2, "id": IDS.pop()}

    IMAGES, IDS = [b"bytes", Image.new("RGB", (8, 8))], ["b", "a"]
    with pytest.raises(UserError, match="drawn, row 1: id=a: is that of 0 too"):
        Drawn(BenchmarkSettings(name="drawn")).table("drawn")
    with pytest.raises(UserError, match="question b: image: a path or a PIL image is needed, not a bytes"):
        Drawn(BenchmarkSettings(name="drawn")).table("drawn")


def test_other_questions_are_another_run(write, weights) -> None:
    from vtc.configuration import parse
    from vtc.evaluation.run_folder import RunFolder

    def run_of(file: Path) -> str:
        return RunFolder(parse(["benchmark=jsonl", f"data={file}", f"backbone.pretrained={weights}"])).id

    file = write(ROWS["exact_match"])
    before = run_of(file)
    assert run_of(write(ROWS["exact_match"])) == before
    moved = file.parent.with_name("moved")
    file.parent.rename(moved)
    assert run_of(moved / file.name) == before, "where they lie decides nothing"
    moved.rename(file.parent)
    picture = (file.parent / "2.png").read_bytes()
    Image.new("RGB", (20, 20), (1, 2, 3)).save(file.parent / "2.png")
    assert run_of(file) != before, "another picture is another question"
    (file.parent / "2.png").write_bytes(picture)
    assert run_of(file) == before
    assert run_of(write(ROWS["exact_match"][:2])) != before


def test_thousands_of_pictures_are_hashed_once(tmp_path, monkeypatch) -> None:
    from vtc import results

    files = [tmp_path / f"{n}.png" for n in range(3000)]
    for n, file in enumerate(files):
        file.write_bytes(n.to_bytes(2, "big") * 500)
    first = results.hash_files(files)
    assert len(set(first.values())) == 3000 and results.hash_files([tmp_path / "gone.png"]) == {
        str(tmp_path / "gone.png"): None
    }
    monkeypatch.setattr(results, "hash_file", lambda path: pytest.fail("read again"))
    assert results.hash_files(files) == first


def test_a_source_can_be_made_again_from_what_the_harness_is_given(write) -> None:
    """Every process, and lmms-eval itself, opens the data from plain values."""
    file = write(ROWS["exact_match"])
    spec = spec_of("own_exact_match", **section(file))
    rows = source_from(json.loads(json.dumps(spec.dataset_kwargs))).table("own_exact_match")
    assert [row["id"] for row in rows] == ["1", "mine", "3"] and rows[2]["answers"] == ["3"]
