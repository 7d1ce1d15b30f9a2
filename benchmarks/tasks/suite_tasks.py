"""What the task files of the suites name with `!function suite_tasks.…`: tasks that lmms-eval lacks, and some that it
has, scored without Java or a judge.

Nothing here may raise on a model's answer: lmms-eval would try again four times, two seconds apart, and end the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from vtc.data.pictures import open_picture
from vtc.errors import UserError
from vtc.evaluation import answers, scoring
from vtc.evaluation.model import LocalTask

Doc = dict[str, Any]
VIDEOS = (".mp4", ".avi", ".webm", ".mkv", ".mov")


# Videos: MSVD-QA, MSRVTT-QA, ActivityNet-QA --------------------------------------------------------------------------


class VideoTask(LocalTask):
    """Questions about videos as Video-LLaVA's evaluation data has them (after Video-ChatGPT's), which LLaVolta uses:

        MSVD_Zero_Shot_QA/test_q.json    [{"video_name": …, "question": …, "question_id": …}, …]
        MSVD_Zero_Shot_QA/test_a.json    [{"answer": …, "question_id": …}, …]
        MSVD_Zero_Shot_QA/videos/<video_name>.avi

    `dataset_path` is that folder, where the process runs (vtc runs it in `benchmark.data`); `dataset_name` the folder
    of videos inside it, with the prefix of their names: `all_test/v_`.
    """

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        folder, (inside, _, prefix) = Path(self.DATASET_PATH).resolve(), self.DATASET_NAME.rpartition("/")
        rows = questions(folder, folder / inside, prefix, str(self.config.task))
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
        self.dataset_no_image = self.dataset


def questions(folder: Path, videos: Path, prefix: str, task: str) -> list[Doc]:
    """The rows: id, video (a path, whether it is there or not), question, answer.

    Raises:
        UserError: files that are no such lists, or not one of the videos.
    """
    entries, answer_entries = (_list(folder / name, task) for name in ("test_q.json", "test_a.json"))
    answers = {str(a.get("question_id")): str(a.get("answer")) for a in answer_entries}
    there = {p.stem: p for p in sorted(videos.iterdir()) if p.suffix.lower() in VIDEOS}
    rows: list[Doc] = []
    ids: set[str] = set()
    for at, q in enumerate(entries):
        number, name = str(q.get("question_id")), f"{prefix}{q.get('video_name')}"
        where = f"benchmark.tasks={task}: {folder / 'test_q.json'}: entry {at}"
        if number not in answers or not q.get("question"):
            raise UserError(f"{where} has no question or no answer")
        if number in ids or q.get("question_id") is None:
            raise UserError(f"{where}: question_id={number}: each question needs an id of its own")
        ids.add(number)
        path = there.get(name, videos / f"{name}{VIDEOS[0]}")
        rows.append({"id": number, "video": str(path), "question": str(q["question"]), "answer": answers[number]})
    if not any(Path(row["video"]).stem in there for row in rows):
        raise UserError(
            f"benchmark.tasks={task}: none of its videos is in {videos}, such as {Path(rows[0]['video']).name}"
        )
    return rows


def _list(file: Path, task: str) -> list[Doc]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"benchmark.tasks={task}: {file} can't be read ({error})") from None
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise UserError(f"benchmark.tasks={task}: {file}: a list of objects is needed")
    return content


def video(doc: Doc) -> list[str]:
    return [doc["video"]]


def video_question(doc: Doc) -> str:
    question = doc["question"].strip()
    end = "" if question.endswith("?") else "?"
    return f"{question[0].upper()}{question[1:]}{end}\nAnswer the question using a single word or phrase."


def contains_answer(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """1 where the words of the answer stand in what was said, in their order; and where they are all that was said."""
    prediction, answer = _words(results[0]), _words(doc["answer"])
    starts = range(len(prediction) - len(answer) + 1)
    inside = any(prediction[i : i + len(answer)] == answer for i in starts)
    return {"contains_answer": float(bool(answer) and inside), "exact_match": float(prediction == answer)}


def _words(text: str) -> list[str]:
    """Words as VQAv2 compares them: no articles, `two` is 2."""
    from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

    return answers.normalise(EvalAIAnswerProcessor()(text)).split()


def judged(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Whether the judge that the user configured says that the answer is right; None where it says nothing."""
    opinion = _judge()(question=doc["question"], prediction=results[0], ground_truth=doc["answer"])
    failed = bool(opinion.metadata.get("judge_failed"))
    return {"judged_accuracy": None if failed else float(opinion.is_correct), **contains_answer(doc, results)}


@lru_cache(maxsize=1)
def _judge() -> Any:
    from lmms_eval.verifiers import VerificationPipeline
    from lmms_eval.verifiers.openai import OpenAIVerifier

    return VerificationPipeline(verifier=OpenAIVerifier(model=os.environ.get("MODEL_VERSION", "gpt-4o-2024-11-20")))


def mean_of_judged(verdicts: Sequence[float | None]) -> float:
    known = [v for v in verdicts if v is not None]
    return sum(known) / len(known) if known else float("nan")


# Images as upstream's tasks show them --------------------------------------------------------------------------------


def image(doc: Doc) -> list[Image.Image]:
    return [open_picture(doc["image"])]


def _captions(column: str) -> Any:
    def record(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
        references = doc[column] if isinstance(doc[column], list) else [doc[column]]
        entry = {"prediction": results[0] if results else "", "references": list(references)}
        return dict.fromkeys(("CIDEr", "BLEU-4", "ROUGE-L"), entry)

    return record


coco, flickr30k = _captions("answer"), _captions("caption")
nocaps, textcaps = _captions("annotations_captions"), _captions("caption_str")
bleu4, rouge_l = scoring.bleu4, scoring.rouge_l


def cider(records: Sequence[Doc]) -> float:
    """CIDEr-D as the papers give it: 1.13 is their 113."""
    return float(np.mean(scoring.OVER_ALL["cider"](records))) if records else 0.0


# HallusionBench by upstream's rule for yes and no, which its own task leaves unused ----------------------------------


def hallusion(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    sample = {k: v for k, v in doc.items() if k != "image"} | {"model_prediction": results[0]}
    right = ("yes" in results[0].lower()) == (str(doc["gt_answer"]) == "1")
    return {"aAcc": {**sample, "score": float(right)}, "qAcc": sample, "fAcc": sample}


def _hallusion(metric: str) -> Any:
    def aggregate(samples: Sequence[Doc]) -> float:
        from lmms_eval.tasks.hallusion_bench.evaluate_hb import hb_aggregation_result_intern

        return float(hb_aggregation_result_intern([dict(s) for s in samples], metric))

    return aggregate


hallusion_all, hallusion_question, hallusion_figure = (_hallusion(m) for m in ("aAcc", "qAcc", "fAcc"))


# MMBench in Chinese by upstream's rules for the English one ----------------------------------------------------------


def mmbench_cn(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    from lmms_eval.tasks.mmbench.cn_utils import mmbench_process_results

    return {"accuracy": mmbench_process_results(doc, results)["gpt_eval_score"]}


def mmbench_cn_accuracy(results: Sequence[Doc]) -> float:
    from lmms_eval.tasks.mmbench.cn_utils import mmbench_evaluator

    return 100.0 * float(mmbench_evaluator.eval_result(list(results), eval_method="static")[0])
