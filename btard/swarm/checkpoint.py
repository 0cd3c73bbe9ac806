"""The checkpoints that a coordinator keeps, and that a run can start from: parameters and moments, nobody's secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from btard.harness.typed_yaml import ConfigError
from btard.protocol.hashing import PROTOCOL_VERSION

HEADER, OLD_HEADER = "btard.swarm", "btard.albert"
"""Where the metadata of a checkpoint stand in its file, and where they stood before there were versions."""


def save_start(
    file: Path, step: int, tensors: Mapping[str, torch.Tensor], confirmed_by: tuple[int, ...], digest: str
) -> None:
    """Write the state at the beginning of `step`; the file appears complete or not at all.

    `confirmed_by` are the members that vouched for `digest`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    header = json.dumps(
        {"version": PROTOCOL_VERSION, "step": step, "digest": digest, "confirmed_by": list(confirmed_by)}
    )
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, temporary, {HEADER: header})
    temporary.replace(file)


def checkpoint_before(folder: Path, step: int) -> Path:
    """The newest checkpoint of a coordinator's run folder that is no later than `step`. Errors: ConfigError."""
    files = sorted((folder / "checkpoints").glob("step-*.safetensors"))
    fitting = [file for file in files if int(file.stem.removeprefix("step-")) <= step]
    if not fitting:
        there = ", ".join(file.stem for file in files[:3]) or "none"
        raise ConfigError(
            f"{folder}/checkpoints: expected a checkpoint of step {step} or before, found {there}; lower "
            "checkpoint_every, and run the baseline again"
        )
    return fitting[-1]


def load_start(file: Path, like: Mapping[str, torch.Tensor]) -> tuple[int, dict[str, torch.Tensor]]:
    """The step and the tensors in a checkpoint, which have to be of the shapes and dtypes of `like`.

    Errors: ConfigError, in one line.
    """
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            header = json.loads(metadata.get(HEADER) or metadata.get(OLD_HEADER, "null"))
            if header.get("version") != PROTOCOL_VERSION:
                raise ConfigError(
                    f"start_from {file}: is of protocol version {header.get('version', 'none')}, this is version "
                    f"{PROTOCOL_VERSION}; run the baseline again"
                )
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no dict)
        step = int(header["step"])
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
