"""From settings to a model in memory: checked before anything is read, read once, straight onto its device.

transformers maps a safetensors file into memory, so weights that stay as they are stored need their own memory and no
more. Where they are converted (another dtype, 4 or 8 bit), a mapped file would stay resident beside what is made of it
until the last tensor is read: then tensors are read one by one instead.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vtc import hub
from vtc.errors import UserError
from vtc.settings import SHORT_DTYPES, BackboneSettings, from_mapping

if TYPE_CHECKING:
    import torch

    from vtc.backbones.base import Backbone

B = TypeVar("B", bound="Backbone")
BITSANDBYTES = (0, 46, 1)  # from here on it has CPU kernels and transformers 5 takes it
BLOCK, BLOCKS = 64, 256  # of 4-bit weights: values that share a scale, and scales that share one of theirs
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
CONVERT = "https://huggingface.co/docs/safetensors/convert-weights"


# -- config.json
def read_config(family: type[Backbone], settings: BackboneSettings) -> Any:
    """transformers' configuration of the weights, from their folder or from the hub.

    Raises:
        UserError: no config.json there, one that can't be read, or one of another family.
    """
    source = settings.source
    if not (settings.pretrained or settings.released):
        raise UserError(
            f"backbone={settings.name}: no weights are known of it; give backbone.pretrained=<a transformers folder or "
            "a hub id>"
        )
    config = auto_config("backbone.pretrained", source, settings.trust_remote_code)
    family.check_config(config, source)
    return config


def auto_config(key: str, source: str, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of what the setting `key` names: a folder or a hub id.

    Raises:
        UserError: no config.json there, or one that can't be read.
    """
    from transformers import AutoConfig

    if looks_local(source) and not (Path(source) / "config.json").is_file():
        raise UserError(f"{key}={source}: no config.json there; give a transformers folder or a hub id")
    with reading(key, source):
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)


@contextmanager
def reading(key: str, source: str, done: str = "read") -> Iterator[None]:
    """Errors of transformers' reading of what the setting `key` names, as `UserError`s. The hub is waited for no longer
    than `vtc.hub` does.
    """
    from safetensors import SafetensorError

    remote = not looks_local(source)
    if remote:
        hub.answers()
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        why = hub.missing(source) if remote and isinstance(error, OSError) else ""
        raise UserError(f"{key}={source}: can't be {done} ({why or f'{first_line(error)})'}") from error


# -- checks
def check(settings: BackboneSettings, weights: bool = True) -> None:
    """Everything about loading that can be told before it: values, what this machine lacks, what a folder lacks.

    Args:
        weights: whether stored ones are needed.

    Raises:
        UserError: in one line; see docs/errors.md.
    """
    from_mapping(BackboneSettings, vars(settings), "backbone")  # whoever made them, each field holds what it may
    device, device_map = _device(settings.device), _device_map(settings)
    if settings.attention == "flash_attention_2":
        _check_flash(dtype_of(settings.dtype), device)
    _check_quantization(settings.quantization, device)
    if device_map is not None and settings.device != "auto":
        raise UserError(
            f"backbone.device={settings.device}, backbone.device_map={settings.device_map}: give one of the two"
        )
    source = Path(settings.source)
    if weights and (source / "config.json").is_file():  # `shape_of` tells what else may be wrong with the name
        _check_weights(source)


def _check_flash(dtype: Any, device: torch.device) -> None:
    here = "; allowed here: sdpa, eager"
    if find_spec("flash_attn") is None:
        raise UserError(
            f"backbone.attention=flash_attention_2: needs flash-attn and a CUDA GPU (pip install 'vtc[flash]'){here}"
        )
    if device.type != "cuda":
        raise UserError(f"backbone.attention=flash_attention_2: needs a CUDA GPU, the device is {device.type}{here}")
    if str(dtype) == "torch.float32":
        raise UserError(
            "backbone.attention=flash_attention_2, backbone.dtype=float32: it computes in 16 bit; "
            "allowed: dtype=bf16 or fp16, or attention=sdpa, eager"
        )


def _check_quantization(quantization: str, device: torch.device) -> None:
    if quantization == "none":
        return
    key, needed = f"backbone.quantization={quantization}", ".".join(map(str, BITSANDBYTES))
    install = f"needs bitsandbytes {needed} or newer: pip install 'vtc[quant]'"
    try:
        installed = version("bitsandbytes") if find_spec("bitsandbytes") else None
    except PackageNotFoundError:
        installed = None
    if installed is None:
        raise UserError(f"{key}: {install}")
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < BITSANDBYTES:
        raise UserError(f"{key}: {install}; here is {installed}")
    import bitsandbytes

    able = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    if device.type not in able:
        raise UserError(f"{key}: bitsandbytes can't work on {device.type}; it can on {', '.join(sorted(able))}")


def _check_weights(folder: Path) -> None:
    """Complete safetensors in a local folder, as far as names tell."""
    key, (whole, index) = f"backbone.pretrained={folder}", SAFETENSORS
    if (folder / whole).is_file():
        return
    if not (folder / index).is_file():
        old = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        if old:
            raise UserError(f"{key}: only {old[0]}; weights are read as safetensors only, see {CONVERT}")
        raise UserError(f"{key}: no weights there ({whole}, or {index} and its shards)")
    try:
        shards = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{key}: {index} can't be read ({first_line(error)})") from None
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise UserError(f"{key}: {len(missing)} of its {len(shards)} weight files aren't there, {missing[0]} first")


def dtype_of(name: str) -> Any:
    """torch's dtype, or "auto"."""
    import torch

    return name if name == "auto" else getattr(torch, SHORT_DTYPES.get(name, name))


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    key, device = f"backbone.device={name}", torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise UserError(f"{key}: no CUDA device here; use device=cpu or auto")
        if (device.index or 0) >= count:
            raise UserError(f"{key}: there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{key}: no Apple GPU here; use device=cpu or auto")
    return device


def _device_map(settings: BackboneSettings) -> Any:
    """None, the name of a way to spread the layers, or a dict of modules and devices."""
    spread = settings.device_map
    if isinstance(spread, Mapping):
        return dict(spread)
    if spread is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"backbone.device_map={spread}: spreads one model over the GPUs, and {os.environ['WORLD_SIZE']} processes "
            "share them already; allowed: null"
        )
    return spread


# -- loading
def load(family: type[B], settings: BackboneSettings) -> B:
    """See `Backbone.load`."""
    import transformers
    from transformers.integrations import is_deepspeed_zero3_enabled

    check(settings)
    free_unused()
    config, source, dtype = read_config(family, settings), settings.source, dtype_of(settings.dtype)
    quantized = settings.quantization != "none"
    extra = {"quantization_config": _quantization(family, settings, config, dtype)} if quantized else {}
    device_map = _device_map(settings)
    if device_map is None and not is_deepspeed_zero3_enabled():  # that gives each process its share of every weight
        device_map = {"": one_device(settings)}
    with reading("backbone.pretrained", source, "loaded"):
        with _converting_reads(None if quantized else dtype):
            model, report = getattr(transformers, family.model_class).from_pretrained(
                source,
                config=config,
                dtype=dtype,
                attn_implementation=settings.attention,
                device_map=device_map,
                use_safetensors=True,
                trust_remote_code=settings.trust_remote_code,
                output_loading_info=True,
                **extra,
            )
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=settings.trust_remote_code)
    refuse_missing(f"backbone.pretrained={source}", report)
    if device_map is None:
        model = model.to(one_device(settings))
    backbone = family.wrap(model.eval(), processor, settings.name, **family.image_options(settings))
    if quantized:
        # bitsandbytes says at each product of 8-bit weights that it rounds to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        # On processors with bfloat16 instructions its kernel for 4 bit computes in bfloat16, whatever the dtype, and
        # gives other numbers at each call. Without it weights are expanded and multiplied as on any other.
        for module in backbone.decoder.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        # peft asks the module that it puts adapters into, which for us is the decoder
        setattr(backbone.decoder, f"is_loaded_in_{settings.quantization}", True)
    return backbone


def free_unused() -> None:
    """Frees the models that nobody uses any more. A reference cycle, such as lmms-eval's evaluator leaves around each,
    would keep them until Python happens to look for it, and two 7B models don't fit on one GPU.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_device(settings: BackboneSettings) -> torch.device:
    import torch

    device = _device(settings.device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@contextmanager
def _converting_reads(dtype: Any) -> Iterator[None]:
    """While it is open, transformers reads files whose weights aren't stored in `dtype` tensor by tensor.

    Args:
        dtype: "auto": as they are stored; None: every file is read so.
    """
    from transformers import modeling_utils

    module: Any = modeling_utils
    opened = getattr(module, "safe_open", None)
    if dtype == "auto" or opened is None:
        yield
        return

    def reading(file: Any, *args: Any, **kwargs: Any) -> Any:
        mapped = opened(file, *args, **kwargs)
        if kwargs.get("backend") != "mmap" or (dtype is not None and _stored(mapped) == {dtype}):
            return mapped
        return opened(file, *args, **{**kwargs, "backend": "pread"})

    module.safe_open = reading
    try:
        yield
    finally:
        module.safe_open = opened


def _stored(file: Any) -> set[Any]:
    """The floating-point dtypes of an open safetensors file."""
    import torch

    known = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    names = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {known[name] for name in names if name in known}


def refuse_missing(what: str, report: Mapping[str, Any]) -> None:
    """Raises `UserError` where transformers' loading report has weights that it would draw at random with a warning."""
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{what}: {len(missing)} of its weights aren't there, {missing[0]} first")


# -- quantised weights
def _quantization(family: type[Backbone], settings: BackboneSettings, config: Any, dtype: Any) -> Any:
    """How bitsandbytes holds the decoder's linear layers: NF4 with double quantisation (QLoRA, arXiv 2305.14314,
    section 3), or LLM.int8() (arXiv 2208.07339)."""
    import torch
    import transformers

    if dtype == "auto":
        stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
        dtype = getattr(torch, stored) if isinstance(stored, str) else stored
    skipped = outside_decoder(family.skeleton(settings))
    if settings.quantization == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,  # in spite of its name it counts for 4 bit too
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def outside_decoder(backbone: Backbone) -> list[str]:
    """Names of the modules that hold nothing of the decoder, the largest of them: vision tower, projector, head."""
    decoder, names = backbone.decoder, []

    def walk(module: Any, name: str) -> None:
        for key, child in module.named_children():
            if child is decoder:
                continue
            path = f"{name}.{key}" if name else key
            if any(inner is decoder for inner in child.modules()):
                walk(child, path)
            else:
                names.append(path)

    walk(backbone.model, "")
    return names


def count(model: Any) -> int:
    """Parameters of a model without LoRA; 4-bit weights lie two in a byte and are counted as the two they are."""
    held = [p for name, p in model.named_parameters() if ".lora_" not in name]
    return sum(math.prod((getattr(p, "quant_state", None) or p).shape) for p in held)


def weight_bytes(backbone: Backbone, item: int, quantization: str = "none") -> int:
    """Memory of the weights of a model without weights (`Backbone.skeleton`).

    Args:
        item: bytes of a parameter that isn't quantised.
    """
    import torch

    total = item * sum(p.numel() for p in backbone.model.parameters())
    if quantization == "none":
        return total
    linear = [m.weight for m in backbone.decoder.modules() if type(m) is torch.nn.Linear]
    return total + sum(_quantized_bytes(w.shape, quantization) - item * w.numel() for w in linear)


def _quantized_bytes(shape: Sequence[int], quantization: str) -> int:
    """8 bit: a byte a weight and a float32 scale a row. 4 bit: half a byte a weight, a byte for the scale of 64 of
    them, a float32 for the scale of 256 such scales; and two tables of 16 and 256 float32 and an offset."""
    number = math.prod(shape)
    if quantization == "8bit":
        return number + 4 * shape[0]
    scales = -(-number // BLOCK)
    return -(-number // 2) + scales + 4 * -(-scales // BLOCKS) + 4 * (16 + 256 + 1)


def looks_local(source: str) -> bool:
    """Whether a text names a folder, there or not, and not a repository of the hub."""
    return source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).exists()


def first_line(error: BaseException) -> str:
    """Of an error's text, else its kind."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
