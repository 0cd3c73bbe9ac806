"""What most peers of a swarm say about themselves, combined from their statuses. None of it is proven."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins

from btard.protocol.heal import HEALED
from btard.protocol.ledger import Entry, Ledger, everybody, members_of, still_byzantine
from btard.protocol.wire import Malformed
from btard.swarm.config import SwarmConfig
from btard.swarm.life import GATHERING
from btard.swarm.said import Account, Row, Said, read_status

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


@dataclass
class Late:
    """How a peer was too late to tell of steps: nobody may hold the others up again and again."""

    times: int = 0
    """How often it was given up."""
    owes: int = 0
    """Steps that it must tell of in time before anybody waits for it again: twice as many each time."""

    def give_up(self) -> None:
        self.times += 1
        self.owes = 2 ** (self.times - 1)


class SwarmView:
    """The swarm as seen by an observer that asks all its members repeatedly.

    `first` is the step at which the protocol began. Times are `time.monotonic()`. What is held of a peer is its last
    status, and its rows of steps that most members have reached.
    """

    def __init__(self, config: SwarmConfig, first: int) -> None:
        self.config, self.first, self.next = config, first, first
        self._protocol = config.protocol_config()
        self.ledger = Ledger()
        self.attacks: dict[int, bool] = {}
        """Peer -> whether it says that it was started as an attacker."""
        self._said: dict[int, Said] = {}
        self._seen: dict[int, float] = {}
        self._rows: dict[int, dict[int, Row]] = {}
        """Step -> peer -> what it said about that step."""
        self._shown = 0
        """Peers that had been removed by the last step whose loss is known."""
        self._slow: tuple[int, float] | None = None
        """The step that waits for slower peers, and since when."""
        self._late: defaultdict[int, Late] = defaultdict(Late)
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

    def hear(self, number: int, status: Mapping[str, Any], now: float) -> None:
        """Record the answer of peer `number`; of no interest is what those say that are not in the run."""
        if number not in self.active():
            return
        said = self._said[number] = read_status(status)
        self._seen[number] = now
        if said.attacks is not None:
            self.attacks[number] = said.attacks

    # Who is there.

    def active(self) -> list[int]:
        """The members, by the ledger."""
        return members_of(self.ledger.entries, self.config.peers)

    @property
    def byzantine(self) -> int:
        """How many of them may be Byzantine."""
        return still_byzantine(self._protocol, self.ledger.entries)

    def present(self, now: float) -> dict[int, Said]:
        """What the members say that have answered recently."""
        return {i: self._said[i] for i in self.active() if i in self._seen and now - self._seen[i] < FRESH}

    @property
    def furthest(self) -> int:
        """The newest step that more than half of the members tell of, -1 if there is none."""
        newest = sorted((self._said[peer].newest if peer in self._said else -1 for peer in self.active()), reverse=True)
        return newest[len(newest) // 2] if newest else -1

    def attacks_of(self, peer: int) -> bool | None:
        """Whether a peer attacks, as far as anybody says so: only for labels, no trust depends on it.

        What it says of how it was started goes before what the settings say of its number, and only where numbers are
        given do they say anything: elsewhere a number is no more than a place in the list of those who came.
        """
        numbered = self.config.peer is not None or self.config.attack.peers is not None
        return self.attacks.get(peer, peer in self.config.attackers() if numbered else None)

    def attackers(self) -> frozenset[int]:
        """The peers that attack according to `attacks_of`."""
        return frozenset(peer for peer in self._everybody() if self.attacks_of(peer))

    def bans(self) -> list[dict[str, Any]]:
        """All removed peers, with step, kind and accusers, in the order of the ledger."""
        return bans_of(self.ledger.entries, self.first)

    # What happened.

    def learn(self, now: float) -> News | None:
        """Take over the ledger on which most answers agree, if it continues this one.

        It does not if all peers have gone back to a checkpoint and were luckier then: it takes the place of mine.
        """
        told: Counter[tuple[int, tuple[str, ...]]] = Counter()
        present = self.present(now)
        for said in present.values():
            if said.state in GATHERING or said.ledger is None or said.entries is None:
                continue
            if said.entries >= len(said.ledger):
                told[said.entries, said.ledger] += 1
        for (count, lines), votes in told.items():
            if not (2 * votes > len(present) and votes > self.byzantine):
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
        self._take_rows()
        while self._told(self.next, last) or self._skip(last):
            out = {ban["peer"] for ban in self.bans() if ban["step"] <= self.next}
            said = {peer: row for peer, row in self._rows[self.next].items() if peer not in out}
            if not last and (self._awaits_slower(said, now) or self._awaits_ledger(said, now)):
                break
            found.append(self._row(self.next, said))
            for peer in said.keys() & self._late.keys():
                self._late[peer].owes = max(0, self._late[peer].owes - 1)
            self.next += 1
        self._rows = {step: said for step, said in self._rows.items() if step >= self.next}
        return found

    def _take_rows(self) -> None:
        """Take what peers tell of the steps that most members have reached: of others nobody remembers anything."""
        end = min(self.furthest + 1, self.config.steps)
        for peer, said in self._said.items():
            for row in said.rows:
                if self.next <= row["step"] < end:
                    self._rows.setdefault(row["step"], {})[peer] = row

    def _told(self, step: int, last: bool) -> bool:
        """Whether all members have told of the step, or most have and somebody is past it."""
        active = set(self.active())
        said = self._rows.get(step, {}).keys() & active
        if not said or active <= said:
            return bool(said)
        return 2 * len(said) > len(active) and (last or bool(self._past(step)))

    def _past(self, step: int) -> set[int]:
        """The members that tell of a later step."""
        return {peer for peer in self.active() if peer in self._said and self._said[peer].newest > step}

    def _skip(self, last: bool) -> bool:
        """Go on at a later step that is told of if too many are past this one without having told of it.

        They were not in it, or nobody watched: there will be no majority for it. Returns whether there is such a step.
        """
        later = [step for step in self._rows if step > self.next and self._told(step, last)]
        silent = self._past(self.next) - self._rows.get(self.next, {}).keys()
        if not later or 2 * len(silent) < len(self.active()):
            return False
        self.next = min(later)
        return True

    def _awaits_slower(self, said: Mapping[int, Row], now: float) -> bool:
        """Whether a present member has not reached the end of this step, and may soon tell of it."""
        step = self.next - self.first
        slower = {
            peer
            for peer, told in self.present(now).items()
            if told.state == "running" and told.step is not None and told.step <= step and not self._late[peer].owes
        } - said.keys()
        if not slower:
            return False
        if self._slow is None or self._slow[0] != self.next:
            self._slow = self.next, now
        if now - self._slow[1] < PATIENCE:
            return True
        for peer in slower:
            self._late[peer].give_up()
        return False

    def _awaits_ledger(self, said: Mapping[int, Row], now: float) -> bool:
        """Whether most peers know of verdicts in this step or before that are not in this ledger yet."""
        lengths = [row["entries"] for row in said.values() if row["entries"] is not None]
        known = len(self.ledger.entries)
        if not lengths or known >= statistics.median_low(lengths) or known == self._missing:
            return False
        if self._waits is None or self._waits[0] != self.next:
            self._waits = self.next, now
        if now - self._waits[1] < PATIENCE:
            return True
        self._missing = known
        return False

    def _row(self, step: int, said: Mapping[int, Row]) -> dict[str, Any]:
        losses = [row["loss"] for row in said.values() if row["loss"] is not None]
        most = max(len(said), len(self.active())) // 2
        seconds = _by_phase([row["seconds"] for row in said.values()], most)
        bytes_sent = _by_phase([row["bytes"] for row in said.values()], most)
        sent = {phase: int(count) for phase, count in bytes_sent.items()}
        total = sum(seconds.values())
        each = statistics.median_low([row["sent"] for row in said.values()])
        samples = statistics.median(row["samples"] for row in said.values())
        bans = [ban for ban in self.bans() if ban["step"] <= step]
        row: dict[str, Any] = {
            "step": step,
            "loss": statistics.median(losses) if losses else None,
            "active": int(statistics.median_low([row["active"] for row in said.values()])),
            "lr": statistics.median(row["lr"] for row in said.values()),
            "samples": samples,
            "samples_per_second": samples / total if total else None,
            "sent": len(said) * each,
            "sent_per_peer": each,
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

    def peers(self, day: float = 0.0) -> list[dict[str, Any]]:
        """What a table of the peers needs, by number; `day`: seconds to add for the time of day."""
        bans = {ban["peer"]: f"{ban['kind']}, step {ban['step']}" for ban in self.bans()}
        table = []
        for number in self._everybody():
            said, seen = self._said.get(number, Said()), self._seen.get(number)
            table.append(
                {
                    "peer": number,
                    "peer_id": None,
                    "instance": said.instance,
                    "state": said.state,
                    "step": None if said.step is None else said.step + self.first,
                    "phase": said.phase,
                    "loss": said.rows[-1]["loss"] if said.rows else None,
                    "last_seen": None if seen is None else seen + day,
                    "active": number not in bans,
                    "banned": bans.get(number),
                    "attacks": self.attacks_of(number),
                }
            )
        return table

    def _everybody(self) -> list[int]:
        return everybody(self.ledger.entries, self.config.peers)


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


def _agreed(accounts: Sequence[Account | None]) -> dict[str, Any]:
    """What more than half of the peers say in agreement, as JSON values; nothing if they do not agree."""
    told, votes = Counter(accounts).most_common(1)[0]
    if told is None or 2 * votes <= len(accounts):
        return {}
    return {name: value for name, value in to_builtins(told).items() if value}


def _by_phase(said: Sequence[Mapping[str, float]], most: int) -> dict[str, float]:
    """The median of what peers say about each phase, of those that more than `most` peers name.

    What only a minority of the members tells has no name here, or liars could invent any number of phases.
    """
    phases = Counter(phase for numbers in said for phase in numbers)
    common = sorted(phase for phase, count in phases.items() if count > most)
    return {phase: statistics.median(numbers.get(phase, 0.0) for numbers in said) for phase in common}
