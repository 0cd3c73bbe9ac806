"""How the parameters are cut into parts, one for each worker."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from msgspec import Struct

from btard.protocol.config import TENSORIAL, Tensorial
from btard.protocol.half import to_half, values_of
from btard.protocol.signed import is_finite


class Split(Struct, frozen=True, omit_defaults=True):
    """How d parameters are cut into k parts: sizes differ by at most one, so nothing is padded or copied.

    And in what form they travel: what is hashed, sent and shown of a part or an aggregate is its `body`.
    """

    d: int
    k: int
    halved: tuple[Tensorial, ...] = ()
    """What goes as float16 (`half.py`); all else goes as the float32 that it is."""

    def __post_init__(self) -> None:
        if self.d < self.k:
            raise ValueError(f"a model of {self.d} parameters cannot be cut into {self.k} parts, one per worker")

    def bounds(self, part: int) -> tuple[int, int]:
        size, longer = divmod(self.d, self.k)
        start = part * size + min(part, longer)
        return start, start + size + (part < longer)

    def size(self, part: int) -> int:
        size, longer = divmod(self.d, self.k)
        return size + (part < longer)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those of all parts."""
        size, longer = divmod(self.d, self.k)
        return (size + 1,) * longer + (size,) * (self.k - longer)

    def runs(self) -> list[tuple[int, int]]:
        """Ranges of neighbouring parts of equal size, at most two: they can be handled as the rows of a matrix."""
        longer = self.d % self.k
        return [(first, last) for first, last in ((0, longer), (longer, self.k)) if first < last]

    def view(self, vector: torch.Tensor, part: int) -> torch.Tensor:
        """Part `part` of `vector` [d], without a copy."""
        first, last = self.bounds(part)
        return vector[first:last]

    def views(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All parts of `vector` [d], or of the rows of a matrix [n, d], without a copy."""
        ends = accumulate(self.sizes)
        return tuple(vector[..., end - size : end] for size, end in zip(self.sizes, ends, strict=True))

    def nbytes(self, part: int, kind: str = "") -> int:
        """Bytes of a body of this kind; without it, of the larger kind."""
        halved = kind in self.halved if kind else len(self.halved) == len(TENSORIAL)
        return 2 * (self.size(part) + 1) if halved else 4 * self.size(part)

    def body(self, kind: str, values: Any) -> Any:
        """What travels for `values` [p], a part or an aggregate; for what is no such tensor, itself."""
        if kind not in self.halved:
            return values
        plain = isinstance(values, torch.Tensor) and values.dtype is torch.float32 and values.dim() == 1
        return to_half(values) if plain and len(values) else values

    def travelled(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        """`values` [p] as they arrive."""
        return values_of(self.body(kind, values))

    def committed(self, gradient: torch.Tensor) -> torch.Tensor:
        """What becomes of `gradient` [d] when its parts are committed to: everybody computes with that.

        Itself if it is not finite, which has no form to travel in.
        """
        if "part" not in self.halved or not is_finite(gradient):
            return gradient
        return torch.cat([self.travelled("part", self.view(gradient, part)) for part in range(self.k)])
