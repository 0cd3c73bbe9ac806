"""`python -m albert.trainer CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: one peer of a swarm.

It joins through `network.initial_peers`, waits for the others, trains with them, and goes on after an interruption:
from its own disk if they all stopped, else with the state that most of them vouch for. RUN_DIR gets this peer's
metrics, ledger, evidence and checkpoints.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before torch is imported: threads that wait by spinning steal the cores from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.table import Table
from tqdm import tqdm

from albert.checkpoint import load_start
from albert.config import Config, load_config
from albert.data.corpus import Corpus, DataError
from albert.deadlines import Deadlines
from albert.driver import Fallen, OutOfStep, SwarmDriver
from albert.founding import NoFounders, agreed_settings, announce, founders_digest, known_founders, learn_founders
from albert.model import make_model
from albert.network.doors import Doors
from albert.network.identity import load_identity, peer_id_of
from albert.network.link import Refused
from albert.network.node import Node, Unreachable
from albert.network.state import StateService, ask_status, ask_to_join, fetch_state
from albert.optimizer import Optimizer
from albert.task import AlbertTask, share
from btard.attacks.registry import make_attack
from btard.audit.attestation import Attestation
from btard.audit.recorder import Recorder
from btard.drivers.history import ParameterHistory, steps_kept
from btard.harness.progress import console_for_all, interval
from btard.harness.run_folder import RunFolder, RunFolderError
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import ConfigError
from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoGradient
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import SIGNATURE_SIZE, Identity, Roster
from btard.protocol.join import WrongState
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.snapshot import load_peer, load_public, save_peer

POLL = 0.3
"""Seconds between two looks at the others while waiting for them."""
FAREWELL = 5.0
"""Seconds for which a peer that is done waits for somebody to ask how it ended."""
PREVIOUS = "previous"
"""In a state: the parameters of the step before, which validators and judges need."""
RECENT = 24
"""Steps whose metrics a status has."""
STATUS_ENTRIES = 60
"""Entries of the ledger that a status has; the message is bounded."""


class Trainer:
    """One peer, from its start to the end of the run. `say` gets lines for people; `show` draws a progress bar.

    Errors: ConfigError, DataError, RunFolderError, Unreachable and NoFounders for what cannot work.
    """

    def __init__(self, config: Config, out: Path, *, say: Callable[[str], None] = print, show: bool = False) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config, self.out, self.say, self.show = config, Path(out), say, show
        self.folder = RunFolder(self.out, config, events=False)
        self.state, self.phase = "starting", ""
        self.protocol = config.protocol_config()
        self.identity = self._identity()
        self.device = torch.device(_device(config.device))
        corpus = Corpus(config.data.path)
        model = make_model(config.model, corpus.vocab_size, corpus.sequence_length, config.seed).to(self.device)
        self.optimizer = Optimizer(model, config.optimizer)
        self.task = AlbertTask(
            make_model(config.model, corpus.vocab_size, corpus.sequence_length, config.seed).to(self.device),
            corpus,
            config.batch.total,
            config.batch.per_device,
            half=config.precision == "float16" and self.device.type == "cuda",
            loss_scale=config.loss_scale,
        )
        self.first = 0
        """The step of `start_from`: what the protocol calls step 0 is this one."""
        if config.start_from is not None:
            self.first, tensors = load_start(Path(config.start_from), self.optimizer.state())
            self.optimizer.load(tensors)
        self.agreed = agreed_settings(config, corpus, self.first, self.optimizer.params)
        self.node = Node(
            self.identity,
            host=config.network.host,
            port=config.network.port,
            announce=config.network.announce,
            initial_peers=config.network.addresses,
            relay=config.network.relay,
        )
        self.driver: SwarmDriver
        self.service: StateService
        self.recorder: Recorder | None = None
        self.stored: dict[int, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.sent = 0
        self._chain = Ledger()
        self._said: set[str] = set()

    @property
    def peer(self) -> Peer:
        return self.driver.peer

    # From the start to the end.

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the summary. Errors: Fallen if the others have removed this peer."""
        finished = self.folder.summary()
        if finished is not None:
            return finished
        try:
            self.node.start()
            self.node.run(self._background())
            self._begin()
            self._train()
            return self._end()
        finally:
            self.folder.close()
            self.node.close()

    def _begin(self) -> None:
        founders = known_founders(self.config)
        if founders is None:
            founders = self.node.run(learn_founders(self.node, self.config, self.say))
        doors = Doors(self.node, self.config.run_id, self.agreed | {"founders": founders_digest(founders)})
        patience = self.config.deadlines.compute + 4 * self.config.deadlines.phase
        self.service = StateService(self.node, doors, patience, self.status)
        known = self.identity.public_key in founders
        number = founders.index(self.identity.public_key) if known else len(founders)
        roster = Roster(founders) if known else Roster(founders).grown(self.identity.public_key)
        peer, collusion = self._make_peer(number, roster)
        limits = self.config.deadlines
        self.driver = SwarmDriver(
            peer,
            self.task,
            self.node,
            doors,
            Deadlines(limits.compute, limits.phase, limits.message, limits.transfer, limits.give_up),
            ParameterHistory(
                self.task.d,
                steps_kept({peer.id: peer.behaviour}, 2 * self.config.checkpoint_every),
                self.out / "history",
            ),
            collusion=collusion,
            watch=self._watch,
        )
        self.stored = {step: (tensors, state) for step, tensors, state in self.folder.checkpoints.intact()}
        if not peer.behaviour.byzantine:
            self.recorder = Recorder(self.out, self.protocol)
        self.node.run(doors.open())
        self.say(f"peer {number if known else '(new)'}: {peer_id_of(self.identity.public_key).to_base58()}")
        if known:
            self._gather()
        else:
            self._join()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that were missed there are no metrics
            self.folder.start(self.first + self.peer.t)
        self._rewrite_ledger()

    def _rewrite_ledger(self) -> None:
        """Have in the folder what the peer's ledger holds, also of steps in which it was away."""
        chain = Ledger()
        self.folder.replace_ledger([chain.append(entry) for entry in self.peer.ledger.entries])
        self._chain = chain

    def _gather(self) -> None:
        """Wait for the others, then begin where most of them can: at the newest step that they have on their disks.

        If most are in the middle of the run, go on with their state.
        """
        self.state = "gathering"
        deadline = time.monotonic() + self.config.deadlines.gather
        half, shown = len(self.peer.roster.keys) / 2, 0
        while True:
            said = self._ask_all()
            mine = {"state": "gathering", "step": 0, "stored": sorted({0, *self.stored})}
            everybody = [mine, *said.values()]
            can = [step for step in mine["stored"] if sum(step in s.get("stored", ()) for s in everybody) > half]
            begin = max(can, default=0)
            ahead = sum(s.get("state") in ("running", "returning") and s.get("step", 0) > begin for s in said.values())
            if ahead > half:
                return self._return("the others are in the middle of the run")
            if len(everybody) != shown:
                shown = len(everybody)
                self.say(f"{shown} of {len(self.peer.roster.keys)} peers are here")
            late = time.monotonic() > deadline
            # Whoever goes first is waited for in the first phase, not longer: so all first say that they are ready.
            if len(everybody) == len(self.peer.roster.keys):
                self.state = "ready"
            if late and len(everybody) > half:
                break
            if self.state == "ready" and all(s.get("state") != "gathering" for s in said.values()):
                break
            if late:
                raise NoFounders(
                    f"only {len(everybody)} of {len(self.peer.roster.keys)} peers are here after deadlines.gather = "
                    f"{self.config.deadlines.gather:g} s, more than half are needed; start the others"
                )
            time.sleep(POLL)
        if begin:
            self._load(begin)
        self.stored = {step: kept for step, kept in self.stored.items() if step >= begin}
        self.state = "running"

    def _ask_all(self) -> dict[int, dict[str, Any]]:
        """What the others say of themselves. Errors: Fallen if more of them than can lie have banned this peer."""
        doors, keys = self.driver.doors, self.peer.roster.keys
        others = [number for number in range(len(keys)) if number != self.peer.id]
        banned: list[str] = []

        async def ask(number: int) -> dict[str, Any] | None:
            try:
                return await ask_status(doors, keys[number], timeout=5.0)
            except Refused as refused:
                if str(refused).startswith("banned"):
                    banned.append(str(refused))
                else:
                    self._complain(number, str(refused))
            except Exception:
                pass  # not there yet
            return None

        async def ask_everybody() -> list[dict[str, Any] | None]:
            return await asyncio.gather(*(ask(number) for number in others))

        answers = self.node.run(ask_everybody())
        if len(banned) > self.protocol.byzantine:
            raise Fallen(f"{len(banned)} members refuse this peer: {banned[0]}")
        return {number: said for number, said in zip(others, answers, strict=True) if said is not None}

    def _complain(self, number: int, refusal: str) -> None:
        line = f"peer {number} refuses this one: {refusal}"
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def _join(self) -> None:
        """Ask the members to be admitted, and take part from the step after that on."""
        self.state = "joining"
        request = JoinRequest.create(self.identity, self.config.run_id)
        self.say("this peer is not among the first ones: it asks to join")
        if self.protocol.probation is None:
            raise ConfigError("protocol.probation is null: nobody can join this run after its start")

        async def ask_everybody() -> None:
            keys = [self.peer.roster.keys[number] for number in self.driver.others]
            await asyncio.gather(
                *(ask_to_join(self.driver.doors, key, request) for key in keys), return_exceptions=True
            )

        self.node.run(ask_everybody())
        self._return("waiting to be admitted")

    def _return(self, why: str) -> None:
        """Go on with the state that most members vouch for, at the beginning of their next step.

        Errors: Fallen if it says that this peer is out, or if there is none in time.
        """
        self.state = "returning"
        self.say(f"{why}: asking for their state")
        deadline = time.monotonic() + self.config.deadlines.gather
        template = self.optimizer.state() | {PREVIOUS: self.optimizer.params}
        template = {name: tensor.cpu() for name, tensor in template.items()}
        patience = self.config.deadlines.compute + 4 * self.config.deadlines.phase
        while True:
            # This peer counts among them, as a member that says nothing.
            members = {i: self.peer.roster.keys[i] for i in self.driver.members}
            try:
                found = self.node.run(
                    fetch_state(self.driver.doors, self.identity.public_key, members, template, patience)
                )
            except WrongState as error:
                self._ask_all()  # Fallen, if that is why
                if time.monotonic() > deadline:
                    raise Fallen(f"no state came within deadlines.gather: {error}") from None
                time.sleep(POLL)
                continue
            step, download = found.step, found.download
            fresh, _ = self._make_peer(self.peer.id, self.peer.roster)
            load_public(fresh, download.state)
            number = fresh.roster.keys.index(self.identity.public_key) if self._is_in(fresh) else None
            if number is None and self.identity.public_key in fresh.roster.keys:
                raise Fallen(f"step {fresh.t}: the members' state says that this peer is out")
            if number is None:
                time.sleep(POLL)
                continue  # not admitted yet
            if number != fresh.id:
                fresh, _ = self._make_peer(number, fresh.roster)
                load_public(fresh, download.state)
            self.optimizer.load({name: tensor.to(self.device) for name, tensor in download.tensors.items()})
            self.driver.history.restore({step - 1: download.tensors[PREVIOUS].to(self.device)})
            self.driver.workers = {step - 1: len(fresh.last.active) - len(fresh.last.assignments)} if fresh.last else {}
            self.driver.restart(fresh, behind=True)
            self.recorder = None  # it has not seen the steps between
            self.state = "running"
            self.say(f"back at step {self.first + step}, with the state of the majority")
            return

    def _is_in(self, peer: Peer) -> bool:
        keys = peer.roster.keys
        return any(keys[i] == self.identity.public_key for i in (*peer.active, *peer.probation))

    def _train(self) -> None:
        last = self.config.steps - self.first
        bar = tqdm(
            total=self.config.steps,
            initial=self.first + self.peer.t,
            desc=f"peer {self.peer.id}",
            unit="step",
            disable=not self.show,
            mininterval=interval(),
        )
        with bar:
            while self.peer.t < last:
                try:
                    self._step(bar)
                except OutOfStep as error:
                    if self.peer.behaviour.byzantine and self.peer.id in self.driver.peer.current.expelled:
                        raise Fallen(str(error)) from None
                    self._return(str(error))
                    self._rewrite_ledger()
                bar.update(self.first + self.peer.t - bar.n)

    def _step(self, bar: tqdm[Any]) -> None:
        now, known = self.peer.t, len(self.peer.ledger.entries)
        for request in self._requests():
            self.peer.receive(request)
        if self.service.wanted and self.peer.last is not None:
            previous = self.driver.history.at(now - 1, now - 1) if now else self.optimizer.params
            self.service.publish(self.peer, self.optimizer.state() | {PREVIOUS: previous})
        started = time.perf_counter()
        result = self.driver.step(self.optimizer.params)
        self.optimizer.apply(result.gradient, self.first + now)
        seconds = {**result.seconds, "other": max(0.0, time.perf_counter() - started - sum(result.seconds.values()))}
        self.sent += sum(result.sent.values())
        worked = self.peer.last is not None and self.peer.id in self.peer.last.workers
        metrics = {
            "loss": self.task.loss if worked else None,
            "lr": self.optimizer.lr(self.first + now),
            "active": len(result.active),
            "samples": len(result.workers) * share(self.config.batch.total, self.driver.workers[now]),
            "sent": sum(result.sent.values()),
        }
        if self.config.protocol.tau == "auto":
            metrics["tau"] = result.tau
        self.folder.log(self.first + now, metrics, seconds)
        rounded = {phase: round(spent, 4) for phase, spent in seconds.items()}
        self.recent.append({**metrics, "step": self.first + now, "seconds": rounded, "time": time.time()})
        for entry in self.peer.ledger.entries[known:]:
            self.folder.log_ledger([self._chain.append(entry)])
            bar.write(_describe(entry)) if self.show else self.say(_describe(entry))
        if self.recorder is not None:
            self.recorder.finished([self.peer], lambda step: self.driver.history.at(step, now))
        bar.set_postfix_str(f"loss {self.task.loss:.3f}, {len(result.active)} peers", refresh=False)
        if (now + 1) % self.config.checkpoint_every == 0 and now + 1 < self.config.steps - self.first:
            self._save()

    def _requests(self) -> list[JoinRequest]:
        taken = self.service.requests[:]
        del self.service.requests[: len(taken)]
        return taken

    def _end(self) -> dict[str, Any]:
        """Sign the end together with the others, and write the summary."""
        self.state = "ending"
        peer = self.peer
        statement = Attestation(peer.t, peer.ledger.head, tensor_digest(self.optimizer.params, "parameters"))
        signed = statement.digest(self.protocol, peer.roster, self.task.d)
        said = self.driver.attest(peer.identity.sign(signed), SIGNATURE_SIZE)
        signatures = {i: signature for i, signature in said.items() if peer.roster.verify(i, signed, signature)}
        if self.recorder is not None:
            self.recorder.begin(peer.roster, self.task.d)
            Attestation(statement.step, statement.head, statement.params, signatures).write(self.out)
        self._save()
        bans = [
            {"peer": out, "step": self.first + e.step, "kind": e.kind, "accusers": list(e.accusers)}
            for e in peer.ledger.entries
            for out in e.peers
        ]
        summary = {
            "peer": peer.id,
            "steps": self.config.steps,
            "loss": self.task.loss,
            "active": list(peer.active),
            "bans": bans,
            "parameters": self.task.d,
            "digest": statement.params.hex(),
            "ledger": peer.ledger.head.hex(),
            "signed_by": sorted(signatures),
            "evidence": self.recorder is not None,
            "bytes_sent": self.sent,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        }
        self.folder.write_summary(summary)
        self.state = "done"
        self.driver.linger(2 * self.config.deadlines.phase)
        self.service.wait_until_told(FAREWELL)
        return summary

    # What is kept on the disk, and told to others.

    def _save(self) -> None:
        values, own = save_peer(self.peer)
        tensors = {f"training/{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors |= {f"history/{step}": x for step, x in self.driver.history.recent().items()}
        tensors |= {f"peer/{name}": tensor for name, tensor in own.items()}
        recorded = None if self.recorder is None else self.recorder.state()
        workers = {str(step): count for step, count in self.driver.workers.items()}
        self.folder.save_checkpoint(
            self.peer.t, tensors, {"peer": values, "workers": workers, "recorder": recorded, "sent": self.sent}
        )
        self.stored = {0: ({}, {}), self.peer.t: ({}, {})}

    def _load(self, step: int) -> None:
        """Go back to the checkpoint of `step`."""
        tensors, state = self.stored[step]

        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {n[len(prefix) :]: x.to(self.device) for n, x in tensors.items() if n.startswith(prefix)}

        self.optimizer.load(under("training/"))
        fresh, _ = self._make_peer(self.peer.id, self.peer.roster)
        load_peer(fresh, state["peer"], under("peer/"))
        self.driver.history.restore({int(s): x for s, x in under("history/").items()})
        self.driver.workers = {int(s): count for s, count in state["workers"].items()}
        self.driver.restart(fresh)
        self.sent = state["sent"]
        if self.recorder is not None and state["recorder"] is not None:
            self.recorder.restore(state["recorder"], fresh.last)
        self.say(f"goes on from its checkpoint at step {self.first + step}")

    def status(self) -> dict[str, Any]:
        """What this peer says of itself to whoever asks: JSON values, at most some 50 kB."""
        if not hasattr(self, "driver"):
            return {"state": self.state}
        peer = self.peer
        return {
            "peer": peer.id,
            "state": self.state,
            "step": peer.t,
            "first": self.first,
            "phase": self.phase,
            "stored": sorted({0, *self.stored}),
            "active": list(peer.active),
            "head": peer.ledger.head.hex(),
            "entries": len(peer.ledger.entries),
            "ledger": [entry.to_json() for entry in peer.ledger.entries[-STATUS_ENTRIES:]],
            "recent": list(self.recent),
            "instance": os.environ.get("BTARD_INSTANCE"),
        }

    def _watch(self, phase: str) -> None:
        self.phase = phase

    async def _background(self) -> None:
        self.node.spawn(announce(self.node, self.config.run_id))

    # Who this peer is.

    def _identity(self) -> Identity:
        if self.config.peer is not None:
            return Identity.from_seed(self.config.run_id, self.config.peer)
        try:
            return load_identity(Path(self.config.network.identity or self.out / "identity.key"))
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from None

    def _make_peer(self, number: int, roster: Roster) -> tuple[Peer, Collusion | None]:
        """A fresh peer of this number, honest or not, and its fellows if it is not."""
        config, attack = self.config, self.config.attack
        attackers = config.attackers()
        attacks = number in attackers if attack.join is None else attack.join
        behaviour: Behaviour = HONEST
        collusion = None
        if attack.name is not None and attacks:
            fellows = frozenset(attackers if attack.join is None or attack.peers is not None else ()) | {number}
            collusion = Collusion(fellows, max(config.peers, number + 1), config.seed)
            stop = None if attack.stop is None else max(1, attack.stop - self.first)
            behaviour = make_attack(
                attack.name,
                collusion,
                start=max(0, attack.start - self.first),
                every=attack.every,
                stop=stop,
                **attack.options,
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Peer(number, self.identity, roster, self.protocol, self.task.d, behaviour), collusion


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _describe(entry: Entry) -> str:
    by = f", accused by {', '.join(map(str, entry.accusers))}" if entry.accusers else ""
    out = ", ".join(map(str, entry.peers)) or str(entry.accused)
    return f"step {entry.step}: {'removed' if entry.peers else 'noted'} peer {out}: {entry.kind}{by}"


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """A table of how the run ended for this peer, and where its files are."""
    console = console_for_all()
    table = Table("peer", "steps", "loss", "peers left", "removed", "sent", title=str(out))
    removed = ", ".join(f"{ban['peer']} ({ban['kind']}, step {ban['step']})" for ban in summary["bans"]) or "nobody"
    table.add_row(
        str(summary["peer"]),
        str(summary["steps"]),
        f"{summary['loss']:.4f}",
        str(len(summary["active"])),
        removed,
        f"{summary['bytes_sent'] / 1e6:.1f} MB",
    )
    console.print(table)
    console.print(f"files: {out}/metrics.jsonl, ledger.jsonl, summary.json   audit: python -m btard.audit {out}")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 at the end of the run, 2 for a mistake, 3 if the others removed this peer, 130: interrupted."""
    warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
    config, out = load_config(argv, "python -m albert.trainer")
    try:
        trainer = Trainer(config, out, say=lambda line: print(line, flush=True), show=sys.stderr.isatty())
        summary = trainer.run()
    except (ConfigError, DataError, RunFolderError, Unreachable, NoFounders, NoGradient) as error:
        exit_with(error)
    except Fallen as fallen:
        print(f"out of the run: {fallen}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    print_summary(summary, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
