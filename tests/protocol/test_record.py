"""The one form in which checkpoints, proofs and downloads hold a step."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import AnnouncedPart, Commit, Report
from btard.protocol.record import Probation, Settled, Start, StepRecord, Transcript, to_json
from btard.protocol.signed import Signed
from btard.protocol.split import Split
from btard.protocol.wire import Malformed, convert
from btard.task import QuadraticTask

D = 53
HASH = bytes(range(32))
FULL: dict[str, Any] = {
    "step": 7,
    "active": (0, 2, 3),
    "assignments": {3: 0},
    "previous_coin": HASH,
    "tau": 0.1,
    "head": HASH[::-1],
    "absences": {2: 1},
    "standings": {5: Probation(3, 0, frozenset({30, 2, 100}))},
    "commits": {0: Commit((HASH, HASH))},
    "announced": {1: AnnouncedPart(1, HASH, (0, 2))},
    "missing": {2: (0, 1)},
    "reports": {0: Report((1.5, 0.0), ((-1e300,), (0.1,)), (1,), (2.5, 0.0))},
    "coin": HASH,
    "workers": (0, 2),
    "split": Split(D, 2),
    "owners": (0, 2),
    "expelled": {1: "gone"},
    "here": (0, 2),
    "unheld": frozenset({1}),
    "epoch": HASH,
    "skipped": {1, 0},
}


def test_every_agreed_field_comes_back() -> None:
    record = StepRecord(**FULL)
    assert set(FULL) == set(Settled.__struct_fields__)
    assert all(FULL[name] != getattr(StepRecord(0, (), {}, b""), name) for name in FULL), "a default proves nothing"
    kept = json.loads(json.dumps(to_json(record, Settled)))
    assert convert(kept, Settled, "step") == Settled(**FULL)
    restored = StepRecord.restored(convert(kept, Settled, "step"), {})
    assert all(getattr(restored, name) == FULL[name] for name in FULL)


def plain(heard: dict[str, dict[int, tuple[Signed, ...]]]) -> dict[tuple[str, int], list[Any]]:
    """What was said, with the signatures as bytes."""
    fields = ("sender", "step", "phase", "payload", "signature")
    return {
        (phase, sender): [[getattr(message, name) for name in fields] for message in messages]
        for phase, said in heard.items()
        for sender, messages in said.items()
    }


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_a_step_of_a_run_comes_back(validation: Any) -> None:
    collusion = Collusion(frozenset({1}), 5)
    config = ProtocolConfig(peers=5, byzantine=1, validation=validation)
    behaviours = {1: make_attack("wrong_aggregate", collusion, scale=0.1)}
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion)
    driver.step(torch.ones(D))
    record = driver.peers[0].last
    assert record is not None and record.expelled and record.skipped
    kept = json.loads(json.dumps(to_json(record, Settled)))
    restored = StepRecord.restored(convert(kept, Settled, "step"), record.tensors())
    assert convert(kept, Settled, "step") == convert(to_json(restored, Settled), Settled, "step")
    assert restored.tensors().keys() == record.tensors().keys()
    for name, tensor in record.tensors().items():
        assert restored.tensors()[name].equal(tensor)
    transcript = convert(json.loads(json.dumps(to_json(Transcript.of(record), Transcript))), Transcript, "step")
    assert plain(transcript.heard()) == plain(record.heard)
    assert transcript.binding(config) == record.context


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", True),
        ("step", 2**31),
        ("active", [0, "1"]),
        ("assignments", {"x": 1}),
        ("assignments", []),
        ("previous_coin", "\ud800"),
        ("tau", float("nan")),
        ("tau", 0.0),
        ("standings", {"5": {"served": 1, "missed": 0, "cleared": [], "more": 1}}),
        ("standings", {"5": {"served": 1, "missed": 0}}),
        ("more", 1),
        ("messages", {"commit\n": {}}),
        ("messages", {"commit": {"0": [["", "", ""]]}}),
    ],
)
def test_what_is_no_step_is_refused_in_a_line(field: str, value: Any) -> None:
    good = to_json(Transcript(3, (0, 1), {}, HASH), Transcript)
    convert(good, Transcript, "step")
    with pytest.raises(Malformed) as caught:
        convert({**good, field: value}, Transcript, "step")
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("field", Start.__struct_fields__)
def test_no_field_may_be_left_out(field: str) -> None:
    kept = to_json(StepRecord(**FULL), Settled)
    del kept[field]
    with pytest.raises(Malformed, match="step: expected the fields"):
        convert(kept, Settled, "step")
