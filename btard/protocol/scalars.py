"""What a worker reports about its part of an aggregate: norms and products, how they are measured and remembered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from btard.aggregation import stack_rows
from btard.aggregation.gram import block_squares
from btard.aggregation.scratch import scratch
from btard.protocol.directions import directions, part_directions
from btard.protocol.hashing import UNIFORM_SCALE
from btard.protocol.memory import remembered
from btard.protocol.messages import Report
from btard.protocol.packets import rows
from btard.protocol.record import Settled, StepRecord
from btard.protocol.seat import Court, Seat


class Scalars(NamedTuple):
    """What a worker reports about its part g of one aggregate a."""

    norm: float
    """||g - a||."""
    products: tuple[float, ...]
    """<z, (g - a) min(1, tau/norm)> per direction."""
    size: float
    """||g||."""


BLOCK = 2**20
"""Entries of x that are worked on at once: few enough for the last-level cache, and so many that threads of one process
hardly ever wait for their turn in the interpreter."""
BLOCK_CUDA = 2**26
"""The same on a GPU, where each operation should be large."""


def _block(x: torch.Tensor) -> int:
    return BLOCK_CUDA if x.is_cuda else BLOCK


def scalars(part: torch.Tensor, value: torch.Tensor, z: torch.Tensor, tau: float) -> Scalars:
    """The scalars of one part [p] against `value` [p], with z [count, p].

    The difference is rounded once per entry, which is exact enough: what matters is its size relative to itself.
    """
    return row_scalars(part.unsqueeze(0), value.unsqueeze(0), z.unsqueeze(0), tau)[0]


def row_scalars(x: torch.Tensor, values: torch.Tensor, z: torch.Tensor, tau: float) -> list[Scalars]:
    """`scalars` of each row of x [r, p] against the rows of `values` [r or 1, p] and z [r or 1, count, p].

    Rows in one call or one by one may differ by rounding, which V1 tolerates. Float32 squares leave its range where a
    hostile part of 1e30 is still a number, and where all that a layer has are denormals: such rows are done again in
    float64. Cost: one read of x, `values` and z.
    """
    sizes, norms, products = _measured(x, values, z)
    equal = (norms == 0) & (products == 0).all(1)
    safe = (equal | ((norms > SMALL) & (norms < math.inf))) & (sizes < math.inf) & np.isfinite(products).all(1)
    for row in np.flatnonzero(~safe):
        mine = slice(row, row + 1)
        value, direction = (rows[mine] if len(rows) > 1 else rows for rows in (values, z))
        sizes[mine], norms[mine], products[mine] = _measured(x[mine].double(), value.double(), direction)
    clipped = norms > tau
    with np.errstate(invalid="ignore"):  # of my own part: whoever sends infinities reports nonsense
        products[clipped] *= (tau / norms[clipped])[:, None]
    return [
        Scalars(norm, tuple(row), size)
        for norm, row, size in zip(norms.tolist(), products.tolist(), sizes.tolist(), strict=True)
    ]


SMALL = 1e-12
"""Above it norms in float32 are exact to rounding: the part of the squares that underflows is below 2^-126 an entry."""


def _measured(x: torch.Tensor, values: torch.Tensor, z: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Norms [r] of the rows of x and of x - values, and products [r, count] of the latter with z.

    All are float64, and summed up in it.
    """
    rows, size = x.shape
    width = max(1, min(size, _block(x) // rows))
    found = []
    for part, value, direction in zip(x.split(width, 1), values.split(width, 1), z.split(width, 2), strict=True):
        gap, term = (scratch(use, part.shape, x.dtype, x.device) for use in ("differences", "terms"))
        weight = scratch("directions", (len(z), part.shape[1]), x.dtype, x.device)
        torch.sub(part, value, out=gap)
        # In float32 torch adds up long norms and products of matrices one by one; short norms, and sums, it does well.
        products = [torch.mul(gap, weight.copy_(one), out=term).sum(1) for one in direction.unbind(1)]
        found.append(torch.stack([block_squares(part), block_squares(gap), *(one.double() for one in products)]))
    summed = torch.stack(found).sum(0) if len(found) > 1 else found[0]
    summed[:2].sqrt_()
    measured = summed.cpu().numpy()  # one wait for a GPU
    return measured[0], measured[1], UNIFORM_SCALE * measured[2:].T


@remembered(2)
def _measured_by_worker(coin: bytes) -> dict[tuple[bytes, bytes], Scalars]:
    """Commitments to a part and to its aggregate -> the scalars that an honest worker of this process has computed."""
    return {}


def received_scalars(seat: Seat, record: StepRecord, part: int) -> dict[int, Scalars]:
    """Sender -> the scalars of what this peer received for `part`, whose aggregate it holds.

    Commitments stand for bytes: what a worker of the same process has measured need not be measured again.
    """
    packets, aggregate = record.received[part], record.announced[part].digest
    measured = seat.memory(_measured_by_worker, record.coin)
    keys = {sender: (record.commits[sender].digests[part], aggregate) for sender in packets}
    found = {sender: measured[key] for sender, key in keys.items() if key in measured}
    rest = {sender: packet for sender, packet in packets.items() if sender not in found}
    if rest:
        scalars = part_scalars(seat, record, record.aggregates[part], rows(rest), part)
        found |= dict(zip(sorted(rest), scalars, strict=True))
    return found


def part_scalars(
    seat: Court, record: Settled, value: torch.Tensor, bodies: Sequence[torch.Tensor], part: int
) -> list[Scalars]:
    """The scalars of several workers' parts `bodies` against `value`, the step's aggregate of that part."""
    z = directions(record.coin, part, record.cut.size(part), seat.config.directions, str(value.device), seat.memory)
    return row_scalars(stack_rows(bodies), value.unsqueeze(0), z.unsqueeze(0), record.tau)


class Truth(NamedTuple):
    """What work is compared with: it is not evidence, but every peer that was present computes the same."""

    gradient: torch.Tensor
    """The honest gradient [d], as the validator or judge has computed it."""
    aggregates: Mapping[int, torch.Tensor]
    """Part -> a[j] of the step, as it was announced: before the reports every honest member had those that count."""


def gradient_report(
    seat: Court, record: Settled, aggregates: Mapping[int, torch.Tensor], sender: int, gradient: torch.Tensor
) -> Report:
    """What worker `sender` must report about `record`'s step if its gradient was `gradient` [d].

    `aggregates`: part -> a[j] as it was announced, those that are there.
    """
    cut, count = record.cut, seat.config.directions
    owed = {part for part, entry in record.announced.items() if sender in entry.senders}
    missing = tuple(sorted(owed - set(aggregates)))
    nothing = gradient.new_zeros(cut.size(0))
    known = [aggregates.get(part, nothing[: cut.size(part)]) for part in range(cut.k)]
    found: list[Scalars] = []
    for first, last in cut.runs():
        # Small parts all in one go; with large ones that would cost a copy of all aggregates.
        size = cut.size(first)
        together = max(1, _block(gradient) // size)
        for start in range(first, last, together):
            stop = min(start + together, last)
            x = gradient[cut.bounds(start)[0] : cut.bounds(stop - 1)[1]].view(stop - start, size)
            values = stack_rows(known[start:stop])
            z = part_directions(record.coin, start, stop, size, count, str(x.device), seat.memory)
            found += row_scalars(x, values, z, record.tau)
    silent = Scalars(0.0, (0.0,) * count, 0.0)
    said = [found[part] if part in owed and part in aggregates else silent for part in range(cut.k)]
    return Report(tuple(s.norm for s in said), tuple(s.products for s in said), missing, tuple(s.size for s in said))


def remember(seat: Seat, record: StepRecord, honest: Report) -> None:
    """Note what this peer reports of the parts that it has committed to."""
    measured = seat.memory(_measured_by_worker, record.coin)
    for part, entry in record.announced.items():
        if seat.id not in entry.senders or part not in record.aggregates:
            continue
        key = record.commits[seat.id].digests[part], entry.digest
        measured[key] = Scalars(honest.norms[part], honest.products[part], honest.sizes[part])
