"""The lmms-eval model class, with the engine behind it."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pocket_rows import N

from vtc.errors import UserError
from vtc.evaluation import harness

# Importing the package must not import the harness: tests that need it say so.
pytestmark = pytest.mark.usefixtures("manager")


def build(name, tokens, backbone, **options):
    from vtc.methods import build

    return build(name, tokens, backbone.shape, **options).eval()


def adapter(backbone, method, **options):
    from vtc.evaluation.model import VtcModel

    return VtcModel(backbone, method, **options)


def requests_of(model, task, manager, data, count=N):
    """lmms-eval's own requests of a task, without an evaluation around them."""
    from vtc.pocket.tasks import path

    spec = {"task": task, "dataset_kwargs": {"data_files": {"test": str(path(task, data))}}}
    with harness.quiet():
        built = manager.load_task_or_group([spec], task_type="chat")[task]
        built.set_config("num_fewshot", 0)
        built.build_all_requests(limit=count)
    model.task_dict[task] = built.dataset
    return built.instances


@pytest.mark.parametrize(
    "name, tokens, options",
    [("none", None, {}), ("fastv", 16, {"layer": 2}), ("victor", 9, {"layer": 3}), ("fwd2bot", 4, {})],
)
def test_batches_answer_as_singles_do(name, tokens, options, backbone, manager, data):
    method = build(name, tokens, backbone, **options)
    found = {}
    for size in (1, 4):
        model = adapter(backbone, method, batch_size=size)
        asked = requests_of(model, "pocket_choice", manager, data, 3)
        asked += requests_of(model, "pocket_existence", manager, data, 3)  # of another length, in other settings
        asked += requests_of(model, "pocket_captions", manager, data, 3)
        answers = model.generate_until(asked)
        assert len(answers) == len(asked) and not model.bad
        found[size] = [(a.text, a.token_counts.input_tokens, a.token_counts.output_tokens) for a in answers]
        for kept in model.kept.values():
            assert kept.tokens_in == 144 and kept.tokens_out == (tokens or 144)
            assert len(kept.layers) == backbone.shape.depth and kept.layers[-1] == (tokens or 144)
    assert found[1] == found[4]


def test_token_counts_are_of_what_the_decoder_reads(backbone, manager, data):
    plain, pruned = adapter(backbone, build("none", None, backbone)), adapter(backbone, build("random", 16, backbone))
    counts = []
    for model in (plain, pruned):
        (answer,) = model.generate_until(requests_of(model, "pocket_existence", manager, data, 1))
        counts.append(answer.token_counts)
        assert 1 <= answer.token_counts.output_tokens <= 4
    assert counts[0].input_tokens - counts[1].input_tokens == 144 - 16


@pytest.mark.parametrize("name, tokens", [("none", None), ("avgpool", 16), ("fwd2bot", 4)])
def test_embeddings_are_the_engines_and_batches_equal_singles(name, tokens, backbone, manager, data):
    from vtc.engine import embed_images, embed_texts

    method = build(name, tokens, backbone)
    vectors = {}
    for size in (1, 3):
        model = adapter(backbone, method, batch_size=size)
        asked = requests_of(model, "pocket_hard_captions", manager, data, 4)
        vectors[size] = [json.loads(a.text) for a in model.generate_until(asked)]
        assert not model.bad
    question = model._read(0, asked[0], lambda pixels: None)
    image = embed_images(backbone, method, question.images)[0].tolist()
    right, wrong = embed_texts(backbone, method, question.text.split("\n")).tolist()
    np.testing.assert_allclose(vectors[1][0]["image"], image, atol=1e-4)
    np.testing.assert_allclose(vectors[1][0]["texts"], [right, wrong], atol=1e-4)
    for a, b in zip(vectors[1], vectors[3], strict=True):
        np.testing.assert_allclose(a["image"], b["image"], atol=1e-4)
        np.testing.assert_allclose(a["texts"], b["texts"], atol=1e-4)


def test_requests_are_grouped_by_their_settings_and_answered_in_order(oracle, manager, data):
    model = oracle(batch_size=4)
    asked = requests_of(model, "pocket_captions", manager, data, 6) + requests_of(
        model, "pocket_choice", manager, data, 6
    )
    mixed = [asked[i] for i in (0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11)]
    answers = model.generate_until(mixed)
    for request, answer in zip(mixed, answers, strict=True):
        doc = model.task_dict[request.task_name]["test"][request.doc_id]
        assert answer.text == (doc["references"][0] if doc["references"] else doc["answer"])
    for batch in model.batches:
        assert len(batch) <= 4 and len({mixed[i].task_name for i in batch}) == 1


def test_progress_counts_every_sample_bad_ones_too(oracle, manager, data):
    model = oracle(break_on=("choice-2",))
    seen = []
    model.on_start = lambda n: seen.append(("start", n))
    model.on_sample = seen.append
    model.generate_until(requests_of(model, "pocket_choice", manager, data))
    assert seen[0] == ("start", N) and sum(seen[1:]) == N


def test_copies_that_fill_up_a_process_are_answered_and_not_counted(oracle, manager, data):
    model = oracle(break_on=("choice-0",))
    asked = requests_of(model, "pocket_choice", manager, data, 3)
    asked[0].metadata["__padding_only__"] = True
    counted = []
    model.on_sample = counted.append
    assert len(model.generate_until(asked)) == 3 and not model.bad and sum(counted) == 2


def test_running_out_of_memory_halves_the_batch(oracle, manager, data):
    class Small(oracle):
        def _generate(self, questions):
            if len(questions) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._generate(questions)

    model = Small(batch_size=8)
    answers = model.generate_until(requests_of(model, "pocket_choice", manager, data))
    assert not model.bad and len(answers) == N and all(a.text for a in answers)


def test_stop_strings():
    from vtc.evaluation.model import _until

    assert _until("a star</s> and", ["</s>"]) == "a star"
    assert _until(" a star \n\nmore", "\n\n") == "a star" and _until("x", None) == "x"


def test_log_likelihood_and_rounds_are_refused_in_words(oracle):
    request = SimpleNamespace(task_name="mmbench_ppl")
    with pytest.raises(UserError, match="benchmark.tasks=mmbench_ppl: scored by log-likelihood"):
        oracle().loglikelihood([request, request])
    with pytest.raises(UserError, match="several rounds"):
        oracle().generate_until_multi_round([request])


def test_the_representation_says_what_decides_the_answers(backbone):
    a = repr(adapter(backbone, build("fastv", 16, backbone, layer=2), description="checkpoint=None"))
    assert "fastv" in a and "tokens=16" in a and "float32" in a and "pocket" in a and "checkpoint=None" in a
    assert a != repr(adapter(backbone, build("fastv", 4, backbone, layer=2), description="checkpoint=None"))


def test_cleaning_up_after_a_task_keeps_the_model(backbone):
    model = adapter(backbone, build("none", None, backbone))
    model.extra = torch.nn.Linear(2, 2)
    model.clean()
    assert model.extra is not None and model.backbone is backbone


def test_the_harness_leaves_warnings_logging_and_bars_as_they_were(capfd):
    import lmms_eval.api.task
    import lmms_eval.evaluator
    from loguru import logger

    filters, bar = list(warnings.filters), lmms_eval.evaluator.tqdm
    with harness.quiet():
        assert lmms_eval.evaluator.tqdm is not bar
    assert lmms_eval.evaluator.tqdm is bar and lmms_eval.api.task.tqdm is not None and warnings.filters == filters
    logger.info("not for the user")
    assert "not for the user" not in "".join(capfd.readouterr())


def test_errors_of_the_harness_reach_logging(caplog):
    from loguru import logger

    with caplog.at_level(logging.ERROR):
        logger.error("something of lmms-eval's")
    assert "something of lmms-eval's" in caplog.text


def test_the_registered_model_is_found_and_scores(weights, data, manager, monkeypatch):
    import lmms_eval.models as models
    from lmms_eval.evaluator import simple_evaluate

    from vtc.evaluation.registration import manifests

    for manifest in manifests():
        models.MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
    assert models.get_model_manifest("vtc").chat_class_path.endswith("RegisteredModel")
    monkeypatch.setenv("VTC_POCKET_DATA", str(data))
    with harness.quiet():
        results = simple_evaluate(
            model="vtc",
            model_args=f"method=fastv,tokens=16,method.layer=2,backbone.pretrained={weights},backbone.device=cpu",
            tasks=["pocket_existence", "pocket_retrieval"],
            task_manager=manager,
            batch_size="4",
            bootstrap_iters=0,
            limit=3,
        )
    assert set(results["results"]) == {"pocket_existence", "pocket_retrieval"}
    assert 0.0 <= results["results"]["pocket_existence"]["accuracy,none"] <= 1.0
    assert "R@1,none" in results["results"]["pocket_retrieval"]
    assert "RegisteredModel (chat)" in results["config"]["model_backend"]


def test_a_mistake_in_model_args_is_named():
    from vtc.cli.lmms_eval_model import RegisteredModel

    with pytest.raises(UserError, match="fastv"):
        RegisteredModel(method="fastvv", tokens=16)


def photographs(sizes: list[tuple[int, int]]):
    """A task of lmms-eval's about pictures that `datasets` would decode, and its requests."""
    import datasets
    from PIL import Image

    def stored(size: tuple[int, int], colour) -> dict:
        file = io.BytesIO()
        Image.new("RGBA", size, colour).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = {
        "id": [f"photo-{n}" for n in range(len(sizes))],
        "image": [stored(size, (0, 0, 0, 0)) for size in sizes],
        "more": [[stored((2, 3), (255, 0, 0, 255))] * (n % 2) for n in range(len(sizes))],
    }
    features = {"id": datasets.Value("string"), "image": datasets.Image(), "more": datasets.List(datasets.Image())}
    data = datasets.Dataset.from_dict(rows, datasets.Features(features))

    def messages(doc):
        pictures = [doc["image"].convert("RGB"), *doc["more"]]
        content = [{"type": "image", "url": picture} for picture in pictures]
        return [{"role": "user", "content": [*content, {"type": "text", "text": "what is it?"}]}]

    def request(number: int):
        arguments = ("what is it?", messages, {}, number, "photographs", "test")
        return SimpleNamespace(args=arguments, task_name="photographs", doc_id=number, metadata={})

    return {"test": data}, [request(number) for number in range(len(sizes))]


def test_pictures_that_datasets_would_decode_are_laid_on_white(backbone):
    model = adapter(backbone, build("none", None, backbone))
    model.task_dict["photographs"], requests = photographs([(4, 4)] * 2)
    announced: list[int] = []
    first, second = (model._read(n, request, announced.append) for n, request in enumerate(requests))
    assert [image.getpixel((0, 0)) for image in second.images] == [(255, 255, 255), (255, 0, 0)]
    assert [image.size for image in second.images] == [(4, 4), (2, 3)] and len(first.images) == 1
    assert {image.mode for image in first.images + second.images} == {"RGB"}
    assert announced == [16, 16, 22, 22], "from the header, then from what the task makes of it"


def test_a_batch_decodes_no_more_pixels_than_fit(oracle, monkeypatch):
    from vtc.evaluation import model as module
    from vtc.evaluation.model import GenerationResult, TokenCounts

    monkeypatch.setattr(module, "IN_FLIGHT", 1000)
    decoded, largest = [], []

    class Watched(oracle):
        def _read(self, index, request, room):
            prompt = super()._read(index, request, room)
            decoded.append(prompt.pixels)
            largest.append(sum(decoded))
            return prompt

        def _generate(self, questions):
            self.batches.append([q.index for q in questions])
            assert sum(q.pixels for q in questions) == sum(decoded)
            decoded.clear()
            return [(GenerationResult("a", TokenCounts(input_tokens=1, output_tokens=1)), None) for _ in questions]

    model = Watched(batch_size=5)
    sizes = [(20, 20), (20, 29), (10, 10), (40, 40), (10, 10), (31, 31)]
    model.task_dict["photographs"], requests = photographs(sizes)
    answers = model.generate_until(requests)
    assert model.batches == [[0, 1], [2, 4], [5]] and max(largest) <= 1000
    assert [answer.text for answer in answers] == ["a", "a", "a", "", "a", "a"]
    ((bad,),) = [model.bad]
    assert bad.id == "photo-3" and "pixels; allowed" in bad.error


def of_images(counts: list[int], options: dict | None = None):
    """A model's questions about so many pictures each, as lmms-eval asks them."""
    from PIL import Image

    from vtc.evaluation.prompts import Prompt

    picture = Image.new("RGB", (96, 96), (200, 0, 0))
    return [Prompt(n, "what is this ?", [picture] * count, options or {}) for n, count in enumerate(counts)]


def answered(model, questions) -> tuple[list[int], dict[int, str]]:
    """The questions that are answered, and why the others are not."""
    answers: dict = {}
    model._answer(questions, [SimpleNamespace(task_name="t", doc_id=n) for n in range(len(questions))], answers)
    failed = {n: answer for n, answer in answers.items() if isinstance(answer, str)}
    return sorted(answers.keys() - failed), failed


def test_a_sample_past_the_context_is_set_aside_and_its_batch_is_answered(backbone):
    """Pocket's decoder has 2,048 positions; 13 pictures are 1,872 tokens, 14 are 2,016, 15 are 2,160."""
    short, long = {"max_new_tokens": 4}, {"max_new_tokens": 60}
    model = adapter(backbone, build("none", None, backbone))
    answers, failed = answered(model, of_images([1, 15, 13, 14], short))
    assert list(failed) == [1] and answers == [0, 2, 3]
    words = r"backbone=pocket: its decoder has 2,048 positions .* takes (\d,\d+), with 4 new tokens (\d,\d+)"
    needed, total = (int(n.replace(",", "")) for n in re.fullmatch(words, failed[1]).groups())
    assert 2160 < needed < 2190 and total == needed + 4
    assert list(answered(model, of_images([1, 14], long))[1]) == [1]  # new tokens count too
    assert not answered(adapter(backbone, build("divprune", 16, backbone)), of_images([8, 20], long))[1]
    assert list(answered(adapter(backbone, build("fastv", 16, backbone)), of_images([13, 15], long))[1]) == [1]


@pytest.mark.parametrize("options", [{"max_new_tokens": 4}, {"vtc_embed": True}])
def test_numbers_that_are_none_set_a_sample_aside_by_layer_and_method(backbone, options):
    method = build("divprune", 16, backbone)
    model = adapter(backbone, method)
    weight = backbone.model.get_parameter("model.multi_modal_projector.linear_2.weight")
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] = float("nan")
        answers, failed = answered(model, of_images([1, 1], options))
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert not answers
    wanted = "backbone=pocket, method=divprune: model.multi_modal_projector.linear_2 isn't finite"
    assert failed == {0: wanted, 1: wanted}
    assert not answered(model, of_images([1, 1], options))[1]
