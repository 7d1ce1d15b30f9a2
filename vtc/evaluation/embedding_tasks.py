"""A model under a method as an encoder of mteb's, and mteb's scores of a task sample by sample.

Beside this file only `vtc.evaluation.sources.mteb` knows mteb. Its evaluators compute every metric; what is written
here hands them embeddings, and takes from them what each query or row scored.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

from vtc import statistics
from vtc.data.pictures import IN_FLIGHT, open_picture
from vtc.errors import UserError
from vtc.evaluation.batches import USUAL
from vtc.evaluation.harness import inside, quiet_datasets
from vtc.evaluation.scorer import lent
from vtc.evaluation.sources.mteb import task_of
from vtc.evaluation.spec import ScoredSample, TaskScores, TaskSpec
from vtc.identity import digest
from vtc.job import AUTO

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.evaluation.crew import Crew
    from vtc.interface import Compressor
    from vtc.job import Job

Item = dict[str, Any]  # of an input: `image`, `text`, or both
# A metric of mteb → what its retrieval evaluator calls it in the scores of one query.
OF_A_QUERY = {"hit_rate": "success_", "ndcg": "ndcg_cut_", "map": "map_cut_", "recall": "recall_", "precision": "P_"}
ROUNDED = 1e-4  # mteb rounds what it reports to five digits


class Encoder(AbsEncoder):
    """Embeddings of pictures and texts, as `vtc.engine.embed_images` and `embed_texts` give them.

    An input of a picture and a text together is the sum of both, each of length 1: none of these models was trained to
    embed a pair, and mteb does the same for models of two towers. Instructions that mteb has for a task aren't read:
    the method's own prompt is.

    Attributes:
        on_start: called with the number of inputs that are about to come; on_sample: with how many are done.
    """

    def __init__(
        self, backbone: Backbone, method: Compressor, batch_size: int, on_sample: Callable[[int], None] | None = None
    ) -> None:
        self.backbone, self.method, self.batch_size = backbone, method, batch_size
        self.mteb_model_meta = ModelMeta.create_empty({"name": f"vtc/{backbone.name}-{method.name}"})
        self.on_start: Callable[[int], None] | None = None
        self.on_sample = on_sample

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """[n, D] of the inputs of a loader, in their order."""
        parts: list[torch.Tensor] = []
        for items in self._batches(inputs):
            parts.append(self._embed(items))
            if self.on_sample:
                self.on_sample(len(items))
        return torch.cat(parts).numpy()

    def _batches(self, inputs: Any) -> Iterator[list[Item]]:
        """In batches of our own: mteb hands on pictures one by one. Pictures with many pixels come in smaller ones."""
        waiting: list[Item] = []
        pixels = 0
        for batch in inputs:
            keys = [key for key in ("image", "text") if key in batch]
            for values in zip(*(batch[key] for key in keys), strict=True):
                item = dict(zip(keys, values, strict=True))
                if "image" in item:
                    item["image"] = open_picture(item["image"])
                    own = item["image"].width * item["image"].height
                    if waiting and pixels + own > IN_FLIGHT:
                        yield waiting
                        waiting, pixels = [], 0
                    pixels += own
                waiting.append(item)
                if len(waiting) == self.batch_size:
                    yield waiting
                    waiting, pixels = [], 0
        if waiting:
            yield waiting

    @torch.inference_mode()
    def _embed(self, items: Sequence[Item]) -> torch.Tensor:
        from vtc.engine import embed_images, embed_texts

        vectors = []
        if "image" in items[0]:
            vectors.append(embed_images(self.backbone, self.method, [item["image"] for item in items]))
        if "text" in items[0]:
            vectors.append(embed_texts(self.backbone, self.method, [str(item["text"]) for item in items]))
        if len(vectors) == 1:
            return vectors[0].float().cpu()
        return sum(torch.nn.functional.normalize(vector.float(), dim=-1).cpu() for vector in vectors)  # type: ignore


class EmbeddingScorer:
    """A loaded model, and the tasks of mteb; see `vtc.evaluation.scorer.Scorer`. `batch_size=auto` is the usual one."""

    def __init__(
        self,
        crew: Crew,
        job: Job,
        tasks: Sequence[str],
        description: str,
        say: Callable[[str], None] | None = None,
        on_sample: Callable[[int], None] | None = None,
    ) -> None:
        if say:
            say("loading the model")
        loan = contextlib.ExitStack()
        self.backbone, self.method = loan.enter_context(lent(job))
        self.close = loan.close
        rows = USUAL if job.batch_size == AUTO else int(job.batch_size)
        self.model = Encoder(self.backbone, self.method, rows, on_sample)

    def score(self, spec: TaskSpec) -> TaskScores:
        """Scores the model on one task.

        Raises:
            UserError: its data can't be loaded, or an input can't be embedded.
        """
        task = task_of(spec.name)
        with quiet_datasets(), mirrored(spec.mirror, str(spec.data["dataset"])):
            try:
                task.load_data()
                _cut(task, spec.limit)
            except Exception as error:  # whatever `datasets` makes of a folder or of the network
                words = " ".join(str(error).split())[:300]
                raise UserError(
                    f"benchmark.tasks={spec.name}: its data can't be loaded ({type(error).__name__}: {words})"
                ) from error
            if self.model.on_start:
                self.model.on_start(_inputs(task))
            return scores_of(self.model, task, spec)


@contextlib.contextmanager
def mirrored(folder: str | None, name: str) -> Iterator[None]:
    """Data sets are found in a mirror of the hub by their names. What `datasets` makes of one is kept for these very
    files: by itself it takes a folder of the same name, filled anew or another one, for what it has made before."""
    import datasets

    if folder is None:
        yield
        return
    files = sorted(path for path in (Path(folder).expanduser() / name).rglob("*") if path.is_file())
    key = digest([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files])[:16]
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f"vtc-{key}"
    with inside(folder), mock.patch.object(datasets.config, "HF_DATASETS_CACHE", cache):
        yield


def scores_of(encoder: Encoder, task: Any, spec: TaskSpec) -> TaskScores:
    """Evaluates the splits and subsets of a task whose data are loaded; each subset counts alike."""
    headline = str(spec.data["headline"])
    samples = _watched(task, headline)
    scores: dict[str, Mapping[str, Any]] = {}
    options = {"batch_size": encoder.batch_size, "show_progress_bar": False}
    for split in task.eval_splits:
        for subset, told in task.evaluate(encoder, split, encode_kwargs=options).items():
            scores[f"{split}/{subset}"] = told
    metrics = {
        name: float(np.mean([told[name] for told in scores.values()]))
        for name in next(iter(scores.values()))
        if all(_is_number(told.get(name)) for told in scores.values())
    }
    if headline not in metrics:
        raise UserError(f"benchmark.about.{spec.name}.metric={headline}: allowed: {', '.join(sorted(metrics))}")
    if not samples:  # classification, clustering, correlation: scored as a whole
        samples = [ScoredSample(str(number), "", "", None) for number in range(_rows(task))]
    for sample in samples:
        if len(scores) == 1:
            sample.stratum = ""
        else:
            sample.id = f"{sample.stratum}:{sample.id}"  # subsets number their queries alike
    known = [sample.score for sample in samples if sample.score is not None]
    mean = statistics.mean(known, [sample.stratum for sample in samples]) if len(known) == len(samples) else None
    if mean is not None and abs(mean - metrics[headline]) <= ROUNDED:
        metrics[headline] = mean
    else:  # a metric that isn't a mean over samples: no error bar, no paired test
        for sample in samples:
            sample.score = None
    return TaskScores(
        task=spec.name,
        group=spec.group,
        metric=headline,
        value=metrics[headline],
        metrics=metrics,
        floors={"blind": None, "bag": None},
        samples=samples,
        bad=[],
        scale=spec.about.scale,
        version=version("mteb"),
    )


def _searches(task: Any) -> bool:
    """Whether a task ranks documents for queries."""
    return isinstance(task, AbsTaskRetrieval)


def _pairs(task: Any) -> bool:
    """Whether a task matches a few pictures and a few texts a row."""
    return isinstance(task, AbsTaskImageTextPairClassification)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _watched(task: Any, headline: str) -> list[ScoredSample]:
    """The samples that a task will score, filled in while it does."""
    samples: list[ScoredSample] = []
    if _searches(task):
        inner = task.task_specific_scores

        def queries(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> Any:
            shown = _texts(task.dataset[hf_subset][hf_split]["queries"])
            for name, own in scores.items():
                ranked = sorted(results[name].items(), key=lambda hit: -hit[1])
                right = [document for document, grade in qrels[name].items() if grade > 0]
                samples.append(
                    ScoredSample(
                        id=str(name),
                        prediction=str(ranked[0][0]) if ranked else "",
                        target=" | ".join(map(str, right)),
                        score=_of_a_query(own, headline),
                        stratum=f"{hf_split}/{hf_subset}",
                        question=shown.get(str(name), ""),
                    )
                )
            return inner(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

        task.task_specific_scores = queries
    elif _pairs(task):
        compute = task._compute_metrics

        def rows(scores: Any, images: int, texts: int) -> Any:
            for number, row in enumerate(scores):
                own = compute([row], images, texts)
                nearest = row.argmax(dim=1).tolist()
                samples.append(
                    ScoredSample(
                        id=str(number),
                        prediction=" ".join(map(str, nearest)),
                        target=" ".join(map(str, range(images))),
                        score=own.get(headline),
                    )
                )
            return compute(scores, images, texts)

        task._compute_metrics = rows
    return samples


def _of_a_query(scores: Mapping[str, float], metric: str) -> float | None:
    """What one query scored; None of a metric that isn't a mean over queries."""
    match = re.fullmatch(r"(\w+)_at_(\d+)", metric)
    return scores.get(f"{OF_A_QUERY[match[1]]}{match[2]}") if match and match[1] in OF_A_QUERY else None


def _texts(queries: Any) -> dict[str, str]:
    if "text" not in queries.column_names:
        return {}
    return {str(name): str(text) for name, text in zip(queries["id"], queries["text"], strict=True)}


def _parts(task: Any) -> list[tuple[Any, str, Any]]:
    """What is scored: the mapping that holds it, its key in there, and the data themselves."""
    if _searches(task):
        task.convert_v1_dataset_format_to_v2(None)
    subsets = [task.dataset[name] for name in task.hf_subsets if name in task.dataset] or [task.dataset]
    return [(subset, split, subset[split]) for subset in subsets for split in task.eval_splits if split in subset]


def _cut(task: Any, limit: int | None) -> None:
    """Leaves the first `limit` queries, with everything that they are searched in, or rows."""
    if limit is None:
        return
    for place, key, data in _parts(task):
        if _searches(task):
            queries = data["queries"].select(range(min(limit, len(data["queries"]))))
            names = set(queries["id"])
            relevant = {name: own for name, own in data["relevant_docs"].items() if name in names}
            place[key] = {**data, "queries": queries, "relevant_docs": relevant}
        else:
            place[key] = data.select(range(min(limit, len(data))))


def _rows(task: Any) -> int:
    """Of the data that are scored."""
    return sum(len(data["queries"] if isinstance(data, dict) else data) for _, _, data in _parts(task))


def _inputs(task: Any) -> int:
    """How many embeddings a task takes, as far as it can be told."""
    if _searches(task):
        return sum(len(data["queries"]) + len(data["corpus"]) for _, _, data in _parts(task))
    if _pairs(task):
        columns = (task.images_column_names, task.texts_column_names)
        each = sum(1 if isinstance(names, str) else len(names) for names in columns)
        return each * _rows(task)
    return _rows(task)
