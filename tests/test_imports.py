"""Every sentence about who may import whom, in the docstrings of packages and in the pages, as a contract.

A contract holds for what a file imports anywhere in it, and for whatever comes along when the file is imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.source import parsed

ROOT = Path(__file__).parents[1]
PACKAGES = ("albert", "btard", "resnet")
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}
STANDARD = set(sys.stdlib_module_names)
NETWORK = ("hivemind", "socket", "asyncio", "torch.distributed", "btard.swarm")


@dataclass(frozen=True)
class Contract:
    """`who`, but for `but`, imports nothing of `never`; if `only` is given, nothing else than that."""

    where: str
    """The file that says so."""
    says: str
    """How it says it, white space aside."""
    who: tuple[str, ...]
    never: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    but: tuple[str, ...] = ()


BESIDE = ("btard.harness", "btard.swarm", "btard.watch")
CONTRACTS = (
    Contract(
        "btard/__init__.py",
        "imports neither `resnet` nor `albert`.",
        ("btard",),
        ("resnet", "albert", "scripts", "tests"),
    ),
    Contract(
        "btard/__init__.py",
        "Only `btard.swarm` knows a network; it needs the extra `swarm`.",
        ("btard",),
        ("hivemind", "btard.swarm"),
        but=("btard.swarm", "btard.export"),
    ),
    Contract(
        "btard/aggregation/__init__.py",
        "only torch, numpy and the standard library may be imported.",
        ("btard.aggregation",),
        only=("torch", "numpy", "btard.aggregation", *STANDARD),
    ),
    Contract(
        "btard/protocol/__init__.py",
        "Nothing here may import `attacks`, `audit`, `drivers` or a network, nor touch a file.",
        ("btard.protocol",),
        ("btard.attacks", "btard.audit", "btard.drivers", "btard.harness", "os", "pathlib", "io", *NETWORK),
    ),
    Contract(
        "btard/attacks/__init__.py",
        "nothing here may be imported by it, nor by `btard.aggregation`.",
        ("btard.protocol", "btard.aggregation"),
        ("btard.attacks",),
    ),
    Contract(
        "btard/audit/__init__.py",
        "nothing here may import them, nor a model.",
        ("btard.audit",),
        ("btard.drivers", "btard.swarm", "torchvision", "transformers"),
    ),
    Contract(
        "btard/harness/__init__.py",
        "The library imports nothing of it but for `btard.swarm`, `btard.export` and `btard.watch`.",
        ("btard",),
        ("btard.harness",),
        but=(*BESIDE, "btard.export"),
    ),
    Contract(
        "btard/watch/__init__.py",
        "No other package of ours may import it.",
        PACKAGES,
        ("btard.watch",),
        but=("btard.watch",),
    ),
    Contract(
        "btard/export/__init__.py",
        "No other package of the library imports it.",
        ("btard",),
        ("btard.export",),
        but=("btard.export",),
    ),
    Contract(
        "btard/training/__init__.py",
        "nothing here may import `btard.harness` or `btard.swarm`.",
        ("btard.training",),
        ("btard.harness", "btard.swarm", "hivemind"),
    ),
    Contract(
        "resnet/__init__.py",
        "neither `btard` nor `albert` may import anything from here.",
        ("btard", "albert"),
        ("resnet",),
    ),
    Contract(
        "albert/__init__.py",
        "neither `btard` nor `resnet` may import anything from here.",
        ("btard", "resnet"),
        ("albert",),
    ),
    Contract(
        "albert/cloud/__init__.py",
        "needs boto3 but neither torch nor hivemind: nothing here may import them, nor `resnet`.",
        ("albert.cloud",),
        ("torch", "hivemind", "resnet"),
    ),
)


def names_in(tree: ast.AST, module: str) -> Iterator[str]:
    """What the import statements in `tree` name: modules, and what is taken out of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imported(module: str) -> frozenset[str]:
    """What the file of `module` imports, anywhere in it, under TYPE_CHECKING and inside of functions too."""
    if module == "btard":  # it names everything for type checkers, and imports it when it is asked for
        return at_import(module)
    return frozenset(names_in(parsed(MODULES[module]), module))


class _AtImport(ast.NodeTransformer):
    """Leaves the statements that run when a file is imported."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.AST) -> None:
        return None

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef


@cache
def at_import(module: str) -> frozenset[str]:
    """What the file of `module` imports when it is imported itself."""
    return frozenset(names_in(_AtImport().visit(parsed(MODULES[module])), module))


@cache
def comes_along(module: str) -> dict[str, str]:
    """What is imported when `module` is, and by which module of ours."""
    found: dict[str, str] = {}
    todo, seen = [module], set()
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        for name in at_import(here):
            found.setdefault(name, here)
            parts = name.split(".")
            todo += [above for end in range(1, len(parts) + 1) if (above := ".".join(parts[:end])) in MODULES]
    return found


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def broken(contract: Contract) -> list[str]:
    """The imports that break it, a line each."""
    bad = []
    for module in MODULES:
        if not within(module, contract.who) or within(module, contract.but):
            continue
        names = dict.fromkeys(imported(module), module)
        if contract.only is not None:
            bad += [f"{module} imports {name}" for name in names if not within(name, contract.only)]
        both = comes_along(module) | names
        bad += [f"{module} imports {name} in {by}" for name, by in both.items() if within(name, contract.never)]
    return bad


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: f"{contract.where}: {contract.says}")
def test_who_may_not_import_whom(contract: Contract) -> None:
    assert contract.says in " ".join((ROOT / contract.where).read_text().split()), "the sentence is not there any more"
    assert any(within(module, contract.who) for module in MODULES)
    assert broken(contract) == []


def test_a_contract_can_be_broken() -> None:
    drivers = Contract("", "", ("btard.drivers",), never=("btard.audit",))
    assert "btard.drivers.local imports btard.audit.recorder.Recorder in btard.drivers.local" in broken(drivers)
    indirectly = Contract("", "", ("btard.drivers",), never=("btard.aggregation",))
    assert any(not line.endswith(f" in {line.split()[0]}") for line in broken(indirectly))
    assert any("torch" in line for line in broken(Contract("", "", ("btard.protocol",), only=("btard", *STANDARD))))


IMPORTS, FORBIDS = (
    re.compile(r"\bimport(s|ed)?\b"),
    re.compile(r"\b(no|not|neither|nor|nothing|nobody|only|alone|never)\b"),
)
"""A sentence that has both says who may not import whom."""


def test_no_sentence_about_imports_is_without_a_contract() -> None:
    texts = {file: ast.get_docstring(parsed(file)) or "" for file in MODULES.values()}
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        texts[page] = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for file, text in texts.items():
        said = [contract.says for contract in CONTRACTS if contract.where == str(file.relative_to(ROOT))]
        for sentence in re.split(r"(?<=[.;])\s", " ".join(text.split())):
            if IMPORTS.search(sentence) and FORBIDS.search(sentence):
                assert any(sentence in says or says in sentence for says in said), f"{file}: {sentence}"
