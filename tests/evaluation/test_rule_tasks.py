"""Tasks that are scored by rules where upstream asks a judge or draws lots; groups as one task; videos in a mirror."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from vtc import shipped
from vtc.evaluation import catalogue, preflight, reading

WORDS = ("3/11", "8/11", "6/11", "3/5")


@pytest.fixture(scope="module")
def rules():
    spec = importlib.util.spec_from_file_location("rule_tasks", shipped.path("benchmarks/tasks/rule_tasks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "kind, form, answer, precision, said, right",
    [
        ("multi_choice", "text", "8/11", None, "B", True),
        ("multi_choice", "text", "8/11", None, "The correct answer is (B) 8/11.", True),
        ("multi_choice", "text", "8/11", None, "8/11.", True),
        ("multi_choice", "text", "8/11", None, "3/11", False),
        (
            "multi_choice",
            "text",
            "8/11",
            None,
            "no idea",
            False,
        ),  # upstream takes the choice that is spelt most like it
        ("multi_choice", "text", "8/11", None, "", False),
        ("free_form", "integer", "14", None, "The number missing in the sequence is 14.", True),
        ("free_form", "integer", "1450", None, "$1,450", True),
        ("free_form", "integer", "14", None, "14.7", True),  # int(), as upstream's own
        ("free_form", "integer", "14", None, "14 of 15", False),  # the last is the answer
        ("free_form", "integer", "-3", None, "it is -3", True),
        ("free_form", "integer", "14", None, "fourteen", False),
        ("free_form", "float", "0.6", 1.0, "0.6, which means that six do", True),
        ("free_form", "float", "0.6", 1.0, "0.64", True),
        ("free_form", "float", "0.60", 2.0, "0.64", False),
        ("free_form", "list", "[2007, 2008]", None, "between 2007 and 2008: [2007, 2008]", True),
        ("free_form", "list", "[2007, 2008]", None, "[2007,2008.0]", True),
        ("free_form", "list", "[2007, 2008]", None, "[2007, two]", False),
        ("free_form", "list", "[2007, 2008]", None, "2007, 2008", False),
    ],
)
def test_mathvista_takes_the_answer_out_of_what_was_said(rules, kind, form, answer, precision, said, right):
    doc = {"question_type": kind, "answer_type": form, "answer": answer, "precision": precision, "choices": WORDS}
    assert rules.mathvista(doc, [said]) == {"accuracy": float(right)}


def test_an_answer_without_an_option_is_wrong_and_nothing_is_drawn_or_asked(rules):
    """Each of a hundred: upstream's rule would draw a right one among five in a few of them."""
    lvb = {**{f"option{i}": f"thing {i}" for i in range(4)}, "option4": "N/A", "correct_choice": 2}
    next_qa = {"answer": 2, **{f"a{i}": f"thing {i}" for i in range(5)}}
    hr = {"answer": "C", "category": "single", **dict(zip("ABCD", ("one", "two", "three", "four"), strict=True))}
    verse = {"answer": "C", "problem_version": "Vision Only"}
    for _ in range(100):
        assert rules.longvideobench(lvb, ["nothing"]) == rules.nextqa(next_qa, ["?"]) == {"accuracy": 0.0}
        assert rules.hrbench(hr, ["nothing of that"]) == {"single": 0.0, "average": 0.0}
        assert rules.mathverse(verse, ["42 °"]) == {"accuracy": 0.0, "vision_only": 0.0}
    assert rules.longvideobench(lvb, ["(C)"]) == rules.nextqa(next_qa, ["C. thing 2"]) == {"accuracy": 1.0}
    assert rules.longvideobench(lvb, ["E"]) == {"accuracy": 0.0}, "there are four options"
    assert rules.hrbench(hr, ["It is three."]) == {"single": 1.0, "average": 1.0}
    assert rules.mathverse(verse, ["C"])["accuracy"] == 1.0


def test_what_a_question_shows_is_what_upstream_shows(rules, monkeypatch):
    """Beside the note on the form of the answer, which upstream's NExT-QA has none of."""
    from types import ModuleType

    decord = ModuleType("decord")
    decord.VideoReader = decord.cpu = None
    monkeypatch.setitem(sys.modules, "decord", decord)
    monkeypatch.setenv("HF_HOME", "/mirror")
    from lmms_eval.tasks.longvideobench import utils

    doc = {"question": "what is it", **{f"option{i}": ("cat", "dog", "N/A", "N/A", "N/A")[i] for i in range(5)}}
    prompts = catalogue.settings(catalogue.files()["longvideobench_val_v"])["lmms_eval_specific_kwargs"]["default"]
    assert rules.longvideobench_question(doc) == utils.longvideobench_doc_to_text(doc, prompts)
    doc["video_path"] = "a.mp4"
    assert rules.longvideobench_video(doc) == utils.longvideobench_doc_to_visual_v(doc)
    assert rules.nextqa_video({"video": 3}) == ["/mirror/nextqa/NExTVideo/3.mp4"]
    asked = rules.nextqa_question({"question": "why", **{f"a{i}": f"thing {i}" for i in range(5)}})
    assert asked.startswith("why\nA. thing 0\nB. thing 1\n") and "E. thing 4\nAnswer with" in asked


# Groups, and names that stand in an included file ---------------------------------------------------------------------


def test_a_name_in_an_included_file_is_found():
    """V*Bench's own file names metrics alone; a name of a file's own goes before."""
    known = catalogue.files()
    assert known["vstar_bench"].name == "vstar_bench.yaml"
    assert known["vstar_bench_direct_attributes"].name == "vstar_bench_direct_attributes.yaml"
    assert catalogue.settings(known["vstar_bench"])["metric_list"][0]["metric"] == "vstar_overall_acc"


def test_a_groups_tasks_are_found_without_lmms_evals_own_index(monkeypatch):
    from lmms_eval.tasks import TaskManager

    from vtc.evaluation import harness

    asked = []

    class Watched(TaskManager):
        def __init__(self, *args, include_defaults, **kwargs):
            asked.append(include_defaults)
            super().__init__(*args, include_defaults=include_defaults, **kwargs)

    monkeypatch.setattr("lmms_eval.tasks.TaskManager", Watched)
    manager = harness.task_manager(["mvbench", "blink_val", "vstar_bench"])
    assert asked == [False] and {"mvbench_action_count", "blink_jigsaw"} <= set(manager.all_tasks)


def test_scores_of_samples_in_lmms_evals_customs():
    assert reading._number({"is_correct": True}) == 1.0 == reading._number({"score": 1, "is_correct": False})
    assert reading._number({"is_correct": False}) == 0.0 and reading._number({"answer": "A"}) is None
    assert reading._version({"versions": {"one": "", "two": "Yaml"}}, ["group", "one", "two"]) == "Yaml"


def test_a_task_with_videos_says_their_folder():
    known = catalogue.files()
    folders = {
        task: preflight.video_folder(catalogue.settings(known[task]))
        for task in ("videomme", "mme", "nextqa_mc_static")
    }
    assert folders == {"videomme": "videomme", "mme": None, "nextqa_mc_static": "nextqa"}
