"""The checkpoints that a coordinator keeps, and that a run can start from: parameters and moments, no secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from btard.audit.files import CHECKPOINTS, numbered
from btard.checkpoints import tensors_digest
from btard.files import complete_file
from btard.harness.typed_yaml import ConfigError
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.ledger import read_object

HEADER = "btard.swarm"
"""The place of a checkpoint's metadata in its file."""


def save_start(
    file: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    confirmed_by: tuple[int, ...],
    digest: str,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write the state at the beginning of `step`; the file appears complete or not at all.

    `confirmed_by` are the members that vouched for `digest`, which is that of their whole state. `notes`: what else of
    its folder the coordinator keeps there, JSON values.
    """
    copies = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    said = {"step": step, "digest": digest, "confirmed_by": list(confirmed_by), "notes": dict(notes or {})}
    header = {"version": PROTOCOL_VERSION, **said, "content": tensors_digest(step, "", copies)}
    with complete_file(file) as temporary:
        save_file(copies, temporary, {HEADER: json.dumps(header)})


def read_start(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The header and all tensors of a coordinator's checkpoint. Errors: ValueError for anything else, OSError."""
    try:
        with safe_open(file, framework="pt") as content:
            header = _header(content)
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no dict)
        if type(header["step"]) is not int:
            raise ValueError("its step is no number")
        if header["content"] != tensors_digest(header["step"], "", tensors):
            raise ValueError("its content does not match its digest")
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return header, tensors


def _header(content: Any) -> dict[str, Any]:
    """What an open checkpoint says of itself. Errors: ValueError."""
    return read_object((content.metadata() or {}).get(HEADER, "{}"), "its header")


def checkpoint_before(folder: Path, step: int) -> Path:
    """The newest checkpoint of a coordinator's run folder that is no later than `step`. Errors: ConfigError."""
    files = numbered(folder / CHECKPOINTS, "step-", ".safetensors")
    fitting = [file for number, file in files if number <= step]
    if not fitting:
        there = ", ".join(file.stem for _, file in files[:3]) or "none"
        raise ConfigError(
            f"{folder}/{CHECKPOINTS}: expected a checkpoint of step {step} or before, found {there}; lower "
            "checkpoint_every, and run the baseline again"
        )
    return fitting[-1]


def load_start(file: Path, like: Mapping[str, torch.Tensor]) -> tuple[int, dict[str, torch.Tensor]]:
    """The step and the tensors in a checkpoint, which must have the shapes and dtypes of `like`.

    Errors: ConfigError, in one line.
    """
    try:
        with safe_open(file, framework="pt") as content:
            header = _header(content)
        if header.get("version") != PROTOCOL_VERSION:
            raise ConfigError(
                f"start_from {file}: is of protocol version {header.get('version', 'none')}, this is version "
                f"{PROTOCOL_VERSION}; run the baseline again"
            )
        header, tensors = read_start(file)
        step = header["step"]
    except ConfigError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"start_from {file}: is no checkpoint of a coordinator ({error})") from None
    for name, tensor in like.items():
        if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype):
            found = "nothing" if name not in tensors else f"{tuple(tensors[name].shape)} of {tensors[name].dtype}"
            raise ConfigError(
                f"start_from {file}: expected {name} {tuple(tensor.shape)} of {tensor.dtype}, found {found}; it is of "
                "another model"
            )
    return step, {name: tensors[name] for name in like}
