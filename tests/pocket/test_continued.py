"""A second edition from the weights of the first: old words mean what they did, new ones and places are there."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vtc import shipped
from vtc.configuration import parse
from vtc.errors import UserError
from vtc.pocket.base import train_base
from vtc.pocket.data import draw_scenes, image_prefix, patch_labels, render
from vtc.pocket.model import GRID, continued, encode, vocabulary
from vtc.pocket.recipe import Places, concepts, word_ids
from vtc.pocket.scenes import scene_rng

ALIGNED = shipped.path("benchmarks/pocket/weights/aligned")
FIRST = 75  # words of the first edition


@pytest.fixture(scope="module")
def model():
    return continued(ALIGNED, seed=3).eval()


@torch.no_grad()
def test_old_questions_get_the_logits_they_got(model):
    before = LlavaForConditionalGeneration.from_pretrained(ALIGNED, dtype=torch.float32).eval()
    assert before.config.text_config.vocab_size < model.config.text_config.vocab_size and len(vocabulary()) > FIRST
    pixels = render(draw_scenes(scene_rng(0, "continued", 0), 2, "train"))
    ids = torch.tensor([[*image_prefix(), *encode("what color is the circle? ASSISTANT:")]] * 2)
    logits = [each(input_ids=ids, pixel_values=pixels).logits[..., :FIRST] for each in (before, model)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_places_read_off_the_projector_are_those_it_was_aligned_to(model):
    """Each patch of scenes that weren't read off lies where its words and the place say, to a tenth of its square."""
    places = Places(0)
    places.read_off(model)
    scenes = draw_scenes(scene_rng(0, "continued", 1), 8, "validation")
    labels = patch_labels(scenes)
    features = model.model.multi_modal_projector(
        model.model.vision_tower(pixel_values=render(scenes)).last_hidden_state[:, 1:]
    )
    patch = torch.arange(GRID * GRID).expand(len(scenes), -1)
    target = concepts(model.get_input_embeddings().weight, word_ids(labels), places(patch))
    for shown in (labels[0] > 0, labels[0] == 0):
        assert (features - target)[shown].square().mean() < 0.1 * target[shown].square().mean()


def test_what_a_recipe_of_later_stages_needs():
    base = ["action=train", "backbone=pocket2", "training=pocket2_base"]
    with pytest.raises(UserError, match="locate, language, align, instruct, in this order"):
        train_base(parse([*base, "training.stages=[{name: instruct, steps: 1, lr: 1.0e-3}]"]))
    with pytest.raises(UserError, match="training.pretrained=.*no weights there"):
        train_base(parse([*base, "training.pretrained=benchmarks/pocket"]))
