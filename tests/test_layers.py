"""Who may import whom: the library knows no experiment, and the protocol only itself and the mathematics."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.source import parsed

ROOT = Path(__file__).parents[1]

ALLOWED = {
    "aggregation": {"aggregation"},
    "protocol": {"aggregation", "checks", "protocol"},
    "attacks": {"aggregation", "attacks", "boundary", "checks", "named", "options", "protocol"},
    "audit": {"aggregation", "audit", "boundary", "files", "protocol", "task"},
    "drivers": {"aggregation", "audit", "boundary", "drivers", "named", "options", "protocol", "task"},
    "export": {
        *("audit", "boundary", "checkpoints", "export", "extras", "files", "harness", "protocol", "swarm.checkpoint"),
        *("task", "training"),
    },
    # The three beside it import it, no other.
    "harness": {
        "attack_names",
        "attacks",
        "audit.files",
        "audit.vouching",
        "boundary",
        "checkpoints",
        "checks",
        "extras",
        "files",
        "harness",
        "named",
        "protocol",
    },
    "watch": {"audit", "boundary", "drivers", "extras", "files", "harness", "protocol", "watch"},
    "swarm": {
        *("attacks", "audit", "boundary", "checkpoints", "checks", "drivers", "extras", "files", "harness"),
        *("protocol", "swarm", "task", "training"),
    },
    "training": {
        "aggregation",
        "attacks",
        "audit",
        "checkpoints",
        "checks",
        "drivers",
        "files",
        "named",
        "protocol",
        "task",
        "training",
    },
}
ALONE = {
    "attack_names": set(),
    "boundary": set(),
    "calibration": set(),
    "checkpoints": {"audit", "files", "protocol"},
    "checks": set(),
    "extras": set(),
    "files": set(),
    "named": set(),
    "options": {"checks"},
    "task": {"protocol"},
}
"""The modules beside the packages, and what of btard they may import."""
OUTSIDE = {"resnet", "albert", "scripts", "tests", "torchvision", "transformers", "hivemind", "matplotlib"}
ABOVE = {"harness": {"matplotlib"}, "swarm": {"hivemind"}}
"""What of these a package may import all the same."""
IO = {"os", "io", "pathlib", "socket", "time", "tempfile", "shutil", "subprocess", "asyncio"}


def imports(file: Path) -> set[str]:
    """The modules that `file` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(parsed(file)):
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
            outside = OUTSIDE - ABOVE.get(package, set())
            assert module.partition(".")[0] not in outside, f"{file.name} imports {module}"
            if module.startswith("btard."):
                below = module.removeprefix("btard.")
                fits = any(below == allowed or below.startswith(f"{allowed}.") for allowed in ALLOWED[package])
                assert fits, f"{file.name} imports {module}"


def test_what_stands_beside_the_packages_imports_none() -> None:
    assert {file.stem for file in (ROOT / "btard").glob("*.py")} == {"__init__", *ALONE}  # test_imports has the rest
    for name, allowed in ALONE.items():
        modules = [module.split(".") for module in imports(ROOT / "btard" / f"{name}.py")]
        found = {words[1] for words in modules if words[0] == "btard"}
        assert found <= allowed, f"{name} imports {found}"


def test_nothing_of_the_library_knows_an_experiment_and_only_the_swarm_hivemind() -> None:
    for file in sorted((ROOT / "btard").rglob("*.py")):
        swarm, export = "swarm" in file.parts, "export" in file.parts
        for module in imports(file):
            assert module.partition(".")[0] not in {"albert", "resnet"}, f"{file} imports {module}"
            assert swarm or module.partition(".")[0] != "hivemind", f"{file} imports {module}"
            assert swarm or export or not module.startswith("btard.swarm"), f"{file} imports {module}"
            beside = swarm or export or {"harness", "watch"} & set(file.parts)
            assert beside or not module.startswith("btard.harness"), f"{file} imports {module}"
    for folder in ("albert", "resnet"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            tops = {module.partition(".")[0] for module in imports(file)}
            assert not tops & {"hivemind", "albert" if folder == "resnet" else "resnet"}, f"{file} imports {tops}"


HEAVY = ("rich", "tensorboard", "hivemind", "yaml", "matplotlib", "wandb", "vl_convert")


@pytest.mark.parametrize("module", ["btard", "btard.swarm", "btard.swarm.config", "albert.config"])
def test_a_light_import_brings_no_package_of_an_extra(module: str) -> None:
    allowed = {"yaml"} if "config" in module else set()
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in said.stderr.splitlines()}
    assert module.partition(".")[0] in loaded
    assert not loaded & set(HEAVY) - allowed
    assert "torch" not in loaded  # the cloud's commands run without


@pytest.mark.parametrize(
    ("program", "hidden", "extra"),
    [
        ("resnet.train --help", "rich", "experiments"),
        ("resnet.figures --help", "matplotlib", "experiments"),
        ("albert.prepare --help", "transformers", "experiments"),
        ("albert.cloud --help", "boto3", "experiments"),
        ("albert.trainer --help", "hivemind", "experiments"),
        ("albert.swarm --help", "transformers", "experiments"),
        ("btard.swarm trainer --task a:b --help", "hivemind", "swarm"),
        ("btard.swarm trainer --task a:b --help", "rich", "swarm"),
        ("btard.swarm.identity key", "hivemind", "swarm"),
        ("btard.watch --help", "vl_convert", "watch"),
    ],
)
def test_a_program_without_its_packages_says_in_one_line_which_extra_brings_them(
    tmp_path: Path, program: str, hidden: str, extra: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    words = [sys.executable, "-m", *program.split()]
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    line = f"error: {hidden} is not installed, which this program needs: pip install 'btard[{extra}]'\n"
    assert ended.stderr == line, ended.stderr


HIDING = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "{hidden}" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


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


PROTOCOL = ROOT / "btard" / "protocol"


def test_no_file_of_the_protocol_imports_one_that_imports_it() -> None:
    """Imports under TYPE_CHECKING count: who reads a file needs those too."""
    below = {file.stem: protocol_imports(file) for file in sorted(PROTOCOL.glob("*.py"))}
    try:
        list(TopologicalSorter(below).static_order())
    except CycleError as error:
        pytest.fail(f"btard/protocol imports itself in a circle: {' <- '.join(error.args[1])}")


def test_nothing_else_imports_itself_in_a_circle() -> None:
    """Imports inside of functions count, and those under TYPE_CHECKING; packages' own names do not."""
    files = [file for folder in ("albert", "btard", "resnet") for file in sorted((ROOT / folder).rglob("*.py"))]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    below: dict[str, set[str]] = {}
    for module, file in modules.items():
        named = {f"{of}.{name}" for of, names in named_imports(file) for name in ("", *names)}
        below[module] = {name.rstrip(".") for name in named} & modules.keys()
    try:
        list(TopologicalSorter(below).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def named_imports(file: Path) -> list[tuple[str, list[str]]]:
    """(module, names from it) of every import in `file`."""
    found: list[tuple[str, list[str]]] = []
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, [alias.name for alias in node.names]))
    return found


def protocol_imports(file: Path) -> set[str]:
    """The files of btard/protocol that `file` imports, without their suffix."""
    found: set[str] = set()
    for node in ast.walk(parsed(file)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file.name} has a relative import"
            names = [f"{node.module}.{name}" for name in names]
        found |= {name.split(".")[2] for name in names if name.startswith("btard.protocol.")}
    return found


PHASES: dict[str, set[str]] = {
    "commit": set(),
    "exchange": {"commit"},  # what was heard in the roll call goes along with the parts
    "aggregate": set(),
    "recover": set(),
    "coin": {"aggregate", "recover"},  # who lacks an aggregate says so along with its share, and gets it then
    "report": {"coin"},  # what was heard of the reveals goes along with the reports
    "disclose": set(),
    "validate": set(),
    "join": set(),
    "accuse": {"report", "trial"},
    "trial": {"commit"},
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_can_be_read_with_few_others(phase: str) -> None:
    imported = protocol_imports(PROTOCOL / f"{phase}.py")
    assert imported & set(PHASES) == PHASES[phase]
    assert "peer" not in imported, "a phase takes the seat of a peer"


CHANGES = {"add", "append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}


def writes(node: ast.AST, names: set[str]) -> set[str]:
    """The attributes that are assigned to, or changed in place, of what is called one of `names`."""
    targets: list[ast.AST] = []
    for part in ast.walk(node):
        if isinstance(part, (ast.Assign, ast.Delete)):
            targets += part.targets
        elif isinstance(part, (ast.AugAssign, ast.AnnAssign)):
            targets.append(part.target)
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in CHANGES:
            targets.append(part.func.value)
    found = set()
    for target in [item for t in targets for item in (t.elts if isinstance(t, ast.Tuple) else [t])]:
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            owner = target.value
            named = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if isinstance(target, ast.Attribute) and named in names:
                found.add(target.attr)
            target = owner
    return found


NAMED = {
    "StepRecord": {"record", "about", "last"},
    "Place": {"place", "seat", "peer", "member", "newcomer", "observer"},
    "Heard": {"heard", "earlier"},
    "Ledger": {"ledger"},
}
"""What the objects of a class are called where they are not `self`."""
HEIRS: dict[str, set[str]] = {"Place": {"seat.py", "peer.py", "observer.py"}}
"""Files with subclasses."""


@pytest.mark.parametrize(
    ("file", "name"),
    [("record.py", "StepRecord"), ("place.py", "Place"), ("hearing.py", "Heard"), ("ledger.py", "Ledger")],
)
def test_a_class_that_the_phases_share_names_who_writes_to_it(file: str, name: str) -> None:
    """In lines of its docstring like `commit.py: workers, owners`."""
    tree = parsed(PROTOCOL / file)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    described, bases = classes[name], [classes[name]]
    for one in bases:
        bases += [classes[base.id] for base in one.bases if isinstance(base, ast.Name) and base.id in classes]
    made = [node for node in described.body if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"]
    attributes = {
        n.target.id for b in bases for n in b.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    attributes |= {attribute for node in made for attribute in writes(node, {"self"})}
    described.body = [node for node in described.body if node not in made]
    found: dict[str, set[str]] = {file: writes(described, {"self"}) & attributes}
    for other in (ROOT / "btard").rglob("*.py"):
        names = NAMED[name] | ({"self"} if other.name in HEIRS.get(name, ()) else set())
        where = str(other.relative_to(PROTOCOL if other.parent == PROTOCOL else ROOT / "btard"))
        found[where] = found.get(where, set()) | writes(parsed(other), names) & attributes
    lines = re.findall(r"^ *([\w/]+\.py): (.+)$", ast.get_docstring(described) or "", re.MULTILINE)
    assert {where: set(said.split(", ")) for where, said in lines} == {w: set(a) for w, a in found.items() if a}
