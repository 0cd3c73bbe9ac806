"""`python -m albert.coordinator CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: where a swarm meets.

It is the first address in the DHT and an observer. It has no vote, and what it shows is what most peers say of
themselves. RUN_DIR gets metrics, ledger, TensorBoard events, and checkpoints, each of which more than half of the peers
have vouched for; with `wandb` the metrics go to Weights & Biases, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from rich.table import Table

from albert.checkpoint import load_start, save_start
from albert.config import Config, load_config
from albert.data.corpus import Corpus, DataError
from albert.data.evaluation import evaluation_batches
from albert.founding import (
    NoFounders,
    agreed_settings,
    announce,
    founders_digest,
    known_founders,
    list_founders,
    meet,
    publish_founders,
)
from albert.model import make_model
from albert.network.doors import Doors
from albert.network.identity import load_identity
from albert.network.node import Node, Unreachable
from albert.network.state import Fetched, ask_status, fetch_state
from albert.optimizer import Optimizer
from albert.task import AlbertTask
from btard.harness.progress import console_for_all
from btard.harness.run_folder import RunFolder, RunFolderError
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import ConfigError
from btard.protocol.identity import Identity
from btard.protocol.join import WrongState
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.wire import Malformed

POLL = 0.5
"""Seconds between two rounds of questions."""
EVALUATED = 256
"""Validation examples that a checkpoint is measured on."""
ADDRESS, STATUS, SWARM = "address.txt", "status.json", "swarm.json"
NOTE = 5.0
"""Seconds between two notes of where the peers are."""

Say = Callable[[str], None]


class Coordinator:
    """Watches a swarm until its peers are done. Errors as for `Trainer`."""

    def __init__(self, config: Config, out: Path, *, say: Say = print) -> None:
        self.config, self.out, self.say = config, Path(out), say
        self.folder = RunFolder(self.out, config)
        self.identity = self._identity()
        corpus = Corpus(config.data.path)
        model = make_model(config.model, corpus.vocab_size, corpus.sequence_length, config.seed)
        self.optimizer = Optimizer(model, config.optimizer)
        evaluated = make_model(config.model, corpus.vocab_size, corpus.sequence_length, config.seed)
        self.task = AlbertTask(evaluated, corpus, config.batch.total, config.batch.per_device)
        validation = Corpus(config.data.path, "validation")
        self.validation = list(evaluation_batches(validation, 16, EVALUATED))
        self.first = 0
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
        self.statuses: dict[int, dict[str, Any]] = {}
        self.seen: dict[int, float] = {}
        self.rows: dict[int, dict[int, dict[str, Any]]] = {}
        """Step -> peer -> what it said of that step."""
        self.ledger = Ledger()
        self._next = self.first
        self._started = 0.0
        self._checkpoint: dict[str, Any] = {}
        self._fetching: Future[Fetched] | None = None
        """The state that is on its way for a checkpoint."""

    def run(self) -> dict[str, Any]:
        """Watch to the end; returns the summary."""
        finished = self.folder.summary()
        if finished is not None:
            return finished
        tracker = _wandb(self.config, self.out)
        try:
            self.node.start()
            address = self.node.addresses[0]
            (self.out / ADDRESS).write_text(address + "\n", encoding="utf-8")
            self.say(f"address: {address}")
            self.say(f"trainers: python -m albert.trainer CONFIG.yaml --out RUN_DIR --network.initial_peers {address}")
            self.node.run(self._meet())
            self._go_on()
            self._started = time.time()
            return self._watch(tracker)
        finally:
            self.folder.close()
            self.node.close()
            if tracker is not None:
                tracker.finish()

    async def _meet(self) -> None:
        noted = self._noted()
        await self.node.meet_again(noted["addresses"])
        self.node.spawn(announce(self.node, self.config.run_id))
        self._write_status()
        founders = known_founders(self.config)
        if founders is None:
            founders = tuple(bytes.fromhex(key) for key in noted["founders"])
            founders = founders or await list_founders(self.node, self.config, self.say)
            self.node.spawn(publish_founders(self.node, self.config.run_id, founders))
        self.founders = founders
        settings = self.agreed | {"founders": founders_digest(founders)}
        self.doors = Doors(self.node, self.config.run_id, settings)
        await self.doors.open()
        self.node.spawn(self._note_swarm())

    async def _note_swarm(self) -> None:
        """Write down again and again who the first peers are and where somebody is: for when this is started again."""
        me = self.identity.public_key
        while True:
            met = await meet(self.node, self.config.run_id)
            if met.keys() - {me}:
                addresses = sorted(address for key, where in met.items() if key != me for address in where)
                content = {"founders": [key.hex() for key in self.founders], "addresses": addresses}
                _write(self.out / SWARM, content)
            await asyncio.sleep(NOTE)

    def _noted(self) -> dict[str, list[str]]:
        """What `_note_swarm` has written, or nothing."""
        try:
            content = json.loads((self.out / SWARM).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"founders": [], "addresses": []}
        return {name: [str(entry) for entry in content[name]] for name in ("founders", "addresses")}

    def _go_on(self) -> None:
        """Keep what the folder holds, and begin where it ends."""
        metrics = self.folder.metrics()
        self._next = metrics[-1]["step"] + 1 if metrics else self.first
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that nobody watched there are no metrics
            self.folder.start(max(self._next, self._newest()))
        self.ledger = Ledger.of(self.folder.ledger())

    def _newest(self) -> int:
        """The step of the newest checkpoint."""
        files = sorted((self.out / "checkpoints").glob("step-*.safetensors"))
        return int(files[-1].stem[5:]) if files else self.first

    def _watch(self, tracker: Any) -> dict[str, Any]:
        quiet = time.monotonic()
        while True:
            self.node.run(self._ask_all())
            self._note_ledger()
            for row in self._complete_rows():
                seconds = row.pop("seconds")
                self.folder.log(row["step"], row, seconds)
                if tracker is not None:
                    tracker.log({**row, **{f"seconds/{phase}": spent for phase, spent in seconds.items()}})
            self._write_status()
            states = Counter(str(status.get("state")) for status in self._present().values())
            if self._present():
                quiet = time.monotonic()
            if self._over() or states["done"] * 2 > len(self._active()):
                return self._end()
            if time.monotonic() - quiet > self.config.deadlines.gather:
                raise NoFounders(
                    f"no peer has answered for deadlines.gather = {self.config.deadlines.gather:g} s; start the "
                    "trainers again with the same commands, then this one"
                )
            self._keep()
            time.sleep(POLL)

    async def _ask_all(self) -> None:
        async def ask(number: int) -> None:
            try:
                status = await ask_status(self.doors, self.founders[number], timeout=5.0)
                rows = _rows(status)
            except Exception:  # gone, refused or hostile: then there is nothing to show of it
                return
            self.statuses[number], self.seen[number] = status, time.time()
            for row in rows:
                if row["step"] >= self._next:
                    self.rows.setdefault(row["step"], {})[number] = row

        await asyncio.gather(*(ask(number) for number in range(len(self.founders))))

    def _present(self) -> dict[int, dict[str, Any]]:
        """What those say who have answered lately and are, by what most say, in the run."""
        now = time.time()
        return {i: self.statuses[i] for i in self._active() if i in self.seen and now - self.seen[i] < 15}

    def _active(self) -> list[int]:
        out = {peer for entry in self.ledger.entries for peer in entry.peers}
        return [peer for peer in range(len(self.founders)) if peer not in out]

    def _note_ledger(self) -> None:
        """Take over the ledger that most of those who answered tell alike, where it goes on from mine.

        It does not if all peers have gone back to a checkpoint and were luckier then: it takes the place of mine.
        """
        told: Counter[tuple[int, tuple[str, ...]]] = Counter()
        for number, status in self.statuses.items():
            lines, count = status.get("ledger"), status.get("entries")
            if status.get("state") in ("gathering", "ready") or number not in self._active():
                continue
            if isinstance(lines, list) and isinstance(count, int) and count >= len(lines):
                told[count, tuple(str(line) for line in lines)] += 1
        for (count, lines), votes in told.items():
            if not (2 * votes > len(self._present()) and votes > self.config.byzantine):
                continue
            try:
                entries = [Entry.from_json(line) for line in lines]
            except Malformed:
                continue
            before, known = count - len(entries), list(self.ledger.entries)
            if before > len(known):
                continue  # too many at once for a status
            if known[before:] != entries[: len(known) - before]:
                if before or 2 * votes <= len(self._active()):
                    continue
                self.ledger, known = Ledger(), []
                self.folder.replace_ledger([])
            for entry in entries[len(known) - before :]:
                self.folder.log_ledger([self.ledger.append(entry)])
                self.say(f"step {entry.step}: {entry.kind}, peers {list(entry.peers) or [entry.accused]}")

    def _complete_rows(self) -> list[dict[str, Any]]:
        """Metrics of the steps that are over for most of the peers, in order: medians of what they say."""
        found = []
        told = [step for step in self.rows if step >= self._next and self._complete(self.rows[step])]
        if told and self._next not in self.rows:
            self._next = min(told)  # nobody tells any more of the steps between: they were not watched
        while self._next in self.rows and self._complete(self.rows[self._next]):
            said = self.rows.pop(self._next)
            said = {peer: row for peer, row in said.items() if peer in self._active()} or said
            losses = [row["loss"] for row in said.values() if row.get("loss") is not None]
            spent = {phase for row in said.values() for phase in row["seconds"]}
            seconds = {p: statistics.median(row["seconds"].get(p, 0.0) for row in said.values()) for p in sorted(spent)}
            total = sum(seconds.values())
            samples = statistics.median(row["samples"] for row in said.values())
            found.append(
                {
                    "step": self._next,
                    "loss": statistics.median(losses) if losses else None,
                    "active": int(statistics.median_low([row["active"] for row in said.values()])),
                    "lr": statistics.median(row["lr"] for row in said.values()),
                    "samples": samples,
                    "samples_per_second": samples / total if total else None,
                    "sent": sum(row["sent"] for row in said.values()),
                    "removed": len([p for e in self.ledger.entries for p in e.peers]),
                    **self._checkpoint,
                    "seconds": seconds,
                }
            )
            self._checkpoint = {}
            self._next += 1
        return found

    def _complete(self, said: Mapping[int, dict[str, Any]]) -> bool:
        """Whether nobody else is likely to say something of the step: all have, or most have and are past it."""
        active = set(self._active())
        return active <= said.keys() or (2 * len(said) > len(active) and max(self.rows) > self._next)

    def _over(self) -> bool:
        return self._next >= self.config.steps

    def _keep(self) -> None:
        """A checkpoint whenever one is due, of the state that more than half of the peers vouch for.

        The state comes while the peers are watched further: it takes until their next step, or in vain until they end.
        """
        if self._fetching is None:
            due = self.config.checkpoint_every
            # Asking takes until the beginning of the next step.
            if (self._next + 1) // due <= self._newest() // due or self._over():
                return
            if 2 * len(self._present()) <= len(self._active()):
                return  # nobody could vouch for it
            template = dict(self.optimizer.state().items()) | {"previous": self.optimizer.params}
            members = {peer: self.founders[peer] for peer in self._active()}
            patience = self.config.deadlines.compute + 4 * self.config.deadlines.phase
            me = self.identity.public_key
            self._fetching = self.node.submit(fetch_state(self.doors, me, members, template, patience))
        if not self._fetching.done():
            return
        fetched, self._fetching = self._fetching, None
        try:
            found = fetched.result()
        except WrongState as error:
            self.say(f"no checkpoint at step {self._next}: {error}")
            return
        step = self.first + found.step
        tensors = {name: x for name, x in found.download.tensors.items() if name != "previous"}
        hashed = found.download.digest(self.config.run_id).hex()
        save_start(self.out / "checkpoints" / f"step-{step:08d}.safetensors", step, tensors, found.vouched_by, hashed)
        loss = self.task.evaluate(tensors["parameters"], self.validation)
        self._checkpoint = {"validation_loss": loss}
        self.say(f"checkpoint of step {step}, vouched for by most: validation loss {loss:.4f}")

    def _write_status(self) -> None:
        """Write what a table of the swarm needs, for whoever looks into the folder."""
        bans = {peer: f"{entry.kind}, step {entry.step}" for entry in self.ledger.entries for peer in entry.peers}
        elapsed = time.time() - self._started if self._started else 0.0
        peers = []
        for number in range(self.config.peers):
            status = self.statuses.get(number, {})
            recent = _rows(status)
            peers.append(
                {
                    "peer": number,
                    "peer_id": None,
                    "instance": status.get("instance"),
                    "state": status.get("state"),
                    "step": status["step"] + self.first if isinstance(status.get("step"), int) else None,
                    "phase": status.get("phase"),
                    "loss": recent[-1].get("loss") if recent else None,
                    "last_seen": self.seen.get(number),
                    "active": number not in bans,
                    "banned": bans.get(number),
                }
            )
        content = {
            "run_id": self.config.run_id,
            "step": self._next,
            "steps": self.config.steps,
            "time": time.time(),
            "steps_per_hour": 3600 * (self._next - self.first) / elapsed if elapsed else None,
            "peers": peers,
        }
        _write(self.out / STATUS, content)

    def _end(self) -> dict[str, Any]:
        for row in self._complete_rows():
            self.folder.log(row["step"], row, row.pop("seconds"))
        metrics = self.folder.metrics()
        bans = [
            {"peer": peer, "step": self.first + entry.step, "kind": entry.kind, "accusers": list(entry.accusers)}
            for entry in self.ledger.entries
            for peer in entry.peers
        ]
        attackers = sorted(self.config.attackers())
        summary = {
            "steps": self.config.steps,
            "loss": metrics[-1]["loss"] if metrics else None,
            "validation_loss": self._final_loss(),
            "byzantine": attackers,
            "byzantine_banned": sum(ban["peer"] in attackers for ban in bans),
            "honest_banned": sum(ban["peer"] not in attackers for ban in bans),
            "bans": bans,
            "heads": sorted({str(status.get("head")) for status in self._present().values()}),
        }
        self.folder.write_summary(summary)
        self._write_status()
        return summary

    def _final_loss(self) -> float | None:
        files = sorted((self.out / "checkpoints").glob("step-*.safetensors"))
        if not files:
            return None
        _, tensors = load_start(files[-1], self.optimizer.state())
        return self.task.evaluate(tensors["parameters"], self.validation)

    def _identity(self) -> Identity:
        if self.config.network.identity is None and self.config.peer is not None:
            return Identity.from_seed(self.config.run_id, "coordinator")
        try:
            return load_identity(Path(self.config.network.identity or self.out / "identity.key"))
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from None


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that appears complete or not at all."""
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(file)


def _rows(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a status that are what they should be; whoever tells them may lie, but not break anything."""
    rows = status.get("recent")
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or type(row.get("step")) is not int or not isinstance(row.get("seconds"), dict):
            continue
        numbers = [row.get(name) for name in ("active", "samples", "lr", "sent")]
        loss = row.get("loss")
        spent = row["seconds"].values()
        if all(isinstance(n, int | float) for n in (*numbers, *spent)) and (loss is None or isinstance(loss, float)):
            found.append(row)
    return found


def _wandb(config: Config, out: Path) -> Any:
    if config.wandb is None:
        return None
    import wandb
    import yaml

    from btard.harness.settings import config_text

    return wandb.init(
        project=config.wandb, name=config.run_id, dir=str(out), config=yaml.safe_load(config_text(config))
    )


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """A table of how the run ended, and where its files are."""
    console = console_for_all()
    table = Table("steps", "loss", "validation loss", "Byzantine banned", "honest banned", title=str(out))

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    table.add_row(
        str(summary["steps"]),
        number(summary["loss"]),
        number(summary["validation_loss"]),
        f"{summary['byzantine_banned']} of {len(summary['byzantine'])}",
        str(summary["honest_banned"]),
    )
    console.print(table)
    console.print(f"curves: tensorboard --logdir {out}   files: {out}/metrics.jsonl, ledger.jsonl, checkpoints/")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 at the end of the run, 2 after one line about a mistake, 130 if interrupted."""
    warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
    config, out = load_config(argv, "python -m albert.coordinator")
    try:
        summary = Coordinator(config, out, say=lambda line: print(line, flush=True)).run()
    except (ConfigError, DataError, RunFolderError, Unreachable, NoFounders) as error:
        exit_with(error)
    except KeyboardInterrupt:
        print("interrupted: the peers go on without it; the same command watches them again", file=sys.stderr)
        return 130
    print_summary(summary, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
