"""Folders that appear whole or not at all, and that one process at a time writes."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock


PROBE = 1 << 16  # bytes, the least that a result takes

# What a system says of a place in which nothing can be written, now or any more.
UNWRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG}
)


def lock_of(folder: Path) -> BaseFileLock:
    """What a process holds while it writes a folder: `.<folder>.lock` beside it. A process that ends lets go of it."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.parent / f".{folder.name}.lock")


def check_writable(folder: Path, remedy: str) -> None:
    """Refuses a folder in which nothing can be written, before anything slow. It leaves no trace.

    Args:
        folder: that is there, or would be made.
        remedy: what moves it: a setting or a variable of the environment.

    Raises:
        UserError: the folder and why: it is read-only, forbidden, full, or its name is too long.
    """
    absent: list[Path] = []
    try:
        absent = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            if file.write(bytes(PROBE)) < PROBE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error.strerror}); {remedy}") from None
    finally:
        for place in absent:
            with suppress(OSError):
                place.rmdir()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of ``folder`` at the end.

    A crash inside leaves the old one; one between the two renames leaves it as ``<folder>.old``.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    for file in fresh.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())  # the name must not reach the disk before the bytes
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
