"""The audit of a ledger: every kind of ban is replayed, and liars among the voters are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from btard.attacks import make_attack
from btard.attacks.own import Noise
from btard.audit import AuditError, audit
from btard.audit.proof import Proof
from btard.audit.recorder import Recorder
from btard.audit.report import RECOMPUTED, REPLAYED, UNSHOWN, VOTES
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.protocol import wire
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.limits import Limits
from btard.protocol.messages import EXCUSED, GUILTY, Claim, Claims, CoinCommit, Report
from btard.protocol.peer import Peer
from btard.protocol.signed import Packet, Signed
from btard.task import QuadraticTask
from tests.audit.runs import START, D, attackers, lines_of, record, sign, write_lines
from tests.audit.tampering import proof_of, refused
from tests.protocol.promises import dodging

RUNS: list[tuple[str, dict[str, Any], set[str], dict[str, Any]]] = [
    ("sign_flip", {}, {"wrong_gradient"}, {"steps": 20}),
    ("misreport", {}, {"misreport"}, {}),
    ("wrong_aggregate", {"scale": 0.1}, {"wrong_aggregate"}, {}),
    ("colluding_aggregate", {"scale": 2.0}, {"wrong_gradient", "wrong_aggregate"}, {"steps": 20}),
    ("bad_part", {"send": "garbage"}, {"bad_part"}, {}),
    ("bad_part", {"send": "short", "recipients": "one"}, {"bad_part"}, {}),
    ("non_finite", {}, {"bad_part"}, {}),
    ("bad_aggregate", {}, {"bad_aggregate"}, {}),
    ("withheld_part", {}, {"withheld_part"}, {}),
    ("withheld_aggregate", {}, {"withheld_aggregate"}, {}),
    ("silent", {"phase": "coin_commit"}, {"silent"}, {}),
    ("silent", {"phase": "coin_reveal"}, {"silent"}, {}),
    ("silent", {"phase": "part"}, {"silent"}, {}),
    ("silent", {"phase": "commit"}, {"gone"}, {"steps": 12}),
    ("wrong_reveal", {}, {"wrong_reveal"}, {}),
    ("false_accusation", {"kind": "wrong_gradient"}, {"false_accusation"}, {}),
    ("false_accusation", {"kind": "misreport"}, {"false_accusation"}, {}),
    ("false_accusation", {"kind": "wrong_aggregate"}, {"malformed_claims"}, {}),
]


@pytest.mark.parametrize(("attack", "options", "kinds", "more"), RUNS)
def test_every_kind_of_ban_is_audited(
    attack: str, options: dict[str, Any], kinds: set[str], more: dict[str, Any], tmp_path: Path
) -> None:
    record(tmp_path, **attackers(attack, **options), **more)
    bare, full = audit(tmp_path), audit(tmp_path, QuadraticTask(D))
    assert {finding.entry.kind for finding in full.findings} == kinds
    assert all(finding.checked != VOTES for finding in full.findings)
    for one, other in zip(bare.findings, full.findings, strict=True):
        assert one.checked == (VOTES if other.checked == RECOMPUTED else other.checked)
    assert "attested by" in full.summary


@pytest.mark.parametrize("shows", [True, False])
def test_a_conviction_of_an_owner_that_was_away_is_audited(shows: bool, tmp_path: Path) -> None:
    collusion = Collusion(frozenset({1, 2, 3}), 8)
    record(tmp_path, {i: dodging(collusion, shows=shows) for i in (1, 2, 3)}, collusion=collusion, steps=25)
    bare, full = audit(tmp_path), audit(tmp_path, QuadraticTask(D))
    away = [i for i, finding in enumerate(full.findings) if finding.entry.kind == "wrong_aggregate"]
    assert away and all(full.findings[i].checked == REPLAYED for i in away)
    assert {bare.findings[i].checked for i in away} == {REPLAYED if shows else VOTES}, "gradient or rows"


class Covers(Behaviour):
    """Peer 6 misreports on the part of peer 5, which accuses it of that, and shows the evidence to peer 0 alone."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def tries(self, ctx: Context) -> bool:
        return ctx.step >= START and {5, 6} <= set(ctx.record.workers)

    def report(self, ctx: Context, report: Report) -> Report:
        if ctx.peer != 6 or not self.tries(ctx):
            return report
        part = ctx.record.owners.index(5)
        return structs.replace(report, norms=tuple(x * (1 + 1e-3 * (i == part)) for i, x in enumerate(report.norms)))

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        if ctx.peer != 5 or not self.tries(ctx):
            return ()
        return (Claim(ctx.step, 6, "misreport", ctx.record.owners.index(5)),)

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Any]) -> Mapping[int, Any]:
        if not phase.startswith(("evidence", "pass")):
            return packets
        return {to: sent for to, sent in packets.items() if to == 0 and phase.startswith("evidence")}

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return EXCUSED


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_evidence_that_only_the_recorder_was_shown_contradicts_nobody(
    validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = Recorder.finished

    def of_one(self: Recorder, peers: Sequence[Peer], *more: Any) -> None:
        finished(self, [peer for peer in peers if peer.id == 0], *more)

    monkeypatch.setattr(Recorder, "finished", of_one)
    record(tmp_path, {5: Covers(), 6: Covers()}, peers=7, validation=validation)
    [finding] = audit(tmp_path, QuadraticTask(D)).findings
    assert finding.entry.peers == (5,) and finding.checked == UNSHOWN


class TwoFaced(Behaviour):
    """Tells peer 0 something else than the others."""

    byzantine = True

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def active(self, step: int) -> bool:
        return step >= START

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        return message, {0: sign(CoinCommit(b"x" * 32))} if phase.startswith(self.phase) else {}


class Garbled(TwoFaced):
    """Says something that is no message of the phase."""

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        return sign(CoinCommit(b"x" * 32)) if phase.startswith(self.phase) else message, {}


@pytest.mark.parametrize("phase", ["commit", "announce", "report", "accuse", "vote"])
@pytest.mark.parametrize("behaviour", [TwoFaced, Garbled])
def test_what_broadcasts_show_is_audited(behaviour: type[TwoFaced], phase: str, tmp_path: Path) -> None:
    members = attackers("misreport", count=1)["behaviours"]  # so that there is something to vote on
    record(tmp_path, {**members, 3: behaviour(phase)}, steps=6, relays=2)
    word = "equivocation" if behaviour is TwoFaced else f"malformed_{phase}"
    assert (3, word) in {(f.entry.accused, f.entry.kind) for f in audit(tmp_path).findings}


def test_lossy_links_and_slow_peers_leave_proofs_too(tmp_path: Path) -> None:
    run = attackers("misreport", peers=9)
    links = Links(loss=0.1, repeats=2, slow=0.25, seed=3)
    record(tmp_path, **run, steps=7, relays=2, max_absences=2, links=links)
    kinds = {finding.entry.kind for finding in audit(tmp_path, QuadraticTask(D)).findings}
    assert {"misreport", "gone"} <= kinds


@pytest.mark.parametrize(
    ("behaviour", "kinds"),
    [
        (HONEST, ["join", "member"]),
        (make_attack("sign_flip", Collusion(frozenset(range(16)), 16)), ["join", "wrong_gradient"]),
        (make_attack("silent", Collusion(frozenset(range(16)), 16), phase="commit"), ["join", "gone"]),
    ],
    ids=["honest", "sign_flip", "absent"],
)
def test_newcomers_are_audited(behaviour: Behaviour, kinds: list[str], tmp_path: Path) -> None:
    def enter(driver: LocalDriver, step: int) -> None:
        if step == 1:
            driver.join(Identity.from_seed("newcomer"), behaviour)

    driver = record(tmp_path, {}, peers=5, steps=12, probation=3, between=enter)
    assert len(driver.peers) == 5 + (behaviour is HONEST)
    report = audit(tmp_path, QuadraticTask(D))
    assert [finding.entry.kind for finding in report.findings] == kinds
    line, *_ = lines = lines_of(tmp_path)
    key = Entry.from_json(line).evidence
    write_lines(tmp_path, [line.replace(key, Identity.from_seed("another").public_key.hex()), *lines[1:]], chained=True)
    refused(tmp_path, "ledger")


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_strangers_fill_no_disk(validation: str, tmp_path: Path) -> None:
    """Proofs have tensors for as many convicted newcomers as there were peers at the start; of later ones the votes."""
    peers, junk = 4, make_attack("sign_flip", Collusion(frozenset(range(32)), 32))

    def between(driver: LocalDriver, step: int) -> None:
        driver.join(Identity.from_seed("stranger", step), junk)
        if step == 7:
            driver.peers[2].behaviour = make_attack("sign_flip", Collusion(frozenset({2}), peers), scale=1.0)

    driver = record(
        tmp_path, {}, peers=peers, steps=14, byzantine=1, probation=3, between=between, validation=validation
    )
    convicted = [entry for entry in driver.peers[0].ledger.entries if entry.kind == "wrong_gradient"]
    [member] = [entry.step for entry in convicted if entry.accused == 2]
    strangers = [entry.step for entry in convicted if entry.accused != 2]
    kept = {*strangers[:peers], member}
    assert len(strangers) > peers + 2
    for entry in convicted:
        proof = Proof.read(tmp_path / "evidence", entry.step, D)
        assert (proof.params is not None) == (entry.step in kept)
        assert bool(proof.shown) == (entry.step in kept and validation == "tolerant")
        assert bool(proof.aggregates) == (entry.step == member), "newcomers have reported on no aggregate"
    found = {f.entry.step: f.checked for f in audit(tmp_path, QuadraticTask(D)).findings if f.entry in convicted}
    assert found == {step: RECOMPUTED if step in kept else VOTES for step in found}
    assert found.keys() == {entry.step for entry in convicted}


def test_checks_that_were_late_are_audited(tmp_path: Path) -> None:
    """Somebody joins in every step, so that there is a proof of each: in none did a late validator clear anybody."""
    late: set[tuple[int, int]] = set()

    class LateChecks(Links):
        def late(self, step: int, peer: int) -> bool:
            return (step, peer) in late

    def between(driver: LocalDriver, step: int) -> None:
        driver.join(Identity.from_seed("newcomer", step))
        if step < 5:
            late.update((step, i) for i, target in driver.peers[0].assignments.items() if target >= 5)

    driver = record(tmp_path, {}, peers=5, steps=8, probation=1, between=between, links=LateChecks())
    members = [entry.step for entry in driver.peers[0].ledger.entries if entry.kind == "member"]
    assert len(late) > 2 and members and min(members) >= 5
    assert {"join", "member"} == {finding.entry.kind for finding in audit(tmp_path, QuadraticTask(D)).findings}


@pytest.mark.parametrize("attack", ["sign_flip", "noise", "misreport"])
def test_tolerant_validation_is_audited(attack: str, tmp_path: Path) -> None:
    record(tmp_path, **attackers(attack), steps=16, validation="tolerant")
    for task in (None, QuadraticTask(D)):
        assert audit(tmp_path, task).findings


class Flood(Behaviour):
    """In one step, accuses everybody of all that it can: more claims than three peers have cause for."""

    byzantine = True

    def __init__(self) -> None:
        self.when = -1
        self.said: tuple[Claim, ...] = ()

    def active(self, step: int) -> bool:
        return step == self.when

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        now, last = ctx.record, ctx.last
        assert last is not None
        out = {Claim(last.step, i, "wrong_gradient") for i in last.workers}
        out |= {Claim(step.step, step.owner(j), "wrong_aggregate", j) for step in (now, last) for j in step.announced}
        out |= {Claim(now.step, now.owner(j), "bad_aggregate", j) for j in now.announced}
        mine = [j for j, owner in enumerate(now.owners) if owner == ctx.peer]
        out |= {Claim(now.step, i, kind, j) for i in now.workers for j in mine for kind in ("misreport", "bad_part")}
        self.said = self.said or tuple(sorted(claim for claim in out if claim.accused != ctx.peer))
        return self.said


def test_more_newcomers_than_first_peers_are_audited(tmp_path: Path) -> None:
    """Recorder and auditor read messages of the size that the grown roster allows, as the peers do."""
    flood, joining = Flood(), 8

    def between(driver: LocalDriver, step: int) -> None:
        if step == 0:
            for i in range(joining):
                driver.join(Identity.from_seed("joining", i))
        peer = driver.peers.get(1)
        if flood.when < 0 and peer is not None and len(peer.active) == 3 + joining and 1 not in peer.assignments:
            flood.when = step

    record(tmp_path, {1: flood}, peers=3, steps=30, between=between, probation=1, max_newcomers=3)
    assert len(wire.encode(Claims(flood.said))) > Limits(3, 1).payload(Claims)
    assert any(finding.entry.peers == (1,) for finding in audit(tmp_path, QuadraticTask(D)).findings)


@pytest.mark.parametrize(
    ("attack", "options"),
    [("sign_flip", {}), ("misreport", {}), ("colluding_aggregate", {"scale": 2.0})],
)
def test_a_radius_that_follows_the_steps_is_audited(attack: str, options: dict[str, Any], tmp_path: Path) -> None:
    record(tmp_path, **attackers(attack, **options), steps=20, tau="auto")
    for task in (None, QuadraticTask(D)):
        assert audit(tmp_path, task).findings
    for part in ("now", "before"):
        step = Entry.from_json(lines_of(tmp_path)[0]).step
        file = tmp_path / "evidence" / f"step-{step:08d}.json"
        original = file.read_bytes()
        content = json.loads(original.splitlines()[1])
        assert content["now"]["tau"] != content["before"]["tau"], "or else the test shows nothing"
        content[part]["tau"] *= 1.5
        sign(file, content, "audit")
        refused(tmp_path, "only 0 of 8 active peers signed")
        content[part]["tau"] = float("nan")
        sign(file, content, "audit")
        refused(tmp_path, r"Expected `float` > 0.0 - at `\$.tau`")
        file.write_bytes(original)


class Withholding(Noise):
    """Commits to noise, and shows it neither to its validator nor to the judges."""

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        return {} if phase.startswith(("disclose", "evidence")) else packets


def test_gradients_that_only_the_owners_show_are_recorded(tmp_path: Path) -> None:
    members = frozenset({2, 3, 7})
    record(tmp_path, {i: Withholding(collusion=Collusion(members, 8)) for i in members}, steps=8, validation="tolerant")
    for task, checked in ((None, VOTES), (QuadraticTask(D), RECOMPUTED)):
        findings = audit(tmp_path, task).findings
        assert {(finding.entry.kind, finding.checked) for finding in findings} == {("undisclosed", checked)}


class NeverChecked(Noise):
    """Commits to noise, and misses the roll call of every step in which it is a target."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        checked = ctx.peer in ctx.assignments.values() and ctx.peer not in ctx.assignments
        return None if checked else message, {}


def test_what_owners_show_of_a_target_that_is_away_is_recorded(tmp_path: Path) -> None:
    members = frozenset({2, 3, 7})
    record(
        tmp_path, {i: NeverChecked(collusion=Collusion(members, 8)) for i in members}, steps=20, validation="tolerant"
    )
    for task, checked in ((None, VOTES), (QuadraticTask(D), RECOMPUTED)):
        findings = audit(tmp_path, task).findings
        assert {(finding.entry.kind, finding.checked) for finding in findings} == {("wrong_gradient", checked)}


def test_a_resumed_run_is_audited_as_the_same_run(tmp_path: Path) -> None:
    """Interrupted after every step, with somebody absent, to be sealed, or on trial for the step before.

    Its signatures are others, since every life signs for itself.
    """
    members = frozenset({1, 2, 3})
    config = ProtocolConfig(peers=9, byzantine=3, run_id="audit")

    def driver_for(folder: Path) -> LocalDriver:
        collusion = Collusion(members, 9)
        behaviours: dict[int, Behaviour] = {
            1: make_attack("silent", collusion, phase="commit"),
            2: make_attack("sign_flip", collusion),
            3: make_attack("misreport", collusion, start=6),
        }
        recorder = Recorder(folder, config)
        return LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion, recorder=recorder)

    reports, ledgers, epochs = [], [], []
    for name, interrupted in (("a", False), ("b", True)):
        driver, params, ledger, lines = driver_for(tmp_path / name), torch.ones(D), Ledger(), []
        for _ in range(12):
            result = driver.step(params)
            params = params - 0.1 * result.gradient
            lines += [ledger.append(entry) + "\n" for entry in result.removed]
            if interrupted:
                state, tensors = driver.state()
                driver = driver_for(tmp_path / name)
                driver.restore(json.loads(json.dumps(state)), tensors, life=b"resumed")
        (tmp_path / name / "ledger.jsonl").write_text("".join(lines))
        driver.attest(params)
        reports.append(audit(tmp_path / name, QuadraticTask(D)))
        ledgers.append(lines)
        steps = sorted((tmp_path / name / "evidence").glob("step-????????.json"))
        epochs.append([json.loads(file.read_text().splitlines()[1])["now"]["epoch"] for file in steps])
    assert ledgers[0] == ledgers[1] and len(ledgers[0]) == 3
    assert reports[0] == reports[1]
    assert len(set(epochs[0])) == 1 and len(set(epochs[1])) == len(epochs[1]) > 2


class Selective(Behaviour):
    """Shows no evidence to peer 0."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        return {who: sent for who, sent in packets.items() if who != 0 or not phase.startswith(("evidence", "pass"))}


class SelectiveMisreport(Selective):
    """Reports a wrong norm of the part of peer 5, and shows no evidence to peer 0."""

    def report(self, ctx: Context, report: Report) -> Report:
        norms = (norm * (1 + (owner == 5)) for norm, owner in zip(report.norms, ctx.record.owners, strict=True))
        return structs.replace(report, norms=tuple(norms))


def test_evidence_that_was_not_shown_to_all_is_recorded_as_the_majority_saw_it(tmp_path: Path) -> None:
    record(tmp_path, {1: SelectiveMisreport(), 5: Selective()}, steps=6)
    file, _ = proof_of(tmp_path, "misreport")
    [entry] = map(Entry.from_json, lines_of(tmp_path)[:1])
    assert entry.votes["0"] == EXCUSED and list(entry.votes.values()).count(GUILTY) > 4
    assert file.with_suffix(".safetensors").exists()
    audit(tmp_path)


class Liar(Behaviour):
    """Accuses peer 0 of what it did not do, and finds that it did."""

    def __init__(self, accuses: bool) -> None:
        self.accuses = accuses

    def active(self, step: int) -> bool:
        return step == START

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        owned = [part for part, owner in enumerate(ctx.record.owners) if owner == ctx.peer]
        return tuple(Claim(START, 0, "misreport", part) for part in owned) if self.accuses else claims

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return GUILTY


def test_a_majority_that_votes_against_the_evidence_is_found_out(tmp_path: Path) -> None:
    record(tmp_path, {peer: Liar(peer in (2, 3)) for peer in range(1, 8)}, steps=4)
    with pytest.raises(AuditError, match=r"'misreport' against peer 0 of part . is false"):
        audit(tmp_path)


def test_absences_are_signed(tmp_path: Path) -> None:
    """Who is gone was away in earlier steps too, of which the proof holds but the count."""
    record(tmp_path, **attackers("silent", count=1, phase="commit"), steps=8)
    file, content = proof_of(tmp_path, "gone")
    assert content["now"]["absences"]["1"] > content["before"]["absences"]["1"] > 0
    content["now"]["absences"]["2"] = content["now"]["absences"].pop("1")
    sign(file, content, "audit")
    refused(tmp_path, "only 0 of 8 active peers signed")


def test_an_unfinished_run_is_said_to_be_one(tmp_path: Path) -> None:
    attack = attackers("wrong_reveal", count=1)
    record(tmp_path, **attack, steps=START, finish=False)
    assert "nothing signed follows yet" in audit(tmp_path).summary
    record(tmp_path, **attack, steps=START + 1, finish=False)
    assert f"nothing signed follows on step {START} yet" in audit(tmp_path).summary
    for steps in (START + 2, START + 4):
        record(tmp_path, **attack, steps=steps, finish=False)
        assert "a majority has signed" in audit(tmp_path).summary
    seal = tmp_path / "evidence" / f"step-{START + 1:08d}.seal.json"
    write_lines(tmp_path, [], chained=False)
    (tmp_path / "evidence" / f"step-{START:08d}.json").unlink()
    refused(tmp_path, f"{seal.name}: starts from another step, other peers or another ledger")


def test_a_run_without_verdicts_passes(tmp_path: Path) -> None:
    record(tmp_path, {}, steps=2)
    assert "0 ledger lines" in audit(tmp_path).summary
    assert not (tmp_path / "evidence").exists()
