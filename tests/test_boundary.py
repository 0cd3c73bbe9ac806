"""The one place where programs end: whose error it is, the line, the exit code."""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed import DistNetworkError

from btard.boundary import FAILED, FAULT, INTERRUPTED, MISTAKE, Mistake, Parser, line_of, output_file, program
from btard.extras import MissingPackages
from tests.source import parsed, programs

ROOT = Path(__file__).parents[1]


def nobody() -> BaseException:
    return KeyError("getpwuid(): uid not found: 54321")


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"

KNOWN: dict[str, tuple[BaseException, int, str]] = {
    "a mistake": (Mistake("seed must be >= 0"), MISTAKE, "seed must be >= 0"),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "run/x"), FAILED, "run/x: No space.*make room"),
    "a read-only disk": (OSError(errno.EROFS, "Read-only file system", "x"), FAILED, "x: Read-only.*another place"),
    "no right": (PermissionError(errno.EACCES, "Permission denied", b"x"), FAILED, "x: Permission denied; allow it"),
    "two places": (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), FAILED, "a to b: Invalid"),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), FAILED, "ulimit -n"),
    "a disk full of tensors": (SafetensorError(FULL), FAILED, "No space left on device; make room there"),
    "a disk full of tokens": (Exception("File too large (os error 27)"), FAILED, "File too large; the file may not"),
    "memory": (MemoryError("Unable to allocate 9 GiB"), FAILED, "Unable to allocate 9 GiB: make memory available"),
    "memory of torch": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), FAILED, "memory"),
    "no home": (RuntimeError("Could not determine home directory."), FAILED, "has no home and no name here; set HOME"),
    "no name": (nobody(), FAILED, "set HOME and USER"),
    "a closed pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), FAILED, "nobody reads the output"),
    "a package": (ModuleNotFoundError("No module named 'rich'", name="rich.console"), FAILED, "rich is not installed"),
    "an extra": (
        MissingPackages("hivemind is not installed: pip install 'btard[swarm]'", name="hivemind"),
        FAILED,
        "btard.swarm",
    ),
    "a broken package": (ImportError("libcudart.so.12: cannot open shared object file"), FAILED, "libcudart.*again"),
    "no meeting point": (DistNetworkError("The client socket has failed. It"), FAILED, "check MASTER_ADDR"),
    "threads": (RuntimeError("can't start new thread"), FAILED, "no more threads; allow more processes"),
}


@pytest.mark.parametrize("what", KNOWN)
def test_an_error_of_the_user_or_the_machine_has_a_line(what: str) -> None:
    error, code, line = KNOWN[what]
    known = line_of(error)
    assert known is not None and known[0] == code and re.search(line, known[1]), known


OURS = {
    "a key": KeyError("momentum"),
    "a value": ValueError("too many values to unpack"),
    "a module of ours": ModuleNotFoundError("No module named 'btard.nowhere'", name="btard.nowhere"),
    "a type": TypeError("unsupported operand"),
    "a tensor": SafetensorError("Tensor not found"),
    "what torch says": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
}


@pytest.mark.parametrize("what", OURS)
def test_a_fault_of_ours_keeps_its_traceback_and_asks_for_a_report(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @program("again")
    def main() -> int:
        raise OURS[what]

    assert main() == FAULT
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "please report it" in said.splitlines()[-1]


OUTPUTS = """
import os, sys
from btard.boundary import program
from rich.console import Console

def fill(kind):
    if kind == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    elif kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

@program("again")
def main(argv):
    kind, how = argv
    fill(kind)
    Console().print("a table") if how == "rich" else print("words")
    if how == "help":
        raise SystemExit(0)
    if how == "refused":
        raise SystemExit(2)
    if how == "interrupted":
        raise KeyboardInterrupt
    file = open(os.devnull)
    assert file.fileno() > 2 and sys.stdout is not None
    return 0

sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("kind", "how", "code", "line"),
    [
        ("full", "words", 1, "error: No space left on device; make room there"),
        ("full", "help", 1, "error: No space left on device; make room there"),
        ("full", "refused", 2, ""),
        ("full", "interrupted", 130, "interrupted: again"),
        ("pipe", "words", 1, "error: nobody reads the output any more"),
        ("pipe", "rich", 1, "error: nobody reads the output any more"),
        ("closed", "words", 0, ""),
    ],
)
def test_output_that_cannot_be_written_is_one_line_whatever_the_end(
    kind: str, how: str, code: int, line: str, tmp_path: Path
) -> None:
    """Also after the interpreter has ended, which would complain and end with 120."""
    (tmp_path / "own.py").write_text(OUTPUTS)
    closed = " >&-" if kind == "closed" else ""
    ended = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@"{closed}', sys.executable, str(tmp_path / "own.py"), kind, how],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == code and ended.stderr.startswith(line), ended
    assert len(ended.stderr.splitlines()) == bool(line)


def test_a_mistake_and_an_interruption_end_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    @program("give it again")
    def main(argv: list[str]) -> int:
        raise KeyboardInterrupt if argv else Mistake("one\nline")

    assert main(["x"]) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: give it again\n"
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err == "error: one line\n"


def test_bytes_that_are_no_utf_8_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    @program("again")
    def main(argv: list[str]) -> int:
        pytest.fail("it began")

    with pytest.raises(SystemExit, match="2"):
        main(["--out", os.fsdecode(b"r\xfcn")])
    assert capsys.readouterr().err.startswith("error: command line: expected words in UTF-8, got r\\xfcn")


def test_a_parser_takes_either_spelling_and_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="python -m x")
    parser.add_argument("--keep-checkpoints", action="store_true")
    parser.add_argument("--out", type=output_file)
    for spelling in ("--keep-checkpoints", "--keep_checkpoints"):
        assert parser.parse_args([spelling]).keep_checkpoints
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--kep"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: command line: unrecognized arguments: --kep; python -m x --help says more"


COUNTED = [
    ("scripts.soak", "--runs"),
    ("scripts.ban_times", "--runs"),
    ("scripts.adaptive", "--limit"),
    ("scripts.sybil_price", "--lives"),
    ("scripts.traffic", "--d"),
    ("scripts.benchmarks.profile_step", "--steps"),
    ("scripts.threat_model", "--seeds"),
    ("scripts.wire", "--seeds"),
]


@pytest.mark.parametrize(("module", "option"), COUNTED)
@pytest.mark.parametrize("value", ["0", "-1", "1.5"])
def test_numbers_of_nothing_are_refused(
    module: str, option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", [module, "--out", str(tmp_path / "out"), f"{option}={value}"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(module).main()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {option}: must be an integer of at least 1, got {value}" in line


def test_places_to_write_are_looked_at_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="x")
    parser.add_argument("--out", type=output_file)
    (tmp_path / "file").touch()
    assert parser.parse_args(["--out", str(tmp_path / "a/b.png")]).out == tmp_path / "a/b.png"
    for place, said in ((tmp_path, "got the folder"), (tmp_path / "file/x.png", "is no folder")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--out", str(place)])
        assert said in capsys.readouterr().err
    if os.access("/sys/kernel", os.W_OK) is False:
        with pytest.raises(SystemExit):
            parser.parse_args(["--out", "/sys/kernel/x.png"])
        assert "no right to write" in capsys.readouterr().err


def test_a_disk_that_fills_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """What safetensors really raises, where the size of files is limited as by a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises((SafetensorError, OSError)) as error:
            save_file({"x": torch.zeros(10_000)}, tmp_path / "x.safetensors")
    known = line_of(error.value)
    assert known is not None and known[0] == FAILED and "File too large" in known[1]


INTERRUPTS = """
import contextlib, os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            with contextlib.suppress({swallowed}):  # some packages swallow it and go on, half imported
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


def start(tmp_path: Path, words: list[str], sitecustomize: str = "", **environment: str) -> tuple[int, str]:
    (tmp_path / "sitecustomize.py").write_text(sitecustomize)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        # Where the tests run without it, as in the background of a shell, Ctrl-C would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("words", "module", "swallowed"),
    [
        (f"resnet.train {ROOT}/configs/resnet/digits.yaml --out y", "torch", "BaseException"),
        ("albert.swarm x --out y", "transformers", ""),
        ("scripts.soak", "numpy", "BaseException"),
    ],
)
def test_ctrl_c_during_the_imports_is_one_line(tmp_path: Path, words: str, module: str, swallowed: str) -> None:
    code, said = start(tmp_path, words.split(), INTERRUPTS.format(module=module, swallowed=swallowed))
    assert code == INTERRUPTED
    (line,) = said.splitlines()
    assert line.startswith("interrupted: ")


WITHOUT = """
import sys
from importlib.machinery import PathFinder
HIDDEN = {"PIL", "rich", "sklearn", "torchvision", "yaml", "matplotlib", "tensorboard", "transformers", "hivemind"}

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def test_an_installation_without_extras_says_which_one(tmp_path: Path) -> None:
    code, said = start(tmp_path, ["resnet.train"], WITHOUT)
    assert code == FAILED
    what = "PIL, rich, sklearn, torchvision, yaml are not installed, which this program needs"
    assert said == f"error: {what}: pip install 'btard[experiments]'\n"


def test_a_package_that_is_found_and_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "blake3.py").write_text("raise ImportError('libblake.so: cannot open shared object file')")
    code, said = start(tmp_path, ["scripts.golden", "check"])
    assert code == FAILED
    (line,) = said.splitlines()
    assert line.startswith("error: a package cannot be imported (libblake.so")


def test_a_terminal_without_the_letters_gets_others(tmp_path: Path) -> None:
    assert start(tmp_path, ["btard.attacks"], PYTHONIOENCODING="ascii") == (0, "")


def test_another_program_that_imports_the_library_keeps_its_own_ways(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import btard, signal, sys\nassert sys.excepthook is sys.__excepthook__\n1 / 0\n")
    code, said = start(tmp_path, ["own"])
    assert code == 1 and said.endswith("ZeroDivisionError: division by zero\n")


NOT_WRAPPED = {"btard/swarm/__main__.py", "scripts/benchmarks/one_case.py", "scripts/benchmarks/ranks.py"}
"""The first calls what is wrapped; the second is a part of another program."""


def test_every_program_ends_at_the_boundary() -> None:
    found = 0
    for file in programs():
        found += 1
        mains = [node for node in parsed(file).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        wrapped = any("program(" in ast.unparse(mark) for node in mains for mark in node.decorator_list)
        name = str(file.relative_to(ROOT))
        assert wrapped != (name in NOT_WRAPPED), f"{name}: its main is not wrapped by btard.boundary.program"
    assert found > 25
