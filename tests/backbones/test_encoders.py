"""What is encoded already is not encoded again, whether the model takes it (transformers 5.24) or not (5.17)."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from vtc.backbones.encoders import OUTPUTS, handed_over


class Old:
    """A multimodal model that encodes whatever pixels it is given, as those of transformers 5.17 do."""

    def __init__(self) -> None:
        self.encoded: list[object] = []

    def get_image_features(self, pixel_values: object, return_dict: bool = True) -> str:
        self.encoded.append(pixel_values)
        return "encoded"

    def forward(self, input_ids: object = None, pixel_values: object = None, **kwargs: object) -> object:
        return None if pixel_values is None else self.get_image_features(pixel_values, return_dict=True)


class New(Old):
    def forward(self, pixel_values: object = None, mm_encoder_outputs: object = None, **kwargs: object) -> object:
        return mm_encoder_outputs


def handed(core: Old, pixels: object, stack: ExitStack) -> dict:
    before = {"input_ids": 1, "pixel_values": pixels}
    return handed_over(core, before, before | {"pixel_values": None, OUTPUTS: {"image": "known"}}, stack)


def test_a_model_that_takes_it_is_given_it() -> None:
    core = New()
    with ExitStack() as stack:
        assert handed(core, object(), stack) == {"input_ids": 1, "pixel_values": None, OUTPUTS: {"image": "known"}}
        assert "get_image_features" not in vars(core)


def test_a_model_that_does_not_finds_it_in_the_place_of_its_encoder() -> None:
    core, pixels, others = Old(), object(), object()
    with ExitStack() as stack:
        kwargs = handed(core, pixels, stack)
        assert kwargs == {"input_ids": 1, "pixel_values": pixels}
        assert core.forward(**kwargs) == "known" and core.encoded == []
        assert core.forward(pixel_values=others) == "encoded" and core.encoded == [others], "of these pixels alone"
    assert "get_image_features" not in vars(core)
    assert core.forward(pixel_values=pixels) == "encoded"


def test_what_the_instance_had_comes_back_whatever_happens() -> None:
    core = Old()
    core.get_image_features = own = lambda *_, **__: "watched"  # as the engine's tower watch has it
    with pytest.raises(ZeroDivisionError), ExitStack() as stack:
        handed(core, object(), stack)
        raise ZeroDivisionError
    assert core.get_image_features is own


def test_what_the_caller_gave_and_a_call_without_images_are_as_they_were() -> None:
    with ExitStack() as stack:
        given = {"input_ids": 1, OUTPUTS: {"image": "given"}}
        assert handed_over(Old(), given, given, stack) == given
        assert handed_over(Old(), {"input_ids": 1}, {"input_ids": 1}, stack) == {"input_ids": 1}
