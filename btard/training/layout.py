"""Where a model's named tensors lie in the vectors of a run, as recorded in `model.json` in the run folder.

Peers train one vector [d]. After the run somebody wants `conv1.weight` and its shape, without the program that made
the model: each named tensor is a strided view of a tensor in a checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from btard.audit.files import FINAL, KEPT_FILE, MODEL, read_bounded
from btard.files import complete_file, write_file
from btard.protocol.hashing import digest
from btard.protocol.wire import Malformed, shown
from btard.task import PARAMETERS
from btard.training.vector import parameter_count, trained, views

KEPT = "kept"
"""Begins the names of what peers do not train: `kept/NAME` for each tensor of the model's state."""
MAX_MODEL = 2**24
"""Bytes of a model.json that are read: it has some 150 for each tensor."""
MAX_MADE = 64
"""A layer's weights may have many names, as in a model that repeats it; all copies may be that many times what a run
holds."""
MAX_DIMENSIONS = 64
"""As many as torch works with."""
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
    def bytes(self) -> int:
        """Size of a copy."""
        return math.prod(self.shape) * cast(torch.dtype, getattr(torch, self.dtype)).itemsize

    @property
    def end(self) -> int:
        """The first entry of `source` behind it."""
        return self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) + 1

    def of(self, tensors: Mapping[str, Tensor], peer: int = 0) -> Tensor:
        """A contiguous copy of the named tensor, on the CPU. Errors: LayoutError if `tensors` has no such place."""
        whole = tensors.get(self.source)
        if whole is None or (self.per_peer and (whole.dim() == 0 or peer >= len(whole))):
            raise LayoutError(f"{MODEL}: {self} lies in {shown(self.source, 80)}, which the checkpoint does not have")
        flat = (whole[peer] if self.per_peer else whole).detach().cpu().contiguous().view(-1)
        if max(self.end, math.prod(self.shape)) > flat.numel() and 0 not in self.shape:
            raise LayoutError(
                f"{MODEL}: {self} ends at entry {self.end - 1} of {shown(self.source, 80)}, which has {flat.numel()}"
            )
        view = flat.as_strided(self.shape, self.stride, self.offset)
        try:
            return view.to(getattr(torch, self.dtype)).clone(memory_format=torch.contiguous_format)
        except (RuntimeError, TypeError) as error:  # a type that holds no such numbers
            raise LayoutError(f"{MODEL}: {self} cannot be {self.dtype}: {shown(error)}") from None

    def __str__(self) -> str:
        return shown(self.name, 80)


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


def layout_digest(slots: Iterable[Slot]) -> bytes:
    """Digest of names, shapes and places, in their order: what peers sign at the end beside the parameters."""
    return digest("layout", *(json.dumps(asdict(slot), sort_keys=True) for slot in slots))


def check_places(slots: Iterable[Slot], d: int) -> None:
    """Raise LayoutError unless each entry of the vector [d] belongs to one named tensor, which may have several names.

    No name stands for two tensors.
    """
    places: dict[tuple[int, int], Slot] = {}
    names: set[str] = set()
    for slot in slots:
        if slot.name in names:
            raise LayoutError(f"{MODEL}: {slot} stands there twice")
        names.add(slot.name)
        if slot.source != PARAMETERS or 0 in slot.shape:
            continue
        dense = 1
        for step, size in sorted((step, size) for step, size in zip(slot.stride, slot.shape, strict=True) if size > 1):
            if step != dense:
                raise LayoutError(f"{MODEL}: {slot} is no block of the vector: stride {slot.stride} for {slot.shape}")
            dense *= size
        same = places.setdefault((slot.offset, slot.offset + dense), slot)
        if (same.shape, same.stride, same.dtype) != (slot.shape, slot.stride, slot.dtype) or slot.per_peer:
            raise LayoutError(f"{MODEL}: {slot} and {same} read the same numbers differently")
    reached = 0
    for begin, end in sorted(places):
        if begin != reached:
            where = "twice" if begin < reached else "by nobody"
            raise LayoutError(f"{MODEL}: entry {min(begin, reached)} of the parameters is named {where}")
        reached = end
    if reached != d:
        raise LayoutError(f"{MODEL}: names {reached} parameters, the run has {d}")


def copies(slots: Iterable[Slot], tensors: Mapping[str, Tensor], peer: int = 0) -> dict[str, Tensor]:
    """A copy of each named tensor; `tensors` and `peer` as for `Slot.of`. Errors: LayoutError."""
    slots = list(slots)
    made = sum(slot.bytes for slot in slots)
    held = sum(tensors[source].nbytes for source in {slot.source for slot in slots} & tensors.keys())
    if made > MAX_MADE * held:
        raise LayoutError(
            f"{MODEL}: names tensors of {made} bytes in all, more than {MAX_MADE} times the {held} of the checkpoint; "
            "no run of this release writes that"
        )
    return {slot.name: slot.of(tensors, peer) for slot in slots}


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
        content = json.loads(read_bounded(file, MAX_MODEL)) if file.exists() else None
        slots = [] if content is None else [_slot(entry) for entry in content["tensors"]]
        agreed = {} if content is None else dict(content["agreed"])
    except (Malformed, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise LayoutError(
            f"{file}: damaged ({type(error).__name__}: {shown(error)}); copy the run folder again"
        ) from None
    if content is None:
        raise LayoutError(
            f"{file}: expected the names and shapes of the run's parameters, found no such file; its task does not say "
            "them, or this is no run folder"
        )
    return slots, agreed


def _slot(entry: Mapping[str, Any]) -> Slot:
    slot = Slot(**{item.name: entry[item.name] for item in fields(Slot)})
    shape, stride = tuple(slot.shape), tuple(slot.stride)
    numbers = (*shape, *stride, slot.offset)
    if not (isinstance(slot.name, str) and isinstance(slot.source, str) and isinstance(slot.per_peer, bool)):
        raise ValueError(f"{slot.name!a:.60} in {slot.source!a:.60} is no name of a tensor")
    if (
        not all(type(number) is int and 0 <= number < 2**48 for number in numbers)
        or not len(shape) == len(stride) <= MAX_DIMENSIONS
    ):
        raise ValueError(f"{slot.name!a:.60} has shape {shape}, stride {stride} and offset {slot.offset!a:.20}")
    if not _is_written(slot.dtype):
        raise ValueError(f"{slot.name!a:.60} is of {slot.dtype!a:.20}, which is no type of a tensor in safetensors")
    return Slot(slot.name, shape, stride, slot.offset, slot.dtype, slot.source, slot.per_peer)


@lru_cache(64)
def _is_written(dtype: str) -> bool:
    """Whether safetensors has this dtype of torch."""
    try:
        save({"": torch.empty(0, dtype=getattr(torch, dtype))})
    except (AttributeError, KeyError, TypeError):
        return False
    return True
