"""`action=tune`: the cheapest setting that keeps the score, by Optuna, never on test questions.

`key=a,b,c` says what may be chosen, as in a sweep. Each trial is an ordinary run: its result stays, is found again by
the same command, and by any other that asks for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results, terminal
from vtc.configuration import parse
from vtc.configuration.overrides import read, values
from vtc.errors import UserError, unknown
from vtc.identity import digest
from vtc.job import written
from vtc.registry import methods, parts
from vtc.settings.tune import PRICES

if TYPE_CHECKING:
    import optuna

    from vtc.job import Job

OWN_KEYS = ("action", "tune", "costs", "hydra")  # of the command, that no trial has
ATTEMPTS = 5  # times as many proposals as trials: a sampler may propose what was tried before
VALIDATION = "pocket-validation"  # where pocket's validation questions are kept, below the cache


@dataclass(frozen=True)
class Trial:
    """A setting that was scored.

    Attributes:
        words: what was chosen; result: its file.
        retained: share of the uncompressed score; price: what it costs.
        refused: why it couldn't be run; empty where it was.
    """

    words: tuple[str, ...]
    result: Path | None = None
    retained: float = math.nan
    price: float = math.nan
    refused: str = ""


def tune(job: Job) -> Path:
    """Looks for the cheapest setting; writes what was tried, prints the best, and returns the file.

    Raises:
        UserError: Optuna isn't installed, nothing to choose from, test questions, no setting that can be run.
    """
    space = _space(job)
    shared = _validated(job, [word for word in job.overrides or () if not _is_own(word, space)])
    _check_keys(space, shared)
    if find_spec("optuna") is None and math.prod(map(len, space.values())) > job.tune.trials:
        raise UserError("action=tune: needs Optuna, which is not installed; pip install 'vtc[tune]'")
    trials = search(job, space, shared)
    if all(trial.refused for trial in trials):
        raise UserError(f"action=tune: none of {len(trials)} settings can be run; the first: {trials[0].refused}")
    best = cheapest(trials, job.tune.retained)
    file = job.output_dir / "tune" / f"{digest([*shared, *map(str, space.items())])[:12]}.json"
    _write(file, job, trials, best, shared)
    _print(job, trials, best, shared)
    print(file)
    return file


def cheapest(trials: Sequence[Trial], retained: float) -> Trial | None:
    """Of the trials that keep so much of the score the one with the lowest price, of equals the one that keeps most;
    None where there is none."""
    enough = [trial for trial in trials if not trial.refused and trial.retained >= retained]
    return min(enough, key=lambda trial: (trial.price, -trial.retained), default=None)


def search(job: Job, space: Mapping[str, Sequence[str]], shared: Sequence[str]) -> list[Trial]:
    """The trials, in the order in which they were run: all settings where there are few, else those that Optuna's TPE
    proposes, its constraint being the share of the score that is to be kept."""
    tried = dict[tuple[str, ...], Trial]()
    count, most = math.prod(map(len, space.values())), job.tune.trials
    if count <= most:
        for number, words in enumerate(product(*space.values())):
            tried[words] = _run(job, words, shared, f"[{number + 1}/{count}]")
        return [*tried.values()]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=_sampler(job.seed), direction="minimize")
    for _ in range(most * ATTEMPTS):
        if len(tried) == most:
            break
        proposed = study.ask()
        # Values are proposed by their place: they have no order that all keys share, and may be texts or lists.
        words = tuple(space[key][proposed.suggest_categorical(key, [*range(len(space[key]))])] for key in space)
        if words not in tried:
            tried[words] = _run(job, words, shared, f"[{len(tried) + 1}/{most}]")
        trial = tried[words]
        if trial.refused:
            study.tell(proposed, state=optuna.trial.TrialState.FAIL)
            continue
        proposed.set_user_attr("constraint", job.tune.retained - trial.retained)
        study.tell(proposed, trial.price)
    return [*tried.values()]


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constraints_func=lambda trial: [trial.user_attrs.get("constraint", 1.0)]
        )


def _run(job: Job, words: tuple[str, ...], shared: Sequence[str], number: str) -> Trial:
    """Scores a setting, as an ordinary run."""
    from vtc.evaluation import evaluate

    print(f"\n{number} {' '.join(words)}", flush=True)
    try:
        one = parse([*shared, *words, f"costs={job.costs}"])
        one.check()
        file = evaluate(one)
    except UserError as error:
        print(f"left out: {error}", flush=True)
        return Trial(words, refused=str(error))
    result = results.load(file)
    shares = [row["retained"] for row in result["scores"] if row.get("retained") is not None]
    if not shares:
        return Trial(words, file, refused="its result has no score beside the uncompressed one")
    budget = result["budget"]
    prices = {"flops": "flops_ratio", "tokens": "visual_tokens_out", "layer_tokens": "layer_average_tokens"}
    return Trial(words, file, _retained(result), float(budget[prices[job.tune.price]]))


def _retained(result: Mapping[str, Any]) -> float:
    """The mean over the tasks relative to the uncompressed mean over the same tasks, as the report has it."""
    rows = [row for row in result["scores"] if row.get("baseline") is not None]
    before, after = (sum(results.share(row, key) or 0.0 for row in rows) for key in ("baseline", "value"))
    return after / before if before else math.nan


# ---------------------------------------------------------------------- what may be chosen, and on which questions
def _space(job: Job) -> dict[str, list[str]]:
    """Each key with the words that give it each of its values.

    Raises:
        UserError: no key has several.
    """
    space = {}
    for word in job.tune.space or ():
        override = read(word)
        key = override.key_or_group
        space[key] = [written(key, "null" if value is None else value) for value in values(override)]
    if not space:
        raise UserError(
            "action=tune: nothing to choose from; give some keys several values, method=fastv,divprune tokens=4,16,36"
        )
    return space


def _check_keys(space: Mapping[str, Sequence[str]], shared: Sequence[str]) -> None:
    """Refuses names and keys that there are not before anything is scored; an option may be one method's alone."""
    for word in space.get("method", ()):
        for name in parts(word.partition("=")[2].strip("'")).values():
            if name not in methods.names():
                raise unknown("method", name, methods.names())
    for key, words in space.items():
        if key.split(".")[0] != "method":
            parse([*shared, words[0]])


def _is_own(word: str, space: Mapping[str, Any]) -> bool:
    key = word.lstrip("+").partition("=")[0]
    return key in space or key.split(".")[0] in OWN_KEYS


def _validated(job: Job, words: list[str]) -> list[str]:
    """The words of the runs, on questions that no test set has.

    Raises:
        UserError: a benchmark whose questions are test questions.
    """
    benchmark = job.benchmark
    if benchmark.name == "pocket" and benchmark.data is None:
        return [*words, written("benchmark.data", _pocket_validation(benchmark.tasks))]
    if benchmark.name == "jsonl" or (benchmark.name == "pocket" and benchmark.data is not None):
        return words  # of the user's own, who says what they are for
    if benchmark.name == "hf" and benchmark.split not in (None, "test"):
        return words
    said = f" benchmark.split={benchmark.split}" if benchmark.name == "hf" else ""
    raise UserError(
        f"action=tune benchmark={benchmark.name}{said}: these are test questions, and what is chosen by them scores "
        "too well on them; allowed: pocket (its validation split), jsonl with data=<validation questions>, hf with "
        "benchmark.split=validation"
    )


def _pocket_validation(tasks: Sequence[str]) -> Path:
    """The folder with pocket's validation questions of some tasks, in the layout of files of the user's own."""
    from vtc.pocket.tasks import edition_of
    from vtc.shipped import cache_folder

    editions = list(dict.fromkeys(map(edition_of, tasks)))
    folder = cache_folder() / "-".join([VALIDATION, *(f"v{edition.VERSION}" for edition in editions)])
    for edition in editions:
        for task, file in edition.materialise(folder, "validation").items():
            own = folder / f"{task}.parquet"
            if not own.is_file():
                with results.whole(own) as stream:
                    stream.write(file.read_bytes())
    return folder


# ---------------------------------------------------------------------- what is said of it
def _write(file: Path, job: Job, trials: Sequence[Trial], best: Trial | None, shared: Sequence[str]) -> None:
    def plain(trial: Trial | None) -> dict[str, Any] | None:
        if trial is None:
            return None
        entry = dataclasses.asdict(trial) | {"result": str(trial.result) if trial.result else None}
        return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in entry.items()}

    results.write_json(
        file,
        {
            "command": job.command,
            "retained": job.tune.retained,
            "price": job.tune.price,
            "seed": job.seed,
            "shared": [*shared],
            "best": plain(best),
            "trials": [plain(trial) for trial in trials],
        },
    )


def _print(job: Job, trials: Sequence[Trial], best: Trial | None, shared: Sequence[str]) -> None:
    price = PRICES[job.tune.price]
    ranked = sorted(trials, key=lambda t: (bool(t.refused), t.retained < job.tune.retained, t.price))
    rows = []
    for trial in ranked:
        cost = f"{trial.price:.1%}" if job.tune.price == "flops" else f"{trial.price:g}"
        numbers = ["–", "–"] if trial.refused else [f"{trial.retained:.1%}", cost]
        rows.append([" ".join(trial.words), *numbers, "left out" if trial.refused else "←" if trial is best else ""])
    console = terminal.console()
    console.print()
    about = "retained: mean score relative to the uncompressed model's on the same questions"
    title, header = f"{len(trials)} settings, on validation questions", ["setting", "retained", price, ""]
    console.print(terminal.table(title, header, rows, console.width, caption=about))
    if best is None:
        most = max(trial.retained for trial in trials if not trial.refused)
        console.print(f"none keeps {job.tune.retained:.0%}; the most: {most:.1%}")
        return
    words = " ".join(word for word in [*shared, *best.words] if not word.startswith("benchmark.data="))
    console.print(f"cheapest that keeps {job.tune.retained:.0%}: {' '.join(best.words)}", markup=False)
    console.print(f"on the test questions: python -m vtc {words}", markup=False, soft_wrap=True)
