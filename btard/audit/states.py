"""The states among which a run chose: files named by digest, as the peers have signed it; several proofs share them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from btard.audit.encoding import check_hex, to_host
from btard.files import complete_file
from btard.protocol.hashing import tensor_digest
from btard.protocol.heal import state_digest
from btard.protocol.ledger import read_object
from btard.protocol.limits import state_limit
from btard.protocol.wire import Malformed
from btard.task import PARAMETERS


def state_file(folder: Path, hashed: bytes) -> Path:
    return folder / f"state-{hashed.hex()}.safetensors"


def write_state(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """The "parameters" of a state, and the digests of its other tensors: what measuring it again takes."""
    digests = {name: tensor_digest(x, name) for name, x in tensors.items()}
    file = state_file(folder, state_digest(digests))
    if not file.exists():
        others = {name: hashed.hex() for name, hashed in digests.items() if name != PARAMETERS}
        with complete_file(file) as temporary:
            save_file(
                {PARAMETERS: to_host(tensors[PARAMETERS])}, temporary, {"others": json.dumps(others, sort_keys=True)}
            )


def read_state(folder: Path, hashed: bytes, d: int) -> torch.Tensor | None:
    """The parameters [d] of the state of this digest; None if its file is not there. Errors: Malformed."""
    file = state_file(folder, hashed)
    if not file.is_file():
        return None
    if file.stat().st_size > state_limit(d):
        raise Malformed(f"{file.name}: too long for {d} parameters")
    try:
        with safe_open(file, framework="pt") as tensors:
            params: torch.Tensor = tensors.get_tensor(PARAMETERS)
            others = read_object((tensors.metadata() or {}).get("others", "{}"), "others")
    except (SafetensorError, OSError, ValueError) as error:
        raise Malformed(f"{file.name}: {error}") from None
    if params.dtype != torch.float32 or tuple(params.shape) != (d,):
        raise Malformed(f"{file.name}: expected {d} float32 parameters")
    digests = {name: check_hex(value, name) for name, value in others.items()}
    if state_digest(digests | {PARAMETERS: tensor_digest(params, PARAMETERS)}) != hashed:
        raise Malformed(f"{file.name}: its content does not match its digest")
    return params
