"""`python -m btard.audit RUN_DIR [--task module:function]`: whether the ledger of a run says what really happened.

The auditor took no part in the run. It checks every signature, replays the steps that removed somebody with the peers'
own code, and compares the outcome with the ledger. Everything in the folder is hostile until checked.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from btard.drivers.task import Task
from btard.protocol.commit import clip_gradient, part_digests
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Purpose
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.identity import Roster
from btard.protocol.join import ADMITTED, GRADUATED
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.messages import EXCUSED, FALSE_CLAIM, GUILTY, Claim
from btard.protocol.observer import Observer
from btard.protocol.proof import (
    ATTESTATION,
    EVIDENCE,
    GRADIENT_KINDS,
    PROTOCOL,
    Attestation,
    Proof,
    Section,
    proof_file,
    raised_claims,
    read_bounded,
    read_json,
    read_settings,
    seal_file,
)
from btard.protocol.record import StepRecord
from btard.protocol.wire import Malformed

LEDGER = "ledger.jsonl"
SUMMARY = "summary.json"
"""Marks a run as finished."""
MAX_LEDGER = 2**26
"""Bytes of a ledger that are read."""

MESSAGES = "replayed from the signed messages"
SIGNATURES = "replayed; that nothing was said rests on the majority, which signed what followed"
REPLAYED = "replayed from evidence"
RECOMPUTED = "gradient computed again"
UNCONFIRMED = "gradient computed again, at parameters that no commitment confirms to the bit on this machine"
VOTES = "votes only: recomputation needs --task"


class AuditError(Exception):
    """The run folder does not hold what an honest majority has signed; one line: which file, where, and why."""


@dataclass(frozen=True)
class Line:
    """A line of ledger.jsonl."""

    number: int
    """From 1."""
    entry: Entry
    head: bytes
    """The chain's head after it."""


@dataclass(frozen=True)
class Finding:
    """One ledger entry that stood the audit."""

    entry: Entry
    checked: str

    def __str__(self) -> str:
        entry = self.entry
        accusers = f" accused by {', '.join(map(str, entry.accusers))};" if entry.accusers else ""
        agreeing = sum(vote == entry.verdict for vote in entry.votes.values())
        votes = f" votes {agreeing} for, {len(entry.votes) - agreeing} against;" if entry.votes else ""
        peers = entry.peers or (entry.accused,)  # nobody is removed where somebody joins
        who = f"peer{'s' if len(peers) > 1 else ''} {', '.join(map(str, peers))}"
        return f"step {entry.step}: {who}: {entry.kind};{accusers}{votes} {self.checked}"


@dataclass(frozen=True)
class Report:
    """What the audit found in order."""

    findings: tuple[Finding, ...]
    summary: str


def audit(folder: Path, task: Task | None = None) -> Report:
    """Check the run in `folder`; with `task` also recompute the gradients that verdicts are about.

    Errors: AuditError names the first thing that is not in order.
    """
    folder = Path(folder)
    if not (folder / PROTOCOL).exists():
        raise AuditError(f"{PROTOCOL}: missing; a run folder of the protocol (aggregator btard) is expected")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a config that was good enough for the run
            config, d, roster = read_settings(folder)
    except Malformed as error:
        raise AuditError(str(error)) from None
    if task is not None and task.d != d:
        raise AuditError(f"protocol.json: the run has {d} parameters, the task {task.d}")
    return _Auditor(folder, config, d, roster, read_ledger(folder / LEDGER), task).run()


def read_ledger(file: Path) -> list[Line]:
    """The lines of a ledger; AuditError where one does not follow from the line before."""
    try:
        raw = read_bounded(file, MAX_LEDGER)
    except Malformed as error:
        raise AuditError(str(error)) from None
    if raw and not raw.endswith(b"\n"):
        raise AuditError(f"{file.name}: its last line is cut short")
    lines: list[Line] = []
    ledger = Ledger()
    for number, text in enumerate(raw.split(b"\n")[:-1], start=1):
        try:
            entry = Entry.from_json(text.decode())
        except ValueError as error:
            raise AuditError(f"{file.name} line {number}: {error}") from None
        if ledger.append(entry).encode() != text:
            raise AuditError(
                f"{file.name} line {number}: its head does not follow from it and the line before: "
                "a line was changed, removed or moved"
            )
        if lines and entry.step < lines[-1].entry.step:
            raise AuditError(f"{file.name} line {number}: step {entry.step} after step {lines[-1].entry.step}")
        lines.append(Line(number, entry, ledger.head))
    return lines


class _Auditor:
    def __init__(
        self, folder: Path, config: ProtocolConfig, d: int, roster: Roster, lines: list[Line], task: Task | None
    ) -> None:
        self.folder, self.evidence = folder, folder / EVIDENCE
        self.config, self.d, self.keys, self.lines, self.task = config, d, roster, lines, task
        self.admitted = [_admitted(line) for line in lines if line.entry.kind == ADMITTED]
        self.removed = {peer for line in lines for peer in line.entry.peers}

    def run(self) -> Report:
        steps = {step: list(of_step) for step, of_step in groupby(self.lines, key=lambda line: line.entry.step)}
        recorded = self._recorded()
        for step in sorted(recorded - set(steps)):
            raise AuditError(f"{LEDGER}: no line about step {step}, of which {proof_file(self.evidence, step).name} is")
        findings: list[Finding] = []
        for step, lines in steps.items():
            findings += self._step(step, lines)
        sealed = self._seals(max(steps, default=-1))
        return Report(tuple(findings), self._end(len(steps), sealed))

    # The state that everybody agreed on, from the ledger.

    def active(self, step: int) -> tuple[int, ...]:
        """A_t: the peers of the start and those that served their probation, without whoever was removed."""
        before = [line.entry for line in self.lines if line.entry.step < step]
        out = {peer for entry in before for peer in entry.peers}
        members = {*range(self.config.peers), *(entry.accused for entry in before if entry.kind == GRADUATED)}
        return tuple(sorted(members - out))

    def newcomers(self, step: int) -> set[int]:
        """Those on probation at the start of `step`."""
        before = [line.entry for line in self.lines if line.entry.step < step]
        gone = {peer for entry in before for peer in (*entry.peers, *([entry.accused] * (entry.kind == GRADUATED)))}
        return {entry.accused for entry in before if entry.kind == ADMITTED} - gone

    def roster(self, step: int) -> Roster:
        """The keys at the start of `step`: those of the start, and those that the ledger admitted."""
        return Roster((*self.keys.keys, *(key for admitted, key in self.admitted if admitted < step)))

    def head(self, step: int) -> bytes:
        """The ledger's head at the start of `step`."""
        return next((line.head for line in reversed(self.lines) if line.entry.step < step), b"")

    def certify(self, section: Section, step: int, file: str) -> None:
        """Errors: AuditError unless all signatures hold and more than half of A_t signed for this ledger and state."""
        active, head = self.active(step), self.head(step)
        newcomers, roster = (
            self.newcomers(step),
            self.roster(step + 1),
        )  # admitted in a step, a newcomer can speak in it
        here = section.step, section.active, section.head, set(section.probation)
        if here != (step, active, head, newcomers):
            raise AuditError(f"{file}: starts from another step, other peers or another ledger than {LEDGER} has then")
        context = section.context(self.config.run_id)
        good: set[int] = set()
        bad: list[str] = []
        for phase, said in section.messages.items():
            for sender, messages in said.items():
                for message in messages:
                    if message.authentic(context, roster):
                        good.add(sender)
                    else:
                        bad.append(f"peer {sender} in {phase[:40]!r}")
        if 2 * len(good & set(active)) <= len(active):
            signed = f"only {len(good & set(active))} of {len(active)} active peers signed"
            raise AuditError(f"{file}: {signed} this state of the ledger and the coin at step {step}")
        if bad:
            raise AuditError(f"{file}: the signature of {bad[0]} does not hold")

    def _recorded(self) -> set[int]:
        return {int(step) for file in self._files() if (step := file.name[5:-5]).isascii() and step.isdigit()}

    def _files(self) -> Iterator[Path]:
        return self.evidence.glob("step-*.json") if self.evidence.is_dir() else iter(())

    # One step.

    def _step(self, step: int, lines: Sequence[Line]) -> list[Finding]:
        file = proof_file(self.evidence, step).name
        try:
            proof = Proof.read(self.evidence, step, self.d)
        except Malformed as error:
            raise AuditError(f"{_within(file, error)} (proof of {LEDGER} line {lines[0].number})") from None
        self.certify(proof.now, step, file)
        recorded = self.roster(step).verify(proof.by, proof.signed, proof.signature)
        if not recorded or proof.by not in self.active(step):
            raise AuditError(f"{file}: not as an active peer has recorded and signed it")
        if proof.before is not None:
            self.certify(proof.before, step - 1, file)
        elif step > 0:
            raise AuditError(f"{file}: nothing about step {step - 1}")
        self._check_absences(proof, lines, file)
        recompute = None if self.task is None else _Recomputation(self.task, self.config, proof.params, self.removed)
        try:
            observer = self._replayed(proof, recompute)
        except AuditError as error:
            raise AuditError(f"{file}: {error}") from None
        except Exception as error:  # hostile records can break the replay anywhere: none of it is a proof
            raise AuditError(f"{file}: cannot be replayed ({type(error).__name__}: {error!s:.200})") from None
        self._compare(observer.ledger.entries, lines, file)
        claims = {
            claim: who
            for raised in raised_claims(self.config, observer.current).values()
            for claim, who in raised.items()
        }
        confirmed = recompute is None or recompute.confirmed
        return self._findings(observer, claims, lines, file, RECOMPUTED if confirmed else UNCONFIRMED)

    def _replayed(self, proof: Proof, recompute: _Recomputation | None) -> Observer:
        last: StepRecord | None = None
        if proof.before is not None:
            roster = self.roster(proof.before.step)
            earlier = Observer(roster, self.config, self.d, proof.before)
            last = earlier.replay(proof, judge=False)
        observer = Observer(self.roster(proof.now.step), self.config, self.d, proof.now, last)
        observer.replay(proof, recompute)
        return observer

    def _check_absences(self, proof: Proof, lines: Sequence[Line], file: str) -> None:
        """Who counts as gone did miss as many steps in a row, by what the others signed in them."""
        for line in lines:
            if line.entry.kind != "gone":
                continue
            gone, missed = line.entry.accused, proof.missed.get(line.entry.accused, [])
            steps = [section.step for section in missed]
            if (
                len(set(steps)) != self.config.max_absences - 1
                or steps != sorted(steps)
                or max(steps, default=-1) >= line.entry.step
            ):
                raise AuditError(
                    f"{file}: shows peer {gone} absent in steps {steps}, too few for {LEDGER} line {line.number}"
                )
            for section in missed:
                self.certify(section, section.step, file)
                if gone in section.messages.get("commit", {}) or gone in section.assignments:
                    raise AuditError(f"{file}: peer {gone} was not absent in step {section.step}")

    def _compare(self, entries: Sequence[Entry], lines: Sequence[Line], file: str) -> None:
        """Errors: AuditError unless the replay came to the ledger's entries."""
        for line, entry in zip(lines, entries, strict=False):
            if line.entry != entry:
                said, found = (f"{e.kind} of {list(e.peers)}, {e.verdict}" for e in (line.entry, entry))
                if said == found:
                    said, found = line.entry.to_json(), entry.to_json()
                raise AuditError(
                    f"{LEDGER} line {line.number}: says {said:.300}; the messages in {file} say {found:.300}"
                )
        if len(entries) != len(lines):
            raise AuditError(
                f"{LEDGER} line {lines[min(len(entries), len(lines) - 1)].number}: {len(lines)} lines of step "
                f"{lines[0].entry.step}, but the messages in {file} give {len(entries)}"
            )

    def _findings(
        self,
        observer: Observer,
        claims: Mapping[Claim, tuple[int, ...]],
        lines: Sequence[Line],
        file: str,
        recomputed: str,
    ) -> list[Finding]:
        """What was checked of every line. Errors: AuditError where the evidence says otherwise than the majority."""
        expelled = observer.current.expelled
        for claim, verdict in observer.verdicts.items():
            accusers = claims.get(claim, ())
            spared = claim.accused not in expelled if verdict == GUILTY else not set(accusers) <= set(expelled)
            if verdict != EXCUSED and spared and self._reliable(observer, claim, verdict):
                raise AuditError(
                    f"{file}: by the evidence the claim {_words(claim)} is {verdict}; the majority voted otherwise"
                )
        findings = []
        for line in lines:
            entry = line.entry
            if entry.verdict not in (GUILTY, FALSE_CLAIM):
                silent = entry.kind in ("silent", "gone") and entry.verdict == "public"
                findings.append(Finding(entry, SIGNATURES if silent else MESSAGES))
                continue
            about = [c for c in observer.verdicts if _is_about(entry, c, claims.get(c, ()))]
            checked = REPLAYED
            for claim in about:
                verdict = observer.verdicts[claim]
                if not self._reliable(observer, claim, verdict):
                    checked = VOTES
                elif verdict != entry.verdict:
                    raise AuditError(
                        f"{LEDGER} line {line.number}: {entry.verdict}; by the evidence in {file} the claim "
                        f"{_words(claim)} is {verdict}"
                    )
                elif claim.kind in GRADIENT_KINDS:
                    checked = recomputed
            findings.append(Finding(entry, checked))
        return findings

    def _reliable(self, observer: Observer, claim: Claim, verdict: str) -> bool:
        """Whether the replay's own verdict on `claim` counts: not where it would have needed a gradient."""
        if self.task is not None:
            return True
        uncovered = claim.kind == "wrong_aggregate" and claim.step != observer.section.step and verdict != GUILTY
        return claim.kind not in GRADIENT_KINDS and not uncovered

    # The end of the chain.

    def _seals(self, last: int) -> bool:
        """Whether a seal of a later step is bound to the ledger's last line; all seals are checked."""
        newest = -1
        for file in sorted(self._files()):
            step = file.name[5:].removesuffix(".seal.json")
            if not (file.name.endswith(".seal.json") and step.isascii() and step.isdigit()):
                continue
            try:
                section = Section.from_json(read_json(file, {"now"})["now"])
            except Malformed as error:
                raise AuditError(_within(file.name, error)) from None
            self.certify(section, int(step), seal_file(self.evidence, int(step)).name)
            newest = max(newest, int(step))
        return newest > last

    def _end(self, steps: int, sealed: bool) -> str:
        """The summary line. Errors: AuditError if the ledger does not end as the peers have attested."""
        keys = digest("roster", *self.keys.keys).hex()[:16]
        counts = f"{len(self.lines)} ledger lines of {steps} steps are in order; keys {keys}"
        if not (self.folder / ATTESTATION).exists():
            if (self.folder / SUMMARY).exists():
                raise AuditError(f"{ATTESTATION}: missing, though {SUMMARY} says that the run is finished")
            if sealed:
                return f"{counts}; the run is not finished, up to here a majority has signed its ledger"
            after = f"on step {self.lines[-1].entry.step} " if self.lines else ""
            return f"{counts}; the run is not finished, nothing signed follows {after}yet"
        try:
            attested = Attestation.read(self.folder)
        except Malformed as error:
            raise AuditError(_within(ATTESTATION, error)) from None
        active = self.active(attested.step)
        roster = self.roster(attested.step)
        said = attested.digest(self.config, roster, self.d)
        for peer, signature in attested.signatures.items():
            if not roster.verify(peer, said, signature):
                raise AuditError(
                    f"{ATTESTATION}: the signature of peer {peer} does not hold for this end, these settings and keys"
                )
        signers = set(attested.signatures) & set(active)
        end = self.lines[-1].head if self.lines else b""
        if attested.head != end:
            raise AuditError(
                f"{LEDGER}: its {len(self.lines)} lines end in head {end.hex()[:16]!r}, the peers have attested "
                f"{attested.head.hex()[:16]!r}: lines are missing at the end, or are too many"
            )
        if 2 * len(signers) <= len(active):
            raise AuditError(f"{ATTESTATION}: signed by {len(signers)} of {len(active)} active peers, no majority")
        return (
            f"{counts}; finished after step {attested.step - 1}, attested by {len(signers)} of {len(active)} active "
            f"peers; parameters {attested.params.hex()[:16]}"
        )


class _Recomputation:
    """Gradients at the stored parameters, once these have reproduced the commitment of a peer that nobody convicted.

    A gradient's last bits may depend on which others were computed with it: alone, and with the other workers of the
    step, are both tried.
    """

    def __init__(self, task: Task, config: ProtocolConfig, params: torch.Tensor | None, removed: Iterable[int]) -> None:
        self.task, self.config, self.params, self.removed = task, config, params, frozenset(removed)
        self._compute: Callable[[int], torch.Tensor] | None = None
        self.confirmed = True
        """Whether the parameters have reproduced a commitment; without that only tolerant validation goes on."""

    def __call__(self, request: Compute, record: StepRecord) -> torch.Tensor:
        if self._compute is None:
            self._compute = self._reproducing(record)
        return self._compute(request.peer)

    def _reproducing(self, record: StepRecord) -> Callable[[int], torch.Tensor]:
        """Peer -> its gradient [d] of the step, computed as it was in the run."""
        if self.params is None or self.params.numel() != self.task.d:
            raise AuditError(f"the parameters of step {record.step} are missing or of another size")
        planned = [peer for peer in (*record.active, *record.probation) if peer not in record.assignments]
        trusted = [peer for peer in record.workers if peer not in self.removed]

        def together(peer: int, others: Sequence[int]) -> torch.Tensor:
            group = sorted({*others, peer})
            return self._rows(record, group)[group.index(peer)]

        staying = [peer for peer in planned if peer not in self.removed]
        for others in ([], planned, staying):
            for witness in trusted:
                gradient = clip_gradient(together(witness, others), self.config.clip_lambda)
                digests = part_digests(self.config.run_id, witness, record.step, gradient, record.cut)
                if digests == record.commits[witness].digests:
                    return lambda peer, others=others: together(peer, others)  # type: ignore[misc]
        if self.config.validation == "tolerant":
            self.confirmed = False
            return lambda peer: together(peer, [])
        raise AuditError(
            f"the parameters of step {record.step} give nobody's committed gradient: they were altered, or this "
            "machine does not compute to the bit as the run's did"
        )

    def _rows(self, record: StepRecord, peers: Sequence[int]) -> torch.Tensor:
        """[len(peers), d]."""
        requests = [
            Compute(
                record.step,
                peer,
                batch_seed(self.config.run_id, record.step, peer, record.previous_coin),
                Purpose.JUDGE,
            )
            for peer in peers
        ]
        out = torch.empty(len(peers), self.task.d)
        if self.params is not None:
            self.task.gradients(self.params, requests, out)
        return out


def _is_about(entry: Entry, claim: Claim, accusers: tuple[int, ...]) -> bool:
    """Whether `entry` is the verdict on `claim`."""
    same = (entry.about_step, entry.accused, entry.part, entry.accusers) == (
        claim.step,
        claim.accused,
        claim.part,
        accusers,
    )
    return same and (entry.kind == claim.kind or entry.verdict == FALSE_CLAIM)


def _admitted(line: Line) -> tuple[int, bytes]:
    """(step, key) of a newcomer's admission."""
    try:
        key = bytes.fromhex(line.entry.evidence)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise AuditError(f"{LEDGER} line {line.number}: the newcomer's key is not one of 32 bytes")
    return line.entry.step, key


def _within(file: str, error: Malformed) -> str:
    """The error's line with the name of the file that it is about, unless it has one of the same step already."""
    return str(error) if str(error).startswith(file.partition(".")[0]) else f"{file}: {error}"


def _words(claim: Claim) -> str:
    part = f" of part {claim.part}" if claim.part >= 0 else ""
    return f"{claim.kind!r} against peer {claim.accused}{part}"


def load_task(name: str, folder: Path) -> Task:
    """The task that the function `name` ("module:function") makes of the run in `folder`; else ValueError."""
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--task {name}: {error}; expected module:function") from None
    task: Task = make(folder)
    return task


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m btard.audit", description="Check the ledger of a finished run.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--task", metavar="MODULE:FUNCTION", help="makes the run's task, to compute gradients again")
    options = parser.parse_args(argv)
    try:
        task = None if options.task is None else load_task(options.task, options.run_dir)
        report = audit(options.run_dir, task)
    except (AuditError, ValueError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    for finding in report.findings:
        print(finding)
    print(report.summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
