"""What the run folder of `btard.simulate` and `btard.distributed` holds to go on after a kill, to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btard.audit.files import FINAL, LEDGER, METRICS, PROTOCOL, RUN, SUMMARY
from btard.audit.vouching import unfit
from btard.files import write_file
from btard.protocol.hashing import PROTOCOL_VERSION

SEEDED = frozenset({"model", "first parameters"})
"""Settings that follow from the seed of the process."""


def claim(out: Path | str | None, settings: Mapping[str, Any]) -> Path | None:
    """The run folder, made or found to be of the same `settings`; None if there is to be none.

    Errors: ValueError for a folder that holds another run, or one that cannot go on.
    """
    if out is None:
        return None
    folder, mine = Path(out), {"protocol version": PROTOCOL_VERSION, **settings}
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: out must be a folder that is new or holds this run")
    file = folder / RUN
    if not file.exists():
        if any((folder / name).exists() for name in (METRICS, LEDGER, PROTOCOL, FINAL, SUMMARY)):
            raise ValueError(f"{folder} holds another run already: give another folder, or remove it")
        write_file(file, json.dumps(mine, indent=1) + "\n")
        return folder
    try:
        theirs = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: damaged ({error}): give another folder, or remove it") from None
    mine = json.loads(json.dumps(mine))
    if differing := differing_names(mine, theirs):
        name = differing[0]
        seeded = ", with torch.manual_seed before the model is made" if name in SEEDED else ""
        raise ValueError(
            f"{folder} holds a run with {name} {_shown(theirs.get(name))}, this one has {_shown(mine.get(name))}: give "
            f"another folder, or what that run was begun with{seeded}"
        )
    _check_finished(folder)
    return folder


def _shown(value: Any) -> str:
    """A value in a message; of a digest the beginning."""
    text = str(value)
    return repr(value) if len(text) < 60 else f"{text[:16]!r}..."


def differing_names(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, those of `one` first; a name that only one of them has differs."""
    return [name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name]]


def _check_finished(folder: Path) -> None:
    """Raise ValueError if the folder holds a finished run of which a file is gone or another one."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        problem = unfit(folder, summary)
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        problem = f"{folder / SUMMARY}: damaged ({error})"
    if problem is not None:
        raise ValueError(
            f"{problem}: copy the folder again as a whole, or delete {SUMMARY}, and the same call puts back what the "
            "checkpoint has"
        )
