"""What the run folder of `btard.simulate` and `btard.distributed` holds to go on after a kill, to the same bits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from btard.audit.files import CHECKPOINTS, FINAL, LEDGER, METRICS, PROTOCOL, RUN, SUMMARY, numbered
from btard.audit.vouching import unfit
from btard.files import complete_file, write_file
from btard.protocol.hashing import PROTOCOL_VERSION, digest, tensor_digest
from btard.protocol.ledger import read_object

HEADER = "btard.training"
KEPT = 2
"""Checkpoints: the newest, and one that every rank has, whenever they were killed."""


class Saved(NamedTuple):
    """A checkpoint."""

    step: int
    """Steps that were done."""
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """JSON values."""


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


SEEDED = frozenset({"model", "first parameters"})


class Checkpoints:
    """The newest checkpoints of the run in `folder`, or of one `rank` of it."""

    def __init__(self, folder: Path, rank: int | None = None) -> None:
        place = Path(folder) / CHECKPOINTS
        self.path = place if rank is None else place / f"rank-{rank:03d}"

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write what goes on after `step` steps; the file appears complete or not at all."""
        for name, x in tensors.items():
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"{name} cannot be kept in a checkpoint, which holds tensors, got {type(x).__name__} {x!r:.40}: "
                    "have tensors alone in collusion.memory"
                )
        copies = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
        text = json.dumps(state)
        header = {"step": step, "state": text, "digest": _digest(step, text, copies)}
        target = self.path / f"step-{step:08d}.safetensors"
        with complete_file(target) as temporary:
            save_file(copies, temporary, {HEADER: json.dumps(header)})
        for file in self._files()[:-KEPT]:
            file.unlink()

    def intact(self) -> dict[int, Saved]:
        """Step -> checkpoint; one that is damaged costs a warning."""
        found = {}
        for file in self._files():
            try:
                saved = _read(file)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"{file}: damaged, it is not used ({error})", stacklevel=2)
            else:
                found[saved.step] = saved
        return found

    def _files(self) -> list[Path]:
        return [file for _, file in numbered(self.path, "step-", ".safetensors") if file.is_file()]


def _read(file: Path) -> Saved:
    with safe_open(file, framework="pt") as content:
        header = read_object(content.metadata()[HEADER], "header")
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no dict)
    step, text = header["step"], header["state"]
    if type(step) is not int or step < 0:
        raise ValueError(f"it is of step {step!a:.40}")
    if header["digest"] != _digest(step, text, tensors):
        raise ValueError("its content does not match its digest")
    return Saved(step, tensors, read_object(text, "state"))


def _digest(step: int, text: str, tensors: Mapping[str, Tensor]) -> str:
    return digest("checkpoint", step, text, *(tensor_digest(tensors[name], name) for name in sorted(tensors))).hex()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
