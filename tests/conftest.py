"""What all tests share: hypothesis by profile, and seeds by option.

`--hypothesis-profile long` is for hours, the default is for minutes. `--seeds N` runs a test that takes a `seed` N
times. `--surroundings N` starts programs in N random surroundings.
"""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.pop("COLUMNS", None)  # set for the workers of a parallel run: tables would break what tests look for
os.fsync = lambda _: None  # no test loses power, and waiting for the disk costs minutes; test_files.py looks at it

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script: some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=20_000, print_blob=True)
settings.load_profile("default")


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Modules and tests stay: to look through them again and again for garbage would take seconds."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


REAL_TIME = ("albert", "drivers", "notebooks", "resnet/test_torchrun.py", "swarm")
"""Where several processes or threads meet by deadlines: a machine that stalls fails such a test once, a fault twice."""


def meets(path: Path) -> bool:
    """Whether what is there runs in real time."""
    here = Path(__file__).parent
    return path.is_relative_to(here) and path.relative_to(here).as_posix().startswith(REAL_TIME)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where tests in real time run apart from all others, no process imports the files of both: that takes seconds."""
    wanted = config.getoption("markexpr")
    others = collection_path.suffix == ".py" and not meets(collection_path)
    return (wanted == "real_time" and others) or (wanted == "not real_time" and meets(collection_path)) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test in real time is run again once when it failed; the summary names it (`-rR`). All others get one try."""
    for item in items:
        if meets(item.path):
            item.add_marker(pytest.mark.real_time)
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=4, help="how many seeds to run each test with that takes a seed")
    parser.addoption("--surroundings", type=int, default=12, help="how many random surroundings to start programs in")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    names = [mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0] for mark in marks]
    given = {name.strip() for group in names for name in group}
    if "seed" in metafunc.fixturenames and "seed" not in given:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds")))
    if "surrounding" in metafunc.fixturenames:
        metafunc.parametrize("surrounding", range(metafunc.config.getoption("--surroundings")))
