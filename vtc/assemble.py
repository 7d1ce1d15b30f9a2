"""From a resolved configuration to a backbone and a method, ready to run.

`plan` makes every check that needs no weights, in a second or two; `assemble` then loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.budget import Budget
from vtc.errors import UserError, unknown
from vtc.registry import families, methods, parts
from vtc.settings import BackboneSettings, from_mapping

if TYPE_CHECKING:
    from vtc.backbones.base import Backbone
    from vtc.interface import BackboneShape, Compressor

POCKET_WEIGHTS = "benchmarks/pocket/weights"


@dataclass(frozen=True)
class Plan:
    """What a configuration comes to.

    Attributes:
        shape: sizes of the backbone.
        tokens: visual tokens left per image; None: all of them.
        options: of the method, as given.
        method: built, with untrained weights.
        checkpoint: folder of its trained weights, None where there are none.
    """

    shape: BackboneShape
    tokens: int | None
    options: dict[str, Any]
    method: Compressor
    checkpoint: Path | None


def method_options(cfg: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of `cfg.method` (a name, or a mapping with `name`)."""
    given = _plain(cfg["method"])
    if isinstance(given, str):
        given = {"name": given}
    if "name" not in given:
        raise UserError(f"method={given}: needs a name; allowed: {', '.join(methods.names())}")
    name = given.pop("name")
    for part in parts(name).values():
        if part not in methods.names():
            raise unknown("method", part, methods.names())
    return name, given


def plan(cfg: Mapping[str, Any], trained: bool = True) -> Plan:
    """Everything that can be checked without loading weights.

    Args:
        cfg: backbone {name, …}, method {name, …options}; tokens, ratio, compression, flops, checkpoint where set.
        trained: whether trained weights are wanted; training itself wants none.

    Raises:
        UserError: an unknown name or option, a budget that the method can't meet, a layer that the decoder doesn't
            have, a checkpoint for another backbone, method, budget or setting, or none for a method that needs one;
            what `Backbone.check_loading` refuses.
    """
    from vtc.methods import build, check_options

    name, options = method_options(cfg)
    backbone = backbone_of(cfg)
    cls = methods.get(name)
    check_options(name, options)
    shape = _shape(cfg)
    tokens = _tokens(cfg, cls, shape, options)
    cls.layer_tokens(tokens, shape, **options)
    method = build(name, tokens, shape, **options)
    folder = None
    if trained:
        folder = _checkpoint(cfg, name, method)
        if folder is not None:
            _check_checkpoint(folder, cfg, name, method, options)
            _check_quantized(folder, cfg)
        elif cls.needs_training:
            raise UserError(_untrained(cfg, name, method))
    families.get(backbone.family).check_loading(backbone)
    return Plan(shape, tokens, options, method, folder)


def assemble(cfg: Mapping[str, Any], trained: bool = True) -> tuple[Backbone, Compressor]:
    """The backbone and the method of a configuration, in eval mode, trained weights loaded.

    Args:
        trained: False leaves the method untrained and looks at no checkpoint, to train it.

    Raises:
        UserError: as `plan`; weights that can't be loaded.
    """
    made = plan(cfg, trained)
    settings = backbone_of(cfg)
    backbone = families.get(settings.family).load(settings)
    method = made.method.to(backbone.device, backbone.dtype)
    method.attach(backbone)
    if made.checkpoint is not None:
        from vtc import checkpoint

        tune(backbone, method, checkpoint.read_manifest(made.checkpoint).get("training", {}).get("lora"))
        checkpoint.load(made.checkpoint, backbone, method)
    backbone.model.eval()
    return backbone, method.eval()


TUNED = "tuned"  # the adapter of a method that brings none of its own


def tune(backbone: Backbone, method: Compressor, lora: Mapping[str, Any] | None) -> None:
    """Puts LoRA on the decoder, under which `method` answers from then on; None: nothing.

    Args:
        lora: rank; alpha (default 2·rank); dropout (default 0).

    Raises:
        UserError: an unknown key, no rank, or a method that has adapters of its own.
    """
    if not lora:
        return
    for key in lora:
        if key not in ("rank", "alpha", "dropout"):
            raise unknown("training.lora", key, ("rank", "alpha", "dropout"))
    if not isinstance(lora.get("rank"), int) or lora["rank"] < 1:
        raise UserError(f"training.lora.rank={lora.get('rank')}: allowed: a whole number from 1 on")
    if method.adapter is not None:
        raise UserError(f"training.lora: method={method.name} has adapters of its own; see method.rank")
    rank = lora["rank"]
    backbone.add_adapters((TUNED,), rank, lora.get("alpha") or 2 * rank, float(lora.get("dropout") or 0.0))
    method.adapter = TUNED


def checkpoint_folder(cfg: Mapping[str, Any]) -> Path | None:
    """Where the method's trained weights come from: the folder given, the shipped one (`auto`), or None."""
    return _checkpoint(cfg, method_options(cfg)[0], plan(cfg, trained=False).method)


def backbone_of(cfg: Mapping[str, Any]) -> BackboneSettings:
    """The settings of `cfg.backbone`, checked."""
    from vtc.configuration.choices import choices

    if cfg["backbone"]["name"] not in choices("backbone"):
        raise unknown("backbone", cfg["backbone"]["name"], choices("backbone"))
    return from_mapping(BackboneSettings, _plain(cfg["backbone"]), "backbone")


def _shape(cfg: Mapping[str, Any]) -> BackboneShape:
    settings = backbone_of(cfg)
    return families.get(settings.family).shape_of(settings)


def _tokens(cfg: Mapping[str, Any], cls: Any, shape: BackboneShape, options: Mapping[str, Any]) -> int | None:
    budget = Budget(**{key: cfg.get(key) for key in ("tokens", "ratio", "compression", "flops")})
    return budget.resolve(cls, shape, options)


def _shipped_name(name: str, method: Compressor) -> str:
    """Folder of a method's shipped weights: of one budget, of every one, or LLaVolta's, named after its stages."""
    if method.elastic:
        return f"{name}-elastic"
    return f"{name}-{method.trained_for}" if method.fixed_budget else f"{name}-four"


def _checkpoint(cfg: Mapping[str, Any], name: str, method: Compressor) -> Path | None:
    given = cfg.get("checkpoint", "auto")
    if given != "auto":
        return Path(str(given)).expanduser() if given else None
    if cfg["backbone"]["name"] != "pocket" or cfg["backbone"].get("pretrained"):
        return None
    from vtc.shipped import path

    try:
        return path(f"{POCKET_WEIGHTS}/{_shipped_name(name, method)}")
    except FileNotFoundError:
        return None


def _check_checkpoint(folder: Path, cfg: Mapping[str, Any], name: str, method: Compressor, options: dict) -> None:
    from vtc.checkpoint import check_manifest
    from vtc.methods import options_of

    tokens = method.trained_for if method.fixed_budget else None
    manifest = check_manifest(folder, cfg["backbone"]["name"], name, tokens)
    was, now = options_of(name) | dict(manifest.get("options") or {}), options_of(name) | options
    for key in method.trained_options:
        if was.get(key) != now.get(key):
            raise UserError(
                f"checkpoint={folder}: was trained for method.{key}={was.get(key)}, not method.{key}={now.get(key)}"
            )


def _check_quantized(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Weights that replace the decoder's own can't be put in where those are held in 4 or 8 bit; LoRA stands beside."""
    from vtc.checkpoint import names_in

    settings = backbone_of(cfg)
    quantization = settings.quantization
    if quantization == "none":
        return
    own = {n for n in names_in(folder) if n.startswith("backbone.") and ".lora_" not in n}
    if not own:
        return
    skeleton = families.get(settings.family).skeleton(settings)
    inside = {id(parameter) for parameter in skeleton.decoder.parameters()}
    replaced = [n for n, p in skeleton.model.named_parameters() if id(p) in inside and f"backbone.{n}" in own]
    if replaced:
        raise UserError(
            f"checkpoint={folder}: holds the decoder's own weights ({replaced[0]} first), and "
            f"backbone.quantization={quantization} has no place for them; allowed: none"
        )


def _untrained(cfg: Mapping[str, Any], name: str, method: Compressor) -> str:
    backbone, tokens = cfg["backbone"]["name"], "" if method.tokens is None else f" tokens={method.tokens}"
    there = ""
    if backbone == "pocket":
        from vtc.shipped import root

        ends = [folder.name.rpartition("-")[2] for folder in root().glob(f"{POCKET_WEIGHTS}/{name}-*")]
        found = sorted(int(end) for end in ends if end.isdigit())
        there = f" (shipped: tokens={', '.join(map(str, found))})" if found else ""
    return (
        f"method={name}{tokens}: it needs training, and there are no weights for it{there}; "
        f"train them (python -m vtc action=train backbone={backbone} method={name}{tokens}) or give checkpoint=<folder>"
    )


def _plain(node: Any) -> Any:
    """A config node as plain dicts and lists."""
    from omegaconf import OmegaConf

    return (
        OmegaConf.to_container(node, resolve=True)
        if OmegaConf.is_config(node)
        else (dict(node) if isinstance(node, Mapping) else node)
    )
