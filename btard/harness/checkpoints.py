"""The checkpoints of a run: files that appear complete or not at all, each with the digest of its content."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from btard.audit.files import CHECKPOINTS, numbered
from btard.files import complete_file
from btard.harness import pieces
from btard.harness.pieces import Pieces
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.ledger import read_object

KEPT_CHECKPOINTS = 2
"""The newest, and one to fall back on if it turns out damaged."""

HEADER = "btard"
"""The keys of a checkpoint's step, state and digest in the metadata of its safetensors file."""


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

        Those of later steps stay as well. The file appears complete or not at all.
        """
        # Copies, because safetensors refuses tensors that share memory.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        text = json.dumps(state)
        target = self.file(step)
        # One entry, because safetensors writes several in random order, and equal runs shall have equal files.
        header = json.dumps(
            {"version": PROTOCOL_VERSION, "step": step, "state": text, "digest": tensors_digest(step, text, copies)}
        )
        with complete_file(target) as temporary:
            save_file(copies, temporary, metadata={HEADER: header})
        for old in [file for file in self.files() if _step_of(file) <= step][:-KEPT_CHECKPOINTS]:
            old.unlink()

    def intact(self) -> Iterator[tuple[int, dict[str, Tensor], dict[str, Any]]]:
        """(steps done, tensors, state) of each checkpoint, newest first; one that is damaged costs a warning."""
        for step, tensors, state in self._read():
            yield step, pieces.separate(tensors)[0], state

    def vouching(self) -> Iterator[tuple[int, dict[str, Tensor], dict[str, Any], Pieces]]:
        """As `intact`, with what each checkpoint holds of the run folder."""
        for step, tensors, state in self._read():
            own, held = pieces.separate(tensors)
            yield step, own, state, held

    def _read(self) -> Iterator[tuple[int, dict[str, Tensor], dict[str, Any]]]:
        for file in reversed(self.files()):
            try:
                yield _read_checkpoint(file)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"{file}: damaged, trying the checkpoint before it ({error})", stacklevel=2)

    def forget_after(self, step: int, until: float = math.inf) -> None:
        """Delete the checkpoints of later steps, no later than `until`."""
        for file in self.files():
            if step < _step_of(file) <= until:
                file.unlink()


def rank_checkpoints(path: Path, rank: int) -> Checkpoints:
    """Where in the run folder `path` this rank of a run with one process per peer keeps its checkpoints."""
    return Checkpoints(Path(path) / CHECKPOINTS / f"rank-{rank:03d}")


def _read_checkpoint(file: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    with safe_open(file, framework="pt") as content:
        header = read_object(content.metadata()[HEADER], "header")
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no dict)
    if header["version"] != PROTOCOL_VERSION:
        raise ValueError(f"protocol version {header['version']!r:.40}, this is version {PROTOCOL_VERSION}")
    step, text = header["step"], header["state"]
    if step != _step_of(file):
        raise ValueError(f"it is that of step {step}")
    if header["digest"] != tensors_digest(step, text, tensors):
        raise ValueError("its content does not match its digest")
    return step, tensors, read_object(text, "state")


def tensors_digest(step: int, state: str, tensors: Mapping[str, Tensor]) -> str:
    """BLAKE3 over everything in a checkpoint: its format itself would not notice a flipped bit."""
    hasher = blake3(json.dumps([step, state]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))
