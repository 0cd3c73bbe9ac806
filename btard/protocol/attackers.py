"""Which peers of a simulation attack."""

from __future__ import annotations


def draw_attackers(peers: int, byzantine: int, seed: int) -> frozenset[int]:
    """Return which peers attack: drawn from the seed among all but peer 0, which evaluates."""
    from btard.protocol.hashing import stream  # here, for settings are read without torch

    drawn = stream("byzantine peers", seed).choice(peers - 1, byzantine, replace=False)
    return frozenset(int(peer) + 1 for peer in drawn)
