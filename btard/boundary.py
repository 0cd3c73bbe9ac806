"""The boundary of every program: each error becomes one line on stderr and an exit code that says whose it is.

A program's `main` is wrapped in `program`. Until it is called, `begin` does the same for what happens while packages
are imported. It stands beside the library because an audit runs without any extra.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, ParamSpec

DONE, FAILED, MISTAKE, FAULT, INTERRUPTED = 0, 1, 2, 70, 130
"""Exit codes: 1 is the machine's (or a run's) failure, 2 the user's mistake, 70 a fault of this package."""

OURS = frozenset({"albert", "btard", "resnet", "scripts"})
"""Packages whose modules are programs."""

Words = ParamSpec("Words")


class Mistake(Exception):
    """What the user asked for is impossible; the message is one line: what was expected, what came, what to do."""


class MachineError(Exception):
    """The machine does not let the program continue; the message is one line that says what to do."""


ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "the file may not become that large: raise the limit (`ulimit -f`) or make room",
    errno.EROFS: "write to another place, or mount it for writing",
    errno.EACCES: "allow it, or choose another place",
    errno.EPERM: "allow it, or choose another place",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "allow more open files",
    errno.EIO: "the disk or its connection is failing",
    errno.ENOMEM: "make memory available",
    errno.ESTALE: "mount the network folder again",
    errno.EAGAIN: "allow more processes (`ulimit -u`), or end some",
}
GENERAL = "see to it"


def line_of(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the line for an error that is the user's or the machine's; None for a fault of ours."""
    if isinstance(error, Mistake):
        return MISTAKE, str(error)
    if isinstance(error, MachineError):
        return FAILED, str(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    if isinstance(error, BrokenPipeError):
        return FAILED, "nobody reads the output any more"
    if isinstance(error, OSError):
        return FAILED, _of_system(error)
    return _by_its_words(error)


def _missing(error: ModuleNotFoundError) -> tuple[int, str] | None:
    name = (error.name or "").partition(".")[0]
    if name in OURS or not name:
        return None
    if type(error) is not ModuleNotFoundError:  # it says what to do (`btard.extras`)
        return FAILED, str(error)
    return FAILED, f"{name} is not installed, which this program needs: pip install 'btard[experiments]'"


def _of_system(error: OSError) -> str:
    places = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    said = error.strerror or str(error) or type(error).__name__
    where = f"{' to '.join(places)}: " if places else ""
    return f"{where}{said}; {ADVICE.get(error.errno or 0, GENERAL)}, and give the same command again"


_OS_ERROR = re.compile(r"os error (\d+)")
_NO_MEMORY = ("out of memory", "can't allocate memory", "unable to allocate", "cannot allocate memory")


def _by_its_words(error: BaseException) -> tuple[int, str] | None:
    """As `line_of`, for errors that libraries raise without a specific class."""
    said = str(error)
    lower = said.lower()
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in lower for w in _NO_MEMORY)):
        what = said.partition(". ")[0].partition("\n")[0] or "out of memory"
        return FAILED, f"{what}: make memory available, or make the run smaller"
    if type(error) is Exception or "safetensors" in type(error).__module__:  # what is written in Rust
        number = _OS_ERROR.search(said)
        return (FAILED, _of_system(OSError(int(number[1]), os.strerror(int(number[1]))))) if number else None
    homeless = isinstance(error, KeyError) and "getpwuid" in said
    if homeless or (isinstance(error, RuntimeError) and "home directory" in lower):
        return FAILED, f"user {os.getuid()} has no home and no name here; set HOME and USER, such as HOME=/tmp USER=me"
    if type(error).__name__ in ("DistNetworkError", "DistStoreError"):
        what = said.partition(". ")[0].partition("\n")[0]
        return FAILED, f"the processes find no meeting point ({what}); check MASTER_ADDR and MASTER_PORT"
    if isinstance(error, RuntimeError) and "can't start new thread" in lower:
        return FAILED, f"no more threads; {ADVICE[errno.EAGAIN]}"
    if isinstance(error, ImportError):
        return FAILED, f"a package cannot be imported ({said}); install it again: pip install --force-reinstall it"
    return None


def one_line(text: str) -> str:
    """The text in one line that a terminal shows as it is: a file's name, or what it holds, may be a stranger's."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def end(error: BaseException) -> int:
    """Say in one line on stderr what ended the program, after a traceback if it is our fault; returns the exit code."""
    known = line_of(error)
    if known is None:
        traceback.print_exception(type(error), error, error.__traceback__)
        return _say(FAULT, f"this is a fault of the program ({type(error).__name__}): please report it with the above")
    return _say(known[0], known[1])


def _say(code: int, line: str) -> int:
    with contextlib.suppress(OSError, ValueError):  # nobody is there to read it
        print("error:", one_line(line), file=sys.stderr, flush=True)
    return code


def program(again: str) -> Callable[[Callable[Words, int | None]], Callable[Words, int]]:
    """Wrap a `main`, so that it returns an exit code whatever happens; `again` says what to do after Ctrl-C.

    A user's mistake raises SystemExit(2) after its line, as argparse does.
    """

    def wrap(main: Callable[Words, int | None]) -> Callable[Words, int]:
        @functools.wraps(main)
        def guarded(*args: Words.args, **kwargs: Words.kwargs) -> int:
            _imported(again, main.__code__.co_filename)
            _hold_streams()
            try:
                _check_words(args[0] if args else kwargs.get("argv"))
                code = main(*args, **kwargs) or DONE
                sys.stdout.flush()  # a full disk or a closed pipe shows here
                return code
            except KeyboardInterrupt:
                _leave_output()
                return _interrupted(again)
            except SystemExit as stop:
                lost = _leave_output()
                if isinstance(stop.__context__, BrokenPipeError):  # rich ends a program then, without a word
                    return end(stop.__context__)
                if lost is not None and not stop.code:
                    return end(lost)
                raise
            except Exception as error:
                code = end(error)
                _leave_output()
                if code == MISTAKE:
                    raise SystemExit(MISTAKE) from None
                return code

        return guarded

    return wrap


def _interrupted(again: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        print(f"interrupted: {again}", file=sys.stderr, flush=True)
    return INTERRUPTED


def _hold_streams() -> None:
    """Open what a shell has closed of the first three descriptors, or files that a program opens get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as Python has it then
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for as long as the program runs)


def _leave_output() -> Exception | None:
    """Let what cannot be written go nowhere, or the interpreter complains when it ends, with a code of its own.

    Returns why it cannot be written, if it cannot.
    """
    try:
        sys.stdout.flush()
        return None
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error


def _check_words(words: Any) -> None:
    """Raise Mistake for bytes on the command line that are not UTF-8: neither files nor messages could hold them."""
    for word in sys.argv[1:] if words is None else words:
        if isinstance(word, str) and any("\udc80" <= letter <= "\udcff" for letter in word):
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise Mistake(f"command line: expected words in UTF-8, got {shown}; rename the file, or set the locale")


# While packages are imported.

IMPORTS = "<frozen importlib._bootstrap>"
"""The file that an import statement calls."""


def _program_named() -> str | None:
    """The module of ours that `python -m` runs in this process; None if it runs another, or none."""
    for index, word in enumerate(sys.orig_argv[1:], start=1):
        if word.startswith("-m"):
            name = word[2:] or (sys.orig_argv[index + 1] if index + 1 < len(sys.orig_argv) else "")
            return name if name.partition(".")[0] in OURS else None
        if (word == "-c" or not word.startswith("-")) and sys.orig_argv[index - 1] not in ("-X", "-W"):
            return None
    return None


def begin() -> None:
    """In a process that runs one of our programs: end with one line even while packages are imported."""
    if _program_named() is None or threading.current_thread() is not threading.main_thread():
        return
    sys.excepthook = _end_import
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_import)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # in a terminal that has no such letter


def _end_import(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        _interrupt_import(signal.SIGINT, None)
    code = end(error)
    sys.stdout.flush()
    os._exit(code)


def _interrupt_import(number: int, frame: FrameType | None) -> NoReturn:
    # Nothing is lost yet, and an exception here would come out of some package's import as another one.
    os._exit(_interrupted("nothing was begun"))


def _imported(again: str, file: str) -> None:
    """Let Ctrl-C be a KeyboardInterrupt from now on, but end the program while its own `file` imports something.

    That comes before the work. Packages swallow a KeyboardInterrupt while they are imported, and are half there then.
    """
    if signal.getsignal(signal.SIGINT) is not _interrupt_import:
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _importer(frame) == file:
            os._exit(_interrupted(again))
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)


def _importer(frame: FrameType | None) -> str | None:
    """The file with the import statement that led to `frame`, the outermost one; None if nothing is being imported."""
    found = None
    while frame is not None:
        above = frame.f_back
        if frame.f_code.co_filename == IMPORTS and above is not None and above.f_code.co_filename != IMPORTS:
            found = above.f_code.co_filename
        frame = above
    return found


class Parser(argparse.ArgumentParser):
    """A parser of command lines: a mistake is one line, and `--batch_size` means `--batch-size`."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """End the program with one line."""
        raise SystemExit(_say(MISTAKE, f"command line: {message}; {self.prog} --help says more"))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's method, but accepts either spelling of an option."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([self._spelled(word) for word in words], namespace)

    def _spelled(self, word: str) -> str:
        name, equals, value = word.partition("=")
        other = name.replace("_", "-")
        if name.startswith("--") and name not in self._option_string_actions and other in self._option_string_actions:
            return other + equals + value
        return word


def output_folder(text: str) -> Path:
    """Return the path of a folder that can be created or written to, for `add_argument(type=...)`: before long work."""
    return _writable(Path(text), Path(text))


def output_file(text: str) -> Path:
    """Return the path of a file that can be created or replaced, for `add_argument(type=...)`."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file to write, got the folder {path}")
    return _writable(path, path.parent)


def positive(text: str) -> int:
    """Return an integer of at least 1, for `add_argument(type=...)`: how many, or how large."""
    if not re.fullmatch(r"\+?\d{1,18}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def _writable(path: Path, folder: Path) -> Path:
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"{path} cannot be made: {existing} is no folder; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written: no right to write to {existing}; choose another")
    return path
