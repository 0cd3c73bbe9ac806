"""BTARD as in the authors' published code: real aggregation, bans drawn at random.

That code runs no validator, accusation or vote. Each attacker draws a number in every step in which it attacks, and is
"banned" by chance. This driver does the same, so that runs compare with the authors': the protocol itself is
`btard.drivers.local`. Letters: n peers at the start, b of them Byzantine, m validators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from btard.drivers.server import ServerDriver
from btard.protocol.aggregate import clip_parts
from btard.protocol.behaviour import HONEST
from btard.protocol.hashing import stream
from btard.protocol.law import chance_to_be_drawn
from btard.protocol.ledger import Entry
from btard.task import Task

BanLaw = Literal["independent", "pairs"]

DRAWN = "drawn"
"""Kind of the ledger's entries: nobody accused or convicted anybody."""


class EmulatedDriver(ServerDriver):
    """All peers work in every step, each part is clipped at `tau`, and attackers are banned by a law.

    `bans`: `independent`, the authors', each attacker with the chance `chance_to_be_drawn` in each step in which it
    attacks; or `pairs`, `validators` of the active peers each check one other peer, as in the protocol's draw, and an
    honest one bans an attacker. Validators compute gradients as well, so that checking costs nothing.

    `replace_banned`: an honest peer takes the place of a banned one from the next step on, as in the authors' code;
    otherwise the cohort, and with it the batch, shrinks as in the protocol.
    """

    def __init__(
        self,
        run_id: str,
        peers: int,
        tau: float,
        task: Task,
        *,
        bans: BanLaw = "independent",
        replace_banned: bool = True,
        validators: int = 1,
        **options: Any,
    ) -> None:
        if bans not in ("independent", "pairs"):
            raise ValueError(f"bans must be independent or pairs, got {bans!r}")
        super().__init__(run_id, peers, lambda x: clip_parts(x, tau), task, **options)
        self.bans, self.replace_banned, self.validators = bans, replace_banned, validators
        self.byzantine = sum(behaviour.byzantine for behaviour in self.behaviours.values())
        self.replaced: list[int] = []

    def _ban(self, step: int, attacking: Sequence[int]) -> tuple[Entry, ...]:
        drawn = stream("emulated bans", self.run_id, step)
        if self.bans == "independent":
            # A number for every peer, so that who attacks does not change what the others draw.
            numbers = drawn.random(self.n)
            caught = [i for i in attacking if numbers[i] < chance_to_be_drawn(self.n, self.byzantine)]
        else:
            order = [self.active[place] for place in drawn.permutation(len(self.active))]
            count = min(self.validators, (len(order) - 1) // 2)
            pairs = zip(order[:count], order[count : 2 * count], strict=True)
            honest = [target for judge, target in pairs if not self.behaviours.get(judge, HONEST).byzantine]
            caught = sorted(set(honest) & set(attacking))
        for peer in caught:
            self._remove(peer)
        return tuple(Entry(step, DRAWN, "public", peer, (), (peer,), step) for peer in caught)

    def _remove(self, peer: int) -> None:
        if self.replace_banned:
            self.replaced.append(peer)
            del self.behaviours[peer]
        else:
            self.active = tuple(other for other in self.active if other != peer)

    def state(self) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
        """What a checkpoint needs to resume to the same bits: JSON values, and tensors."""
        values, tensors = super().state()
        return {**values, "active": list(self.active), "replaced": list(self.replaced)}, tensors

    def restore(
        self, state: Mapping[str, object], tensors: Mapping[str, torch.Tensor], *, life: bytes | None = None
    ) -> None:
        """Restore what `state` returned, from this run or from one that began like it without attackers."""
        super().restore(state, tensors, life=life)
        active, replaced = state["active"], state["replaced"]
        assert isinstance(active, list) and isinstance(replaced, list)
        self.active, self.replaced = tuple(active), list(replaced)
        self.behaviours = {peer: b for peer, b in self.behaviours.items() if peer not in replaced}
