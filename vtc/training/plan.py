"""What a training would do, without weights: which parameters learn in each stage, and the memory that takes.

The model is built on torch's meta device, from its configuration alone, so that a 7B model needs no 7B of memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from vtc.checkpoint import parameters_of
from vtc.job import Job, add_lora
from vtc.training.identity import recipe, training_folder

FP32 = 4  # bytes: weights are kept in float32 and computed with in bfloat16 where a stage says bf16


@dataclass(frozen=True)
class StagePlan:
    """Counts of one stage.

    Attributes:
        trained: parameters that learn, by part.
        total: parameters there are, the method's and the adapters' among them.
    """

    name: str
    trained: dict[str, int]
    total: int

    @property
    def learning(self) -> int:
        return sum(self.trained.values())

    @property
    def memory(self) -> dict[str, int]:
        """Bytes in float32: weights, gradients, AdamW's two moments; activations come on top."""
        return {"weights": FP32 * self.total, "gradients": FP32 * self.learning, "AdamW": 2 * FP32 * self.learning}


def plan_stages(job: Job) -> list[StagePlan]:
    """The stages of a job's recipe on its backbone.

    Raises:
        UserError: what `Job.check` refuses, or a part that a stage can't train.
    """
    job = dataclasses.replace(job)  # LoRA is put on a method of its own
    job.check(trained=False)
    method = job.compressor.build()
    backbone = job.family.skeleton(job.backbone)
    own = sum(p.numel() for p in method.parameters())
    add_lora(backbone, method, recipe(job).lora)
    adapters = sum(p.numel() for _, p in parameters_of("adapters", backbone, method))
    adapters += method.extra_parameters - own
    model = sum(p.numel() for _, p in backbone.model.named_parameters() if p.device.type == "meta")
    total = model + method.extra_parameters
    stages = []
    for stage in recipe(job).stages:
        trained = {}
        for part in stage.train:
            parameters = sum(p.numel() for _, p in parameters_of(part, backbone, method))
            trained[part] = adapters if part == "adapters" else parameters
        stages.append(StagePlan(stage.name, trained, total))
    return stages


def describe(job: Job) -> list[str]:
    """`plan_stages` in lines for the console."""
    lines = []
    for stage in plan_stages(job):
        parts = ", ".join(f"{part} {count(n)}" for part, n in stage.trained.items())
        share = stage.learning / stage.total
        lines.append(f"{stage.name}: trains {parts}: {count(stage.learning)} of {count(stage.total)} ({share:.2%})")
        memory = " + ".join(f"{name} {size / 1e9:.1f} GB" for name, size in stage.memory.items())
        lines.append(f"  memory without activations: {memory} = {sum(stage.memory.values()) / 1e9:.1f} GB, in float32")
    return lines


def dry_run(job: Job) -> Path:
    """Says what would be trained, and where its weights would be; trains nothing."""
    for line in describe(job):
        print(line, flush=True)
    return training_folder(job)


def count(number: int) -> str:
    """1048576 → "1.05 M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
