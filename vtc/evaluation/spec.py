"""What is scored and what came of it, as plain types: a task before it is scored, and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtc import statistics
from vtc.allowed import BOOLEAN, number, whole
from vtc.identity import NOTHING, SCORES, deciding, digest, setting
from vtc.settings import NAMES, TEXT

UNDERSTANDING = "understanding"  # the group of tasks whose file names none


@dataclass(frozen=True)
class About:
    """What is known of one task.

    Attributes:
        paper: what the papers call it.
        metric: the headline metric, as lmms-eval names it; None: the task's own, its first.
        scale: the headline value is divided by it in averages, so that all tasks speak of a share: 100 for percentages,
            2000 for MME's perception score; 1 for what is a share already.
        data: the data set on the hub, or the folder inside `benchmark.data`.
        files: what that folder holds, where it is no data set.
        licence: of the data.
        requires: what must be there before a run, of `vtc.evaluation.suite.NEEDS`.
        instead: a task that asks the same and requires less.
        max_new_tokens: for a task that sets none; without, a rambling answer would go on for 1,024 tokens.
        samples_mean: the headline is the mean of the samples' scores, where upstream divides by the size of the whole
            set however many were scored, states a hundred times as much, or has no score for a group as a whole.
        together: questions in a row that are scored as one: `benchmark.limit` must be a multiple of it, and where one
            of them can't be answered, none of them counts.
        note: what a reader of the score should know.
    """

    paper: str = setting("", NOTHING)
    metric: str | None = setting(None, SCORES, TEXT)
    scale: float = setting(1.0, SCORES, number("a number above 0, what the full score is", above=0))
    data: str | None = setting(None, NOTHING, TEXT)
    files: tuple[str, ...] = setting((), NOTHING, NAMES)
    licence: str = setting("", NOTHING)
    requires: tuple[str, ...] = setting((), NOTHING, NAMES)
    instead: str | None = setting(None, NOTHING, TEXT)
    max_new_tokens: int | None = setting(None, SCORES, whole(1).or_null())
    samples_mean: bool = setting(False, SCORES, BOOLEAN)
    together: int = setting(1, SCORES, whole(1))
    note: str = setting("", NOTHING)


@dataclass(frozen=True)
class TaskSpec:
    """One task of a run.

    Attributes:
        name: as the user asks for it and the result has it.
        definition: the task of lmms-eval that it is scored as; None: the one of its name.
        group: `understanding` (generated answers) or `discriminative` (embeddings compared).
        limit: samples; None: all.
        seed: of whatever the task draws.
        dataset_kwargs: what its data are loaded with; None: what its file says.
        mirror: the folder that the task is run in, where it finds its data by the names that the hub has.
        about: what the suite says of it.
        data: what of its data and its definition decides a score.
    """

    name: str
    definition: str | None = None
    group: str = UNDERSTANDING
    limit: int | None = None
    seed: int = 0
    dataset_kwargs: Mapping[str, Any] | None = None
    mirror: str | None = None
    about: About = About()
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scored_as(self) -> str:
        """The task of lmms-eval."""
        return self.definition or self.name

    @property
    def identity(self) -> str:
        """Hash of what decides its scores beside the settings of the run."""
        return digest({"task": self.scored_as, "data": self.data, "about": deciding(self.about, SCORES)})


@dataclass
class ScoredSample:
    """One scored sample.

    Attributes:
        score: None where the sample is bad, or where its task has no score a sample.
        cluster: names the samples that belong together, as those of look-alikes do; empty: it is its own.
        question: the text that the model was shown.
        document: which row of which task of lmms-eval it is, `task:number`: where its pictures can be opened again.
        pictures: a hash of each picture's pixels (`vtc.data.pictures.hash_picture`).
        images: of each image, frame or picture: `holders`, for each of its visual tokens which of them holds it in the
            end (itself: kept; another: merged into that one; -1: dropped); `made`, how many tokens were made of the
            image as a whole (registers, resampled and summary tokens); `regions`, where its tokens stand on the picture
            (`vtc.backbones.regions.Region`; empty: not known). None: not known, or too many to keep.
    """

    id: str
    prediction: str
    target: str
    score: float | None
    stratum: str = ""
    tokens_in: float | None = None
    tokens_kept: float | None = None
    error: str | None = None
    question: str = ""
    document: str | None = None
    pictures: list[str] = field(default_factory=list)
    images: list[dict[str, Any]] | None = None
    cluster: str = ""


@dataclass
class TaskScores:
    """What a model did on one task.

    Attributes:
        group: see `TaskSpec`.
        metric: the headline metric; `value` is it, None where no sample could be scored.
        metrics: every metric as lmms-eval aggregated it, without bad samples.
        floors: `blind` (no image seen) and `bag` (which attributes are there, not which belong together), where known.
        bad: `{id, error}` of the samples that could not be answered.
        layers: visual tokens in each decoder layer, mean over samples; empty where not reported.
        scale: `value` is divided by it in averages.
        rows: samples of a batch in the end, where that was not given (`batch_size=auto`).
        unjudged: samples on which a judge gave no verdict; upstream's tasks count them as wrong.
    """

    task: str
    group: str
    metric: str
    value: float | None
    metrics: dict[str, float]
    floors: dict[str, float | None]
    samples: list[ScoredSample]
    bad: list[dict[str, str]]
    layers: list[float] = field(default_factory=list)
    version: str = ""
    scale: float = 1.0
    unjudged: int = 0
    rows: int | None = None

    @property
    def scored(self) -> list[ScoredSample]:
        return [s for s in self.samples if s.score is not None]

    @property
    def n(self) -> int:
        """Samples that count in the score."""
        return len(self.samples) - len(self.bad)

    def stderr(self) -> float | None:
        scored = self.scored
        clusters = [s.cluster or s.id for s in scored] if any(s.cluster for s in scored) else None
        strata = [s.stratum for s in scored]
        return statistics.stderr([s.score for s in scored], strata, clusters=clusters) if scored else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which are not copied: there are millions of numbers in the samples' `images`."""
        return {**vars(self), "samples": [dict(vars(sample)) for sample in self.samples]}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> TaskScores:
        return cls(**{**stored, "samples": [ScoredSample(**s) for s in stored["samples"]]})
