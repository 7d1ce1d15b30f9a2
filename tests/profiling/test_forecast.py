"""What is said before long measurements: how long they take at most, and in which type they would be faster."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vtc.profiling import forecast
from vtc.settings import ProfileSettings
from vtc.testing import tiny_backbone


def test_it_is_the_sum_of_what_is_measured() -> None:
    """Two models; prefills of one row thrice; of 4 rows two answers of 2 and 128 tokens and one of 8 steps, 5 times."""
    protocol = ProfileSettings(batch_size=4, repeats=5, first_token_repeats=20)
    expected = 2 * (3 * 20 * 1.5 + 5 * (2 * 4 * 1.5 + 4 * 0.1 * 130 + 4 * 1.5 + 4 * 0.1 * 8))
    assert forecast.forecast(1.5, 0.1, protocol) == pytest.approx(expected)
    assert forecast.forecast(1.5, 0.1, dataclasses.replace(protocol, repeats=0)) == pytest.approx(180)


def test_a_long_wait_and_a_slow_type_are_said(monkeypatch) -> None:
    backbone, protocol = tiny_backbone(), ProfileSettings()
    monkeypatch.setattr(forecast, "one_row", lambda *_: (2.0, 0.1))
    (line,) = forecast.advice(backbone, protocol)
    assert "up to 57 minutes" in line and "2.0 s" in line and "profile.repeats=0" in line
    monkeypatch.setattr(forecast, "one_row", lambda *_: (0.01, 0.001))
    assert forecast.advice(backbone, protocol) == []
    monkeypatch.setattr(forecast, "is_emulated", lambda dtype: True)
    (line,) = forecast.advice(backbone, protocol)
    assert line.startswith("dtype=float32: this processor")
    assert forecast.advice(backbone, ProfileSettings(repeats=0, first_token_repeats=0)) == []


def test_one_row_is_timed() -> None:
    prefill, step = forecast.one_row(tiny_backbone(), 12)
    assert 0 < prefill < 60 and 0 <= step < 60
    assert not forecast.is_emulated(torch.float32)
