"""Tensors as float16 with a common scale: what `wire: float16` sends and commits to instead of float32.

A body [p + 1] stands for p values: its first entry is an exponent k, the others are the values times 2^k, rounded to
float16. The largest one lies in [2^14, 2^15), so nothing overflows whatever a gradient's size, and what is 2^-28 of the
largest entry or more keeps 11 bits. Each tuple of values has one body alone, and the way back is exact: who passes on
what it has read sends the same bytes, under the same hash.
"""

from __future__ import annotations

import math

import torch

FINEST = 100
"""The largest k: every value is then a normal float32, so that nothing gets lost on the way back."""
NOTHING = 2.0**-125
"""Up to it, values are as good as zero: with the largest k they round to it."""
QUANTUM = 2.0**-124
"""The smallest value that there is, with the largest k: how much rounding can change an entry, however small it is."""
COARSEST = -113
"""The least k: beyond it values would leave the range of float32."""
ROUNDING = 2.0**-11
"""How far a rounded value can be from what it was, relative to it; far below the largest entry, to that one."""

_BITS = 11
_LEAST, _BEYOND = 0x7400, 0x7800
"""2^14 and 2^15 as the bits of a float16; without their sign, float16 are in the order of their bits."""


def to_half(values: torch.Tensor) -> torch.Tensor:
    """The body [p + 1] float16 of `values` [p] float32, p > 0; one that is not sound if they are not all finite."""
    largest = float(values.abs().max())
    k = 0  # of nothing but zeros, too
    if NOTHING < largest < math.inf:
        fraction, exponent = math.frexp(largest)
        k = min(FINEST, 15 - exponent - (round(fraction * 2**_BITS) == 2**_BITS))  # as it is once it is rounded
    body = torch.empty(len(values) + 1, dtype=torch.float16, device=values.device)
    body[0] = k
    body[1:] = values * 2.0**k
    return body


def from_half(body: torch.Tensor) -> torch.Tensor:
    """The values [p] float32 of a sound `body`."""
    return body[1:].float().mul_(2.0 ** -float(body[0]))


def values_of(body: torch.Tensor) -> torch.Tensor:
    """The values [p] of a body that was found to be sound, in whichever form it came."""
    return from_half(body) if body.dtype is torch.float16 else body


def is_sound(body: torch.Tensor) -> bool:
    """Whether `body` [p + 1] is what `to_half` makes of finite values; one read of it."""
    k = float(body[0])
    if not (k.is_integer() and COARSEST <= k <= FINEST):
        return False
    if k == 0 and math.copysign(1.0, k) < 0:  # -0.0, a second form of 0
        return False
    largest = int(body[1:].view(torch.int16).bitwise_and(0x7FFF).max())
    if largest == 0:
        return k == 0
    return largest < _BEYOND and (largest >= _LEAST or k == FINEST)
