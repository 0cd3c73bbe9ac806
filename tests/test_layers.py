"""Who may import whom: the library knows no experiment, and the protocol only itself and the mathematics."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ALLOWED = {
    "aggregation": {"aggregation"},
    "protocol": {"aggregation", "protocol"},
    "attacks": {"aggregation", "attacks", "protocol"},
    "audit": {"aggregation", "audit", "protocol", "task"},
    "drivers": {"aggregation", "audit", "drivers", "protocol", "task"},
    "harness": {"harness"},
}
OUTSIDE = {"resnet", "albert", "scripts", "tests", "torchvision", "transformers", "hivemind", "matplotlib"}
IO = {"os", "io", "pathlib", "socket", "time", "tempfile", "shutil", "subprocess", "asyncio"}


def imports(file: Path) -> set[str]:
    """The modules that `file` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    files = sorted((ROOT / "btard" / package).glob("*.py"))
    assert files
    for file in files:
        for module in imports(file):
            assert module.partition(".")[0] not in OUTSIDE, f"{file.name} imports {module}"
            if module.startswith("btard."):
                below = module.removeprefix("btard.")
                fits = any(below == allowed or below.startswith(f"{allowed}.") for allowed in ALLOWED[package])
                assert fits, f"{file.name} imports {module}"


@pytest.mark.parametrize("package", ["protocol", "aggregation"])
def test_the_protocol_touches_no_file_socket_or_clock(package: str) -> None:
    for file in sorted((ROOT / "btard" / package).glob("*.py")):
        assert not imports(file) & IO, f"{file.name} imports {sorted(imports(file) & IO)}"
        # Peers may be run in threads, so there are locks; who starts threads is the driver.
        assert "Thread" not in file.read_text() or package == "aggregation", f"{file.name} starts threads"


def test_nothing_is_pickled() -> None:
    for folder in ("albert", "btard", "resnet", "scripts"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not imports(file) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, file
            assert "torch.load(" not in file.read_text(), file
