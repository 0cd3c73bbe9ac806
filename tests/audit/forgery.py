"""What peers with their own keys, and all that was ever said in a run, can make of it: folders that look like a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from btard.audit.attestation import Attestation
from btard.audit.files import ATTESTATION, EVIDENCE, SUMMARY, seal_file, write_json
from btard.audit.observer import Observer
from btard.audit.proof import Proof
from btard.audit.settings import write_settings
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import digest
from btard.protocol.identity import Identity, Roster
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.messages import CoinCommit, Lacking, Votes
from btard.protocol.record import StepRecord, Transcript, to_json
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.audit.runs import D

PARAMS = digest("forged parameters")
"""What forgers say that the training has led to."""


def keys(config: ProtocolConfig, peers: Sequence[int]) -> dict[int, Identity]:
    """The identities of `peers` in a simulated run: forgers have their own."""
    return {i: Identity.from_seed(config.run_id, i) for i in peers}


def transcripts(
    config: ProtocolConfig, steps: int, behaviours: Mapping[int, Behaviour] | None = None
) -> tuple[Roster, list[Transcript], list[Entry]]:
    """All that was said in a run, by step, and what it put into the ledger. Peer 0 is honest."""
    driver, params = LocalDriver(config, QuadraticTask(D), behaviours=behaviours), torch.ones(D)
    said = []
    for _ in range(steps):
        params = params - 0.1 * driver.step(params).gradient
        last = driver.peers[0].last
        assert last is not None
        said.append(Transcript.of(last))
    return driver.peers[0].roster, said, driver.peers[0].ledger.entries


def replayed(roster: Roster, config: ProtocolConfig, d: int, proof: Proof) -> Observer:
    """The observer after the step of `proof`: its ledger has the entries to which the messages lead."""
    last: StepRecord | None = None
    if proof.before is not None:
        last = Observer(roster, config, d, proof.before).replay(proof, judge=False)
    observer = Observer(roster, config, d, proof.now, last)
    observer.replay(proof)
    return observer


def without(transcript: Transcript, gone: Callable[[str, int], bool]) -> Transcript:
    """`transcript` without the messages of which `gone`, given phase and sender, is true."""
    kept = {
        phase: {sender: said for sender, said in of_phase.items() if not gone(phase, sender)}
        for phase, of_phase in transcript.messages.items()
    }
    return structs.replace(transcript, messages={phase: said for phase, said in kept.items() if said})


def saying(
    transcript: Transcript, config: ProtocolConfig, forgers: Mapping[int, Identity], said: Mapping[int, Any], phase: str
) -> Transcript:
    """`transcript` with what the `forgers` have `said` in `phase` in the place of their messages there."""
    context = transcript.binding(config)
    messages = dict(transcript.messages.get(phase, {}))
    for sender, payload in said.items():
        message = Signed.create(forgers[sender], context, sender, transcript.step, phase, payload)
        messages[sender] = ((message.payload, message.signature),)
    return structs.replace(transcript, messages={**transcript.messages, phase: messages})


def voting(
    proof: Proof, roster: Roster, config: ProtocolConfig, forgers: Mapping[int, Identity], verdict: str, *, d: int = D
) -> Transcript:
    """The step of `proof` in which the `forgers` vote, all alike, on what is on trial in it."""
    now = proof.now
    members = {i: identity for i, identity in forgers.items() if i in now.active}
    for attempt, tried in replayed(roster, config, d, proof).current.trials.items():
        for phase, said in (("lacking", Lacking(())), ("vote", Votes((verdict,) * len(tried)))):
            now = saying(now, config, members, dict.fromkeys(members, said), f"{phase}/{attempt}")
    return now


def seal(
    observer: Observer, config: ProtocolConfig, forgers: Mapping[int, Identity], earlier: Sequence[Entry]
) -> Transcript:
    """The step after `observer`'s, as far as those `forgers` say it who are still members then."""
    ledger = Ledger()
    for entry in (*earlier, *observer.ledger.entries):
        ledger.append(entry)
    start = Transcript(
        observer.current.step + 1,
        observer.active,
        {},
        observer.current.coin,
        observer.current.tau,
        ledger.head,
        dict(observer.absences),
        dict(observer.probation),
        observer.current.epoch,
    )
    said = {i: CoinCommit(bytes(32)) for i in forgers if i in start.active}
    return saying(start, config, forgers, said, "coin_commit/0")


def write_run(
    folder: Path,
    config: ProtocolConfig,
    roster: Roster,
    proof: Proof,
    forgers: Mapping[int, Identity],
    *,
    earlier: Sequence[Entry] = (),
    sealed: bool = False,
    finished: bool = False,
    d: int = D,
) -> list[Entry]:
    """A folder that ends in the step of `proof`, with whatever entries this leads to; returns these.

    `sealed`: with the next step, `finished`: with the end, as far as the `forgers` can sign it.
    """
    observer = replayed(roster, config, d, proof)
    entries = list(observer.ledger.entries)
    write_settings(folder, config, d, roster)
    ledger = Ledger()
    lines = [ledger.append(entry) + "\n" for entry in (*earlier, *entries)]
    (folder / "ledger.jsonl").write_text("".join(lines))
    by = next((i for i in sorted(forgers) if i in proof.now.active), min(forgers))
    if entries:
        proof.write(folder / EVIDENCE, by, forgers[by])
    if sealed:
        step = proof.now.step + 1
        write_json(
            seal_file(folder / EVIDENCE, step), {"now": to_json(seal(observer, config, forgers, earlier), Transcript)}
        )
    (folder / ATTESTATION).unlink(missing_ok=True)
    if finished:
        end = Attestation(proof.now.step + 1, ledger.head, PARAMS)
        signed = end.digest(config, roster, d)
        signatures = {i: identity.sign(signed) for i, identity in forgers.items() if i not in observer.current.expelled}
        Attestation(end.step, end.head, end.params, signatures).write(folder)
        (folder / SUMMARY).write_text("{}\n")
    return entries
