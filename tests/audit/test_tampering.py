"""Whoever changed anything in the folder of a recorded run is found out."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from btard.audit import audit
from btard.audit.attestation import Attestation
from btard.audit.files import write_json
from btard.audit.proof import Proof
from btard.protocol import wire
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry
from tests.audit.runs import D, lines_of, sign, write_lines
from tests.audit.tampering import proof_of, refused


def test_no_byte_of_the_ledger_can_be_changed(run: Path) -> None:
    raw = (run / "ledger.jsonl").read_bytes()
    for position in range(0, len(raw), 41):
        changed = bytearray(raw)
        changed[position] ^= 1
        (run / "ledger.jsonl").write_bytes(changed)
        refused(run, r"^ledger\.jsonl")
    (run / "ledger.jsonl").write_bytes(raw[:-1])
    refused(run, "cut short")
    (run / "ledger.jsonl").unlink()
    refused(run, r"ledger\.jsonl: missing")


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_no_line_can_be_left_out(run: Path, missing: int, chained: bool) -> None:
    lines = lines_of(run)
    del lines[missing]
    write_lines(run, lines, chained=chained)
    refused(run, "ledger.jsonl: no line about step" if chained or missing == 2 else rf"line {missing + 1}: its head")


def test_the_end_cannot_be_cut_off_with_all_its_traces(run: Path) -> None:
    file, _ = proof_of(run, Entry.from_json(lines_of(run)[-1]).kind)
    for trace in (run / "evidence").iterdir():
        if trace.name >= file.name[:13]:
            trace.unlink()
    write_lines(run, lines_of(run)[:-1], chained=False)
    refused(run, "lines are missing at the end")


@pytest.mark.parametrize("chained", [False, True])
def test_lines_cannot_change_places(run: Path, chained: bool) -> None:
    first, second, third = lines_of(run)
    write_lines(run, [second, first, third], chained=chained)
    refused(run, "after step" if chained else "line 1: its head")


@pytest.mark.parametrize(
    "change",
    [
        {"peers": (0,), "accused": 0},
        {"verdict": "false", "kind": "false_accusation", "peers": (4,)},
        {"votes": {"0": "guilty"}},
        {"evidence": "00" * 32},
        {"accusers": (0,)},
        {"part": 0},
        {"step": 1},
    ],
    ids=str,
)
def test_a_forged_line_contradicts_the_signed_votes(run: Path, change: dict[str, Any]) -> None:
    lines = lines_of(run)
    index = next(i for i, line in enumerate(lines) if Entry.from_json(line).kind == "misreport")
    lines[index] = structs.replace(Entry.from_json(lines[index]), **change).to_json()
    write_lines(run, lines, chained=True)
    refused(run, "ledger.jsonl")


@pytest.mark.parametrize("kind", ["misreport", "wrong_reveal", "wrong_gradient"])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_proof_can_be_neither_missing_nor_changed(run: Path, kind: str, suffix: str) -> None:
    file = proof_of(run, kind)[0].with_suffix(suffix)
    if not file.exists():
        assert (kind, suffix) == ("wrong_reveal", ".safetensors")
        return
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    refused(run, rf"{file.name}: its content does not match its digest .*ledger.jsonl line")
    file.unlink()
    refused(run, rf"{file.name}: missing .*ledger.jsonl line")


def test_only_members_can_record(run: Path) -> None:
    file, content = proof_of(run, "wrong_gradient")
    write_json(file, {**content, "by": 4 if content["by"] == 0 else 0})
    refused(run, f"{file.name}: not as an active peer has recorded and signed it")
    banned = next(entry.accused for entry in map(Entry.from_json, lines_of(run)) if entry.step < content["now"]["step"])
    sign(file, content, by=banned)
    refused(run, f"{file.name}: not as an active peer has recorded and signed it")
    sign(file, content, by=4)
    audit(run)


def forge_signature(content: dict[str, Any]) -> None:
    said = content["now"]["messages"]["report"]
    said["1"][0][1] = said["2"][0][1]


def forge_vote(content: dict[str, Any]) -> None:
    message = content["now"]["messages"]["vote/0"]["0"][0]
    message[0] = base64.b64encode(wire.pack(("false",))).decode()


def drop_votes(content: dict[str, Any]) -> None:
    said = content["now"]["messages"]["vote/0"]
    content["now"]["messages"]["vote/0"] = {sender: said[sender] for sender in list(said)[:2]}


def drop_step_before(content: dict[str, Any]) -> None:
    content["before"] = None


def swap_steps(content: dict[str, Any]) -> None:
    content["now"], content["before"] = content["before"], content["now"]


def change_coin(content: dict[str, Any]) -> None:
    content["now"]["previous_coin"] = base64.b64encode(bytes(32)).decode()


def change_validators(content: dict[str, Any]) -> None:
    content["now"]["assignments"] = {}


def change_peers(content: dict[str, Any]) -> None:
    content["now"]["active"] = content["now"]["active"][:4]


def change_radius(content: dict[str, Any]) -> None:
    content["now"]["tau"] = 2.0


def few_signatures(content: dict[str, Any]) -> None:
    said = content["now"]["messages"]
    content["now"]["messages"] = {
        phase: {sender: messages[sender] for sender in messages if int(sender) < 4} for phase, messages in said.items()
    }


def drop_evidence(content: dict[str, Any]) -> None:
    content["shown"] = []


FORGERIES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (forge_signature, r"step-\d+.json: the signature of peer 1 in 'report' does not hold"),
    (forge_vote, r"the signature of peer 0 in 'vote/0' does not hold"),
    (drop_votes, r"ledger.jsonl line \d: says"),
    (drop_step_before, "nothing about step"),
    (swap_steps, "starts from another step"),
    (change_coin, "only 0 of 9 active peers signed"),
    (change_validators, "only 0 of 9 active peers signed"),
    (change_peers, "starts from another step, other peers"),
    (change_radius, r"step-\d+.json: clips at 2, protocol.json at 1.0"),
    (few_signatures, "only 4 of 9 active peers signed"),
    (drop_evidence, "guilty; by the evidence .* is excused"),
]


@pytest.mark.parametrize(("forge", "reason"), FORGERIES, ids=[forge.__name__ for forge, _ in FORGERIES])
def test_a_forged_proof_is_refused(run: Path, forge: Callable[[dict[str, Any]], None], reason: str) -> None:
    file, content = proof_of(run, "misreport")
    assert content["now"]["active"] == list(range(9)), "the first ban of this run"
    forge(content)
    sign(file, content)
    refused(run, reason)


def test_evidence_has_to_be_what_was_committed_to(run: Path) -> None:
    file, content = proof_of(run, "misreport")
    proof = Proof.read(file.parent, content["now"]["step"], D)
    for packets in proof.shown[0].values():
        for packet in packets:
            assert isinstance(packet.body, torch.Tensor)
            packet.body.add_(1)
    proof.write(file.parent, 0, Identity.from_seed("tampered", 0))
    refused(run, "guilty; by the evidence .* is excused")


def test_aggregates_have_to_be_those_announced(run: Path) -> None:
    file, content = proof_of(run, "misreport")
    proof = Proof.read(file.parent, content["now"]["step"], D)
    for value in proof.aggregates.values():
        value += 1
    proof.write(file.parent, 0, Identity.from_seed("tampered", 0))
    refused(run, r"step-\d+.json: its aggregate of part \d of step \d is not the one that was announced")


def test_settings_keys_and_the_end_are_signed(run: Path) -> None:
    settings = json.loads((run / "protocol.json").read_text().splitlines()[1])
    for change in ({"max_absences": 5}, {"byzantine": 0}):  # with another b other removals would be enough
        write_json(run / "protocol.json", {**settings, "config": {**settings["config"], **change}})
        refused(run, "only 0 of 9 active peers signed")
    write_json(run / "protocol.json", {**settings, "d": D + 1})
    refused(run, "is not the one that was announced")
    write_json(run / "protocol.json", settings)
    attested = Attestation.read(run)
    for change in ({"step": 3}, {"head": b"x" * 32}, {"params": b"x" * 32}):
        replace(attested, **change).write(run)  # type: ignore[arg-type]
        refused(run, "attestation.json: the signature of peer 0")
    replace(attested, signatures=dict(list(attested.signatures.items())[:3])).write(run)
    refused(run, "signed by 3 of 6 active peers; it takes a majority")
    keys = json.loads((run / "roster.json").read_text().splitlines()[1])["keys"]
    write_json(run / "roster.json", {"keys": [keys[1], *keys[1:]]})
    refused(run, "the signature of peer 0 in .* does not hold")
