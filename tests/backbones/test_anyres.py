"""Tiles: the arithmetic without transformers against transformers' own processors and models."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from transformers import LlavaNextConfig, LlavaNextProcessor, LlavaOnevisionConfig, LlavaOnevisionProcessor
from transformers.image_processing_utils import select_best_resolution

from vtc.backbones import anyres
from vtc.errors import UserError

SIZES = [(336, 336), (672, 672), (100, 1000), (1000, 100), (1, 1), (337, 335), (480, 640), (2000, 1999), (5, 800)]
SIZES += [(random.Random(n).randint(1, 2500), random.Random(-n).randint(1, 2500)) for n in range(1, 300)]


@pytest.mark.parametrize("config", [LlavaNextConfig(), LlavaOnevisionConfig()], ids=lambda c: c.model_type)
def test_the_resolution_is_the_one_transformers_selects(config) -> None:
    for size in SIZES:
        assert anyres.best_resolution(size, config.image_grid_pinpoints) == tuple(
            select_best_resolution(size, config.image_grid_pinpoints)
        ), size


def test_the_number_of_tokens_of_llava_next_is_its_processors() -> None:
    config = LlavaNextConfig()
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
        patch_size=14,
        num_additional_image_tokens=0,
        _get_unpadded_features=lambda *a: LlavaNextProcessor._get_unpadded_features(None, *a),
    )
    for height, width in SIZES:
        count = LlavaNextProcessor._get_number_of_features(processor, height, width, 336, 336)
        assert anyres.layout((height, width), config).tokens == count, (height, width)
    assert anyres.layout((672, 672), config).tokens == 576 + 48 * 49


def test_the_number_of_tokens_of_llava_onevision_is_its_processors() -> None:
    config = LlavaOnevisionConfig()
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
        num_image_tokens=729,
        vision_aspect_ratio="anyres_max_9",
    )
    own = LlavaOnevisionProcessor._get_unpadded_features
    processor._get_unpadded_features = lambda *a: own(processor, *a)
    shrunk = 0
    for height, width in SIZES:
        made = anyres.layout((height, width), config)
        count = LlavaOnevisionProcessor._get_number_of_features(processor, height, width, 384, 384)
        assert made.tokens == count, (height, width)
        shrunk += made.shrunk
    assert 20 < shrunk < len(SIZES) - 20  # both branches were seen


def test_squares_that_tiles_cover_are_allowed_and_no_others() -> None:
    config = LlavaNextConfig()
    assert anyres.squares(config) == [336, 672] and anyres.squares(LlavaOnevisionConfig())[::5] == [384, 2304]
    assert anyres.fixed(336, config, "x").tokens == 576 + 24 * 25
    for wrong in (100, 0, 1008, True, "336"):
        with pytest.raises(UserError, match=f"image_size={wrong}: x cuts squares of 336, 672 pixels"):
            anyres.fixed(wrong, config, "x")
