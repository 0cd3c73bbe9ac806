"""What a page shows of a run: only numbers and short texts, as JSON values of bounded size."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from btard.drivers.account import ROLES
from btard.protocol import wire
from btard.protocol.attackers import draw_attackers
from btard.protocol.claims import KINDS
from btard.protocol.config import MAX_PEERS
from btard.protocol.heal import HEALED, described
from btard.protocol.ledger import Entry
from btard.protocol.limits import Limits
from btard.protocol.messages import NOBODY, Claim, Claims
from btard.protocol.record import Transcript
from btard.protocol.wire import Malformed, shown
from btard.watch.folder import SWARM, TRAINER, Proof, Run, number
from btard.watch.words import how_decided, meaning, phase_of, phases

MAX_STEPS = 4000
"""Number of steps that can be viewed one by one, and of entries."""
CLAIMS = 20
"""Number of claims that are shown of an entry."""
WORD = 120
"""Maximum length of a text that others chose."""
Key = tuple[int, int, int, int, int]
"""Of claims: the step in which they were raised, the one that they are about, the accused, the part, the accuser."""


def story_of(run: Run, audited: Mapping[int, str] | str | None = None) -> dict[str, Any]:
    """Everything that a page shows, except its charts.

    `audited`: place in the ledger -> what an audit checked of this entry, or in a word why it refused; None: no audit.
    """
    attackers, by = attackers_of(run)
    peers = peers_of(run, attackers)
    steps = [_step(run, line) for line in _chosen(run)]
    claims, evidence = _claims(run), {step: _evidence(proof) for step, proof in run.proofs.items()}
    return {
        "title": shown(_name(run), WORD),
        "kind": run.kind,
        "finished": run.summary is not None,
        "steps_done": run.metrics[-1]["step"] + 1 if run.metrics else 0,
        "steps_planned": run.setting("steps") if type(run.setting("steps")) is int else None,
        "read_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "facts": _facts(run, attackers),
        "notes": [*(shown(note, 400) for note in run.notes), *_missing(run)],
        "attackers_by": by,
        "peers": peers,
        "steps": steps,
        "every": max(1, -(-len(run.metrics) // MAX_STEPS)),
        "entries": [
            _entry(run, entry, attackers, claims)
            | {
                "evidence": evidence.get(entry.step),
                "audit": audited.get(place, "") if isinstance(audited, Mapping) else "",
            }
            for place, entry in enumerate(run.entries[:MAX_STEPS])
        ],
        "audit": audited if isinstance(audited, str) else "" if audited is None else "in order",
        "phases": phases(),
        "totals": totals_of(run),
        "bytes_of": "the median peer"
        if run.kind == SWARM
        else "this peer"
        if run.kind == TRAINER
        else "the lowest honest peer",
        "roles": ROLES,
        "now": _now(run),
    }


def _name(run: Run) -> str:
    said = run.setting("run_id")
    return said if isinstance(said, str) and said else run.folder.resolve().name


def attackers_of(run: Run) -> tuple[frozenset[int] | None, str]:
    """The peers that attack, and who says so; None if nobody does."""
    told = (run.summary or {}).get("byzantine")
    if isinstance(told, list):
        return frozenset(peer for peer in told if type(peer) is int), "the run's summary"
    rows = run.status.get("peers")
    if isinstance(rows, list):
        known = [row for row in rows if isinstance(row, dict) and type(row.get("peer")) is int]
        said = {row["peer"]: row.get("attacks") for row in known}
        if any(isinstance(word, bool) for word in said.values()):
            return frozenset(peer for peer, word in said.items() if word is True), "their own word"
    count, seed = run.setting("byzantine"), run.setting("seed")
    drawn = run.kind not in (SWARM, TRAINER) and run.setting("attack", "name") is not None
    if drawn and type(count) is int and type(seed) is int and 0 <= count < run.peers and seed >= 0:
        return draw_attackers(run.peers, count, seed), "the settings"
    return None, ""


def peers_of(run: Run, attackers: frozenset[int] | None) -> list[dict[str, Any]]:
    """A row for each peer that was ever there: number, name, the step since which it is gone."""
    joined = {entry.accused for entry in run.entries if entry.kind == "join"}
    gone = {peer: run.first + entry.step for entry in reversed(run.entries) for peer in entry.peers}
    rows = run.status.get("peers")
    names = {
        row["peer"]: shown(row["instance"], WORD)
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict) and type(row.get("peer")) is int and isinstance(row.get("instance"), str)
    }
    known = sorted({*range(run.peers), *(peer for peer in joined if 0 <= peer < MAX_PEERS)})
    return [
        {
            "peer": peer,
            "name": names.get(peer, ""),
            "attacks": None if attackers is None else peer in attackers,
            "removed": gone.get(peer),
        }
        for peer in known
    ]


def roles_of(line: Mapping[str, Any]) -> str:
    """The letters of a line of metrics; empty if it has none that make sense."""
    roles = line.get("roles")
    return roles if isinstance(roles, str) and len(roles) <= MAX_PEERS and set(roles) <= set(ROLES) else ""


def totals_of(run: Run) -> list[dict[str, Any]]:
    """Seconds and bytes of all steps together, by phase in the order of a step; None if nothing was kept."""
    seconds: Counter[Any] = Counter()
    sent: Counter[Any] = Counter()
    for line in run.timings:
        seconds.update(by_phase(line, but="step"))
    for line in (*run.metrics, *run.timings):  # a library's run has no timings
        sent.update(by_phase(line.get("bytes")))
    titles = [str(phase["title"]) for phase in phases()]
    found = [*titles, *sorted({*seconds, *sent} - set(titles))][:50]
    return [
        {"phase": title, "seconds": seconds.get(title), "bytes": sent.get(title)}
        for title in found
        if title in seconds or title in sent
    ]


def by_phase(line: Any, but: str = "") -> dict[str, float]:
    """The numbers of a line of timings or bytes, summed by phase."""
    found: dict[str, float] = {}
    for name, value in line.items() if isinstance(line, dict) else ():
        if name != but and (told := number(value)) is not None:
            title = shown(phase_of(name), 40)
            found[title] = found.get(title, 0.0) + told
    return found


def _chosen(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics that can be viewed: all, or evenly spaced ones and those around entries."""
    every = max(1, -(-len(run.metrics) // MAX_STEPS))
    near = {run.first + entry.step + off for entry in run.entries[:MAX_STEPS] for off in (-1, 0, 1)}
    return [line for place, line in enumerate(run.metrics) if place % every == 0 or line["step"] in near]


def _step(run: Run, line: Mapping[str, Any]) -> dict[str, Any]:
    step = line["step"]
    found: dict[str, Any] = {"step": step}
    for name in ("loss", "test_accuracy", "test_loss", "validation_loss", "lr", "tau", "active", "back_to", "sent"):
        if (value := number(line.get(name))) is not None:
            found[name] = value
    if roles := roles_of(line):
        found["roles"] = roles
    pairs = line.get("checks")
    if checks := [pair for pair in map(numbers, pairs if isinstance(pairs, list) else ()) if len(pair) == 2]:
        found["checks"] = checks[:MAX_PEERS]
    for name in ("accused", "skipped"):
        if told := numbers(line.get(name)):
            found[name] = told
    timing = run.timing_of.get(step, {})
    if sent := by_phase(line.get("bytes") or timing.get("bytes")):
        found["bytes"] = sent
    if seconds := by_phase(timing, but="step"):
        found["seconds"] = seconds
    if said := _messages(run, step):
        found["messages"] = said
    return found


def numbers(value: Any) -> list[int]:
    """A list of peers or parts, if it is one; else none."""
    if not isinstance(value, list) or len(value) > MAX_PEERS or not all(type(entry) is int for entry in value):
        return []
    return [entry for entry in value if 0 <= entry < 2**31]


def _messages(run: Run, step: int) -> dict[str, Any]:
    """Phase -> who has signed what is on record of this step; empty if the folder has none."""
    at = step - run.first
    transcript = run.proofs[at].now if at in run.proofs else None
    if transcript is None and at + 1 in run.proofs:
        transcript = run.proofs[at + 1].before
    if transcript is None:
        return {}
    found: dict[str, Any] = {}
    for name, said in transcript.messages.items():
        row = found.setdefault(phase_of(name), {"senders": set(), "bytes": 0})
        row["senders"].update(said)
        row["bytes"] += sum(len(payload) + len(mark) for faces in said.values() for payload, mark in faces)
    return {title: {"senders": sorted(row["senders"]), "bytes": row["bytes"]} for title, row in found.items()}


def _claims(run: Run) -> dict[Key, list[dict[str, Any]]]:
    """The claims that the entries are about, with who raised them: at most `CLAIMS` for each of their keys."""
    found: dict[Key, list[dict[str, Any]]] = {key: [] for entry in run.entries[:MAX_STEPS] for key in _keys(entry)}
    for step, proof in run.proofs.items():
        for sender, c in _raised(proof.now):
            told = {"by": sender, "accused": c.accused, "kind": c.kind, "about": run.first + c.step, "part": c.part}
            for by in (sender, NOBODY):
                of_key = found.get((step, c.step, c.accused, c.part, by))
                if of_key is not None and len(of_key) < CLAIMS:
                    of_key.append(told)
    return found


def _keys(entry: Entry) -> list[Key]:
    """By what the claims behind an entry are found: those of its accusers, or of anybody if it has none."""
    by = entry.accusers[:CLAIMS] or (NOBODY,)
    return [(entry.step, entry.about_step, entry.accused, entry.part, accuser) for accuser in by]


def _raised(transcript: Transcript) -> Iterator[tuple[int, Claim]]:
    """(sender, claim) of the claims in a step's messages."""
    limit = Limits(peers=MAX_PEERS, directions=1).payload(Claims)
    for phase, said in transcript.messages.items():
        for sender, faces in said.items() if phase.startswith("accuse/") else ():
            for payload, _ in faces[:1]:
                try:
                    claims = wire.decode(payload, Claims, max_bytes=limit, what="claims").claims
                except Malformed:
                    continue
                yield from ((sender, claim) for claim in claims)


def _entry(
    run: Run, entry: Entry, attackers: frozenset[int] | None, raised: Mapping[Key, list[dict[str, Any]]]
) -> dict[str, Any]:
    claims = [claim for key in _keys(entry) for claim in raised[key]]
    kinds = {entry.kind, *(claim["kind"] for claim in claims)}
    recomputed = any(kind in KINDS and KINDS[kind].recomputes for kind in kinds)
    votes: dict[str, list[int]] = {}
    for judge, verdict in sorted(entry.votes.items(), key=lambda vote: (len(vote[0]), vote[0])):
        if judge.isascii() and judge.isdigit() and len(judge) < 10:
            votes.setdefault(shown(verdict, 40), []).append(int(judge))
    decided = how_decided(entry.kind, entry.verdict, recomputed)
    if entry.kind == "wrong_aggregate" and entry.about_step < entry.step:
        decided = "Judged by the parts that went in; where the owner is away, with what the voters had recomputed."
    if entry.kind in (HEALED, "join", "member"):
        decided = ""
    return {
        "step": run.first + entry.step,
        "kind": shown(entry.kind, 60),
        "meaning": described(entry, run.first) if entry.kind == HEALED else meaning(entry.kind),
        "verdict": shown(entry.verdict, 40),
        "accused": entry.accused,
        "accusers": list(entry.accusers),
        "removed": list(entry.peers),
        "honest": [p for p in entry.peers if attackers is not None and p not in attackers],
        "about": run.first + entry.about_step,
        "part": entry.part,
        "claims": claims[:CLAIMS],
        "digest": shown(entry.evidence, 64),
        "votes": [{"verdict": verdict, "judges": judges} for verdict, judges in votes.items()],
        "decided": decided,
        "losses": _losses(run, entry),
        "back_to": run.first + entry.about_step if entry.kind == HEALED and entry.about_step < entry.step else None,
    }


def _losses(run: Run, entry: Entry) -> list[list[float]]:
    """[step, loss] of the states that a healing compared."""
    found = []
    for step, loss in entry.losses.items():
        told = number(loss)
        if step.isascii() and step.isdigit() and len(step) < 10 and told is not None:
            found.append([run.first + int(step), told])
    return sorted(found)


def _evidence(proof: Proof) -> dict[str, Any]:
    pieces: dict[tuple[int, str, int], int] = Counter((by, kind, sender) for by, kind, sender, _ in proof.shown)
    told = [{"by": by, "what": shown(kind, 40), "of": of, "pieces": n} for (by, kind, of), n in sorted(pieces.items())]
    return {"recorded_by": proof.by, "platform": shown(proof.platform, WORD), "pieces": told[:100]}


def _facts(run: Run, attackers: frozenset[int] | None) -> list[list[str]]:
    """The head of the page: label and value."""
    summary, last = run.summary or {}, run.metrics[-1] if run.metrics else {}
    gone = {peer for entry in run.entries for peer in entry.peers}
    facts = [["kind", run.kind], ["peers at the start", str(run.peers)]]
    if attackers is not None:
        facts.append(["of them attack", str(len(attackers))])
        facts.append(["attackers removed", f"{len(gone & attackers)} of {len(attackers)}"])
        facts.append(["honest peers removed", str(len(gone - attackers))])
    else:
        facts.append(["removed", str(len(gone))])
    went_back = sum(entry.kind == HEALED and entry.about_step < entry.step for entry in run.entries)
    facts.append(["went back to an earlier state", f"{went_back} times"])
    for label, names in (
        ("attack", ("attack", "name")),
        ("aggregation", ("aggregator", "name")),
        ("tau", ("protocol", "tau")),
    ):
        value = run.setting(*names)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            facts.append([label, shown(value, WORD)])
    accuracy = number(summary.get("test_accuracy"))
    if accuracy is not None:
        facts.append(["test accuracy at the end", f"{accuracy:.2%}"])
    elif (loss := number(last.get("loss"))) is not None:
        facts.append(["loss of the last step", f"{loss:.4f}"])
    return facts


def _missing(run: Run) -> list[str]:
    """A statement of what the folder does not record, instead of an invention."""
    said = []
    if len(run.entries) > MAX_STEPS:
        said.append(f"the first {MAX_STEPS} of {len(run.entries)} entries are listed")
    if run.metrics and not any(roles_of(line) for line in run.metrics):
        ours = run.setting("aggregator", "name") in (None, "btard")
        why = "it was written before programs kept that" if ours else "a rule at a server removes and checks nobody"
        said.append(f"who worked, validated or was away in each step is not recorded here: {why}")
    if run.metrics and not any(isinstance(line.get("bytes"), dict) for line in (*run.metrics, *run.timings)):
        said.append("bytes by phase are not recorded here")
    if not run.timings:
        said.append("seconds by phase are not recorded here")
    if run.entries and not run.proofs:
        where = "they are in the folders of its peers" if run.kind == SWARM else "the run kept no evidence"
        said.append(f"the messages behind the ledger's entries are not in this folder: {where}")
    elif run.entries:
        said.append("signed messages are kept of steps with an entry, and of the step before each; not of the others")
    return said


def _now(run: Run) -> list[dict[str, Any]]:
    """What each peer last told a coordinator about itself."""
    rows = run.status.get("peers")
    found = []
    for row in rows[:MAX_PEERS] if isinstance(rows, list) else ():
        if isinstance(row, dict) and type(row.get("peer")) is int:
            words = {name: row[name] for name in ("state", "phase", "banned") if isinstance(row.get(name), str)}
            told = {name: shown(word, WORD) for name, word in words.items()}
            measured = {name: number(row.get(name)) for name in ("step", "loss", "last_seen")}
            found.append({"peer": row["peer"], **told, **measured, "active": row.get("active") is True})
    return found


def spans(steps: Sequence[int], letters: Sequence[str]) -> Iterable[tuple[int, int, str]]:
    """(first step, last step, letter) of each stretch of equal letters."""
    begin = 0
    for place in range(1, len(steps) + 1):
        if place == len(steps) or letters[place] != letters[begin]:
            yield steps[begin], steps[place - 1], letters[begin]
            begin = place
