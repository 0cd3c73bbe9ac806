"""Section 3, phase 5: from the coin follow the directions z[j]; every worker reports norm_i[j] and s_i[j]."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from btard.protocol.effects import Effect
from btard.protocol.hashing import stream
from btard.protocol.messages import Report
from btard.protocol.record import StepRecord

if TYPE_CHECKING:
    from btard.protocol.peer import Peer


@lru_cache(maxsize=2)
def _drawn(coin: bytes, count: int, device: str) -> dict[tuple[int, int, int], torch.Tensor]:
    """What was drawn from this coin so far, by parts and their size; of the present step and of the one on trial."""
    return {}


def directions(coin: bytes, part: int, size: int, count: int, device: str = "cpu") -> torch.Tensor:
    """z[j] [count, size] float32, unit Gaussian entries, the same for everybody who knows the coin.

    Drawn on the CPU whatever the device, so that all peers get the same bits; remembered, being a pure function.
    """
    return part_directions(coin, part, part + 1, size, count, device)[0]


def part_directions(coin: bytes, first: int, last: int, size: int, count: int, device: str = "cpu") -> torch.Tensor:
    """z of the parts first ... last - 1, [last - first, count, size]."""
    drawn = _drawn(coin, count, device)
    if (first, last, size) not in drawn:
        normals = [
            stream("direction", coin, part).standard_normal((count, size), dtype=np.float32)
            for part in range(first, last)
        ]
        z = torch.from_numpy(np.stack(normals)).to(device)
        drawn[first, last, size] = z
        for part in range(first, last):  # asked for one by one when parts are verified
            drawn.setdefault((part, part + 1, size), z[part - first : part - first + 1])
    return drawn[first, last, size]


Scalars = tuple[float, tuple[float, ...]]
"""norm and, per direction, s of one part."""


def scalars(part: torch.Tensor, value: torch.Tensor, z: torch.Tensor, tau: float) -> Scalars:
    """norm = ||g - a|| and s = <z, (g - a) min(1, tau/norm)> per direction, of one part [p] with z [count, p].

    The difference is rounded once per entry, which is exact enough: what matters is its size relative to itself.
    Falls back to float64 where float32 overflows (a hostile part of 1e30 is still a number).
    """
    return row_scalars(part.unsqueeze(0), value.unsqueeze(0), z.unsqueeze(0), tau)[0]


def row_scalars(x: torch.Tensor, values: torch.Tensor, z: torch.Tensor, tau: float) -> list[Scalars]:
    """`scalars` of each row of x [r, p] against the rows of `values` [r or 1, p] and z [r or 1, count, p].

    Rows in one call or one by one may differ by rounding, which V1 tolerates. Cost: 3 reads of x, in a few large calls.
    """
    difference = x - values
    norms = torch.linalg.vector_norm(difference, dim=1).tolist()
    products = torch.linalg.vecdot(z, difference.unsqueeze(1)).tolist()  # bmm takes ten times as long for such shapes
    found: list[Scalars] = []
    for row, (norm, product) in enumerate(zip(norms, products, strict=True)):
        if not (math.isfinite(norm) and all(map(math.isfinite, product))):
            wide = x[row].double() - values[row if len(values) > 1 else 0].double()
            norm = float(torch.linalg.vector_norm(wide))
            product = torch.mv(z[row if len(z) > 1 else 0].double(), wide).tolist()
        scale = 1.0 if norm <= tau else tau / norm
        found.append((norm, tuple(scale * entry for entry in product)))
    return found


def part_scalars(peer: Peer, record: StepRecord, bodies: Sequence[torch.Tensor], part: int) -> list[Scalars]:
    """The scalars of several workers' parts `bodies` against the step's aggregate of that part."""
    value = record.aggregates[part]
    z = directions(record.coin, part, record.cut.size(part), peer.config.directions, str(value.device))
    return row_scalars(torch.stack(list(bodies)), value.unsqueeze(0), z.unsqueeze(0), peer.config.tau)


def gradient_report(peer: Peer, record: StepRecord, sender: int, gradient: torch.Tensor) -> Report:
    """What worker `sender` has to report about `record`'s step if its gradient was `gradient` [d]."""
    cut, count = record.cut, peer.config.directions
    owed = {part for part, entry in record.announced.items() if sender in entry.senders}
    missing = tuple(sorted(owed - set(record.aggregates)))
    known = [
        record.aggregates[part] if part in record.aggregates else gradient.new_zeros(cut.size(part))
        for part in range(cut.k)
    ]
    found: list[Scalars] = []
    for first, last in cut.runs():
        rows, size = last - first, cut.size(first)
        start = cut.bounds(first)[0]
        x = gradient[start : start + rows * size].reshape(rows, size)
        values = torch.cat(known[first:last]).view(rows, size)
        z = part_directions(record.coin, first, last, size, count, str(x.device))
        found += row_scalars(x, values, z, peer.config.tau)
    silent: Scalars = (0.0, (0.0,) * count)
    said = [found[part] if part in owed and part in record.aggregates else silent for part in range(cut.k)]
    return Report(tuple(norm for norm, _ in said), tuple(products for _, products in said), missing)


def report(peer: Peer, record: StepRecord, gradient: torch.Tensor | None) -> Generator[Effect, Any, None]:
    """Broadcast my norms and products; keep everybody's."""
    payload = None
    if peer.id in record.workers and gradient is not None:
        honest = gradient_report(peer, record, peer.id, gradient)
        payload = peer.behaviour_at(record.step).report(peer.context(record), honest)
    reports = yield from peer.broadcast(record, "report", Report, payload, expected=record.workers)
    for sender, message in reports.items():
        k, count = record.cut.k, peer.config.directions
        if (
            len(message.norms) != k
            or len(message.products) != k
            or any(len(row) != count for row in message.products)
            or any(norm < 0 for norm in message.norms)
            # Only who lacked an aggregate before the coin, and owes an accusation for it, need not report on it.
            or not set(message.missing) <= set(record.missing.get(sender, ()))
        ):
            peer.expel(record, sender, "malformed_report")
        else:
            record.reports[sender] = message
