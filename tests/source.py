"""The sources of the project as syntax trees, and which of them are programs."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def parsed(file: Path) -> ast.Module:
    """The tree of `file`.

    Nothing is collected meanwhile: Python 3.11 fails if the destructor of what another test left behind runs within its
    parser ("AST constructor recursion depth mismatch").
    """
    gc.disable()
    try:
        return ast.parse(file.read_text())
    finally:
        gc.enable()


def programs() -> Iterator[Path]:
    """The files that `python -m` can run: those that do something when they are."""
    for folder in ("albert", "btard", "resnet", "scripts"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            tests = {ast.unparse(node.test) for node in parsed(file).body if isinstance(node, ast.If)}
            if "__name__ == '__main__'" in tests:
                yield file
