"""What a coordinator keeps: checkpoints of states that most peers vouch for, and who signs the last one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from btard.audit.attestation import Attestation
from btard.audit.settings import write_settings
from btard.harness.pieces import Pieces, separate
from btard.harness.run_folder import RunFolder
from btard.protocol.download import Download, WrongState
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import Roster
from btard.protocol.ledger import Entry, Ledger, keys_of, members_of
from btard.swarm.checkpoint import load_start, read_start, save_start
from btard.swarm.config import SwarmConfig
from btard.swarm.doors import Doors
from btard.swarm.fetch import Fetched, ask_status, fetch_state
from btard.swarm.lines import Say
from btard.swarm.startup import Beginning, names_digest
from btard.swarm.state import PREVIOUS
from btard.swarm.task import Evaluated
from btard.swarm.view import SwarmView
from btard.task import PARAMETERS

VALIDATION = "validation_loss"
"""The name that every task that is measured must give."""
SIGNING = 10.0
"""Seconds that the remaining peers have to sign the final state, after the first of them have it."""
POLL = 0.5
"""Seconds between two rounds of questions for signatures."""


FOUNDERS, ATTACKS = "founders", "attacks"
"""What a checkpoint notes beside the state: the first peers' keys, and which of them say that they attack."""


@dataclass(frozen=True)
class Kept:
    """What the checkpoint of `step` holds of the coordinator's folder."""

    step: int
    pieces: Pieces
    founders: tuple[bytes, ...]
    attacks: dict[int, bool]


class Keeper:
    """The checkpoints in `folder`. `start`: the training at its first step; `view`: what peers say.

    `open` gives it its way to the peers; `me`: the asker's public key.
    """

    def __init__(
        self, config: SwarmConfig, folder: RunFolder, start: Beginning, view: SwarmView, me: bytes, say: Say
    ) -> None:
        self.config, self.folder, self.view, self.me, self.say = config, folder, view, me, say
        self.optimizer, self.first = start.optimizer, start.first
        self.evaluate = start.task.evaluation() if isinstance(start.task, Evaluated) else None
        self.made_by, self.layout = start.made_by, names_digest(start.task)
        self.final: Fetched | None = None
        """The state after the last step."""
        self._doors: Doors
        self._founders: tuple[bytes, ...]
        self._measured: dict[str, float] = {}
        self._evaluated: tuple[int, dict[str, float]] | None = None
        """Step of the checkpoint that was measured last, and the result."""
        self._fetching: Future[Fetched] | None = None
        """The state that is being downloaded."""
        self._due = 0
        """The first step of which it may be: checkpoints come no more often than `checkpoint_every`."""

    def open(self, doors: Doors, founders: tuple[bytes, ...]) -> None:
        """From now on peers can be asked."""
        self._doors, self._founders = doors, founders

    def kept(self) -> Kept:
        """What the newest checkpoint that is intact holds of the folder; damaged ones get another name."""
        for file in reversed(self._files()):
            try:
                header, tensors = read_start(file)
            except ValueError as error:
                file.rename(file.with_suffix(".damaged"))
                self.say(f"{file}: damaged, and set aside ({error})")
                continue
            notes = header["notes"]
            attacks = {int(peer): attacks for peer, attacks in notes[ATTACKS].items()}
            founders = tuple(bytes.fromhex(key) for key in notes[FOUNDERS])
            return Kept(header["step"], separate(tensors)[1], founders, attacks)
        return Kept(self.first, {}, (), {})

    @property
    def newest(self) -> int:
        """The step of the newest checkpoint."""
        files = self._files()
        return int(files[-1].stem[5:]) if files else self.first

    @property
    def complete(self) -> bool:
        """Whether the state after the last step is on the disk."""
        return self.newest >= self.config.steps

    @property
    def hopeless(self) -> bool:
        """Whether nothing is being downloaded, and too few peers are there to vouch for anything."""
        return self._fetching is None and not self._enough()

    def keep(self) -> bool:
        """Write a checkpoint whenever one is due, of the state that more than half of the members vouch for.

        Returns whether it was the final one.
        """
        if self._fetching is None:
            self._ask_for_state(self.newest)
        if self._fetching is None or not self._fetching.done():
            return False
        fetched, self._fetching = self._fetching, None
        try:
            found = fetched.result()
        except WrongState as error:
            self.say(f"no checkpoint at step {self.view.next}: {error}")
            return False
        step = self.first + found.step
        if step < self._due:  # the members have not come as far as they said
            self._ask_for_state(self.newest, step)
            return False
        tensors = {name: x for name, x in found.download.tensors.items() if name != PREVIOUS}
        hashed = found.download.digest(self.config.run_id).hex()
        tensors |= self.folder.vouch(step, timings=True)
        notes = {
            FOUNDERS: [key.hex() for key in self._founders],
            ATTACKS: {str(peer): attacks for peer, attacks in self.view.attacks.items()},
        }
        file = self.folder.checkpoints.path / f"step-{step:08d}.safetensors"
        save_start(file, step, tensors, found.vouched_by, hashed, notes)
        self.say(f"checkpoint of step {step}, vouched for by most")
        if step >= self.config.steps:
            self.final = found
            return True
        self._ask_for_state(step)  # before it is measured, which may take long
        self._measured = self._evaluate(step, tensors[PARAMETERS])
        return False

    def take_measured(self) -> dict[str, float]:
        """What was measured at the newest checkpoint since the last call."""
        measured, self._measured = self._measured, {}
        return measured

    def evaluation(self) -> dict[str, float | None]:
        """What is measured at the newest checkpoint, at least the validation loss: None if there is nothing."""
        files = self._files()
        if not files or self.evaluate is None:
            return {VALIDATION: None}
        step, tensors = load_start(files[-1], self.optimizer.state())
        return {**self._evaluate(step, tensors[PARAMETERS])}

    def patience(self, steps: int) -> float:
        """Seconds until a state comes that is this many steps away."""
        return max(1, steps) * self.config.deadlines.patience(self.optimizer.params.numel())

    def _files(self) -> list[Path]:
        return self.folder.checkpoints.files()

    def _enough(self) -> bool:
        """Whether enough peers are there to vouch for a state."""
        return 2 * len(self.view.present(time.monotonic())) > len(self.view.active())

    def _evaluate(self, step: int, params: torch.Tensor) -> dict[str, float]:
        """What the task measures at `params` [d] of `step`, by name; nothing if it cannot be measured."""
        if self.evaluate is None:
            return {}
        if self._evaluated is None or self._evaluated[0] != step:
            found = self.evaluate(params)
            measured = dict(found) if isinstance(found, Mapping) else {VALIDATION: found}
            self._evaluated = step, measured
            said = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())
            self.say(f"at step {step}: {said}")
        return self._evaluated[1]

    def _ask_for_state(self, newest: int, reached: int | None = None) -> None:
        """Ask for the state of the checkpoint that is due after that of step `newest`; in the end, for the final one.

        `reached`: a step whose state the members have given; without it what most of them say of their steps counts.

        As early as can be, so that it is of exactly that step, whenever peers are looked at: what begins from it is
        then the same again and again. Peers that are banned meanwhile do not matter, as they are never the majority.
        """
        every = self.config.checkpoint_every
        due = min((newest // every + 1) * every, self.config.steps)
        if newest >= self.config.steps or not self._enough():
            return
        template = dict(self.optimizer.state().items()) | {PREVIOUS: self.optimizer.params}
        keys = keys_of(self.view.ledger.entries, self._founders)
        members = {peer: keys[peer] for peer in self.view.active()}
        self._due = due
        now = max(self.view.next, self.view.furthest + 1) if reached is None else reached
        ahead, final = due - now, due == self.config.steps
        at = due - self.first if ahead > 0 or final else None  # if another was missed, the next one will do
        asked = fetch_state(
            self._doors,
            self.me,
            members,
            template,
            self.config.deadlines,
            self.patience(ahead),
            at,
            tolerated=self.view.byzantine,
        )
        self._fetching = self._doors.node.submit(asked)


class Ending:
    """The peers that sign that a run ends with the state `step`, `download`, which most of its peers vouch for."""

    def __init__(
        self, config: SwarmConfig, founders: tuple[bytes, ...], step: int, download: Download, layout: bytes
    ) -> None:
        state = json.loads(download.state)
        self.ledger = Ledger()
        self.lines = tuple(self.ledger.append(Entry.from_json(line)) for line in state["ledger"])
        """The ledger's lines, as in ledger.jsonl."""
        params = download.tensors[PARAMETERS]
        self.config, self.d = config.protocol_config(), params.numel()
        self.roster = Roster(tuple(bytes.fromhex(key) for key in state.get("roster", ())) or founders)
        self.members = {*members_of(self.ledger.entries, self.config.peers)}
        self.statement = Attestation(step, self.ledger.head, tensor_digest(params, PARAMETERS), layout=layout)
        self.signatures: dict[int, bytes] = {}

    async def collect(self, doors: Doors) -> None:
        """Ask the remaining peers for their signatures until all have given one, or `SIGNING` seconds are over."""
        message, deadline = self.statement.digest(self.config, self.roster, self.d), time.monotonic() + SIGNING

        async def ask(peer: int) -> None:
            try:
                said = _signature(await ask_status(doors, self.roster.keys[peer]))
            except Exception:  # gone, refused or hostile: then it has not signed
                return
            if self.roster.verify(peer, message, said):
                self.signatures[peer] = said

        while True:
            await asyncio.gather(*(ask(peer) for peer in self.members - self.signatures.keys()))
            if self.members <= self.signatures.keys() or time.monotonic() > deadline:
                return
            await asyncio.sleep(POLL)

    def write(self, out: Path, made_by: str) -> None:
        """Write attestation.json, and the keys and settings needed to check it."""
        write_settings(out, self.config, self.d, self.roster, made_by)
        replace(self.statement, signatures=self.signatures).write(out)


def _signature(status: Mapping[str, Any]) -> bytes:
    """The signature of the end that a peer claims to have given, unchecked; nothing if it claims none."""
    said = status.get("signed")
    try:
        return bytes.fromhex(said["signature"]) if isinstance(said, dict) else b""
    except (KeyError, TypeError, ValueError):
        return b""
