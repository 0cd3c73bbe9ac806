"""What most peers of a swarm say about themselves, combined from their statuses. None of it is proven."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct, to_builtins

from btard.protocol import wire
from btard.protocol.heal import HEALED
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.wire import Malformed, Number, shown
from btard.swarm.config import SwarmConfig

FRESH = 15.0
"""Seconds for which a peer that has answered counts as present."""
PATIENCE = 10.0
"""Seconds that a step waits for peers that are slower to tell of it, and for the verdicts that fell in it: peers that
are asked between two steps tell different ledgers."""


@dataclass(frozen=True)
class News:
    """What the ledger has gained. `anew`: it replaces the one before."""

    anew: bool
    entries: tuple[Entry, ...]
    lines: tuple[str, ...]
    """The entries as lines of ledger.jsonl."""


class SwarmView:
    """The swarm as seen by an observer that asks all its first peers repeatedly.

    `first` is the step at which the protocol began. Times are `time.time()`.
    """

    def __init__(self, config: SwarmConfig, first: int) -> None:
        self.config, self.first, self.next = config, first, first
        self.ledger = Ledger()
        self.attacks: dict[int, bool] = {}
        """Peer -> whether it says that it was started as an attacker."""
        self._statuses: dict[int, dict[str, Any]] = {}
        self._seen: dict[int, float] = {}
        self._rows: dict[int, dict[int, dict[str, Any]]] = {}
        """Step -> peer -> what it said about that step."""
        self._shown = 0
        """Peers that had been removed by the last step whose loss is known."""
        self._slow: tuple[int, float] | None = None
        """The step that waits for slower peers, and since when."""
        self._too_slow: set[int] = set()
        """Peers that nobody waits for until they report a step in time."""
        self._waits: tuple[int, float] | None = None
        """The step that waits for the ledger, and since when."""
        self._missing: int | None = None
        """The length at which the ledger stays behind what peers report of it, in spite of waiting."""

    def go_on(self, metrics: list[dict[str, Any]], ledger: Iterable[str]) -> None:
        """Begin after the steps in `metrics`, with the lines of a ledger.jsonl."""
        self.next = metrics[-1]["step"] + 1 if metrics else self.first
        self._shown = metrics[-1].get("removed", 0) if metrics else 0
        self.ledger = Ledger.of(ledger)

    @property
    def over(self) -> bool:
        return self.next >= self.config.steps

    def hear(self, number: int, status: dict[str, Any], now: float) -> None:
        """Record the answer of peer `number`."""
        self._statuses[number], self._seen[number] = status, now
        if isinstance(status.get("attacks"), bool):
            self.attacks[number] = status["attacks"]
        for row in _rows(status):
            if self.next <= row["step"] < self.config.steps:
                self._rows.setdefault(row["step"], {})[number] = row

    # Who is there.

    def active(self) -> list[int]:
        """The first peers that the ledger has not removed."""
        out = {peer for entry in self.ledger.entries for peer in entry.peers}
        return [peer for peer in range(self.config.peers) if peer not in out]

    def present(self, now: float) -> dict[int, dict[str, Any]]:
        """The statuses of peers that have answered recently and that, according to most, are in the run."""
        return {i: self._statuses[i] for i in self.active() if i in self._seen and now - self._seen[i] < FRESH}

    def attacks_of(self, peer: int) -> bool | None:
        """Whether a peer attacks, as far as anybody says so: only for labels, no trust depends on it.

        What it says of how it was started goes before what the settings say of its number, and only where numbers are
        given do they say anything: elsewhere a number is no more than a place in the list of those who came.
        """
        numbered = self.config.peer is not None or self.config.attack.peers is not None
        return self.attacks.get(peer, peer in self.config.attackers() if numbered else None)

    def attackers(self) -> frozenset[int]:
        """The peers that attack according to `attacks_of`."""
        return frozenset(peer for peer in range(self.config.peers) if self.attacks_of(peer))

    def bans(self) -> list[dict[str, Any]]:
        """All removed peers, with step, kind and accusers, in the order of the ledger."""
        return bans_of(self.ledger.entries, self.first)

    # What happened.

    def learn(self, now: float) -> News | None:
        """Take over the ledger on which most answers agree, if it continues this one.

        It does not if all peers have gone back to a checkpoint and were luckier then: it takes the place of mine.
        """
        told: Counter[tuple[int, tuple[str, ...]]] = Counter()
        for number in self.active():
            status = self._statuses.get(number, {})
            lines, count = status.get("ledger"), status.get("entries")
            if status.get("state") in ("gathering", "ready"):
                continue
            if isinstance(lines, list) and isinstance(count, int) and count >= len(lines):
                told[count, tuple(str(line) for line in lines)] += 1
        for (count, lines), votes in told.items():
            if not (2 * votes > len(self.present(now)) and votes > self.config.tolerated):
                continue
            try:
                entries = [Entry.from_json(line) for line in lines]
            except Malformed:
                continue
            before, known = count - len(entries), list(self.ledger.entries)
            if before > len(known):
                continue  # too many at once for a status
            anew = known[before:] != entries[: len(known) - before]
            if anew:
                if before or 2 * votes <= len(self.active()):
                    continue
                self.ledger, known = Ledger(), []
            fresh = entries[len(known) - before :]
            written = tuple(self.ledger.append(entry) for entry in fresh)
            if anew:
                self._shown = min(self._shown, sum(ban["step"] < self.next for ban in self.bans()))
            if anew or fresh:
                return News(anew, tuple(fresh), written)
        return None

    def complete_rows(self, now: float, last: bool = False) -> list[dict[str, Any]]:
        """Metrics of the steps that are over for most of the peers, in order: medians of what they report.

        Each has its phases' `seconds`. The `last` time nothing is waited for.
        """
        found = []
        told = [step for step in self._rows if step >= self.next and self._told(step, last)]
        if told and self.next not in self._rows:
            self.next = min(told)  # nobody tells any more of the steps between: they were not watched
        while self._told(self.next, last):
            said = self._rows[self.next]
            if not last and (self._awaits_slower(said, now) or self._awaits_ledger(said, now)):
                break
            out = {ban["peer"] for ban in self.bans() if ban["step"] <= self.next}
            found.append(self._row(self.next, {peer: row for peer, row in said.items() if peer not in out} or said))
            del self._rows[self.next]
            self.next += 1
        self._rows = {step: said for step, said in self._rows.items() if step >= self.next}
        return found

    def _told(self, step: int, last: bool) -> bool:
        """Whether all have reported the step, or most have and somebody is past it."""
        said, active = self._rows.get(step, {}), set(self.active())
        if not said or active <= said.keys():
            return bool(said)
        return 2 * len(said) > len(active) and (last or max(self._rows) > step)

    def _awaits_slower(self, said: Mapping[int, dict[str, Any]], now: float) -> bool:
        """Whether a present peer has not reached the end of this step, and may soon report it."""
        step = self.next - self.first
        slower = {
            peer
            for peer, status in self.present(now).items()
            if status.get("state") == "running" and type(status.get("step")) is int and status["step"] <= step
        } - said.keys()
        self._too_slow -= said.keys()
        if slower <= self._too_slow:
            return False
        if self._slow is None or self._slow[0] != self.next:
            self._slow = self.next, now
        if now - self._slow[1] < PATIENCE:
            return True
        self._too_slow |= slower
        return False

    def _awaits_ledger(self, said: Mapping[int, dict[str, Any]], now: float) -> bool:
        """Whether most peers know of verdicts in this step or before that are not in this ledger yet."""
        lengths = [row["entries"] for row in said.values() if type(row.get("entries")) is int]
        known = len(self.ledger.entries)
        if not lengths or known >= statistics.median_low(lengths) or known == self._missing:
            return False
        if self._waits is None or self._waits[0] != self.next:
            self._waits = self.next, now
        if now - self._waits[1] < PATIENCE:
            return True
        self._missing = known
        return False

    def _row(self, step: int, said: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
        losses = [row["loss"] for row in said.values() if row.get("loss") is not None]
        seconds = _by_phase([row["seconds"] for row in said.values()])
        sent = {phase: int(count) for phase, count in _by_phase([row["bytes"] for row in said.values()]).items()}
        total = sum(seconds.values())
        samples = statistics.median(row["samples"] for row in said.values())
        bans = [ban for ban in self.bans() if ban["step"] <= step]
        row: dict[str, Any] = {
            "step": step,
            "loss": statistics.median(losses) if losses else None,
            "active": int(statistics.median_low([row["active"] for row in said.values()])),
            "lr": statistics.median(row["lr"] for row in said.values()),
            "samples": samples,
            "samples_per_second": samples / total if total else None,
            "sent": sum(row["sent"] for row in said.values()),
            "sent_per_peer": statistics.fmean(row["sent"] for row in said.values()),
            "removed": len(bans),
            **{f"bans/{kind}": count for kind, count in sorted(Counter(ban["kind"] for ban in bans).items())},
            "seconds": seconds,
        } | _agreed([row["account"] for row in said.values()])
        if sent:
            row["bytes"] = sent
        attack = self.config.attack
        if attack.name is not None:
            begun = attack.start <= step and (attack.stop is None or step < attack.stop)
            row["attacking"] = len(self.attackers() - {ban["peer"] for ban in bans}) if begun else 0
        if row["loss"] is not None:
            if len(bans) > self._shown:
                row["loss_at_ban"] = row["loss"]
            self._shown = len(bans)
        for healing in healings_of(self.ledger.entries, self.first):
            if healing["step"] == step:
                row |= {"back_to": healing["back_to"], "loss_at_healing": row["loss"]}
        return row

    def peers(self) -> list[dict[str, Any]]:
        """What a table of the peers needs, by number."""
        bans = {ban["peer"]: f"{ban['kind']}, step {ban['step']}" for ban in self.bans()}
        table = []
        for number in range(self.config.peers):
            status = self._statuses.get(number, {})
            recent = _rows(status)
            table.append(
                {
                    "peer": number,
                    "peer_id": None,
                    "instance": _word(status.get("instance")),
                    "state": _word(status.get("state")),
                    "step": status["step"] + self.first if _is_number(status.get("step")) else None,
                    "phase": _word(status.get("phase")),
                    "loss": recent[-1]["loss"] if recent else None,
                    "last_seen": self._seen.get(number),
                    "active": number not in bans,
                    "banned": bans.get(number),
                    "attacks": self.attacks_of(number),
                }
            )
        return table


def bans_of(entries: Iterable[Entry], first: int) -> list[dict[str, Any]]:
    """Peer, step, kind and accusers of everybody that the entries of a ledger removed."""
    return [
        {"peer": peer, "step": first + entry.step, "kind": entry.kind, "accusers": list(entry.accusers)}
        for entry in entries
        for peer in entry.peers
    ]


def healings_of(entries: Iterable[Entry], first: int) -> list[dict[str, int]]:
    """Step, and the step to whose beginning all peers went back, for all steps in which they did."""
    return [
        {"step": first + entry.step, "back_to": first + entry.about_step}
        for entry in entries
        if entry.kind == HEALED and entry.about_step < entry.step
    ]


class _Account(Struct, frozen=True):
    """What each peer did, as in `Account.fields`, according to one peer."""

    roles: Annotated[str, Meta(max_length=4096)]
    checks: tuple[tuple[Number, Number], ...]
    accused: tuple[Number, ...]
    skipped: tuple[Number, ...]


def _account(row: Mapping[str, Any]) -> _Account | None:
    """What each peer did in a step according to one peer; None if that makes no sense."""
    try:
        return wire.convert({name: row.get(name, []) for name in _Account.__struct_fields__}, _Account, "row")
    except Malformed:
        return None


def _agreed(accounts: Sequence[_Account | None]) -> dict[str, Any]:
    """What more than half of the peers say in agreement, as JSON values; nothing if they do not agree."""
    told, votes = Counter(accounts).most_common(1)[0]
    if told is None or 2 * votes <= len(accounts):
        return {}
    return {name: value for name, value in to_builtins(told).items() if value}


def _by_phase(said: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of what peers say about each phase.

    What only a minority tells has no name here, or a liar could invent any number of phases.
    """
    phases = Counter(phase for numbers in said for phase in numbers)
    common = sorted(phase for phase, count in phases.items() if 2 * count > len(said))
    return {phase: statistics.median(numbers.get(phase, 0.0) for numbers in said) for phase in common}


def _rows(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The well-formed rows of a status; its sender may lie, but must not break anything."""
    rows = status.get("recent")
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or type(row.get("step")) is not int or not isinstance(row.get("seconds"), dict):
            continue
        sent = row.get("bytes")
        sent = sent if isinstance(sent, dict) and all(map(_is_number, sent.values())) else {}
        numbers = [row.get(name) for name in ("active", "samples", "lr", "sent")]
        loss = row.get("loss")
        if all(_is_number(n) for n in (*numbers, *row["seconds"].values())) and (
            loss is None or isinstance(loss, float)
        ):
            told = {"loss": loss if _is_number(loss) else None, "bytes": sent, "account": _account(row)}
            found.append({**row, **told})
    return found


def _word(value: Any) -> str | None:
    """A peer's own word for something, made fit for a table; None if it has none."""
    return shown(value, 64) if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    """Whether sums and means of such values are numbers, too: neither NaN nor infinite nor of hundreds of digits."""
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)
