"""The audit of a run folder from its settings to its attestation; everything in it is hostile until checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from btard.audit.attestation import Attestation
from btard.audit.files import ATTESTATION, EVIDENCE, LEDGER, PROTOCOL, SUMMARY, proof_file, read_json, seal_file
from btard.audit.ledger import AgreedState, Line, read_ledger
from btard.audit.replay import Replay
from btard.audit.report import UNCERTAIN, AuditError, Finding, Report, TooFew, within
from btard.audit.settings import read_settings, read_task
from btard.protocol import wire
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import digest
from btard.protocol.heal import HEALED, candidates
from btard.protocol.identity import Roster
from btard.protocol.record import Transcript
from btard.protocol.wire import Malformed
from btard.task import Task


def audit(folder: Path, task: Task | None = None) -> Report:
    """Check the run in `folder`; with `task` also recompute the gradients that verdicts are about.

    Errors: AuditError names the first thing that is not in order.
    """
    folder = Path(folder)
    if not (folder / PROTOCOL).exists():
        peers = sorted(folder.glob(f"peer-*/{PROTOCOL}"))
        if peers:
            raise AuditError(f"{PROTOCOL}: missing; name a peer's, such as {peers[0].parent}")
        missing = f"has no {PROTOCOL}" if folder.is_dir() else "is no folder"
        raise AuditError(f"{folder} {missing}; expected the folder of a run of the protocol")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a config that was good enough for the run
            config, d, roster = read_settings(folder)
            read_task(folder)
    except Malformed as error:
        raise AuditError(str(error)) from None
    if task is not None and task.d != d:
        raise AuditError(f"protocol.json: the run has {d} parameters, the task {task.d}")
    lines = read_ledger(folder / LEDGER)
    if lines and not (folder / EVIDENCE).exists():
        raise AuditError(
            f"{EVIDENCE}/: missing; a coordinator keeps none, so name a peer's folder, or copy this one again"
        )
    return _Auditor(folder, config, d, roster, lines, task).run()


class _Auditor:
    def __init__(
        self, folder: Path, config: ProtocolConfig, d: int, roster: Roster, lines: list[Line], task: Task | None
    ) -> None:
        self.folder, self.evidence = folder, folder / EVIDENCE
        self.config, self.d, self.lines = config, d, lines
        self.agreed = AgreedState(config, roster, lines)
        self.replay = Replay(self.agreed, self.evidence, d, task)

    def run(self) -> Report:
        steps = {step: list(of_step) for step, of_step in groupby(self.lines, key=lambda line: line.entry.step)}
        recorded = self._recorded()
        for step in sorted(recorded - set(steps)):
            raise AuditError(f"{LEDGER}: no line about step {step}, of which {proof_file(self.evidence, step).name} is")
        findings: list[Finding] = []
        for step, lines in steps.items():
            findings += self.replay.step(step, lines)
        seal, last = self._seals(), max(steps, default=-1)
        sealed = seal > last
        end, over = self._end(len(steps), sealed)
        self._healings(steps, max(seal, last, over))
        if steps and not sealed and not (self.folder / ATTESTATION).exists():
            # Who leaves out messages of the others, and signs other ones of its own, can have them look guilty of much.
            findings = [
                replace(finding, checked=UNCERTAIN) if finding.entry.step == last else finding for finding in findings
            ]
        return Report(tuple(findings), end, tuple(self.replay.notes))

    def _healings(self, steps: Mapping[int, list[Line]], over: int) -> None:
        """Errors: AuditError if a state should have been chosen, and the ledger does not mention it.

        `over`: a step that the run has come through.
        """
        entries = [line.entry for line in self.lines]
        for step in sorted(steps):
            due = candidates(self.config, [entry for entry in entries if entry.step <= step], step + 1)
            if due and step < over and HEALED not in {e.kind for e in entries if e.step == step + 1}:
                raise AuditError(
                    f"{LEDGER}: step {step} removed a member, so step {step + 1} had to choose among earlier states; "
                    "there is no line about it"
                )

    def _recorded(self) -> set[int]:
        return {int(step) for file in self._files() if (step := file.name[5:-5]).isascii() and step.isdigit()}

    def _files(self) -> Iterator[Path]:
        return self.evidence.glob("step-*.json") if self.evidence.is_dir() else iter(())

    def _seals(self) -> int:
        """The newest step with a seal, -1 without one; all seals are checked."""
        newest = -1
        for file in sorted(self._files()):
            step = file.name[5:].removesuffix(".seal.json")
            if not (file.name.endswith(".seal.json") and step.isascii() and step.isdigit()):
                continue
            try:
                transcript = wire.convert(read_json(file, {"now"})["now"], Transcript, "now")
            except Malformed as error:
                raise AuditError(within(file.name, error)) from None
            try:
                self.agreed.certify(transcript, int(step), seal_file(self.evidence, int(step)).name)
            except TooFew:  # too many were away in that step: it is no seal
                continue
            newest = max(newest, int(step))
        return newest

    def _end(self, steps: int, sealed: bool) -> tuple[str, int]:
        """The summary line, and the last step if the run is finished, else -1.

        Errors: AuditError if the ledger does not end as the peers have attested.
        """
        keys = digest("roster", *self.agreed.keys.keys).hex()[:16]
        counts = f"{len(self.lines)} ledger lines of {steps} steps are in order; keys {keys}"
        if not (self.folder / ATTESTATION).exists():
            if (self.folder / SUMMARY).exists():
                raise AuditError(f"{ATTESTATION}: missing, though {SUMMARY} says that the run is finished")
            if sealed:
                return f"{counts}; the run is not finished, up to here a majority has signed its ledger", -1
            after = f"on step {self.lines[-1].entry.step} " if self.lines else ""
            return f"{counts}; the run is not finished, nothing signed follows {after}yet", -1
        try:
            attested = Attestation.read(self.folder)
        except Malformed as error:
            raise AuditError(within(ATTESTATION, error)) from None
        active = self.agreed.active(attested.step)
        roster = self.agreed.roster(attested.step)
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
        if not self.agreed.enough(signers, attested.step):
            raise AuditError(
                f"{ATTESTATION}: signed by {len(signers)} of {len(active)} active peers; it takes a majority, and "
                "more than could be Byzantine before the last removals"
            )
        line = (
            f"{counts}; finished after step {attested.step - 1}, attested by {len(signers)} of {len(active)} active "
            f"peers; parameters {attested.params.hex()[:16]}"
        )
        return line, attested.step - 1
