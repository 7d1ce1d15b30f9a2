"""Training methods: what learns, what stays, which loss applies, and that a packed pass is the pass that is scored."""

from dataclasses import replace

import pytest
import torch
from method_cases import pocket

from vtc.checkpoint import parameters_of
from vtc.data.training.batch import IGNORE, Part
from vtc.errors import UserError
from vtc.interface import SelfCompressor
from vtc.methods import build
from vtc.pocket.data import encode, image_prefix
from vtc.pocket.source import PocketSource
from vtc.settings import DataSettings
from vtc.training.method_stage import MethodStage

DATA = {
    "batch_size": 4,
    "questions": 3,
    "weights": {"existence": 1.0, "attributes": 1.0, "choice": 1.0},
    "twins": True,
}
RECIPES = {
    "victor-projector": ("victor", 16, {}, ["method", "projector"], {}),
    "victor-finetune": ("victor", 16, {}, ["method", "projector", "decoder"], {}),
    "llavolta": ("llavolta", None, {}, ["projector", "decoder"], {}),
    "fwd2bot": ("fwd2bot", 4, {"rank": 4}, ["method", "adapters"], {}),
    "avgpool": ("avgpool", 16, {}, ["projector", "decoder"], {}),
}


def stage_of(recipe, seed=0, contrastive=0.2, **settings):
    name, tokens, options, train, data = RECIPES[recipe]
    backbone = pocket()
    method = build(name, tokens, backbone.shape, **options)
    method.attach(backbone)
    source = PocketSource(
        "stage", DataSettings(**DATA | data), seed, embed=contrastive > 0 and not isinstance(method, SelfCompressor)
    )
    return MethodStage("stage", backbone, method, train, source, contrastive=contrastive, **settings)


def hidden_of(stage, batch):
    return stage.forward(batch)[0]


def changed_by_training(stage, steps=2):
    everything = {f"backbone.{n}": p for n, p in stage.backbone.model.named_parameters()}
    everything |= {f"method.{n}": p for n, p in stage.method.named_parameters()}
    before = {n: p.detach().clone() for n, p in everything.items()}
    optimizer = torch.optim.SGD([p for _, p in stage.named_parameters()], lr=0.1)
    for step in range(steps):
        stage.start_step(step, 4)
        sum(stage.losses(stage.batch(step)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n for n, p in everything.items() if not torch.equal(p, before[n])}, everything


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_what_is_to_learn_learns_and_all_of_it(recipe):
    stage = stage_of(recipe)
    changed, everything = changed_by_training(stage)
    assert changed == set(stage.trained)
    assert not any("vision_tower" in name for name in changed)
    for name in everything:
        assert everything[name].requires_grad == (name in stage.trained)
    if recipe == "fwd2bot":
        for adapter in ("compress", "generate"):
            assert any(f"lora_A.{adapter}" in n for n in changed) and any(f"lora_B.{adapter}" in n for n in changed)
        assert all("lora_" in n or n.startswith("method.") for n in changed), "the LLM must stay frozen"


def test_parts_cover_the_model_once():
    backbone = pocket()
    method = build("fwd2bot", 4, backbone.shape, rank=2)
    method.attach(backbone)
    names = [
        n for part in ("method", "adapters", "projector", "decoder") for n, _ in parameters_of(part, backbone, method)
    ]
    assert len(names) == len(set(names))
    tower = {f"backbone.{n}" for n, _ in backbone.model.named_parameters() if "vision_tower" in n}
    everything = {f"backbone.{n}" for n, _ in backbone.model.named_parameters()} | {"method.summary"}
    assert set(names) == everything - tower
    with pytest.raises(UserError, match=r"tower.*projector"):
        list(parameters_of("tower", backbone, method))
    with pytest.raises(UserError, match="none of it"):
        none = build("none", None, backbone.shape)
        MethodStage("x", pocket(), none, ["adapters"], PocketSource("x", DataSettings(**DATA), 0))


@pytest.mark.parametrize("recipe", ["victor-finetune", "fwd2bot"])
@pytest.mark.parametrize(
    "losses, terms", [("both", {"answer", "contrastive"}), ("ar", {"answer"}), ("disc", {"contrastive"})]
)
def test_the_losses_that_are_wanted(recipe, losses, terms):
    stage = stage_of(recipe, losses=losses)
    assert set(stage.losses(stage.batch(0))) == terms


@pytest.mark.parametrize("recipe", ["victor-finetune", "fwd2bot"])
def test_each_batch_gets_the_losses_that_it_can_have(recipe):
    """Section 3.4 of Fwd2Bot: a conversation L_AR, a caption pair L_disc, a conversation with a caption both; and a
    term is the same whether or not the other applies."""
    stage = stage_of(recipe)
    both = stage.batch(0)
    conversation, pair = replace(both, captions=None), replace(both, labels=torch.full_like(both.labels, IGNORE))
    terms = stage.losses(both)
    torch.testing.assert_close(stage.losses(conversation), {"answer": terms["answer"]})
    torch.testing.assert_close(stage.losses(pair), {"contrastive": terms["contrastive"]}, atol=1e-5, rtol=1e-5)
    assert stage.weights(pair) == {"answer": 0} and stage.weights(both)["answer"] == both.answers > 0


def test_a_caption_pair_needs_no_second_pass():
    """The frozen parts of the first pass alone get no gradient through "generate"."""
    stage = stage_of("fwd2bot")
    batch = replace(stage.batch(0), captions=stage.batch(0).captions)
    sum(stage.losses(replace(batch, labels=torch.full_like(batch.labels, IGNORE))).values()).backward()
    for name, parameter in stage.named_parameters():
        assert (parameter.grad is None) == (".generate." in name), name


def test_nothing_to_learn_from_is_said():
    with pytest.raises(UserError, match=r"losses=both.*data.contrastive=0.*nothing to learn"):
        stage = stage_of("victor-finetune", contrastive=0.0)
        stage.losses(replace(stage.batch(0), labels=torch.full_like(stage.batch(0).labels, IGNORE)))
    with pytest.raises(UserError, match=r"training.losses=generative.*ar"):
        stage_of("victor-finetune", losses="generative")


@pytest.mark.parametrize("recipe", ["victor-finetune", "fwd2bot", "llavolta"])
def test_checkpointed_gradients_are_the_plain_ones(recipe):
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        stage = stage_of(recipe, checkpointing=checkpointing)
        stage.start_step(0, 4)
        sum(stage.losses(stage.batch(0)).values()).backward()
        grads.append({n: p.grad for n, p in stage.named_parameters()})
        assert any(layer.gradient_checkpointing for layer in stage.backbone.decoder.layers) == checkpointing
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)


def test_a_stage_that_does_not_compress_trains_the_plain_model():
    """LLaVolta's first stage: no pooling, whatever the scheme says."""
    stage = stage_of("llavolta", compress=False)
    stage.start_step(0, 4)
    plain = MethodStage(
        "stage", stage.backbone, build("none", None, stage.backbone.shape), ["projector"], stage.source, contrastive=0.2
    )
    batch = stage.batch(0)
    torch.testing.assert_close(stage.losses(batch), plain.losses(batch))


def test_parts_of_a_step_are_its_batch():
    stage = stage_of("victor-finetune")
    whole, parts = stage.batch(3), [stage.batch(3, Part(i, 3)) for i in range(3)]
    assert [len(p) for p in parts] == [2, 1, 1]
    for name, tensor in whole.inputs.items():
        assert torch.equal(torch.cat([p.inputs[name] for p in parts]), tensor)
    assert torch.equal(torch.cat([p.captions[0] for p in parts]), whole.captions[0])
    assert sum((p.kinds for p in parts), []) == whole.kinds


def test_fwd2bots_contrastive_loss_is_info_nce_of_the_mean_summary_tokens():
    """Eq. 3, computed again from the public embeddings."""
    from vtc.engine import embed_images, embed_texts

    stage = stage_of("fwd2bot")
    batch = stage.batch(0)
    loss = stage.losses(batch)["contrastive"]
    from PIL import Image

    pixels = ((batch.inputs["pixel_values"].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    image = embed_images(stage.backbone, stage.method, [Image.fromarray(p) for p in pixels]).double()
    ids, mask = batch.captions
    words = [stage.backbone.tokenizer.decode(row[real.bool()]) for row, real in zip(ids, mask, strict=True)]
    text = embed_texts(stage.backbone, stage.method, words).double()
    s = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True)).T / 0.07
    expected = -(s.log_softmax(1).diagonal().mean() + s.log_softmax(0).diagonal().mean())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("recipe", ["victor-finetune", "fwd2bot", "avgpool"])
def test_packed_questions_get_the_logits_of_generation(recipe):
    """What is trained is what is scored: a block's logits are those of the question asked alone, through the engine."""
    from vtc.engine import compressing

    stage = stage_of(recipe)
    stage.method.eval()
    batch = stage.batch(0)
    with torch.no_grad():
        together = stage.backbone.model.lm_head(hidden_of(stage, batch))
        for row in range(2):
            for block in (1, 3):
                inside = (batch.blocks[row] == block) & batch.attention_mask[row].bool()
                ids = torch.cat([torch.tensor(image_prefix()), batch.input_ids[row][inside]])[None]
                with compressing(stage.backbone, stage.method):
                    alone = stage.backbone.model(
                        input_ids=ids, pixel_values=batch.inputs["pixel_values"][row : row + 1]
                    ).logits
                # The slot of a block's last token holds the state that predicts the next block's first one.
                mine, theirs = together[row][inside][:-1], alone[0, len(image_prefix()) : -1]
                torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)


def test_packed_embeddings_are_those_that_are_scored():
    """The embedding block's last hidden state is what ``embed_images`` gives under the same method."""
    from vtc.engine import encode_images

    stage = stage_of("victor-finetune")
    stage.method.eval()
    batch = stage.batch(0)
    with torch.no_grad():
        packed = hidden_of(stage, batch)[torch.arange(4), batch.embed_at]
        scored = encode_images(stage.backbone, stage.method, batch.inputs["pixel_values"])
    torch.testing.assert_close(packed, scored, atol=2e-4, rtol=1e-3)


def test_labels_cover_answers_in_blocks_that_embed_too():
    stage = stage_of("victor-finetune")
    batch = stage.batch(0)
    assert batch.embed_at is not None
    for row, at in enumerate(batch.embed_at.tolist()):
        assert batch.input_ids[row, at] == encode("ASSISTANT:")[0]
        last = batch.blocks[row, at]
        assert (batch.labels[row][batch.blocks[row] == last] == IGNORE).all()
        assert last == len(batch.kinds[row]) + 1
