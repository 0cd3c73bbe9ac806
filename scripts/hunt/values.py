"""What the operations of a gene turn a value into that holds no others: numbers, bytes, words, tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch

from btard.protocol.config import ProtocolSettings
from btard.protocol.messages import (
    CLAIM_KINDS,
    EXCUSED,
    FALSE_CLAIM,
    GUILTY,
    NOBODY,
    PROBATION_KINDS,
    TOLERANT_KINDS,
    VERDICTS,
    Claim,
)
from scripts.hunt.moment import Moment, Path

TOLERANCES = tuple(field.name for field in dataclasses.fields(ProtocolSettings) if field.name.endswith("tol"))
WORDS = tuple(sorted(CLAIM_KINDS | TOLERANT_KINDS | PROBATION_KINDS | VERDICTS))


def _factor(at: Moment) -> float:
    """A change just inside or outside one of the tolerances."""
    config = at.ctx.config
    names = [name for name in TOLERANCES if config is not None and getattr(config, name) is not None]
    tolerance = float(getattr(config, str(at.rng.choice(names))))
    near = 0.9 if at.gene.how == "inside" else 1.1
    return near * tolerance * float(at.rng.choice([1, 2, 4, 6, 10, 12, 20, 60]))


def altered_number(value: float, at: Moment, path: Path) -> float:
    how, sign = at.gene.how, 1.0 if at.rng.random() < 0.5 else -1.0
    if how == "balance":
        lead = min((i for i in at.room.members if i in at.ctx.record.workers), default=at.me)
        return -math.fsum(x for x in at.honest(path) if math.isfinite(x)) if at.me == lead else 0.0
    changed = {
        "zero": lambda: 0.0,
        "negative": lambda: -value,
        "nan": lambda: math.nan,
        "inf": lambda: sign * math.inf,
        "huge": lambda: sign * float(at.rng.choice([1e20, 1e30, 3e38, 1e300])),
        "denormal": lambda: sign * float(at.rng.choice([5e-324, 1e-45, 1e-39])),
        "ulp": lambda: math.nextafter(value, sign * math.inf),
        "inside": lambda: value * (1 + sign * _factor(at)),
        "outside": lambda: value * (1 + sign * _factor(at)),
        "scaled": lambda: value * at.gene.size,
    }.get(how)
    return value if changed is None else changed()


def altered_count(value: int, at: Moment) -> int:
    changed = {
        "zero": 0,
        "plus": value + 1,
        "minus": value - 1,
        "huge": int(at.rng.choice([255, 2**31 - 1, 2**40])),
        "nobody": NOBODY,
        "random": int(at.rng.integers(0, len(at.ctx.active) + 1)),
    }
    return changed.get(at.gene.how, value)


def altered_bytes(value: bytes, at: Moment) -> bytes:
    if at.gene.how == "zero":
        return bytes(len(value))
    if at.gene.how == "short":
        return value[: len(value) // 2]
    if at.gene.how == "flip" and value:
        return bytes([value[0] ^ 1]) + value[1:]
    return value


def altered_word(value: str, at: Moment) -> str:
    claim = at.args.get("claim")
    against = isinstance(claim, Claim) and claim.accused not in at.room.members
    return {
        "word": str(at.rng.choice(WORDS)),
        "favour": GUILTY if against else FALSE_CLAIM,
        "convict": GUILTY,
        "acquit": FALSE_CLAIM,
        "abstain": EXCUSED,
    }.get(at.gene.how, value)


def altered_tensor(value: torch.Tensor, at: Moment) -> torch.Tensor | bytes:
    how, size = at.gene.how, at.gene.size
    rows, colluders = at.rows(), max(1, len(at.room.members & set(at.ctx.active)))
    fits = bool(rows) and all(row.shape == value.shape for row in rows)
    entry = int(at.rng.integers(value.numel())) if value.numel() else 0
    noise = torch.from_numpy(at.rng.standard_normal(value.numel()).astype(np.float32)).view(value.shape)
    if how == "balance" and fits:
        return -size * torch.stack(rows).sum(0) / colluders
    if how == "mean" and fits:
        return torch.stack(rows).mean(0) * size
    if how == "average" and fits:  # as near to the others as the average one, in a direction of its own
        return torch.stack(rows).mean(0) + size * noise * torch.stack(rows).std(0, correction=0)
    if how == "near" and fits:  # the distances between such rows are below rounding errors
        kept = rows[at.gene.pick % len(rows)].clone().view(-1)
        few = torch.from_numpy(at.rng.integers(0, max(1, kept.numel()), min(3, kept.numel())))
        kept[few] = torch.nextafter(kept[few], torch.tensor(math.inf))
        return kept.view(value.shape)
    if how in ("inside", "outside"):
        length = float(noise.norm()) or 1.0
        return value + noise * (_factor(at) * float(value.norm()) / length)
    if how == "ulp":
        there = torch.full_like(value, math.inf)
        moved = torch.nextafter(value, there)
        if at.rng.random() < 0.5:
            return moved
        kept = value.clone()
        kept.view(-1)[entry] = moved.view(-1)[entry]
        return kept
    if how == "one_entry":
        kept = value.clone()
        kept.view(-1)[entry] = size
        return kept
    if how == "denormals":
        kept = value.clone().view(-1)
        zeros = (kept == 0).nonzero().view(-1)[: int(at.rng.integers(1, 4))]
        kept[zeros] = float(at.rng.choice([1.4e-45, 2.8e-45, 4.2e-45, 1e-40]))
        return kept.view(value.shape)
    changed: dict[str, Callable[[], torch.Tensor | bytes]] = {
        "zero": lambda: torch.zeros_like(value),
        "negative": lambda: -size * value,
        "nan": lambda: torch.full_like(value, math.nan),
        "inf": lambda: torch.full_like(value, math.inf),
        "huge": lambda: torch.full_like(value, size),
        "denormal": lambda: torch.full_like(value, 1.4e-45),
        "scaled": lambda: value * size,
        "noise": lambda: value + size * noise,
        "shape": lambda: value[:-1],
        "vast": lambda: value.new_empty((0, 2**31 - 1, 2**31 - 1)),
        "dtype": lambda: value.double(),
        "bytes": lambda: bytes(value.numel()),
    }
    return changed[how]() if how in changed else value
