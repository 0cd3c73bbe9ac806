"""A folder that appears complete or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from albert.data.errors import DataError
from btard.files import sync


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `folder` at the end of the block, after all of it is on the disk.

    If the block raises, it is deleted. What a killed process left is deleted by the next one. Raises DataError if
    `folder` is there already and not empty, if another process is making it, or if it cannot be written.
    """
    folder = replaceable(folder)
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(partial)
    except OSError as error:
        raise DataError(f"{partial}: cannot be made ({error.strerror}); choose another --out") from None
    try:
        _empty(partial)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        try:
            os.rename(partial, folder)
        except OSError as error:
            raise DataError(f"{folder}: cannot take its place ({error.strerror}); choose another --out") from None
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def replaceable(folder: Path) -> Path:
    """Return the real path of `folder`, without links. Raises DataError if no other folder can be given its name."""
    try:
        real = folder.resolve()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder}: leads nowhere ({error}); choose another --out") from None
    inside = f"name a new folder in it, such as {folder / 'prepared'}"
    if not real.name or real == Path.cwd() or real in Path.cwd().parents:
        raise DataError(f"{folder}: expected a folder to make, got one that this program runs in; {inside}")
    if os.path.ismount(real):
        raise DataError(f"{folder}: expected a folder to make, got the root of a mounted file system; {inside}")
    if real.exists() and not real.is_dir():
        raise DataError(f"{folder}: expected a folder to make, got a file; choose another --out")
    return real


def _locked(partial: Path) -> int:
    """Create the folder and lock it, until the returned descriptor is closed or the process ends."""
    while True:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two the process that had it may have finished and moved it away.
            if os.path.exists(partial) and os.path.samestat(os.fstat(lock), os.stat(partial)):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise DataError(f"{partial}: another process is preparing this folder; wait for it to end") from None
        os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
