"""The whole cohort in one process, in lockstep: the simulator. All peers run the protocol, signatures included."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from btard.audit.attestation import attest
from btard.audit.recorder import Recorder
from btard.drivers.compute import CohortCompute, Mode
from btard.drivers.history import ParameterHistory, steps_kept
from btard.drivers.links import Links
from btard.drivers.newcomers import Newcomer, admitted_last, bring_in
from btard.drivers.task import StepResult, Task
from btard.drivers.threads import Team, kernel_threads
from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.coin import NoQuorum
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoGradient
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Broadcast, Compare, Compute, Effect, Exchange, Purpose
from btard.protocol.ideal import IdealCommitments
from btard.protocol.identity import Identity, Roster
from btard.protocol.messages import JoinRequest, Packet, Relayed
from btard.protocol.peer import Outcome, Peer
from btard.protocol.snapshot import load_peer, save_peer

THREADED_FROM = 2**17
"""Parameters from which on the peers of a cohort work in threads."""


class LocalDriver:
    """Runs one `Peer` per entry of the config, `behaviours` (peer -> Behaviour) among them, on one `task`.

    `history_folder` takes the parameters of past steps where an attack asks for many of them, and `repeatable` says how
    many steps a resumed run may repeat without losing any that it needs. `tasks` (peer -> Task) are for peers that
    compute the same with other numerics than `task`, as on other hardware.

    `recorder` writes down what an audit needs. `commitments`: `hashed`, or `ideal` (`btard.protocol.ideal`): that saves
    reading every gradient and aggregate three times and, on a GPU, moving them to the CPU for it; nothing is left to
    audit then.

    The network is reliable unless `links` say otherwise. Tensors are handed over without a copy or an encoding;
    everything else (hashes, signatures, decoding, checks) happens as between strangers. What several peers would
    compute alike, such as whether a signature is good, is computed once (`btard.protocol.remembered`).

    Large models on a CPU: between two phases the peers work in as many threads as torch has when this is made.
    """

    def __init__(
        self,
        config: ProtocolConfig,
        task: Task,
        *,
        behaviours: Mapping[int, Behaviour] | None = None,
        collusion: Collusion | None = None,
        mode: Mode = "batched",
        history_folder: Path | None = None,
        repeatable: int = 0,
        links: Links | None = None,
        recorder: Recorder | None = None,
        tasks: Mapping[int, Task] | None = None,
        commitments: Literal["hashed", "ideal"] = "hashed",
    ) -> None:
        if commitments not in ("hashed", "ideal"):
            raise ValueError(f"commitments must be 'hashed' or 'ideal', got {commitments!r}")
        if commitments == "ideal" and recorder is not None:
            raise ValueError("ideal commitments mean nothing to an auditor: record only with commitments='hashed'")
        behaviours = behaviours or {}
        identities = [Identity.from_seed(config.run_id, peer) for peer in range(config.peers)]
        roster = Roster(tuple(identity.public_key for identity in identities))
        self.config, self.task, self.collusion, self.links = config, task, collusion, links or Links()
        self.recorder = recorder
        if self.links.loss and not config.rounds:
            raise ValueError("links that lose broadcasts need a protocol that repeats them: set relays to 1 or more")
        self.peers = {
            i: Peer(i, identities[i], roster, config, task.d, behaviours.get(i, HONEST)) for i in range(config.peers)
        }
        self.history = ParameterHistory(task.d, steps_kept(behaviours, repeatable), history_folder)
        self.compute = CohortCompute(task, self.history, mode, tasks)
        self.joining: dict[bytes, Newcomer] = {}
        """Public key -> everybody who has asked to join."""
        self._repeatable = repeatable
        self._ideal = IdealCommitments(config.run_id) if commitments == "ideal" else None
        self._threads = torch.get_num_threads()
        self._team: Team | None = None

    @property
    def honest(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if not peer.behaviour.byzantine]

    def join(
        self,
        identity: Identity,
        behaviour: Behaviour = HONEST,
        *,
        donor: int | None = None,
        receive: Callable[[Mapping[str, torch.Tensor]], None] | None = None,
    ) -> Newcomer:
        """Ask all members to admit a newcomer; it takes part from the step after its admission on.

        Before `restore`, say it again for everybody who had joined: a checkpoint holds no private keys.
        Errors: ValueError if the run admits nobody, or the behaviour asks for parameters that are no longer kept.
        """
        if self.config.probation is None:
            raise ValueError("nobody can join this run: set `probation` to the steps that a newcomer has to serve")
        if steps_kept({0: behaviour}, self._repeatable) > self.history.keep:
            raise ValueError(
                f"the newcomer's behaviour looks {behaviour.lookback} steps back, only {self.history.keep} steps of "
                "parameters are kept: let a peer of the start look as far back"
            )
        for peer in self.peers.values():
            peer.receive(JoinRequest.create(identity, self.config.run_id))
        return self.joining.setdefault(identity.public_key, Newcomer(identity, behaviour, donor, receive))

    def step(self, params: torch.Tensor, shared: Mapping[str, torch.Tensor] | None = None) -> StepResult:
        """One step of all peers at `params` [d]; whoever falls out is gone from `peers` afterwards.

        `shared`: what a newcomer has to download beside the parameters, such as the optimizer's state.
        Errors: RuntimeError if honest peers come to different results, which would be a bug of the protocol.
        """
        if self.config.probation is not None:
            self._bring_in({"parameters": params, **(shared or {})})
        now = next(iter(self.peers.values())).t
        # Once the last peer that looks far back is gone, nobody needs a long history any more.
        self.history.record(now, params, deep=any(peer.behaviour.lookback > 1 for peer in self.peers.values()))
        if self._ideal is not None:
            self._ideal.forget(now - 1)
        with kernel_threads(1), self._ideal.in_use() if self._ideal is not None else nullcontext():
            return self._step(now, params)

    def _step(self, now: int, params: torch.Tensor) -> StepResult:
        team = self._team_for(params)
        seconds: dict[str, float] = defaultdict(float)
        running = {i: peer.step() for i, peer in self.peers.items()}
        answers: dict[int, Any] = dict.fromkeys(running)
        outcomes: dict[int, Outcome | None] = {}
        sent: dict[int, int] = dict.fromkeys(running, 0)
        while running:
            started = time.perf_counter()
            effects: dict[int, Effect] = {}
            resume = partial(self._resume, running, answers)
            everybody = list(running)
            for i, reached in zip(everybody, (team.map if team else map)(resume, everybody), strict=True):
                if isinstance(reached, _Ended):
                    outcomes[i] = reached.outcome
                    del running[i]
                else:
                    effects[i] = reached
            phase = self._phase(effects)
            for i in [i for i, effect in effects.items() if _phase_of(effect) != phase]:
                # A Byzantine peer that lives in a history of its own no longer takes part in ours.
                outcomes[i] = None
                del running[i], effects[i]
            phase = phase.partition("/")[0]
            seconds[phase] += time.perf_counter() - started
            started = time.perf_counter()
            self._count(effects, sent)
            answers = self._answer(now, effects)
            # Gradients have a line of their own; moving messages belongs to the phase that sends them.
            computing = any(isinstance(effect, Compute) for effect in effects.values())
            seconds["gradients" if computing else phase] += time.perf_counter() - started
        agreed = self._agreed({i: outcomes[i] for i in outcomes if not self.peers[i].behaviour.byzantine})
        witness = next(self.peers[i] for i in outcomes if outcomes[i] is agreed)
        active = witness.active
        staying = {*active, *witness.probation}
        self.peers = {i: peer for i, peer in self.peers.items() if outcomes[i] is not None and i in staying}
        if self.recorder is not None:
            self.recorder.finished(self.honest, lambda step: self.history.at(step, now))
        return StepResult(
            step=now,
            gradient=agreed.gradient(torch.empty_like(params)),
            coin=agreed.coin,
            removed=agreed.removed,
            active=active,
            workers=witness.current.workers,
            tau=witness.current.tau,
            seconds=dict(seconds),
            sent=sent,
        )

    def _resume(
        self, running: Mapping[int, Generator[Effect, Any, Outcome | None]], answers: Mapping[int, Any], i: int
    ) -> Effect | _Ended:
        """Let peer `i` go on with what it asked for, up to its next effect or its end."""
        try:
            return running[i].send(answers[i])
        except StopIteration as stop:
            return _Ended(stop.value)
        except (NoGradient, NoQuorum):
            if not self.peers[i].behaviour.byzantine:
                raise
            return _Ended(None)  # in a history of its own, in which nobody else works

    def _team_for(self, params: torch.Tensor) -> Team | None:
        """Threads for the peers, unless the model is so small that handing over takes longer than the work."""
        if self._threads == 1 or params.is_cuda or self.task.d < THREADED_FROM:
            return None
        self._team = self._team or Team(self._threads)
        return self._team

    def attest(self, params: torch.Tensor) -> None:
        """The end of the run, signed by all peers that are left, into the recorder's folder; `params` [d] are final."""
        if self.recorder is not None:
            attest(self.recorder, self.peers.values(), params).write(self.recorder.folder)

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The cohort between two steps: JSON values, and tensors, shared ones once. Write them before the next step."""
        shared: dict[str, Any] = {}
        refs: dict[str, dict[str, str]] = {}
        tensors: dict[str, torch.Tensor] = {f"history/{s}": x for s, x in self.history.recent().items()}
        names: dict[tuple[int, int], str] = {}
        for i, peer in self.peers.items():
            # Broadcasts are reliable here, so the values are the same at all honest peers, and attackers resume with
            # them too; aggregates are the same down to the memory.
            values, own = save_peer(peer)
            if not peer.behaviour.byzantine:
                shared = values
            refs[str(i)] = {
                name: names.setdefault((x.data_ptr(), x.numel()), f"peer/{i}/{name}") for name, x in own.items()
            }
            tensors |= {ref: own[name] for name, ref in refs[str(i)].items() if ref not in tensors}
        keys, rows = self.compute.state()
        recorded = None if self.recorder is None else self.recorder.state()
        return {"shared": shared, "peers": refs, "memory": keys, "recorder": recorded}, tensors | rows

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` returned, on a driver made with the same arguments.

        Errors: ValueError if somebody had joined and has not been made known by `join`.
        """
        for i in (int(i) for i in state["peers"] if int(i) >= self.config.peers):
            key = bytes.fromhex(state["shared"]["roster"][i])
            if key not in self.joining:
                raise ValueError(f"peer {i} had joined with the public key {key.hex()}: call `join` for it first")
            self.peers[i] = self.joining[key].make_peer(i, self.peers[0])
        self.peers = {int(i): self.peers[int(i)] for i in state["peers"]}
        for i, peer in self.peers.items():
            load_peer(peer, state["shared"], {name: tensors[ref] for name, ref in state["peers"][str(i)].items()})
        self.history.restore({int(n.split("/")[1]): x for n, x in tensors.items() if n.startswith("history/")})
        self.compute.restore(state["memory"], tensors)
        if self._ideal is not None:
            for record in (peer.last for peer in self.peers.values() if peer.last is not None):
                self._ideal.learn_step(record.committed())
        if self.recorder is not None and state["recorder"] is not None:
            self.recorder.restore(state["recorder"], self.honest[0].last)

    def _bring_in(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Those who were admitted in the step before become peers."""
        witness = next(peer for peer in self.honest if peer.id in peer.active)
        members = {i: self.peers[i] for i in witness.active if i in self.peers}
        admitted = admitted_last(witness)
        for number in admitted:
            newcomer = self.joining.get(witness.roster.keys[number])
            if newcomer is not None:
                self.peers[number] = bring_in(newcomer, number, members, witness, tensors)
        for peer in (self.peers[number] for number in admitted if number in self.peers):
            for waiting in self.joining.values():  # from now on it hears of requests like everybody
                peer.receive(JoinRequest.create(waiting.identity, self.config.run_id))

    def _agreed(self, honest: Mapping[int, Outcome | None]) -> Outcome:
        """The outcome that all remaining honest peers share."""
        staying = {i: outcome for i, outcome in honest.items() if outcome is not None}
        if not staying:
            raise RuntimeError("no honest peer is left in the run")
        views = {}
        for i, o in staying.items():
            peer = self.peers[i]
            views[i] = (o.step, o.hashes, o.coin, peer.ledger.head, peer.active, peer.assignments, peer.tau)
        first = next(iter(views))
        for i, view in views.items():
            if view != views[first]:
                raise RuntimeError(f"step {staying[i].step}: honest peers {first} and {i} disagree on the outcome")
        return staying[first]

    def _phase(self, effects: Mapping[int, Effect]) -> str:
        """The phase that the honest peers are in. Two at once would be a bug: nothing could be delivered."""
        honest = {i: effect for i, effect in effects.items() if not self.peers[i].behaviour.byzantine}
        phases = {_phase_of(effect) for effect in (honest or effects).values()}
        if len(phases) > 1:
            raise RuntimeError(f"honest peers are in different phases at once: {sorted(phases)}")
        return phases.pop() if phases else "choose"

    def _count(self, effects: Mapping[int, Effect], sent: dict[int, int]) -> None:
        """Add to `sent` the bytes that each peer puts on the wire with these effects."""
        others, size = len(effects) - 1, _sizes()
        for i, effect in effects.items():
            if isinstance(effect, Broadcast):
                usual = 0 if effect.message is None else effect.message.nbytes
                faces = [0 if message is None else message.nbytes for message in effect.faces.values()]
                sent[i] += usual * (others - len(faces)) + sum(faces)
            elif isinstance(effect, Compare):
                sent[i] += len(effect.digest) * others
            elif isinstance(effect, Exchange):
                sent[i] += sum(size(packets) for packets in effect.packets.values())

    def _answer(self, now: int, effects: Mapping[int, Effect]) -> dict[int, Any]:
        asked = {i: effect for i, effect in effects.items() if isinstance(effect, Compute)}
        if asked:
            # A judge is given the time that it needs; training and validation have the step's deadline.
            late = {i for i, e in asked.items() if e.purpose is not Purpose.JUDGE and self.links.late(now, i)}
            asked = {i: request for i, request in asked.items() if i not in late}
            with kernel_threads(self._threads):
                rows = self.compute.answer(now, list(asked.values()), list(asked))
            gradients = dict(zip(asked, rows, strict=True))
            self._observe(now, asked, gradients)
            return {i: gradients.get(i) for i in effects}
        if any(isinstance(effect, Broadcast) for effect in effects.values()):
            return self._broadcast(now, {i: e for i, e in effects.items() if isinstance(e, Broadcast)})
        if any(isinstance(effect, Compare) for effect in effects.values()):
            views = {i: effect.digest for i, effect in effects.items() if isinstance(effect, Compare)}
            return self._lose(now, effects, dict.fromkeys(effects, views))
        inbox: dict[int, dict[int, Sequence[Any]]] = {i: {} for i in effects}
        if not any(effect.packets for effect in effects.values() if isinstance(effect, Exchange)):
            return inbox
        size = _sizes()
        for sender, effect in effects.items():
            for recipient, packets in effect.packets.items() if isinstance(effect, Exchange) else ():
                wanted = effects.get(recipient)
                if isinstance(wanted, Exchange) and size(packets) <= wanted.limit:
                    inbox[recipient][sender] = packets
        return self._lose(now, effects, inbox, acknowledged=True)

    def _lose(
        self, now: int, effects: Mapping[int, Effect], answers: dict[int, Any], *, acknowledged: bool = False
    ) -> dict[int, Any]:
        """The `answers` (recipient -> sender -> what was sent) without what the links lose in this phase."""
        phase = _phase_of(next(iter(effects.values())))
        lost = self.links.lost(now, phase, 1 + max(effects), acknowledged=acknowledged)
        if lost is None:
            return answers
        return {
            recipient: {sender: message for sender, message in inbox.items() if not lost[sender, recipient]}
            for recipient, inbox in answers.items()
        }

    def _broadcast(self, now: int, effects: Mapping[int, Broadcast]) -> dict[int, Any]:
        """Everybody gets the same, but for what senders with several faces have for single recipients."""
        spoken = {i: e.message for i, e in effects.items() if e.message is not None and e.message.nbytes <= e.limit}
        answers: dict[int, Any] = dict.fromkeys(effects, spoken)
        for sender, effect in effects.items():
            for recipient, message in effect.faces.items():
                if recipient in answers:
                    own = {**answers[recipient]}
                    own.pop(sender, None)
                    if message is not None and message.nbytes <= effect.limit:
                        own[sender] = message
                    answers[recipient] = own
        return self._lose(now, effects, answers)

    def _observe(self, now: int, asked: Mapping[int, Compute], gradients: Mapping[int, torch.Tensor]) -> None:
        """The omniscient attackers of the literature see every honest gradient of the step before they choose."""
        if self.collusion is not None:
            honest = {
                i: gradients[i]
                for i, request in asked.items()
                if request.purpose is Purpose.TRAIN
                and not self.peers[i].behaviour.byzantine
                and i in self.peers[i].active  # what newcomers compute does not go in
            }
            if honest:
                self.collusion.observe(now, honest)


@dataclass(frozen=True)
class _Ended:
    """The step of a peer is over."""

    outcome: Outcome | None


def _phase_of(effect: Effect) -> str:
    return effect.phase


def _sizes() -> Callable[[Sequence[Packet | Relayed]], int]:
    """A function that gives the bytes of items, and looks only once at what is sent to many."""
    known: dict[int, int] = {}

    def size(items: Sequence[Packet | Relayed]) -> int:
        if id(items) not in known:
            known[id(items)] = sum(item.nbytes for item in items)
        return known[id(items)]

    return size
