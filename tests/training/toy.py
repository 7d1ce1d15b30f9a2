"""A stage small enough for many runs, and processes to run it in."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch
from torch import nn

from vtc.data.training import Part
from vtc.distributed import gather_with_gradient
from vtc.methods.fwd2bot import info_nce
from vtc.settings import StageSettings
from vtc.training.loop import train_stage
from vtc.training.stage import Stage

ROWS, LENGTH, WIDTH = 8, 6, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


class Net(nn.Module):
    _no_split_modules = ["Block"]

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.frozen, self.odd = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.read = nn.Linear(WIDTH, 3)
        self.drop = nn.Dropout(0.0)


class Toy(Stage):
    """Like a method's: a mean over answered tokens, of which the rows have from none of six to all, a contrastive loss
    over the rows, an adapter that every other step has no use for, and a frozen layer.

    Args:
        contrastive: with that loss.
        dropout: of the hidden states.
        stop_at: a step that is interrupted.
    """

    name = "toy"

    def __init__(self, contrastive=True, dropout=0.0, stop_at=None):
        torch.manual_seed(0)
        self.net, self.contrastive, self.stop_at, self.seen = Net(), contrastive, stop_at, []
        self.net.frozen.requires_grad_(False)
        self.net.drop.p = dropout

    def modules(self):
        return {"net": self.net}

    def named_parameters(self):
        return ((f"net.{n}", p) for n, p in self.net.named_parameters() if "frozen" not in n)

    def batch(self, step, part):
        if step == self.stop_at:
            raise KeyboardInterrupt
        if part.index == 0:
            self.seen.append(step)
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(ROWS, LENGTH, WIDTH, generator=generator)
        answers = torch.randint(3, (ROWS, LENGTH), generator=generator)
        for row in range(ROWS):
            answers[row, 1 + row * (LENGTH - 1) // ROWS :] = -100
        odd = torch.full((ROWS,), step % 2)
        rows = part.of(ROWS)
        return x[rows], answers[rows], odd[rows]

    def weights(self, batch):
        return {"answer": int((batch[1] >= 0).sum())}

    def losses(self, batch):
        x, answers, odd = batch
        self.net.train()
        hidden = self.net.frozen(x)
        for block in self.net.blocks:
            hidden = self.net.drop(block(hidden))
        if odd[0]:
            hidden = hidden + self.net.odd(hidden)
        logits = self.net.read(hidden)
        terms = {"answer": nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=-100)}
        if self.contrastive:
            left, right = gather_with_gradient(hidden[:, 0]), gather_with_gradient(hidden[:, -1])
            terms["contrastive"] = info_nce(left, right, 0.5)
        return terms

    def images(self, batch):
        return len(batch[0])

    def tokens(self, batch):
        return batch[0].shape[0] * LENGTH

    def validate(self):
        with torch.no_grad():
            return {"read": float(self.net.read(torch.ones(1, WIDTH)).sum())}


def reference(steps, lr, clip=1.0, contrastive=True):
    """The same training in a few plain lines: the whole batch at once, AdamW, no schedule.

    Returns:
        the loss of each step, and the weights at the end.
    """
    stage = Toy(contrastive)
    trained = dict(stage.named_parameters())
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    losses = []
    for step in range(steps):
        loss = sum(stage.losses(stage.batch(step, Part())).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, {n: p.detach() for n, p in trained.items()}


def logged(folder, key="loss"):
    """What `log.jsonl` says of each logged step."""
    return [e[key] for e in map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines()) if key in e]


def plan(steps, lr=0.05, **settings):
    """How a stage is trained."""
    return StageSettings("toy", lr, steps=steps, **settings)


def train(folder, steps=6, contrastive=True, dropout=0.0, quiet=True, resume=True, accumulate=1, keep=2, **settings):
    """Trains `Toy` there."""
    stage = Toy(contrastive, dropout)
    how = plan(steps, **{"warmup": 0.0, "decay": "constant", "log_every": 1, **settings})
    report = train_stage(stage, how, folder, resume=resume, quiet=quiet, accumulate=accumulate, keep=keep)
    return stage, report


# ---------------------------------------------------------------------------------------------------- processes
_context = multiprocessing.get_context("forkserver")
# Whatever a training imports, once for all processes.
_context.set_forkserver_preload(["toy", "vtc.training.parallel", "vtc.training.state", "torch._dynamo"])


def process(call, *args, env=None):
    """A process that has begun to run `call(*args)`."""
    started = _context.Process(target=_child, args=(call, args, env or {}))
    started.start()
    return started


def _child(call, args, env):
    os.environ.update(env)
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w") if env.get("QUIET") else sys.stderr  # noqa: SIM115
    call(*args)


def sharded():
    """From now on FSDP2 in this process, which accelerate itself begins on GPUs alone."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    Accelerator(cpu=True)
    PartialState._shared_state |= {"distributed_type": DistributedType.FSDP}
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}


def together(call, *args, count=2, env=None):
    """Runs `call(*args)` in processes that train together, on CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"} | (env or {})
    runs = [
        process(call, *args, env={k: str(v) for k, v in (shared | {"RANK": r, "LOCAL_RANK": r}).items()})
        for r in range(count)
    ]
    for run in runs:
        run.join(900)
        assert run.exitcode == 0, f"a process ended with {run.exitcode}"
