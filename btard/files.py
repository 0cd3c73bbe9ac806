"""Files that appear complete or not at all, whatever ends the process or the machine.

There is one strength: first the bytes are on the disk, then the name, then the folder that lists the name. Without the
first, a loss of power may leave the name of an empty file; without the last, a checkpoint may vouch for a proof, or a
peer be known by a key, that the disk has not. It costs milliseconds a file.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED = ".tmp"
"""The suffix of a file that is being written. A process that is killed leaves it; the next attempt overwrites it."""


def unfinished(file: Path) -> Path:
    """The path under which `complete_file` has `file` written."""
    return file.with_name(f".{file.name}{UNFINISHED}")


@contextmanager
def complete_file(file: Path, *, private: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield the path of an empty file to write to; at the end of the block it gets the name `file`.

    The folder is made if it is missing. If the block raises, `file` is what it was, and nothing is left.
    `private`: only its owner can read the file. `shared`: other processes may write the same file at this moment, and
    the last one stays. Errors: OSError.
    """
    temporary = unfinished(file)
    if shared:
        temporary = temporary.with_suffix(f".{platform.node()}.{os.getpid()}{UNFINISHED}")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
        yield temporary
        put_in_place(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(file: Path, content: bytes | str, *, private: bool = False, shared: bool = False) -> None:
    """Have this content in `file`, text in UTF-8; the rest as in `complete_file`."""
    with complete_file(file, private=private, shared=shared) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def put_in_place(temporary: Path, file: Path) -> None:
    """Give a complete file beside `file` its name."""
    sync(temporary)
    temporary.replace(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: Path, patience: float = 0.0) -> IO[bytes] | None:
    """Lock `file`, made if it is missing, against other processes; None if one of these has it for `patience` seconds.

    The lock lasts until this process ends, or closes the result or anything else that it has opened of `file`. A
    process does not lock itself out.
    """
    held, deadline = file.open("ab"), time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except OSError:
            if time.monotonic() >= deadline:
                held.close()
                return None
            time.sleep(0.05)
