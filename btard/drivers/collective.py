"""One process per peer, over `torch.distributed`: the same protocol and the same ledger as in one process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from btard.audit.attestation import Attestation
from btard.drivers.compute import CohortCompute
from btard.drivers.decoding import decode
from btard.drivers.history import ParameterHistory, steps_kept
from btard.drivers.mesh import Letter, Mesh, Round
from btard.drivers.task import StepResult, Task
from btard.drivers.threads import kernel_threads
from btard.drivers.understudy import Understudy
from btard.protocol import hashing, wire
from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.coin import NoQuorum
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoGradient
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Broadcast, Compare, Compute, Effect, Exchange, Idle, Purpose
from btard.protocol.envelope import encode_items, encode_signed
from btard.protocol.hashing import digest, tensor_digest
from btard.protocol.identity import Identity, Roster
from btard.protocol.peer import Outcome, Peer
from btard.protocol.snapshot import load_peer, save_peer
from btard.protocol.wire import Malformed

END = "end of step"
MAX_NOTE = 2**16
OUT, STUCK, DONE = 0, 1, 2
"""How a step ended for a peer: it fell out, nobody had a gradient, or all is well."""


class Fallen(Exception):
    """This process's peer is out of the run: banned, gone or crashed. The others go on without it."""


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
        recorder: Understudy | None = None,
        note: Callable[[], bytes] = bytes,
    ) -> None:
        """Errors: ValueError if there are not as many ranks as peers."""
        if len(mesh.ranks) != config.peers:
            raise ValueError(f"{config.peers} peers need as many processes, got {len(mesh.ranks)}")
        self.config, self.task, self.collusion, self.note = config, task, collusion, note
        self.behaviours = dict(behaviours or {})
        self.mesh, self.recorder = mesh, recorder
        rank = mesh.rank
        identities = [Identity.from_seed(config.run_id, peer) for peer in range(config.peers)]
        roster = Roster(tuple(identity.public_key for identity in identities))
        own = self.behaviours.get(rank, HONEST)
        self.peer = Peer(rank, identities[rank], roster, config, task.d, own)
        self.history = ParameterHistory(task.d, steps_kept({rank: own}, repeatable), history_folder)
        self.compute = CohortCompute(task, self.history, "per_peer")
        self.notes: dict[int, bytes] = {}
        self._sent = 0
        hashing.threads = torch.get_num_threads()

    @property
    def honest(self) -> tuple[int, ...]:
        """The honest ranks that are in the run, ascending."""
        return tuple(rank for rank in self.mesh.ranks if not self._byzantine(rank))

    @property
    def leads(self) -> bool:
        """Whether this is the lowest honest rank that is in the run."""
        return self.mesh.rank == self.honest[0]

    def step(self, params: torch.Tensor) -> StepResult:
        """One step of this rank's peer at `params` [d], in lockstep with the others.

        Errors: Fallen if the peer is out of the run after it; RankLost if a rank ended or hangs; NoGradient if nobody
        has a gradient; RuntimeError if honest ranks disagree, which would be a bug of the protocol.
        """
        now = self.mesh.step = self.peer.t
        self.history.record(now, params, deep=self.peer.behaviour.lookback > 1)
        self._sent = 0
        seconds: dict[str, float] = defaultdict(float)
        outcome: Outcome | None = None
        failure: NoGradient | None = None
        generator = self.peer.step()
        answer: Any = None
        while True:
            started = time.perf_counter()
            try:
                with kernel_threads(1):
                    effect = generator.send(answer)
            except StopIteration as stop:
                outcome = stop.value
                break
            except NoGradient as error:
                failure = error
                break
            except NoQuorum:
                if not self.peer.behaviour.byzantine:
                    raise
                break  # in a history of its own
            computing = isinstance(effect, Compute | Idle)
            phase = effect.phase.partition("/")[0]
            seconds[phase] += time.perf_counter() - started
            started = time.perf_counter()
            answer = self._gradient(now, effect, params) if computing else self._talk(effect, params.device)
            seconds["gradients" if computing else phase] += time.perf_counter() - started
            if answer is None and not computing:
                # A Byzantine peer that lives in a history of its own no longer takes part in ours.
                generator.close()
                break
        active, staying = self._finish(outcome, STUCK if failure is not None else OUT if outcome is None else DONE)
        if self.mesh.rank not in staying:
            why = self.peer.current.expelled.get(self.peer.id)
            raise Fallen(f"step {now}: peer {self.peer.id} is out of the run{f': {why}' if why else ''}")
        self.mesh.regroup(staying)
        if failure is not None:
            raise failure
        assert outcome is not None and self.peer.last is not None
        if self.recorder is not None:
            self.recorder.writes = self.leads
            self.recorder.finished([self.peer], lambda step: self.history.at(step, now))
        return StepResult(
            step=now,
            gradient=outcome.gradient(torch.empty_like(params)),
            coin=outcome.coin,
            removed=outcome.removed,
            active=active,
            workers=self.peer.last.workers,
            tau=self.peer.last.tau,
            seconds=dict(seconds),
            sent={self.peer.id: self._sent},
        )

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """This rank between two steps: JSON values and tensors. Write them before the next step."""
        values, own = save_peer(self.peer)
        tensors = {f"history/{step}": x for step, x in self.history.recent().items()}
        tensors |= {f"peer/{name}": x for name, x in own.items()}
        recorded = None if self.recorder is None else self.recorder.state()
        return {"peer": values, "ranks": self.mesh.ranks, "recorder": recorded}, tensors

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` returned, on a driver made with the same arguments, at all ranks that were in the run.

        The others had fallen out and do not call this.
        """

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}

        self.mesh.regroup(tuple(state["ranks"]))
        load_peer(self.peer, state["peer"], under("peer/"))
        self.history.restore({int(step): x for step, x in under("history/").items()})
        if self.recorder is not None and state["recorder"] is not None:
            self.recorder.restore(state["recorder"], self.peer.last)

    def attest(self, params: torch.Tensor) -> None:
        """The end of the run, signed by all peers that are left, where the recorder is; all of them call this.

        `params` [d] are final. Errors: RankLost.
        """
        peer, hashed = self.peer, tensor_digest(params, "parameters")
        statement = Attestation(peer.t, peer.ledger.head, hashed)
        signature = peer.identity.sign(statement.digest(peer.config, peer.roster, params.numel()))
        signatures = self.mesh.gather("attest", signature)
        if self.recorder is not None and self.leads:
            Attestation(statement.step, statement.head, hashed, signatures).write(self.recorder.folder)

    def _byzantine(self, rank: int) -> bool:
        return self.behaviours.get(rank, HONEST).byzantine

    def _gradient(self, now: int, request: Effect, params: torch.Tensor) -> torch.Tensor | None:
        """The gradient [d] that is asked for; colluders first see those of the honest ranks."""
        gradient = self.compute.answer(now, [request])[0] if isinstance(request, Compute) else None
        if not (isinstance(request, Compute) and request.purpose is Purpose.JUDGE):
            training = isinstance(request, Compute) and request.purpose is Purpose.TRAIN
            self._observe(now, gradient if training else None, params)
        return gradient

    def _observe(self, now: int, gradient: torch.Tensor | None, params: torch.Tensor) -> None:
        """Omniscience, simulated: honest ranks send their gradients to those of the attackers, if these need them."""
        if self.collusion is None:
            return
        attackers = [rank for rank in self.mesh.ranks if self._byzantine(rank)]
        rows: dict[int, torch.Tensor] = {}
        if any(getattr(self.behaviours[rank], "requires_cohort", False) for rank in attackers):
            letters: dict[int, Letter] = {}
            if gradient is not None and not self._byzantine(self.mesh.rank):
                body = gradient.to("cpu").contiguous().view(torch.uint8).numpy().data
                letters = dict.fromkeys(attackers, (body,))
            came = self.mesh.round("observe", letters, 4 * self.task.d)
            rows = {
                rank: torch.frombuffer(letter, dtype=torch.float32).to(params.device)
                for rank, letter in came.letters.items()
            }
        if self.mesh.rank in attackers:
            self.collusion.observe(now, rows)

    def _talk(self, effect: Effect, device: torch.device) -> dict[int, Any] | None:
        """The answer to an effect that needs the others; None if they are somewhere else, and I am not honest."""
        said: Any = None
        letters: dict[int, Letter] = {}
        if isinstance(effect, Broadcast):
            faces = {to: effect.faces.get(to, effect.message) for to in self.mesh.others}
            fitting = {to: m for to, m in faces.items() if m is not None and m.nbytes <= effect.limit}
            packed: dict[int, bytes] = {id(m): encode_signed(m) for m in fitting.values()}
            letters, limit = {to: (packed[id(m)],) for to, m in fitting.items()}, effect.limit
            said = effect.message if effect.message is None or effect.message.nbytes <= effect.limit else None
        elif isinstance(effect, Compare):
            letters, limit, said = dict.fromkeys(self.mesh.others, (effect.digest,)), len(effect.digest), effect.digest
        elif isinstance(effect, Exchange):
            pieces: dict[int, Letter] = {}  # what goes to many is encoded once
            for to, items in effect.packets.items():
                if id(items) not in pieces:
                    pieces[id(items)] = encode_items(items)
                letters[to] = pieces[id(items)]
            limit = effect.limit
        else:
            raise TypeError(f"no driver answers {type(effect).__name__}")
        came = self.mesh.round(effect.phase, letters, limit)
        present = self._together(came, effect.phase)
        self._count(effect, present)
        if self.mesh.rank not in present:
            return None
        answers: dict[int, Any] = {}
        for sender in sorted(came.letters.keys() & present):
            try:
                answers[sender] = decode(effect, came.letters[sender], device)
            except Malformed:
                continue  # as if nothing had come: what it is worth is the protocol's to say
        return answers if said is None else {**answers, self.mesh.rank: said}

    def _together(self, came: Round, phase: str) -> frozenset[int]:
        """The ranks that are still in the step and in its phase, which is that of the honest ones."""
        honest = {came.phases[rank] for rank in came.running if not self._byzantine(rank)}
        phases = honest or {came.phases[rank] for rank in came.running}
        if len(phases) > 1:
            raise RuntimeError(f"honest ranks are in different phases at once: {sorted(phases)}; {phase} is mine")
        return frozenset(rank for rank in came.running if came.phases[rank] in phases)

    def _count(self, effect: Effect, present: frozenset[int]) -> None:
        """Add what I put on the wire: `nbytes` and a copy for each recipient, without the headers of the rounds."""
        others = present - {self.mesh.rank}
        if isinstance(effect, Broadcast):
            said = [effect.faces.get(to, effect.message) for to in others]
            self._sent += sum(message.nbytes for message in said if message is not None)
        elif isinstance(effect, Compare):
            self._sent += len(effect.digest) * len(others)
        elif isinstance(effect, Exchange):
            self._sent += sum(item.nbytes for items in effect.packets.values() for item in items)

    def _finish(self, outcome: Outcome | None, end: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Wait until nobody is in the step any more; A_{t+1} and the ranks that stay, as the honest ones have it.

        A peer may fall out in the middle of a step. Its rank goes on with empty hands, for the others need it.
        """
        mine = wire.pack((end, self._view(outcome), self.peer.active, self.note()))
        while True:
            came = self.mesh.round(END, dict.fromkeys(self.mesh.others, (mine,)), MAX_NOTE, running=False)
            if not came.running:
                break
        letters = {**came.letters, self.mesh.rank: mine}
        said = {rank: wire.unpack(bytes(letters[rank]), max_bytes=MAX_NOTE, what="note") for rank in sorted(letters)}
        self.notes = {rank: note for rank, (_, _, _, note) in said.items()}
        honest = [rank for rank in self.honest if said[rank][0] != OUT]
        if not honest:
            raise RuntimeError(f"step {self.mesh.step}: no honest peer is left in the run")
        _, view, active, _ = said[honest[0]]
        for rank in honest:
            if said[rank][1] != view:
                raise RuntimeError(
                    f"step {self.mesh.step}: honest ranks {honest[0]} and {rank} disagree on the outcome"
                )
        return tuple(active), tuple(rank for rank in said if said[rank][0] != OUT and rank in active)

    def _view(self, outcome: Outcome | None) -> bytes:
        """A digest of all that honest peers must agree on after a step."""
        if outcome is None:
            return b""
        peer = self.peer
        pairs = [number for pair in sorted(peer.assignments.items()) for number in pair]
        start = (outcome.coin, peer.ledger.head, peer.tau.hex())
        return digest("outcome", outcome.step, *outcome.hashes, *start, *peer.active, *pairs)
