"""The checkpoints of a run: files that appear complete or not at all, each with the digest of its content."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from btard.audit.files import CHECKPOINTS, numbered
from btard.files import complete_file
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.ledger import read_object

KEPT_CHECKPOINTS = 2
"""The newest, and one to fall back on: if it turns out damaged, or not every rank of a run has it."""

HEADER = "btard"
"""The keys of a checkpoint's step, state and digest in the metadata of its safetensors file."""


class Saved(NamedTuple):
    """A checkpoint."""

    step: int
    """Steps that were done."""
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """JSON values."""


class Checkpoints:
    """The newest checkpoints of a run, or of one rank of it, as files in folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def file(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or would be."""
        return self.path / f"step-{step:08d}.safetensors"

    def files(self) -> list[Path]:
        return [file for _, file in numbered(self.path, "step-", ".safetensors") if file.is_file()]

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write what a run that has done `step` steps needs to continue; `state` is JSON. Keeps this one and the last.

        Those of later steps stay as well. The file appears complete or not at all. Errors: TypeError for anything else.
        """
        for name, x in tensors.items():
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"{name} cannot be kept in a checkpoint, which holds tensors, got {type(x).__name__} {x!r:.40}: "
                    "have tensors alone in collusion.memory"
                )
        # Copies, because safetensors refuses tensors that share memory.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        text = json.dumps(state)
        # One entry, because safetensors writes several in random order, and equal runs shall have equal files.
        header = json.dumps(
            {"version": PROTOCOL_VERSION, "step": step, "state": text, "digest": tensors_digest(step, text, copies)}
        )
        with complete_file(self.file(step)) as temporary:
            save_file(copies, temporary, metadata={HEADER: header})
        for old in [file for file in self.files() if _step_of(file) <= step][:-KEPT_CHECKPOINTS]:
            old.unlink()

    def intact(self) -> Iterator[Saved]:
        """Each checkpoint, the newest first; one that is damaged costs a warning."""
        for file in reversed(self.files()):
            try:
                yield _read(file)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"{file}: damaged, it is not used ({error})", stacklevel=2)

    def forget_after(self, step: int, until: float = math.inf) -> None:
        """Delete the checkpoints of later steps, no later than `until`."""
        for file in self.files():
            if step < _step_of(file) <= until:
                file.unlink()


def checkpoints_of(run: Path, rank: int | None = None) -> Checkpoints:
    """Those in the run folder `run`, or where a rank of a run with one process per peer keeps its own."""
    place = Path(run) / CHECKPOINTS
    return Checkpoints(place if rank is None else place / f"rank-{rank:03d}")


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def tensors_digest(step: int, state: str, tensors: Mapping[str, Tensor]) -> str:
    """BLAKE3 over everything in a checkpoint: its format itself would not notice a flipped bit."""
    hasher = blake3(json.dumps([step, state]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _read(file: Path) -> Saved:
    with safe_open(file, framework="pt") as content:
        header = read_object(content.metadata()[HEADER], "header")
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no dict)
    if header["version"] != PROTOCOL_VERSION:
        raise ValueError(f"protocol version {header['version']!r:.40}, this is version {PROTOCOL_VERSION}")
    step, text = header["step"], header["state"]
    if step != _step_of(file):
        raise ValueError(f"it is that of step {step!a:.40}")
    if header["digest"] != tensors_digest(step, text, tensors):
        raise ValueError("its content does not match its digest")
    return Saved(step, tensors, read_object(text, "state"))


def _step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))
