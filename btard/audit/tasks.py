"""The task of a run folder, which names the function that makes it: a stranger's folder may name anything."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from btard.audit.files import CONFIG
from btard.audit.settings import check_size, read_task
from btard.protocol.wire import Malformed
from btard.task import Task

KNOWN = frozenset({"resnet.audit:task_of", "albert.audit:task_of"})
"""The functions that may be called unchecked because a run folder names them."""
OURS = frozenset({"albert", "btard", "resnet", "scripts"})
"""Of their functions, only those make the task of a run folder."""
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
"""module:function"""
IMPORTS_US = re.compile(r"^\s*(?:from|import(?:\s+[\w.]+(?:\s+as\s+\w+)?\s*,)*)\s+btard\b", re.MULTILINE)
"""A line that imports btard, alone or beside others."""


def load_task(name: str, folder: Path, *, said_by_run: bool = False) -> Task:
    """The task that the function `name` ("module:function") creates from the run in `folder`; else ValueError.

    The function takes nothing, the folder, or, if it is that of a swarm's `--task`, the swarm's settings. It returns
    the task, or a tuple or list that begins with it, such as (task, optimizer). `said_by_run`: the folder names it, so
    it has to be the module's own, and nothing that the module has imported, such as `rmtree`.
    """
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
        parameters = list(inspect.signature(make).parameters.values())
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"--task {name}: {error}; expected module:function") from None
    home = str(getattr(make, "__module__", ""))
    if said_by_run and home.partition(".")[0] != module.partition(".")[0]:
        raise ValueError(f"{name} is a function of {home}; name it with --task if it makes the run's task")
    asks = any(parameter.default is parameter.empty for parameter in parameters if parameter.kind in POSITIONAL)
    swarms = asks and name not in KNOWN and (folder / CONFIG).is_file()
    try:
        if not asks:
            made = make()
        elif swarms and (name == read_task(folder) or _takes_settings(make, parameters[0].name)):
            made = importlib.import_module("btard.swarm.audit").task_of(name, folder)
        else:
            made = make(folder)
    except (ValueError, Malformed):
        raise
    except Exception as error:  # somebody's own function may raise anything
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error
    task: Task = made[0] if isinstance(made, tuple | list) and made else made
    if not (hasattr(task, "gradients") and hasattr(task, "d")):
        raise ValueError(f"{name} returned {type(task).__name__}; expected a task, or (task, optimizer)")
    return task


def _takes_settings(make: Callable[..., Any], parameter: str) -> bool:
    try:
        return is_dataclass(get_type_hints(make).get(parameter))
    except (NameError, TypeError):
        return False


def own_task(folder: Path) -> Task | None:
    """The task that the run says makes its own, if it can be made here; a line says why it cannot.

    From now on this process imports nothing from the run's folder.
    """
    try:
        name = read_task(folder)
        if not name:
            return None
        if name not in KNOWN:
            check_named(name, folder)
        sys.path[:] = [place for place in sys.path if not _within(Path(place), folder)]
        task = load_task(name, folder, said_by_run=True)
        check_size(folder, task.d)
    except Malformed:
        return None  # the audit says it
    except (Exception, SystemExit) as error:  # of somebody's own module, which may raise anything
        not_recomputed(f"the run's task cannot be made here: {error}")
        return None
    return task


def check_named(name: str, folder: Path) -> None:
    """ValueError unless `name` is a function of a module on this machine that has to do with btard.

    The folder is hostile, and importing a module runs it and the packages above it: so it may name none of its own
    files, and none that was not written to train something here. This imports nothing.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"expected module:function, got {name!r:.60}")
    module = name.partition(":")[0]
    if module.partition(".")[0] in OURS:
        raise ValueError(f"{name} makes no task of a run")
    if "__main__" in module.split("."):
        raise ValueError(f"{name} is of a program, which would start; name it with --task if it makes the run's task")
    files, folders = _looked_up(module)
    if not files:
        raise ValueError(
            f"{name} made it, and no module {module} is found; go to the folder that has it, or add that to "
            "PYTHONPATH, and audit again"
        )
    for place in (*files, *folders):
        if (place in files and place.suffix != ".py") or _within(place, folder):
            raise ValueError(f"{name} is in {place}, which is no module of yours; name it with --task if it is")
    if not IMPORTS_US.search(files[-1].read_text(encoding="utf-8")):
        raise ValueError(
            f"{name} is in {files[-1]}, which does not import btard; name it with --task if it is the run's"
        )


def _looked_up(module: str) -> tuple[list[Path], list[Path]]:
    """The files that an import of `module` runs, its own last, and the packages' folders it looks into.

    No file if there is no such module. `find_spec` imports what is above a module, so it is asked for the first name
    alone.
    """
    first, *rest = module.split(".")
    try:
        found = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        found = None
    if found is None:
        return [], []
    files = [] if found.origin is None else [Path(found.origin)]
    here = [Path(place) for place in found.submodule_search_locations or ()]
    seen, is_file = list(here), bool(files)
    for part in rest:
        parts = [place / part for place in here]
        inits = [place / "__init__.py" for place in parts if (place / "__init__.py").is_file()]
        modules = [place.with_suffix(".py") for place in parts if place.with_suffix(".py").is_file()]
        is_file = bool(inits or modules)
        files += (inits or modules)[:1]
        here = [inits[0].parent] if inits else [] if modules else [place for place in parts if place.is_dir()]
        seen += here
    return (files if is_file else []), seen


def _within(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def not_recomputed(reason: str) -> None:
    """Say in one line on stderr why no gradient is computed again."""
    line = " ".join(ascii(reason)[1:-1].split())
    print(f"gradients are not recomputed: {line:.300}", file=sys.stderr)
