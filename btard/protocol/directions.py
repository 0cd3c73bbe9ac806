"""The directions z[j] on which reports are projected, drawn from the coin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch

from btard.protocol.hashing import SPARE, draw_uniform, uniform, uniform_cipher
from btard.protocol.memory import NOTHING, Memory, remembered


@dataclass
class _Drawn:
    """The directions drawn from a coin so far, by parts and their size; peers in threads wait for each other."""

    z: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


@remembered(2)  # of the present step and of the one on trial
def _drawn(coin: bytes, count: int, device: str) -> _Drawn:
    return _Drawn()


def directions(
    coin: bytes, part: int, size: int, count: int, device: str = "cpu", memory: Memory = NOTHING
) -> torch.Tensor:
    """z[j] [count, size] int16, up to `UNIFORM_SCALE`: the same for everybody that knows the coin.

    Independent uniform entries do what Gaussian ones do. For no unit vector v has <z, v> a density above sqrt(2/12)
    = 0.41 (a section of the unit cube has at most sqrt(2) times the volume of its face: K. Ball, Proc. Amer. Math. Soc.
    1986; a Gaussian reaches 0.40), so no error hides better in one direction than in another; and its tails are below a
    Gaussian's of the same variance. 15 bits are finer than any tolerance of V2.
    """
    return part_directions(coin, part, part + 1, size, count, device, memory)[0]


def part_directions(
    coin: bytes, first: int, last: int, size: int, count: int, device: str = "cpu", memory: Memory = NOTHING
) -> torch.Tensor:
    """z of the parts first ... last - 1, [last - first, count, size] int16."""
    drawn = memory(_drawn, coin, count, device)
    with drawn.lock:
        if (first, last, size) not in drawn.z:
            draw = _draw_for_gpu if device.startswith("cuda") else _draw
            z = draw(coin, range(first, last), count * size, device).view(last - first, count, size)
            drawn.z[first, last, size] = z
            for part in range(first, last):  # asked for one by one when parts are verified
                drawn.z.setdefault((part, part + 1, size), z[part - first : part - first + 1])
        return drawn.z[first, last, size]


BLOCK = 2**24
"""Numbers that are drawn at once of several directions: a thousand have 500 times the bytes of what they are for."""


def direction_blocks(
    coin: bytes, first: int, last: int, size: int, count: int, device: str = "cpu", memory: Memory = NOTHING
) -> Iterator[torch.Tensor]:
    """`part_directions` in pieces [last - first, some of `count`, size]; more than one piece are not remembered."""
    some = max(1, BLOCK // max(1, (last - first) * size))
    if some >= count:
        yield part_directions(coin, first, last, size, count, device, memory)
        return
    drawn = [_pieces(coin, part, size, count, some) for part in range(first, last)]
    for rows in zip(*drawn, strict=True):
        yield torch.stack(rows).to(device)


def _pieces(coin: bytes, part: int, size: int, count: int, some: int) -> Iterator[torch.Tensor]:
    """[some, size] at a time of what `_draw` draws of a part: its cipher goes on where it was."""
    cipher = uniform_cipher("direction", coin, part)
    for start in range(0, count, some):
        drawn = cipher.update(bytes(2 * size * min(some, count - start)))
        yield torch.from_numpy(np.frombuffer(drawn, "<i2").astype(np.int16) | 1).view(-1, size)


def _draw(coin: bytes, parts: range, size: int, device: str) -> torch.Tensor:
    """[parts, size]."""
    rows = [torch.from_numpy(uniform(size, "direction", coin, part)) for part in parts]
    return (torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)).to(device)


def _draw_for_gpu(coin: bytes, parts: range, size: int, device: str) -> torch.Tensor:
    """The same through memory that torch keeps pinned: touching new pages would take three times as long as drawing."""
    drawn = torch.empty(len(parts), size + SPARE, dtype=torch.int16, pin_memory=True)
    for part, row in zip(parts, drawn, strict=True):
        draw_uniform(row.numpy(), size, "direction", coin, part)
    return drawn.to(device, non_blocking=True)[:, :size].contiguous().bitwise_or_(1)
