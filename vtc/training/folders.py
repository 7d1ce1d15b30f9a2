"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of ``folder`` at the end.

    A crash inside leaves the old one; one between the two renames leaves it as ``<folder>.old``.
    """
    fresh = beginning(folder)
    yield fresh
    finish(folder)


def beginning(folder: Path) -> Path:
    """The fresh folder beside `folder`, empty."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    return fresh


def finish(folder: Path) -> None:
    """Puts the fresh folder into the place of `folder`, once what is in it has reached the disk."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for file in fresh.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def removed(folder: Path) -> None:
    """Takes `folder` away at once: a crash never leaves half of it under its name."""
    gone = folder.with_name(folder.name + ".old")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)
