"""From lmms-eval's log of one task to its scores, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtc import statistics
from vtc.evaluation import catalogue, scoring
from vtc.evaluation.spec import ScoredSample, TaskScores, TaskSpec
from vtc.job import AUTO

if TYPE_CHECKING:
    from vtc.evaluation.model import VtcModel


def scores_of(spec: TaskSpec, results: Mapping[str, Any], model: VtcModel) -> TaskScores:
    """What lmms-eval returned of a task, together with what the model noted of each sample.

    Args:
        results: as `simple_evaluate` returns them, samples among them.
    """
    task, about = spec.scored_as, spec.about
    names = [n for n in results["results"] if n in results.get("samples", {}) or n == task]
    config = results["configs"].get(task, {})
    metadata = catalogue.metadata(config)
    metrics = _metrics(results, names)
    order = [m["metric"] for m in config.get("metric_list") or [] if isinstance(m.get("metric"), str)]
    headline = (
        about.metric
        or metadata.get("headline")
        or next((m for m in order if m in metrics), next(iter(metrics), "score"))
    )
    own = results.get("samples", {})
    # The name of each sample's task, which in a group is a member's.
    named = [(name, sample) for name in ([task] if own.get(task) else names) for sample in own.get(name, [])]
    logged = [sample for _, sample in named]
    docs = [s["doc"] for s in logged]
    records = [s.get(headline) for s in logged]
    kind = metadata.get("samples")
    scores: list[float | None] = list(scoring.OVER_ALL[kind](records)) if kind else [_number(r) for r in records]
    strata, clusters = ([_column(metadata.get(which), d) for d in docs] for which in ("strata", "clusters"))
    value = metrics.get(headline)
    known = [x for x in scores if x is not None]
    if about.samples_mean and known:
        value = statistics.mean(known, strata)
    if len(known) < len(scores) or not known or abs((statistics.mean(known, strata) or 0.0) - (value or 0.0)) > 1e-6:
        if metadata.get("headline") and known:
            raise RuntimeError(f"{spec.name}: the samples' scores don't make {headline}={value}")
        scores = [None] * len(scores)  # a metric that isn't a mean over samples (MME): no error bar, no paired test
    samples = []
    ids = [str(sample["doc"].get("id", sample["doc_id"])) for sample in logged]
    if len(set(ids)) < len(ids):  # samples are paired by their id: where one stands names it too
        ids = [f"{name}:{sample['doc_id']}" for name, sample in named]
    answers = _predictions(metadata, logged, records)
    for (name, sample), i, answer, score, stratum, cluster in zip(
        named, ids, answers, scores, strata, clusters, strict=True
    ):
        key = name, int(sample["doc_id"])
        scored = ScoredSample(i, answer, _text(sample["target"]), score, stratum, document=f"{name}:{key[1]}")
        scored.cluster = cluster
        if kept := model.kept.get(key):
            scored.tokens_in, scored.tokens_kept, scored.images = kept.tokens_in, kept.tokens_out, kept.images
        if shown := model.shown.get(key):
            scored.question, scored.pictures = shown.question, shown.pictures
        samples.append(scored)
    bad = [{"id": b.id, "error": b.error} for b in model.bad]
    samples += [ScoredSample(b["id"], "", "", None, error=b["error"]) for b in bad]
    layers = [k.layers for k in model.kept.values() if k.layers]
    return TaskScores(
        task=spec.name,
        group=spec.group,
        metric=headline,
        value=value if logged else None,
        metrics=metrics,
        floors={floor: _floor(floor, docs, strata, metadata) for floor in ("blind", "bag")},
        samples=samples,
        bad=bad,
        layers=[sum(c) / len(layers) for c in zip(*layers, strict=True)] if layers else [],
        scale=about.scale,
        rows=model.rows if model.batch_size == AUTO else None,
        unjudged=sum(map(_unjudged, records)) if "judge" in about.requires else 0,
        version=str(metadata.get("version", _version(results, [task, *names]))),
    )


def _column(name: str | None, doc: Mapping[str, Any]) -> str:
    """What a document says in a column that its task names; empty where there is none."""
    value = doc.get(name, "") if name else ""
    return "" if value is None or value == -1 else str(value)


def _metrics(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The metrics of a task, or of the tasks of a group."""
    return {
        key.split(",")[0]: float(value)
        for name in names
        for key, value in results["results"][name].items()
        if "_stderr" not in key
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and "," in key
        and value == value  # no verdict at all is no score
    }


def _version(results: Mapping[str, Any], names: Sequence[str]) -> str:
    """What lmms-eval says of the first that has one: a group need not."""
    versions = results.get("versions", {})
    return next((str(versions[name]) for name in names if versions.get(name)), "")


def _number(record: Any) -> float | None:
    """A sample's score in lmms-eval's customs: a number, a dict that names it, or a pair that ends with it."""
    if isinstance(record, dict):
        record = record.get("score", record.get("is_correct"))
    elif isinstance(record, (tuple, list)) and len(record) == 2:
        record = record[1]
    return float(record) if isinstance(record, (int, float)) else None


def _unjudged(record: Any) -> bool:
    """Whether a sample's record says that the judge was silent: no record, no model (MM-Vet), no marks (LLaVA-W)."""
    if not isinstance(record, dict):
        return record is None
    return record.get("eval_model") == "" or list(record.get("scores") or ()) == [-1, -1]


def _text(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _predictions(metadata: dict[str, Any], logged: Sequence[dict[str, Any]], records: list) -> list[str]:
    """The answers in words; for embeddings the captions that are closest to the images."""
    if metadata.get("group") != "discriminative":
        answers = [sample["filtered_resps"][0] for sample in logged]
        return [str(a[0] if isinstance(a, list) and a else a) for a in answers]
    if metadata.get("samples") == "retrieval" and records:
        return [records[int(best)]["caption"] for best in scoring.similarities(records).argmax(axis=1)]
    if metadata.get("samples") == "group_retrieval" and records:
        return scoring.nearest_captions(records)
    docs = [(sample["doc"], sample[metadata["headline"]]) for sample in logged]
    return [doc["answer"] if _number(record) else doc["options"][0] for doc, record in docs]


def _floor(name: str, docs: Sequence[dict[str, Any]], strata: Sequence[str], metadata: dict[str, Any]) -> float | None:
    """The score of a floor on these samples: the mean of what the test set expects of it row by row; for captions,
    those that the floor would give, scored as the model's are. None where the test set doesn't say.

    A retrieval gallery of n can be guessed with 1/n, however many the whole set has.
    """
    if not docs:
        return None
    expected = [float(e) for d in docs if (e := d.get(name)) is not None and e == e]
    if len(expected) == len(docs):
        value = statistics.mean(expected, strata)
        return max(value or 0.0, 1 / len(docs)) if metadata.get("samples") == "retrieval" else value
    guesses = [d.get(f"{name}_prediction") for d in docs]
    if metadata.get("samples") == "captions" and all(guesses):
        return scoring.cider(
            [{"prediction": g, "references": d["references"]} for g, d in zip(guesses, docs, strict=True)]
        )
    return None
