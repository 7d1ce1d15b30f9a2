"""Every task of every suite through our own command path and upstream's own scoring, on fabricated data of the upstream
schema: a model that returns the right answers scores full, one that returns wrong ones nothing."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from fabricate_recent import ANSWERS, mirror
from fabricate_upstream import FULL, NONSENSE
from judge import local_judge

from vtc import results
from vtc.evaluation import catalogue, evaluate, suite
from vtc.settings import ProfileSettings

SUITES = suite.suites()
PATHS: dict[str, Path] = {}  # run id → its result
QUICK = ProfileSettings(batch_size=1, prompt_tokens=8, new_tokens=(2, 4), repeats=1, first_token_repeats=1)
TASKS = list(dict.fromkeys(task for content in SUITES.values() for task in content["about"]))
NAMED = {member: task for task in TASKS for member in catalogue.members(task, catalogue.files())}  # a group's tasks: it

pytestmark = pytest.mark.usefixtures("manager")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return mirror(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def score(data, weights, tmp_path_factory):
    """`score(suite, tasks, right)`: the result of our own command with a model that knows the answers."""
    import datasets
    from pycocoevalcap import eval as coco_eval
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    from vtc.backbones.llava import Llava
    from vtc.configuration import parse
    from vtc.evaluation.model import GenerationResult, Kept, TokenCounts, VtcModel

    output = tmp_path_factory.mktemp("outputs")
    patch = pytest.MonkeyPatch()
    cache = tmp_path_factory.mktemp("datasets")
    patch.setenv("HF_DATASETS_CACHE", str(cache))
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    patch.setattr(Llava, "video_text", "<video>")
    answers_right = True
    ask = VtcModel.generate_until

    def generate_until(self, requests):
        self.requests = requests
        return ask(self, requests)

    def generate(self, questions):
        out = []
        kept = Kept(144, 144, [144] * self.backbone.shape.depth)
        for question in questions:
            request = self.requests[question.index]
            doc = self.task_dict[request.task_name][request.args[5]][request.doc_id]
            text = ANSWERS[NAMED[request.task_name]](doc)[0 if answers_right else 1]
            assert question.shown and question.text.strip()
            out.append((GenerationResult(text, TokenCounts(input_tokens=20, output_tokens=1)), kept))
        return out

    patch.setattr(VtcModel, "generate_until", generate_until)
    patch.setattr(VtcModel, "_generate", generate)
    _start_java_once(patch, coco_eval, PTBTokenizer)

    def run(name: str, tasks: list[str], right: bool, *overrides: str) -> dict:
        nonlocal answers_right
        answers_right = right
        given = [f"benchmark={name}", f"benchmark.tasks=[{','.join(tasks)}]", f"benchmark.data={data}", *overrides]
        given += [f"backbone.pretrained={weights}", "backbone.device=cpu", f"output_dir={output}/{right}"]
        path = evaluate(dataclasses.replace(parse(given), profile=QUICK))
        PATHS[results.load(path)["run"]["id"]] = path
        return results.load(path)

    with local_judge() as (environment, asked):
        for key, value in environment.items():
            patch.setenv(key, value)
        run.asked = asked
        yield run
    patch.undo()


def _start_java_once(patch, coco_eval, tokenizer) -> None:
    """Upstream starts METEOR's Java for every metric and tokenizes for each anew: 21 starts a task, of seconds each.
    What they compute stays as it is."""
    from functools import lru_cache

    tokenize, known = tokenizer.tokenize, {}
    meteor = lru_cache(coco_eval.Meteor)

    class Lazy:
        def compute_score(self, *args):
            return meteor().compute_score(*args)

    def once(self, captions):
        key = str(captions)
        if key not in known:
            known[key] = tokenize(self, captions)
        return known[key]

    patch.setattr(coco_eval, "Meteor", Lazy)
    patch.setattr(tokenizer, "tokenize", once)


SCORED: dict[tuple[str, bool], dict] = {}


def rows_of(score, name: str, right: bool) -> list[dict]:
    """A suite's rows; a task that several suites have is scored once."""
    tasks = list(SUITES[name]["about"])
    todo = [task for task in tasks if (task, right) not in SCORED]
    if todo:
        for row in score(name, todo, right)["scores"]:
            SCORED[row["task"], right] = row
    return [SCORED[task, right] for task in tasks]


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
NAMES = [pytest.param(name, marks=[needs_java] if name == "captions" else []) for name in SUITES]


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_full_and_wrong_ones_nothing(name, score):
    for row in rows_of(score, name, True):
        about = suite.about(SUITES[name]["about"], row["task"])
        assert row["metric"] == about.metric and not row["bad"] and not row["unjudged"], row["task"]
        assert row["share"] == pytest.approx(FULL.get(row["task"], 1.0)), row["task"]
        assert row["value"] == pytest.approx(about.scale * row["share"])
    for row in rows_of(score, name, False):
        assert row["share"] == pytest.approx(0.0, abs=1e-6) and not row["bad"], row["task"]
        assert row["n"] == SCORED[row["task"], True]["n"] > 0


def test_averages_are_of_shares(score):
    """MME's 2,000 and a percentage count as much as an accuracy; what is divided is said."""
    tasks = ["mme", "mmbench_en_dev_static", "gqa"]
    result = score("llava", tasks, True)
    assert [row["value"] for row in result["scores"]] == pytest.approx([2000.0, 100.0, 1.0])
    assert result["means"]["understanding"]["value"] == pytest.approx(1.0)
    from vtc.evaluation import display
    from vtc.report.runs import Run

    assert "in the mean: mme / 2000, mmbench_en_dev_static / 100" in display.remarks(result)
    path = PATHS[result["run"]["id"]]
    assert Run.read(path).score().value == pytest.approx(1.0) and Run.read(path).scores["mme"].value == 2000.0


def test_a_second_run_in_one_process_scores_what_the_first_did(score):
    """Upstream's OCRBench counts in a global, and divides by 1,000 however many rows there are."""
    tasks = ["ocrbench", "mme"]
    result = score("documents", tasks, True, "method=random", "tokens=16")
    assert [row["share"] for row in result["scores"]] == [1.0, 1.0]
    assert [row["baseline"] for row in result["scores"]] == [1.0, 2000.0] and result["means"]["understanding"][
        "retained"
    ] == 1
    assert result["scores"][0]["metrics"]["ocrbench_accuracy"] == pytest.approx(4 / 1000)


def test_judges_are_asked_once_before_the_run_and_then_for_every_answer(score):
    before = len(score.asked)
    score("victor12", ["mmvet"], True, "seed=7")
    asked = score.asked[before:]
    assert asked[0] == "Answer with the word yes." and len(asked) == 1 + 4
    assert all(NONSENSE not in prompt for prompt in asked)


def test_a_half_right_model_scores_half(score, monkeypatch):
    """A check of the check: scores are not 0 or 1 by construction."""
    monkeypatch.setitem(
        ANSWERS, "textvqa_val", lambda doc: (doc["answers"][0] if int(doc["question_id"]) < 2 else "no",) * 2
    )
    (row,) = score("documents", ["textvqa_val"], True, "seed=3")["scores"]
    assert row["value"] == pytest.approx(0.5) and row["stderr"] > 0


def test_half_a_pair_is_no_score_and_no_end_of_the_run(score, monkeypatch):
    """MME's own aggregation stops at a question without its pair, after all the inference."""

    def answer(doc):
        if doc["category"] == "count" and doc["answer"] == "Yes":
            raise RuntimeError("no answer")
        return (doc["answer"],) * 2

    monkeypatch.setitem(ANSWERS, "mme", answer)
    result = score("llava", ["mme"], True, "seed=5")
    (row,) = result["scores"]
    assert row["bad"] == 2 and row["n"] == 20 and row["value"] == pytest.approx(1800.0)
    assert [bad["error"][:12] for bad in result["bad_samples"]["samples"]] == ["RuntimeError", "scored as on"]


# What the files say ---------------------------------------------------------------------------------------------------


def test_every_suite_of_the_issue_is_there():
    wanted = {
        "llava": 8,
        "victor12": 12,
        "llavolta13": 13,
        "captions": 4,
        "video": 3,
        "hallucination": 4,
        "documents": 6,
        "long_video": 6,
        "grounding": 8,
        "fine_detail": 5,
        "reasoning": 2,
        "multi_image": 2,
    }
    assert wanted.items() <= {name: len(content["about"]) for name, content in SUITES.items()}.items()
    assert set(TASKS) == set(ANSWERS), "every task is fabricated, and nothing else"


@pytest.mark.parametrize("task", TASKS)
def test_what_a_suite_says_is_what_the_task_is(task):
    entries = [content["about"][task] for content in SUITES.values() if task in content["about"]]
    assert all(entry == entries[0] for entry in entries), "the same in every suite that has it"
    members = catalogue.members(task, catalogue.files())
    about, (own, *rest) = suite.about({}, task), [catalogue.settings(catalogue.files()[name]) for name in members]
    looked_at = ("metric_list", "dataset_path", "dataset_kwargs", "generation_kwargs")
    assert all(own[key] == other[key] for other in rest for key in looked_at if key in own), "one stands for all"
    metrics = [m["metric"] for m in own["metric_list"]]
    assert about.metric in metrics and about.data == own["dataset_path"] and about.paper and about.licence
    longest = own.get("generation_kwargs", {}).get("max_new_tokens")
    assert (longest is None) == (about.max_new_tokens is not None), "set once: by the task, or by the suite"
    source = Path(catalogue.files()[members[0]]).parent
    functions = [own.get("process_results", ""), *(m["aggregation"] for m in own["metric_list"])]
    modules = {name.split(".")[0] for name in functions}  # RefCOCO's folder has captions, too, which need Java
    code = "".join(p.read_text(encoding="utf-8") for p in source.glob("*utils*.py") if p.stem in modules)
    if source.is_relative_to(catalogue.upstream()):
        assert ("PTBTokenizer" in code) == ("java" in about.requires)
    if about.instead:
        assert suite.about({}, about.instead).requires < about.requires or not suite.about({}, about.instead).requires
