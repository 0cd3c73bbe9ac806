"""Which branches of `btard.protocol` a run goes through: its modules are compiled with a mark in every branch.

A mark stores one byte, so that a run takes hardly longer. `install` has to come before the first import of the package;
without it nothing is marked, and the hunt goes by the ledgers alone. It can take out a fix on the way (`edits.py`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from scripts.hunt.edits import Edit

PACKAGE = "btard.protocol"
MARKS = bytearray()
"""A byte per branch, 1 if it was taken since `clear`."""
NAMES: list[str] = []
"""Where each branch is: file:line."""


def clear() -> None:
    MARKS[:] = bytes(len(MARKS))


def taken() -> frozenset[int]:
    """The branches that were taken since `clear`."""
    return frozenset(i for i, mark in enumerate(MARKS) if mark)


class _Marker(ast.NodeTransformer):
    """Puts a mark at the start of functions, loops, handlers, and of both sides of every `if`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _mark(self, node: Any) -> ast.stmt:
        NAMES.append(f"{self.name}:{node.lineno}")
        MARKS.append(0)
        index = ast.Constant(len(MARKS) - 1)
        place = ast.Subscript(ast.Name("__marks__", ast.Load()), index, ast.Store())
        return ast.fix_missing_locations(ast.copy_location(ast.Assign([place], ast.Constant(1)), node))

    def _marked(self, node: Any, *bodies: str) -> Any:
        self.generic_visit(node)
        for name in bodies:
            body = getattr(node, name)
            skip = isinstance(node, ast.FunctionDef) and isinstance(body[0], ast.Expr) and len(body) > 1
            where = body[0] if body else node
            setattr(node, name, [*body[:skip], self._mark(where), *body[skip:]])
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return self._marked(node, "body")

    def visit_If(self, node: ast.If) -> Any:
        return self._marked(node, "body", "orelse")

    def visit_For(self, node: ast.For) -> Any:
        return self._marked(node, "body", "orelse")

    def visit_While(self, node: ast.While) -> Any:
        return self._marked(node, "body")

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> Any:
        return self._marked(node, "body")


def edited(source: str, module: str, edits: Sequence[Edit]) -> str:
    """`source` after the edits that are about `module`. Errors: ValueError for one that has no place."""
    for edit in edits:
        if edit.module != module:
            continue
        if source.count(edit.old) != 1:
            raise ValueError(
                f"{module} has {source.count(edit.old)} times the text {edit.old!r}: it has to be there once"
            )
        source = source.replace(edit.old, edit.new)
    return source


class _Loader(SourceFileLoader):
    edits: Sequence[Edit] = ()
    marked = True

    def get_code(self, fullname: str) -> CodeType:
        """Never from a stored file: that has no marks and no edits, and must not get any."""
        source = edited(self.get_data(self.path).decode(), fullname, self.edits)
        tree = ast.parse(source, self.path)
        if self.marked:
            tree = _Marker(fullname).visit(tree)
        code: CodeType = compile(tree, self.path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__marks__"] = MARKS
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, edits: Sequence[Edit], marked: bool) -> None:
        self.edits, self.marked = edits, marked

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{PACKAGE}."):
            return None
        if not self.marked and all(edit.module != fullname for edit in self.edits):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
            spec.loader.edits, spec.loader.marked = self.edits, self.marked
        return spec


def install(edits: Sequence[Edit] = (), *, marked: bool = True) -> None:
    """Mark the branches of the package's modules as they are imported, after these edits.

    `marked` = False: only the edits, for who does not search; other modules come from their stored bytecode then.
    Errors: RuntimeError if it is too late.
    """
    if PACKAGE in sys.modules or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        raise RuntimeError(f"{PACKAGE} was imported before its branches could be marked")
    sys.meta_path.insert(0, _Finder(tuple(edits), marked))
