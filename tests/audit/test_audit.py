"""The audit of a ledger: every kind of ban is replayed, and whoever changed anything in the folder is found out."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from btard.aggregation import centered_clip
from btard.attacks import make_attack
from btard.attacks.own import Noise
from btard.audit import AuditError, audit, replay
from btard.audit.__main__ import main
from btard.audit.attestation import Attestation
from btard.audit.files import write_json
from btard.audit.numerics import numeric_platform
from btard.audit.proof import Proof
from btard.audit.recorder import Recorder
from btard.audit.report import RECOMPUTED, REPLAYED, UNCONFIRMED, VOTES
from btard.audit.settings import read_settings, write_settings
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.protocol import verify, wire
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.hashing import stream
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.limits import Limits
from btard.protocol.messages import EXCUSED, GUILTY, Claim, Claims, CoinCommit, Packet, Report, Signed
from btard.task import QuadraticTask
from tests.audit.runs import START, D, attackers, lines_of, record, sign, write_lines
from tests.protocol.test_promises import dodging

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


class OtherHardware(QuadraticTask):
    """Computes nearly the same."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        out.mul_(1 + 1e-4)


def test_other_hardware_can_judge_distances_and_no_hashes(tmp_path: Path) -> None:
    for validation in ("tolerant", "exact"):
        record(tmp_path / validation, **attackers("noise"), steps=8, validation=validation)
    findings = audit(tmp_path / "tolerant", OtherHardware(D)).findings
    assert {finding.checked for finding in findings} == {UNCONFIRMED}
    refused(tmp_path / "exact", "give nobody's committed gradient", OtherHardware(D))


def on_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this machine is another one than that which recorded."""
    monkeypatch.setattr(replay, "numeric_platform", lambda: "torch 9, abacus")


def test_an_audit_on_another_platform_refuses_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, **attackers("noise"), steps=8)
    here = audit(tmp_path, QuadraticTask(D))
    on_another_platform(monkeypatch)
    assert audit(tmp_path, QuadraticTask(D)) == here, "where the bits are equal there, they say as much as here"
    report = audit(tmp_path, OtherHardware(D))
    assert [finding.entry for finding in report.findings] == [finding.entry for finding in here.findings]
    expected = f"not certain here: recorded on {numeric_platform()}; this is torch 9, abacus"
    assert all(finding.checked.startswith(expected) for finding in report.findings)


@pytest.mark.parametrize("attack", ["misreport", "wrong_aggregate"])
def test_an_audit_on_another_platform_refuses_no_aggregate(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The misreports put all parts on trial, and judges have found them right to the bit."""
    record(tmp_path, **attackers(attack))
    here = audit(tmp_path)

    def other_bits(*arguments: Any, **settings: Any) -> Any:
        result = centered_clip(*arguments, **settings)
        return replace(result, value=torch.nextafter(result.value, torch.tensor(torch.inf)))

    monkeypatch.setattr(verify, "centered_clip", other_bits)
    if attack == "misreport":
        refused(tmp_path, "the majority voted otherwise")
    on_another_platform(monkeypatch)
    report = audit(tmp_path)
    assert report.findings == here.findings and report.summary == here.summary
    assert all("not certain here" in note for note in report.notes)
    assert bool(report.notes) == (attack == "misreport")


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


# What somebody may do to a folder afterwards.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with bans in at least three steps, by evidence, by broadcasts and by a gradient."""
    folder = tmp_path_factory.mktemp("audit") / "run"
    folder.mkdir()
    members = frozenset({1, 2, 3})
    collusion = Collusion(members, 9)
    names = {1: ("misreport", 2), 2: ("wrong_reveal", 5), 3: ("sign_flip", 1)}
    behaviours: dict[int, Behaviour] = {
        i: make_attack(name, collusion, start=start) for i, (name, start) in names.items()
    }
    record(folder, behaviours, collusion=collusion, peers=9, steps=24, run_id="tampered")
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    assert len({json.loads(line)["step"] for line in lines}) == len(lines) == 3
    audit(folder, QuadraticTask(D))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(folder: Path, reason: str, task: QuadraticTask | None = None) -> None:
    with pytest.raises(AuditError, match=reason):
        audit(folder, task)


def proof_of(folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """The proof of the step in which somebody was banned for `kind`: its file and content."""
    step = next(entry.step for entry in map(Entry.from_json, lines_of(folder)) if entry.kind == kind)
    file = folder / "evidence" / f"step-{step:08d}.json"
    return file, json.loads(file.read_text().splitlines()[1])


def test_no_byte_of_the_ledger_can_be_changed(run: Path) -> None:
    raw = (run / "ledger.jsonl").read_bytes()
    for position in range(0, len(raw), 41):
        changed = bytearray(raw)
        changed[position] ^= 1
        (run / "ledger.jsonl").write_bytes(changed)
        refused(run, r"^ledger\.jsonl")
    (run / "ledger.jsonl").write_bytes(raw[:-1])
    refused(run, "cut short")
    (run / "ledger.jsonl").unlink()
    refused(run, r"ledger\.jsonl: missing")


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_no_line_can_be_left_out(run: Path, missing: int, chained: bool) -> None:
    lines = lines_of(run)
    del lines[missing]
    write_lines(run, lines, chained=chained)
    refused(run, "ledger.jsonl: no line about step" if chained or missing == 2 else rf"line {missing + 1}: its head")


def test_the_end_cannot_be_cut_off_with_all_its_traces(run: Path) -> None:
    file, _ = proof_of(run, Entry.from_json(lines_of(run)[-1]).kind)
    for trace in (run / "evidence").iterdir():
        if trace.name >= file.name[:13]:
            trace.unlink()
    write_lines(run, lines_of(run)[:-1], chained=False)
    refused(run, "lines are missing at the end")


@pytest.mark.parametrize("chained", [False, True])
def test_lines_cannot_change_places(run: Path, chained: bool) -> None:
    first, second, third = lines_of(run)
    write_lines(run, [second, first, third], chained=chained)
    refused(run, "after step" if chained else "line 1: its head")


@pytest.mark.parametrize(
    "change",
    [
        {"peers": (0,), "accused": 0},
        {"verdict": "false", "kind": "false_accusation", "peers": (4,)},
        {"votes": {"0": "guilty"}},
        {"evidence": "00" * 32},
        {"accusers": (0,)},
        {"part": 0},
        {"step": 1},
    ],
    ids=str,
)
def test_a_forged_line_contradicts_the_signed_votes(run: Path, change: dict[str, Any]) -> None:
    lines = lines_of(run)
    index = next(i for i, line in enumerate(lines) if Entry.from_json(line).kind == "misreport")
    lines[index] = structs.replace(Entry.from_json(lines[index]), **change).to_json()
    write_lines(run, lines, chained=True)
    refused(run, "ledger.jsonl")


@pytest.mark.parametrize("kind", ["misreport", "wrong_reveal", "wrong_gradient"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_proof_can_be_neither_missing_nor_changed(run: Path, kind: str, suffix: str) -> None:
    file = proof_of(run, kind)[0].with_suffix(suffix)
    if not file.exists():
        assert (kind, suffix) == ("wrong_reveal", ".safetensors")
        return
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    refused(run, rf"{file.name}: its content does not match its digest .*ledger.jsonl line")
    file.unlink()
    refused(run, rf"{file.name}: missing .*ledger.jsonl line")


def test_only_members_can_record(run: Path) -> None:
    file, content = proof_of(run, "wrong_gradient")
    write_json(file, {**content, "by": 4 if content["by"] == 0 else 0})
    refused(run, f"{file.name}: not as an active peer has recorded and signed it")
    banned = next(entry.accused for entry in map(Entry.from_json, lines_of(run)) if entry.step < content["now"]["step"])
    sign(file, content, by=banned)
    refused(run, f"{file.name}: not as an active peer has recorded and signed it")
    sign(file, content, by=4)
    audit(run)


def forge_signature(content: dict[str, Any]) -> None:
    said = content["now"]["messages"]["report"]
    said["1"][0][1] = said["2"][0][1]


def forge_vote(content: dict[str, Any]) -> None:
    message = content["now"]["messages"]["vote/0"]["0"][0]
    message[0] = base64.b64encode(wire.pack(("false",))).decode()


def drop_votes(content: dict[str, Any]) -> None:
    said = content["now"]["messages"]["vote/0"]
    content["now"]["messages"]["vote/0"] = {sender: said[sender] for sender in list(said)[:2]}


def drop_step_before(content: dict[str, Any]) -> None:
    content["before"] = None


def swap_steps(content: dict[str, Any]) -> None:
    content["now"], content["before"] = content["before"], content["now"]


def change_coin(content: dict[str, Any]) -> None:
    content["now"]["previous_coin"] = base64.b64encode(bytes(32)).decode()


def change_validators(content: dict[str, Any]) -> None:
    content["now"]["assignments"] = {}


def change_peers(content: dict[str, Any]) -> None:
    content["now"]["active"] = content["now"]["active"][:4]


def change_radius(content: dict[str, Any]) -> None:
    content["now"]["tau"] = 2.0


def few_signatures(content: dict[str, Any]) -> None:
    said = content["now"]["messages"]
    content["now"]["messages"] = {
        phase: {sender: messages[sender] for sender in messages if int(sender) < 4} for phase, messages in said.items()
    }


def drop_evidence(content: dict[str, Any]) -> None:
    content["shown"] = []


FORGERIES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (forge_signature, r"step-\d+.json: the signature of peer 1 in 'report' does not hold"),
    (forge_vote, r"the signature of peer 0 in 'vote/0' does not hold"),
    (drop_votes, r"ledger.jsonl line \d: says"),
    (drop_step_before, "nothing about step"),
    (swap_steps, "starts from another step"),
    (change_coin, "only 0 of 9 active peers signed"),
    (change_validators, "only 0 of 9 active peers signed"),
    (change_peers, "starts from another step, other peers"),
    (change_radius, r"step-\d+.json: clips at 2, protocol.json at 1.0"),
    (few_signatures, "only 4 of 9 active peers signed"),
    (drop_evidence, "guilty; by the evidence .* is excused"),
]


@pytest.mark.parametrize(("forge", "reason"), FORGERIES, ids=[forge.__name__ for forge, _ in FORGERIES])
def test_a_forged_proof_is_refused(run: Path, forge: Callable[[dict[str, Any]], None], reason: str) -> None:
    file, content = proof_of(run, "misreport")
    assert content["now"]["active"] == list(range(9)), "the first ban of this run"
    forge(content)
    sign(file, content)
    refused(run, reason)


def test_evidence_has_to_be_what_was_committed_to(run: Path) -> None:
    file, content = proof_of(run, "misreport")
    proof = Proof.read(file.parent, content["now"]["step"], D)
    for packets in proof.shown[0].values():
        for packet in packets:
            assert isinstance(packet.body, torch.Tensor)
            packet.body.add_(1)
    proof.write(file.parent, 0, Identity.from_seed("tampered", 0))
    refused(run, "guilty; by the evidence .* is excused")


def test_aggregates_have_to_be_those_announced(run: Path) -> None:
    file, content = proof_of(run, "misreport")
    proof = Proof.read(file.parent, content["now"]["step"], D)
    for value in proof.aggregates.values():
        value += 1
    proof.write(file.parent, 0, Identity.from_seed("tampered", 0))
    refused(run, r"step-\d+.json: its aggregate of part \d of step \d is not the one that was announced")


def test_settings_keys_and_the_end_are_signed(run: Path) -> None:
    settings = json.loads((run / "protocol.json").read_text().splitlines()[1])
    for change in ({"max_absences": 5}, {"byzantine": 0}):  # with another b other removals would be enough
        write_json(run / "protocol.json", {**settings, "config": {**settings["config"], **change}})
        refused(run, "only 0 of 9 active peers signed")
    write_json(run / "protocol.json", {**settings, "d": D + 1})
    refused(run, "is not the one that was announced")
    write_json(run / "protocol.json", settings)
    attested = Attestation.read(run)
    for change in ({"step": 3}, {"head": b"x" * 32}, {"params": b"x" * 32}):
        replace(attested, **change).write(run)  # type: ignore[arg-type]
        refused(run, "attestation.json: the signature of peer 0")
    replace(attested, signatures=dict(list(attested.signatures.items())[:3])).write(run)
    refused(run, "signed by 3 of 6 active peers; it takes a majority")
    keys = json.loads((run / "roster.json").read_text().splitlines()[1])["keys"]
    write_json(run / "roster.json", {"keys": [keys[1], *keys[1:]]})
    refused(run, "the signature of peer 0 in .* does not hold")


class Cooks(Behaviour):
    """Lies about all projections once, so that every part is put on trial."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step == 2

    def report(self, ctx: Context, report: Report) -> Report:
        return structs.replace(report, products=tuple((product + 1.0,) for (product,) in report.products))


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
def test_an_audit_on_any_number_of_threads_comes_to_the_bits_of_the_run(threads: int, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        record(tmp_path, {2: Cooks()}, peers=9, steps=4, d=8 * 2049, tau=10.0)
        torch.set_num_threads(threads)
        assert len(audit(tmp_path).findings) == 1
    finally:
        torch.set_num_threads(before)


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


def test_hostile_files_are_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values of other types and sizes anywhere, with digests that fit: an error with its reason, or no harm."""
    rng = stream("hostile files")
    worst = [None, -1, 2**70, 1e308, "x" * 100, "\ud800", [], [[[]]], {}, {"a": 1}, True, "00"]

    def places(value: Any) -> list[tuple[Any, Any]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]

    for file in sorted([*run.glob("*.json"), *(run / "evidence").glob("*.json")]):
        original = file.read_bytes()
        for _ in range(12):
            content = json.loads(original.split(b"\n")[1])
            everywhere = places(content)
            parent, key = everywhere[int(rng.integers(len(everywhere)))]
            parent[key] = worst[int(rng.integers(len(worst)))]
            (sign if "signature" in content else write_json)(file, content)
            capsys.readouterr()
            if main([str(run)]) == 1:
                error = capsys.readouterr().err
                assert error.startswith("refused: ") and error.count("\n") == 1
        for junk in (b"", b"\n", b"x\n{}\n", b"[" * 10**5, b"\xff" * 100):
            file.write_bytes(junk)
            assert main([str(run)]) == 1
        file.unlink()
        file.mkdir()
        assert main([str(run)]) == 1
        file.rmdir()
        file.write_bytes(original)


def test_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    *bans, summary = capsys.readouterr().out.splitlines()
    assert len(bans) == 3 and all(line.startswith("step ") for line in bans)
    assert "3 ledger lines of 3 steps are in order" in summary
    for words, reason in (([str(run / "none")], "protocol.json: missing"), ([str(run), "--task", "nope:x"], "nope")):
        assert main(words) == 1
        assert reason in capsys.readouterr().err


def test_no_other_module_is_imported_because_a_run_folder_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads((run / "protocol.json").read_text().splitlines()[1])
    assert content["task"] == ""
    for name in ("evil:task_of", "resnet.audit:os", "resnet.audit:task_of:evil", " resnet.audit:task_of"):
        write_json(run / "protocol.json", {**content, "task": name})
        assert main([str(run)]) == 0
        said = capsys.readouterr()
        assert "cannot be made here" in said.err and said.err.count("\n") == 1 and "votes only" in said.out
    write_json(run / "protocol.json", {**content, "task": "resnet.audit:task_of"})
    assert main([str(run)]) == 0
    said = capsys.readouterr()
    assert "config.yaml" in said.err and "votes only" in said.out
    write_json(run / "protocol.json", {**content, "task": 3})
    assert main([str(run)]) == 1
    assert "task" in capsys.readouterr().err


NAMES = {
    "no_such_module:make": "no module no_such_module is found; go to the folder that has it",
    "no_such.module:make": "no module no_such.module is found",
    "shutil:rmtree": "does not import btard",
    "hostile_task:make": "which is no module of yours",
    "os; import this:make": "expected module:function",
    "tests.training.model:nothing": "has no attribute",
    "btard.watch.__main__:main": "makes no task of a run",
}


def test_a_name_in_a_folder_is_no_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    record(folder, **attackers("sign_flip"), steps=12)
    (folder / "hostile_task.py").write_text("import btard\nraise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(str(folder))
    config, d, roster = read_settings(folder)
    for name, said in NAMES.items():
        write_settings(folder, config, d, roster, name, numeric_platform())
        assert main([str(folder)]) == 0
        printed = capsys.readouterr()
        assert printed.err.startswith("gradients are not recomputed: the run's task cannot be made here: "), name
        assert said in printed.err and printed.err.count("\n") == 1 and "votes only" in printed.out, name
