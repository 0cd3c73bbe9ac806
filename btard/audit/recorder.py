"""Writes the proofs of a run while it is running; the peers do not know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from btard.audit.files import ATTESTATION, EVIDENCE, seal_file, write_json
from btard.audit.ledger import speak_for_all
from btard.audit.numerics import numeric_platform
from btard.audit.proof import Proof
from btard.audit.settings import write_settings
from btard.audit.states import write_state
from btard.audit.strangers import keeps_gradients
from btard.audit.votes import votes_with_majority
from btard.files import UNFINISHED
from btard.protocol import wire
from btard.protocol.claims import KINDS
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Roster
from btard.protocol.ledger import Entry
from btard.protocol.messages import NOBODY
from btard.protocol.record import StepRecord, Transcript, to_json

if TYPE_CHECKING:
    from btard.protocol.peer import Peer

SEALING = ("coin_commit/0",)
"""For the step after one with entries: signatures of all peers that continued, bound to the ledger's new head."""


class Recorder:
    """Writes a run's proofs into `folder`: hand it every finished step.

    It holds on to the step before; a step without entries costs a few references. `task`: "module:function" that makes
    the run's task of its folder, for an auditor to compute gradients again.

    >>> import btard, pathlib, tempfile, torch
    >>> config = btard.ProtocolConfig(peers=4, run_id="recorded")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     recorder = btard.Recorder(pathlib.Path(folder), config)
    ...     _ = btard.LocalDriver(config, btard.QuadraticTask(8), recorder=recorder).step(torch.ones(8))
    ...     print(sorted(file.name for file in pathlib.Path(folder).iterdir()))
    ['protocol.json', 'roster.json']
    """

    def __init__(self, folder: Path, config: ProtocolConfig, task: str = "") -> None:
        self.folder, self.config, self.task = Path(folder), config, task
        self.next, self.head = 0, b""
        """The next step, and the ledger's head before it."""
        self._before: StepRecord | None = None
        self._to_seal: tuple[tuple[int, ...], int] | None = None
        """A_t and b_t of the last step with entries, until enough of these members have signed what followed."""
        self._begun = False

    def begin(self, roster: Roster, d: int, platform: str) -> None:
        """Once: write settings, keys and numeric platform; delete what the folder has of the next step and later ones.

        `finished` does it before the first step that it takes in, for by then a resumed run has restored the recorder.
        """
        if self._begun:
            return
        self._begun = True
        self.folder.mkdir(parents=True, exist_ok=True)
        write_settings(self.folder, self.config, d, roster, self.task, platform)
        (self.folder / ATTESTATION).unlink(missing_ok=True)
        for file in (self.folder / EVIDENCE).glob("*step-*"):
            step = file.name[len("step-") :].partition(".")[0]
            if file.suffix == UNFINISHED or (step.isdecimal() and int(step) >= self.next):
                file.unlink()

    def finished(
        self,
        peers: Sequence[Peer],
        parameters: Callable[[int], torch.Tensor],
        states: Callable[[int], Mapping[str, torch.Tensor] | None] = lambda step: None,
        *,
        writes: bool = True,
    ) -> None:
        """Record the step that the honest `peers` have just finished; `parameters`: step -> x [d] of it.

        `states`: step -> the agreed tensors at its beginning, the "parameters" among them, of steps that were measured.

        Several peers serve better than one: who did not get all of the evidence is passed over. Where each peer is a
        process, all recorders keep up and one `writes`; another one can go on in its place at any step.
        """
        peers = [peer for peer in peers if peer.last is not None and peer.id in peer.last.active]
        if not peers:
            return
        if writes:
            self.begin(peers[0].roster, peers[0].d, _platform(peers[0].current))
        # Also without a trial: one in the next step may be about any aggregate of this one.
        witness = max(peers, key=lambda peer: (votes_with_majority(peer), len(peer.current.aggregates)))
        record = witness.current
        ledger = peers[0].ledger
        entries = list(takewhile(lambda entry: entry.step == record.step, reversed(ledger.entries)))
        if entries and writes:
            self._proof(witness, entries, parameters).write(self.folder / EVIDENCE, witness.id, witness.identity)
            for step in {int(step) for entry in entries for step in entry.losses}:
                if (tensors := states(step)) is not None:
                    write_state(self.folder / EVIDENCE, tensors)
        if entries:
            self._to_seal = record.active, record.byzantine
        elif self._to_seal:
            seal = Transcript.of(record, SEALING)
            if speak_for_all({i for said in seal.messages.values() for i in said}, record.active, *self._to_seal):
                self._to_seal = None
                if writes:
                    content = {"now": to_json(seal, Transcript)}
                    write_json(seal_file(self.folder / EVIDENCE, record.step), content)
        self._before, self.next, self.head = record, record.step + 1, ledger.head

    def _proof(self, witness: Peer, entries: Sequence[Entry], parameters: Callable[[int], torch.Tensor]) -> Proof:
        record = witness.current
        claims = [claim for tried in record.trials.values() for claim in tried]
        held = {
            (about.step, part): a for about in (self._before, record) if about for part, a in about.aggregates.items()
        }
        reports = {} if self._before is None else self._before.reports
        # A peer that has reported nothing, such as a newcomer, is judged by its gradient alone.
        concerned = {(c.step, c.part) for c in claims if c.part != NOBODY or c.accused in reports}
        wanted = [key for key in held if key in concerned or (key[0], NOBODY) in concerned]
        recomputed = any(KINDS[claim.kind].recomputes for claim in claims)
        kept = keeps_gradients(self.config, witness.ledger.entries, record.step, record.standings)
        return Proof(
            Transcript.of(record),
            None if self._before is None else Transcript.of(self._before),
            record.shown if kept else {},
            {key: held[key] for key in sorted(wanted)},
            parameters(record.step - 1) if recomputed and kept else None,
            _platform(record),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON values."""
        return {
            "next": self.next,
            "head": self.head.hex(),
            "before": None if self._before is None else to_json(Transcript.of(self._before), Transcript),
            "to_seal": self._to_seal,
        }

    def restore(self, state: Mapping[str, Any], last: StepRecord | None) -> None:
        """Restore what `state` returned; `last` is the step before as a peer remembers it."""
        self.next, self.head = state["next"], bytes.fromhex(state["head"])
        self._to_seal = None if state["to_seal"] is None else (tuple(state["to_seal"][0]), state["to_seal"][1])
        if state["before"] is not None and last is not None:
            last.heard = wire.convert(state["before"], Transcript, "before").heard()
            self._before = last


def _platform(record: StepRecord) -> str:
    """The numeric platform on which the step's aggregates were computed."""
    devices = {str(value.device) for value in record.aggregates.values()}
    return numeric_platform(min(devices, default="cpu"))
