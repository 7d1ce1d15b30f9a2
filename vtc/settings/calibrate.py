"""Settings of `action=calibrate`: a recipe that is fitted to attention on training samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtc.allowed import TEXT, whole
from vtc.identity import NOTHING, setting
from vtc.settings.run import FILES, FOLDER


@dataclass(frozen=True)
class CalibrateSettings:
    """What is fitted to what.

    Attributes:
        samples: pictures with a question, of training data.
        path: the files that they are read from, as `training.data.path` takes them; None: what is drawn for the
            training of a backbone that comes with vtc.
        images: the folder that paths of images are relative to; None: the file's.
        output: the file of the recipe; None: `output_dir/recipes/<method>-<backbone>.json`.
    """

    samples: int = setting(64, NOTHING, whole(1, 100_000))
    path: Any = setting(None, NOTHING, FILES)
    images: str | None = setting(None, NOTHING, TEXT)
    output: str | None = setting(None, NOTHING, FOLDER.or_null())
