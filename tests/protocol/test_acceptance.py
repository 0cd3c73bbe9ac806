"""The acceptance matrix over many seeds: every behaviour meets its fate, and no honest peer is ever banned for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.attacks import ATTACKS, make_attack
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.limits import Limits
from btard.protocol.messages import CoinReveal, Report
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from scripts import threat_model
from tests.protocol.cohort import run_cohort
from tests.protocol.matrix import SEEDS, START, Row, observe, play
from tests.protocol.rows import ROWS


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_must_happen_happens(row: Row) -> None:
    for seed in range(SEEDS):
        observe(row, seed)


def test_every_attack_of_the_registry_has_a_row() -> None:
    rows = {row.attack for row in ROWS} | {row.companion[0] for row in ROWS if row.companion is not None}
    assert rows == set(ATTACKS)


def test_labels_are_unique() -> None:
    assert len({str(row) for row in ROWS}) == len(ROWS)


def test_the_threat_model_lists_every_row_and_every_attack() -> None:
    text = (Path(__file__).parents[2] / "docs/threat-model.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.rpartition(" | ")[0] for line in table] == [threat_model.promised(row) for row in ROWS]
    assert all(f"`{name}" in text or f" with {name}" in text for name in ATTACKS)
    results = [line.rpartition(" | ")[2].removesuffix(" |") for line in table]
    assert threat_model.renewed(text, ROWS, results, SEEDS) == text, "nothing but what was observed is renewed"


def test_the_matrix_notices_an_attacker_that_gets_away() -> None:
    """A row that promises too much fails: never_accuse is removed by nobody."""
    with pytest.raises(AssertionError, match=r"never_accuse 2 of 6, seed 3: \[.*\] got away"):
        observe(Row("", "never_accuse", attackers=2, peers=6), 3)
    with pytest.raises(AssertionError, match="removed for"):
        observe(Row("", "zero", "misreport", "later"), 0)
    with pytest.raises(AssertionError, match="honest"):
        observe(Row("", "withheld_part", "withheld_part", "later", {"recipients": "one"}), 0)


class SelectiveOwner(Behaviour):
    """Sends its aggregate to fellow attackers only; they then pass it on to a single honest peer."""

    byzantine = True

    def __init__(self, fellows: frozenset[int], favoured: int) -> None:
        self.fellows, self.favoured = fellows, favoured

    def active(self, step: int) -> bool:
        return step >= START

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if recipient in self.fellows else None

    def forward(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if recipient == self.favoured or ctx.record.owner(part) not in self.fellows else None


@pytest.mark.parametrize("favoured", [0, 5])
def test_an_aggregate_given_to_some_honest_peers_cannot_split_them(favoured: int) -> None:
    fellows = frozenset({2, 3, 6})
    run = run_cohort({i: SelectiveOwner(fellows, favoured) for i in fellows}, peers=9, steps=8)  # would raise if split
    assert fellows <= set(run.removed)
    assert len(set(run.removed) - fellows) <= len(fellows)


class Reticent(Behaviour):
    """Says that it lacks the aggregates, to report nothing about them."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= START

    def report(self, ctx: Context, report: Report) -> Report:
        return replace(report, missing=tuple(sorted(ctx.record.announced)))


def test_nobody_gets_out_of_reporting_by_a_pretext() -> None:
    run = run_cohort({i: Reticent() for i in (2, 5)}, peers=7, steps=5)
    assert set(run.removed) == {2, 5}
    assert {entry.kind for entry in run.entries} == {"malformed_report"}
    assert run.entries[0].step == START


class Insatiable(Behaviour):
    """Says a hundred times that it lacks the same aggregate; `given` counts how often it is then sent one."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step == START

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if isinstance(payload, CoinReveal):
            return sign(replace(payload, missing=(0,) * 100)), {}
        return message, {}


def test_who_lacks_an_aggregate_is_given_one_copy_by_each_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    forward = Behaviour.forward

    def count(self: Behaviour, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> Any:
        given.append(recipient)
        return forward(self, ctx, recipient, part, value)

    monkeypatch.setattr(Behaviour, "forward", count)
    run = run_cohort({3: Insatiable()}, peers=5, steps=3)
    assert set(run.removed) == {3}
    assert given.count(3) == len(given) <= 2 * 4  # before the coin, and once more after the reports


def test_claims_of_proven_liars_count_for_nothing() -> None:
    """Seven owners claim that one worker withheld parts which they themselves counted: a majority of who is left."""
    row = Row("", "false_accusation", "", options={"kind": "withheld_part"}, attackers=7, peers=16)
    run, members = play(row, seed=0)
    assert set(run.removed) == members
    assert {entry.kind for entry in run.entries} == {"contradiction"}


def test_a_peer_may_accuse_all_who_can_wrong_it() -> None:
    """Its target, every other worker as the owner of one part, and the owner of every other part; and nobody twice."""
    for peers in (2, 16, 64, 128):
        assert 1 + (peers - 1) + (peers - 1) <= Limits(peers, 1).claims <= 3 * peers


@pytest.mark.parametrize("peers", [1, 2, 3, 5, 16])
def test_honest_peers_agree_and_nobody_is_banned(peers: int) -> None:
    run = run_cohort(peers=peers, steps=8, d=50, validators=1 if peers >= 3 else 0)
    assert not run.entries and len(run.driver.peers) == peers
    assert float(run.params.norm()) < float(torch.ones(50).norm())


@pytest.mark.parametrize("tau", [0.01, 1.0, float("inf")])
@pytest.mark.parametrize("directions", [1, 3])
def test_honest_peers_survive_any_tau(tau: float, directions: int) -> None:
    run = run_cohort(peers=8, steps=6, tau=tau, directions=directions)
    assert not run.entries


class ScaledTask(QuadraticTask):
    """The same gradients, all multiplied by `scale`."""

    def __init__(self, d: int, scale: float) -> None:
        super().__init__(d)
        self.scale = scale

    def gradients(self, params: torch.Tensor, requests: Any, out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        out.mul_(self.scale)


@pytest.mark.parametrize("tau", [1e-3, 1.0, float("inf")])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-41, 1e-38, 1e-24, 1e-21, 1e-18, 1e18, 1e30, 1e37])
def test_honest_peers_survive_gradients_of_any_size(scale: float, tau: float) -> None:
    """Denormals are legal numbers, and squares that underflow or overflow are nobody's fault."""
    config = ProtocolConfig(peers=6, byzantine=2, run_id=f"scale {scale}", tau=tau)
    driver = LocalDriver(config, ScaledTask(31, scale))
    for _ in range(3):
        result = driver.step(torch.ones(31))
        assert not result.removed
        assert torch.isfinite(result.gradient).all()


def test_clipped_gradients_are_validated_like_others() -> None:
    collusion = Collusion(frozenset({2, 3}), 7)
    attackers = {i: make_attack("sign_flip", collusion, start=1) for i in (2, 3)}
    run = run_cohort(attackers, peers=7, steps=80, collusion=collusion, clip_lambda=0.5, until_banned=frozenset({2, 3}))
    assert set(run.removed) == {2, 3}
