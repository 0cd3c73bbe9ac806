"""One peer of a swarm with all that belongs to it, what it keeps on disk, and what it says about itself."""

from __future__ import annotations

import json
import os
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from btard.audit.numerics import numeric_platform
from btard.audit.recorder import Recorder
from btard.drivers.history import ParameterHistory, steps_kept
from btard.drivers.past import Past
from btard.drivers.trail import Trail
from btard.harness import pieces
from btard.harness.run_folder import RunFolder, RunFolderError
from btard.harness.typed_yaml import ConfigError
from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.identity import Identity, Roster
from btard.protocol.ledger import Entry, Ledger, keys_of, members_of, still_byzantine
from btard.protocol.peer import Peer
from btard.protocol.snapshot import load_peer, save_peer
from btard.swarm.config import SwarmConfig
from btard.swarm.doors import Doors
from btard.swarm.driver import SwarmDriver
from btard.swarm.founding import trusted_keys
from btard.swarm.life import START, Left, Life, Point, after, checkpoint_digest, said_of
from btard.swarm.lines import Once, Say
from btard.swarm.notes import Notes
from btard.swarm.said import RECENT
from btard.swarm.startup import begin, hold, make_node, own_identity, write_model
from btard.swarm.state import MAX_STATUS, StateService
from btard.swarm.task import TaskSource
from btard.task import HasLocalState

STATUS_LEDGER = 40_000
"""Largest size of the ledger's newest entries in a status, in bytes: one entry can have many votes."""


class Member:
    """A peer that has its key, its task and its model, and after `take_seat` its place among the others."""

    def __init__(self, config: SwarmConfig, out: Path, source: TaskSource, *, say: Say = print) -> None:
        self.config, self.out, self.say = config, Path(out), say
        self.folder = RunFolder(self.out, config, events=False)
        self.held = hold(config, self.folder)
        self.state, self.phase = "starting", ""
        self.protocol = config.protocol_config()
        if config.peer is not None:
            self.identity = Identity.from_seed(config.run_id, config.peer)
        else:
            self.identity = own_identity(config, self.folder)
        start = begin(config, source)
        self.optimizer, self.task, self.first, self.agreed = start.optimizer, start.task, start.first, start.agreed
        self.made_by = start.made_by
        self.folder.first = self.first
        write_model(self.task, self.out)
        self.device = self.optimizer.params.device
        self.platform = f"{numeric_platform(str(self.device))}, {torch.get_num_threads()} threads"
        """What the bits of its gradients depend on."""
        try:
            self._trail = Trail(self.protocol, self.task)
        except ValueError as error:
            raise ConfigError(f"protocol.{error}") from None
        self.notes = Notes(self.out)
        self.node = make_node(config, self.identity, self.notes)
        self.life: Life
        self.past: Past
        self.driver: SwarmDriver
        self.service: StateService
        self.recorder: Recorder | None = None
        self.stored: dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}
        """Step -> content of each checkpoint on the disk."""
        self._points: dict[int, Point] = {}
        """Step -> which checkpoint that is."""
        self.passed: list[Point] = []
        """Those of them whose step this peer had done when it was started."""
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.sent = 0
        self.signed: dict[str, Any] | None = None
        """What this peer has signed at the end of the run: JSON values, sent to anybody that asks."""
        self.chain = Ledger()
        """The part of the peer's ledger that is in the folder."""
        self._once: Once[str] = Once()

    @property
    def peer(self) -> Peer:
        return self.driver.peer

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The public keys of all members; none before this peer has its seat."""
        return tuple(self.members.values()) if hasattr(self, "driver") else ()

    @property
    def members(self) -> dict[int, bytes]:
        """Number -> public key of all members; before this peer has begun, by the ledger of its newest checkpoint.

        Most of the first peers may have left since they were listed, and others have come.
        """
        entries = self._stored_ledger()
        if entries is None:
            return {i: self.peer.roster.keys[i] for i in self.driver.members}
        keys = keys_of(entries, self.peer.roster.keys[: self.config.peers])
        return {i: keys[i] for i in members_of(entries, self.config.peers)}

    @property
    def tolerated(self) -> int:
        """How many of the `members` may be Byzantine."""
        entries = self._stored_ledger()
        return self.peer.byzantine if entries is None else still_byzantine(self.protocol, entries)

    def _stored_ledger(self) -> list[Entry] | None:
        return None if self.peer.t or self.state == "running" else self._newest_ledger()

    def _newest_ledger(self) -> list[Entry] | None:
        if not self.stored:
            return None
        return [Entry.from_json(line) for line in self.stored[max(self.stored)][1]["peer"]["ledger"]]

    def take_seat(self, founders: tuple[bytes, ...], doors: Doors) -> bool:
        """Become the peer that the list of first peers or the newest checkpoint says, or a newcomer after them.

        Returns whether that peer is a member.
        """
        me = self.identity.public_key
        self.service = StateService(self.node, doors, self.patience, self.status, trusted_keys(self.config))
        self.find_stored()
        roster = Roster(tuple(keys_of(self._newest_ledger() or (), founders).values()))
        if me not in roster.keys:
            roster = Roster(founders).grown(me)
        number = roster.keys.index(me)
        self.life = Life(number, len(founders), self.protocol.byzantine)
        _, self.life.left = self.notes.lives
        peer, collusion = self.make_peer(number, roster)
        kept = steps_kept({peer.id: peer.behaviour}, 2 * self.config.checkpoint_every)
        self.past = Past(ParameterHistory(self.task.d, kept, self.out / "history"), self._trail)
        self.driver = SwarmDriver(
            peer,
            self.task,
            self.node,
            doors,
            self.config.deadlines,
            self.past,
            collusion=collusion,
            watch=self._watch,
        )
        doors.members = {key: number for number, key in self.members.items()}  # they may begin before this one
        if not peer.behaviour.byzantine:
            self.recorder = Recorder(self.out, self.protocol, self.made_by)
        return me in founders or number in self.members

    def find_stored(self) -> None:
        """Find the checkpoints to go on from, and put back the lines that the folder has lost.

        One whose proofs are gone is passed over: the peer makes them again, or goes on with the state of the others. So
        is one of a life that the folder has left, if it has other lines since.
        Errors: RunFolderError for pieces of another peer's run, or of another run.
        """
        self.stored = {}
        now, left = self.notes.lives
        for step, all_tensors, state in self.folder.checkpoints.intact():
            tensors, held = pieces.separate(all_tensors)
            if state.get("key") != self.identity.public_key.hex():
                raise RunFolderError(
                    f"{self.out}: its checkpoints are those of another key than this peer's; {pieces.WHOLE}"
                )
            if (problem := pieces.missing_proof(self.out, held)) is not None:
                self.say(f"{problem}: its checkpoint of step {self.first + step} is not used")
                continue
            try:
                said = [] if self.stored else self.folder.put_back(self.first + step, held, grows=True)
            except RunFolderError:
                if now == bytes.fromhex(state["life"]):
                    raise
                self.say(f"the others began before step {self.first + step}: its checkpoint is kept, and is not used")
                continue
            for line in said:
                self.say(line)
            self.stored[step] = tensors, state
            digest = checkpoint_digest(state["peer"], tensors["training/parameters"])
            self._points[step] = step, digest, bytes.fromhex(state["life"])
        logged = {line["step"] - self.first for line in self.folder.metrics()}
        # It has not if it was away in the step, or did it in a life from which the others have come back since.
        self.passed = [
            (step, digest, life)
            for step, digest, life in sorted(self.points - {START})
            if step in logged and (life == now or left.get(life, -1) >= step)
        ]
        if not self.stored and self.folder.metrics():
            self.say(f"{self.out} has no checkpoint to go on from: with the state of the others, or from the start")

    @property
    def patience(self) -> float:
        """Seconds that a peer that asks for a state waits for the next step to begin, and for the state."""
        return self.config.deadlines.patience(self.task.d)

    def make_peer(self, number: int, roster: Roster) -> tuple[Peer, Collusion | None]:
        """A fresh peer of this number, honest or not, and its fellows if it is not."""
        config, attack = self.config, self.config.attack
        attackers = config.attackers()
        attacks = number in attackers if attack.join is None else attack.join
        behaviour: Behaviour = HONEST
        collusion = None
        if attack.name is not None and attacks:
            fellows = frozenset(attackers if attack.join is None or attack.peers is not None else ()) | {number}
            tensors = getattr(self.task, "tensors", ())
            collusion = Collusion(fellows, max(config.peers, number + 1), config.seed, tensors=tensors)
            behaviour = attack.make(collusion, begun=self.first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Peer(number, self.identity, roster, self.protocol, self.task.d, behaviour), collusion

    def say_once(self, line: str) -> None:
        """Print a line only once."""
        if self._once.new(line):
            self.say(line)

    # What is kept on the disk, and told to others.

    def rewrite_ledger(self) -> None:
        """Write to the folder what the peer's ledger holds, also of steps in which it was away."""
        chain = Ledger()
        self.folder.replace_ledger([chain.append(entry) for entry in self.peer.ledger.entries])
        self.chain = chain

    def local_state(self) -> Mapping[str, torch.Tensor]:
        """The part of the training that belongs to this peer alone."""
        return self.task.local_state() if isinstance(self.task, HasLocalState) else {}

    def save(self, summary: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint; the one after the last step with the `summary`, to be put back if that is lost."""
        values, own = save_peer(self.peer)
        tensors = {f"training/{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors |= self.past.state()
        tensors |= {f"local/{name}": tensor for name, tensor in self.local_state().items()}
        tensors |= {f"peer/{name}": tensor for name, tensor in own.items()}
        tensors |= self.folder.vouch(self.first + self.peer.t, timings=True)
        state = {
            "peer": values,
            "key": self.identity.public_key.hex(),
            "life": self.peer.epoch.hex(),
            "workers": {str(step): count for step, count in self.past.history.workers.items()},
            "recorder": None if self.recorder is None else self.recorder.state(),
            "sent": self.sent,
            "summary": summary,
        }
        self.folder.save_checkpoint(self.peer.t, tensors, state)
        digest = checkpoint_digest(values, self.optimizer.params)
        self._points[self.peer.t] = self.peer.t, digest, self.peer.epoch  # first: others may ask now
        self.stored = {0: ({}, {}), self.peer.t: ({}, {})}

    def load(self, step: int) -> None:
        """Go back to the checkpoint of `step`."""
        tensors, state = self.stored[step]

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {n[len(prefix) :]: x.to(self.device) for n, x in tensors.items() if n.startswith(prefix)}

        self.optimizer.load(under("training/"))
        if isinstance(self.task, HasLocalState):
            self.task.load_local_state(under("local/"))
        fresh, _ = self.make_peer(self.peer.id, self.peer.roster)
        load_peer(fresh, state["peer"], under("peer/"))
        past = {n: x.to(self.device) for n, x in tensors.items() if n.startswith(("history/", "trail/"))}
        self.past.restore(past, {int(s): count for s, count in state["workers"].items()})
        self.driver.restart(fresh)
        self.sent = state["sent"]
        if self.recorder is not None and state["recorder"] is not None:
            self.recorder.restore(state["recorder"], fresh.last)
        self.say(f"goes on from its checkpoint at step {self.first + step}")

    def begin_life(self) -> None:
        """Begin the life that has been agreed on, at its checkpoint."""
        step, _, before = self.life.begin
        if step:
            self.load(step)
        self.stored = {earlier: kept for earlier, kept in self.stored.items() if earlier >= step}
        values, _ = save_peer(self.peer)
        self.peer.begin_life(self.life.epoch(self.config.run_id, checkpoint_digest(values, self.optimizer.params)))
        was, left = self.notes.lives
        for old in filter(None, (before, was)):
            left = after(left, old, step)
        self.note_life(left)

    def note_life(self, left: Left | None = None) -> None:
        """Note the life that the peer is in, before it does a step of it; `left`: if others than before are left."""
        self.life.left = self.notes.lives[1] if left is None else left
        self.notes.write_lives(self.peer.epoch, self.life.left)

    @property
    def points(self) -> set[Point]:
        """The checkpoints on the disk, and the start."""
        return {START, *(self._points[step] for step in self.stored if step)}

    def status(self) -> dict[str, Any]:
        """What this peer tells anybody about itself: JSON values, at most `MAX_STATUS` bytes."""
        if not hasattr(self, "driver"):
            return {"state": self.state}
        peer = self.peer
        recent = list(self.recent)  # first, so that the ledger below has whatever happened in these steps
        said = {
            "peer": peer.id,
            "state": self.state,
            "step": peer.t,
            "first": self.first,
            "phase": self.phase,
            "stored": said_of(self.points),
            "passed": said_of(self.passed),
            "active": list(peer.active),
            "head": peer.ledger.head.hex(),
            "entries": len(peer.ledger.entries),
            "ledger": _newest(peer.ledger.entries),
            "recent": recent,
            "instance": os.environ.get("BTARD_INSTANCE"),
            "attacks": peer.behaviour.byzantine,
            "platform": self.platform,
            "signed": self.signed,
            **self.life.told(),
        }
        return fitted(said, MAX_STATUS)

    def _watch(self, phase: str) -> None:
        self.phase = phase


def fitted(said: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """A status of at most `limit` bytes: if it has too many peers for that, it has fewer old steps and entries."""
    short = dict(said)
    for name in ("recent", "ledger"):
        while short[name] and len(json.dumps(short)) > limit:
            short[name] = short[name][(len(short[name]) + 1) // 2 :]
    return short


def _newest(entries: Sequence[Entry]) -> list[str]:
    """As many of the newest entries as fit into a status, the oldest first."""
    found: list[str] = []
    left = STATUS_LEDGER
    for entry in reversed(entries):
        said = entry.to_json()
        left -= len(json.dumps(said))
        if left < 0:
            break
        found.append(said)
    return found[::-1]
