"""Reading ahead of the device changes nothing but when it is done, and never holds more than it may."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image, ImageFile
from pocket_rows import make_rows, write_rows
from test_adapter import adapter, build, requests_of

from vtc.data.pictures import opened, whole
from vtc.errors import UserError
from vtc.evaluation import ahead
from vtc.evaluation.ahead import AHEAD, Ready, TooLarge, in_order, share_of_memory

pytestmark = pytest.mark.usefixtures("manager")


def test_batches_come_in_their_order_and_few_are_read_ahead() -> None:
    begun, done = [], []

    def read(number: int) -> Ready:
        begun.append(number)
        time.sleep(0.02 if number % 3 == 0 else 0.001)  # the first of three is the slowest
        if number == 7:
            raise TooLarge
        return Ready(failed={number: "x"})

    for number, ready in in_order(range(20), read, threads=3):
        done.append(number)
        time.sleep(0.005)
        assert (ready is None) == (number == 7) and (ready is None or ready.failed == {number: "x"})
        assert max(begun) <= number + AHEAD, "more is read than may be"
    assert done == list(range(20))
    assert list(in_order([1, 2], read, threads=0)) == [(1, None), (2, None)]


def test_an_error_comes_when_its_batch_does_and_the_rest_is_not_read() -> None:
    begun = []

    def read(number: int) -> Ready:
        begun.append(number)
        if number == 2:
            raise UserError("it has audio")
        return Ready()

    seen = []
    with pytest.raises(UserError, match="audio"):
        for number, _ in in_order(range(50), read, threads=2):
            seen.append(number)
    assert seen == [0, 1] and len(begun) < 10


def test_pixels_that_would_be_too_many_are_left_to_whoever_answers() -> None:
    room = share_of_memory()
    room(ahead.SHARE)
    with pytest.raises(TooLarge):
        room(1)


@pytest.mark.parametrize("share", [ahead.SHARE, 2 * 96 * 96])
@pytest.mark.parametrize("task", ["pocket_choice", "pocket_hard_captions"])
def test_answers_are_those_of_reading_one_after_the_other(
    task, share, backbone, manager, tmp_path, monkeypatch
) -> None:
    """Bad pictures among them; also where no batch is small enough to be read ahead."""
    monkeypatch.setattr(ahead, "SHARE", share)
    rows = make_rows(task)
    rows[1]["image"]["bytes"] = b"not an image"
    rows[7]["image"]["bytes"] = rows[7]["image"]["bytes"][:200]
    write_rows(tmp_path / f"{task}.parquet", rows)
    method, found = build("fastv", 16, backbone), []
    for workers in (0, 1, 3):
        model = adapter(backbone, method, batch_size=3, workers=workers)
        asked = requests_of(model, task, manager, tmp_path)
        answers = [(a.text, a.token_counts) for a in model.generate_until(asked)]
        found.append((answers, model.kept, model.shown, sorted((b.id, b.error) for b in model.bad)))
        assert len(model.bad) == 2
    assert found[0] == found[1] == found[2]


def test_pillow_is_as_it_was_once_the_last_thread_is_through(monkeypatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    first, second = threading.Event(), threading.Event()

    def outlasts() -> None:
        with whole():
            first.set()
            second.wait(10)
            assert ImageFile.LOAD_TRUNCATED_IMAGES is False

    thread = threading.Thread(target=outlasts)
    with whole():
        thread.start()
        first.wait(10)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # another one is still inside
    second.set()
    thread.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    with pytest.raises(ValueError):
        opened(b"no picture")
    assert Image.MAX_IMAGE_PIXELS == 12345
