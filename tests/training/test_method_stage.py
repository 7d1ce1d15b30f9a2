"""Training methods: what learns, what stays, which loss applies, and that a packed pass is the pass that is scored."""

import pytest
import torch
from method_cases import pocket

from vtc.errors import UserError
from vtc.methods import build
from vtc.pocket.data import IGNORE, encode, image_prefix
from vtc.pocket.recipe import InstructStage
from vtc.training.method_stage import MethodStage, parameters_of

DATA = {
    "batch_size": 4,
    "questions": 3,
    "weights": {"existence": 1.0, "attributes": 1.0, "choice": 1.0},
    "twins": True,
    "contrastive": 0.2,
}
RECIPES = {
    "victor-projector": ("victor", 16, {}, ["method", "projector"], {}),
    "victor-finetune": ("victor", 16, {}, ["method", "projector", "decoder"], {}),
    "llavolta": ("llavolta", None, {}, ["projector", "decoder"], {}),
    "fwd2bot": ("fwd2bot", 4, {"rank": 4}, ["method", "adapters"], {"contrastive": 0.0}),
    "avgpool": ("avgpool", 16, {}, ["projector", "decoder"], {}),
}


def stage_of(recipe, seed=0):
    name, tokens, options, train, data = RECIPES[recipe]
    backbone = pocket()
    method = build(name, tokens, backbone.shape, **options)
    method.attach(backbone)
    return MethodStage("stage", backbone, method, train, DATA | data, seed)


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
        MethodStage("x", pocket(), build("none", None, backbone.shape), ["adapters"], DATA, 0)


def test_the_losses_that_apply():
    terms = {
        recipe: set(stage_of(recipe).losses(stage_of(recipe).batch(0))) for recipe in ("victor-finetune", "fwd2bot")
    }
    assert terms["victor-finetune"] == {"answer", "contrastive"}
    assert terms["fwd2bot"] == {"answer", "contrastive"}
    stage = stage_of("victor-finetune")
    stage.contrastive = 0.0
    assert set(stage.losses(stage.batch(0))) == {"answer"}


def test_fwd2bots_contrastive_loss_is_info_nce_of_the_mean_summary_tokens():
    """Eq. 3, computed again from the public embeddings."""
    from vtc.engine import embed_images, embed_texts

    stage = stage_of("fwd2bot")
    batch = stage.batch(0)
    loss = stage.losses(batch)["contrastive"]
    from PIL import Image

    pixels = ((batch.pixel_values.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    image = embed_images(stage.backbone, stage.method, [Image.fromarray(p) for p in pixels]).double()
    text = embed_texts(stage.backbone, stage.method, batch.captions).double()
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
        together = stage.model.lm_head(stage.hidden(batch))
        for row in range(2):
            for block in (1, 3):
                inside = (batch.blocks[row] == block) & batch.attention_mask[row].bool()
                ids = torch.cat([torch.tensor(image_prefix()), batch.input_ids[row][inside]])[None]
                with compressing(stage.backbone, stage.method):
                    alone = stage.model(input_ids=ids, pixel_values=batch.pixel_values[row : row + 1]).logits
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
        packed = stage.hidden(batch)[torch.arange(4), batch.embed_at]
        scored = encode_images(stage.backbone, stage.method, batch.pixel_values)
    torch.testing.assert_close(packed, scored, atol=2e-4, rtol=1e-3)


def test_the_instruct_stage_is_the_method_stage_of_none():
    """The base model is trained without the engine, and the engine does the same thing."""
    backbone = pocket()
    own = InstructStage(backbone.model, 0, 4, 3, DATA["weights"], contrastive=0.2)
    through = MethodStage("instruct", backbone, build("none", None, backbone.shape), ["projector", "decoder"], DATA, 0)
    a, b = own.batch(3), through.batch(3)
    assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.pixel_values, b.pixel_values)
    for (name, x), (other, y) in zip(own.losses(a).items(), through.losses(b).items(), strict=True):
        assert name == other
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    assert {n.split(".", 1)[1] for n, _ in own.named_parameters()} == {
        n.removeprefix("backbone.model.").removeprefix("multi_modal_projector.").removeprefix("language_model.")
        for n, _ in through.named_parameters()
    }


def test_labels_cover_answers_in_blocks_that_embed_too():
    stage = stage_of("victor-finetune")
    batch = stage.batch(0)
    assert batch.embed_at is not None
    for row, at in enumerate(batch.embed_at.tolist()):
        assert batch.input_ids[row, at] == encode("ASSISTANT:")[0]
        last = batch.blocks[row, at]
        assert (batch.labels[row][batch.blocks[row] == last] == IGNORE).all()
        assert last == len(batch.kinds[row]) + 1
