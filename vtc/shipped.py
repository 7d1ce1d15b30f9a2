"""Where the files that come with vtc are: `conf/` and `benchmarks/`, in a checkout or in the installed wheel; and where
those go that it makes for itself."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds `conf/` and `benchmarks/`: `vtc/_shipped` in a wheel, the repository in a checkout."""
    installed = PACKAGE / "_shipped"
    return installed if installed.is_dir() else PACKAGE.parent


def path(name: str) -> Path:
    """The shipped file or folder `name`, for example `"conf"` or `"benchmarks/pocket/weights/base"`.

    Raises:
        FileNotFoundError: this installation does not have it.
    """
    file = root() / name
    if not file.exists():
        raise FileNotFoundError(f"{name}: not part of this installation of vtc (looked in {root()})")
    return file


def cache_folder() -> Path:
    """`$VTC_CACHE`, else `vtc` in the user's cache."""
    return Path(os.path.expanduser(os.environ.get("VTC_CACHE") or os.path.join(user_cache(), "vtc")))


def user_cache() -> str:
    """`$XDG_CACHE_HOME`, else `.cache` in the home folder."""
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
