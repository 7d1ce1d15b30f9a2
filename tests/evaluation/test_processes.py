"""Two processes score what one does, sample by sample; a process that fails or dies ends the run and loses nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from launched import QUICK
from PIL import Image
from pocket_rows import write_rows

from vtc import results, shipped
from vtc.cli import command
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.evaluation import crew as crews
from vtc.evaluation import evaluate, run_folder, scorer
from vtc.job import Job
from vtc.settings import BackboneSettings

TASKS = ["pocket_existence", "pocket_counting", "pocket_captions", "pocket_retrieval"]
SAMPLES, BATCH = 13, 4  # batches of 4, 4, 4 and 1
BAD = "counting-5"
SCORE = ["backbone.device=cpu", f"batch_size={BATCH}"]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory) -> Path:
    """A folder with the first samples of four test sets, one of them with a broken image."""
    from vtc.pocket import splits

    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for task in TASKS:
            patch.setitem(splits.SAMPLES, task.removeprefix("pocket_"), SAMPLES)
            rows = splits.rows(task)
            for row in rows:
                if row["id"] == BAD:
                    row["image"]["bytes"] = b"not an image"
            write_rows(folder / f"{task}.parquet", rows)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Seven questions about images of one's own; the image of the second is broken."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for i in range(7):
        Image.new("RGB", (96, 96), (30 * i, 0, 200)).save(folder / f"{i}.png")
        rows.append({"id": f"q{i}", "image": f"{i}.png", "question": "what color is it?", "answer": "blue"})
    (folder / "1.png").write_bytes(b"not an image")
    (folder / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "my.jsonl"


@pytest.fixture(scope="module")
def alone():
    """`alone(command)`: the result of one process, this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda given: evaluate(dataclasses.replace(parse(given), profile=QUICK))
    torch.set_num_threads(threads)


def launch(launcher: list[str], *arguments: str) -> subprocess.CompletedProcess:
    """A launcher's two processes, on CPUs; everything that they say is in `stdout`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = [os.environ.get("PYTHONPATH"), str(Path(run_folder.__file__).parents[2])]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, place))
    line = [sys.executable, "-m", *(str(port) if word == "PORT" else word for word in launcher), *arguments]
    return subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, timeout=900)


LAUNCHED = str(Path(__file__).with_name("launched.py"))
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(shipped.path("conf/accelerate/ddp.yaml"))]
ACCELERATE += ["--num_processes", "2", "--main_process_port", "PORT"]
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "PORT"]

FAULTS = ("load", "answer", "measure")


@pytest.fixture(scope="module")
def compressed(pocket) -> list[str]:
    given = [f"benchmark.data={pocket}", f"benchmark.tasks=[{','.join(TASKS)}]", f"benchmark.limit={SAMPLES}"]
    return ["method=fwd2bot", "tokens=16", *SCORE, *given]


@pytest.fixture(scope="module")
def mean(pocket) -> list[str]:
    given = [f"benchmark.data={pocket}", f"benchmark.tasks=[{TASKS[0]},{TASKS[2]}]"]
    return ["method=prunesid", "tokens=16", "budget=mean", *SCORE, *given]


@pytest.fixture(scope="module")
def own(questions) -> list[str]:
    return ["method=none", "benchmark=jsonl", f"data={questions}", "backbone.device=cpu", "batch_size=1"]


@pytest.fixture(scope="module")
def two(compressed, mean, own, tmp_path_factory):
    """(folder, what two processes said, what each did) for all commands of the tests below, in one launch."""
    folder = tmp_path_factory.mktemp("two")
    wanted = {"compressed": (compressed, None), "mean": (mean, None), "own": (own, None)}
    wanted |= {fault: ([*own, f"seed={i}"], fault) for i, fault in enumerate(FAULTS, 1)}
    wanted |= {"again": ([*own, "seed=3"], None)}
    wanted |= {"profile": (["action=profile"], None), "spread": ([*own, "seed=9", "backbone.device_map=auto"], None)}
    jobs = [{"command": [*c, f"output_dir={folder}"], "fault": fault} for c, fault in wanted.values()]
    told = launch(ACCELERATE, LAUNCHED, str(folder), json.dumps(jobs)).stdout
    try:
        did = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    except FileNotFoundError:
        pytest.fail(told)
    return folder, told, {name: [each[i] for each in did] for i, name in enumerate(wanted)}


def codes(did: list[dict]) -> list[int]:
    return [each["code"] for each in did]


@pytest.mark.slow
def test_two_processes_score_what_one_does_sample_by_sample(two, compressed, alone, tmp_path):
    folder, told, did = two
    assert codes(did["compressed"]) == [0, 0], told
    one = alone([*compressed, f"output_dir={tmp_path}"])
    twin = folder / one.parent.name / one.name  # the same run: its id does not depend on the processes
    baselines = [where / results.load(one)["baseline"]["path"] / results.RESULT for where in (tmp_path, folder)]
    for single, double in ((one, twin), tuple(baselines)):
        a, b = results.load(single), results.load(double)
        assert (a["run"]["processes"], b["run"]["processes"]) == (1, 2)
        for key in ("scores", "means", "budget", "bad_samples", "method", "config"):
            left, right = ({k: v for k, v in x.items() if k != "output_dir"} if key == "config" else x
                           for x in (a[key], b[key]))  # fmt: skip
            assert left == right, key
        pd.testing.assert_frame_equal(results.samples(single), results.samples(double), check_exact=True)
        assert [row["n"] for row in b["scores"]] == [SAMPLES, SAMPLES - 1, SAMPLES, SAMPLES]
        assert [bad["id"] for bad in b["bad_samples"]["samples"]] == [BAD]
    frame = results.samples(twin)
    assert frame["prediction"].nunique() > 10, "a model that says the same of everything shows nothing"
    generated = frame[frame["task"].isin(TASKS[:3]) & frame["score"].notna()]
    assert set(generated["tokens_kept"]) == {16} and set(generated["tokens_in"]) == {144}
    assert b["run"]["device"] and "accelerate launch --num_processes 2 -m vtc" in results.load(twin)["run"]["command"]


@pytest.mark.slow
def test_a_mean_is_over_all_pictures_whoever_answers(two, mean, alone, tmp_path):
    folder, told, did = two
    assert codes(did["mean"]) == [0, 0], told
    one = alone([*mean, f"output_dir={tmp_path}"])
    frame = results.samples(folder / one.parent.name / one.name)
    pd.testing.assert_frame_equal(results.samples(one), frame, check_exact=True)
    for _, left in frame.groupby("task")["tokens_kept"]:
        assert left.nunique() > 1 and 16 * SAMPLES - 2 < left.sum() <= 16 * SAMPLES
    # Each process looks at the four batches of both tasks, and answers two of them, as for the baseline.
    assert [each["batches"] for each in did["mean"]] == [2 * (4 + 2) + 2 * 2] * 2


@pytest.mark.slow
def test_both_answer_and_one_talks(two):
    _, told, did = two
    runs = 2  # the baseline's, and the method's; of each task's four batches each process has two
    assert [each["batches"] for each in did["compressed"]] == [runs * len(TASKS) * 2] * 2
    assert told.count("scoring 4 tasks of pocket") == told.count("fwd2bot, 16 tokens on pocket") == 1
    assert told.count(f"sample {BAD} set aside") == runs
    assert f"{runs * len(TASKS) * SAMPLES}/{runs * len(TASKS) * SAMPLES} fwd2bot tokens=16: measuring costs" in told


@pytest.mark.slow
def test_a_broken_image_of_one_s_own_is_named_once(two, own, alone, tmp_path):
    folder, told, did = two
    assert codes(did["own"]) == [0, 0]
    one = alone([*own, f"output_dir={tmp_path}"])
    twin = folder / "baselines" / one.parent.name / one.name
    pd.testing.assert_frame_equal(results.samples(one), results.samples(twin), check_exact=True)
    result = results.load(twin)
    assert result["bad_samples"]["count"] == 1 and result["bad_samples"]["samples"][0]["id"] == "q1"
    assert (result["scores"][0]["n"], result["scores"][0]["bad"]) == (6, 1)


@pytest.mark.slow
def test_an_error_of_one_process_is_everyone_s_in_one_line(two):
    _, told, did = two
    assert codes(did["load"]) == [2, 2] and did["load"][0]["batches"] == 0
    assert told.count("vtc: process 1: weights are broken\n") == told.count("weights are broken") == 1
    assert codes(did["answer"]) == [2, 2]
    assert told.count("vtc: process 1: a batch is too hot\n") == told.count("a batch is too hot") == 1
    assert did["answer"][0]["batches"] == 1, "of the four that are its own: no more once another has failed"
    assert codes(did["measure"]) == [1, 2] and told.count("RuntimeError: no clock") == 1
    assert codes(did["again"]) == [0, 0], "the same processes go on with the next command"
    assert told.count("own_exact_match: kept from the interrupted run") == 1


@pytest.mark.slow
def test_what_several_processes_cannot_do_is_refused_in_one_line(two):
    _, told, did = two
    assert codes(did["profile"]) == codes(did["spread"]) == [2, 2]
    assert told.count("vtc: action=profile: is for one process, and 2 were started; leave out the launcher") == 1
    assert told.count("vtc: backbone.device_map=auto: spreads one model over the GPUs") == 1


@pytest.mark.slow
def test_a_killed_process_ends_all_and_what_is_finished_stays(two, pocket, alone, tmp_path, capsys):
    given = ["method=none", *SCORE, f"benchmark.data={pocket}", f"benchmark.tasks=[{TASKS[0]},{TASKS[2]}]"]
    given += [f"output_dir={tmp_path}"]
    ended = launch(TORCHRUN, LAUNCHED, str(tmp_path), json.dumps([{"command": given, "fault": "kill"}]))
    assert ended.returncode != 0
    assert ended.stdout.count("the same command goes on with the rest") == 1, ended.stdout
    stored = [p.name for p in tmp_path.glob(f"baselines/*/{run_folder.PARTIAL}/*.json")]
    assert stored == [f"{TASKS[0]}.json"] and not list(tmp_path.glob("baselines/*/result.json"))
    path = alone(given)
    assert f"{TASKS[0]}: kept from the interrupted run" in capsys.readouterr().out
    assert [row["n"] for row in results.load(path)["scores"]] == [SAMPLES, SAMPLES]
    baseline = results.load(next(two[0].glob("pocket-fwd2bot-*/result.json")))["baseline"]["path"]
    frame, whole = results.samples(path), results.samples(two[0] / baseline / results.RESULT)
    whole = whole[whole["task"].isin(frame["task"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, whole, check_exact=True)


# ---------------------------------------------------------------------- without processes
def test_one_process_sets_nothing_up(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with crews.launched_crew() as crew:
        assert crew.leads and crew.lead(lambda: "done") == "done"
        with crew.doing("load"):
            assert all(crew.mine(batch) for batch in range(3))
            assert crew.collect("all of it") == ["all of it"]
        with pytest.raises(KeyError), crew.doing("score"):
            raise KeyError
    assert not torch.distributed.is_initialized()


def settings(**backbone):
    return Job(backbone=BackboneSettings(**backbone))


@pytest.fixture
def second_of_two(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken


def test_each_process_takes_a_gpu_of_its_own(second_of_two, monkeypatch):
    monkeypatch.setattr(scorer, "_gpus", lambda: 2)
    for wanted in ("auto", "cuda"):
        given = settings(device=wanted)
        scorer.check_processes(given)
        assert scorer.on_own_device(given).backbone.device == "cuda:1"
        assert given.backbone.device == wanted, "the run's own settings, and so its id, stay"
    assert second_of_two == ["cuda:1"] * 2
    assert scorer.on_own_device(settings(device="cpu")).backbone.device == "cpu"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert scorer.on_own_device(settings()).backbone.device == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert scorer.on_own_device(settings()) == settings()


def test_under_lmms_evals_own_command_too(second_of_two, monkeypatch):
    from vtc.cli.lmms_eval_model import RegisteredModel

    loaded = []
    monkeypatch.setattr(scorer, "_gpus", lambda: 2)
    monkeypatch.setattr(Job, "load", lambda job: loaded.append(job.backbone.device) or (None, None))
    RegisteredModel(method="none")
    assert loaded == ["cuda:1"]
    monkeypatch.setattr(scorer, "_gpus", lambda: 1)
    with pytest.raises(UserError, match="2 processes for 1 GPUs"):
        RegisteredModel(method="none")


@pytest.mark.parametrize(
    ("given", "gpus", "words"),
    [
        ({"device_map": "auto"}, 2, "backbone.device_map=auto: spreads one model over the GPUs, but 2 processes"),
        ({"device": "cuda:1"}, 2, "backbone.device=cuda:1: 2 processes would share it"),
        ({}, 1, "backbone.device=auto: 2 processes for 1 GPUs"),
    ],
)
def test_gpus_are_not_shared(second_of_two, monkeypatch, given, gpus, words):
    monkeypatch.setattr(scorer, "_gpus", lambda: gpus)
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        scorer.check_processes(settings(**given))
    monkeypatch.setenv("WORLD_SIZE", "1")
    scorer.check_processes(settings(**given))


def test_each_process_holds_all_of_the_model(second_of_two, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="accelerate: FSDP splits a model that is trained"):
        scorer.check_processes(settings())


def test_the_other_actions_are_for_one_process(second_of_two, monkeypatch, capsys):
    assert command.main(["action=report", "output_dir=nowhere"]) == command.MISTAKE
    assert not capsys.readouterr().err, "the second process is silent"
    monkeypatch.setenv("RANK", "0")
    assert command.main(["action=report", "output_dir=nowhere"]) == command.MISTAKE
    assert "action=report: is for one process, and 2 were started" in capsys.readouterr().err
