"""One run: from a job to its result file."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import profiling, results, terminal
from vtc.backbones.loading import read_config
from vtc.errors import UserError
from vtc.evaluation import crew as crews
from vtc.evaluation import loaded, scorer
from vtc.evaluation.run_folder import RunFolder
from vtc.job import Job
from vtc.registry import imported
from vtc.settings import ProfileSettings

if TYPE_CHECKING:
    from rich.console import Console

    from vtc.backbones.base import Backbone
    from vtc.evaluation.crew import Crew
    from vtc.evaluation.progress import Bar
    from vtc.evaluation.spec import TaskScores, TaskSpec
    from vtc.interface import Compressor

MADE: set[Path] = set()  # results that this process has written


def evaluate(job: Job) -> Path:
    """Score a method on a benchmark, beside the uncompressed backbone; returns the path of `result.json`.

    The uncompressed run is made first where its result doesn't exist, kept under `output_dir/baselines/<id>` and
    reused. Every finished task is stored at once, so that an interrupted run goes on where it stopped; a run whose
    result exists is read, not repeated, unless `resume` is false, and only its costs are measured anew where they would
    come out otherwise. With `dry_run` it says what it would do, and does nothing. Of several processes (`accelerate
    launch`) all call it, and share the samples.

    Args:
        job: what `vtc.configuration.parse` makes, for example.

    Raises:
        UserError: an unknown task, data that isn't there; what several processes can't do.
    """
    scorer.check_processes(job)
    with crews.launched_crew() as crew, loaded.sharing():
        if crew.leads:
            return crew.lead(lambda: _evaluate(job, crew))
        with scorer.orders_of(crew) as orders:
            return crew.serve(orders)


def _evaluate(job: Job, crew: Crew) -> Path:
    """What the first process does of `evaluate`, which is all of it where there is one."""
    from vtc.evaluation import display

    console = terminal.console()
    run = RunFolder(job)
    if job.dry_run:
        from vtc.evaluation.dry_run import describe

        for line in describe(run):
            console.print(line, markup=False, soft_wrap=True)
        read = run.finished() and job.resume is not False
        fate = "its result exists and would be read" if read else "would be written to"
        console.print(f"run {run.id}  {fate}: {run.path}", markup=False, soft_wrap=True)
        if run.damage:
            console.print(f"            {run.damage}", markup=False, soft_wrap=True)
        return run.path
    with run.lock():
        if job.resume is False:
            run.discard()
        if run.finished() and job.resume is not False:
            console.print(f"already scored: {run.path}; resume=false scores it again", soft_wrap=True)
            result = run.read()
            if not run.costs_hold(result):
                result = measure_again(run, result, console)
        else:
            console.print(f"scoring {len(run.specs)} tasks of {job.benchmark.name}, run {run.id}")
            baseline = None if run.job.is_baseline else RunFolder(job.baseline())
            result = _score(run, baseline, console, crew)
    console.print(display.scores(result, console.width))
    console.print(display.costs(result))
    for line in display.remarks(result):
        console.print(line, markup=False)
    if job.log:
        from vtc.evaluation import track

        for line in track.tell(job.log, result, run.path.parent):
            console.print(line, style="yellow" if line.startswith("log=") else "dim", soft_wrap=True, markup=False)
    console.print(str(run.path), style="dim", soft_wrap=True, markup=False)
    return run.path


def _score(run: RunFolder, baseline: RunFolder | None, console: Console, crew: Crew) -> dict[str, Any]:
    """Make the baseline if needed, then the run; writes both."""
    from vtc.evaluation.progress import Bar

    # The jobs of a sweep repeat their baseline once.
    again = run.job.resume is False and baseline is not None and baseline.path not in MADE
    make_baseline = baseline is not None and (again or not baseline.finished())
    specs = run.specs if make_baseline else run.open_specs()
    run.source.check(run.job, [spec.name for spec in specs])
    read_config(run.job.family, run.job.backbone)  # else a hub without an answer would be told after the slow imports
    with Bar(console, [baseline, run] if baseline and make_baseline else [run]) as bar:
        if baseline is not None:
            with baseline.lock():  # another job may be making it just now
                if again or not baseline.finished():
                    if again:
                        baseline.discard()
                    make(baseline, None, bar, crew)
                    bar.note(f"baseline (method none) stored: {baseline.path}")
                else:
                    for spec in baseline.specs if make_baseline else ():
                        bar.skip(baseline, spec.name)
                    baseline.read()
                    bar.note(f"baseline (method none) reused: {baseline.path}")
        return make(run, baseline, bar, crew)


def make(run: RunFolder, baseline: RunFolder | None, bar: Bar, crew: Crew) -> dict[str, Any]:
    """Load the model, score task by task, measure costs, write."""
    from vtc.evaluation import harness
    from vtc.evaluation.record import result_of

    started = time.time()
    if run.damage:
        bar.note(f"{run.folder}: {run.damage}; scored anew", "yellow")
    scoring = imported(run.source.scorer)
    judged = [spec.name for spec in run.open_specs() if "judge" in spec.about.requires]
    if judged:
        bar.say("asking the judge")
        harness.ask_the_judge(judged)
    order = (dataclasses.replace(run.job), [spec.scored_as for spec in run.specs], run.id)
    with crew.doing(scorer.LOAD, *order):
        model = scoring(crew, *order, lambda what: bar.say(f"{run.label}: {what}"), bar.advance)
    with contextlib.closing(model):
        tasks = [_task(run, spec, model, bar, crew) for spec in run.specs]
        if not any(task.n for task in tasks):
            raise nothing_scored(run, tasks)
        bar.say(f"{run.label}: measuring costs")
        costs = efficiency_of(model.backbone, model.method, run.job)
        result = result_of(run, baseline, tasks, model.backbone, model.method, costs, time.time() - started)
    result["run"]["processes"] = crew.world
    MADE.add(run.path)
    return run.write(result, tasks)


def nothing_scored(run: RunFolder, tasks: list[TaskScores]) -> UserError:
    """The error of a run without a score: it is not finished, and the same command tries again."""
    bad = [f"{task.task} {sample['id']}: {sample['error']}" for task in tasks for sample in task.bad]
    why = f"all {len(bad)} samples were set aside, the first: {bad[0]}" if bad else "there are no samples"
    return UserError(f"{run.label}: nothing could be scored: {why}")


def _task(run: RunFolder, spec: TaskSpec, model: scorer.Scorer, bar: Bar, crew: Crew) -> TaskScores:
    """Score one task, or take over what an interrupted run has of it."""
    earlier = run.stored(spec.name)
    if earlier is not None:
        bar.skip(run, spec.name)
        bar.note(f"{spec.name}: kept from the interrupted run")
        return earlier
    if run.partial(spec.name).exists():
        bar.note(f"{spec.name}: what is kept of it isn't as the interrupted run wrote it; scored anew", "yellow")
    bar.say(f"{run.label}: {spec.name}")
    model.model.on_start = lambda samples: bar.begin(run, spec.name, samples)
    with crew.doing(scorer.SCORE, spec):
        scores = model.score(spec)
    for bad in scores.bad[:3]:
        bar.note(f"{spec.name}: sample {bad['id']} set aside: {bad['error']}", "yellow")
    if len(scores.bad) > 3:
        bar.note(f"{spec.name}: {len(scores.bad)} samples set aside, the others count", "yellow")
    if scores.unjudged:
        bar.note(f"{spec.name}: the judge gave no verdict on {scores.unjudged} samples", "yellow")
    if scores.n:
        run.store(scores)
    return scores


def measure_again(run: RunFolder, result: dict[str, Any], console: Console) -> dict[str, Any]:
    """Put new costs beside the scores of a finished run, and write it."""
    console.print("its costs were measured of something else, or in another way: measuring them again", soft_wrap=True)
    with scorer.lent(run.job) as (backbone, method):
        costs = efficiency_of(backbone, method, run.job)
    result["efficiency"] = costs
    result["budget"]["flops_ratio"] = costs["flops_ratio"]
    result["run"] |= {"costs_id": run.costs_id, "device": costs["protocol"]["device"]}
    return run.write(result)


def efficiency_of(backbone: Backbone, method: Compressor, job: Job) -> dict[str, Any]:
    """The efficiency section, as far as `costs` asks for it; `action=profile` measures at leisure."""
    protocol = ProfileSettings()
    if backbone.device.type == "cpu":
        protocol = dataclasses.replace(protocol, repeats=2, first_token_repeats=7)
    if job.costs != "full":
        protocol = dataclasses.replace(protocol, repeats=0)
    if job.costs == "none":
        protocol = dataclasses.replace(protocol, first_token_repeats=0)
    return profiling.efficiency(backbone, method, job.profile or protocol)


def profile(job: Job) -> Path:
    """`action=profile`: measure a method without scoring it; writes `profile.json` and returns its path."""
    from rich.console import Console

    from vtc.profiling.display import limits_table, rows, table
    from vtc.profiling.forecast import advice
    from vtc.profiling.limits import limits as measure_limits

    console, protocol = Console(), job.profile or ProfileSettings()
    backbone, method = job.load()
    for line in advice(backbone, protocol):
        console.print(line, highlight=False, markup=False)
    with console.status("measuring, in turns with the uncompressed model"):
        costs = profiling.efficiency(backbone, method, protocol)
        timed = protocol.repeats and protocol.first_token_repeats
        limits = measure_limits(backbone, method, protocol) if timed else None
    tokens = "" if method.tokens is None else f", {method.tokens} tokens"
    cells = rows(costs, 2 * costs["visual_tokens"] * backbone.shape.width)
    console.print(table(f"{method.name}{tokens} on {backbone.name}", cells, costs["protocol"]))
    if limits is not None:
        console.print(limits_table(limits, costs["protocol"]))
    name = f"{backbone.name}-{method.name}" + (f"-{method.tokens}" if method.tokens is not None else "")
    path = job.output_dir / "profiles" / name / "profile.json"
    results.write_json(path, {"config": job.config(), "efficiency": costs, "limits": limits})
    console.print(f"[dim]{path}[/dim]")
    return path
