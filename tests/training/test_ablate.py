"""Ablations as configurations: every variant of every experiment composes, and one experiment runs from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from method_cases import pocket

from vtc import checkpoint, results, shipped
from vtc.ablations import experiments
from vtc.ablations import run as ablate
from vtc.ablations.experiments import SHIPPED
from vtc.cli import main
from vtc.configuration import choices, parse
from vtc.errors import UserError
from vtc.identity import digest
from vtc.job import Job
from vtc.methods import build
from vtc.training.identity import identity, identity_of_manifest
from vtc.training.recipes import in_steps


@pytest.fixture(autouse=True)
def has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processor that the committed trainings ran on; on another one `bf16: auto` is another training."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")


EXPERIMENTS = {name: experiments.load(name) for name in experiments.names()}
RUNS = [
    pytest.param(name, variant, id=f"{name}-{variant}")
    for name, experiment in EXPERIMENTS.items()
    for variant in experiment.variants
]


@cache
def job_of(name: str, variant: str, action: str) -> Job:
    """A variant's training or evaluation."""
    return ablate.Ablation(EXPERIMENTS[name], Path("outputs")).job(EXPERIMENTS[name].variants[variant], action, 0)


def test_every_table_and_figure_of_the_issue_is_there() -> None:
    assert set(EXPERIMENTS) == {
        *(f"fwd2bot_{part}" for part in ("table5", "table6", "table7", "table12", "table13", "figure6")),
        *(f"victor_figure{number}" for number in (8, 9, 14, 15, 16)),
        *(f"llavolta_table{number}" for number in (2, 3, 5, 7)),
    }
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name and experiment.claims and experiment.title in choices.choices("experiment")[name]
        used = {side for claim in experiment.claims for side in (claim.better, claim.worse)}
        assert used & set(experiment.variants)


@pytest.mark.parametrize(("name", "variant"), RUNS)
def test_every_variant_composes_and_can_be_built(name: str, variant: str) -> None:
    """Its training and its evaluation: keys, stages, budget and options fit the method and the backbone."""
    chosen = EXPERIMENTS[name].variants[variant]
    scored = job_of(name, variant, "evaluate")
    scored.check(trained=False)
    assert scored.action == "evaluate" and scored.ablation is None
    if chosen.trains:
        trained = job_of(name, variant, "train")
        trained.check(trained=False)
        method = trained.compressor
        assert method.name == scored.compressor.name and trained.action == "train"
        for stage in trained.training.stages:
            assert in_steps(stage, trained.training.data_of(stage), None).steps <= 300
        if method.fixed_budget:
            assert method.tokens == scored.compressor.tokens
    elif chosen.weights.startswith(SHIPPED):
        folder = ablate.Ablation(EXPERIMENTS[name], Path("outputs")).weights(chosen, 0)
        given = replace(scored, checkpoint=str(folder)) if folder else scored
        assert given.weights is not None


def identities(name: str) -> Iterator[tuple[str, str]]:
    for variant in EXPERIMENTS[name].variants.values():
        if variant.trains:
            yield variant.name, digest(identity(job_of(name, variant.name, "train")))


def test_the_same_training_is_done_once() -> None:
    """Variants of an experiment differ; the reference run of several experiments is one."""
    found = {name: dict(identities(name)) for name in EXPERIMENTS}
    for name, own in found.items():
        assert len(set(own.values())) == len(own), name
    tables = [found[f"fwd2bot_table{number}"] for number in (5, 6, 7, 12, 13)]
    references = ("both", "stage", "double", "causal", "instructed")
    assert len({table[name] for table, name in zip(tables, references, strict=True)}) == 1
    two, five, seven = (found[f"llavolta_table{number}"] for number in (2, 5, 7))
    assert two["single"] == five["none"] == seven["p0"] and two["two"] == seven["p50"]
    assert five["heavy_8"] == seven["p100"]
    assert found["victor_figure8"]["none"] == found["victor_figure9"]["none"]
    assert found["victor_figure8"]["k2"] == found["victor_figure15"]["registers_16"]


def test_a_manifest_says_which_training_it_was() -> None:
    """A scheme by name or as stages, options and keys that came later, and what is only logged: the same training."""
    job = parse(["action=train", "method=llavolta", "schedule=two", "training.stages.0.validate_every=0"])
    wanted = identity(job)
    stage = {"name": "instruct", "train": ["projector", "decoder"], "steps": 600, "lr": 2.0e-3, "optimizer": "muon"}
    stage |= {"weight_decay": 0.01, "decay": "linear", "cooldown": 0.5, "bf16": True}  # conf/training/llavolta.yaml
    data = {"batch_size": 24, "questions": 12, "twins": True, "contrastive": 0.2}
    data["weights"] = {"existence": 3, "counting": 1.5, "attributes": 3, "relations": 2, "reading": 1.5, "choice": 2}
    training = {"recipe": "method", "pretrained": "aligned", "stages": [stage], "data": data}
    options = {"name": "llavolta", "scheme": "two", "layer": 2}
    told = {"backbone": "pocket", "method": "llavolta", "tokens": None, "options": options, "training": training}
    assert identity_of_manifest(told | {"seed": 0}, job) == wanted
    for change in (
        {"seed": 1}, {"tokens": 16}, {"options": options | {"scheme": "single"}},
        {"training": training | {"pretrained": None}},
        {"training": training | {"stages": [training["stages"][0] | {"steps": 7}]}},
    ):  # fmt: skip
        assert identity_of_manifest(told | {"seed": 0} | change, job) != wanted


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_committed_trainings_are_those_of_the_variants(name: str) -> None:
    """Manifests of before settings were typed are read back, so that finished trainings are found."""
    folder = shipped.path("benchmarks/results/ablations") / name
    for variant in EXPERIMENTS[name].variants.values():
        manifest = folder / f"{variant.name}-s0/training.json"
        if variant.trains and manifest.is_file():
            job = job_of(name, variant.name, "train")
            assert identity_of_manifest(json.loads(manifest.read_text()), job) == identity(job), variant.name


def test_uncompressed_weights_fit_every_method_that_needs_no_training(tmp_path: Path) -> None:
    backbone = pocket()
    backbone.name = "pocket"
    names = [n for n, _ in backbone.model.named_parameters() if "projector" in n]
    none = build("none", None, backbone.shape)
    manifest = {"backbone": "pocket", "method": "none", "tokens": None}
    checkpoint.save(tmp_path / "c", backbone, none, manifest, names)
    checkpoint.load(tmp_path / "c", backbone, build("fastv", 16, backbone.shape))
    with pytest.raises(UserError, match="trained for method=none, not method=victor"):
        checkpoint.load(tmp_path / "c", backbone, build("victor", 16, backbone.shape))


SMALL = [
    "training.stages.0.steps=2",
    "training.data.batch_size=2",
    "training.data.questions=2",
    "benchmark.limit=4",
    "benchmark.tasks=[pocket_existence]",
]


@pytest.mark.slow
def test_from_end_to_end(tmp_path: Path, capsys, monkeypatch) -> None:
    """Two variants are trained and scored, a third fails alone; the same command again repeats nothing."""
    monkeypatch.chdir(tmp_path)
    command = ["experiment=llavolta_table5", "variants=[none,heavy_8]", *SMALL]
    assert main(command) == 0
    folder = tmp_path / "outputs/ablations/llavolta_table5"
    out = capsys.readouterr().out
    assert "Heavy compression hurts" in out and (folder / results.SUMMARY).is_file()
    made = {name: results.load(folder / f"{name}-s0") for name in ("none", "heavy_8")}
    assert made["none"]["budget"]["visual_tokens_out"] == 144 and made["heavy_8"]["budget"]["visual_tokens_out"] == 18
    told = json.loads((folder / "heavy_8-s0/training.json").read_text())
    assert told["stages"][0]["steps"] == 2 and [s["stride"] for s in told["options"]["scheme"]] == [8]
    assert list(results.samples(folder / "none-s0").columns)[:3] == ["task", "id", "score"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "outputs").rglob("*.safetensors")}
    assert len([p for p in before if p.parent.name == "weights"]) == 2

    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.count("trained already") == 2 and again.count("already scored") == 2
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "outputs").rglob("*.safetensors")}

    # Another experiment finds the training, under its own name; a variant that can't be built fails alone.
    assert (
        main(["experiment=llavolta_table7", "variants=[p0,p25]", *SMALL, "method.scheme=[{layer: 99, stride: 2}]"]) == 2
    )
    told = capsys.readouterr()
    assert "2 of 2 variants failed" in told.err and "Not run." in told.out
    assert main(["experiment=llavolta_table7", "variants=[p0]", *SMALL]) == 0
    assert "trained already" in capsys.readouterr().out


def test_a_dry_run_needs_no_weights_that_it_would_make(tmp_path: Path, capsys) -> None:
    """A variant that trains, one that takes its weights, and one with shipped weights."""
    command = ["experiment=victor_figure14", "dry_run=true", f"output_dir={tmp_path}"]
    assert main(["experiment=llavolta_table5", "variants=[heavy_8]", *command[1:]]) == 0
    out = capsys.readouterr().out
    assert "instruct: trains projector" in out and "with the weights of this training" in out and "Not run" not in out
    assert main(command) == 0
    assert "Not run" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("summary.md"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("action=ablate", ["needs an experiment", "fwd2bot_table5"]),
        ("experiment=fwd2bot_table5 variants=[bot]", ["variants=bot", "did you mean 'both'"]),
        ("experiment=fwd2bot_table5 seeds=[]", ["seeds=[]"]),
        ("experiment=fwd2bot_table5 seed=1", ["seed=1", "seeds=["]),
        ("experiment=fwd2bot_table5 trained=[does/not/exist]", ["does/not/exist", "no such folder"]),
        ("experiment=fwd2bot_table55", ["did you mean 'fwd2bot_table5'"]),
    ],
)
def test_mistakes_are_told_in_a_line_before_anything_runs(command: str, words: list[str], capsys, tmp_path) -> None:
    assert main([*command.split(), f"output_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1 and all(word in err for word in words), err
    assert not list(tmp_path.iterdir())
