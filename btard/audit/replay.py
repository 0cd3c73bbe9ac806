"""The replay of the steps that put something into the ledger, and the comparison of entries and verdicts with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from btard.aggregation.threads import kernel_threads
from btard.audit.files import LEDGER, proof_file
from btard.audit.ledger import AgreedState, Line
from btard.audit.numerics import numeric_platform
from btard.audit.observer import Observer
from btard.audit.proof import Proof
from btard.audit.recomputation import Recomputation, asked
from btard.audit.report import (
    CLOSE,
    ELSEWHERE,
    MEASURED,
    MESSAGES,
    RECOMPUTED,
    REPLAYED,
    SIGNATURES,
    UNCONFIRMED,
    UNMEASURED,
    UNSEEN,
    UNSHOWN,
    VOTES,
    AuditError,
    Finding,
    NotReproduced,
    Unwitnessed,
    within,
)
from btard.audit.states import read_state
from btard.audit.strangers import keeps_gradients
from btard.protocol.claims import KINDS
from btard.protocol.effects import Losses
from btard.protocol.heal import HEALED, batch_seed, candidates, choose, measured
from btard.protocol.ledger import Entry
from btard.protocol.messages import EXCUSED, FALSE_CLAIM, GUILTY, Claim, Measured
from btard.protocol.record import StepRecord, Transcript
from btard.protocol.seat import CONVICT
from btard.protocol.wire import Malformed
from btard.task import Measurable, Task


class Replay:
    """Replays recorded steps of the run whose proofs are in `evidence`; with `task` also the gradients on trial."""

    def __init__(self, agreed: AgreedState, evidence: Path, d: int, task: Task | None) -> None:
        self.agreed, self.evidence, self.d, self.task = agreed, evidence, d, task
        self.config = agreed.config
        self.notes: list[str] = []
        """Acquittals that this machine cannot confirm to the bit."""

    def step(self, step: int, lines: Sequence[Line]) -> list[Finding]:
        """What was checked in each of the ledger's `lines` about `step`. Errors: AuditError if one does not hold."""
        file = proof_file(self.evidence, step).name
        try:
            proof = Proof.read(self.evidence, step, self.d)
        except Malformed as error:
            raise AuditError(f"{within(file, error)} (proof of {LEDGER} line {lines[0].number})") from None
        self.agreed.certify(proof.now, step, file)
        recorded = self.agreed.roster(step).verify(proof.by, proof.signed, proof.signature)
        if not recorded or proof.by not in self.agreed.active(step):
            raise AuditError(f"{file}: not as an active peer has recorded and signed it")
        if proof.before is not None:
            self.agreed.certify(proof.before, step - 1, file)
        elif step > 0:
            raise AuditError(f"{file}: nothing about step {step - 1}")
        recompute = None
        entries = (line.entry for line in self.agreed.lines)
        kept = proof.params is not None or keeps_gradients(self.config, entries, step, proof.now.standings)
        if self.task is not None and kept:
            recompute = Recomputation(self.task, self.config, proof.params, self.agreed.removed)
        here = numeric_platform()
        elsewhere = "" if here == proof.platform else ELSEWHERE.format(here=here, there=proof.platform)
        try:
            try:
                observer = self._replayed(proof, recompute)
            except NotReproduced as error:
                if isinstance(error, Unwitnessed):
                    self.notes.append(str(error))
                elif not elsewhere:
                    raise
                recompute = None
                observer = self._replayed(proof, None)
        except AuditError as error:
            raise type(error)(f"{file}: {error}") from None
        except Exception as error:  # hostile records can break the replay anywhere: none of it is a proof
            raise AuditError(f"{file}: cannot be replayed ({type(error).__name__}: {error!s:.200})") from None
        found = [entry for entry in observer.ledger.entries if entry.step == step]
        self._compare(found, lines, file)
        healed = self._healing(observer, elsewhere, file) if any(entry.kind == HEALED for entry in found) else ""
        claims = {claim: who for tried in observer.current.trials.values() for claim, who in tried.items()}
        recomputed = "" if recompute is None else RECOMPUTED if recompute.confirmed else UNCONFIRMED

        @cache  # a hostile folder can have any number of claims that are disputed
        def another(convict: float) -> Observer:
            return self._replayed(proof, recompute, convict)

        findings = self._findings(observer, claims, lines, file, recomputed, elsewhere, another, proof.by)
        return [replace(finding, checked=healed) if finding.entry.kind == HEALED else finding for finding in findings]

    def _replayed(self, proof: Proof, recompute: Recomputation | None, convict: float = CONVICT) -> Observer:
        last = None if proof.before is None else self._observer(proof.before, None).replay(proof, judge=False)
        observer = self._observer(proof.now, last)
        observer.convict = convict
        observer.replay(proof, recompute)
        for step, part in proof.aggregates:
            about = observer.record_of(step)
            if about is None or part not in about.aggregates:
                raise AuditError(f"its aggregate of part {part} of step {step} is not the one that was announced")
        return observer

    def _observer(self, transcript: Transcript, last: StepRecord | None) -> Observer:
        """An observer of the step of `transcript`, who knows what was agreed on before it."""
        step, agreed = transcript.step, self.agreed
        observer = Observer(agreed.roster(step), self.config, self.d, transcript, last, agreed.memory)
        observer.byzantine = agreed.byzantine(step)
        observer.ledger.entries = [line.entry for line in agreed.lines if line.entry.step < step]
        return observer

    def _healing(self, observer: Observer, elsewhere: str, file: str) -> str:
        """What was checked in the replayed choice of a state. Errors: AuditError if the choice was another."""
        record = observer.current
        entry = next(entry for entry in reversed(observer.ledger.entries) if entry.kind == HEALED)
        steps = (*candidates(self.config, observer.ledger.entries, record.step), record.step)
        limit = observer.limits(observer.current).message(Measured)
        said = {
            who: m[0].open(Measured, limit) for who, m in record.heard[HEALED].items() if who not in record.expelled
        }
        digests = choose(record.members, steps, said).digests
        if not isinstance(self.task, Measurable) or not digests:
            return MESSAGES
        try:
            states = [read_state(self.evidence, hashed, self.d) for hashed in digests]
        except Malformed as error:
            raise AuditError(f"{error} ({file})") from None
        if any(params is None for params in states):
            return UNMEASURED
        seed = batch_seed(self.config.run_id, record.step, record.coin)
        with kernel_threads(1), asked(record.step):
            values = [self.task.public_losses(params, seed) for params in states if params is not None]
            mine = measured(Losses(digests, torch.stack(values)))
        own = choose(record.members, steps, dict.fromkeys(record.members, mine))
        if own.step == entry.about_step:
            return MEASURED
        found = f"by the states in {self.evidence.name} the run goes on from step {own.step}, not {entry.about_step}"
        if not elsewhere and self.config.validation == "exact":
            # Members that came lately lack the states. Where too few could say what is true, liars choose among the
            # states that are clearly better: a majority is needed for one, so an honest member has found it so, too.
            told = sum(said.get(member) == mine for member in record.members)
            better = {step for step, bound in zip(steps, mine.bounds, strict=False) if bound < 0}
            if 2 * told > len(record.members) or entry.about_step not in {*better, record.step}:
                raise AuditError(f"{file}: {found}")
            self.notes.append(f"step {record.step}: {found}; {told} of {len(record.members)} members had the states")
            return MESSAGES
        self.notes.append(f"step {record.step}: {found}; {elsewhere or 'the losses are close'}")
        return elsewhere or MESSAGES

    def _compare(self, entries: Sequence[Entry], lines: Sequence[Line], file: str) -> None:
        """Errors: AuditError unless the replay gave the ledger's entries."""
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
        elsewhere: str,
        another: Callable[[float], Observer],
        by: int,
    ) -> list[Finding]:
        """What was checked in every line. Errors: AuditError if the evidence contradicts the majority.

        `recomputed`: how gradients were, or nothing; `elsewhere`: that this is another numeric platform, or nothing.
        There a verdict that follows from floats contradicts nobody's. `another`: multiple of the tolerances -> the
        observer that convicts above it. `by`: the peer that recorded the step.
        """

        def open_here(claim: Claim, verdict: str) -> str:
            """Why this machine's own `verdict` contradicts nobody's; nothing if it does."""
            informed = observer.current.informed.get(claim, {})
            unseen = by not in informed
            recomputes = KINDS[claim.kind].recomputes  # a voter without a gradient of its own abstains
            others = [vote for vote in informed.values() if vote != verdict and not (recomputes and vote == EXCUSED)]
            if len(others) <= observer.current.byzantine and not (unseen and verdict == EXCUSED):  # all of them may lie
                return UNSHOWN
            if unseen:  # with a part of the evidence any verdict can be the right one
                return UNSEEN
            if not KINDS[claim.kind].numeric:
                return ""
            if not elsewhere and self.config.validation == "tolerant":
                # Honest numbers are up to one tolerance apart. Each majority has an honest voter: if it saw more than
                # one, there is more than none to be seen here; if it saw at most one, at most two.
                surely = 2 * CONVICT if verdict == GUILTY else 0.0
                return CLOSE if another(surely).verdicts[claim] != verdict else ""
            return elsewhere

        expelled = observer.current.expelled
        for claim, verdict in observer.verdicts.items():
            accusers = claims.get(claim, ())
            spared = claim.accused not in expelled if verdict == GUILTY else not set(accusers) <= set(expelled)
            costs_nobody = verdict == FALSE_CLAIM and not KINDS[claim.kind].false_costs
            reliable = self._reliable(observer, claim, verdict, recomputed)
            if verdict != EXCUSED and spared and not costs_nobody and reliable:
                found = f"by the evidence the claim {_words(claim)} is {verdict}; the majority voted otherwise"
                why = open_here(claim, verdict)
                if not why:
                    raise AuditError(f"{file}: {found}")
                self.notes.append(f"step {observer.transcript.step}: {found}; {why}")
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
                agrees = verdict in (entry.verdict, EXCUSED if entry.verdict == FALSE_CLAIM else GUILTY)
                if not self._reliable(observer, claim, verdict, recomputed):
                    checked = elsewhere if elsewhere and self.task is not None else VOTES
                elif not agrees and (why := open_here(claim, verdict)):
                    checked = why
                elif not agrees:
                    raise AuditError(
                        f"{LEDGER} line {line.number}: {entry.verdict}; by the evidence in {file} the claim "
                        f"{_words(claim)} is {verdict}"
                    )
                elif KINDS[claim.kind].recomputes:
                    checked = recomputed
            findings.append(Finding(entry, checked))
        return findings

    def _reliable(self, observer: Observer, claim: Claim, verdict: str, recomputed: str) -> bool:
        """Whether the replay's own verdict on `claim` counts: not if it would have needed a gradient."""
        if recomputed:
            return True
        uncovered = KINDS[claim.kind].second_round and claim.step != observer.transcript.step and verdict != GUILTY
        return not KINDS[claim.kind].recomputes and not uncovered


def _is_about(entry: Entry, claim: Claim, accusers: tuple[int, ...]) -> bool:
    """Whether `entry` is the verdict on `claim`."""
    same = (entry.about_step, entry.accused, entry.part, entry.accusers) == (
        claim.step,
        claim.accused,
        claim.part,
        accusers,
    )
    return same and (entry.kind == claim.kind or entry.verdict == FALSE_CLAIM)


def _words(claim: Claim) -> str:
    part = f" of part {claim.part}" if claim.part >= 0 else ""
    return f"{claim.kind!r} against peer {claim.accused}{part}"
