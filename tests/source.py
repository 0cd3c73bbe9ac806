"""The sources of the project as syntax trees."""

from __future__ import annotations

import ast
import gc
from pathlib import Path


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
