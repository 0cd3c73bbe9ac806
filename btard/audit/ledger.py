"""The ledger of a run: its chain line by line, and the state at the start of each step that follows from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from btard.audit.files import LEDGER, PROTOCOL, read_bounded
from btard.audit.report import AuditError, TooFew
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Roster
from btard.protocol.ledger import ADMITTED, GRADUATED, Entry, Ledger, members_of, still_byzantine
from btard.protocol.limits import MAX_LEDGER
from btard.protocol.memory import Memory
from btard.protocol.record import Transcript
from btard.protocol.wire import Malformed


@dataclass(frozen=True)
class Line:
    """A line of ledger.jsonl."""

    number: int
    """The line's number, from 1."""
    entry: Entry
    head: bytes
    """The chain's head after it."""


def read_ledger(file: Path) -> list[Line]:
    """The lines of a ledger; AuditError if one does not follow from the line before."""
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


class AgreedState:
    """The state that everybody agreed on, from the `lines` of the ledger and the `keys` of the peers at the start."""

    def __init__(self, config: ProtocolConfig, keys: Roster, lines: list[Line]) -> None:
        self.config, self.keys, self.lines = config, keys, lines
        self.memory = Memory()
        """Memory of signatures: a step is certified, and then replayed."""
        self.admitted = [_admitted(line) for line in lines if line.entry.kind == ADMITTED]
        self.removed = {peer for line in lines for peer in line.entry.peers}

    def active(self, step: int) -> tuple[int, ...]:
        """A_t: the peers of the start and those that completed their probation, without the removed ones."""
        return tuple(members_of([line.entry for line in self.lines if line.entry.step < step], self.config.peers))

    def newcomers(self, step: int) -> set[int]:
        """The newcomers on probation at the start of `step`."""
        before = [line.entry for line in self.lines if line.entry.step < step]
        gone = {peer for entry in before for peer in (*entry.peers, *([entry.accused] * (entry.kind == GRADUATED)))}
        return {entry.accused for entry in before if entry.kind == ADMITTED} - gone

    def roster(self, step: int) -> Roster:
        """The keys at the start of `step`: those of the start, and those that the ledger admitted."""
        return Roster((*self.keys.keys, *(key for admitted, key in self.admitted if admitted < step)))

    def byzantine(self, step: int) -> int:
        """b_t: how many of A_t may be Byzantine. If more of them have signed something, an honest one has."""
        return still_byzantine(self.config, [line.entry for line in self.lines if line.entry.step < step])

    def head(self, step: int) -> bytes:
        """The ledger's head at the start of `step`."""
        return next((line.head for line in reversed(self.lines) if line.entry.step < step), b"")

    def certify(self, transcript: Transcript, step: int, file: str) -> None:
        """Errors: AuditError unless all signatures hold and enough of A_t signed for this ledger and state.

        It is TooFew where nothing else is wrong.
        """
        active, head = self.active(step), self.head(step)
        newcomers = self.newcomers(step)
        roster = self.roster(step + 1)  # admitted in a step, a newcomer can speak in it
        here = transcript.step, transcript.active, transcript.head, set(transcript.standings)
        if here != (step, active, head, newcomers):
            raise AuditError(f"{file}: starts from another step, other peers or another ledger than {LEDGER} has then")
        if self.config.tau not in ("auto", transcript.tau):
            raise AuditError(f"{file}: clips at {transcript.tau:g}, {PROTOCOL} at {self.config.tau}")
        context = transcript.binding(self.config)
        good: set[int] = set()
        bad: list[str] = []
        for phase, said in transcript.heard().items():
            for sender, messages in said.items():
                for message in messages:
                    if message.proven(context, roster, self.memory):
                        good.add(sender)
                    else:
                        bad.append(f"peer {sender} in {phase[:40]!r}")
        if not self.enough(good, step):
            signed = f"only {len(good & set(active))} of {len(active)} active peers signed"
            error = AuditError if bad else TooFew
            raise error(f"{file}: {signed} this state of the ledger and the coin at step {step}")
        if bad:
            raise AuditError(f"{file}: the signature of {bad[0]} does not hold")

    def enough(self, signers: Collection[int], step: int) -> bool:
        """Whether enough of A_t are among `signers` that one of them is honest, and the ledger before `step` is true.

        More than half of A_t; and more than could be Byzantine before the last step that put something into the ledger,
        of those that were members then. Who forges that step can make its own victims look silent, slow or guilty, and
        let its friends in: neither A_t nor b_t can be trusted before somebody honest has signed for them.
        """
        active = self.active(step)
        last = next((line.entry.step for line in reversed(self.lines) if line.entry.step < step), step)
        return speak_for_all(signers, active, self.active(last), self.byzantine(last))


def speak_for_all(signers: Collection[int], active: Collection[int], before: Collection[int], byzantine: int) -> bool:
    """Whether `signers` are most of the `active`, and more of those `before` the last removals than are `byzantine`."""
    speaking = set(active).intersection(signers)
    return 2 * len(speaking) > len(active) and len(speaking.intersection(before)) > byzantine


def _admitted(line: Line) -> tuple[int, bytes]:
    """(step, key) of a newcomer's admission."""
    try:
        key = bytes.fromhex(line.entry.evidence)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise AuditError(f"{LEDGER} line {line.number}: the newcomer's key is not one of 32 bytes")
    return line.entry.step, key
