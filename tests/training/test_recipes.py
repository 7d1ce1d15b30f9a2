"""A training is a function of its configuration: where it starts from, and what it hands to the loop."""

import dataclasses
import errno
import shlex
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from method_cases import pocket
from safetensors import SafetensorError

from vtc import checkpoint, registry, shipped
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.identity import digest
from vtc.job import written
from vtc.methods import build
from vtc.pocket.questions import KINDS
from vtc.pocket.source import PocketSource
from vtc.registry import training_sources
from vtc.settings import StageSettings
from vtc.training import loop, recipes, train
from vtc.training.identity import contents, identity, identity_of_manifest, recipe, training_folder, training_id
from vtc.training.log import provenance


class Began(Exception):
    """The loop was reached."""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """FLOPs are those of one step: six of the recipes' own batches would take half a minute before each beginning."""
    monkeypatch.setattr(recipes, "COUNTED", 1)


@pytest.fixture
def begins(monkeypatch, tmp_path):
    """What `train` hands to the loop for a configuration: the parameters, and the arguments beside stage and plan."""

    def begin(*overrides):
        found = {}

        def train_stage(stage, plan, folder, **given):
            found.update(
                given, stage=stage, parameters={n: p.detach().clone() for n, p in stage.named_parameters()}, plan=plan
            )
            raise Began

        monkeypatch.setattr(loop, "train_stage", train_stage)
        base = ["action=train", "method=fwd2bot", "tokens=4", f"training.folder={tmp_path}"]
        with pytest.raises(Began):
            train(parse([*base, *overrides]))
        return found

    return begin


def test_a_training_starts_where_its_seed_says(begins):
    torch.manual_seed(1)
    first = begins("seed=0")["parameters"]
    torch.manual_seed(2)
    again, other = begins("seed=0")["parameters"], begins("seed=1")["parameters"]
    assert first.keys() == again.keys() and len(first) > 1
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["method.summary"], other["method.summary"])
    assert any(not torch.equal(first[n], other[n]) for n in first if "lora_A" in n)


def test_the_loop_is_told_what_identifies_the_training(begins):
    given = begins("seed=3", "training.accumulate=2", "training.keep=5", "resume=false")
    assert (given["seed"], given["resume"]) == (3, False)
    assert (given["accumulate"], given["keep"]) == (2, 5)
    identity = given["config"]
    assert (identity["method"]["name"], identity["budget"]["tokens"], identity["seed"]) == ("fwd2bot", 4, 3)
    assert "keep" not in identity["training"] and identity["training"]["data"] and identity["training"]["stages"]


def test_a_drawn_set_of_ones_own_is_one_class(begins, monkeypatch):
    class Mine(PocketSource):
        pass

    monkeypatch.setitem(training_sources._registered, "mine", Mine)
    source = begins("training.data.source=mine", "training.data.questions=3")["stage"].source
    assert type(source) is Mine and source.questions == 3
    assert type(begins()["stage"].source) is PocketSource
    with pytest.raises(UserError, match="training.data.source=pockets: unknown.*did you mean 'pocket'"):
        train(parse(["action=train", "method=fwd2bot", "tokens=4", "training.data.source=pockets"]))


def test_what_is_only_said_otherwise_is_the_same_training():
    """A default that is spelled out, a ratio in place of tokens, and what changes no weight."""
    command = ["action=train", "method=victor"]
    same = [
        ["tokens=16", "method.drop=true"],
        [f"ratio={16 / 144}"],
        ["tokens=16", "training.keep=5", "training.workers=2", "+training.stages.0.log_every=3", "dtype=bf16"],
    ]
    names = {training_id(parse([*command, *overrides])) for overrides in (["tokens=16"], *same)}
    assert len(names) == 1
    others = [["tokens=36"], ["tokens=16", "seed=1"], ["tokens=16", "training.accumulate=2"]]
    others += [["tokens=16", "training.stages.0.lr=1e-3"], ["tokens=16", "training.data.questions=3"]]
    assert len(names | {training_id(parse([*command, *overrides])) for overrides in others}) == 1 + len(others)


def test_what_stands_in_the_files_that_it_reads_is_part_of_a_training(tmp_path: Path) -> None:
    """Data, captions and weights to start from: with another content it is another training; its manifest says so."""
    data, start = tmp_path / "a.jsonl", tmp_path / "start"
    start.mkdir()
    command = ["action=train", "method=fwd2bot", "training=llava_fwd2bot", "tokens=16", f"training.data.path={data}"]
    names = set()
    for text, weights in (("{}", None), ("[]", None), ("[]", b"0"), ("[]", b"1")):
        data.write_text(text)
        if weights is not None:
            (start / "weights.safetensors").write_bytes(weights)
        job = parse([*command, *([f"+training.start={start}"] if weights else [])])
        names.add(training_id(job))
        manifest = {"backbone": "pocket", "method": "fwd2bot", "tokens": 16, "options": {"name": "fwd2bot"}, "seed": 0}
        manifest |= {"training": recipes.written_recipe(job), "contents": contents(recipe(job))}
        assert digest(identity_of_manifest(manifest, job)) == digest(identity(job))
        assert digest(identity_of_manifest(manifest | {"contents": ["0"]}, job)) != digest(identity(job))
    assert len(names) == 4
    data.unlink()
    with pytest.raises(UserError, match=r"a\.jsonl: no such file"):
        training_id(parse(command))


@pytest.mark.parametrize(
    ("capability", "device", "told"), [("AVX2", "cpu", True), ("AVX512", "cpu", False), ("AVX2", "cuda", False)]
)
def test_a_processor_without_bfloat16_is_told_of(monkeypatch, capability: str, device: str, told: bool) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    stages = [StageSettings(name, 1e-3, steps=1, bf16=bf16) for name, bf16 in (("a", False), ("b", True))]
    line = recipes.slow_bf16(stages, device)
    assert (line is not None) == told
    if line:
        assert line.endswith("training.stages.1.bf16=false") and "stages.0" not in line
    assert recipes.slow_bf16(stages[:1], device) is None


def test_bfloat16_is_no_default_where_it_is_slow(monkeypatch) -> None:
    """`auto` is what it comes to here: by name, in the manifest and for what identifies the training."""
    command = ["action=train", "method=victor", "tokens=16", "device=cpu"]
    for capability, bf16 in (("AVX2", False), ("AVX512", True)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        job = parse(command)
        assert [stage.bf16 for stage in job.training.stages] == ["auto", "auto"]
        assert [stage["bf16"] for stage in recipes.written_recipe(job)["stages"]] == [bf16, bf16]
        said = [f"training.stages.{n}.bf16={str(bf16).lower()}" for n in (0, 1)]
        assert training_id(job) == training_id(parse([*command, *said]))
        line = recipes.slow_bf16(job.training.stages, "cpu")
        assert line is None if bf16 else line and line.startswith("bf16=auto: in float32")
        assert [stage.bf16 for stage in recipe(parse([*command, said[0]])).stages] == [bf16, bf16]


SHIPPED = shipped.path("benchmarks/pocket/weights")


@pytest.mark.parametrize(
    ("overrides", "weights", "words"),
    [
        (
            ["method=victor", "tokens=16", "training.keep=3", "+training.stages.0.log_every=2"],
            "victor-16",
            ["tokens=16"],
        ),
        (["method=victor", f"ratio={16 / 144}", "seed=0", "resume=false"], "victor-16", ["method=victor"]),
        (["method=m3", "output_dir='my out'"], "m3-elastic", ["my out"]),
        (["method=llavolta", "schedule=four_wider_then_deeper"], "llavolta-four", ["schedule=four_wider_then_deeper"]),
        (["experiment=victor_figure8", "method=victor", "tokens=16"], "victor-16", ["action=evaluate"]),
        (["method=victor", "tokens=16", "training.pretrained=a/b"], "victor-16", ["backbone.pretrained=a/b"]),
    ],
)
def test_the_command_that_scores_can_be_typed(tmp_path, overrides, weights, words):
    job = parse(["action=train", *overrides])
    folder = tmp_path / "a = b, c" / "weights"
    shutil.copytree(SHIPPED / weights, folder)
    command = recipes.scoring_command(job, folder)
    assert all(word in command for word in words) and "training" not in command, command
    python, m, vtc, *typed = shlex.split(command)
    assert [python, m, vtc] == ["python", "-m", "vtc"]
    scored = parse(typed)
    assert (scored.action, scored.checkpoint) == ("evaluate", str(folder))
    if not {"experiment=victor_figure8", "training.pretrained=a/b"} & {*overrides}:  # which are another training's
        assert scored.weights == folder


@pytest.mark.parametrize(
    "name",
    ["狗", "a b", "a'b", 'a"b', "a,b=c#d", "{a}[b]", "${x}", "a\\b", "a\\", "\\'a", "~x", "nan", "3", "true", "-x"],
)
def test_a_path_is_written_so_that_it_is_read(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    assert parse(["method=none", written("checkpoint", folder)]).checkpoint == str(folder)


def trained(tmp_path, **changes):
    """A job of Victor, and its finished weights where they would be."""
    job = parse(["action=train", "method=victor", "tokens=16", f"training.folder={tmp_path}"])
    backbone = pocket()
    method = build("victor", 16, backbone.shape)
    manifest = {"backbone": "pocket", "method": "victor", "tokens": 16, "options": dict(job.method.options)}
    manifest |= {"training": recipes.written_recipe(job)} | provenance(job, []) | changes
    names = [name for name, _ in backbone.model.named_parameters() if "projector" in name]
    return job, checkpoint.save(tmp_path / "weights", backbone, method, manifest, names)


def test_a_finished_training_says_what_to_do_next(tmp_path, capsys):
    job, target = trained(tmp_path)
    assert train(job) == target
    (line,) = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("bf16")]
    assert line.startswith(f"trained already: {target}; score it: python -m vtc method=victor tokens=16 checkpoint=")
    assert line.endswith(f"train on from it: training.start={target}; anew: resume=false")


def damaged(file, change):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    return {
        "missing": file.unlink,
        "changed": lambda: file.write_bytes(content),
        "empty": lambda: file.write_bytes(b""),
    }[change]()


@pytest.mark.parametrize(
    ("change", "says"), [("missing", "can't be read (No such"), ("changed", "was changed"), ("empty", "was changed")]
)
def test_a_finished_training_that_was_changed_is_not_believed(begins, tmp_path, capsys, change, says):
    """It goes on from what its stages stored, and says so."""
    job, target = trained(tmp_path)
    assert recipes.is_finished(job, target)
    damaged(target / "weights.safetensors", change)
    capsys.readouterr()
    assert not recipes.is_finished(job, target)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{target}: weights.safetensors {says}")


@pytest.mark.parametrize(
    "change", [{"tokens": 4}, {"seed": 1}, {"backbone": "llava15_7b"}, {"options": {"drop": False}}, {"seed": None}]
)
def test_weights_of_another_training_are_neither_taken_nor_lost(tmp_path, change):
    job, target = trained(tmp_path, **change)
    with pytest.raises(UserError, match="holds the weights of another training") as error:
        train(job)
    assert "\n" not in str(error.value) and (target / "weights.safetensors").is_file()
    assert not recipes.is_finished(dataclasses.replace(job, resume=False), target)


def test_training_anew_keeps_the_old_weights_until_there_are_new_ones(monkeypatch, tmp_path):
    def dies(*_, **__):
        raise Began

    job, target = trained(tmp_path)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    monkeypatch.setattr(loop, "train_stage", dies)
    with pytest.raises(Began):
        train(dataclasses.replace(job, resume=False))
    assert before == {file.name: file.read_bytes() for file in target.iterdir()}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
    ],
)
def test_a_disk_that_fills_up_is_told_in_a_line(monkeypatch, tmp_path, error):
    def fails(job):
        raise error

    monkeypatch.setitem(registry.recipes._registered, "fails", fails)
    job = parse(["action=train", "method=victor", "tokens=4", "training.recipe=fails", f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match="can't be written .*No space left on device.*what was stored is kept"):
        train(job)
    error = OSError(errno.ECONNRESET, "Connection reset by peer")
    with pytest.raises(OSError, match="Connection reset"):
        train(job)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["training.stages.0.train=[]"], "training.stages.0.train=[]: allowed: some of method"),
        ([f"training.data.weights.{kind}=0" for kind in KINDS if kind != "captions"], "leaves no kind of question"),
        (["training.data.source=files"], "training.data.path=null"),
        (["training.start={start}"], "weights.safetensors is missing"),
        (["training.folder=/dev/null/x"], "/dev/null/x: can't be written (Not a directory)"),
        (["training.folder={start}/manifest.json"], "manifest.json: can't be written (File exists)"),
        (["training.folder={long}"], "can't be written (File name too long)"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_backbone_is_loaded(monkeypatch, tmp_path, overrides, says):
    def loads(*_):
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr("vtc.backbones.base.Backbone.load", loads)
    (tmp_path / "start").mkdir()
    (tmp_path / "start/manifest.json").write_text("{}")
    places = {
        "{start}": str(tmp_path / "start"),
        "{empty}": str(tmp_path / "start"),
        "{long}": str(tmp_path / ("x" * 300)),
    }
    for name, place in places.items():
        overrides = [override.replace(name, place) for override in overrides]
    with pytest.raises(UserError) as error:
        train(parse(["action=train", "method=victor", "tokens=16", f"output_dir={tmp_path}", *overrides]))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_folder_of_a_training_stands_for_its_weights(tmp_path):
    job, target = trained(tmp_path)
    scored = parse(["method=victor", "tokens=16", f"checkpoint={tmp_path}"])
    assert scored.weights == target == checkpoint.folder_of(target)
    shutil.rmtree(target)
    (tmp_path / "projector/state/step-000002").mkdir(parents=True)
    with pytest.raises(UserError, match="a training that isn't finished"):
        scored = parse(["method=victor", "tokens=16", f"checkpoint={tmp_path}"]).weights


def test_of_two_equal_trainings_the_second_waits_and_says_so(tmp_path, monkeypatch, capsys):
    order: list[str] = []

    def slow(job):
        order.append("begins")
        time.sleep(0.3)
        order.append("ends")
        return tmp_path

    monkeypatch.setitem(registry.recipes._registered, "slow", slow)
    monkeypatch.setattr(recipes, "POLL", 0.05)
    job = parse(["action=train", "method=victor", "tokens=4", "training.recipe=slow", f"output_dir={tmp_path}"])
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(train, [job, job])) == [tmp_path] * 2
    assert order == ["begins", "ends"] * 2
    said = [line for line in capsys.readouterr().out.splitlines() if "waiting" in line]
    assert said == [f"another run trains into {training_folder(job)}; waiting for it"]


def test_a_training_that_fails_lets_the_next_one_in(tmp_path, monkeypatch):
    def failing(job):
        raise UserError("no luck")

    monkeypatch.setitem(registry.recipes._registered, "failing", failing)
    job = parse(["action=train", "method=victor", "tokens=4", "training.recipe=failing", f"output_dir={tmp_path}"])
    for _ in range(2):
        with pytest.raises(UserError, match="no luck"):
            train(job)
