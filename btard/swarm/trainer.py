"""One peer of a swarm, from its start to the end of the run.

It joins through `network.initial_peers`, waits for the others, trains with them, and goes on after an interruption:
from its own disk if they all stopped, else with the state that most of them vouch for. RUN_DIR gets this peer's
metrics, ledger, evidence and checkpoints.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from btard.audit.attestation import Attestation
from btard.audit.files import ATTESTATION, TIMINGS
from btard.audit.numerics import numeric_platform
from btard.audit.vouching import FILES, digests
from btard.drivers.loop import Fallen
from btard.harness import pieces, tables
from btard.harness.progress import Bar
from btard.harness.run_folder import RunFolderError
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import ConfigError
from btard.protocol.behaviour import HookError
from btard.protocol.commit import NoGradient
from btard.protocol.hashing import tensor_digest
from btard.protocol.heal import HEALED, described, went_back
from btard.protocol.identity import SIGNATURE_SIZE
from btard.protocol.ledger import Entry
from btard.swarm.arrival import arrive, come_back
from btard.swarm.config import SwarmConfig
from btard.swarm.driver import OutOfStep
from btard.swarm.founding import NoFounders, announce
from btard.swarm.lines import Say
from btard.swarm.member import Member
from btard.swarm.node import Unreachable
from btard.swarm.said import RECENT
from btard.swarm.startup import names_digest
from btard.swarm.state import PREVIOUS
from btard.swarm.task import TaskSource
from btard.swarm.view import bans_of, healings_of
from btard.task import PARAMETERS

FAREWELL = 5.0
"""Seconds that a finished peer waits for somebody to ask how it ended, or for the final state."""


class Trainer(Member):
    """One peer, from its start to the end of the run. `say` gets lines for people; `show` draws a progress bar.

    Errors: ConfigError, RunFolderError, Unreachable and NoFounders for what cannot work.
    """

    def __init__(
        self,
        config: SwarmConfig,
        out: Path,
        source: TaskSource,
        *,
        say: Say = print,
        show: bool = False,
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        super().__init__(config, out, source, say=say)
        self.show = show

    def run(self) -> dict[str, Any]:
        """Train to the end; returns the summary. Errors: Fallen if the others have removed this peer."""
        finished = self.folder.summary() or self._ended()
        if finished is not None:
            return finished
        try:
            self.node.start()
            address = self.node.addresses[0]
            self.notes.write_address(address)
            self.say(f"address: {address}")
            self.node.run(self._background())
            arrive(self)
            self._open_folder()
            self._train()
            return self._end()
        finally:
            self.folder.close()
            self.node.close()

    def _open_folder(self) -> None:
        """Go on in the folder from the step at hand, without the lines that it holds of later ones.

        The others may be at an earlier step than this peer was, if they have all stopped meanwhile.
        """
        now = self.first + self.peer.t
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that were missed there are no metrics
            self.folder.start(now, forget=False)
        self.rewrite_ledger()
        self.recent = deque((row for row in self.recent if row["step"] < now), maxlen=RECENT)
        self.stored = {step: kept for step, kept in self.stored.items() if step <= self.peer.t}

    async def _background(self) -> None:
        self.node.spawn(announce(self.node, self.config.run_id))

    def _train(self) -> None:
        last = self.config.steps - self.first
        begun = self.first + self.peer.t
        with Bar(f"peer {self.peer.id}", self.config.steps, done=begun, show=self.show) as bar:
            while self.peer.t < last:
                try:
                    self._step(bar)
                except OutOfStep as error:
                    if self.peer.behaviour.byzantine and self.peer.id in self.driver.peer.current.expelled:
                        raise Fallen(str(error)) from None
                    come_back(self, str(error))
                    self._open_folder()
                bar.move(self.first + self.peer.t)

    def _step(self, bar: Bar) -> None:
        now, known = self.peer.t, len(self.peer.ledger.entries)
        for request in self.service.take_requests():
            self.peer.receive(request)
        wanted = self.service.begins(now) or went_back(self.peer.ledger.entries, now - 1) is not None
        if wanted and self.peer.last is not None:
            self._publish()
        started = time.perf_counter()
        result = self.driver.step(self.optimizer.params, self.optimizer.state(), self.local_state())
        if self.recorder is not None:  # before the optimizer moves what the trail has of this step
            self.recorder.finished([self.peer], self.past.at, self.past.agreed)
        result.move(self.optimizer, self.task, self.first + now)
        seconds = {**result.seconds, "other": max(0.0, time.perf_counter() - started - sum(result.seconds.values()))}
        self.sent += sum(result.sent.values())
        worked = self.peer.last is not None and self.peer.id in self.peer.last.workers
        metrics = {
            "loss": self.task.loss if worked else None,
            "lr": self.optimizer.lr(self.first + now),
            "active": len(result.active),
            "samples": len(result.workers) * self.task.samples(self.past.history.workers[now]),
            "sent": sum(result.sent.values()),
        }
        if result.account is not None:
            metrics |= result.account.fields(self.peer.id)
        if self.config.protocol.tau == "auto":
            metrics["tau"] = result.tau
        if result.back_to is not None:
            metrics["back_to"] = self.first + result.back_to
        self.folder.log(self.first + now, metrics, seconds)
        rounded = {phase: round(spent, 4) for phase, spent in seconds.items()}
        told = {"step": self.first + now, "entries": len(self.peer.ledger.entries), "time": time.time()}
        self.recent.append({**metrics, **told, "seconds": rounded})
        for entry in self.peer.ledger.entries[known:]:
            self.folder.log_ledger([self.chain.append(entry)])
            line = _describe(entry, self.first)
            bar.say(line) if self.show else self.say(line)
        bar.advance(0, f"loss {self.task.loss:.3f}, {len(result.active)} peers")
        if self._saves(now + 1):
            self.save()

    def _saves(self, step: int) -> bool:
        """Whether there is to be a checkpoint of `step`: also in place of one that is left from before a restart."""
        due = step % self.config.checkpoint_every == 0 or self.folder.checkpoints.file(step).exists()
        return due and step < self.config.steps - self.first

    def _publish(self, *, last: bool = False) -> None:
        """Let others have the state at the beginning of the next step; `last`: there is none."""
        now = self.peer.t
        previous = self.past.history.at(now - 1, now - 1) if now else self.optimizer.params
        self.service.publish(self.peer, self.optimizer.state() | {PREVIOUS: previous}, last=last)

    def _end(self) -> dict[str, Any]:
        """Sign the end together with the others, give the final state away, and write the summary."""
        self.state = "ending"
        peer = self.peer
        self.service.begins(peer.t)
        self._publish(last=True)
        hashed = tensor_digest(self.optimizer.params, PARAMETERS)
        statement = Attestation(peer.t, peer.ledger.head, hashed, layout=names_digest(self.task))
        signed = statement.digest(self.protocol, peer.roster, self.task.d)
        mine = peer.identity.sign(signed)
        self.signed = {"step": peer.t, "params": statement.params.hex(), "signature": mine.hex()}
        said = self.driver.attest(mine, SIGNATURE_SIZE)
        signatures = {i: signature for i, signature in said.items() if peer.roster.verify(i, signed, signature)}
        if self.recorder is not None:
            self.recorder.begin(peer.roster, self.task.d, numeric_platform(str(self.optimizer.params.device)))
            replace(statement, signatures=signatures).write(self.out)
        summary = {
            "peer": peer.id,
            "steps": self.config.steps,
            "loss": self.task.loss,
            "active": list(peer.active),
            "bans": bans_of(peer.ledger.entries, self.first),
            "went_back": healings_of(peer.ledger.entries, self.first),
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
        self.save(summary)
        summary = self._write_summary(summary)
        self.state = "done"
        self.driver.linger(2 * self.config.deadlines.phase)
        self.service.wait_until_told(FAREWELL, self.patience)
        return summary

    def _write_summary(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the summary, which vouches for what else is in the folder; returns it."""
        whole = {**summary, FILES: digests(self.out, (TIMINGS,))}
        self.folder.write_summary(whole)
        return whole

    def _ended(self) -> dict[str, Any] | None:
        """The summary of a run that has come to its end, put back from the last checkpoint; None if it has not.

        Errors: RunFolderError if something else is gone, too.
        """
        for step, tensors, state in self.folder.checkpoints.intact():
            _, held = pieces.separate(tensors)
            if self.first + step < self.config.steps or state.get("summary") is None:
                break
            problem = pieces.missing_proof(self.out, held)
            if problem is None and state["summary"]["evidence"] and not (self.out / ATTESTATION).is_file():
                problem = f"{self.out}/{ATTESTATION}: is missing"
            if problem is not None:
                raise RunFolderError(f"{problem}; {pieces.WHOLE}")
            for line in self.folder.put_back(self.first + step, held):
                self.say(line)
            self.say(f"{self.out}/summary.json: put back from the checkpoint of step {self.first + step}")
            return self._write_summary(state["summary"])
        return None


def _describe(entry: Entry, first: int) -> str:
    if entry.kind == HEALED:
        return described(entry, first)
    by = f", accused by {', '.join(map(str, entry.accusers))}" if entry.accusers else ""
    out = ", ".join(map(str, entry.peers)) or str(entry.accused)
    return f"step {first + entry.step}: {'removed' if entry.peers else 'noted'} peer {out}: {entry.kind}{by}"


def _way_back(config: SwarmConfig) -> str:
    """How a peer that is out for good can join again."""
    if config.protocol.probation is None:
        return "this key cannot come back, and protocol.probation is null: nobody can join this run"
    return (
        "this key cannot come back; to come as a new peer, give the same command another --out (and another "
        f"network.identity, if it is set); its probation takes protocol.probation = {config.protocol.probation} steps"
    )


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """A table of how the run ended for this peer, and where its files are."""
    removed = ", ".join(f"{ban['peer']} ({ban['kind']}, step {ban['step']})" for ban in summary["bans"]) or "nobody"
    row = (
        str(summary["peer"]),
        str(summary["steps"]),
        f"{summary['loss']:.4f}",
        str(len(summary["active"])),
        removed,
        f"{summary['bytes_sent'] / 1e6:.1f} MB",
    )
    tables.show(str(out), (">peer", ">steps", ">loss", ">peers left", "removed", ">sent"), [row])
    print(f"files: {out}/metrics.jsonl, ledger.jsonl, summary.json   audit: python -m btard.audit {out}")


def main(config: SwarmConfig, out: Path, source: TaskSource) -> int:
    """The exit code: 0 at the end of the run, 2 for a mistake, 3 if the others removed this peer, 130: interrupted."""
    try:
        trainer = Trainer(config, out, source, say=lambda line: print(line, flush=True), show=sys.stderr.isatty())
        summary = trainer.run()
    except (ConfigError, RunFolderError, Unreachable, NoFounders, NoGradient, HookError) as error:
        exit_with(error)
    except torch.OutOfMemoryError as error:
        what = str(error).partition(". ")[0]
        exit_with(MemoryError(f"{what}: compute fewer samples at once, or in half precision, at all peers alike"))
    except Fallen as fallen:
        print(f"out of the run: {fallen}; {_way_back(config)}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    print_summary(summary, out)
    return 0
