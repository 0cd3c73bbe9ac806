"""Checkpoints of lives for tests: by their steps, with a content that follows from these."""

from __future__ import annotations

from typing import Any

from btard.swarm.life import START, Point, said_of


def life(number: int) -> bytes:
    """The name of a life."""
    return (number + 1).to_bytes(32, "little")


def at(*steps: int, of: int = 0) -> list[Point]:
    """The checkpoints of `steps`; `of`: the life in which they were written."""
    return [(step, (2**20 * of + step).to_bytes(32, "big"), life(of)) if step else START for step in steps]


def told(*steps: int, of: int = 0) -> list[list[Any]]:
    """The same as a status tells them."""
    return said_of(at(*steps, of=of))
