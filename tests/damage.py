"""What may happen to a file of a run folder: it is gone, cut, or an older one."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path

OLDER = 2
"""Steps of the newest checkpoint in the folders of before, which `older` takes files from."""


def cut(file: Path, _: Path) -> bool:
    """Leave the first third."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])
    return bool(content)


def gone(file: Path, _: Path) -> bool:
    file.unlink()
    return True


def older(file: Path, before: Path) -> bool:
    """Put what the file was before, or the checkpoint of before, in its place; False if it was the same."""
    of_before = before / file.parent.name / f"step-{OLDER:08d}.safetensors" if "checkpoints" in file.parts else None
    if of_before is None:
        of_before = before / file.name
    if not of_before.exists() or of_before.read_bytes() == file.read_bytes():
        return False
    shutil.copyfile(of_before, file)
    return True


DAMAGES: dict[str, Callable[[Path, Path], bool]] = {"gone": gone, "cut": cut, "older": older}


def files(folder: Path, pattern: str = "*") -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and fnmatch.fnmatch(str(file.relative_to(folder)), pattern)
    ]
