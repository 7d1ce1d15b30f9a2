"""What a benchmark needs is said in one line before a model loads, and within seconds: unknown names, missing Java,
keys, data, network, tokens, videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fabricate_upstream import write

from vtc.cli.command import main
from vtc.evaluation import catalogue, harness, preflight, suite


@pytest.fixture(autouse=True)
def nothing_is_there(monkeypatch, tmp_path):
    """No model loads, lmms-eval is not imported, and there is neither cache, key, token, Java nor network."""
    import huggingface_hub
    from huggingface_hub import constants

    from vtc.backbones.base import Backbone

    def forbidden(*_, **__):
        raise AssertionError("too late: this is to be refused before")

    def unreachable(self, name, **_):
        raise OSError("no network")

    monkeypatch.setattr(Backbone, "load", forbidden)
    monkeypatch.setattr(harness, "import_harness", forbidden)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for key in ("OPENAI_API_KEY", "AZURE_API_KEY", "API_TYPE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys, weights):
    """`refused("benchmark=…")`: the one line that our command ends with."""

    def run(*command: str) -> str:
        assert main([f"backbone.pretrained={weights}", "backbone.device=cpu", "method=none", *command]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def lists(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).mkdir(parents=True)
    return f"benchmark.data={folder}"


def test_a_wrong_name(refused, monkeypatch):
    monkeypatch.setattr(harness, "every_task", lambda include=(): ["pope", "mme"])  # what lmms-eval itself finds, 14 s
    line = refused("benchmark=llava", "benchmark.tasks=[pop]")
    assert line.startswith("vtc: benchmark.tasks=pop: unknown; allowed:") and "did you mean 'pope'?" in line


def test_no_java(refused):
    line = refused("benchmark=captions", "benchmark.tasks=[nocaps_val,coco2017_cap_val]")
    assert (
        "benchmark.tasks=nocaps_val,coco2017_cap_val: scoring needs Java" in line and "install a Java runtime" in line
    )
    assert "benchmark.tasks=[nocaps_val_no_java,coco2017_cap_val_no_java]" in line


def test_java_is_asked_of_tasks_outside_the_suites_too(refused):
    assert "needs Java" in refused("benchmark=llava", "benchmark.tasks=[coco_karpathy_val]")


def test_no_key(refused, tmp_path):
    line = refused("benchmark=victor12")
    assert "benchmark.tasks=llava_in_the_wild,mmvet: scored by a judge, and OPENAI_API_KEY is not set" in line
    rest = [t for t in suite.suites()["victor12"]["about"] if t not in ("llava_in_the_wild", "mmvet")]
    assert f"leave them out: benchmark.tasks=[{','.join(rest)}]" in line
    assert "AZURE_API_KEY" in _with({"API_TYPE": "azure"}, refused, "benchmark=victor12")


def _with(environment, refused, *command) -> str:
    patch = pytest.MonkeyPatch()
    try:
        for key, value in environment.items():
            patch.setenv(key, value)
        return refused(*command)
    finally:
        patch.undo()


JUDGED = [(t, e["instead"]) for t, e in suite.traps().items() if "judge" in e["requires"] and "instead" in e]


@pytest.mark.parametrize("task, instead", JUDGED)
def test_judged_tasks_of_upstream_name_what_asks_the_same(task, instead, refused):
    line = refused("benchmark=llava", f"benchmark.tasks=[{task}]")
    assert f"benchmark.tasks={task}: scored by a judge" in line and f"take benchmark.tasks=[{instead}]" in line


def test_data_that_is_not_in_the_folder(refused, tmp_path):
    data = lists(tmp_path / "data", "lmms-lab-encoder/POPE")
    line = refused("benchmark=llava", "benchmark.tasks=[pope,gqa]", data)
    assert f"benchmark.tasks=gqa: {data} has no lmms-lab-encoder/GQA; get it with: hf download" in line
    assert "benchmark.data=nowhere: no such file or folder" in refused("benchmark=llava", "benchmark.data=nowhere")


def test_no_network(refused):
    line = refused("benchmark=llava", "benchmark.tasks=[pope]")
    assert (
        "benchmark.tasks=pope: its data lmms-lab-encoder/POPE is not in the cache, and the hub can't be reached" in line
    )


def test_offline_and_nothing_cached(refused, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused("benchmark=llava", "benchmark.tasks=[vizwiz_vqa_val]")
    assert "lmms-lab-encoder/VizWiz-VQA is not in the cache, and HF_HUB_OFFLINE is set" in line
    (tmp_path / "datasets" / "lmms-lab-encoder___viz_wiz-vqa").mkdir(parents=True)  # as `datasets` writes it
    assert preflight.cached("lmms-lab-encoder/VizWiz-VQA") and not preflight.cached("lmms-lab-encoder/POPE")


def test_no_token(refused, monkeypatch):
    """Upstream's tasks ask for their public data with `token: True`, which fails where nobody is logged in."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hf auth login" in refused("benchmark=llava", "benchmark.tasks=[pope]")


def test_a_backbone_that_reads_no_video(refused, tmp_path):
    line = refused("benchmark=video", "benchmark.tasks=[msvd_qa]")
    assert "benchmark.tasks=msvd_qa: asks about videos, and backbone=pocket reads none" in line


def test_videos_that_are_not_there(refused, monkeypatch, tmp_path):
    from vtc.backbones.llava import Llava

    monkeypatch.setattr(Llava, "video_text", "<video>")
    line = refused("benchmark=video", "benchmark.tasks=[msvd_qa]")
    assert "give benchmark.data=<a folder with MSVD_Zero_Shot_QA/{test_q.json,test_a.json,videos}>" in line
    (tmp_path / "data" / "MSVD_Zero_Shot_QA").mkdir(parents=True)
    (tmp_path / "data" / "MSVD_Zero_Shot_QA" / "test_q.json").write_text(json.dumps([{"question": "who"}]))
    line = refused("benchmark=video", "benchmark.tasks=[msvd_qa]", f"benchmark.data={tmp_path / 'data'}")
    assert "has no MSVD_Zero_Shot_QA/test_a.json" in line


def test_videos_that_a_mirror_lacks(refused, monkeypatch, tmp_path):
    """A group is spoken of as one; upstream would load 44 GB, or say of each sample that its video isn't there."""
    from vtc.backbones.llava import Llava

    line = refused("benchmark=long_video", "benchmark.tasks=[egoschema_subset,mvbench]")
    assert "benchmark.tasks=egoschema_subset,mvbench: asks about videos, and backbone=pocket reads none" in line
    monkeypatch.setattr(Llava, "video_text", "<video>")
    data = lists(tmp_path / "data", "OpenGVLab/MVBench")
    line = refused("benchmark=long_video", "benchmark.tasks=[mvbench]", data)
    assert f"benchmark.tasks=mvbench: {data} has no mvbench_video, the folder of its videos" in line


def test_questions_that_are_scored_as_one(refused):
    line = refused("benchmark=llava", "benchmark.tasks=[mme]", "benchmark.limit=5")
    assert line == "vtc: benchmark.limit=5: mme scores 2 questions as one; allowed: a multiple of 2"


def test_a_metric_that_a_task_does_not_give(refused):
    line = refused("benchmark=llava", "benchmark.tasks=[mme]", "benchmark.about.mme.metric=perception")
    assert "benchmark.about.mme.metric=perception: unknown; allowed: mme_cognition_score, mme_perception_score" in line
    assert "scale=0" in refused("benchmark=llava", "benchmark.tasks=[mme]", "benchmark.about.mme.scale=0")


def test_a_judge_that_does_not_answer():
    """A key that is wrong would show as scores of zero."""
    from vtc.errors import UserError

    patch = pytest.MonkeyPatch()
    for key, value in {
        "OPENAI_API_KEY": "x",
        "OPENAI_API_URL": "http://127.0.0.1:9/v1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        patch.setenv(key, value)
    try:
        with pytest.raises(UserError, match=r"benchmark.tasks=mmvet: the judge \(openai, .*does not answer"):
            harness.ask_the_judge(["mmvet"])
    finally:
        patch.undo()


@pytest.mark.parametrize("name", suite.suites())
def test_a_dry_run_of_every_suite_says_what_it_takes_and_what_is_missing(name, capsys, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, name, **_: 1 / 0)
    assert main(["backbone=pocket", "method=fastv", "tokens=16", f"benchmark={name}", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    for task, entry in suite.suites()[name]["about"].items():
        assert f"{task}: {entry['data']} (" in out
    first = {"captions": "needs Java", "video": "reads none", "long_video": "reads none",
             "video_judged": "OPENAI_API_KEY is not set", "victor12": "OPENAI_API_KEY is not set",
             "llavolta13": "OPENAI_API_KEY is not set"}  # fmt: skip
    missing = [line for line in out.splitlines() if line.startswith("missing")]
    assert (len(missing) == 1 and first[name] in missing[0]) if name in first else not missing
    assert "would be written to" in out and not list(Path.cwd().iterdir())


# A suite of one's own ---------------------------------------------------------------------------------------------


def test_a_suite_of_ones_own_says_the_same_things(tmp_path, refused):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text(
        "task: mine\ndataset_path: me/mine\ntest_split: test\noutput_type: generate_until\ndoc_to_text: question\n"
        "doc_to_target: answer\nmetric_list:\n  - {metric: points, aggregation: mean, higher_is_better: true}\n"
    )
    file = tmp_path / "my_suite.yaml"
    file.write_text("include: [tasks]\nabout:\n  mine: {metric: points, scale: 40}\n  mme: {}\n")
    write(tmp_path / "data" / "me" / "mine", {("default", "test"): [{"question": "?", "answer": "a"}]})
    line = refused(f"benchmark={file}", f"benchmark.data={tmp_path / 'data'}")
    assert "benchmark.tasks=mme" in line and "has no lmms-lab-encoder/MME" in line, "mine is found, in its folder"

    from vtc.configuration import parse

    benchmark = parse([f"benchmark={file}"]).benchmark
    assert list(benchmark.tasks) == ["mine", "mme"] and suite.about(benchmark.about, "mine").scale == 40
    assert suite.about(benchmark.about, "mme").scale == 2000, "what it leaves out is as shipped"
    assert catalogue.members("mine", catalogue.files(benchmark.include)) == ["mine"]


@pytest.mark.parametrize(
    "content, said",
    [
        ("tasks: []", "names no tasks"),
        ("- a list", "a mapping with name, tasks"),
        ("task: [pope]", "task: unknown; allowed: .*did you mean 'tasks'"),
        ("tasks: [pope", "no YAML"),
    ],
)
def test_a_suite_that_is_none(content, said, tmp_path, refused):
    import re

    file = tmp_path / "bad.yaml"
    file.write_text(content)
    assert re.search(said, refused(f"benchmark={file}"))
    assert "no such file" in refused("benchmark=gone.yaml")
    assert "shipped benchmark" in refused(f"benchmark={tmp_path / 'llava.yaml'}")


def test_an_entry_with_a_slip(tmp_path, refused):
    file = tmp_path / "slip.yaml"
    file.write_text("about: {pope: {skale: 100}}")
    assert "benchmark.about.pope.skale: unknown" in refused(f"benchmark={file}")
    file.write_text("about: {pope: {requires: [jawa]}}")
    assert "requires: jawa: unknown; allowed: java" in refused(f"benchmark={file}")
    for entry, words in (
        ("[100]", "benchmark.about.pope="),
        ("{files: abc}", "benchmark.about.pope.files=abc: allowed: a list"),
        ("{requires: java}", "benchmark.about.pope.requires=java: allowed: a list"),
        ("{together: 0}", "benchmark.about.pope.together=0"),
        ("{max_new_tokens: many}", "benchmark.about.pope.max_new_tokens=many"),
        ("{metric: 5}", "benchmark.about.pope.metric=5"),
        ("{samples_mean: often}", "benchmark.about.pope.samples_mean=often"),
        ("{scale: .nan}", "benchmark.about.pope.scale=nan"),
    ):
        file.write_text(f"about: {{pope: {entry}}}")
        assert words in refused(f"benchmark={file}")


def test_the_names_of_all_tasks_are_those_that_lmms_eval_finds():
    """Read from its files in a fraction of a second, of which its own index takes six."""
    known = catalogue.files()
    assert len(known) > 1_000 and catalogue.members("pope_full", known) == ["pope_adv", "pope_pop", "pope_random"]
    assert catalogue.settings(known["textvqa_val"])["dataset_path"] == "lmms-lab-encoder/textvqa"
    assert catalogue.settings(known["textvqa_val"])["process_results"] == "utils.textvqa_process_results"
