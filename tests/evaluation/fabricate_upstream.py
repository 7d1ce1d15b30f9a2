"""A mirror of the hub with a few rows of every suite's data in the schema that lmms-eval reads, and what to answer.

    mirror(folder)           folder/lmms-lab-encoder/POPE/{README.md, Full/random.parquet, …}, for benchmark.data
    ANSWERS[task](doc)       (the right answer, a wrong one) to a row
    FULL[task]               the share that right answers score, where it isn't 1

The columns are those that the published data sets have; lmms-eval's tasks read them with their own code.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Rows = list[dict[str, Any]]
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
LETTERS = "ABCD"
WORDS = ("blue kite", "red bus", "green door", "old clock")
SENTENCES = (
    "a blue kite flies over the quiet beach at noon",
    "two red buses wait near an empty station tonight",
    "someone opens the green door of a wooden house",
    "an old clock hangs above five sleeping white cats",
)


def png(seed: int, width: int = 24, height: int = 24) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


# The data sets: (name, configuration, split) → rows ---------------------------------------------------------------


def gqa() -> Rows:
    return [
        {"id": f"2{i}", "imageId": f"n{i}", "question": f"What is in picture {i}?", "answer": WORDS[i],
         "fullAnswer": f"It is the {WORDS[i]}.", "isBalanced": True}
        for i in range(4)
    ]  # fmt: skip


def gqa_images() -> Rows:
    return [{"id": f"n{i}", "image": png(i)} for i in range(4)]


def mmbench() -> Rows:
    return [
        {"index": i + 1, "question": f"Which one is number {i}?", "hint": "Look closely." if i % 2 else "nan",
         "answer": LETTERS[i], **{c: f"{WORDS[j]} {i}" for j, c in enumerate(LETTERS)}, "category": "attribute",
         "image": png(i), "source": "fabricated", "L2-category": "perception", "comment": "nan", "split": "dev"}
        for i in range(4)
    ]  # fmt: skip


def mme() -> Rows:
    return [
        {"question_id": f"{category}/1.png", "image": png(i), "category": category, "answer": answer,
         "question": f"Is this {category} {answer}? Please answer yes or no."}
        for i, category in enumerate((*PERCEPTION, "code_reasoning")) for answer in ("Yes", "No")
    ]  # fmt: skip


def pope(category: str) -> Rows:
    return [
        {"id": str(i), "question_id": str(i), "question": f"Is there a {WORDS[i]} in the image?",
         "answer": "yes" if i % 2 else "no", "image_source": f"COCO_val2014_{i}", "image": png(i), "category": category}
        for i in range(4)
    ]  # fmt: skip


def scienceqa() -> Rows:
    return [
        {"image": png(i), "question": f"Which is it, {i}?", "choices": list(WORDS), "answer": i,
         "hint": "A hint." if i % 2 else "", "task": "closed choice", "grade": "grade2", "subject": "natural science",
         "topic": "physics", "category": "", "skill": "", "lecture": "", "solution": ""}
        for i in range(4)
    ]  # fmt: skip


def textvqa() -> Rows:
    return [
        {"image_id": f"t{i}", "question_id": i, "question": f"what does sign {i} say?", "image": png(i),
         "answers": [WORDS[i]] * 10, "ocr_tokens": WORDS[i].split(), "set_name": "val"}
        for i in range(4)
    ]  # fmt: skip


def vizwiz() -> Rows:
    return [
        {"question_id": f"VizWiz_val_{i}.jpg", "image": png(i), "question": f"What is can {i}?",
         "answers": [WORDS[i]] * 10, "category": "other"}
        for i in range(4)
    ]  # fmt: skip


def vqav2() -> Rows:
    return [
        {"question_type": "what is", "multiple_choice_answer": WORDS[i], "image_id": i, "answer_type": "other",
         "answers": [{"answer": WORDS[i], "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)],
         "question_id": 10 + i, "question": f"What is at {i}?", "image": png(i)}
        for i in range(4)
    ]  # fmt: skip


def seedbench() -> Rows:
    return [
        {"answer": LETTERS[i], **{f"choice_{c.lower()}": f"{WORDS[j]} {i}" for j, c in enumerate(LETTERS)},
         "data_id": str(i), "data_type": "video" if i == 3 else "image", "question_id": f"{i}", "question_type_id": i,
         "question": f"What is shown in {i}?", "image": [png(i), png(i + 9)] if i == 3 else [png(i)], "segment": [0, 1]}
        for i in range(4)
    ]  # fmt: skip


def mmmu() -> Rows:
    def row(i: int, **more: Any) -> dict[str, Any]:
        options = str([f"{w} {i}" for w in WORDS])
        return {
            "id": f"validation_Math_{i}", "question": f"What does <image 1> show, {i}?", "options": options,
            "explanation": "", **{f"image_{k}": png(k) if k == 1 else None for k in range(1, 8)},
            "img_type": "['Plots']", "answer": LETTERS[i % 4], "topic_difficulty": "Easy",
            "question_type": "multiple-choice", "subfield": "Calculus",
        } | more  # fmt: skip

    two = row(2, question="Is it more in <image 1> or in <image 2>?", image_2=png(2), id="validation_Art_2")
    return [
        row(0),
        row(1),
        two,
        row(3, question_type="open", options="[]", answer="seventeen", id="validation_Music_3"),
    ]


def mmvet() -> Rows:
    return [
        {"question_id": f"v1_{i}", "image": png(i), "question": f"What is {i}?", "answer": WORDS[i],
         "image_source": "fabricated", "capability": "rec,ocr"}
        for i in range(4)
    ]  # fmt: skip


def llava_wild() -> Rows:
    return [
        {"question_id": i, "question": f"Tell me of {i}.", "image": png(i), "caption": SENTENCES[i],
         "gpt_answer": SENTENCES[i], "category": ("conv", "detail", "complex")[i % 3], "image_id": f"00{i}"}
        for i in range(4)
    ]  # fmt: skip


def flickr30k() -> Rows:
    return [
        {"image": png(i), "caption": [SENTENCES[i]], "sentids": [str(i)], "img_id": str(i), "filename": f"{i}.jpg"}
        for i in range(4)
    ]


def coco() -> Rows:
    return [
        {"question_id": f"COCO_val2017_{i:012}.jpg", "image": png(i), "question": "Please describe the image.",
         "answer": [SENTENCES[i]], "id": i, "license": 1, "file_name": f"{i:012}.jpg", "coco_url": "", "height": 24,
         "width": 24, "date_captured": ""}
        for i in range(4)
    ]  # fmt: skip


def nocaps() -> Rows:
    return [
        {"image": png(i), "image_coco_url": "", "image_file_name": f"{i}.jpg", "image_id": i, "image_license": 0,
         "annotations_ids": [i], "annotations_captions": [SENTENCES[i]], "image_domain": "in-domain"}
        for i in range(4)
    ]  # fmt: skip


def textcaps() -> Rows:
    return [
        {"question_id": f"{i}.jpg", "question": "", "image": png(i), "image_id": f"t{i}", "set_name": "val",
         "image_name": f"t{i}", "caption_id": [i], "caption_str": [SENTENCES[i]], "reference_strs": [SENTENCES[i]]}
        for i in range(4)
    ]  # fmt: skip


def hallusion() -> Rows:
    return [
        {"category": "VS" if i // 2 else "VD", "subcategory": "figure", "visual_input": "1", "set_id": str(i // 2),
         "figure_id": str(i % 2), "sample_note": "", "question_id": "0", "question": f"Is line {i // 2} longer?",
         "gt_answer_details": "It is." if i % 2 else "It is not.", "gt_answer": str(i % 2), "filename": f"{i}.png",
         "image": png(i)}
        for i in range(4)
    ]  # fmt: skip


def docvqa() -> Rows:
    return [
        {"questionId": str(i), "question": f"What is the title of page {i}?", "question_types": ["layout"],
         "image": png(i), "docId": i, "ucsf_document_id": "x", "ucsf_document_page_no": "1", "answers": [WORDS[i]],
         "data_split": "val"}
        for i in range(4)
    ]  # fmt: skip


def infovqa() -> Rows:
    return [
        {"questionId": str(i), "question": f"How many are {i}?", "answers": [WORDS[i]], "answer_type": ["single span"],
         "image": png(i), "image_url": "", "operation/reasoning": [""], "ocr": "", "data_split": "val"}
        for i in range(4)
    ]  # fmt: skip


def chartqa() -> Rows:
    answers = ("12.5", "Norway", "40%", "2011")
    return [
        {"type": ("human_test", "augmented_test")[i % 2], "question": f"What is bar {i}?", "answer": answers[i],
         "image": png(i)}
        for i in range(4)
    ]  # fmt: skip


def ocrbench() -> Rows:
    kinds = ("Regular Text Recognition", "Scene Text-centric VQA", "Doc-oriented VQA",
             "Handwritten Mathematical Expression Recognition")  # fmt: skip
    return [
        {"dataset": "HME100k" if i == 3 else "IIIT5K", "question": f"what is written in the image {i}?",
         "question_type": kinds[i], "answer": [WORDS[i]], "image": png(i)}
        for i in range(4)
    ]  # fmt: skip


def ai2d() -> Rows:
    return [
        {"question": f"Which part is {i}?", "options": list(WORDS), "answer": str(i), "image": png(i)} for i in range(4)
    ]


E = "lmms-lab-encoder"
DATA: dict[tuple[str, str, str], Rows] = {
    (f"{E}/GQA", "testdev_balanced_instructions", "testdev"): gqa(),
    (f"{E}/GQA", "testdev_balanced_images", "testdev"): gqa_images(),
    (f"{E}/MMBench", "en", "dev"): mmbench(),
    (f"{E}/MMBench", "cn", "dev"): mmbench(),
    (f"{E}/MME", "default", "test"): mme(),
    (f"{E}/POPE", "default", "test"): pope("random"),
    **{(f"{E}/POPE", "Full", kind): pope(kind) for kind in ("adversarial", "popular", "random")},
    (f"{E}/ScienceQA", "ScienceQA-IMG", "test"): scienceqa(),
    (f"{E}/textvqa", "default", "validation"): textvqa(),
    (f"{E}/VizWiz-VQA", "default", "val"): vizwiz(),
    (f"{E}/VQAv2", "default", "validation"): vqav2(),
    (f"{E}/SEED-Bench", "default", "test"): seedbench(),
    (f"{E}/MMMU", "default", "validation"): mmmu(),
    (f"{E}/MMVet", "default", "test"): mmvet(),
    (f"{E}/llava-bench-in-the-wild", "default", "train"): llava_wild(),
    (f"{E}/flickr30k", "default", "test"): flickr30k(),
    (f"{E}/COCO-Caption2017", "default", "val"): coco(),
    (f"{E}/NoCaps", "default", "validation"): nocaps(),
    (f"{E}/TextCaps", "default", "val"): textcaps(),
    (f"{E}/HallusionBench", "default", "image"): hallusion(),
    (f"{E}/DocVQA", "DocVQA", "validation"): docvqa(),
    (f"{E}/DocVQA", "InfographicVQA", "validation"): infovqa(),
    (f"{E}/ChartQA", "default", "test"): chartqa(),
    ("echo840/OCRBench", "default", "test"): ocrbench(),
    (f"{E}/ai2d", "default", "test"): ai2d(),
}
VIDEOS = {
    "MSVD_Zero_Shot_QA": ("videos", "", ".avi"),
    "MSRVTT_Zero_Shot_QA": ("videos/all", "", ".mp4"),
    "Activitynet_Zero_Shot_QA": ("all_test", "v_", ".mp4"),
}


def mirror(folder: Path) -> Path:
    """Writes everything below `folder`."""
    for name in {key[0] for key in DATA}:
        write(folder / name, {key[1:]: rows for key, rows in DATA.items() if key[0] == name})
    for name, (videos, prefix, suffix) in VIDEOS.items():
        (folder / name / videos).mkdir(parents=True)
        asked = [{"video_name": f"clip{i}", "question": f"what is seen in {i}", "question_id": i} for i in range(4)]
        (folder / name / "test_q.json").write_text(json.dumps(asked))
        (folder / name / "test_a.json").write_text(
            json.dumps([{"answer": WORDS[i], "question_id": i, "type": 0} for i in range(4)])
        )
        for i in range(4):
            write_video(folder / name / videos / f"{prefix}clip{i}{suffix}", 12 + i)
    return folder


def write(folder: Path, splits: dict[tuple[str, str], Rows]) -> None:
    """A data set as the hub has it: a card that names the configurations, parquet files with typed images."""
    import datasets

    datasets.disable_progress_bars()
    folder.mkdir(parents=True)
    configs: dict[str, list[str]] = {}
    for (config, split), rows in splits.items():
        table = datasets.Dataset.from_list(rows)
        for column, value in rows[0].items():
            if isinstance(value, dict) and "bytes" in value:
                table = table.cast_column(column, datasets.Image())
            elif isinstance(value, list) and value and isinstance(value[0], dict) and "bytes" in value[0]:
                table = table.cast_column(column, datasets.Sequence(datasets.Image()))
        for column in (c for c in table.column_names if c.startswith("image_") and rows[0][c] is None):
            table = table.cast_column(column, datasets.Image())  # MMMU's image_2 … image_7
        table.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        configs.setdefault(config, []).append(f"  - split: {split}\n    path: {config}/{split}-*\n")
    card = "".join(f"- config_name: {name}\n  data_files:\n{''.join(files)}" for name, files in configs.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")


def write_video(file: Path, frames: int, size: int = 32) -> None:
    """A video whose frame i is as bright as 10 i, up to the 25th."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            grey = np.full((size, size, 3), min(10 * i, 250), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


# What to answer -----------------------------------------------------------------------------------------------------

Answer = Callable[[dict[str, Any]], tuple[str, str]]
NONSENSE = "zebra xylophone"


def _other(letter: str) -> str:
    return LETTERS[(LETTERS.index(letter) + 1) % 4]


def _letter(key: str) -> Answer:
    return lambda doc: (doc[key], _other(doc[key]))


def _index(doc: dict[str, Any]) -> tuple[str, str]:
    return LETTERS[int(doc["answer"])], _other(LETTERS[int(doc["answer"])])


def _yes_no(doc: dict[str, Any]) -> tuple[str, str]:
    said = doc["answer"].lower()
    return said, "no" if said == "yes" else "yes"


def _text(key: str) -> Answer:
    return lambda doc: (doc[key] if isinstance(doc[key], str) else doc[key][0], NONSENSE)


def _mmmu(doc: dict[str, Any]) -> tuple[str, str]:
    if doc["question_type"] == "open":
        return doc["answer"], NONSENSE
    assert len(ast.literal_eval(doc["options"])) == 4
    return doc["answer"], _other(doc["answer"])


ANSWERS: dict[str, Answer] = {
    "gqa": _text("answer"),
    "mmbench_en_dev_static": _letter("answer"),
    "mmbench_cn_dev_static": _letter("answer"),
    "mme": _yes_no,
    **dict.fromkeys(("pope", "pope_random", "pope_pop", "pope_adv"), _yes_no),
    "scienceqa_img": _index,
    "textvqa_val": _text("answers"),
    "vizwiz_vqa_val": _text("answers"),
    "vqav2_val": lambda doc: (doc["multiple_choice_answer"], NONSENSE),
    "seedbench": _letter("answer"),
    "mmmu_val": _mmmu,
    "mmvet": _text("answer"),
    "llava_in_the_wild": _text("gpt_answer"),
    **dict.fromkeys(("flickr30k_test", "flickr30k_test_no_java"), _text("caption")),
    **dict.fromkeys(("coco2017_cap_val", "coco2017_cap_val_no_java"), _text("answer")),
    **dict.fromkeys(("nocaps_val", "nocaps_val_no_java"), _text("annotations_captions")),
    **dict.fromkeys(("textcaps_val", "textcaps_val_no_java"), _text("caption_str")),
    "hallusion_bench_yes_no": lambda doc: ("Yes.", "No.") if doc["gt_answer"] == "1" else ("No.", "Yes."),
    "docvqa_val": _text("answers"),
    "infovqa_val": _text("answers"),
    "chartqa": _text("answer"),
    "ocrbench": _text("answer"),
    "ai2d": _index,
    **{f"{name}_qa{how}": _text("answer") for name in ("msvd", "msrvtt", "activitynet") for how in ("", "_judged")},
}
# CIDEr-D of a caption that is its only reference, word for word, is 10.
FULL = {task: 10.0 for task in ANSWERS if "_cap_" in task or task.startswith(("flickr30k", "nocaps", "textcaps"))}
