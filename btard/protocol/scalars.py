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
from btard.protocol.directions import direction_blocks
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
    """`scalars` of each row of x [..., r, p] against the rows of `values` [r or 1, p] and z [r or 1, count, p].

    Rows in one call or one by one may differ by rounding, which V1 tolerates. Float32 squares leave its range where a
    hostile part of 1e30 is still a number, and where all that a layer has are denormals: such rows are done again in
    float64. Cost: one read of x, `values` and z.
    """
    sizes, norms, products = _measured(x, values, z)
    equal = (norms == 0) & (products == 0).all(1)
    safe = (equal | ((norms > SMALL) & (norms < math.inf))) & (sizes < math.inf) & np.isfinite(products).all(1)
    for row in np.flatnonzero(~safe):
        which = tuple(map(int, np.unravel_index(row, x.shape[:-1])))
        value, direction = (rows[which[-1] % len(rows)].unsqueeze(0) for rows in (values, z))
        one = _measured(x[which].unsqueeze(0).double(), value.double(), direction)
        (sizes[row],), (norms[row],), (products[row],) = one
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
    """Norms [rows] of the rows of x and of x - values, and products [rows, count] of the latter with z.

    All are float64, and summed up in it.
    """
    *rows, size = x.shape
    width = max(1, min(size, _block(x) // math.prod(rows)))
    found = []
    for part, value, direction in zip(x.split(width, -1), values.split(width, -1), z.split(width, -1), strict=True):
        gap, term = (scratch(use, part.shape, x.dtype, x.device) for use in ("differences", "terms"))
        weight = scratch("directions", (len(z), part.shape[-1]), x.dtype, x.device)
        torch.sub(part, value, out=gap)
        # In float32 torch adds up long norms and products of matrices one by one; short norms, and sums, it does well.
        products = [torch.mul(gap, weight.copy_(one), out=term).sum(-1).double() for one in direction.unbind(1)]
        found.append(torch.stack([block_squares(part), block_squares(gap), *products]).flatten(1))
    summed = torch.stack(found).sum(0) if len(found) > 1 else found[0]
    summed[:2].sqrt_()
    measured = summed.cpu().numpy()  # one wait for a GPU
    return measured[0], measured[1], UNIFORM_SCALE * measured[2:].T


@remembered(2)
def _measured_by_worker(coin: bytes) -> dict[tuple[bytes, bytes], Scalars]:
    """Commitments to a part and to its aggregate -> the scalars that an honest worker of this process has computed."""
    return {}


@remembered(2)
def _committed(context: bytes) -> dict[int, tuple[tuple[bytes, ...], torch.Tensor]]:
    """Honest worker of this process -> its commitments in the step of this context, and its gradient [d]."""
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
    return _parts_scalars(seat, record, stack_rows(bodies), value.unsqueeze(0), part)


def _parts_scalars(seat: Court, record: Settled, x: torch.Tensor, values: torch.Tensor, first: int) -> list[Scalars]:
    """`row_scalars` of x [n, r, p], or [n, p], against the aggregates `values` [r, p] of the parts from `first` on."""
    count, size = values.shape
    z = direction_blocks(record.coin, first, first + count, size, seat.config.directions, str(x.device), seat.memory)
    first_piece, *others = (row_scalars(x, values, some, record.tau) for some in z)
    if not others:
        return first_piece
    pieces = zip(first_piece, *others, strict=True)
    return [Scalars(one.norm, tuple(p for s in (one, *more) for p in s.products), one.size) for one, *more in pieces]


class Truth(NamedTuple):
    """What work is compared with: it is not evidence, but every peer that was present computes the same."""

    gradient: torch.Tensor
    """The honest gradient [d], as the validator or judge has computed it."""
    aggregates: Mapping[int, torch.Tensor]
    """Part -> a[j] of the step, as it was announced: before the reports every honest member had those that count."""


def gradient_report(
    seat: Court,
    record: Settled,
    aggregates: Mapping[int, torch.Tensor],
    sender: int,
    gradient: torch.Tensor,
    *,
    committed: bool = False,
) -> Report:
    """What worker `sender` must report about `record`'s step if its gradient was `gradient` [d].

    `aggregates`: part -> a[j] as it was announced, those that are there. `committed`: whether the gradient is known to
    be what the sender committed to. What an honest worker of this process has measured need not be measured again.
    """
    if committed:
        keys = _keys(record, aggregates, record.commits[sender].digests)
        measured = seat.memory(_measured_by_worker, record.coin)
        if measured.keys() >= set(keys.values()):
            return _report(seat, record, aggregates, sender, {part: measured[key] for part, key in keys.items()})
    [found] = _gradient_scalars(seat, record, aggregates, gradient.unsqueeze(0))
    return _report(seat, record, aggregates, sender, dict(enumerate(found)))


def keep_own(seat: Seat, record: StepRecord) -> None:
    """Let the honest workers of this process measure what this one has committed to along with their own."""
    if record.own is not None and not seat.behaviour_at(record).byzantine:
        seat.memory(_committed, record.context)[seat.id] = record.commits[seat.id].digests, record.own


def own_report(seat: Seat, record: StepRecord, own: torch.Tensor) -> Report:
    """`gradient_report` of this honest peer, which has committed to `own` [d].

    Small gradients of all honest workers of the process are measured at once, by the first that reports.
    """
    aggregates, digests = record.aggregates, record.commits[seat.id].digests
    keys, measured = _keys(record, aggregates, digests), seat.memory(_measured_by_worker, record.coin)
    if not measured.keys() >= set(keys.values()):
        committed = seat.memory(_committed, record.context)
        together = {**committed, seat.id: (digests, own)}
        if len(together) * seat.d > _block(own):
            together = {seat.id: (digests, own)}
        rows_of = _gradient_scalars(seat, record, aggregates, stack_rows([row for _, row in together.values()]))
        for (digests, _), row in zip(together.values(), rows_of, strict=True):
            measured |= {key: row[part] for part, key in _keys(record, aggregates, digests).items()}
    return _report(seat, record, aggregates, seat.id, {part: measured[key] for part, key in keys.items()})


def _keys(
    record: Settled, aggregates: Mapping[int, torch.Tensor], digests: Sequence[bytes]
) -> dict[int, tuple[bytes, bytes]]:
    """Part -> its commitment among a worker's `digests` and that to its aggregate, for the `aggregates` there are."""
    return {part: (digests[part], entry.digest) for part, entry in record.announced.items() if part in aggregates}


def _gradient_scalars(
    seat: Court, record: Settled, aggregates: Mapping[int, torch.Tensor], x: torch.Tensor
) -> list[list[Scalars]]:
    """The scalars of all parts of each of the gradients x [n, d]; of parts without an aggregate they mean nothing."""
    cut, n = record.cut, len(x)
    nothing = x.new_zeros(cut.size(0))
    known = [aggregates.get(part, nothing[: cut.size(part)]) for part in range(cut.k)]
    found: list[list[Scalars]] = [[] for _ in range(n)]
    for first, last in cut.runs():
        # Small parts all in one go; with large ones that would cost a copy of all aggregates.
        size = cut.size(first)
        together = max(1, _block(x) // (n * size))
        for start in range(first, last, together):
            stop = min(start + together, last)
            parts = x[:, cut.bounds(start)[0] : cut.bounds(stop - 1)[1]].unflatten(1, (stop - start, size))
            values = stack_rows(known[start:stop])
            scalars = _parts_scalars(seat, record, parts, values, start)
            for index, row in enumerate(found):
                row += scalars[index * (stop - start) : (index + 1) * (stop - start)]
    return found


def _report(
    seat: Court, record: Settled, aggregates: Mapping[int, torch.Tensor], sender: int, found: Mapping[int, Scalars]
) -> Report:
    """The report of `sender`, of whose parts `found` has the scalars."""
    owed = {part for part, entry in record.announced.items() if sender in entry.senders}
    missing = tuple(sorted(owed - set(aggregates)))
    silent = Scalars(0.0, (0.0,) * seat.config.directions, 0.0)
    said = [found[part] if part in owed and part in aggregates else silent for part in range(record.cut.k)]
    return Report(tuple(s.norm for s in said), tuple(s.products for s in said), missing, tuple(s.size for s in said))
