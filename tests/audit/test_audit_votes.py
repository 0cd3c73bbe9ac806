"""Where only some were shown the evidence, an audit lets the votes stand, whoever recorded the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from btard.aggregation import centered_clip
from btard.attacks import make_attack
from btard.audit import audit
from btard.audit.recorder import Recorder
from btard.audit.report import RECOMPUTED, REPLAYED, UNSEEN, UNSHOWN, Finding
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.messages import EXCUSED, Announce, Claim, Report
from btard.protocol.peer import Peer
from btard.protocol.signed import Packet
from btard.task import QuadraticTask
from tests.audit.runs import START, D, record
from tests.protocol.promises import Attacker, away_at

PEERS, SENDER, OWNER = 7, 5, 6


class Once(Attacker):
    def active(self, step: int) -> bool:
        return step == START

    def owned(self, ctx: Context) -> int:
        """The owner's part."""
        return ctx.record.planned.index(OWNER)


class BadPart(Once):
    """Sends the owner another part than it committed to."""

    def part(self, ctx: Context, part: int, value: torch.Tensor) -> torch.Tensor:
        return 2 * value if part == self.owned(ctx) else value


class Misreports(Once):
    """Reports a wrong norm of the owner's part."""

    def __init__(self) -> None:
        self.identity: Any = None

    def report(self, ctx: Context, report: Report) -> Report:
        self.identity = ctx.identity
        at = self.owned(ctx)
        return structs.replace(report, norms=tuple(x * (1.5 if i == at else 1) for i, x in enumerate(report.norms)))

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Any]) -> Mapping[int, Any]:
        return {} if phase.startswith(("evidence", "pass")) else packets

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return EXCUSED


class ShowsOne(Once):
    """Shows peer 0 alone why its true accusation is true."""

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Any]) -> Mapping[int, Any]:
        return {to: sent for to, sent in packets.items() if to == 0} if phase == "evidence/0" else packets


class ShowsTwoHalves(Once):
    """Accuses its fellow twice, both times truly, and shows each proof to another minority."""

    def __init__(self, fellow: Misreports) -> None:
        self.fellow = fellow

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(Claim(ctx.step, SENDER, kind, self.owned(ctx)) for kind in ("bad_part", "misreport"))

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Any]) -> Mapping[int, Any]:
        if not phase.startswith("evidence"):
            return {} if phase.startswith("pass") else packets
        assert ctx.commitments is not None
        part = self.owned(ctx)
        good = ctx.record.received[part][SENDER]
        body = 2 * good.body  # type: ignore[operator]
        hashed = ctx.commitments.digest("part", SENDER, ctx.step, part, body)
        bad = Packet.create(
            self.fellow.identity, "part", SENDER, ctx.step, part, body, hashed=hashed, context=ctx.record.context
        )
        return {0: (bad,), 1: (bad,), 2: (good,), 3: (good,), 4: (good,)}

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return EXCUSED


def recorded_by(monkeypatch: pytest.MonkeyPatch, who: int | None) -> None:
    """`who`: the peer that records, as each of a swarm does for itself; None: all honest ones together."""
    finished = Recorder.finished

    def of_one(self: Recorder, peers: Sequence[Peer], *more: Any) -> None:
        finished(self, [peer for peer in peers if who in (None, peer.id)], *more)

    monkeypatch.setattr(Recorder, "finished", of_one)


def audited(
    folder: Path,
    behaviours: Callable[[], dict[int, Behaviour]],
    *fits: Callable[[LocalDriver], bool],
    **settings: Any,
) -> tuple[list[Finding], list[Finding]]:
    """The findings without the task and with it, in the first run whose draws fit, one by one from step START on."""

    class Misfit(Exception):
        pass

    def between(driver: LocalDriver, step: int) -> None:
        if 0 <= step - START < len(fits) and not fits[step - START](driver):
            raise Misfit

    given = {"peers": PEERS, "byzantine": 2, **settings}
    for name in range(200):
        out = folder / str(name)
        out.mkdir(parents=True)
        try:
            record(out, behaviours(), steps=5, between=between, run_id=f"few {name}", **given)
        except Misfit:
            continue
        return audit(out).findings, audit(out, QuadraticTask(D)).findings
    raise AssertionError("no draw fits")


def neither_validates(driver: LocalDriver) -> bool:
    return not {SENDER, OWNER} & set(driver.honest[0].assignments)


@pytest.mark.parametrize("recorder", [None, 0, 1])
def test_a_proof_that_its_accuser_showed_to_one_peer_contradicts_nobody(
    recorder: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_by(monkeypatch, recorder)
    for findings in audited(tmp_path, lambda: {SENDER: BadPart(), OWNER: ShowsOne()}, neither_validates):
        assert [(f.entry.kind, f.entry.peers) for f in findings] == [("false_accusation", (OWNER,))]
        assert findings[0].checked == (UNSHOWN if recorder == 0 else REPLAYED)


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
@pytest.mark.parametrize("recorder", [None, 0, 2])
def test_two_true_accusations_shown_to_a_minority_each_spoil_no_audit(
    recorder: int | None, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_by(monkeypatch, recorder)

    def behaviours() -> dict[int, Behaviour]:
        fellow = Misreports()
        return {SENDER: fellow, OWNER: ShowsTwoHalves(fellow)}

    for findings in audited(tmp_path, behaviours, neither_validates, validation=validation):
        assert (findings[0].entry.peers, findings[0].checked) == ((OWNER,), UNSHOWN)


@pytest.mark.parametrize(
    ("attack", "options"), [("misreport", {"what": "norm"}), ("wrong_aggregate", {"scale": 1000.0})]
)
@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_who_was_away_has_recorded_what_it_was_not_shown(
    attack: str, options: dict[str, Any], validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown no evidence, and records the step all the same."""
    recorded_by(monkeypatch, 0)
    liar = lambda: make_attack(attack, Collusion(frozenset({OWNER}), PEERS), start=START, **options)  # noqa: E731
    fits = lambda driver: not {0, OWNER} & set(driver.honest[0].assignments)  # noqa: E731
    for findings in audited(tmp_path, lambda: {0: away_at(START), OWNER: liar()}, fits, validation=validation):
        assert (findings[0].entry.kind, findings[0].checked) == (attack, UNSEEN)


class Reports(Once):
    """Reports a wrong norm of the owner's part, to be convicted of it a step later."""

    def report(self, ctx: Context, report: Report) -> Report:
        at = self.owned(ctx)
        return structs.replace(report, norms=tuple(x * (1.5 if i == at else 1) for i, x in enumerate(report.norms)))


class HidesARow(Attacker):
    """Shows peer 0 nothing of the evidence a step later, and votes as all do."""

    def active(self, step: int) -> bool:
        return step in (START, START + 1)

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return ()

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Any]) -> Mapping[int, Any]:
        if not phase.startswith(("evidence", "pass")) or ctx.step == START:
            return packets
        return {to: sent for to, sent in packets.items() if to != 0}


class AccusesOnceMore(HidesARow):
    """Accuses the owner, which was right, when the reporter is convicted that had found nothing wrong with it."""

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        last = ctx.last
        if last is None or ctx.step == START or SENDER not in ctx.record.expelled:
            return ()
        return (Claim(START, OWNER, "wrong_aggregate", last.planned.index(OWNER)),)


def test_who_was_shown_a_part_of_the_evidence_has_another_verdict_and_a_folder_all_the_same(
    tmp_path: Path,
) -> None:
    """Of nine peers three lie. The recorder alone lacks a row, and finds guilty whom the others acquit."""
    third = 7

    def behaviours() -> dict[int, Behaviour]:
        return {SENDER: Reports(), OWNER: HidesARow(), third: AccusesOnceMore()}

    def all_work(driver: LocalDriver) -> bool:
        return not {0, SENDER, OWNER, third} & set(driver.honest[0].assignments)

    def checked(driver: LocalDriver) -> bool:
        pairs = driver.honest[0].assignments.items()
        return any(target == SENDER and validator not in (0, SENDER, OWNER, third) for validator, target in pairs)

    for recorder in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            recorded_by(patch, recorder)
            settings = {"peers": 9, "byzantine": 3}
            findings = audited(tmp_path / str(recorder), behaviours, all_work, checked, **settings)
        for found in findings:
            assert [f.entry.peers for f in found] == [(SENDER,)]


class LeavesOut(Once):
    """An owner that leaves an honest worker out, trades its place for that, and sends the absent peer 0 nothing."""

    def out(self, ctx: Context) -> int:
        return next(i for i in ctx.record.workers if i not in (0, SENDER, OWNER))

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        kept = [i for i, worker in enumerate(ctx.record.workers) if worker != self.out(ctx)]
        return centered_clip(rows[kept], ctx.tau).value

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient == 0 else value

    def say(self, ctx: Context, phase: str, payload: Any, message: Any, sign: Any) -> Any:
        if not isinstance(payload, Announce):
            return message, {}
        senders = tuple(worker for worker in ctx.record.workers if worker != self.out(ctx))
        return sign(Announce(tuple(structs.replace(part, senders=senders) for part in payload.parts))), {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return (Claim(ctx.step, self.out(ctx), "withheld_part", self.owned(ctx)),)


class WrongSize(Once):
    def report(self, ctx: Context, report: Report) -> Report:
        if OWNER not in ctx.record.planned:
            return report
        at = self.owned(ctx)
        return structs.replace(report, sizes=tuple(x * (1.01 if i == at else 1) for i, x in enumerate(report.sizes)))


def test_the_step_before_is_as_a_peer_saw_it_that_has_its_aggregates(tmp_path: Path) -> None:
    def behaviours() -> dict[int, Behaviour]:
        return {OWNER: LeavesOut(), SENDER: WrongSize(), 0: away_at(START)}

    def checked(driver: LocalDriver) -> bool:
        pairs = driver.honest[0].assignments.items()
        return any(target == SENDER and validator not in (SENDER, OWNER) for validator, target in pairs)

    _, findings = audited(tmp_path, behaviours, neither_validates, checked)
    convicted = [f for f in findings if f.entry.kind == "wrong_gradient"]
    assert [(f.entry.peers, f.checked) for f in convicted] == [((SENDER,), RECOMPUTED)]
