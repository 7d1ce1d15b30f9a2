"""Controls: a question asked about a picture that can't answer it, so that what a score owes to the picture is known.

`benchmark.picture=grey` shows a picture of the same size without content, `other` that of another sample of the same
task. A method whose score stays as it is under either does not read the picture; what text alone reaches (language
priors, the order of options) is the score that is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from vtc.evaluation.prompts import Prompt

OWN, GREY, OTHER = "own", "grey", "other"
MIDDLE = (128, 128, 128)
TRIES = 64  # neighbours that may show the same picture, as several questions about one do


def without_content(prompt: Prompt) -> Prompt:
    """The prompt with grey pictures and frames of the sizes of its own."""
    return replace(
        prompt, images=[_grey(image) for image in prompt.images], videos=[[*map(_grey, v)] for v in prompt.videos]
    )


def _grey(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size, MIDDLE)


def of_another(prompt: Prompt, number: int, count: int, shown_at: Callable[[int], Prompt]) -> Prompt:
    """The prompt with the pictures of the sample half a task further on, or of the next after it that shows as many
    pictures and not the same ones. It is the same one in every run.

    Args:
        number: of the sample in its task; count: samples of the task.
        shown_at: what another sample of the task shows.

    Raises:
        ValueError: none of `TRIES` others shows other pictures.
    """
    own = [_content(image) for image in prompt.shown]
    shape = (len(prompt.images), len(prompt.videos))
    for step in range(min(TRIES, count)):
        at = (number + count // 2 + step) % count
        if at == number:
            continue
        other = shown_at(at)
        if (len(other.images), len(other.videos)) == shape and [_content(image) for image in other.shown] != own:
            return replace(prompt, images=other.images, videos=other.videos)
    raise ValueError("no other sample shows another picture; benchmark.picture=other needs one")


def _content(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    return image.size, image.tobytes()
