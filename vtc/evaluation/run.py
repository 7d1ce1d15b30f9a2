"""One run: from a configuration to its result file."""

from __future__ import annotations

import copy
import datetime
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results

if TYPE_CHECKING:
    from rich.console import Console

    from vtc.backbones.base import Backbone
    from vtc.compressor import Compressor
    from vtc.evaluation.harness import TaskRun
    from vtc.profiling.latency import Protocol

log = logging.getLogger(__name__)
BUDGETS = ("tokens", "ratio", "compression", "flops")
PARTIAL = "partial"  # tasks of a run that isn't finished, one file each
SHOWN = 100  # bad samples that a result file names; all are in samples.parquet


def evaluate(config: Mapping[str, Any]) -> Path:
    """Score a method on a benchmark, beside the uncompressed backbone; returns the path of `result.json`.

    The uncompressed run is made first where its result doesn't exist, kept under `output_dir/baselines/<id>` and
    reused. Every finished task is stored at once, so that an interrupted run goes on where it stopped; a run whose
    result exists is read, not repeated, unless `resume` is false.

    Args:
        config: the resolved configuration (`vtc.cli.compose.compose` makes one).

    Raises:
        UserError: an unknown task, data that isn't there.
    """
    from rich.console import Console

    from vtc.evaluation import display

    settings = as_dict(config)
    # The width of a terminal, or one that holds the table: piped output shouldn't be folded at 80.
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    run = Run(settings, console)
    with run.lock():
        if settings.get("resume", "auto") is False:
            run.discard()
        if run.finished():
            console.print(f"already scored: {run.path}; resume=false scores it again")
            result = results.load(run.path)
        else:
            console.print(f"scoring {len(run.tasks)} tasks of {settings['benchmark']['name']}, run {run.id}")
            baseline = None if run.is_baseline else Run(baseline_of(settings), console)
            result = _score(run, baseline, console)
    console.print(display.scores(result))
    console.print(display.costs(result))
    for line in display.remarks(result):
        console.print(line, markup=False)
    console.print(str(run.path), style="dim", soft_wrap=True, markup=False)
    return run.path


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as plain dicts, interpolations resolved, without Hydra's own node."""
    if type(config).__name__ == "DictConfig":
        from omegaconf import OmegaConf

        config = OmegaConf.masked_copy(config, [k for k in config if k != "hydra"])  # type: ignore[arg-type]
        config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return copy.deepcopy({k: v for k, v in config.items() if k != "hydra"})


def baseline_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same run without compression."""
    plain = copy.deepcopy(dict(settings))
    plain.update(dict.fromkeys(BUDGETS), method={"name": "none"}, checkpoint=None, layer_scale="auto")
    return plain


class Run:
    """What a configuration will make, and where: no model is loaded here.

    Attributes:
        id: names it (see `vtc.results.run_id`).
        folder: where its files go.
        is_baseline: the uncompressed backbone with its own weights.
    """

    def __init__(self, settings: dict[str, Any], console: Console) -> None:
        self.is_baseline = settings["method"]["name"] == "none" and settings.get("checkpoint") in (None, "auto")
        self.settings = baseline_of(settings) if self.is_baseline else settings
        self.console = console
        self.tasks = list(settings["benchmark"]["tasks"])
        self.limit = settings["benchmark"].get("limit")
        self.data = settings["benchmark"].get("data")
        self.backbone_source, self.checkpoint = sources(self.settings)
        self.weights = results.hash_weights([self.backbone_source, self.checkpoint])
        self.id = results.run_id(self.settings, [self.backbone_source, self.checkpoint], code_hash(self.settings))
        root = Path(str(settings["output_dir"])).expanduser().absolute()
        if self.is_baseline:
            self.folder = root / "baselines" / self.id
        else:
            budget = next((f"{k}{self.settings[k]}" for k in BUDGETS if self.settings.get(k) is not None), "default")
            name = f"{settings['backbone']['name']}-{settings['method']['name']}-{budget}"
            self.folder = root / f"{name}-{self.id}"

    @property
    def path(self) -> Path:
        return self.folder / results.RESULT

    def discard(self) -> None:
        """Throw away what there is of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> bool:
        """Whether its result can be read."""
        try:
            results.load(self.path)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def lock(self) -> Any:
        """One process at a time makes a run: jobs of a sweep that start together share one baseline."""
        from filelock import FileLock

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.parent / f".{self.folder.name}.lock")

    # -- tasks that are done
    def _partial(self, task: str) -> Path:
        return self.folder / PARTIAL / f"{task}.json"

    def stored(self, task: str) -> TaskRun | None:
        """The task as an interrupted run left it."""
        from vtc.evaluation.harness import TaskRun

        try:
            return TaskRun.from_dict(json.loads(self._partial(task).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def store(self, done: TaskRun) -> None:
        results.write_json(self._partial(done.task), done.to_dict())

    def read(self) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Its result, and task → sample id → score."""
        frame = results.samples(self.path).dropna(subset=["score"])
        scores = {str(t): dict(zip(rows["id"], rows["score"], strict=True)) for t, rows in frame.groupby("task")}
        return results.load(self.path), scores


def sources(settings: Mapping[str, Any]) -> tuple[str, Path | None]:
    """Where the weights come from: the backbone's folder or hub id, and the checkpoint's folder (or None)."""
    from vtc.assemble import checkpoint_folder
    from vtc.registry import backbones

    source = backbones.get(settings["backbone"]["name"]).pretrained(settings["backbone"])
    return source, checkpoint_folder(settings)


def code_hash(settings: Mapping[str, Any]) -> str:
    """Hash of vtc's code and, for a plug-in's method or backbone, of the module it is in."""
    from vtc.registry import backbones, methods

    package = Path(__file__).parent.parent
    extra = []
    for cls in (methods.get(settings["method"]["name"]), backbones.get(settings["backbone"]["name"])):
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        if file and package not in Path(file).parents:
            extra.append(file)
    return results.hash_code(extra)


# Scoring -------------------------------------------------------------------------------------------------------------


def _score(run: Run, baseline: Run | None, console: Console) -> dict[str, Any]:
    """Make the baseline if needed, then the run; writes both."""
    from vtc.evaluation import display

    make_baseline = baseline is not None and not baseline.finished()
    with Bar(console, [r for r in (baseline if make_baseline else None, run) if r is not None]) as bar:
        if baseline is not None:
            with baseline.lock():  # another job may be making it just now
                if not baseline.finished():
                    make(baseline, None, bar)
                    bar.note(f"baseline (method none) stored: {baseline.path}")
                else:
                    bar.drop(baseline)
                    bar.note(f"baseline (method none) reused: {baseline.path}")
        result = make(run, baseline, bar)
    results.write_text(run.folder / results.SUMMARY, display.markdown(result))
    return result


class Bar:
    """One progress bar over all samples of all tasks, those of the baseline among them."""

    def __init__(self, console: Console, runs: list[Run]) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = console
        self.progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("samples"), TimeElapsedColumn(), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.runs = runs
        self.sizes: dict[int, dict[str, int | None]] = {}

    def __enter__(self) -> Bar:
        self.progress.start()
        self.task = self.progress.add_task("test sets", total=None)
        try:
            self.say("test sets (drawn once, a minute at most)")
            self.sizes.update({id(r): {t: _size(r, t) for t in r.tasks} for r in self.runs})
        except BaseException:
            self.progress.stop()
            raise
        known = sum(n or 0 for sizes in self.sizes.values() for n in sizes.values())
        self.progress.update(self.task, total=known)
        if known:
            self.note(f"{known} samples" + (", baseline included" if len(self.runs) > 1 else ""))
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def note(self, line: str, style: str | None = None) -> None:
        if line:
            self.console.print(line, style=style, soft_wrap=True, markup=False)

    def say(self, what: str) -> None:
        """What is being done; a line now and then where nobody watches a terminal."""
        self.progress.update(self.task, description=what)
        if not self.console.is_terminal:
            state = self.progress.tasks[0]
            counted = f"{int(state.completed)}/{int(state.total)} " if state.total else ""
            self.note(f"{counted}{what}")

    def begin(self, run: Run, task: str, samples: int) -> None:
        """Counts the samples of a task whose number wasn't known before."""
        if self.sizes.setdefault(id(run), {}).get(task) is None:
            self.progress.update(self.task, total=(self.progress.tasks[0].total or 0) + samples)

    def advance(self, samples: int) -> None:
        self.progress.advance(self.task, samples)

    def skip(self, run: Run, task: str) -> None:
        self.progress.advance(self.task, self.sizes.get(id(run), {}).get(task) or 0)

    def drop(self, run: Run) -> None:
        gone = sum(n or 0 for n in self.sizes.pop(id(run), {}).values())
        self.progress.update(self.task, total=(self.progress.tasks[0].total or 0) - gone)


def _size(run: Run, task: str) -> int | None:
    """Samples of a task, where that can be told without lmms-eval."""
    from vtc.pocket.splits import TASKS

    if task not in TASKS:
        return None
    import pyarrow.parquet as pq

    from vtc.evaluation.data import path

    rows = pq.read_metadata(path(task, run.data)).num_rows
    return min(rows, int(run.limit)) if run.limit else rows


def make(run: Run, baseline: Run | None, bar: Bar) -> dict[str, Any]:
    """Assemble, score task by task, measure, write."""
    from vtc.evaluation import harness

    started = time.time()
    settings = run.settings
    label = "baseline" if run.is_baseline else method_label(settings)
    bar.say("loading lmms-eval")
    manager = harness.task_manager(run.tasks, settings["benchmark"].get("include") or ())
    from vtc.evaluation.model import VtcModel

    bar.say(f"{label}: loading the model")
    backbone, method = assembled(settings)
    model = VtcModel(backbone, method, settings["batch_size"], description=run.id, on_sample=bar.advance)
    done: list[TaskRun] = []
    for task in run.tasks:
        earlier = run.stored(task)
        if earlier is not None:
            bar.skip(run, task)
            bar.note(f"{task}: kept from the interrupted run")
            done.append(earlier)
            continue
        bar.say(f"{label}: {task}")
        model.on_start = _starter(bar, run, task)
        mirror = None if task.startswith("pocket") else run.data
        scored = harness.run_task(model, task, manager, run.limit, run.data, mirror, int(settings.get("seed") or 0))
        for bad in scored.bad[:3]:
            bar.note(f"{task}: sample {bad['id']} set aside: {bad['error']}", "yellow")
        if len(scored.bad) > 3:
            bar.note(f"{task}: {len(scored.bad)} samples set aside, the others count", "yellow")
        run.store(scored)
        done.append(scored)
    bar.say(f"{label}: measuring costs")
    costs = measured(backbone, method, settings)
    result = assemble_result(run, baseline, done, backbone, method, costs, time.time() - started)
    rows = [
        {"task": t.task, "id": s.id, "prediction": s.prediction, "target": s.target, "score": s.score,
         "stratum": s.stratum, "tokens_in": s.tokens_in, "tokens_kept": s.tokens_kept, "error": s.error}
        for t in done for s in t.samples
    ]  # fmt: skip
    results.write_samples(run.folder, rows)
    results.write(run.folder, result)
    if run.is_baseline:
        from vtc.evaluation import display

        results.write_text(run.folder / results.SUMMARY, display.markdown(result))
    shutil.rmtree(run.folder / PARTIAL, ignore_errors=True)
    return results.load(run.path)


def _starter(bar: Bar, run: Run, task: str) -> Callable[[int], None]:
    return lambda samples: bar.begin(run, task, samples)


def method_label(settings: Mapping[str, Any]) -> str:
    budget = next((f" {k}={settings[k]}" for k in BUDGETS if settings.get(k) is not None), "")
    return f"{settings['method']['name']}{budget}"


def assembled(settings: Mapping[str, Any]) -> tuple[Backbone, Compressor]:
    from omegaconf import OmegaConf
    from transformers.utils import logging as transformers_logging

    from vtc.assemble import assemble

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # its bar for loading weights would be drawn over ours
    try:
        return assemble(OmegaConf.create(dict(settings)))
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def measured(backbone: Backbone, method: Compressor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The efficiency section: seconds on a CPU, for a section that `action=profile` measures at leisure."""
    from vtc.profiling.run import efficiency, protocol_of

    quick = {"repeats": 2, "first_token_repeats": 7} if backbone.device.type == "cpu" else {}
    protocol: Protocol = protocol_of(settings, **quick)
    return efficiency(backbone, method, protocol)


# The result ----------------------------------------------------------------------------------------------------------


@dataclass
class Paired:
    """A task's scores beside the baseline's on the same samples."""

    value: float | None
    p_value: float | None
    mine: list[float]
    theirs: list[float]
    strata: list[str]


def assemble_result(
    run: Run,
    baseline: Run | None,
    done: list[TaskRun],
    backbone: Backbone,
    method: Compressor,
    costs: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The result file's content (DESIGN.md, "One result file a run")."""
    settings = run.settings
    plain, plain_scores = baseline.read() if baseline is not None else (None, {})
    before = {row["task"]: row["value"] for row in plain["scores"]} if plain else {}
    rows, pairs = [], {}
    for task in done:
        known = plain_scores.get(task.task, {})
        pairs[task.task] = pair = _paired(task, known, before.get(task.task))
        base = task.value if run.is_baseline else pair.value
        rows.append(
            {
                "task": task.task,
                "group": task.group,
                "metric": task.metric,
                "value": task.value,
                "stderr": task.stderr(),
                "n": task.n,
                "baseline": base,
                "retained": task.value / base if task.value is not None and base else None,
                "p_value": pair.p_value,
                "blind": task.floors.get("blind"),
                "bag": task.floors.get("bag"),
                "bad": len(task.bad),
                "metrics": task.metrics,
                "version": task.version,
            }
        )
    return {
        "run": {
            "id": run.id,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": command(run.is_baseline),
            "versions": versions(),
            "git_commit": git_commit(),
            "code": results.hash_code()[:12],
            "seed": settings.get("seed"),
            "device": costs["protocol"]["device"],
            "attention": settings["backbone"].get("attention"),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "batch_size": settings["batch_size"],
            "seconds": round(seconds, 1),
        },
        "config": shared(settings),
        "backbone": {
            "name": backbone.name,
            "pretrained": shared(run.backbone_source),
            "parameters": sum(p.numel() for n, p in backbone.model.named_parameters() if ".lora_" not in n),
            "weights": run.weights[:12],
            "shape": {k: v for k, v in vars(backbone.shape).items() if k != "name"},
        },
        "method": {
            "name": method.name,
            "tokens": method.tokens,
            "options": {k: v for k, v in settings["method"].items() if k != "name"},
            "layers": sorted(method.layers()),
            "class": f"{type(method).__module__}.{type(method).__qualname__}",
        },
        "checkpoint": checkpoint_section(run.checkpoint),
        "budget": budget_section(settings, done, costs, backbone.shape.depth),
        "scores": rows,
        "means": {g: m for g in results.GROUPS if (m := _mean(g, done, pairs, rows)) is not None},
        "baseline": None if plain is None else {"id": plain["run"]["id"], "path": f"baselines/{plain['run']['id']}"},
        "efficiency": costs,
        "bad_samples": {
            "count": sum(len(t.bad) for t in done),
            "samples": [{"task": t.task, **b} for t in done for b in t.bad][:SHOWN],
        },
    }


def _paired(task: TaskRun, known: Mapping[str, float], value: float | None) -> Paired:
    from vtc.evaluation import statistics

    both = [s for s in task.scored if s.id in known]
    mine, theirs = [float(s.score) for s in both if s.score is not None], [known[s.id] for s in both]
    strata = [s.stratum for s in both]
    return Paired(value, statistics.paired(mine, theirs, strata) if both else None, mine, theirs, strata)


def _mean(
    group: str, done: list[TaskRun], pairs: Mapping[str, Paired], rows: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The mean score of a group's tasks, each counting alike, with its error and the paired test over all samples."""
    import numpy as np

    from vtc.evaluation import statistics

    members = [r for r in rows if r["group"] == group and r["value"] is not None]
    if not members:
        return None
    values = [r["value"] for r in members]
    errors = [r["stderr"] for r in members]
    bases = [r["baseline"] for r in members]
    value = float(np.mean(values))
    base = float(np.mean(bases)) if all(b is not None for b in bases) else None
    tested = [pairs[r["task"]] for r in members if pairs[r["task"]].mine]
    differences = [statistics.weights(p.strata) * (np.asarray(p.mine) - np.asarray(p.theirs)) for p in tested]
    return {
        "value": value,
        "stderr": float(np.sqrt(np.sum(np.square(errors))) / len(members))
        if all(e is not None for e in errors)
        else None,
        "n": sum(r["n"] for r in members),
        "tasks": len(members),
        "baseline": base,
        "retained": value / base if base else None,
        "p_value": statistics.sign_flips(np.concatenate(differences)) if len(tested) == len(members) else None,
        **{f: _average([r[f] for r in members]) for f in ("blind", "bag")},
    }


def _average(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def budget_section(
    settings: Mapping[str, Any], done: list[TaskRun], costs: Mapping[str, Any], depth: int
) -> dict[str, Any]:
    """What was asked for, and what was truly kept on the scored samples (per image); where no task generates, on the
    image that the costs were measured with."""
    kept = [s for t in done for s in t.samples if s.tokens_in is not None]
    weighted = [(t.layers, sum(s.tokens_in is not None for s in t.samples)) for t in done if t.layers]
    if kept and weighted:
        total = sum(n for _, n in weighted)
        layers = [sum(values[i] * n for values, n in weighted) / total for i in range(depth)]
        tokens_in = sum(s.tokens_in for s in kept) / len(kept)  # type: ignore[misc]
        tokens_out = sum(s.tokens_kept for s in kept) / len(kept)  # type: ignore[misc]
    else:
        layers = [float(v) for v in costs["layer_tokens"]]
        tokens_in, tokens_out = costs["visual_tokens"], layers[-1]
    average = sum(layers) / len(layers)
    return {
        "requested": {k: settings[k] for k in BUDGETS if settings.get(k) is not None},
        "visual_tokens_in": tokens_in,
        "visual_tokens_out": tokens_out,
        "layer_tokens": layers,
        "layer_average_tokens": average,
        "compression_ratio": tokens_in / average if average else None,
        "flops_ratio": costs["flops_ratio"],
    }


def checkpoint_section(folder: Path | None) -> dict[str, Any] | None:
    if folder is None:
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    return {"path": shared(folder), "weights": results.hash_weights([folder])[:12], "manifest": manifest}


def shared(value: Any) -> Any:
    """Paths into what comes with vtc as relative ones: a result says the same on every machine."""
    from vtc import shipped

    if isinstance(value, Mapping):
        return {k: shared(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shared(v) for v in value]
    if isinstance(value, (str, Path)) and os.path.isabs(str(value)):
        try:
            return Path(value).resolve().relative_to(shipped.root()).as_posix()
        except ValueError:
            return str(value)
    return value


def command(baseline: bool = False) -> str:
    """What to type to do it again.

    Args:
        baseline: of the uncompressed run that the command made on its way.
    """
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        overrides = list(HydraConfig.get().overrides.task)
        return shlex.join(["python", "-m", "vtc", *(uncompressed(overrides) if baseline else overrides)])
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def uncompressed(overrides: list[str]) -> list[str]:
    """The same overrides without those that say how to compress."""
    dropped = ("method", "layer_scale", "checkpoint", "resume", *BUDGETS)
    return [o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in dropped] + ["method=none"]


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import vtc

    out = {"vtc": vtc.__version__, "python": sys.version.split()[0]}
    for name in ("torch", "transformers", "lmms_eval", "peft"):
        try:
            out[name] = version(name.replace("_", "-"))
        except PackageNotFoundError:
            out[name] = "unknown"
    return out


def git_commit() -> str | None:
    """The commit of a checkout, `-dirty` where files were changed since; None elsewhere."""
    from vtc import shipped

    def git(*arguments: str) -> str:
        line = ["git", "-C", str(shipped.root()), *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit, changes = (
            git("rev-parse", "HEAD"),
            git("status", "--porcelain", "--untracked-files=no", "--", "vtc", "conf"),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changes else commit
