"""When a coordinator keeps a checkpoint, and whose word it takes for it, whatever peers say of their steps."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from btard.protocol.download import Download
from btard.protocol.identity import Identity
from btard.protocol.ledger import ADMITTED, GRADUATED, Entry
from btard.swarm import keeper as module
from btard.swarm.config import SwarmConfig
from btard.swarm.fetch import Fetched
from btard.swarm.keeper import Keeper
from btard.swarm.view import SwarmView

FOUNDERS = tuple(Identity.from_seed("keeper", peer).public_key for peer in range(4))


class Optimizer:
    params = torch.zeros(3)

    def state(self) -> dict[str, torch.Tensor]:
        return {"parameters": self.params}


class Peers:
    """Those that give the state of `now` to whoever asks for that of the next step, and every other when it begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 41
        self.asked: list[int | None] = []
        self.members: list[dict[int, bytes]] = []
        self.kept: list[int] = []
        monkeypatch.setattr(module, "fetch_state", self._fetch)
        monkeypatch.setattr(module, "save_start", lambda file, step, *rest: self._keep(file, step))

    def _fetch(self, doors: Any, me: bytes, members: dict[int, bytes], *rest: Any, tolerated: int) -> Fetched:
        at = rest[-1]
        self.asked.append(at)
        self.members.append(members)
        self.now = self.now + 1 if at is None else at
        return Fetched(self.now, Download(b"{}", {"parameters": Optimizer.params}), (0, 1, 2))

    def _keep(self, file: Path, step: int) -> None:
        self.kept.append(step)
        file.write_bytes(b"")


def make(view: SwarmView, out: Path) -> Keeper:
    def submit(found: Fetched) -> Future[Fetched]:
        future: Future[Fetched] = Future()
        future.set_result(found)
        return future

    checkpoints = SimpleNamespace(path=out, files=lambda: sorted(out.glob("step-*")))
    folder: Any = SimpleNamespace(checkpoints=checkpoints, vouch=lambda step, timings: {})
    start: Any = SimpleNamespace(optimizer=Optimizer(), first=0, task=None, made_by="")
    keeper = Keeper(view.config, folder, start, view, b"", lambda line: None)
    keeper.open(SimpleNamespace(node=SimpleNamespace(submit=submit)), FOUNDERS)  # type: ignore[arg-type]
    keeper._enough = lambda: True  # type: ignore[method-assign]
    return keeper


def test_checkpoints_are_no_closer_than_the_settings_say_however_far_peers_claim_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, view = Peers(monkeypatch), SwarmView(SwarmConfig(peers=4, steps=1000, checkpoint_every=50), 0)
    view.next = 1000
    keeper = make(view, tmp_path)
    for _ in range(5):
        keeper.keep()
    assert peers.kept == [50, 100] and peers.asked == [None, 50, None, 100, None, 150]


def test_members_of_today_are_asked_and_not_the_first_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers, view = Peers(monkeypatch), SwarmView(SwarmConfig(peers=4, steps=1000), 0)
    newcomer = Identity.from_seed("keeper", "newcomer").public_key
    for entry in (
        Entry(1, "gone", "public", 2, (), (2,), 1),
        Entry(1, ADMITTED, "public", 4, (), (), 1, evidence=newcomer.hex()),
        Entry(9, GRADUATED, "public", 4, (), (), 9),
    ):
        view.ledger.append(entry)
    make(view, tmp_path).keep()
    assert peers.members[0] == {0: FOUNDERS[0], 1: FOUNDERS[1], 3: FOUNDERS[3], 4: newcomer}
