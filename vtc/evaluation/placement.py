"""Which device each of several processes takes, and what they can't do together."""

from __future__ import annotations

import dataclasses
import os

from vtc.errors import UserError
from vtc.job import Job, launched


def check(job: Job) -> None:
    """What can't be done by several processes.

    Raises:
        UserError: a model over several GPUs, or a GPU for several processes.
    """
    if launched() == 1:
        return
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true":
            raise UserError(
                f"accelerate: {kind} splits a model that is trained; to evaluate, each process holds all of it: "
                "see conf/accelerate/ddp.yaml"
            )
    device_map, device, count = job.backbone.device_map, job.backbone.device, launched()
    if device_map is not None:
        raise UserError(
            f"backbone.device_map={device_map}: spreads one model over the GPUs, but {count} processes "
            "were started and each loads its own; leave out device_map or the launcher"
        )
    if device.startswith("cuda:"):
        raise UserError(
            f"backbone.device={device}: {count} processes would share it; with auto each takes a GPU of its own"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or count)
    if _on_gpus(device) and here > (gpus := _gpus()):
        raise UserError(f"backbone.device={device}: {here} processes for {gpus} GPUs; start one a GPU at most")


def on_own_device(job: Job) -> Job:
    """The same job with the device that is this process's own."""
    device = job.backbone.device
    if launched() > 1 and _on_gpus(device):
        import torch

        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    elif launched() > 1 and device == "auto" and _gpus():
        device = "cpu"  # as the launcher's own settings have it
    return dataclasses.replace(job, backbone=dataclasses.replace(job.backbone, device=device))


def _on_gpus(device: str) -> bool:
    cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return (device == "cuda" or (device == "auto" and not cpu)) and _gpus() > 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
