"""Mutants of a recorded run: what the holders of some keys can make of its files, and whether the audit believes it.

Messages, packets, lines and signatures are dropped, swapped, cut off or taken from another step or life, and made up by
those whose keys are the forgers' own.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from btard.audit import AuditError, audit
from btard.audit.attestation import Attestation
from btard.audit.files import ATTESTATION, EVIDENCE, PROTOCOL, ROSTER, SUMMARY, write_json
from btard.audit.ledger import AgreedState, Line, read_ledger
from btard.audit.proof import Proof
from btard.audit.report import UNCERTAIN
from btard.audit.settings import read_settings
from btard.protocol.hashing import stream
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry
from btard.protocol.messages import (
    CLAIM_KINDS,
    FALSE_CLAIM,
    GUILTY,
    Claim,
    Claims,
    CoinCommit,
    CoinReveal,
    Commit,
    Lacking,
    Votes,
)
from btard.protocol.record import Start
from btard.protocol.signed import Signed
from btard.protocol.wire import convert
from tests.audit.forgery import saying, voting, without, write_run
from tests.audit.runs import lines_of, sign, write_lines

ORDER = ("join", "commit", "announce", "coin_commit", "coin_reveal", "report", "accuse", "lacking", "vote")
MUTANTS = 12
"""Of each run and seed."""


@dataclass(frozen=True)
class Truth:
    """What really happened."""

    entries: tuple[str, ...]
    end: Attestation | None

    @classmethod
    def of(cls, folder: Path) -> Truth:
        entries = tuple(Entry.from_json(line).to_json() for line in lines_of(folder))
        return cls(entries, Attestation.read(folder) if (folder / ATTESTATION).exists() else None)

    def allows(self, report: Any) -> bool:
        """Whether all that `report` is certain of is so."""
        certain = [finding.entry.to_json() for finding in report.findings if finding.checked != UNCERTAIN]
        if certain != list(self.entries[: len(certain)]):
            return False
        end = re.search(r"finished after step (-?\d+), .*parameters (\w+)", report.summary)
        if end is None:
            return "not finished" in report.summary
        here = self.end is not None and (int(end[1]) + 1, end[2]) == (self.end.step, self.end.params.hex()[:16])
        return here and len(certain) == len(self.entries)


def _in_order(phases: Iterable[str]) -> list[str]:
    """The phases of a step as they follow each other; of an attempt all, then of the next."""
    first = [phase.partition("/") for phase in phases]
    return ["".join(words) for words in sorted(first, key=lambda words: (ORDER.index(words[0]), words[2]))]


@dataclass(frozen=True)
class Run:
    folder: Path
    other: Path
    """Where messages may be taken from: another life of the run, or itself."""
    forgers: Mapping[int, Identity]


class Mutator:
    """One forger at work in `folder`, a copy of `run`. `rng`: its choices."""

    def __init__(self, run: Run, folder: Path, rng: np.random.Generator) -> None:
        self.run, self.folder, self.rng = run, folder, rng
        self.config, _, self.roster = read_settings(folder)
        self.forgers = dict(run.forgers)
        self.by = self.pick(list(self.forgers))
        """Who writes and signs proofs."""

    def pick(self, values: Any) -> Any:
        values = list(values)
        if not values:
            raise KeyError("nothing to choose from")
        return values[int(self.rng.integers(len(values)))]

    def chance(self, p: float = 0.5) -> bool:
        return bool(self.rng.random() < p)

    def mutate(self, only: str = "") -> str:
        kinds = [self.lines, self.proof, self.proof, self.end, self.end, self.end, self.end]
        kinds += [self.tensors, self.files, self.attestation, self.settings]
        kinds = [getattr(self, only)] if only else kinds
        chosen = [self.pick(kinds) for _ in range(1 + self.chance(0.3))]
        for kind in chosen:
            try:
                kind()
            except (AuditError, FileNotFoundError, KeyError, ValueError, RuntimeError) as error:
                # Nothing to do, or nothing that can be replayed.
                if len(chosen) == 1:
                    return f"{kind.__name__}: {error}"
        return " ".join(kind.__name__ for kind in chosen)

    # The ledger.

    def lines(self) -> None:
        lines = lines_of(self.folder)
        at = int(self.rng.integers(len(lines)))
        entry = json.loads(lines[at])
        what = self.pick(["drop", "double", "swap", "change", "change", "change", "cut"])
        if what == "drop":
            del lines[at]
        elif what == "double":
            lines.insert(at, lines[at])
        elif what == "swap":
            lines[at], lines[0] = lines[0], lines[at]
        elif what == "cut":
            del lines[at:]
        else:
            peer = int(self.rng.integers(self.config.peers))
            name = self.pick(
                ["peers", "accused", "accusers", "kind", "verdict", "votes", "step", "about_step", "evidence"]
            )
            entry[name] = {
                "peers": self.pick([[peer], [], sorted({*entry["peers"], peer})]),
                "accused": peer,
                "accusers": [peer],
                "kind": self.pick(["misreport", "silent", "gone", "member", "join", "wrong_gradient"]),
                "verdict": self.pick(["guilty", "public", "false", "eliminated"]),
                "votes": {str(peer): "guilty"},
                "evidence": self.forgers[self.by].public_key.hex(),
            }.get(name, int(self.rng.integers(6)))
            lines[at] = json.dumps(entry, sort_keys=True)
        write_lines(self.folder, lines, chained=True)
        if self.chance():
            for file in (self.folder / EVIDENCE).glob(f"step-{entry['step']:08d}*"):
                file.unlink()

    # Proofs and seals, as what stands in the files.

    def _json(self, folder: Path, pattern: str = "step-*.json") -> tuple[Path, dict[str, Any]]:
        file = self.pick(sorted((folder / EVIDENCE).glob(pattern)))
        return file, json.loads(file.read_text().splitlines()[1])

    def _write(self, file: Path, content: dict[str, Any]) -> None:
        if "signature" in content:
            sign(file, content, self.config.run_id, self.by)
        else:
            write_json(file, content)

    def proof(self) -> None:
        file, content = self._json(self.folder)
        for _ in range(1 + self.chance()):
            step = content[self.pick(["now", "before"])] if content.get("before") else content["now"]
            self.pick([self._drop, self._cut, self._take, self._resign, self._state])(step)
        self._write(file, content)

    def _drop(self, step: dict[str, Any]) -> None:
        phase = self.pick(step["messages"])
        if self.chance(0.3):
            del step["messages"][phase]
        else:
            del step["messages"][phase][self.pick(step["messages"][phase])]

    def _cut(self, step: dict[str, Any]) -> None:
        """Nothing of the others from some phase on."""
        phases = _in_order(step["messages"])
        for phase in phases[int(self.rng.integers(len(phases))) :]:
            said = step["messages"][phase]
            step["messages"][phase] = {sender: said[sender] for sender in said if int(sender) in self.forgers}

    def _take(self, step: dict[str, Any]) -> None:
        """What somebody said elsewhere: in another step, phase, or life."""
        _, content = self._json(self.pick([self.folder, self.run.other]))
        there = content[self.pick(["now", "before"])] if content.get("before") else content["now"]
        here, elsewhere = self.pick(step["messages"]), self.pick(there["messages"])
        if self.chance():
            step["messages"][here] = there["messages"][elsewhere]
        else:
            sender = self.pick(there["messages"][elsewhere])
            said = step["messages"][here].get(sender, []) if self.chance() else []
            step["messages"][here][sender] = [*said, *there["messages"][elsewhere][sender]][:2]
        if self.chance(0.2):
            step["messages"] = there["messages"]

    def _payload(self, step: dict[str, Any], phase: str) -> Any:
        kind = phase.partition("/")[0]
        k = len(step["active"])
        claims = tuple(
            Claim(
                step["step"], int(self.pick(step["active"])), self.pick(sorted(CLAIM_KINDS)), int(self.rng.integers(k))
            )
            for _ in range(2)
        )
        # Of the right number, as often as not.
        votes = Votes(tuple(self.pick([GUILTY, FALSE_CLAIM]) for _ in range(int(self.rng.integers(1, 3)))))
        return {
            "commit": Commit(()),
            "coin_commit": CoinCommit(bytes(32)),
            "coin_reveal": CoinReveal(bytes(32), bytes(32), (0,) if self.chance() else ()),
            "accuse": Claims(tuple(sorted(set(claims)))[: int(self.rng.integers(3))]),
            "vote": votes,
            "lacking": Lacking((0,)),
        }.get(kind, CoinCommit(bytes(32)))

    def _resign(self, step: dict[str, Any]) -> None:
        """Another message of a forger, alone or beside the one it sent."""
        phase = self.pick(step["messages"])
        context = convert({k: v for k, v in step.items() if k != "messages"}, Start, "start").binding(self.config)
        message = Signed.create(
            self.forgers[self.by], context, self.by, step["step"], phase, self._payload(step, phase)
        )
        new = [base64.b64encode(raw).decode() for raw in (message.payload, message.signature)]
        said = step["messages"][phase].get(str(self.by), []) if self.chance(0.3) else []
        step["messages"][phase][str(self.by)] = [*said, new][:2]

    def _state(self, step: dict[str, Any]) -> None:
        """Another state at the start, for which the forgers sign all that they said."""
        others = [i for i in step["active"] if i not in self.forgers]
        name = self.pick(
            ["active", "assignments", "previous_coin", "absences", "byzantine", "epoch", "tau", "head", "step"]
        )
        step[name] = {
            "active": [i for i in step["active"] if i != self.pick(others)],
            "assignments": {},
            "absences": {str(self.pick(others)): 5},
            "byzantine": 0,
            "tau": 2.0,
            "step": step["step"] + 1,
        }.get(name, base64.b64encode(bytes(32)).decode())
        context = convert({k: v for k, v in step.items() if k != "messages"}, Start, "start").binding(self.config)
        for phase, said in step["messages"].items():
            for sender, identity in self.forgers.items():
                for message in said.get(str(sender), []):
                    payload = base64.b64decode(message[0])
                    signed = Signed(sender, step["step"], phase, payload, b"")
                    signature = identity.sign(signed.digest(context))
                    message[1] = base64.b64encode(signature).decode()

    def tensors(self) -> None:
        file, content = self._json(self.folder, "step-????????.json")
        d = read_settings(self.folder)[1]
        proof = Proof.read(file.parent, content["now"]["step"], d)
        packets = [packet for said in proof.shown.values() for of_one in said.values() for packet in of_one]
        what = self.pick(["drop", "change", "aggregate", "params", "swap"])
        if what == "drop":
            proof.shown = {}
        elif what == "change":
            self.pick(packets).body.add_(1)
        elif what == "swap":
            attempt = self.pick(proof.shown)
            proof.shown[attempt] = {who: self.pick(list(proof.shown[attempt].values())) for who in range(8)}
        elif what == "aggregate":
            del proof.aggregates[self.pick(proof.aggregates)]
        else:
            proof.params = torch.zeros(d)
        proof.write(file.parent, self.by, self.forgers[self.by])

    # A whole new end: what follows from the messages that are left is in the ledger, and the forgers sign for it.

    def end(self) -> None:
        file, content = self._json(self.folder, "step-????????.json")
        step = content["now"]["step"]
        d = read_settings(self.folder)[1]
        proof = Proof.read(file.parent, step, d)
        lines = [Entry.from_json(line) for line in lines_of(self.folder)]
        earlier = [entry for entry in lines if entry.step < step]
        roster = AgreedState(self.config, self.roster, self._lines()).roster(step)
        phases = _in_order(proof.now.messages)
        if self.chance(0.7):
            # Rarely before the roll call is over: where hardly anybody is heard, there is no step.
            first = int(self.rng.integers(0 if self.chance(0.1) else phases.index("announce"), len(phases)))
            spared = {self.pick(proof.now.active)} if self.chance(0.3) else set()
            proof.now = without(
                proof.now,
                lambda phase, sender: phases.index(phase) >= first and sender not in {*self.forgers, *spared},
            )
        elif self.chance():
            victims = {self.pick(proof.now.active) for _ in range(3)}
            phase = self.pick(phases)
            proof.now = without(proof.now, lambda where, sender: where == phase and sender in victims)
        for _ in range(int(self.rng.integers(3)) if self.chance() else 0):
            phase = self.pick(phases)
            chosen = {i for i in self.forgers if self.chance()}
            said = {i: self._payload(content["now"], phase) for i in chosen}
            proof.now = saying(proof.now, self.config, self.forgers, said, phase)
        if self.chance(0.7):
            proof.now = voting(proof, roster, self.config, self.forgers, self.pick([GUILTY, FALSE_CLAIM]), d=d)
        for trace in (self.folder / EVIDENCE).iterdir():
            if int(trace.name[5:13]) >= step:
                trace.unlink()
        attestation = (self.folder / ATTESTATION).read_bytes() if (self.folder / ATTESTATION).exists() else None
        write_run(
            self.folder,
            self.config,
            roster,
            proof,
            self.forgers,
            earlier=earlier,
            sealed=self.chance(0.7),
            finished=self.chance(),
            d=d,
        )
        if attestation is not None and self.chance(0.2):
            (self.folder / ATTESTATION).write_bytes(attestation)

    def _lines(self) -> list[Line]:
        return read_ledger(self.folder / "ledger.jsonl")

    # The other files.

    def files(self) -> None:
        """A file is gone, or is that of another step or life."""
        here = sorted((self.folder / EVIDENCE).iterdir())
        there = sorted((self.run.other / EVIDENCE).iterdir())
        file = self.pick(here)
        what = self.pick(["drop", "copy", "add", "life", "unfinished"])
        if what == "drop":
            file.unlink()
        elif what == "copy":
            shutil.copyfile(self.pick([f for f in there if f.suffixes == file.suffixes]), file)
        elif what == "add":
            name = file.name.replace(file.name[5:13], f"{int(self.rng.integers(7)):08d}")
            shutil.copyfile(self.pick(there), file.with_name(name))
        elif what == "life":
            for name in self.pick([[ATTESTATION], ["ledger.jsonl"], ["ledger.jsonl", ATTESTATION]]):
                shutil.copyfile(self.run.other / name, self.folder / name)
        else:
            (self.folder / ATTESTATION).unlink()
            (self.folder / SUMMARY).unlink(missing_ok=True)

    def attestation(self) -> None:
        attested = Attestation.read(self.folder)
        change = self.pick([{"step": attested.step + 1}, {"head": bytes(32)}, {"params": bytes(32)}, {}])
        forged = replace(attested, **change)
        roster = AgreedState(self.config, self.roster, self._lines()).roster(forged.step)
        said = forged.digest(self.config, roster, read_settings(self.folder)[1])
        own = {i: identity.sign(said) for i, identity in self.forgers.items()}
        kept = {i: s for i, s in attested.signatures.items() if self.chance()} if self.chance() else {}
        replace(forged, signatures=self.pick([{**kept, **own}, own, kept])).write(self.folder)

    def settings(self) -> None:
        settings = json.loads((self.folder / PROTOCOL).read_text().splitlines()[1])
        change = self.pick(
            [{"byzantine": 0}, {"max_absences": 1}, {"relays": 0}, {"tau": 2.0}, {"validation": "tolerant"}]
        )
        if self.chance(0.7):
            write_json(self.folder / PROTOCOL, {**settings, "config": {**asdict(self.config), **change}})
        else:
            roster = json.loads((self.folder / ROSTER).read_text().splitlines()[1])["keys"]
            roster[int(self.rng.integers(len(roster)))] = self.forgers[self.by].public_key.hex()
            write_json(self.folder / ROSTER, {"keys": roster})


def judged(run: Run, seed: int, folder: Path, only: str = "", *, count: int = MUTANTS) -> Counter[str]:
    """How many mutants of `run` were refused and accepted. AssertionError about the first that states an untruth."""
    truths = [Truth.of(run.folder), Truth.of(run.other)]
    outcomes: Counter[str] = Counter()
    for number in range(count):
        mutant = folder / f"{seed}-{number}"
        shutil.copytree(run.folder, mutant)
        made = Mutator(run, mutant, stream("mutants", run.folder.name, seed, number)).mutate(only)
        try:
            report = audit(mutant)
        except AuditError:
            outcomes["refused"] += 1
        else:
            outcomes["accepted"] += 1
            said = "\n".join(map(str, (*report.findings, report.summary)))
            assert any(truth.allows(report) for truth in truths), f"{mutant.name} ({made}):\n{said}"
        shutil.rmtree(mutant)
    return outcomes
