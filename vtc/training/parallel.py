"""One stage on every process of a run: a single CPU or GPU, DDP, FSDP or DeepSpeed, as accelerate was launched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from vtc import distributed
from vtc.errors import UserError
from vtc.settings import StageSettings
from vtc.training.optim import build_optimizers
from vtc.training.stage import Stage

T = TypeVar("T")


class Together(nn.Module):
    """A stage's modules as one, for wrappers that must see every forward pass: it runs what it is given."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(modules)
        layers = {name for module in self.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        self._no_split_modules = sorted(layers & {type(module).__name__ for module in self.modules()})

    def forward(self, call: Callable[[], T]) -> T:
        return call()


class ParallelModel:
    """A stage's model, ready for this process's share of the work.

    Attributes:
        parameters: what is trained, by the stage's names; FSDP puts others in their place.
        raw: torch's optimizers, inside accelerate's.
        launch: how the run was launched, for the record.
        sharded: whether processes hold shards of the model or of the optimizer.
        factor: what a loss is multiplied by, so that gradients are summed over the processes, not averaged.

    Args:
        accumulate: micro-batches that each process takes a step.
        folder, log: where trackers write, and which ones.
    """

    def __init__(
        self, stage: Stage, settings: StageSettings, accumulate: int, folder: Path, log: Sequence[str] = ()
    ) -> None:
        handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        cpu = stage.device.type == "cpu"
        self.accelerator = Accelerator(
            cpu=cpu, device_placement=False, kwargs_handlers=[handler], log_with=list(log) or None, project_dir=folder
        )
        self.kind = self.accelerator.distributed_type
        self.fsdp, self.deepspeed = self.accelerator.is_fsdp2, self.kind == DistributedType.DEEPSPEED
        self.sharded = self.fsdp or self.deepspeed
        self.launch = {"kind": str(self.kind.value), "processes": distributed.world(), "accumulate": accumulate}
        self.factor = distributed.world() * (accumulate if self.deepspeed else 1)
        self._refuse(settings)
        self.accelerator.gradient_accumulation_steps = accumulate if self.deepspeed else 1
        self.autocast = settings.bf16 and self.accelerator.mixed_precision == "no"
        self.device = stage.device

        trained = {n: p for n, p in stage.named_parameters() if p.requires_grad}
        model, before = self._model(stage.modules())
        learning = {id(p) for p in trained.values()}
        self._frozen = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in learning]
        self._freeze(model, True)
        if before:  # sharded by an earlier stage of this run
            self.model, self.parameters = model, trained
            self.raw = self.optimizers = build_optimizers(trained.items(), settings)
            return
        if self.fsdp:  # every process has made the new parameters by itself
            for parameter in trained.values():
                torch.distributed.broadcast(parameter.data, 0)
        names = {id(p): n for n, p in model.named_parameters()}
        missing = [n for n, p in trained.items() if id(p) not in names]
        if missing:
            raise RuntimeError(f"stage {stage.name!r}: {missing[0]} is trained, but in none of its modules()")
        places = {n: names[id(p)] for n, p in trained.items()}
        self.raw = build_optimizers(trained.items(), settings)
        if self.deepspeed:
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            config |= {"gradient_clipping": settings.clip, "gradient_accumulation_steps": accumulate}
            config["train_micro_batch_size_per_gpu"] = 1  # DeepSpeed's own figures alone depend on it
        self.model, *self.optimizers = self.accelerator.prepare(model, *self.raw)
        now = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        self.parameters = {n: now[place] for n, place in places.items()}
        if self.fsdp:
            _SHARDED.append(self.model)

    def _refuse(self, settings: StageSettings) -> None:
        if self.kind == DistributedType.FSDP and not self.fsdp:
            raise UserError("accelerate: fsdp_version=1 is not supported; see conf/accelerate/fsdp.yaml")
        if self.accelerator.mixed_precision not in ("no", "bf16"):
            raise UserError(
                f"accelerate: mixed_precision={self.accelerator.mixed_precision} is not supported; allowed: no, bf16"
            )
        if self.sharded and settings.optimizer != "adamw":
            raise UserError(
                f"training.stages[].optimizer={settings.optimizer}: it needs whole matrices; sharded training (FSDP, "
                "DeepSpeed) has adamw"
            )

    def _model(self, modules: dict[str, nn.Module]) -> tuple[nn.Module, bool]:
        """The stage's modules as one, and whether that is sharded already."""
        if self.fsdp:
            parameters = {id(p) for m in modules.values() for p in m.parameters()}
            for model in _SHARDED:
                shards = {id(p) for p in model.parameters()}
                if parameters == shards:
                    return model, True
                if parameters & shards:
                    raise UserError(
                        "training.stages: stages with different modules can't be sharded (FSDP) in one run; "
                        "train the first alone and go on from its weights"
                    )
        return Together(modules), False

    def _freeze(self, model: nn.Module, on: bool) -> None:
        """No gradients for what is in the modules but not trained: nobody would use or clear them."""
        parameters = dict(model.named_parameters())
        for name in self._frozen:
            parameters[name].requires_grad_(not on)

    # ------------------------------------------------------------------ a step
    def losses(self, stage: Stage, batch: Any, shares: Mapping[str, float], otherwise: float) -> dict[str, Tensor]:
        """The terms of `stage.losses` that count, each times its share of the step's and `factor`.

        Under the wrapper, and in the stage's precision. Where nothing counts, a term "" of 0: the other
        processes wait for this one's backward pass.

        Args:
            shares: by term; of those that it lacks: `otherwise`.
        """

        def counted() -> dict[str, Tensor]:
            terms = stage.losses(batch)
            scaled = {n: t * (shares.get(n, otherwise) * self.factor) for n, t in terms.items()}
            terms = {n: t for n, t in scaled.items() if shares.get(n, otherwise)}
            if terms:
                return terms
            if self.sharded and not scaled:
                raise UserError(f"stage {stage.name!r}: a sharded model needs a forward pass in every part of a step")
            zero = list(scaled.values()) or [0.0 * next(iter(self.parameters.values())).sum()]
            return {"": torch.stack(zero).sum()}

        with torch.autocast(self.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext():
            return self.model(counted)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a micro-batch's gradients; those of the processes are put together in the last one of a step."""
        if self.deepspeed:  # takes the optimizer's step too
            self.accelerator.deepspeed_engine_wrapped.backward(loss, sync_gradients=last)
        else:
            self.accelerator.backward(loss)

    def alone(self, last: bool) -> contextlib.AbstractContextManager:
        """Around forward and backward of a micro-batch: nothing is sent before the last one of a step."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)

    def step(self, clip: float) -> float:
        """Clips, moves the parameters, forgets the gradients; the gradient's norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(list(self.parameters.values()), clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        return float(norm or 0.0)

    def run(self, call: Callable[[], T]) -> T:
        """`call` where every parameter is whole when its module runs. Every process calls it."""
        if not self.sharded:
            return self.accelerator.unwrap_model(self.model)(call)
        result = self.model(call)
        if self.fsdp:
            self.model.reshard()  # type: ignore[operator]  # else it waits for a backward pass
        return result

    def close(self) -> None:
        """Lets go of model and optimizers; the parameters stay what they are."""
        self._freeze(self.accelerator.unwrap_model(self.model), False)
        del self.model, self.optimizers, self.raw
        self.accelerator.free_memory()


_SHARDED: list[nn.Module] = []  # FSDP shards modules for good: a later stage of the same ones goes on with them
