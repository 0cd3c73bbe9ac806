"""One process per peer, over `torch.distributed`: the same protocol and the same ledger as in one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from btard.audit.attestation import Attestation
from btard.audit.recorder import Recorder
from btard.drivers.compute import CohortCompute
from btard.drivers.history import ParameterHistory, steps_kept, workers_of
from btard.drivers.letters import Letters, Pieces
from btard.drivers.loop import Fallen, Heard, StepResult, in_phase, run_step
from btard.drivers.mesh import Mesh, Round
from btard.drivers.past import Past
from btard.drivers.trail import State, Trail
from btard.protocol import wire
from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.commit import CutOff, NoGradient
from btard.protocol.commitments import Hashed
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import QUIET, Compute, Purpose, Relay
from btard.protocol.hashing import digest, tensor_digest
from btard.protocol.identity import Identity, Roster
from btard.protocol.peer import Outcome, Peer
from btard.protocol.snapshot import load_peer, save_peer
from btard.task import PARAMETERS, Task

END = "end of step"
MAX_NOTE = 2**16
DONE_RELAYING, SETTLED = 1, 2
"""Flags of a rank in a round of relays, see `Letters.done` and `Letters.settled`."""
OUT, STUCK, DONE = 0, 1, 2
"""How a step ended for a peer: it fell out, nobody had a gradient, or all is well."""


class CollectiveDriver:
    """Runs the peer whose number is `mesh.rank`, among as many processes as the config has peers.

    All give the same arguments; `behaviours` (peer -> Behaviour) are those of all peers. A rank that does not answer in
    time ends the run at all others with `RankLost`: the slowest step and evaluation have to fit into `mesh.timeout`.
    `history_folder` and `repeatable` are those of `LocalDriver`; each attacker needs a folder of its own.
    `recorder` writes the evidence, from what one rank alone has seen. Each honest rank has one; the lowest writes.
    `note` gives up to 256 bytes that this rank tells the others at the end of each step; `notes` has everybody's.

    With equal numbers of threads the parameters are those of `LocalDriver` in mode `per_peer` to the bit, and the
    ledger is the same. Validators and judges really recompute.

    Messages go from peer to peer through host memory, in gloo's all-to-all, also where the gradients are on a GPU.
    torch.distributed needs every rank's help, so a rank that stops taking part stops the run: here attackers deviate
    in what they say, not in whether the network works. The omniscient attackers of the literature are simulated:
    where a behaviour has `requires_cohort` the honest ranks send the attackers their gradients before these commit.

    >>> import btard, torch
    >>> alone = btard.Mesh(torch.distributed.HashStore(), rank=0, size=1, timeout=30)
    >>> driver = btard.CollectiveDriver(btard.ProtocolConfig(peers=1, validators=0), btard.QuadraticTask(8), alone)
    >>> driver.step(torch.ones(8)).gradient.shape
    torch.Size([8])
    """

    def __init__(
        self,
        config: ProtocolConfig,
        task: Task,
        mesh: Mesh,
        *,
        behaviours: Mapping[int, Behaviour] | None = None,
        collusion: Collusion | None = None,
        history_folder: Path | None = None,
        repeatable: int = 0,
        recorder: Recorder | None = None,
        note: Callable[[], bytes] = bytes,
    ) -> None:
        """Errors: ValueError if there are not as many ranks as peers."""
        if len(mesh.ranks) != config.peers:
            raise ValueError(f"{config.peers} peers need as many processes, got {len(mesh.ranks)}")
        self.config, self.task, self.collusion, self.note = config, task, collusion, note
        self.behaviours = dict(behaviours or {})
        self.byzantine = frozenset(rank for rank, behaviour in self.behaviours.items() if behaviour.byzantine)
        self.mesh, self.recorder = mesh, recorder
        rank = mesh.rank
        identities = [Identity.from_seed(config.run_id, peer) for peer in range(config.peers)]
        roster = Roster(tuple(identity.public_key for identity in identities))
        own = self.behaviours.get(rank, HONEST)
        commitments = Hashed(config.run_id, parallel=torch.get_num_threads() > 1)  # this process is one peer alone
        self.peer = Peer(rank, identities[rank], roster, config, task.d, own, commitments)
        history = ParameterHistory(task.d, steps_kept({rank: own}, repeatable), history_folder)
        self.past = Past(history, Trail(config, task), collusion)
        self.compute = CohortCompute(task, history, "per_peer")
        self.notes: dict[int, bytes] = {}

    @property
    def honest(self) -> tuple[int, ...]:
        """The honest ranks that are in the run, ascending."""
        return tuple(rank for rank in self.mesh.ranks if rank not in self.byzantine)

    @property
    def leads(self) -> bool:
        """Whether this is the lowest honest rank that is in the run."""
        return self.mesh.rank == self.honest[0]

    def step(
        self,
        params: torch.Tensor,
        shared: Mapping[str, torch.Tensor] | None = None,
        local: Mapping[str, torch.Tensor] | None = None,
    ) -> StepResult:
        """One step of this rank's peer at `params` [d], in lockstep with the others.

        `shared` and `local`: as of `LocalDriver.step`.

        Errors: Fallen if the peer is out of the run after it; RankLost if a rank ended or hangs; NoGradient if nobody
        has a gradient; RuntimeError if honest ranks disagree, which would be a bug of the protocol.
        """
        now = self.mesh.step = self.past.begin([self.peer], State.of(params, shared, local))
        course = run_step({self.peer.id: self.peer}, self, measure=self.past.measure)
        outcome, failure = course.outcomes[self.peer.id], course.failures.get(self.peer.id)
        if isinstance(failure, CutOff) and not self.peer.behaviour.byzantine:
            raise failure
        stuck = isinstance(failure, NoGradient)
        staying = self._finish(outcome, STUCK if stuck else OUT if outcome is None else DONE)
        if self.mesh.rank not in staying:
            why = self.peer.current.expelled.get(self.peer.id)
            raise Fallen(f"step {now}: peer {self.peer.id} is out of the run{f': {why}' if why else ''}")
        self.mesh.regroup(staying)
        if failure is not None:
            raise failure
        if self.recorder is not None:
            self.recorder.finished([self.peer], self.past.at, self.past.agreed, writes=self.leads)
        return self.past.trail.completed(course.result(self.peer, params))

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """This rank between two steps: JSON values and tensors. Write them before the next step."""
        values, own = save_peer(self.peer)
        tensors = self.past.state() | {f"peer/{name}": x for name, x in own.items()}
        recorded = None if self.recorder is None else self.recorder.state()
        return {"peer": values, "ranks": self.mesh.ranks, "recorder": recorded}, tensors

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, life: bytes | None) -> None:
        """Restore what `state` returned, on a driver created in the same way, at all ranks that were in the run.

        The others had fallen out and do not call this. `life`: as of `LocalDriver`, the same at all ranks.
        """
        self.mesh.regroup(tuple(state["ranks"]))
        own = {name.removeprefix("peer/"): x for name, x in tensors.items() if name.startswith("peer/")}
        load_peer(self.peer, state["peer"], own)
        if life is not None:
            self.peer.begin_life(life)
        self.past.restore(tensors, workers_of(self.peer.last))
        if self.recorder is not None and state["recorder"] is not None:
            self.recorder.restore(state["recorder"], self.peer.last)

    def attest(self, params: torch.Tensor, layout: bytes = b"") -> None:
        """The end of the run, signed by all remaining peers, at the rank with the recorder; all ranks call this.

        `params` [d] are final; `layout` is the digest of their names and places
        (`btard.training.layout.layout_digest`). Errors: RankLost.
        """
        peer, hashed = self.peer, tensor_digest(params, PARAMETERS, parallel=torch.get_num_threads() > 1)
        statement = Attestation(peer.t, peer.ledger.head, hashed, layout=layout)
        signature = peer.identity.sign(statement.digest(peer.config, peer.roster, params.numel()))
        signatures = self.mesh.gather("attest", signature)
        if self.recorder is not None and self.leads:
            dataclasses.replace(statement, signatures=signatures).write(self.recorder.folder)

    # How messages move, and where gradients come from (`btard.drivers.loop`).

    def gradients(
        self, step: int, phase: str, asked: Mapping[int, Compute], too_late: Callable[[], bool]
    ) -> dict[int, torch.Tensor]:
        gradients = dict(zip(asked, self.compute.answer(step, list(asked.values())), strict=True))
        if self.collusion is not None and phase == "compute":
            training = all(request.purpose is Purpose.TRAIN for request in asked.values())
            self._observe(step, gradients.get(self.mesh.rank) if training else None)
        return gradients

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        me = self.mesh.rank
        said = letters[me]
        if said.done and self.byzantine.isdisjoint(self.mesh.ranks):
            # Only attackers tell one rank something and another rank something else: all others are done, too.
            return Heard({me: QUIET}, {})
        came = self._round(said, note=DONE_RELAYING * said.done + SETTLED * said.settled)
        present = in_phase({rank: came.phases[rank] for rank in came.running}, self.byzantine)
        if me not in present:
            return Heard({}, {me: said.nbytes(present - {me})})
        if all(came.notes[rank] & DONE_RELAYING for rank in present):
            return Heard({me: QUIET}, {})
        bodies = {rank: came.letters[rank] for rank in came.letters.keys() & present}
        unsettled = [rank for rank in sorted(present) if not came.notes[rank] & SETTLED]
        if isinstance(said.effect, Relay) and said.effect.first and 0 < len(unsettled) < len(present):
            said = said.shown_to(unsettled)
            proofs = self._round(said if said.settled else replace(said, special={}), note=0).letters
            bodies |= {rank: proofs[rank] for rank in proofs.keys() & present}
        device = self.past.at(step).device
        return Heard({me: said.answer(bodies, me, device)}, {me: said.nbytes(present - {me})})

    def _round(self, said: Letters, note: int) -> Round:
        common, special = said.encoded()
        bodies = {to: special.get(to, common) for to in self.mesh.others}
        letters = {to: body for to, body in bodies.items() if body is not None}
        return self.mesh.round(said.phase, letters, said.limit, note=note)

    def _observe(self, step: int, gradient: torch.Tensor | None) -> None:
        """Simulated omniscience: honest ranks send their gradients to the attackers' ranks, if these need them."""
        attackers = [rank for rank in self.mesh.ranks if rank in self.byzantine]
        rows: dict[int, torch.Tensor] = {}
        if any(self.behaviours[rank].requires_cohort for rank in attackers):
            letters: dict[int, Pieces] = {}
            if gradient is not None and self.mesh.rank not in self.byzantine:
                letters = dict.fromkeys(attackers, (gradient.to("cpu").contiguous().view(torch.uint8).numpy().data,))
            came = self.mesh.round("observe", letters, 4 * self.task.d)
            device = self.past.at(step).device
            rows = {r: torch.frombuffer(body, dtype=torch.float32).to(device) for r, body in came.letters.items()}
        if self.collusion is not None and self.mesh.rank in attackers:
            self.collusion.observe(step, rows)

    def _finish(self, outcome: Outcome | None, end: int) -> tuple[int, ...]:
        """Wait until nobody is in the step any more; the ranks of A_{t+1} that stay, according to the honest ones.

        A peer may fall out in the middle of a step. Its rank goes on with empty hands, for the others need it.
        """
        struck_off = self.peer.current.expelled.get(self.peer.id, "") if end == OUT else ""
        mine = wire.pack((end, struck_off, self._view(outcome), self.peer.active, self.note()))
        while True:
            came = self.mesh.round(END, dict.fromkeys(self.mesh.others, (mine,)), MAX_NOTE, running=False)
            if not came.running:
                break
        letters = {**came.letters, self.mesh.rank: mine}
        said = {rank: wire.unpack(bytes(letters[rank]), max_bytes=MAX_NOTE, what="note") for rank in sorted(letters)}
        self.notes = {rank: note for rank, (_, _, _, _, note) in said.items()}
        honest = [rank for rank in self.honest if said[rank][0] != OUT]
        if not honest:
            raise RuntimeError(f"step {self.mesh.step}: no honest peer is left in the run")
        agreed, _, view, active, _ = said[honest[0]]
        for rank in honest:
            if said[rank][2] != view:
                raise RuntimeError(
                    f"step {self.mesh.step}: honest ranks {honest[0]} and {rank} disagree on the outcome"
                )
        for rank in self.honest:
            if said[rank][1] and rank in active:  # one that has crashed has not struck itself off
                raise RuntimeError(
                    f"step {self.mesh.step}: honest peer {rank} is out in its own view ({said[rank][1]}) alone"
                )
        # Whoever is stuck alone is so in a history of its own.
        return tuple(rank for rank in said if said[rank][0] in (DONE, agreed) and rank in active)

    def _view(self, outcome: Outcome | None) -> bytes:
        """A digest of all that honest peers must agree on after a step."""
        if outcome is None:
            return b""
        peer = self.peer
        pairs = [number for pair in sorted(peer.assignments.items()) for number in pair]
        start = (outcome.coin, peer.ledger.head, peer.tau.hex())
        return digest("outcome", outcome.step, *outcome.hashes, *start, *peer.active, *pairs)
