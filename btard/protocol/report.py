"""Section 3, phase 5: from the coin follow the directions z[j]; every worker reports norm_i[j] and s_i[j]."""

from __future__ import annotations

import math
from collections.abc import Generator
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
def _drawn(coin: bytes, count: int, device: str) -> dict[tuple[int, int], torch.Tensor]:
    """What was drawn from this coin so far: (part, size) -> z. Of two steps, the present one and the one on trial."""
    return {}


def directions(coin: bytes, part: int, size: int, count: int, device: str = "cpu") -> torch.Tensor:
    """z[j] [count, size] float32, unit Gaussian entries, the same for everybody who knows the coin.

    Drawn on the CPU whatever the device, so that all peers get the same bits; remembered, being a pure function.
    """
    drawn = _drawn(coin, count, device)
    if (part, size) not in drawn:
        normal = stream("direction", coin, part).standard_normal((count, size), dtype=np.float32)
        drawn[part, size] = torch.from_numpy(normal).to(device)
    return drawn[part, size]


def scalars(part: torch.Tensor, value: torch.Tensor, z: torch.Tensor, tau: float) -> tuple[float, tuple[float, ...]]:
    """norm = ||g - a|| and s = <z, (g - a) min(1, tau/norm)> per direction, of one part [p].

    The difference is rounded once per entry, which is exact enough: what matters is its size relative to itself.
    Falls back to float64 where float32 overflows (a hostile part of 1e30 is still a number). Cost: 3 reads of p.
    """
    difference = part - value
    norm = float(torch.linalg.vector_norm(difference))
    products = [float(torch.dot(row, difference)) for row in z]
    if not (math.isfinite(norm) and all(map(math.isfinite, products))):
        difference = part.double() - value.double()
        norm = float(torch.linalg.vector_norm(difference))
        products = [float(torch.dot(row.double(), difference)) for row in z]
    scale = 1.0 if norm <= tau else tau / norm
    return norm, tuple(scale * product for product in products)


def part_scalars(peer: Peer, record: StepRecord, body: torch.Tensor, part: int) -> tuple[float, tuple[float, ...]]:
    """`scalars` of a worker's part `body` against the step's aggregate of that part."""
    value = record.aggregates[part]
    z = directions(record.coin, part, record.cut.size(part), peer.config.directions, str(value.device))
    return scalars(body, value, z, peer.config.tau)


def gradient_report(peer: Peer, record: StepRecord, sender: int, gradient: torch.Tensor) -> Report:
    """What worker `sender` has to report about `record`'s step if its gradient was `gradient` [d]."""
    norms, products, missing = [], [], []
    for part in range(record.cut.k):
        norm, product = 0.0, (0.0,) * peer.config.directions
        if part in record.announced and sender in record.announced[part].senders:
            if part in record.aggregates:
                norm, product = part_scalars(peer, record, record.cut.view(gradient, part), part)
            else:
                missing.append(part)
        norms.append(norm)
        products.append(product)
    return Report(tuple(norms), tuple(products), tuple(missing))


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
        ):
            peer.expel(record, sender, "malformed_report")
        else:
            record.reports[sender] = message
