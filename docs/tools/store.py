"""Runs the commands of docs/store.md and puts what they print behind each.

    pip install scikit-image && python docs/tools/store.py

A part stands between `<!-- run COMMAND -->` and `<!-- end run -->`. The commands run one after the other in a folder
with `photographs`, the sample pictures of scikit-image and scikit-learn, and `scenes`, 200 of pocket's test scenes.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path

from PIL import Image

from vtc import shipped

PAGE = "docs/store.md"
PART = re.compile(r"(<!-- run (?P<command>.+?) -->\n).*?(<!-- end run -->)", re.DOTALL)
SAMPLES = ("astronaut", "chelsea", "clock_motion", "coffee", "coins", "moon", "page", "rocket")
SCENES = 200


def prepare() -> None:
    """The two folders of pictures, here."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    from vtc.pocket.data import draw_scenes
    from vtc.pocket.scenes import scene_rng

    for folder in ("photographs", "scenes"):
        Path(folder).mkdir()
    folder_of_samples = Path(data.__file__).parent
    for name in SAMPLES:
        file = next(folder_of_samples.glob(f"{name}.*g"))
        (Path("photographs") / file.name).write_bytes(file.read_bytes())
    samples = load_sample_images()
    for name, pixels in zip(samples.filenames, samples.images, strict=True):
        Image.fromarray(pixels).save(Path("photographs", Path(name).name), quality=95)
    for number, scene in enumerate(draw_scenes(scene_rng(0, "docs", 0), SCENES, "test")):
        Image.fromarray(scene.render()).save(Path("scenes", f"{number:03d}.png"))


def printed(command: str) -> str:
    from vtc.cli import main

    with redirect_stdout(io.StringIO()) as out:
        code = main(shlex.split(command.removeprefix("python -m vtc ")))
    if code:
        raise RuntimeError(f"{command}: exit code {code}")
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def main() -> None:
    page = shipped.root() / PAGE
    os.environ["COLUMNS"] = "110"
    with tempfile.TemporaryDirectory() as place, chdir(os.path.realpath(place)):
        prepare()

        def fill(part: re.Match) -> str:
            command = part["command"]
            body = "".join(f"    {line}".rstrip() + "\n" for line in [f"$ {command}", *printed(command).splitlines()])
            return f"{part[1]}\n{body}\n{part[3]}"

        page.write_text(PART.sub(fill, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
