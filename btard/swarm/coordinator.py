"""The coordinator of a swarm: its meeting place and its observer.

It is the first address in the DHT and an observer. It has no vote, and what it shows is what most peers say of
themselves. RUN_DIR gets metrics, ledger, TensorBoard events, and checkpoints, each of which more than half of the peers
have vouched for; with `wandb` the metrics go to Weights & Biases, too.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from btard.audit.attestation import Attestation
from btard.audit.files import ATTESTATION, LEDGER, METRICS, STATUS, TIMINGS
from btard.audit.ledger import read_ledger
from btard.audit.report import AuditError
from btard.audit.vouching import FILES, digests
from btard.harness import tables
from btard.harness.run_folder import RunFolder, RunFolderError
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import ConfigError
from btard.protocol.heal import HEALED, described
from btard.protocol.identity import Identity
from btard.protocol.ledger import keys_of, members_of
from btard.protocol.wire import Malformed
from btard.swarm.config import SwarmConfig
from btard.swarm.doors import Doors
from btard.swarm.fetch import ask_status
from btard.swarm.founding import (
    Lobby,
    NoFounders,
    announce,
    founders_digest,
    give_founders,
    known_founders,
    publish_founders,
)
from btard.swarm.keeper import Ending, Keeper
from btard.swarm.lines import Say
from btard.swarm.node import Unreachable
from btard.swarm.notes import Notes, read, write
from btard.swarm.startup import begin, hold, make_node, own_identity, write_model
from btard.swarm.task import TaskSource
from btard.swarm.tracking import BANS, HEALINGS, TensorBoard, Tracker, WeightsAndBiases, describe, show
from btard.swarm.view import PATIENCE, News, SwarmView, bans_of, healings_of

POLL = 0.5
"""Seconds between two rounds of questions."""
AGAIN = "copy the folder again as a whole; the folders of the peers have the same ledger and parameters"
"""What to do about a piece of a finished run that cannot be put back."""


class Coordinator:
    """Watches a swarm until its peers are done. Errors as for `Trainer`."""

    def __init__(self, config: SwarmConfig, out: Path, source: TaskSource, *, say: Say = print) -> None:
        self.config, self.out, self.source, self.say = config, Path(out), source, say
        self.folder = RunFolder(self.out, config, events=False, again=AGAIN)
        self.held = hold(config, self.folder)
        if config.network.identity is None and config.peer is not None:
            self.identity = Identity.from_seed(config.run_id, "coordinator")
        else:
            self.identity = own_identity(config, self.folder)
        start = begin(replace(config, device="cpu"), source)
        self.first, self.agreed = start.first, start.agreed
        self.folder.first = self.first
        write_model(start.task, self.out)
        self.notes = Notes(self.out)
        self.node = make_node(config, self.identity, self.notes)
        self.view = SwarmView(config, self.first)
        self.trackers: list[Tracker] = []
        self._started = 0.0
        self.keeper = Keeper(config, self.folder, start, self.view, self.identity.public_key, self.say)
        self.kept = self.keeper.kept()
        before = {peer["peer"]: peer.get("attacks") for peer in read(self.out / STATUS).get("peers", ())}
        # From before it was interrupted: those who have been removed since say it no more.
        told = {peer: attacks for peer, attacks in before.items() if attacks is not None}
        self.view.attacks = self.kept.attacks | told

    def run(self) -> dict[str, Any]:
        """Watch to the end; returns the summary."""
        finished = self.folder.summary()
        if finished is not None:
            return finished
        self.put_back()
        if self.keeper.complete and (self.out / ATTESTATION).is_file():
            return self._summary_again()
        if self.config.wandb is not None:
            self.trackers.append(WeightsAndBiases(self.config, self.out, self.say))
        summary = None
        try:
            self.node.start()
            address = self.node.addresses[0]
            self.notes.write_address(address)
            self.say(f"address: {address}")
            self.say(
                f"trainers: python -m btard.swarm trainer CONFIG.yaml --task {self.source.name} --out RUN_DIR "
                f"--network.initial_peers {address}"
            )
            self.node.run(self._meet())
            self._go_on()
            self._started = time.monotonic()
            summary = self._watch()
            return summary
        finally:
            self.folder.close()
            self.node.close()
            for tracker in self.trackers:
                tracker.finish(summary)

    async def _meet(self) -> None:
        await self.node.meet_again(self.notes.addresses)
        self.node.spawn(announce(self.node, self.config.run_id))
        self._write_status()
        founders = known_founders(self.config)
        if founders is None:
            lobby = Lobby(self.node, self.config, self.agreed, self.say)
            await lobby.open()
            founders = await lobby.list_founders(self.notes.founders or self.kept.founders)
            self.node.spawn(publish_founders(self.node, self.config.run_id, founders))
        else:
            await give_founders(self.node, self.config, self.agreed, founders)
        self.founders = founders
        settings = self.agreed | {"founders": founders_digest(founders)}
        self.doors = Doors(self.node, self.config.run_id, settings)
        self.keeper.open(self.doors, founders)
        await self.doors.open()
        self.node.spawn(self.notes.keep(self.node, self.config.run_id, founders, self._keys))

    def _go_on(self) -> None:
        """Keep what the folder holds, and continue where it ends."""
        metrics = self.folder.metrics()
        begin = metrics[-1]["step"] + 1 if metrics else self.first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that nobody watched there are no metrics
            self.folder.start(max(begin, self.keeper.newest))
        self.view.go_on(metrics, self.folder.ledger())
        self.trackers.append(TensorBoard(self.out / "tb", begin))

    def put_back(self) -> None:
        """Put back the lines that the folder has lost and the newest checkpoint holds.

        Errors: RunFolderError for pieces of several runs.
        """
        held = dict(self.kept.pieces)
        known = held.get(LEDGER, b"").splitlines()
        try:
            lines = read_ledger(self.out / LEDGER) if (self.out / LEDGER).exists() else []
        except AuditError as error:
            self.say(f"{self.out}: {error}: the ledger is that of the checkpoint of step {self.kept.step} again")
            (self.out / LEDGER).unlink()
            lines = []
        if lines and lines[-1].head.hex().encode() not in b"".join(known):
            held.pop(LEDGER, None)  # it goes on after the checkpoint, or all peers have gone back and another one began
        for line in self.folder.put_back(self.kept.step, held, grows=True):
            self.say(line)

    def _summary_again(self) -> dict[str, Any]:
        """The summary of a run that has come to its end, made again of the other files.

        Errors: RunFolderError if they are not whole.
        """
        metrics, lines = self.folder.metrics(), self.folder.ledger()
        self.view.go_on(metrics, lines)
        try:
            head = Attestation.read(self.out).head
        except Malformed as error:
            raise RunFolderError(f"{self.out}: {error}; {AGAIN}") from None
        if head != self.view.ledger.head:
            raise RunFolderError(f"{self.out}/{LEDGER}: is not what the peers have signed; {AGAIN}")
        if not self.view.over:
            raise RunFolderError(f"{self.out}/{METRICS}: ends before step {self.config.steps}; {AGAIN}")
        self.say(f"{self.out}/summary.json: made again of the other files")
        return self._end([head.hex()])

    def _watch(self) -> dict[str, Any]:
        quiet, ending = time.monotonic(), math.inf
        while True:
            self.node.run(self._ask_all())
            self._note_ledger()
            self._log_rows()
            self._write_status()
            present = self.view.present(time.monotonic())
            states = Counter(said.state for said in present.values())
            if len(present) > self.view.byzantine:
                quiet = time.monotonic()
            if states["done"] * 2 > len(self.view.active()):
                ending = min(ending, time.monotonic())
            told = ending < math.inf and (states["done"] == len(present) or time.monotonic() - ending > PATIENCE)
            if self.view.over or told:
                self._keep_final()
                return self._end({str(said.head) for said in self.view.present(time.monotonic()).values()})
            if time.monotonic() - quiet > self.config.deadlines.gather:
                raise NoFounders(
                    f"only {len(present)} of {len(self.view.active())} peers have answered for deadlines.gather = "
                    f"{self.config.deadlines.gather:g} s, and {self.view.byzantine} may be Byzantine; start the "
                    "trainers again with the same commands, then this one"
                )
            self.keeper.keep()
            time.sleep(POLL)

    async def _ask_all(self, *, last: bool = False) -> None:
        async def ask(number: int, key: bytes) -> None:
            try:
                status = await ask_status(self.doors, key, last=last)
                self.view.hear(number, status, time.monotonic())
            except Exception:  # gone, refused or hostile: then there is nothing to show of it
                return

        await asyncio.gather(*itertools.starmap(ask, zip(self.view.active(), self._keys(), strict=True)))

    def _keys(self) -> list[bytes]:
        """The members' public keys."""
        entries = tuple(self.view.ledger.entries)
        keys = keys_of(entries, self.founders)
        return [keys[number] for number in members_of(entries, self.config.peers)]

    def _note_ledger(self) -> None:
        """Write and show the ledger's new entries."""
        news = self.view.learn(time.monotonic())
        if news is not None:
            self._show(news)

    def _show(self, news: News) -> None:
        if news.anew:
            self.folder.replace_ledger([])
        self.folder.log_ledger(news.lines)
        for entry in news.entries:
            if entry.kind == HEALED:
                self._note(HEALINGS, self.first + entry.step, described(entry, self.first))
            elif not entry.peers:
                self.say(f"step {self.first + entry.step}: {entry.kind}, peers [{entry.accused}]")
        for ban in bans_of(news.entries, self.first):
            self._note(BANS, ban["step"], describe(ban))

    def _note(self, what: str, step: int, line: str) -> None:
        self.say(line)
        for tracker in self.trackers:
            tracker.note(what, step, line)

    def _log_rows(self, last: bool = False) -> None:
        for row in self.view.complete_rows(time.monotonic(), last):
            seconds = row.pop("seconds")
            measured = self.keeper.take_measured()
            row |= measured
            self.folder.log(row["step"], row, seconds)
            show(self.trackers, row, seconds, measured)

    def _keep_final(self) -> None:
        """Keep the state after the last step, with the signatures of the remaining peers.

        They stay until they have been asked for the last time, or until nobody asks.
        """
        deadline = time.monotonic() + self.keeper.patience(1)
        while not self.keeper.complete:
            if self.keeper.keep():
                self._sign()
                break
            if self.keeper.hopeless or time.monotonic() > deadline:
                self.say("no checkpoint after the last step: too few of those who have that state are still there")
                break
            time.sleep(POLL)
            self.node.run(self._ask_all())
        self.node.run(self._ask_all(last=True))

    def _sign(self) -> None:
        """Take over the ledger of the final state, and write which peers sign both."""
        assert self.keeper.final is not None
        ending = Ending(
            self.config, self.founders, self.keeper.final.step, self.keeper.final.download, self.keeper.layout
        )
        known, entries = self.view.ledger.entries, ending.ledger.entries
        anew = known != entries[: len(known)]
        begin = 0 if anew else len(known)
        self.view.ledger = ending.ledger
        self._show(News(anew, tuple(entries[begin:]), ending.lines[begin:]))
        self.node.run(ending.collect(self.doors))
        ending.write(self.out, self.keeper.made_by)

    def _write_status(self) -> None:
        """Write what a table of the swarm needs, for readers of the folder."""
        elapsed = time.monotonic() - self._started if self._started else 0.0
        content = {
            "run_id": self.config.run_id,
            "first": self.first,
            "step": self.view.next,
            "steps": self.config.steps,
            "time": time.time(),
            "steps_per_hour": 3600 * (self.view.next - self.first) / elapsed if elapsed else None,
            "peers": self.view.peers(time.time() - time.monotonic()),
        }
        write(self.out / STATUS, content)

    def _end(self, heads: Iterable[str]) -> dict[str, Any]:
        """Write the summary. `heads`: of the peers' ledgers."""
        self._log_rows(last=True)
        metrics, bans, attackers = self.folder.metrics(), self.view.bans(), sorted(self.view.attackers())
        summary = {
            "steps": self.config.steps,
            "loss": metrics[-1]["loss"] if metrics else None,
            **self.keeper.evaluation(),
            "byzantine": attackers,
            "byzantine_banned": sum(ban["peer"] in attackers for ban in bans),
            "honest_banned": sum(ban["peer"] not in attackers for ban in bans),
            "bans": bans,
            "went_back": healings_of(self.view.ledger.entries, self.first),
            "heads": sorted(heads),
        }
        if self.view.present(time.monotonic()):
            self._write_status()
        self.folder.flush()
        summary[FILES] = digests(self.out, (TIMINGS, STATUS))
        self.folder.write_summary(summary)
        return summary


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """A table of how the run ended, and where its files are."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    row = (
        str(summary["steps"]),
        number(summary["loss"]),
        number(summary["validation_loss"]),
        f"{summary['byzantine_banned']} of {len(summary['byzantine'])}",
        str(summary["honest_banned"]),
    )
    columns = (">steps", ">loss", ">validation loss", ">Byzantine banned", ">honest banned")
    tables.show(str(out), columns, [row])
    print(f"files: {out}/metrics.jsonl, ledger.jsonl, checkpoints/")
    print(f"loss with bans: tensorboard --logdir {out}, then http://localhost:6006/#custom_scalars")


def main(config: SwarmConfig, out: Path, source: TaskSource) -> int:
    """The exit code: 0 at the end of the run, 2 after one line about a mistake, 130 if interrupted."""
    try:
        summary = Coordinator(config, out, source, say=lambda line: print(line, flush=True)).run()
    except (ConfigError, RunFolderError, Unreachable, NoFounders) as error:
        exit_with(error)
    except KeyboardInterrupt:
        print("interrupted: the peers go on without it; the same command watches them again", file=sys.stderr)
        return 130
    print_summary(summary, out)
    return 0
