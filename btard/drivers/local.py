"""The whole cohort in one process, in lockstep: the simulator. All peers run the protocol, signatures included."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from btard.audit.attestation import attest
from btard.audit.recorder import Recorder
from btard.drivers.compute import CohortCompute, Mode
from btard.drivers.history import ParameterHistory, steps_kept, workers_of
from btard.drivers.letters import Letters
from btard.drivers.links import Links
from btard.drivers.loop import Heard, StepResult, run_step
from btard.drivers.newcomers import Newcomer, admitted_last, bring_in
from btard.drivers.past import Past
from btard.drivers.threads import Team
from btard.drivers.trail import State, Trail
from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.commitments import Commitments, Hashed, Ideal
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import QUIET, Compute, Purpose
from btard.protocol.identity import Identity, Roster
from btard.protocol.memory import Memory
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Outcome, Peer
from btard.protocol.snapshot import load_peer, save_peer
from btard.task import Task

THREADED_FROM = 2**17
"""Number of parameters from which the peers of a cohort work in threads."""


class LocalDriver:
    """Runs one `Peer` per entry of the config, `behaviours` (peer -> Behaviour) among them, on one `task`.

    `history_folder` takes the parameters of past steps where an attack asks for many of them, and `repeatable` says how
    many steps a resumed run may repeat without losing any that it needs. `tasks` (peer -> Task) are for peers that
    compute the same with other numerics than `task`, as on other hardware.

    `recorder` writes down what an audit needs. `commitments`: `hashed`, or `ideal` (`btard.protocol.commitments`): that
    saves reading every gradient and aggregate three times and, on a GPU, moving them to the CPU for it; nothing is left
    to audit then.

    The network is reliable unless `links` say otherwise. Tensors are handed over without a copy or an encoding;
    everything else (hashes, signatures, decoding, checks) happens as between strangers. What several peers would
    compute alike, such as whether a signature is good, is computed once, unless `memory` remembers nothing. What one of
    them has signed itself needs no check: only signatures that came about otherwise are looked at.

    Large models on a CPU: between two phases the peers work in as many threads as torch has when this is made.

    >>> import btard, torch
    >>> driver = btard.LocalDriver(btard.ProtocolConfig(peers=5, byzantine=1), btard.QuadraticTask(8))
    >>> x = torch.ones(8)
    >>> for _ in range(3):
    ...     x = x - 0.1 * driver.step(x).gradient
    >>> len(driver.peers)
    5
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
        memory: Memory | None = None,
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
        memory = memory or Memory()
        kind = Hashed if commitments == "hashed" else Ideal
        self.commitments: Commitments = kind(config.run_id, memory=memory)
        shared = self.commitments, memory
        self.peers = {
            i: Peer(i, identities[i], roster, config, task.d, behaviours.get(i, HONEST), *shared)
            for i in range(config.peers)
        }
        history = ParameterHistory(task.d, steps_kept(behaviours, repeatable), history_folder)
        self.past = Past(history, Trail(config, task), collusion)
        self.compute = CohortCompute(task, history, mode, tasks)
        self.joining: dict[bytes, Newcomer] = {}
        """Public key -> the newcomer that has asked to join."""
        self._repeatable = repeatable
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
        if steps_kept({0: behaviour}, self._repeatable) > self.past.history.keep:
            raise ValueError(
                f"the newcomer's behaviour looks {behaviour.lookback} steps back, only {self.past.history.keep} steps "
                "of parameters are kept: let a peer of the start look as far back"
            )
        for peer in self.peers.values():
            peer.receive(JoinRequest.create(identity, self.config.run_id))
        return self.joining.setdefault(identity.public_key, Newcomer(identity, behaviour, donor, receive))

    def step(
        self,
        params: torch.Tensor,
        shared: Mapping[str, torch.Tensor] | None = None,
        local: Mapping[str, torch.Tensor] | None = None,
    ) -> StepResult:
        """One step of all peers at `params` [d]; a peer that falls out is gone from `peers` afterwards.

        `shared`: the state of the training beside the parameters, such as the optimizer's. Newcomers download it, and
        whoever goes back to an earlier state needs that of then. `local`: what also goes back and is nobody else's
        business, such as running statistics. Neither may change before the step is over.
        Errors: RuntimeError if honest peers come to different results, which would be a bug of the protocol.
        """
        state = State.of(params, shared, local)
        if self.config.probation is not None:
            self._bring_in(state.agreed)
        now = self.past.begin(self.peers.values(), state)
        self.commitments.forget(now - 1)
        self.commitments.parallel = params.is_cuda and self._threads > 1  # the peers take turns then
        team = self._team_for(params)
        course = run_step(self.peers, self, measure=self.past.measure, clock=self.links, each=team.map if team else map)
        for i, failure in course.failures.items():
            if not self.peers[i].behaviour.byzantine:
                raise failure
        agreed = self._agreed({i: o for i, o in course.outcomes.items() if not self.peers[i].behaviour.byzantine})
        witness = next(self.peers[i] for i, outcome in course.outcomes.items() if outcome is agreed)
        staying = {*witness.active, *witness.probation}
        self._refuse_losses(course.outcomes, staying)
        self.peers = {i: p for i, p in self.peers.items() if course.outcomes[i] is not None and i in staying}
        if self.recorder is not None:
            self.recorder.finished(self.honest, self.past.at, self.past.agreed)
        return self.past.trail.completed(course.result(witness, params))

    def _team_for(self, params: torch.Tensor) -> Team | None:
        """Threads for the peers, unless the model is so small that handing over takes longer than the work."""
        if self._threads == 1 or params.is_cuda or self.task.d < THREADED_FROM:
            return None
        self._team = self._team or Team(self._threads)
        return self._team

    def attest(self, params: torch.Tensor, layout: bytes = b"") -> None:
        """Write the end of the run, signed by all remaining peers, to the recorder's folder; `params` [d] are final.

        `layout`: digest of their names and places, to be signed, too (`btard.training.layout.layout_digest`).
        """
        if self.recorder is not None:
            attest(self.recorder, self.peers.values(), params, layout).write(self.recorder.folder)

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The cohort between two steps: JSON values, and tensors, shared ones once. Write them before the next step."""
        shared: dict[str, Any] = {}
        refs: dict[str, dict[str, str]] = {}
        tensors: dict[str, torch.Tensor] = self.past.state()
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

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, life: bytes | None) -> None:
        """Restore what `state` returned, on a driver created with the same arguments.

        `life`: a name that no other resume from this state has had. What was said before in the steps that are repeated
        counts no more then. None: the run goes on to the bytes of one that was never interrupted; that is for attackers
        that remember nothing of what they heard before.
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
            if life is not None:
                peer.begin_life(life)
        self.past.restore(tensors, workers_of(self.honest[0].last))
        self.compute.restore(state["memory"], tensors)
        for peer in self.peers.values():
            if peer.last is not None:
                self.commitments.learn(peer.last.step, peer.last.committed(peer.id))
        if self.recorder is not None and state["recorder"] is not None:
            self.recorder.restore(state["recorder"], self.honest[0].last)

    def _bring_in(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Turn the newcomers that were admitted in the step before into peers."""
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

    def _refuse_losses(self, outcomes: Mapping[int, Outcome | None], staying: Collection[int]) -> None:
        """RuntimeError if an honest peer has removed itself that all others keep. One that has crashed has not."""
        for i, outcome in outcomes.items():
            peer = self.peers[i]
            why = peer.current.expelled.get(i)
            if outcome is None and why is not None and i in staying and not peer.behaviour.byzantine:
                raise RuntimeError(f"step {peer.current.step}: honest peer {i} is out in its own view ({why}) alone")

    # How messages move, and where gradients come from (`btard.drivers.loop`).

    def gradients(
        self, step: int, phase: str, asked: Mapping[int, Compute], too_late: Callable[[], bool]
    ) -> dict[int, torch.Tensor]:
        if not asked:
            return {}
        gradients = dict(zip(asked, self.compute.answer(step, list(asked.values()), list(asked)), strict=True))
        if self.collusion is not None:
            # The omniscient attackers of the literature see every honest gradient of the step before they choose.
            honest = {
                i: gradients[i]
                for i, request in asked.items()
                if request.purpose is Purpose.TRAIN
                and not self.peers[i].behaviour.byzantine
                and i in self.peers[i].active  # what newcomers compute does not go in
            }
            working = any(request.purpose is Purpose.TRAIN for request in asked.values())
            if honest or (working and self.collusion.step < step):  # none, if all of them are slow
                self.collusion.observe(step, honest)
        return gradients

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        if all(said.done for said in letters.values()):  # as in nearly every round of relays
            return Heard(dict.fromkeys(letters, QUIET), {})
        unsettled = [i for i, said in letters.items() if not said.settled]
        letters = {i: said.shown_to(unsettled) for i, said in letters.items()}
        if all(said.silent for said in letters.values()):
            return Heard({i: {} for i in letters}, {})
        usual = {i: said.own for i, said in letters.items() if said.own is not None}
        answers = dict.fromkeys(letters, usual)
        for sender, said in letters.items():
            for recipient in said.special.keys() & letters.keys():
                if answers[recipient] is usual:
                    answers[recipient] = dict(usual)
                answers[recipient].pop(sender, None)
                letter = said.read(said.special[recipient], letters[recipient])
                if letter is not None:
                    answers[recipient][sender] = letter
        any_of = next(iter(letters.values()))
        lost = self.links.lost(step, any_of.phase, 1 + max(letters), acknowledged=any_of.exchanged)
        if lost is not None:
            answers = {
                recipient: {sender: letter for sender, letter in inbox.items() if not lost[sender, recipient]}
                for recipient, inbox in answers.items()
            }
        return Heard(answers, {i: said.nbytes(letters.keys() - {i}) for i, said in letters.items()})
