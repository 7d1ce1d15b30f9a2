"""The contracts about what a method's own verbs give, one call at a time (see `vtc.testing.contracts`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.backbones.base import Backbone
from vtc.engine import Complexities, compressing
from vtc.interface import Compressor, TokenPruner, TokenSequence, TowerPruner, VideoPruner
from vtc.interface.spread import CLOSE, scale_of
from vtc.methods.chain import Chain
from vtc.testing.models import ALONG, Row, batch, collate, image_row, picture, rows, text_row, words
from vtc.testing.runs import Make, close, generation, instance, logits, report_of, texts

VERBS = ("reduce", "score", "rate", "assign", "condense", "forward", "summarise")  # that a method may override


@contextmanager
def watched(method: Compressor, name: str, see: Callable[[tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Calls `see(arguments, result)` behind each call of a verb.

    Raises:
        AssertionError: the first that `see` raised, at the end: the engine would take it for the method's own.
    """
    verb, violations = getattr(method, name), list[AssertionError]()

    def watching(*args: Any, **kwargs: Any) -> Any:
        result = verb(*args, **kwargs)
        try:
            see((*args, *kwargs.values()), result)
        except AssertionError as violation:
            violations.append(violation)
        return result

    setattr(method, name, watching)
    try:
        yield
    except Exception:
        if not violations:
            raise
    finally:
        delattr(method, name)
    if violations:
        raise violations[0]


def members(method: Compressor) -> list[Compressor]:
    """The parts of a composition, or the method itself."""
    return list(method) if isinstance(method, Chain) else [method]


def it_runs(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """A pass and a generation come to their end, with finite logits of the model's shape."""
    method = instance(backbone, make, tokens)
    inputs = batch(backbone, images=(1, 2, 0))
    plain = logits(backbone, inputs)
    with compressing(backbone, method):
        out = logits(backbone, inputs)
        generation(backbone, inputs, 2)
    assert out.shape == plain.shape, f"logits of shape {list(out.shape)}, needed: {list(plain.shape)}"
    assert out[texts(backbone, inputs)].isfinite().all(), "the logits aren't finite"
    return None


def devices_and_dtypes_stay(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """What a verb gives is on the device of the tokens; a reduction leaves their dtype, and the model, as they are."""
    method = instance(backbone, make, tokens)
    home = {name: (p.device, p.dtype) for name, p in backbone.model.named_parameters()}

    def see(verb: str) -> Callable[[tuple[Any, ...], Any], None]:
        def compare(args: tuple[Any, ...], result: Any) -> None:
            device = backbone.device
            strays = {str(t.device) for t in _tensors(result) if t.device != device}
            assert not strays, f"{verb} gives tensors on {', '.join(sorted(strays))}; the tokens are on {device}"
            if verb == "reduce":
                before, after = args[0].hidden.dtype, result.hidden.dtype
                assert after == before, f"reduce gives hidden states of {after}; they were {before}"

        return compare

    inputs = batch(backbone)
    with ExitStack() as watches:
        for part in members(method):
            own = {name for base in type(part).__mro__[:-2] for name in vars(base)}  # not what torch's modules have
            for verb in (verb for verb in VERBS if verb in own):
                watches.enter_context(watched(part, verb, see(verb)))
        with compressing(backbone, method):
            logits(backbone, inputs)
    moved = [n for n, p in backbone.model.named_parameters() if home.get(n, (p.device, p.dtype)) != (p.device, p.dtype)]
    assert not moved, f"the model's weights are somewhere else, {moved[0] if moved else ''} first"
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a verb gives."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


def the_best_are_kept(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """What is kept are the tokens with the highest `score` (or `rate`), of equal ones the earlier."""
    method = instance(backbone, make, tokens)
    pruners = [part for part in members(method) if isinstance(part, (TokenPruner, TowerPruner))]
    if not pruners:
        return "it has no score"
    inputs = batch(backbone, images=(1, 2, 1))
    for part in pruners:
        scores: list[Tensor] = []

        def see_score(_: tuple[Any, ...], score: Tensor, scores: list[Tensor] = scores) -> None:
            scores.append(score)

        def see_reduce(args: tuple[Any, ...], out: TokenSequence, scores: list[Tensor] = scores) -> None:
            if scores:
                _compare_kept(args[0], out, scores.pop(), part.tokens or 0, isinstance(part, VideoPruner))  # noqa: B023

        def see_condense(args: tuple[Any, ...], out: Any, scores: list[Tensor] = scores) -> None:
            for n, rates in enumerate(scores.pop().tolist()):
                best = _best(rates, args[1] or 0)
                left = out.kept[n].nonzero()[:, 0].tolist()
                assert left == best, f"picture {n} keeps the patches {left}; the best by its rates are {best}"

        ways = (
            [("rate", "condense", see_condense)] if isinstance(part, TowerPruner) else [("score", "reduce", see_reduce)]
        )
        for verb, acts, see in ways:
            with watched(part, verb, see_score), watched(part, acts, see), compressing(backbone, method):
                logits(backbone, inputs)
    return None


def _compare_kept(before: TokenSequence, after: TokenSequence, score: Tensor, count: int, together: bool) -> None:
    """Raises AssertionError unless each image (`together`: row) keeps its `count` best."""
    for row in range(len(before.mask)):
        images = before.image[row][before.visual[row]].unique().tolist()
        groups = [images] if together else [[image] for image in images]
        for group in groups:
            inside = before.visual[row] & torch.isin(before.image[row], torch.tensor(group))
            columns = inside.nonzero()[:, 0]
            best = columns[_best(score[row, columns].tolist(), count * len(group))]
            origins = before.origin[row, best].tolist()
            left = after.origin[row][after.visual[row] & torch.isin(after.image[row], torch.tensor(group))].tolist()
            assert set(left) == set(origins), f"row {row} keeps {left}; the best by its scores are {origins}"


def _best(scores: list[float], count: int) -> list[int]:
    """Places of the `count` highest, of equal ones the earlier, in order; by sorting."""
    return sorted(sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count])


def the_mean_is_kept(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Of a budget that is a mean over images (`spreads`), each has what its complexity gives it, in any batch, and one
    token more for whichever comes next would be too many.
    """
    method = instance(backbone, make, tokens)
    if not method.spreads:
        return "every image has as many tokens"
    several = rows(backbone, images=(1, 2, 1))
    inputs, seen = collate(backbone, several), Complexities()
    seen.add(backbone, method, inputs)
    given, sizes = seen.complexity, seen.sizes
    assert len(given) == sum(len(row.images) for row in several), f"{len(given)} images have a complexity"
    method.scale = scale_of(given, sizes, tokens)
    each = [min(size, max(1, int(method.scale * own))) for own, size in zip(given, sizes, strict=True)]
    later = [(min(size, n) + 1) / own for own, size, n in zip(given, sizes, each, strict=True) if n < size]
    room, step = tokens * len(each) - sum(each), [c for c in later if c <= min(later) * (1 + 2 * CLOSE)]
    assert room >= 0, f"images of {each} tokens have more than {tokens} in the mean"
    assert not step or room < len(step), f"images of {each} tokens could have more, with {tokens} in the mean"
    text = texts(backbone, inputs)
    with compressing(backbone, method) as engine:
        together = logits(backbone, inputs)
        left = report_of(engine).tokens_out
        queue = iter(each)
        owed = [sum(next(queue) for _ in row.images) for row in several]
        assert left == owed, f"rows have {left} tokens left; by the complexity of their images {owed}"
        for n, (row, count) in enumerate(zip(several, owed, strict=True)):
            real = inputs["attention_mask"][n].bool()
            alone = logits(backbone, collate(backbone, [row]))[0, text[n, real]]
            kept = report_of(engine).tokens_out
            assert kept == [count], f"row {n} has {kept[0]} tokens left alone, and {count} in a batch"
            close(together[n, text[n]], alone, f"row {n}")
    return None


def the_question_is_declared(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """A method that doesn't say that it reads the question leaves the same of an image whatever is asked."""
    method = instance(backbone, make, tokens)
    if method.needs_question:
        return "it says that it reads the question"
    generator = torch.Generator().manual_seed(11)
    start = text_row(words(backbone, 3, generator)) + image_row(backbone, picture(backbone, generator))
    left: list[list[Tensor]] = []

    def see(_: tuple[Any, ...], out: TokenSequence) -> None:
        behind = (out.role != 0) & out.mask
        left[-1].extend((out.origin[behind], out.hidden[behind]))

    for _ in range(2):
        left.append([])
        question = collate(backbone, [start + text_row(words(backbone, 6, generator))])
        with watched(method, "reduce", see), compressing(backbone, method):
            logits(backbone, question)
    for one, other in zip(*left, strict=True):
        if one.dtype == torch.long:
            assert torch.equal(one, other), (
                f"of one image, one question leaves {one.tolist()}, another {other.tolist()}"
            )
        else:
            worst = (one - other).abs().max().item() if one.numel() else 0.0
            assert worst < 1e-4, f"two questions leave other tokens of one image, by {worst:.1e}"
    return None


def padding_changes_nothing(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """A row gives the same with and without padding on its left."""
    method = instance(backbone, make, tokens)
    for row in rows(backbone, images=(1, 2, 1)):
        _compare_padded(backbone, method, row)
    return None


def _compare_padded(backbone: Backbone, method: Compressor, row: Row, columns: int = 7) -> None:
    inputs = collate(backbone, [row])
    pad = 0 if backbone.image_token_id != 0 else 1
    padded = dict(inputs)
    for name in (name for name in ALONG if name in inputs):
        padded[name] = F.pad(inputs[name], (columns, 0), value=pad if name == "input_ids" else 0)
    text = texts(backbone, inputs)[0]
    with compressing(backbone, method):
        alone = logits(backbone, inputs)[0, text]
        close(logits(backbone, padded)[0, columns:][text], alone, f"behind {columns} columns of padding")


def calls_are_independent(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """A call gives what it gave before, whatever other samples came between."""
    method = instance(backbone, make, tokens)
    one, other = batch(backbone), batch(backbone, images=(2, 1, 1), seed=2)
    with compressing(backbone, method):
        first = logits(backbone, one)
        logits(backbone, other)
        generation(backbone, other, 2)
        again = logits(backbone, one)
    with compressing(backbone, method):
        anew = logits(backbone, one)
    real = one["attention_mask"].bool()
    for result, when in ((again, "after another batch"), (anew, "installed anew")):
        worst = (first - result)[real].abs().max().item()
        assert torch.equal(first[real], result[real]), f"{when} the same batch gives other logits, by {worst:.1e}"
    return None
