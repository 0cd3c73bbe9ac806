"""The state that a newcomer downloads, from donors that may lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.download import Download, Vouch, WrongState, agreed_digest, check_download
from btard.task import QuadraticTask
from tests.protocol.newcomers import PEERS, T_JOIN, D, cohort, key

# The state.


class LyingDonor(Behaviour):
    """Serves a state in which something is different, and says that it is the right one."""

    byzantine = True

    def __init__(self, change: Callable[[Download], Download | None]) -> None:
        self.change = change

    def active(self, step: int) -> bool:
        return True

    def serve(self, ctx: Context, download: Download) -> Download | None:
        return self.change(download)

    def vouch(self, ctx: Context, hashed: bytes) -> bytes | None:
        return bytes(32)


def other_parameters(download: Download) -> Download:
    changed = download.tensors["parameters"].clone()
    changed[7] += 1e-6
    return Download(download.state, {"parameters": changed})


FALSIFIED = {
    "parameters": other_parameters,
    "ledger": lambda download: replace(download, state=download.state.replace(b"join", b"jion")),
    "garbage": lambda download: replace(download, state=b"\xff" * 100),
    "extra": lambda download: replace(download, tensors={**download.tensors, "momentum": torch.zeros(D)}),
    "nothing": lambda download: None,
}


@pytest.mark.parametrize("what", FALSIFIED)
def test_a_falsified_state_is_refused_and_another_donor_serves(what: str) -> None:
    donors: dict[int, Behaviour] = {2: LyingDonor(FALSIFIED[what]), 4: LyingDonor(FALSIFIED[what])}
    driver = cohort(donors)
    driver.advance(2)
    newcomer = driver.enter(key("careful"), donor=4)
    driver.advance(20)
    assert newcomer.peer == PEERS and len(newcomer.refused) == 1
    assert "peer 4 served" in newcomer.refused[0]
    assert PEERS in driver.results[-1].active and not driver.removed


def test_the_optimizers_state_is_part_of_what_is_checked() -> None:
    driver = LocalDriver(ProtocolConfig(peers=PEERS, probation=T_JOIN), QuadraticTask(D))
    taken: list[Mapping[str, torch.Tensor]] = []
    driver.join(key("whole"), receive=taken.append)
    driver.step(torch.ones(D), {"momentum": torch.zeros(D)})
    driver.step(torch.full((D,), 0.5), {"momentum": torch.full((D,), 3.0)})
    [tensors] = taken
    assert float(tensors["parameters"][0]) == 0.5 and float(tensors["momentum"][0]) == 3.0


def test_only_the_signatures_of_most_members_make_a_state() -> None:
    identities = [key("member", i) for i in range(5)]
    members = {i: identity.public_key for i, identity in enumerate(identities)}
    newcomer, right, wrong = key("me").public_key, b"r" * 32, b"w" * 32

    def vouch(i: int, hashed: bytes, run: str = "run", whom: bytes = newcomer) -> Vouch:
        return Vouch.create(identities[i], run, i, whom, hashed)

    three = [vouch(i, right) for i in range(3)]
    assert agreed_digest("run", newcomer, members, [vouch(4, wrong), *three]) == right
    with pytest.raises(WrongState, match=r"more than half of the 5 members, only of 2"):
        agreed_digest("run", newcomer, members, three[:2])
    for bad in (
        replace(three[0], member=3),  # in another member's name
        replace(three[0], digest=right[:5]),
        replace(three[0], signature=bytes(64)),
        vouch(3, right, run="another run"),
        vouch(3, right, whom=key("somebody else").public_key),
        three[0],  # twice the same member
    ):
        with pytest.raises(WrongState):
            agreed_digest("run", newcomer, members, [*three[:2], bad])
    with pytest.raises(WrongState):  # who signs two states counts for neither
        agreed_digest("run", newcomer, members, [*three, vouch(2, wrong)])


def test_the_error_names_the_donor_and_both_states() -> None:
    download = Download(b"{}", {"parameters": torch.ones(3)})
    check_download(download, 3, download.digest("run"), "run")
    with pytest.raises(WrongState, match=r"peer 3 served the state [0-9a-f]{16}, but the majority .* ask another"):
        check_download(download, 3, bytes(32), "run")
    for other in (
        Download(b"{}", {"parameters": torch.ones(3).double()}),
        Download(b"{}", {"momentum": torch.ones(3)}),
        Download(b"{ }", {"parameters": torch.ones(3)}),
    ):
        assert other.digest("run") != download.digest("run")
    assert download.digest("other run") != download.digest("run")
