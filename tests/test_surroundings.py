"""Every program in random surroundings: no home, a disk that fills, odd places, signals.

A program ends with code 0 and the right result, or with one line and a documented code; the same command in quiet
surroundings then gives the right result, too, or says in one line what is in its way. `--surroundings 500` is for an
hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.programs import NOT_WRAPPED, PROGRAMS, ROOT, make_inputs, make_sweep, modules, nothing, of_run

QUICK = 50
"""The first cases are of programs that take no more than a second or two."""
STRANGER = 54321
"""A user that nobody knows."""
PATIENCE = 100.0
CODES = {0, 1, 2, 130}
TERMINATED = -signal.SIGTERM
SIGNALS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}

PLACES: dict[str, Callable[[Path], str]] = {
    "a plain name": lambda base: str(base / "out"),
    "spaces and letters": lambda base: str(base / "ä ö [x] {y} %s"),
    "two lines": lambda base: str(base / "a\nb"),
    "too long a name": lambda base: str(base / ("x" * 300)),
    "below a file": lambda base: str(base / "file" / "out"),
    "a file": lambda base: str(base / "file"),
    "a link to a folder": lambda base: str(base / "link"),
    "a link that leads nowhere": lambda base: str(base / "dangling"),
    "a link to itself": lambda base: str(base / "loop" / "out"),
    "the folder it runs in": lambda base: ".",
    "a device": lambda base: "/dev/null",
    "no real file system": lambda base: "/proc/none/out",
    "bytes": lambda base: os.fsdecode(os.fsencode(base) + b"/\xff"),
}
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"RANK": "x", "WORLD_SIZE": "2"},
    {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
    {"COLUMNS": "1", "TERM": "dumb"},
    {"COLUMNS": "x", "LINES": "y"},
    {"TMPDIR": "/nowhere"},
    {"XDG_CACHE_HOME": "/dev/null", "MPLCONFIGDIR": "/dev/null"},
    {"MPLBACKEND": "nothing"},
    {"TZ": "No/Where", "LANG": "C", "LC_ALL": "xx"},
    {"HOME": "/dev/null"},
    {"NO_COLOR": "1", "FORCE_COLOR": "1", "PYTHONUTF8": "0"},
    {"OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "x"},
)


def limited(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def strange(case: dict[str, Any]) -> None:
    """Make this process's surroundings what `case` says."""
    for name, value in case.items():
        if name == "no home":
            for variable in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
                os.environ.pop(variable, None)
            if os.getuid() == 0 and all(map(readable_by_all, (ROOT, Path(pytest.__file__)))):
                os.setgid(STRANGER)
                os.setuid(STRANGER)
            else:
                pwd.getpwuid = lambda uid: {}[f"getpwuid(): uid not found: {uid}"]
        elif name == "file size":
            limited(resource.RLIMIT_FSIZE, value)
        elif name == "open files":
            limited(resource.RLIMIT_NOFILE, value)
        elif name == "output":
            if value == "closed":
                os.close(1)
                sys.stdout = None  # type: ignore[assignment]  (as Python has it then)
            else:
                os.dup2(os.open("/dev/full", os.O_WRONLY) if value == "full" else pipe_without_reader(), 1)
        elif name == "environment":
            os.environ.update(value)
        elif name in ("interrupt", "terminate"):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, lambda *_, number=SIGNALS[name]: os.kill(os.getpid(), number))
            signal.setitimer(signal.ITIMER_REAL, value)


def readable_by_all(place: Path) -> bool:
    """Whether somebody else can read what is there."""
    return all(above.stat().st_mode & 0o005 == 0o005 for above in place.parents)


def pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def surrounded(words: list[str]) -> int:
    """What a child runs: the case, the folder to be in, where it says errors, the module and its words."""
    case, folder, errors, module, *rest = words
    os.chdir(folder)
    os.dup2(os.open(errors, os.O_WRONLY), 2)  # a pipe, which no limit on files keeps from working
    main = __import__(module, fromlist=["main"]).main
    sys.argv = [module, *(os.fsdecode(word.encode("latin-1")) for word in rest)]  # the bytes that they are
    strange(json.loads(case))
    code: int | None = main()
    return code or 0


def draw(number: int) -> tuple[str, str, dict[str, Any]]:
    """The program, the place and the surroundings of a case."""
    drawn = random.Random(f"surroundings/{number}")
    quick = [name for name, of in PROGRAMS.items() if not of.slow]
    program = drawn.choice(quick if number < QUICK or drawn.random() < 0.8 else list(PROGRAMS))
    options: dict[str, Callable[[], Any]] = {
        "no home": lambda: True,
        "file size": lambda: int(10 ** drawn.uniform(0, 5.5)),
        "open files": lambda: drawn.randint(6, 60),
        "output": lambda: drawn.choice(["full", "pipe", "closed"]),
        "environment": lambda: drawn.choice(ENVIRONMENTS),
        "interrupt": lambda: drawn.uniform(0.001, 1.0),
        "terminate": lambda: drawn.uniform(0.001, 1.0),
    }
    chosen = drawn.sample(list(options), drawn.choice([0, 1, 1, 1, 2]))
    place = "a plain name" if chosen and drawn.random() < 0.7 else drawn.choice(list(PLACES))
    return program, place, {name: options[name]() for name in chosen}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """What programs read."""
    folder = tmp_path_factory.mktemp("surroundings")
    make_inputs(folder)
    if request.config.getoption("--surroundings") > QUICK:
        make_sweep(folder)
    code, said = started(folder, "albert.prepare", str(folder / "data"), {}, folder)
    assert code == 0, said
    for above in [folder, *folder.parents]:  # for somebody who is not the one who runs the tests
        if above.stat().st_uid == os.getuid() and above.is_relative_to("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
    return folder


@pytest.fixture(scope="module")
def right(base: Path) -> Callable[[str], str]:
    """What each program's result is known by: the same in quiet surroundings."""
    found = {"resnet.train": of_run(base / "run"), "albert.prepare": PROGRAMS["albert.prepare"].result(base / "data")}

    def result(name: str) -> str:
        if name not in found:
            place = base / f"right-{name.replace(' ', '-')}"
            code, said = started(base, name, str(place), {}, base)
            assert code == PROGRAMS[name].code, f"{name}: code {code}: {said}"
            assert_one_line(code, said, name)
            found[name] = PROGRAMS[name].result(place) if code == 0 else ""
        return found[name]

    return result


_runs = iter(range(10**9))


def started(base: Path, program: str, place: str, case: dict[str, Any], folder: Path) -> tuple[int | None, str]:
    """The exit code of a program, and what it said on standard error."""
    module, words, *_ = PROGRAMS[program]
    filled = [word.replace("{base}", str(base)).replace("{out}", place) for word in words.split()]
    sendable = [word.encode("utf-8", "surrogateescape").decode("latin-1") for word in filled]
    name = f"case-{next(_runs)}"
    errors = base / f"{name}.errors"
    os.mkfifo(errors)
    errors.chmod(0o666)
    reader = os.open(errors, os.O_RDONLY | os.O_NONBLOCK)
    process = warm.Program(surrounded, [json.dumps(case), str(folder), str(errors), module, *sendable], base, name)
    try:
        code = process.code(PATIENCE)
        with contextlib.suppress(BlockingIOError):
            return code, process.errors + os.read(reader, 2**16).decode(errors="replace")
        return code, process.errors
    finally:
        process.process.kill()
        os.close(reader)


def assert_one_line(code: int | None, said: str, what: str) -> None:
    told = [line for line in said.splitlines() if line.startswith(("error:", "interrupted:", "refused:"))]
    assert code in CODES or (code == TERMINATED and "terminate" in what), f"{what}: code {code}: {said}"
    assert "Traceback" not in said, f"{what}: {said}"
    assert len(told) == (code not in (0, TERMINATED)), f"{what}: code {code}: {said}"


def test_every_program_is_in_the_table() -> None:
    """By the name of its module, and with the command where a module has several."""
    known = {name.partition(" ")[0] for name in PROGRAMS} | NOT_WRAPPED
    assert modules() == known


def test_a_program_ends_with_its_result_or_one_line_whatever_surrounds_it(
    surrounding: int, base: Path, right: Callable[[str], str], tmp_path: Path
) -> None:
    program, where, case = draw(surrounding)
    for name in ("folder", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("a file of somebody")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("not-there")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "folder", tmp_path / "work"):
        path.chmod(0o777)
    if "no home" in case and os.getuid() == 0:
        for above in tmp_path.parents:
            if above.is_relative_to("/tmp") and above != Path("/tmp"):
                above.chmod(above.stat().st_mode | 0o055)
    place = PLACES[where](tmp_path)
    expected = right(program) if PROGRAMS[program].result is not nothing else ""
    what = f"case {surrounding}: {program} to {where} with {case}"
    code, said = started(base, program, place, case, tmp_path / "work")
    assert_one_line(code, said, what)
    if code != PROGRAMS[program].code:
        code, said = started(base, program, place, {}, tmp_path / "work")
        assert_one_line(code, said, f"{what}, and again")
        assert code == PROGRAMS[program].code or where != "a plain name", f"{what}, and again: {said}"
    if code == 0 and expected and place not in (".", "/dev/null"):
        assert PROGRAMS[program].result(tmp_path / "work" / place) == expected, what
    assert (tmp_path / "file").read_text() == "a file of somebody" or where == "a file"
    shutil.rmtree(tmp_path, ignore_errors=True)
