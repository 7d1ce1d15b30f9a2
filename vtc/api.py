"""vtc in Python: `vtc.load`, whose model has six verbs, and `vtc.compressing`, for a model that is in memory already.

m = vtc.load("pocket", method="fastv", tokens=16)
m.generate("photo.png", "How many objects are there?").text
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc import results
from vtc.budget import Budget
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.job import Job, written

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from vtc.backbones.base import Backbone
    from vtc.engine import Engine, Report
    from vtc.interface import Compressor


@dataclass(frozen=True)
class Answer:
    """What a model said about an image, from which visual tokens, and at what cost.

    Attributes:
        text: the answer; ids: its tokens, the one that ends it among them.
        kept: which of the image's visual tokens were left as they were, in raster order, 0…; tokens that the method
            merged or made are none of them.
        tokens_in, tokens_out: visual tokens of the image at first, and those that were left to answer from.
        layer_tokens: visual tokens in each decoder layer of the prefill.
        prefill_flops: of the decoder for image and prompt, the method's own passes and arithmetic among them.
        flops_ratio: that relative to the uncompressed model.
    """

    text: str
    kept: tuple[int, ...]
    tokens_in: int
    tokens_out: int
    layer_tokens: tuple[int, ...]
    prefill_flops: float
    flops_ratio: float
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class CompressedImage:
    """What a method leaves of an image.

    Attributes:
        tokens: [M, D] hidden states of the visual tokens that are left, as the layer behind the method sees them.
        kept: as `Answer.kept`.
        tokens_in: visual tokens of the image at first.
        layer: before which decoder layer they stand; 0: before the LLM.
    """

    tokens: Tensor
    kept: tuple[int, ...]
    tokens_in: int
    layer: int


class Model:
    """A backbone under a compression method. Made by `load`.

    Attributes:
        backbone, method: as `Job.load` gives them.
        job: what it was made of; `job.command` scores the same from the command line.
    """

    def __init__(self, job: Job, backbone: Backbone, method: Compressor) -> None:
        self.job, self.backbone, self.method = job, backbone, method

    def __repr__(self) -> str:
        return f"vtc.load({self.backbone.name!r}, method={self.method.name!r}, tokens={self.method.tokens})"

    def generate(self, image: Image | str | Path, question: str, max_new_tokens: int = 64) -> Answer:
        """Answers a question about an image, greedily.

        Raises:
            FileNotFoundError, ValueError: no such picture, or one that can't be read.
        """
        import torch

        from vtc.engine import compressing as installed
        from vtc.interface import flops

        inputs = self._inputs(image, question)
        with torch.inference_mode(), installed(self.backbone, self.method) as engine:
            ids = self.backbone.model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=self._pad()
            )
            report = engine.report
        length = inputs["input_ids"].shape[1]
        text = self.backbone.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
        shape, places = self.backbone.shape, self._places(inputs)
        words = length - len(places)
        layers = tuple(layer[0] for layer in report.layers) if report else (len(places),) * shape.depth
        calls = [call for own in self.method.own_passes(len(places), words) for call in own.calls(shape.depth)]
        calls += [flops.Call(i, n + words, n + words, self.method.adapter_flops(i)) for i, n in enumerate(layers)]
        plain = [flops.Call(i, length, length) for i in range(shape.depth)]
        own = flops.total(shape, calls) + flops.head(shape) + self.method.own_flops(words)
        left = report.tokens_out[0] if report else len(places)
        ratio = own / (flops.total(shape, plain) + flops.head(shape))
        said = tuple(ids[0, length:].tolist())
        return Answer(text, self._kept(report, places), len(places), left, layers, own, ratio, said)

    def spread_over(self, images: Sequence[Image | str | Path]) -> None:
        """Spreads the budget over images by how complex they are (`prunesid`): these have `tokens` in the mean, and
        later ones as many as their complexity comes to.

        Raises:
            UserError: another method, or no images.
        """
        from vtc.engine import spread_over

        spread_over(self.backbone, self.method, [_opened(image) for image in images])

    def compress(self, image: Image | str | Path, question: str | None = None) -> CompressedImage:
        """What the method leaves of an image.

        Args:
            question: for a method that reads it; None: a request for a summary.

        Raises:
            FileNotFoundError, ValueError: as `generate`.
        """
        return self._compressed(_opened(image), question)[0]

    def _compressed(self, image: Image, question: str | None) -> tuple[CompressedImage, Report | None]:
        """What the method leaves of an image, and the engine's report of it."""
        import torch

        from vtc.engine import compressing as installed
        from vtc.engine.tower_watch import stand_in
        from vtc.interface import SUMMARY_PROMPT, TEXT

        inputs, method = self._inputs(image, question or SUMMARY_PROMPT), self.method
        layer, left = max(method.layers(), default=0), list[Any]()
        reduce = method.reduce

        def watching(tokens: Any, at: int, context: Any) -> Any:
            out = reduce(tokens, at, context)
            if at == layer:
                left.append(out)
            return out

        with ExitStack() as stack:
            stand_in(stack, method, "reduce", watching)
            with torch.inference_mode(), installed(self.backbone, method) as engine:
                self.backbone.model(**inputs)
                report = engine.report
        places = self._places(inputs)
        if left:
            tokens = left[0].hidden[0][(left[0].role[0] != TEXT) & left[0].mask[0]]
        else:
            features = self.backbone.image_features(dict(inputs)) or []
            tokens = torch.cat([*features])
        return CompressedImage(tokens.detach(), self._kept(report, places), len(places), layer), report

    def profile(self, **protocol: Any) -> dict[str, Any]:
        """FLOPs, latency, throughput and memory beside the uncompressed model, as `efficiency` of a result has them.

        Args:
            protocol: fields of `vtc.settings.ProfileSettings`.

        Raises:
            UserError: an unknown field, or a value that it may not hold.
        """
        from vtc import profiling
        from vtc.settings import ProfileSettings, from_mapping

        return profiling.efficiency(self.backbone, self.method, from_mapping(ProfileSettings, protocol, "profile"))

    def evaluate(self, benchmark: str = "pocket", limit: int | None = None, **settings: Any) -> dict[str, Any]:
        """Scores on a benchmark, beside the uncompressed backbone: the content of `result.json`.

        Args:
            limit: samples a task; None: all.
            settings: further keys of the command line, such as output_dir.

        Raises:
            UserError: an unknown benchmark or setting, data that isn't there.
        """
        from vtc.evaluation import evaluate

        words = _words({"benchmark": benchmark, "benchmark.limit": limit, **settings})
        return results.load(evaluate(parse([*(self.job.overrides or ()), *words])))

    def show(self, image: Image | str | Path, question: str | None = None) -> Image:
        """The image with what became of its visual tokens (`vtc.drawing.faded`): the places of dropped ones faded,
        those that merged in the colour of their group. A picture in tiles is shown twice, the tiles and, behind them,
        the whole in small. `action=visualize` draws several methods, and what those attend to that make new tokens.

        Args:
            question: as of `compress`.

        Raises:
            UserError: the method makes tokens of its own, or the image's are in no grid: there is nothing to point at.
            FileNotFoundError, ValueError: as `generate`.
        """
        from vtc import drawing
        from vtc.evaluation.kept import images_of

        picture = _opened(image)
        compressed, report = self._compressed(picture, question)
        drawn = images_of(self.backbone, report, 0, [picture]) if report is not None else None
        if not drawn or not drawn[0]["regions"]:
            raise UserError(f"backbone={self.backbone.name}: its {compressed.tokens_in} visual tokens are in no grid")
        if max(drawn[0]["holders"], default=-1) < 0:
            raise UserError(
                f"method={self.method.name}: keeps no visual token as it is; there are no places to show "
                "(action=visualize draws what its tokens attend to)"
            )
        return drawing.beside(drawing.faded(picture, drawn[0]["regions"], drawn[0]["holders"]))

    def _inputs(self, image: Image | str | Path, question: str) -> Any:
        return self.backbone.inputs([question], [[_opened(image)]])

    def _pad(self) -> int | None:
        tokenizer = self.backbone.tokenizer
        pad: int | None = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return pad

    def _places(self, inputs: Any) -> list[int]:
        """Where in the prompt the visual tokens stand."""
        return self.backbone.visual(inputs["input_ids"])[0].nonzero()[:, 0].tolist()

    @staticmethod
    def _kept(report: Report | None, places: Sequence[int]) -> tuple[int, ...]:
        if report is None:
            return tuple(range(len(places)))
        number = {place: n for n, place in enumerate(places)}
        return tuple(number[place] for place in report.kept[0])


def load(
    backbone: str = "pocket",
    method: str | Sequence[str] = "none",
    *,
    tokens: int | Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
    compression: float | None = None,
    flops: float | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """A backbone under a method, weights loaded: what the command line would load for the same words.

    Args:
        backbone: as `backbone=` names it.
        method: its name, a file of yours (`./mine.py:Mine`), or several, one after the other.
        tokens, ratio, compression, flops: the budget, at most one of them; none: the method's own default.
        options: of the method.
        settings: further keys of the command line, such as dtype, device, checkpoint, pretrained, seed, plugins.

    Raises:
        UserError: whatever the command line refuses: an unknown name or key, a budget that can't be met, no weights.
    """
    budget = {"tokens": tokens, "ratio": ratio, "compression": compression, "flops": flops}
    keys: dict[str, Any] = {
        "backbone": backbone,
        "method": method,
        **{k: v for k, v in budget.items() if v is not None},
    }
    keys |= {f"method.{key}": value for key, value in (options or {}).items()} | settings
    job = parse(_words(keys))
    return Model(job, *job.load())


@contextmanager
def compressing(
    model: nn.Module | Backbone,
    method: str | Compressor,
    *,
    tokens: int | None = None,
    ratio: float | None = None,
    compression: float | None = None,
    flops: float | None = None,
    **options: Any,
) -> Iterator[Engine]:
    """Compresses the visual tokens of a transformers model that you loaded, and leaves it as it was afterwards.

    `model(**inputs)`, `model.generate(...)` and a transformers `pipeline` around it work as ever inside.

    Args:
        model: of a known family, also inside DDP or a PeftModel; or a `Backbone`.
        method: the name of one that needs no training, or a method that is made already, with its weights.
        tokens, ratio, compression, flops: the budget, at most one of them; none: the method's own default.
        options: of the method.

    Raises:
        UserError: a model of no known family, an unknown method or option, a budget that can't be met, a method that
            needs training.
    """
    from vtc.backbones import wrap
    from vtc.backbones.base import Backbone
    from vtc.engine import compressing as installed
    from vtc.methods import make

    backbone = model if isinstance(model, Backbone) else wrap(model)
    if isinstance(method, str):
        budget = Budget(tokens=tokens, ratio=ratio, compression=compression, flops=flops)
        made = make(method, budget.resolve if budget.requested else None, backbone.shape, **options)
        if made.needs_training:
            raise UserError(
                f"method={method}: it needs training; vtc.load({backbone.name!r}, {method!r}) loads weights"
            )
        method = made.build().to(backbone.device, backbone.dtype).eval()
    elif options or any(budget is not None for budget in (tokens, ratio, compression, flops)):
        raise UserError(
            f"method={method.name}: is made already, with its budget and its options; give its name instead"
        )
    with installed(backbone, method) as engine:
        yield engine


def _opened(image: Image | str | Path) -> Image:
    from vtc.data.pictures import open_picture

    return open_picture(str(image) if isinstance(image, Path) else image)


def _words(keys: Mapping[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    return [f"{key}={_word(value)}" for key, value in keys.items()]


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_word(inner)}' for key, inner in value.items())}}}"
    return written("", value)[1:]
