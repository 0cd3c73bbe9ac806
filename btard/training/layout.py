"""Where a model's named tensors lie in the vectors of a run, as recorded in `model.json` in the run folder.

Peers train one vector [d]. After the run somebody wants `conv1.weight` and its shape, without the program that made
the model: each named tensor is a strided view of a tensor in a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from btard.audit.files import FINAL, KEPT_FILE, MODEL
from btard.files import complete_file, write_file
from btard.task import PARAMETERS
from btard.training.vector import parameter_count, trained, views

KEPT = "kept"
"""Begins the names of what peers do not train: `kept/NAME` for each tensor of the model's state."""
LOCAL = "buffers"
"""Begins the names of a peer's own buffers: `buffers/PEER/NAME`."""


class LayoutError(ValueError):
    """A run folder does not say how to name its parameters, or says so wrongly; one line."""


@dataclass(frozen=True)
class Slot:
    """One named tensor: a view of the checkpoint's tensor `source` with this shape, stride and offset, in elements."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: str = "float32"
    """Its dtype in the model, whatever that of the vector."""
    source: str = PARAMETERS
    per_peer: bool = False
    """`source` has a row for each peer, and the view is one row of it: a peer's own statistics."""

    @property
    def end(self) -> int:
        """The first entry of `source` behind it."""
        return self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) + 1

    def of(self, tensors: Mapping[str, Tensor], peer: int = 0) -> Tensor:
        """A contiguous copy of the named tensor, on the CPU. Errors: LayoutError if `tensors` has no such place."""
        whole = tensors.get(self.source)
        if whole is None:
            raise LayoutError(f"{MODEL}: {self.name} lies in {self.source}, which the checkpoint does not have")
        flat = (whole[peer] if self.per_peer else whole).detach().cpu().contiguous().view(-1)
        if self.end > flat.numel() and 0 not in self.shape:
            raise LayoutError(
                f"{MODEL}: {self.name} ends at entry {self.end - 1} of {self.source}, which has {flat.numel()}"
            )
        return (
            flat.as_strided(self.shape, self.stride, self.offset)
            .to(getattr(torch, self.dtype))
            .clone(memory_format=torch.contiguous_format)
        )


def layout_of(model: nn.Module) -> list[Slot]:
    """Slots of the trained parameters of `model` in its vector [d], in its order (`btard.training.vector.views`)."""
    flat = torch.empty(parameter_count(model), device="meta")
    own = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        Slot(
            name, tuple(view.shape), view.stride(), int(view.storage_offset()), str(given.dtype).removeprefix("torch.")
        )
        for (name, given), view in zip(own, views(model, flat), strict=True)
    ]


def state_layout(model: nn.Module) -> list[Slot]:
    """The slots of the whole state of `model`, under the names that `load_state_dict` knows.

    First its trained parameters, as `layout_of` has them; then other names of these, where layers share a parameter;
    then frozen parameters and persistent buffers, which are `kept` beside the vector.
    """
    slots = layout_of(model)
    of = {id(x): slot for x, slot in zip(trained(model), slots, strict=True)}
    known = {slot.name for slot in slots}
    for name, tensor in _state(model).items():
        if name in known:
            continue
        if (slot := of.get(id(tensor))) is not None:
            slots.append(replace(slot, name=name))
        else:
            stride = torch.empty(tensor.shape, device="meta").stride()
            dtype = str(tensor.dtype).removeprefix("torch.")
            slots.append(Slot(name, tuple(tensor.shape), stride, 0, dtype, f"{KEPT}/{name}"))
    return slots


def kept(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what the slots of `state_layout` need beside the vector, by source: frozen parameters and buffers."""
    own = {id(parameter) for parameter in trained(model)}
    return {f"{KEPT}/{name}": x.detach().clone() for name, x in _state(model).items() if id(x) not in own}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in model.state_dict(keep_vars=True).items() if isinstance(x, Tensor)}


def write_layout(
    folder: Path, slots: Iterable[Slot], agreed: Mapping[str, Any], kept: Mapping[str, Tensor] | None = None
) -> None:
    """Write `model.json`. `agreed`: what peers shared in addition to their settings, such as the digest of the data.

    `kept`: what no checkpoint has, as `kept` returned it; it gets a file of its own.
    """
    if kept:
        _write_tensors(folder / KEPT_FILE, kept)
    lines = ",\n  ".join(json.dumps(asdict(slot)) for slot in slots)
    facts = json.dumps(dict(agreed), sort_keys=True)
    write_file(folder / MODEL, f'{{"agreed": {facts},\n "tensors": [\n  {lines}]}}\n')


def write_final(
    folder: Path, params: Tensor, slots: Iterable[Slot], agreed: Mapping[str, Any], kept: Mapping[str, Tensor]
) -> None:
    """Write the parameters [d] after the last step, what was `kept` beside them, and `model.json`."""
    write_layout(folder, slots, agreed)
    _write_tensors(folder / FINAL, {PARAMETERS: params, **kept})


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with complete_file(file) as temporary:
        save_file({name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}, temporary)


def read_layout(folder: Path) -> tuple[list[Slot], dict[str, Any]]:
    """What `write_layout` wrote. Errors: LayoutError."""
    file = folder / MODEL
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        slots = [_slot(entry) for entry in content["tensors"]]
        agreed = dict(content["agreed"])
    except FileNotFoundError:
        raise LayoutError(
            f"{file}: expected the names and shapes of the run's parameters, found no such file; its task does not say "
            "them, or this is no run folder"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LayoutError(f"{file}: damaged ({type(error).__name__}: {error}); copy the run folder again") from None
    return slots, agreed


def _slot(entry: Mapping[str, Any]) -> Slot:
    slot = Slot(**{item.name: entry[item.name] for item in fields(Slot)})
    shape, stride = tuple(slot.shape), tuple(slot.stride)
    numbers = (*shape, *stride, slot.offset)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) != len(stride):
        raise ValueError(f"{slot.name!a:.60} has shape {shape}, stride {stride} and offset {slot.offset!a:.20}")
    if not isinstance(getattr(torch, slot.dtype, None), torch.dtype):
        raise ValueError(f"{slot.name!a:.60} is of {slot.dtype!a:.20}, which is no type of torch")
    return Slot(slot.name, shape, stride, slot.offset, slot.dtype, slot.source, slot.per_peer)
