"""What `fabricate_upstream` has, and the suites of recent benchmarks: long videos, boxes, small things, mathematics,
several images.

    mirror(folder)           both, and the videos where upstream's tasks look for them
    ANSWERS[name](doc)       (the right answer, a wrong one) to a row of a task, or of a task of a group
"""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import fabricate_upstream as older
from fabricate_upstream import LETTERS, NONSENSE, WORDS, Answer, Rows, png, write, write_video

from vtc.evaluation import catalogue

E = "lmms-lab-encoder"
FIVE = (*WORDS, "grey mouse")
KINDS = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")  # all that MLVU averages over
MVBENCH = catalogue.settings(catalogue.files()["mvbench"])["task"]
BLINK = catalogue.settings(catalogue.files()["blink_val"])["task"]
SUBTASK = "mvbench_"


def options(words: tuple[str, ...] = WORDS, start: str = "") -> list[str]:
    return [f"{start}{'ABCDE'[i]}. {word}" for i, word in enumerate(words)]


def videomme() -> Rows:
    return [
        {"video_id": f"00{i}", "duration": ("short", "medium", "long")[i % 3], "domain": "Knowledge",
         "sub_category": "Astronomy", "url": "", "videoID": f"clip{i}", "question_id": f"00{i}-1",
         "task_type": "OCR Problems", "question": f"What is seen in {i}?", "options": options(), "answer": LETTERS[i]}
        for i in range(4)
    ]  # fmt: skip


def mvbench(task: str) -> Rows:
    return [
        {"video": f"clip{i}.mp4", "question": f"What of {task} is in {i}?", "candidates": list(WORDS[:3]),
         "answer": WORDS[i]}
        for i in range(2)
    ]  # fmt: skip


def longvideobench() -> Rows:
    return [
        {"video_id": f"clip{i}", "question": f"At minute {i}, what is seen?", "question_category": "S2E",
         "topic_category": "NP", **{f"option{k}": FIVE[k] if k < 4 + i % 2 else "N/A" for k in range(5)},
         "correct_choice": i, "id": f"clip{i}_0", "video_path": f"clip{i}.mp4", "subtitle_path": f"clip{i}_en.json",
         "duration_group": (15, 60, 600, 3600)[i], "starting_timestamp_for_subtitles": 0.0, "duration": 9.5,
         "view_count": 1, "level": "L1-Perception"}
        for i in range(4)
    ]  # fmt: skip


def egoschema() -> Rows:
    return [
        {"question_idx": str(i), "question": f"What does C do in {i}?", "video_idx": f"clip{i}",
         "option": options(FIVE), "answer": str(i)}
        for i in range(4)
    ]  # fmt: skip


def mlvu() -> Rows:
    return [
        {"video_name": f"{i}_{kind}/clip{i % 4}.mp4", "duration": 180.0, "task_type": kind, "answer": LETTERS[i % 4],
         "question": "\n".join([f"What is in {i}?", *(f"({c}) {w}" for c, w in zip(LETTERS, WORDS, strict=True))]),
         "candidates": list(WORDS)}
        for i, kind in enumerate(KINDS)
    ]  # fmt: skip


def nextqa() -> Rows:
    return [
        {"video": f"clip{i}", "frame_count": 12, "width": 32, "height": 32, "question": f"why did {i} move",
         "answer": i, "qid": str(i), "type": "CW", **{f"a{k}": word for k, word in enumerate(FIVE)}}
        for i in range(4)
    ]  # fmt: skip


def refcoco() -> Rows:
    """Boxes of `top x, top y, width, height` in pixels of a picture of 40 × 24; each is described twice."""
    return [
        {"question_id": str(i), "image": png(i, 40, 24), "question": "", "answer": [WORDS[i], f"the {WORDS[i]}"],
         "segmentation": [0.0, 0.0], "bbox": [2.0 + i, 3.0, 12.0, 9.0 + i], "iscrowd": 0, "file_name": f"{i}.jpg"}
        for i in range(3)
    ]  # fmt: skip


def hrbench() -> Rows:
    return [
        {"index": i, "image": base64.b64encode(png(i)["bytes"]).decode(), "question": f"What is at {i}?",
         "answer": LETTERS[i], **dict(zip(LETTERS, WORDS, strict=True)), "category": ("single", "cross")[i % 2],
         "cycle_category": str(i)}
        for i in range(4)
    ]  # fmt: skip


def vstar() -> Rows:
    return [
        {"image": png(i), "text": f"What is at {i}? (A) {WORDS[0]} (B) {WORDS[1]} (C) {WORDS[2]} (D) {WORDS[3]}",
         "category": ("direct_attributes", "relative_position")[i % 2], "label": LETTERS[i], "question_id": str(i)}
        for i in range(4)
    ]  # fmt: skip


def realworldqa() -> Rows:
    said = ("A", "C", "3", "Downhill")
    return [
        {"image": png(i), "question": f"Which way is {i}?", "answer": said[i], "image_path": f"{i}.webp"}
        for i in range(4)
    ]


def mmstar() -> Rows:
    kinds = (("math", "geometry"), ("coarse perception", "image emotion"), ("logical reasoning", "common reasoning"))
    return [
        {"index": i, "question": f"What is {i}? Options: A: 1, B: 2, C: 3, D: 4", "image": png(i), "answer": LETTERS[i],
         "category": kinds[i % 3][0], "l2_category": kinds[i % 3][1],
         "meta_info": {"source": "MMBench", "split": "val", "image_path": ""}}
        for i in range(4)
    ]  # fmt: skip


def mathvista() -> Rows:
    given = (
        ("multi_choice", "text", "8/11", ["3/11", "8/11", "6/11"], None),
        ("free_form", "integer", "1450", None, None),
        ("free_form", "float", "0.6", None, 1.0),
        ("free_form", "list", "[2007, 2008]", None, None),
    )
    return [
        {"pid": str(i), "question": f"How much is {i}?", "image": f"images/{i}.jpg", "decoded_image": png(i),
         "choices": choices, "unit": None, "precision": precision, "answer": answer, "question_type": kind,
         "answer_type": form, "query": f"Hint: Please answer the question.\nQuestion: How much is {i}?",
         "metadata": {"split": "testmini", "language": "english"}}
        for i, (kind, form, answer, choices, precision) in enumerate(given)
    ]  # fmt: skip


def mathverse() -> Rows:
    versions = ("Text Dominant", "Vision Intensive", "Vision Dominant", "Vision Only", "Text Lite", "Vision Only")
    return [
        {"sample_index": str(i), "problem_index": str(i), "problem_version": version, "image": png(i),
         "question": "" if version == "Vision Only" else f"How long is {i}?", "answer": LETTERS[i % 4],
         "question_type": "free-form" if i == 5 else "multi-choice", "question_for_eval": f"How long is {i}?",
         "query_wo": f"Please directly answer the question and provide the correct option letter. {i}",
         "query_cot": "", "metadata": {"split": "testmini", "source": "GEOS", "subject": "", "subfield": ""}}
        for i, version in enumerate(versions)
    ]  # fmt: skip


def blink(task: str) -> Rows:
    return [
        {"idx": f"val_{task}_{i}", "question": f"Which is {i}?", "sub_task": task, "choices": list(WORDS[:3]),
         **{f"image_{k}": png(k) if k < 3 else None for k in range(1, 5)}, "answer": f"({LETTERS[i]})",
         "prompt": f"Which is {i}? Select from the following choices.\n(A) {WORDS[0]}\n(B) {WORDS[1]}\n(C) {WORDS[2]}",
         "explanation": ""}
        for i in range(2)
    ]  # fmt: skip


def muirbench() -> Rows:
    return [
        {"idx": str(i), "task": "Counting", "image_relation": "Independent", "image_type": "Photography",
         "question": f"How many are in <image> and in <image>, {i}?", "options": list(WORDS), "answer": LETTERS[i],
         "image_list": [png(i), png(i + 1)], "counterpart_idx": ""}
        for i in range(4)
    ]  # fmt: skip


def _name(task: str) -> str:
    return str(catalogue.settings(catalogue.files()[task])["dataset_name"])


REFCOCO = {"RefCOCO": ("val", "testA", "testB"), "RefCOCOplus": ("val", "testA", "testB"), "RefCOCOg": ("val", "test")}
DATA: dict[tuple[str, str, str], Rows] = {
    ("lmms-eval/Video-MME", "default", "test"): videomme(),
    **{("OpenGVLab/MVBench", _name(task), "train"): mvbench(task) for task in MVBENCH},
    ("longvideobench/LongVideoBench", "default", "validation"): longvideobench(),
    ("lmms-eval/egoschema", "Subset", "test"): egoschema(),
    ("sy1998/MLVU_dev", "default", "test"): mlvu(),
    ("lmms-eval/NExTQA", "MC", "test"): nextqa(),
    **{(f"{E}/{name}", "default", split): refcoco() for name, splits in REFCOCO.items() for split in splits},
    **{("DreamMr/HR-Bench", "hrbench_version_split", f"hrbench_{k}k"): hrbench() for k in (4, 8)},
    (f"{E}/vstar-bench", "default", "test"): vstar(),
    (f"{E}/RealWorldQA", "default", "test"): realworldqa(),
    ("Lin-Chen/MMStar", "default", "val"): mmstar(),
    ("AI4Math/MathVista", "default", "testmini"): mathvista(),
    ("CaraJ/MathVerse-lmmseval", "testmini", "testmini"): mathverse(),
    **{("BLINK-Benchmark/BLINK", _name(task), "val"): blink(task) for task in BLINK},
    ("MUIRBENCH/MUIRBENCH", "default", "test"): muirbench(),
}  # fmt: skip


def video_files() -> list[str]:
    """Where upstream's tasks look for their videos, below HF_HOME."""
    from lmms_eval.tasks.mvbench.utils import DATA_LIST

    clips = [f"clip{i}.mp4" for i in range(4)]
    folders = {f"mvbench_video/{DATA_LIST[task.removeprefix(SUBTASK)]}" for task in MVBENCH}
    folders |= {"videomme/data", "datasets/longvideobench/videos", "egoschema/videos", "nextqa/NExTVideo"}
    return [f"{folder}/{clip}" for folder in sorted(folders) for clip in clips] + [
        f"mlvu/{row['video_name']}" for row in mlvu()
    ]


def mirror(folder: Path) -> Path:
    """Writes everything below `folder`."""
    older.mirror(folder)
    for name in {key[0] for key in DATA}:
        write(folder / name, {key[1:]: rows for key, rows in DATA.items() if key[0] == name})
    write_video(folder / "clip.mp4", 12)
    for file in video_files():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "clip.mp4", folder / file)
    return folder


def _other(letter: str, choices: int) -> str:
    return "ABCDE"[("ABCDE".index(letter) + 1) % choices]


def _option(letter: Any, choices: int = 4) -> Answer:
    return lambda doc: (letter(doc), _other(letter(doc), choices))


def _box(doc: dict[str, Any]) -> tuple[str, str]:
    """The box that the task made of its row, and one at the other end of the picture."""
    return f"It is at {[round(x, 3) for x in doc['bbox']]}.", "[0.9, 0.9, 1.0, 1.0]"


def _mathvista(doc: dict[str, Any]) -> tuple[str, str]:
    said = {"8/11": ("The correct answer is (B).", "C"), "1450": ("It costs 1,450", "1451"),
            "0.6": ("The fraction is 0.62", "The fraction is 0.66"),
            "[2007, 2008]": ("Between [2007, 2008]", "[2008, 2007]")}  # fmt: skip
    return said[doc["answer"]]


ANSWERS: dict[str, Answer] = older.ANSWERS | {
    "videomme": _option(lambda doc: doc["answer"]),
    "mvbench": _option(lambda doc: LETTERS[WORDS.index(doc["answer"])], 3),
    "longvideobench_val_static": _option(lambda doc: LETTERS[doc["correct_choice"]]),
    "egoschema_subset": _option(lambda doc: LETTERS[int(doc["answer"])], 5),
    "mlvu_dev": _option(lambda doc: doc["answer"]),
    "nextqa_mc_static": _option(lambda doc: LETTERS[doc["answer"]], 5),
    **{f"{data}_bbox_rec_{split}": _box for data in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")},
    **dict.fromkeys(("refcocog_bbox_rec_val", "refcocog_bbox_rec_test"), _box),
    **dict.fromkeys(("hrbench4k_static", "hrbench8k_static"), _option(lambda doc: doc["answer"])),
    "vstar_bench": _option(lambda doc: doc["label"]),
    "realworldqa": lambda doc: (doc["answer"], NONSENSE if len(doc["answer"]) > 1 else "D"),
    "mmstar": _option(lambda doc: doc["answer"]),
    "mathvista_testmini_static": _mathvista,
    "mathverse_vision_choice": _option(lambda doc: doc["answer"]),
    "blink_val": _option(lambda doc: doc["answer"].strip("()"), 3),
    "muirbench": _option(lambda doc: doc["answer"]),
}
