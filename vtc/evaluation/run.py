"""One run: from a configuration to its result file."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results
from vtc.budget import BUDGETS, in_words

if TYPE_CHECKING:
    from rich.console import Console

    from vtc.backbones.base import Backbone
    from vtc.evaluation.harness import TaskRun
    from vtc.evaluation.processes import Team
    from vtc.evaluation.progress import Bar
    from vtc.interface import Compressor
    from vtc.profiling.latency import Protocol

log = logging.getLogger(__name__)
PARTIAL = "partial"  # tasks of a run that isn't finished, one file each


def evaluate(config: Mapping[str, Any]) -> Path:
    """Score a method on a benchmark, beside the uncompressed backbone; returns the path of `result.json`.

    The uncompressed run is made first where its result doesn't exist, kept under `output_dir/baselines/<id>` and
    reused. Every finished task is stored at once, so that an interrupted run goes on where it stopped; a run whose
    result exists is read, not repeated, unless `resume` is false. With `dry_run` it says what it would do, and does
    nothing. Of several processes (`accelerate launch`) all call it, and share the samples.

    Args:
        config: the resolved configuration (`vtc.configuration.compose.compose` makes one).

    Raises:
        UserError: an unknown task, data that isn't there; what several processes can't do.
    """
    from vtc.evaluation import processes

    settings = as_dict(config)
    processes.check(settings)
    with processes.team() as team:
        return team.lead(lambda: _evaluate(settings, team)) if team.leads else team.serve()


def _evaluate(settings: dict[str, Any], team: Team) -> Path:
    """What the first process does of `evaluate`, which is all of it where there is one."""
    from rich.console import Console

    from vtc.evaluation import display

    # The width of a terminal, or one that holds the table: piped output shouldn't be folded at 80.
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    run = Run(settings, console)
    if settings.get("dry_run"):
        from vtc.evaluation.plan import describe

        for line in describe(settings):
            console.print(line, markup=False, soft_wrap=True)
        done = "its result exists and would be read" if run.finished() else "would be written to"
        console.print(f"run {run.id}  {done}: {run.path}", markup=False, soft_wrap=True)
        return run.path
    with run.lock():
        if settings.get("resume", "auto") is False:
            run.discard()
        if run.finished():
            console.print(f"already scored: {run.path}; resume=false scores it again")
            result = results.load(run.path)
        else:
            console.print(f"scoring {len(run.tasks)} tasks of {settings['benchmark']['name']}, run {run.id}")
            baseline = None if run.is_baseline else Run(baseline_of(settings), console)
            result = _score(run, baseline, console, team)
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
        decides = [self.backbone_source, self.checkpoint]
        if self.data and Path(str(self.data)).expanduser().is_file():  # other questions are another run
            decides.append(results.hash_file(Path(str(self.data)).expanduser()))
        self.id = results.run_id(self.settings, decides, code_hash(self.settings))
        root = Path(str(settings["output_dir"])).expanduser().absolute()
        if self.is_baseline:
            self.folder = root / "baselines" / self.id
        else:
            budget = in_words(self.settings).replace("=", "") or "default"
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
    from vtc.assemble import backbone_of, checkpoint_folder

    return backbone_of(settings).source, checkpoint_folder(settings)


def code_hash(settings: Mapping[str, Any]) -> str:
    """Hash of vtc's code, of the method's module and what it takes from other methods, and of a plug-in's backbone."""
    from vtc.registry import families, methods, parts

    name, seen = settings["method"]["name"], set[str]()
    files = {
        file for part in (name, *parts(name).values()) for file in _method_files(methods.get(part).__module__, seen)
    }
    module = sys.modules.get(families.get(settings["backbone"]["family"]).__module__)
    file = getattr(module, "__file__", None)
    if file and Path(__file__).parent.parent not in Path(file).parents:
        files.add(file)
    return results.hash_code(sorted(files))


def _method_files(module: str, seen: set[str]) -> Iterator[str]:
    """The file of a module and, of vtc's methods, those that it takes functions and classes from."""
    seen.add(module)
    if file := getattr(sys.modules.get(module), "__file__", None):
        yield file
    for value in vars(sys.modules[module]).values():
        other = getattr(value, "__module__", None) or ""
        if other.startswith("vtc.methods.") and other not in seen:
            yield from _method_files(other, seen)


def _score(run: Run, baseline: Run | None, console: Console, team: Team) -> dict[str, Any]:
    """Make the baseline if needed, then the run; writes both."""
    from vtc.evaluation import display, requires
    from vtc.evaluation.progress import Bar

    open_tasks = [t for t in run.tasks if run.stored(t) is None]
    make_baseline = baseline is not None and not baseline.finished()
    requires.check(run.settings, run.tasks if make_baseline else open_tasks)
    with Bar(console, [r for r in (baseline if make_baseline else None, run) if r is not None]) as bar:
        if baseline is not None:
            with baseline.lock():  # another job may be making it just now
                if not baseline.finished():
                    make(baseline, None, bar, team)
                    bar.note(f"baseline (method none) stored: {baseline.path}")
                else:
                    bar.drop(baseline)
                    bar.note(f"baseline (method none) reused: {baseline.path}")
        result = make(run, baseline, bar, team)
    results.write_text(run.folder / results.SUMMARY, display.markdown(result))
    return result


def make(run: Run, baseline: Run | None, bar: Bar, team: Team) -> dict[str, Any]:
    """Assemble, score task by task, measure, write."""
    from vtc.evaluation import requires, suite
    from vtc.evaluation.processes import Scorer
    from vtc.evaluation.record import assemble_result

    started = time.time()
    settings = run.settings
    label = "baseline" if run.is_baseline else method_label(settings)
    judged = [t for t in run.tasks if "judge" in suite.about(settings["benchmark"], t).requires]
    if judged := [t for t in judged if run.stored(t) is None]:
        bar.say("asking the judge")
        requires.ask_the_judge(judged)
    with team.doing("load", settings, run.id):
        scorer = Scorer(team, settings, run.id, lambda what: bar.say(f"{label}: {what}"), bar.advance)
    backbone, method, model = scorer.backbone, scorer.method, scorer.model
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
        own = settings["benchmark"] if settings["benchmark"]["name"] in ("jsonl", "hf") else None
        mirror = None if own or task.startswith("pocket") else run.data
        seed = int(settings.get("seed") or 0)
        about = suite.about(settings["benchmark"], task)
        given = (task, run.limit, run.data, mirror, seed, own, about)
        with team.doing("score", *given):
            scored = scorer.score(*given)
        for bad in scored.bad[:3]:
            bar.note(f"{task}: sample {bad['id']} set aside: {bad['error']}", "yellow")
        if len(scored.bad) > 3:
            bar.note(f"{task}: {len(scored.bad)} samples set aside, the others count", "yellow")
        if scored.unjudged:
            bar.note(f"{task}: the judge gave no verdict on {scored.unjudged} samples", "yellow")
        run.store(scored)
        done.append(scored)
    bar.say(f"{label}: measuring costs")
    costs = measured(backbone, method, settings)
    result = assemble_result(run, baseline, done, backbone, method, costs, time.time() - started)
    result["run"]["processes"] = team.world
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
    return f"{settings['method']['name']} {in_words(settings)}".rstrip()


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
