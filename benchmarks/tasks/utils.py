"""What the YAMLs here name with `!function utils.…`; the metrics themselves are in `vtc.evaluation`. Pictures are
handed on with their header read; the model decodes them.

Nothing here may raise on a model's answer: lmms-eval would try again four times, two seconds apart, and end the run.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from vtc.data.pictures import opened
from vtc.errors import UserError
from vtc.evaluation import answers, scoring
from vtc.evaluation.model import LocalTask
from vtc.evaluation.sources import RowsSource, source_from, user_questions
from vtc.pocket.questions import LETTERS
from vtc.pocket.tasks import path
from vtc.pocket.video import cut

Doc = dict[str, Any]


class PocketTask(LocalTask):
    """A task over one parquet file of (id, image, question, answer, options, kind, references, blind, bag).

    Unlike the base class it keeps the image column undecoded, so that a corrupt image is met by the model, which
    reports it, and not by the harness, which stops; and it reads the file itself, which leaves no copy in a cache.
    """

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        kwargs = dataset_kwargs or {}
        files = kwargs.get("data_files", {})
        file = Path(files["test"]) if "test" in files else path(self.config.task, kwargs.get("folder"))
        import pyarrow.parquet as pq

        rows = datasets.Dataset(pq.read_table(file).replace_schema_metadata())
        image = datasets.Image(decode=False)
        self.dataset = datasets.DatasetDict({"test": rows.cast_column("image", image)})
        self.dataset_no_image = datasets.DatasetDict({"test": rows.remove_columns("image")})


class OwnTask(LocalTask):
    """A task over rows that a source of vtc's gives (`vtc.evaluation.sources`)."""

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        if not dataset_kwargs or "source" not in dataset_kwargs:
            raise UserError(f"{self.config.task}: python -m vtc benchmark=jsonl (or hf) gives it its data")
        source = source_from(dataset_kwargs)
        assert isinstance(source, RowsSource)
        rows = source.table(dataset_kwargs["task"])
        self.dataset = datasets.DatasetDict({"test": rows})
        without = [column for column in rows.column_names if column not in ("picture", "pictures")]
        self.dataset_no_image = datasets.DatasetDict({"test": rows.select_columns(without)})


def own_visual(doc: Doc) -> list[Image.Image]:
    stored = [doc["picture"]] if doc.get("picture") else doc.get("pictures") or doc.get("images") or []
    return [opened(source) for source in stored]


def _own(metric: str) -> Any:
    def score(doc: Doc, results: list[str]) -> dict[str, float]:
        return {metric: user_questions.OPEN[metric](results[0], doc["answers"])}

    return score


own_exact_match, own_vqa_accuracy, own_anls = map(_own, user_questions.OPEN)


def own_choice(doc: Doc, results: list[str]) -> dict[str, float]:
    return {"choice": user_questions.choice(results[0], doc["answers"], doc["options"])}


def visual(doc: Doc) -> list[Image.Image]:
    return [opened(doc["image"])]


def frames(doc: Doc) -> list[Image.Image]:
    """The frames of a strip, one below the other, which only then is decoded."""
    strip = opened(doc["image"])
    return [strip.crop(box) for box in cut(strip.height)]


def existence(doc: Doc, results: list[str]) -> dict[str, Any]:
    prediction = answers.yes_no(results[0])
    return {
        "accuracy": float(prediction == doc["answer"]),
        "f1": (prediction, doc["answer"]),
        "yes_rate": float(prediction == "yes"),
    }


def exact_match(doc: Doc, results: list[str]) -> dict[str, float]:
    return {"exact_match": answers.exact_match(results[0], doc["answer"])}


def exact_match_of_kind(doc: Doc, results: list[str]) -> dict[str, Any]:
    """For a task whose score is the mean over its kinds of question."""
    return {"exact_match": (doc["kind"], answers.exact_match(results[0], doc["answer"]))}


def choice(doc: Doc, results: list[str]) -> dict[str, float]:
    letter = answers.letter(results[0], LETTERS[: len(doc["options"]) or None], doc["options"])
    return {"accuracy": float(letter == doc["answer"])}


def caption(doc: Doc, results: list[str]) -> dict[str, Any]:
    record = {"prediction": results[0], "references": list(doc["references"] or [doc["answer"]])}
    return {"CIDEr": record, "BLEU-4": record, "ROUGE-L": record}


def two_captions(doc: Doc) -> str:
    """One text a line: the right caption first."""
    return f"{doc['answer']}\n{doc['options'][0]}"


def _embeddings(result: str) -> tuple[list[float], list[list[float]]]:
    answer = json.loads(result)
    return answer["image"], answer["texts"]


def retrieval_pair(doc: Doc, results: list[str]) -> dict[str, Any]:
    image, texts = _embeddings(results[0])
    record = {"image": image, "text": texts[0], "caption": doc["answer"]}
    return dict.fromkeys(
        ("R@1", "image_to_text_R@1", "image_to_text_R@10", "text_to_image_R@1", "text_to_image_R@10"), record
    )


def retrieval_group(doc: Doc, results: list[str]) -> dict[str, Any]:
    image, texts = _embeddings(results[0])
    record = {"image": image, "texts": texts, "captions": doc["answers"]}
    ways = [f"{way}_to_{other}_R@{k}" for way, other in (("image", "text"), ("text", "image")) for k in (1, 5, 10)]
    return dict.fromkeys(("R@1", *ways), record)


def hard_caption(doc: Doc, results: list[str]) -> dict[str, Any]:
    image, (right, wrong) = _embeddings(results[0])
    score = scoring.prefers(image, right, wrong)
    return {"accuracy": (doc["kind"], score), doc["kind"]: score}


yes_f1 = scoring.f1
cider, bleu4, rouge_l = scoring.cider, scoring.bleu4, scoring.rouge_l
retrieval, by_kind = scoring.retrieval, scoring.by_kind
image_to_text_1 = partial(scoring.recall, k=1, direction="image_to_text")
image_to_text_10 = partial(scoring.recall, k=10, direction="image_to_text")
text_to_image_1 = partial(scoring.recall, k=1, direction="text_to_image")
text_to_image_10 = partial(scoring.recall, k=10, direction="text_to_image")
group_retrieval = scoring.group_retrieval
group_image_to_text_1, group_image_to_text_5, group_image_to_text_10 = (
    partial(scoring.group_recall, k=k, direction="image_to_text") for k in (1, 5, 10)
)
group_text_to_image_1, group_text_to_image_5, group_text_to_image_10 = (
    partial(scoring.group_recall, k=k, direction="text_to_image") for k in (1, 5, 10)
)
