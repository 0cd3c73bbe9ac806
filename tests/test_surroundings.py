"""Programs in random surroundings: no home, a disk that fills, odd places, signals.

A program ends with code 0 and the right result, or with one line and a documented code; the same command in quiet
surroundings then gives the right result, too, or says in one line what is in its way. `--surroundings 500` is for an
hour.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet.train import main as train
from tests import warm

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "configs/resnet/digits.yaml")
RUN = ["--peers=4", "--steps=4", "--eval_every=2", "--checkpoint_every=2", "--test_samples=20", "--model.width=1"]
RUN += ["--batch_size=2", "--threads=1", "--byzantine=1", "--attack.name=sign_flip", "--attack.start=1"]
TEXT = "".join(
    f" = Town {i} = \n\n Town {i} lies on a river . It has {i} bridges . Boats pass .\n\n" for i in range(30)
)
STRANGER = 54321
"""A user that nobody knows."""
PATIENCE = 100.0
CODES = {0, 1, 2, 130}


def digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def of_run(out: Path) -> str:
    return digest(*(out / name for name in ("metrics.jsonl", "ledger.jsonl")))


PROGRAMS: dict[str, tuple[str, list[str], Callable[[Path], str]]] = {
    "train": ("resnet.train", [DIGITS, "--out", "{out}", *RUN], of_run),
    "figures": (
        "resnet.figures",
        ["{base}/run", "--out", "{out}.png", "--table"],
        lambda out: digest(Path(f"{out}.png")),
    ),
    "sweep": ("resnet.sweep", ["{base}/grid.yaml", "--out", "{out}", "--plan"], lambda out: ""),
    "prepare": (
        "albert.prepare",
        ["--source={base}/text", "--out={out}", "--train-tokenizer", "--vocab-size=90", "--sequence-length=24"],
        lambda out: json.loads((out / "data.json").read_text())["digest"],
    ),
    "check": ("albert.prepare", ["--check", "{base}/data"], lambda out: ""),
    "audit": ("btard.audit.__main__", ["{base}/run"], lambda out: ""),
    "attacks": ("btard.attacks.__main__", [], lambda out: ""),
    "settings": ("scripts.settings_docs", ["--out", "{out}"], lambda out: digest(out)),
    "swarm": ("btard.swarm.commands", ["trainer", "{base}/none.yaml", "--task=a:b", "--out={out}"], lambda out: ""),
}
"""Name -> (module, words, what the result is known by)."""

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
)


def limited(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def strange(case: dict[str, Any]) -> None:
    """Make this process's surroundings what `case` says."""
    for name, value in case.items():
        if name == "no home":
            for variable in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
                os.environ.pop(variable, None)
            if os.getuid() == 0:
                os.setgid(STRANGER)
                os.setuid(STRANGER)
            else:
                pwd.getpwuid = lambda uid: {}[f"getpwuid(): uid not found: {uid}"]
        elif name == "file size":
            limited(resource.RLIMIT_FSIZE, value)
        elif name == "open files":
            limited(resource.RLIMIT_NOFILE, value)
        elif name == "output":
            target = os.open("/dev/full", os.O_WRONLY) if value == "full" else pipe_without_reader()
            os.dup2(target, 1)
        elif name == "environment":
            os.environ.update(value)
        elif name == "interrupt":
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, value)


def pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def surrounded(words: list[str]) -> int:
    """What a child runs: the case, the folder to be in, the module and its words."""
    case, folder, module, *rest = words
    os.chdir(folder)
    main = __import__(module, fromlist=["main"]).main
    strange(json.loads(case))
    code: int = main([os.fsdecode(word.encode("latin-1")) for word in rest])  # the bytes that they are
    return code


def draw(number: int) -> tuple[str, str, dict[str, Any]]:
    """The program, the place and the surroundings of a case."""
    drawn = random.Random(f"surroundings/{number}")
    names = list(PROGRAMS)
    program = names[number % len(names)] if number < len(names) else drawn.choice(names)
    options: dict[str, Callable[[], Any]] = {
        "no home": lambda: True,
        "file size": lambda: int(10 ** drawn.uniform(3.3, 5.5)),  # what is said goes to a file, too
        "open files": lambda: drawn.randint(6, 60),
        "output": lambda: drawn.choice(["full", "pipe"]),
        "environment": lambda: drawn.choice(ENVIRONMENTS),
        "interrupt": lambda: drawn.uniform(0.001, 1.0),
    }
    chosen = drawn.sample(list(options), drawn.choice([0, 1, 1, 1, 2]))
    place = "a plain name" if chosen and drawn.random() < 0.7 else drawn.choice(list(PLACES))
    return program, place, {name: options[name]() for name in chosen}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What programs read: a finished run, a text and its data, a grid."""
    folder = tmp_path_factory.mktemp("surroundings")
    assert train([DIGITS, "--out", str(folder / "run"), *RUN]) == 0
    (folder / "text").mkdir()
    (folder / "text/train.txt").write_text(TEXT)
    grid = {"settings": {"peers": 4, "steps": 4, "data.name": "digits", "model.width": 1}, "attacks": {"no attack": {}}}
    grid |= {"defences": {"BTARD": {"aggregator.name": "btard"}}, "experiments": {"all": {}}}
    (folder / "grid.yaml").write_text(json.dumps(grid))
    code, said = started(folder, "prepare", str(folder / "data"), {}, folder)
    assert code == 0, said
    for above in [folder, *folder.parents]:  # for somebody who is not the one who runs the tests
        if above.stat().st_uid == os.getuid() and above.is_relative_to("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
    return folder


@pytest.fixture(scope="module")
def right(base: Path) -> dict[str, str]:
    """What each program's result is known by."""
    found = {"train": of_run(base / "run")}
    for name in ("figures", "settings"):
        place = base / f"right-{name}"
        code, said = started(base, name, str(place), {}, base)
        assert code == 0, said
        found[name] = PROGRAMS[name][2](place)
    return found | {"prepare": PROGRAMS["prepare"][2](base / "data")}


_runs = iter(range(10**9))


def started(base: Path, program: str, place: str, case: dict[str, Any], folder: Path) -> tuple[int | None, str]:
    """The exit code of a program, and what it said on standard error."""
    module, words, _ = PROGRAMS[program]
    filled = [word.replace("{base}", str(base)).replace("{out}", place) for word in words]
    sendable = [word.encode("utf-8", "surrogateescape").decode("latin-1") for word in filled]
    process = warm.Program(surrounded, [json.dumps(case), str(folder), module, *sendable], base, f"case-{next(_runs)}")
    try:
        return process.code(PATIENCE), process.errors
    finally:
        process.process.kill()


def assert_one_line(code: int | None, said: str, what: str) -> None:
    told = [line for line in said.splitlines() if line.startswith(("error:", "interrupted:", "refused:"))]
    assert code in CODES, f"{what}: code {code}: {said}"
    assert "Traceback" not in said, f"{what}: {said}"
    silent = "pipe" in what and code == 1  # as usual where nobody reads on, as in `| head`
    assert len(told) == (code != 0) or (silent and not told), f"{what}: code {code}: {said}"


def test_a_program_ends_with_its_result_or_one_line_whatever_surrounds_it(
    surrounding: int, base: Path, right: dict[str, str], tmp_path: Path
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
    what = f"case {surrounding}: {program} to {where} with {case}"
    code, said = started(base, program, place, case, tmp_path / "work")
    assert_one_line(code, said, what)
    if code != 0:
        code, said = started(base, program, place, {}, tmp_path / "work")
        assert_one_line(code, said, f"{what}, and again")
        assert code == 0 or where != "a plain name" or program == "swarm", f"{what}, and again: {said}"
    if code == 0 and program in right and place not in (".", "/dev/null"):
        assert PROGRAMS[program][2](tmp_path / "work" / place) == right[program], what
    assert (tmp_path / "file").read_text() == "a file of somebody" or program == "settings"
    shutil.rmtree(tmp_path, ignore_errors=True)
