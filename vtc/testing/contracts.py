"""What must be true of every method on every backbone. Each contract takes a backbone, a way to make the method, and a
budget.

They assert against something independent: the unmodified model, one row at a time, a pass without a cache. A contract
that doesn't apply to a method (keeping everything, for one that replaces the visual tokens) returns why. What each is
about, and what to do where it is violated, is in docs/contracts.md; `vtc.testing.check` runs them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vtc.backbones import adapters
from vtc.backbones.base import Backbone
from vtc.engine import compressing
from vtc.engine.cache import CACHE
from vtc.errors import UserError
from vtc.interface import Compressor, TokenMerger, TokenPruner
from vtc.methods.chain import Chain
from vtc.testing.models import ALONG, Row, batch, collate, full, image_row, media, picture, rows, text_row, words
from vtc.testing.runs import Make, appended, close, cut, ends, generation, instance, logits, report_of, texts
from vtc.testing.training_contracts import (
    gradients_reach_everything,
    packed_questions_equal_single_ones,
    the_loss_is_right,
)
from vtc.testing.verb_contracts import (
    calls_are_independent,
    devices_and_dtypes_stay,
    it_runs,
    padding_changes_nothing,
    the_best_are_kept,
    the_mean_is_kept,
    the_question_is_declared,
)

FEW = 3  # new tokens where each step is as the one before: the first from the prefill, two from the cache


# ---------------------------------------------------------------------- budgets
def budget_is_exact(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Exactly `tokens` per image at the end, counted in the cache too: nothing is merely masked."""
    method = instance(backbone, make, tokens)
    several = rows(backbone, images=(1, 2, 0))
    inputs, images = collate(backbone, several), [len(row.images) for row in several]
    with compressing(backbone, method) as engine:
        cache = backbone.model(**inputs, use_cache=True).past_key_values
        report = report_of(engine)
    assert report.images == images, f"rows of {images} images are seen as {report.images}"
    tokens_in, tokens_out = ([count * i for i in images] for count in (full(backbone), tokens))
    assert report.tokens_in == tokens_in, f"{report.tokens_in} visual tokens come in, {tokens_in} are there"
    assert report.tokens_out == tokens_out, f"{report.tokens_out} visual tokens are left, needed: {tokens_out}"
    text = texts(backbone, inputs).sum(1)
    for layer in backbone.shape.attending:  # the others hold states, of one size whatever they have seen
        held = max(int(t) + v for t, v in zip(text, report.cached[layer], strict=True))
        there = cache.layers[layer].get_seq_length()
        assert there == held, f"layer {layer} caches {there} tokens, {held} are left: what is masked isn't dropped"
    return None


def layers_are_as_announced(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """`layer_tokens`, by which budgets are resolved, says what each layer truly sees."""
    method = instance(backbone, make, tokens)
    with compressing(backbone, method) as engine:
        logits(backbone, batch(backbone))
        seen = [layer[0] for layer in report_of(engine).layers]
    assert seen == method.layer_tokens(), f"the layers see {seen} visual tokens, announced: {method.layer_tokens()}"
    return None


def kept_are_sorted_and_unique(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """What is kept is a subset of the row's visual tokens, in raster order, none twice."""
    method = instance(backbone, make, tokens)
    several = rows(backbone, images=(1, 2, 1))
    inputs = collate(backbone, several)
    with compressing(backbone, method) as engine:
        logits(backbone, inputs)
        kept = report_of(engine).kept
    for row, chosen in enumerate(kept):
        assert chosen == sorted(set(chosen)), f"row {row} keeps {chosen}: not in the order of the sequence, or twice"
        assert backbone.visual(inputs["input_ids"][row, chosen]).all(), f"row {row} keeps {chosen}: text among them"
        if isinstance(method, TokenPruner):
            count = tokens * len(several[row].images)
            assert len(chosen) == count, f"row {row} keeps {len(chosen)} of its visual tokens, needed: {count}"
    return None


def each_layer_runs_once(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """A pass runs each decoder layer once (a probe adds none); a method that runs the LLM itself, once more."""
    method = instance(backbone, make, tokens)
    calls = [0] * backbone.shape.depth

    def counter(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    hooks = [layer.register_forward_hook(counter(i)) for i, layer in enumerate(backbone.decoder.layers)]
    try:
        with compressing(backbone, method):
            logits(backbone, batch(backbone))
    finally:
        for hook in hooks:
            hook.remove()
    assert len(set(calls)) == 1 and calls[0] <= 2, f"the layers ran {calls} times"
    return None


# ---------------------------------------------------------------------- the same as something simpler
def keeping_everything_changes_nothing(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """With all visual tokens, bit for bit the unmodified model: prefill, greedy, sampling, beams. From a cache, where
    layers attend in windows, up to rounding: the model's own has let go of keys over which the engine's sums run.
    """
    if full(backbone) not in instance(backbone, make, tokens).offers():
        return "it never keeps everything"
    method = instance(backbone, make, full(backbone))
    members = list(method) if isinstance(method, Chain) else [method]
    if method.layers() and not all(isinstance(part, (TokenPruner, TokenMerger)) for part in members):
        return "only a TokenPruner or a TokenMerger is held to it"
    for inputs in (batch(backbone), batch(backbone, (3, 3), (5, 5), (1, 1))):
        plain = _runs(backbone, inputs)
        with compressing(backbone, method):
            for way, result in _runs(backbone, inputs).items():
                if way == "greedy" and backbone.windows:
                    close(result, plain[way], f"{way}: with all tokens kept")
                    continue
                assert torch.equal(result, plain[way]), f"{way}: with all tokens kept it isn't the model's own"
    return None


def batch_equals_singles(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Rows of different lengths, left-padded together, give what each gives alone."""
    method = instance(backbone, make, tokens)
    _together_as_alone(backbone, method, rows(backbone, images=(1, 2, 1)))
    return None


def images_of_all_sizes(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Where a family takes images as they are: each row gives what it gives alone, whatever the sizes of the others'
    images are, and no image has more than its budget, or than it had.
    """
    if backbone.image_size is None:
        return "the family has one size of images"
    free, side = type(backbone).wrap(backbone.model, backbone.processor), backbone.image_size
    try:
        method = instance(free, make, tokens)
    except UserError as error:
        return f"it says that it needs a fixed number of visual tokens: {error}"
    sizes = [(side, side), (2 * side, side), (side, 3 * side), (side, side // 2)]
    several = rows(free, images=(1, 2, 1), sizes=sizes)
    with compressing(free, method) as engine:
        logits(free, collate(free, several))
        report = report_of(engine)
    seen = [len(row.images) for row in several]
    assert report.images == seen, f"rows of {seen} images are seen as {report.images}"
    _together_as_alone(free, method, several)
    for row in (row for row in several if len(row.images) == 1):
        with compressing(free, method) as engine:
            logits(free, collate(free, [row]))
            report = report_of(engine)
        before, left = report.tokens_in[0], report.tokens_out[0]
        assert left <= max(tokens, before), f"an image of {before} visual tokens has {left} left"
        if before >= tokens and method.layers():  # one that acts nowhere keeps all
            assert left == tokens, f"an image of {before} visual tokens has {left} left, needed: {tokens}"
    return None


def _together_as_alone(backbone: Backbone, method: Compressor, several: list[Row]) -> None:
    inputs = collate(backbone, several)
    with compressing(backbone, method), torch.no_grad():
        together, steps = logits(backbone, inputs), torch.stack(generation(backbone, inputs, FEW).logits, 1)
        for n, row in enumerate(several):
            real = inputs["attention_mask"][n].bool()
            alone = collate(backbone, [row])
            text = texts(backbone, inputs)[n]
            close(together[n, text], logits(backbone, alone)[0, text[real]], f"row {n}")
            close(steps[n], torch.stack(generation(backbone, alone, FEW).logits, 1)[0], f"row {n}, generated")


def cached_equals_uncached(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Each cached step gives what one pass over the whole sequence gives at that place."""
    method = instance(backbone, make, tokens)
    inputs = batch(backbone)
    at = inputs["input_ids"].shape[1] - 1
    with compressing(backbone, method) as engine:
        out = generation(backbone, inputs)
        with engine.prompt_ends(ends(inputs)):
            whole = logits(backbone, appended(inputs, out.sequences[:, at + 1 :]), use_cache=False)
    for step, got in enumerate(out.logits):
        close(whole[:, at + step], got, f"step {step} from the cache")
    return None


def eager_equals_sdpa(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """The attention implementation makes no difference."""
    method = instance(backbone, make, tokens)
    inputs = batch(backbone, images=(1, 2, 0))
    before, results = backbone.decoder.config._attn_implementation, []
    try:
        for implementation in ("sdpa", "eager"):
            backbone.model.set_attn_implementation(implementation)
            with compressing(backbone, method):
                results.append((logits(backbone, inputs), torch.stack(generation(backbone, inputs, FEW).logits)))
    finally:
        backbone.model.set_attn_implementation(before)
    text = texts(backbone, inputs)
    close(results[0][0][text], results[1][0][text], "prefill")
    close(results[0][1], results[1][1], "generated")
    return None


def text_rows_are_unchanged(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """A row without an image gives what it gives without the method (but under its adapter)."""
    method = instance(backbone, make, tokens)
    several = rows(backbone, before=(2, 5), after=(6, 9), images=(1, 0))
    inputs, alone = collate(backbone, several), collate(backbone, several[1:])
    real = inputs["attention_mask"][1].bool()
    with adapters.using(backbone.decoder.layers, method.adapter):
        plain = logits(backbone, alone)
    with compressing(backbone, method):
        assert torch.equal(logits(backbone, alone), plain), "a row of text alone isn't the model's own"
        close(logits(backbone, inputs)[1, real], plain[0], "text in a batch with images")
    return None


# ---------------------------------------------------------------------- generate()
def beams_work(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Beam search with the cache finds what it finds without."""
    method = instance(backbone, make, tokens)
    inputs = batch(backbone)
    with compressing(backbone, method):
        cached = generation(backbone, inputs, num_beams=3)
        plain = generation(backbone, inputs, num_beams=3, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences), "beams with the cache find another sequence than without"
    return None


def turns_go_on_from_the_cache(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """A second question from the cache gives what one pass over both turns gives; so does a second image."""
    method = instance(backbone, make, tokens)
    several = rows(backbone)
    inputs = collate(backbone, several)
    generator = torch.Generator().manual_seed(3)
    question = torch.tensor([words(backbone, 4, generator)] * len(several))
    with compressing(backbone, method) as engine, torch.no_grad():
        out = generation(backbone, inputs)
        # generate() leaves the last token it made out of the cache
        so_far = appended(inputs, out.sequences[:, inputs["input_ids"].shape[1] :])
        turn = appended(so_far, question)
        text_only = {k: turn[k] for k in ALONG if k in turn}
        second = generation(backbone, text_only, **{CACHE: out[CACHE]})
        with engine.prompt_ends(ends(inputs)):
            whole = logits(backbone, turn, use_cache=False)
        close(whole[:, -1], second.logits[0], "second question")
        if method.probes() or method.reads_prompt:
            return None  # the second image would be chosen by another question than in one pass
        if method.across_images:
            return None  # … or without the first
        pictures = [image_row(backbone, picture(backbone, generator)) for _ in several]
        history = appended(turn, second.sequences[:, turn["input_ids"].shape[1] :])
        longer = appended(history, collate(backbone, [row + text_row(question[0].tolist()) for row in pictures]))
        seen = second[CACHE].get_seq_length()
        every = media(backbone, [a.images + b.images for a, b in zip(several, pictures, strict=True)])
        position = backbone.positions(longer | every)
        third = backbone.model(
            **cut(longer, seen),
            **media(backbone, [row.images for row in pictures]),
            position_ids=position[..., seen:],
            **{CACHE: second[CACHE]},
        )
        whole = logits(backbone, longer | every, use_cache=False)
        close(whole[:, -1], third.logits[:, -1], "second image")
    return None


def the_cache_can_be_cropped(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """Text can be taken off the end and put back; the compressed image can't be cut into."""
    method = instance(backbone, make, tokens)
    inputs = batch(backbone)
    with compressing(backbone, method), torch.no_grad():
        out = generation(backbone, inputs)
        cache, whole = out[CACHE], appended(inputs, out.sequences[:, inputs["input_ids"].shape[1] :])
        if any(cache.is_sliding):
            return "the cache is the model's own, and what has left its windows can't be brought back"
        if any(cache.is_linear):
            try:
                cache.crop(-3)
            except (ValueError, RuntimeError):  # transformers' own, where nothing was compressed
                return "its states of linear attention hold every token, and none can be taken out again"
            raise AssertionError("cropping states was let through")
        cache.crop(-3)
        seen = cache.get_seq_length()
        position = backbone.positions(whole)[..., seen:]
        again = backbone.model(**cut(whole, seen), position_ids=position, **{CACHE: cache})
        close(again.logits[:, -2], out.logits[-1], "after cropping")
        if method.layers():
            try:
                cache.crop(-(whole["input_ids"].shape[1] - 4))
            except ValueError:
                return None
            raise AssertionError("cropping into the image was let through")
    return None


# ---------------------------------------------------------------------- in and out
def everything_is_removed(backbone: Backbone, make: Make, tokens: int) -> str | None:
    """After `compressing`, and after an exception in it, the model is what it was, bit for bit."""
    inputs = batch(backbone)
    plain = logits(backbone, inputs)
    before = [hook for _, hook in _hooks(backbone)]
    method = instance(backbone, make, tokens)

    def check() -> None:
        for module, name in ((backbone.decoder, "forward"), (backbone.model, "generate")):
            assert name not in module.__dict__, f"{type(module).__name__}.{name} is another one"
        left = [name for name, hook in _hooks(backbone) if hook not in before]
        assert not left, f"hooks are left on {', '.join(dict.fromkeys(left))}"
        active = any(m.active_adapters for m in adapters.tuner_layers(backbone.decoder))
        assert not active, "an adapter is still active"
        assert torch.equal(logits(backbone, inputs), plain), "the model gives other logits than before"

    with compressing(backbone, method):
        logits(backbone, inputs)
    check()
    for broken in (method, backbone.decoder.norm):  # in the middle of a reduction, and at the end of a pass
        name = "reduce" if broken is method else "forward"

        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("on purpose")

        setattr(broken, name, fail)
        try:
            with compressing(backbone, method):
                logits(backbone, inputs)
        except RuntimeError as error:
            assert "on purpose" in str(error)
        finally:
            delattr(broken, name)
        check()
    return None


def _hooks(backbone: Backbone) -> Iterator[tuple[str, Any]]:
    """The forward hooks of a model, each with the class that it is on; transformers' own aside, which watch outputs."""
    for module in backbone.model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if not (getattr(hook, "__module__", None) or "").startswith("transformers."):
                yield type(module).__name__, hook


def _runs(backbone: Backbone, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "prefill": logits(backbone, inputs),
            "greedy": torch.stack(generation(backbone, inputs, FEW).logits),
            "beams": generation(backbone, inputs, FEW, num_beams=3).sequences,
            "sampling": generation(backbone, inputs, FEW, do_sample=True).sequences,
        }


CONTRACTS = [
    it_runs,
    devices_and_dtypes_stay,
    budget_is_exact,
    the_mean_is_kept,
    layers_are_as_announced,
    kept_are_sorted_and_unique,
    the_best_are_kept,
    the_question_is_declared,
    each_layer_runs_once,
    keeping_everything_changes_nothing,
    padding_changes_nothing,
    batch_equals_singles,
    calls_are_independent,
    images_of_all_sizes,
    cached_equals_uncached,
    eager_equals_sdpa,
    text_rows_are_unchanged,
    beams_work,
    turns_go_on_from_the_cache,
    the_cache_can_be_cropped,
    the_loss_is_right,
    packed_questions_equal_single_ones,
    gradients_reach_everything,
    everything_is_removed,
]
