"""Every setting with values that it can't have: a dry run answers each with a plan or in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attack import Case

NOTHING_AT_ALL = ("${nope}", "${oc.env:VTC_NOT_SET}", "${", "[", "{a:1}", "[[1]]")  # no setting is one of these
WORDS = ("abc", "狗", "../../x", "''", "nul l")
NOT_NUMBERS = ("nan", "inf", "-inf", "1e400")
LISTS = ("[]", "[1]", "[null]", "{}")
NUMBERS = ("-1", "0", "1", "0.5", "4294967296", "9223372036854775808", "18446744073709551616")
VALUES = (*NOTHING_AT_ALL, *WORDS, *NOT_NUMBERS, *LISTS, *NUMBERS, "null", "true")

# What each sort of setting can't be; of the other values either is right.
NEVER = {
    "count": {*NOTHING_AT_ALL, *WORDS, *NOT_NUMBERS, *LISTS, "-1", "0.5", "true"},
    "share": {*NOTHING_AT_ALL, *WORDS, *NOT_NUMBERS, *LISTS, "-1", "true", *NUMBERS[4:]},
    "rate": {*NOTHING_AT_ALL, *WORDS, *NOT_NUMBERS, *LISTS, "-1", "true"},
    "flag": {*NOTHING_AT_ALL, *WORDS, *NOT_NUMBERS, *LISTS, "-1", "0.5", *NUMBERS[4:]},
    "word": {*NOTHING_AT_ALL, *WORDS, *NOT_NUMBERS, *LISTS, *NUMBERS, "true"},
    "path": {*NOTHING_AT_ALL, "[1]", "[null]", "{}"},
    "names": {*NOTHING_AT_ALL, "[null]", "{}"},
}
EVALUATE = {
    "tokens": "count",
    "ratio": "share",
    "flops": "share",
    "compression": "rate",
    "seed": "count",
    "batch_size": "count",
    "layer_scale": "word",
    "resume": "flag",
    "dry_run": "flag",
    "checkpoint": "path",
    "benchmark": "word",
    "benchmark.limit": "count",
    "benchmark.tasks": "names",
    "backbone": "word",
    "backbone.dtype": "word",
    "backbone.device": "word",
    "backbone.quantization": "word",
    "backbone.attention": "word",
    "backbone.frames": "count",
    "method": "word",
    "method.layer": "count",
    "nothing_of_this_name": "word",
}
TRAIN = {
    "training.store": "word",
    "training.losses": "word",
    "training.workers": "count",
    "training.accumulate": "count",
    "training.keep": "count",
    "training.data.batch_size": "count",
    "training.data.questions": "count",
    "training.data.contrastive": "rate",
    "training.data.max_length": "count",
    "training.stages.0.name": "path",
    "training.stages.0.lr": "rate",
    "training.stages.0.steps": "count",
    "training.stages.0.bf16": "flag",
    "training.stages.0.warmup": "share",
    "training.stages.0.clip": "rate",
    "training.stages.0.betas": "word",
    "training.stages.0.optimizer": "word",
    "seed": "count",
}
FORMS = (
    ("method=fastv", "--resolve", "tokens=16"),
    ("method=fastv", "tokens=16", "hydra/launcher=nope"),
    ("method=fastv", "-m", "tokens=glob(*)"),
    ("method=fastv", "tokens"),
    ("method=fastv", "=16"),
    ("method=fastv", "tokens=16", "ratio=0.5"),
    ("method=fastv", "tokens=16,4"),
    ("method=fastv", "--nope"),
    ("method=fastv", "~method"),
    ("method=fastv", "++tokens={}"),
    ("method=fastv", "tokens=[16"),
    ("method=fastv", "tokens='16"),
    ("method=fastv+",),
    ("method=+fastv",),
    ("method=fastv+fastv", "tokens=16"),
    ("action=nope",),
    ("action=[evaluate]",),
    ("action=report", "report.inputs=5"),
    ("action=report", "report.inputs=[null]"),
    ("action=report", "report.inputs=[nowhere]"),
    ("action=ablate", "experiment=nope"),
    ("action=train", "training=nope"),
    ("experiment=../../etc/passwd",),
    ("benchmark.tasks=[nope]", "method=none"),
    ("benchmark.tasks=[pocket_existence,pocket_existence]", "method=none"),
    ("method=none", "output_dir=\0"),
)


def cases(folder: Path) -> Iterator[Case]:
    for key, sort in EVALUATE.items():
        for value in VALUES:
            argv = [f"{key}={value}", "dry_run=true"] if key != "dry_run" else [f"{key}={value}", "tokens=0"]
            argv = argv if key == "method" else ["method=fastv", *argv]
            argv += [] if key in ("tokens", "ratio", "flops", "compression", "dry_run", "method") else ["tokens=16"]
            right = "refused" if value in NEVER[sort] or key.startswith("nothing") else "either"
            yield Case(f"{key}={value}", argv, right)
    for key, sort in TRAIN.items():
        for value in VALUES:
            argv = ["action=train", "method=victor", "tokens=16", f"{key}={value}", "dry_run=true"]
            yield Case(f"train {key}={value}", argv, "refused" if value in NEVER[sort] else "either")
    for form in FORMS:
        yield Case(" ".join(form).replace("\0", "NUL"), [*form, "dry_run=true"], "refused")
