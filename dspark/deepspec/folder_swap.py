"""A folder that is replaced as a whole or not at all: written beside its place, then swapped in with one rename.

Knows files; not what they hold. A reader or a crash at any moment finds the old folder or the new one, never a part of either.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
#: What a kernel or file system answers that cannot exchange two names.
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder to write to; it takes the place of `folder` when the block ends without an error, and is removed otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of a writer that was killed
    staging.mkdir()
    try:
        yield staging
        _flush(staging)
        _swap(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # the old folder by now, or the unfinished new one


def _swap(new: Path, place: Path) -> None:
    """Afterwards `place` is the new folder, and `new` is the old one or gone."""
    if not place.exists():
        new.rename(place)
    elif not _exchange(new, place):
        aside = new.with_name(f"{new.name}.old")
        place.rename(aside)
        try:
            new.rename(place)
        except OSError:
            aside.rename(place)
            raise
        aside.rename(new)
    _sync(place.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _flush(folder: Path) -> None:
    """Contents first, so that after a power cut the new name never stands for empty files."""
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
